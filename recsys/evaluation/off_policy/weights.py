"""Importance weights, how much they can be, and what clipping them costs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from features.errors import ConfigError, DataError
from recsys.evaluation.off_policy.log import BanditLog
from recsys.evaluation.off_policy.target import TargetPolicy


@dataclass(frozen=True)
class Weights:
    """The importance weights of N rows."""

    values: np.ndarray
    """[N]."""
    bound: float
    """What no weight can exceed."""
    assumed: bool
    """Whether the bound is read off the log and holds only if no propensity is ever smaller than the smallest there."""
    clipped: int
    """Rows whose weight was cut."""


def importance_weights(
    log: BanditLog, target: TargetPolicy, *, clip: float | None = None, max_weight: float | None = None
) -> Weights:
    """How much more likely the evaluated policy is to do what was logged.

    `w_i = min(pi(a_i | x_i) / p_i, clip)`

    Clipping bounds the variance and brings a bias: what clipped rows lose is missing from the sum, so that with rewards
    that are not negative the value of IPS is too low, by at most E[r (w - clip)+] (Ionides, "Truncated Importance
    Sampling", JCGS 2008).

    Args:
        log: N rows.
        target: The evaluated policy on them.
        clip: The largest weight; none when left out.
        max_weight: What is known of the weights beforehand: 1 over the smallest chance that the logging policy gives
            to anything. Without it, the largest chance of the evaluated policy over the smallest propensity in the log.

    Raises:
        ConfigError: `clip` or `max_weight` is not above 0.
        DataError: A weight is above `max_weight`.

    >>> log = BanditLog(np.array([0, 1]), np.array([1, 0]), np.array([0.5, 0.1]), actions=2)
    >>> target = TargetPolicy.of(log, np.array([[0.5, 0.5], [0.5, 0.5]]))
    >>> importance_weights(log, target).values.tolist()
    [1.0, 5.0]
    >>> importance_weights(log, target, clip=2.0).values.tolist()
    [1.0, 2.0]
    """
    for name, value in (("clip", clip), ("max_weight", max_weight)):
        if value is not None and not value > 0:
            raise ConfigError("a weight is above 0", field=name, found=value, mend="leave it out, or give more")
    values = target.taken / log.propensity
    if max_weight is not None and values.max() > max_weight * (1 + 1e-9):
        raise DataError(
            "an importance weight is above what was said to be the largest",
            field="max_weight",
            found=f"{values.max():.6g} in row {int(values.argmax())}",
            expected=f"at most {max_weight:g}",
            mend="give the true bound: 1 over the smallest chance of the logging policy",
        )
    assumed = max_weight is None
    bound = target.largest / float(log.propensity.min()) if max_weight is None else max_weight
    if clip is None:
        return Weights(values, bound, assumed, 0)
    return Weights(np.minimum(values, clip), min(bound, clip), assumed and bound < clip, int((values > clip).sum()))


def effective_sample_size(weights: np.ndarray) -> float:
    """How many rows of equal weight would tell as much: (sum w)^2 / sum w^2 (Kish 1965).

    >>> effective_sample_size(np.array([1.0, 1.0, 1.0, 1.0]))
    4.0
    >>> effective_sample_size(np.array([9.0, 0.0, 0.0, 0.0]))
    1.0
    """
    total, squares = math.fsum(weights), math.fsum(weights**2)
    return total**2 / squares if squares > 0 else 0.0
