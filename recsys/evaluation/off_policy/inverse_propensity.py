"""Estimators that weigh what was logged by how likely the evaluated policy would have done it."""

from __future__ import annotations

from recsys.evaluation.off_policy.contributions import Contributions
from recsys.evaluation.off_policy.log import BanditLog
from recsys.evaluation.off_policy.target import TargetPolicy
from recsys.evaluation.off_policy.weights import importance_weights


def ips(
    log: BanditLog, target: TargetPolicy, *, clip: float | None = None, max_weight: float | None = None
) -> Contributions:
    """Inverse propensity score.

    `V = 1/n sum_i w_i r_i`,  `w_i = min(pi(a_i | x_i) / p_i, clip)`

    Without clipping it is unbiased if the propensities are right and the logging policy can show whatever the evaluated
    one may. Its variance grows with the weights.

    References:
        Horvitz and Thompson, "A Generalization of Sampling Without Replacement from a Finite Universe", JASA 1952.
        Strehl, Langford, Li and Kakade, "Learning from Logged Implicit Exploration Data", NeurIPS 2010.

    Args:
        log: N rows.
        target: The evaluated policy on them.
        clip: The largest weight; brings a bias, see `importance_weights`.
        max_weight: What no weight can exceed, if it is known.

    >>> import numpy as np
    >>> log = BanditLog(np.array([0, 1, 1]), np.array([1, 1, 0]), np.array([0.5, 0.25, 0.5]), actions=2)
    >>> target = TargetPolicy.of(log, np.full((3, 2), 0.5))
    >>> ips(log, target).value, ips(log, target, clip=1.5).value.__round__(4)
    (1.0, 0.8333)
    """
    weights = importance_weights(log, target, clip=clip, max_weight=max_weight)
    low, high = log.reward_range
    return Contributions(
        "ips", weights.values * log.reward, span=(min(0.0, weights.bound * low), max(0.0, weights.bound * high))
    )


def self_normalised_ips(
    log: BanditLog, target: TargetPolicy, *, clip: float | None = None, max_weight: float | None = None
) -> Contributions:
    """Self-normalised IPS: the weights divided by their mean.

    `V = sum_i w_i r_i / sum_i w_i`

    Consistent, with a bias of order 1/n; it never leaves the range of the rewards, and adding a constant to all rewards
    adds the same to the value. As a ratio it has no empirical Bernstein interval.

    References:
        Swaminathan and Joachims, "The Self-Normalized Estimator for Counterfactual Learning", NeurIPS 2015.

    Args:
        log: N rows.
        target: The evaluated policy on them.
        clip: The largest weight; brings a bias, see `importance_weights`.
        max_weight: What no weight can exceed, if it is known.
    """
    weights = importance_weights(log, target, clip=clip, max_weight=max_weight)
    return Contributions("snips", weights.values * log.reward, weights.values)
