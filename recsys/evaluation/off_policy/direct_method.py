"""The estimator that believes the reward model."""

from __future__ import annotations

from recsys.evaluation.off_policy.contributions import Contributions
from recsys.evaluation.off_policy.log import BanditLog
from recsys.evaluation.off_policy.target import TargetPolicy


def direct_method(log: BanditLog, target: TargetPolicy) -> Contributions:
    """Direct method: the mean of what the reward model expects of the evaluated policy.

    `V = 1/n sum_i sum_a pi(a | x_i) q(x_i, a)`

    No propensity and no logged reward enters. Its bias is that of the model, and no interval shows it: intervals are of
    the contexts alone, the model as it is.

    References:
        Beygelzimer and Langford, "The Offset Tree for Learning with Partial Labels", KDD 2009.

    Args:
        log: N rows.
        target: The evaluated policy on them, with a reward model.

    Raises:
        DataError: There is no reward model.
    """
    expected, _ = target.model()
    return Contributions("dm", expected, span=log.reward_range)
