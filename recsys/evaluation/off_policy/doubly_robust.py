"""Estimators that take the reward model and mend it with what was logged."""

from __future__ import annotations

import numpy as np

from features.errors import ConfigError
from recsys.evaluation.off_policy.contributions import Contributions
from recsys.evaluation.off_policy.log import BanditLog
from recsys.evaluation.off_policy.target import TargetPolicy
from recsys.evaluation.off_policy.weights import importance_weights


def doubly_robust(
    log: BanditLog, target: TargetPolicy, *, clip: float | None = None, max_weight: float | None = None
) -> Contributions:
    """Doubly robust: the direct method plus the weighted error of the reward model.

    `V = 1/n sum_i [ sum_a pi(a | x_i) q(x_i, a) + w_i (r_i - q(x_i, a_i)) ]`

    Unbiased if the propensities are right, whatever the model; with a good model its variance is below that of IPS.
    Both hold for a model that was not fitted on these rows: cross-fit it if it was (`assign_folds`).

    References:
        Dudik, Langford and Li, "Doubly Robust Policy Evaluation and Learning", ICML 2011.

    Args:
        log: N rows.
        target: The evaluated policy on them, with a reward model.
        clip: The largest weight; moves the value towards the direct method's, see `importance_weights`.
        max_weight: What no weight can exceed, if it is known.

    Raises:
        DataError: There is no reward model.
    """
    weights = importance_weights(log, target, clip=clip, max_weight=max_weight)
    return _mended("dr", log, target, weights.values, weights.bound)


def switch_doubly_robust(
    log: BanditLog, target: TargetPolicy, *, switch: float, max_weight: float | None = None
) -> Contributions:
    """Switch-DR: doubly robust where the weight is at most `switch`, the direct method where it is larger.

    `V = 1/n sum_i [ sum_a pi(a | x_i) q(x_i, a) + w_i 1{w_i <= switch} (r_i - q(x_i, a_i)) ]`

    Where it switches, the model's error stays: a bias in exchange for the variance of the largest weights.

    References:
        Wang, Agarwal and Dudik, "Optimal and Adaptive Off-policy Evaluation in Contextual Bandits", ICML 2017.

    Args:
        log: N rows.
        target: The evaluated policy on them, with a reward model.
        switch: The weight above which the model is believed; 0 is the direct method, infinity is doubly robust.
        max_weight: What no weight can exceed, if it is known.

    Raises:
        ConfigError: `switch` is negative.
        DataError: There is no reward model.
    """
    if not switch >= 0:
        raise ConfigError("the threshold of a weight is not negative", field="switch", found=switch)
    weights = importance_weights(log, target, max_weight=max_weight)
    kept = np.where(weights.values <= switch, weights.values, 0.0)
    return _mended("switch-dr", log, target, kept, min(weights.bound, switch))


def _mended(name: str, log: BanditLog, target: TargetPolicy, weights: np.ndarray, bound: float) -> Contributions:
    expected, predicted = target.model()
    low, high = log.reward_range
    most = bound * (high - low)
    return Contributions(name, expected + weights * (log.reward - predicted), span=(low - most, high + most))
