"""Intervals of metrics from one pass over the rows: DeLong's for the AUC, the delta method's for the others.

Rows are taken for independent draws.  Where they come in bunches, such as the rows of a user, such intervals are too
narrow: with `group` the groups are what was drawn.  A figure's error is then that of the sums over groups of what each
row moves it by, times `sqrt(G / (G - 1))` of G groups, and the quantile is Student's of G - 1 degrees of freedom.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.special import stdtrit

from features.errors import UndefinedMetricError
from recsys.evaluation.auc import GroupAuc, delong, group_codes
from recsys.evaluation.paired import auc_influence
from recsys.evaluation.rows import columns, mean, require_both_classes, require_probabilities, row_losses

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A value and the interval that covers the true one in `level` of all samples."""

    value: float
    low: float
    high: float
    level: float = LEVEL
    method: str = ""
    """How it was found: `delong`, `delta`, `bootstrap by row` ..."""
    error: float | None = None
    """Standard error of the value, where the method has one."""

    def __str__(self) -> str:
        return f"{self.value:.5g} [{self.low:.5g}, {self.high:.5g}]"

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)


def auc_interval(
    labels: np.ndarray,
    scores: np.ndarray,
    weight: np.ndarray | None = None,
    level: float = LEVEL,
    group: np.ndarray | None = None,
) -> Interval:
    """AUC with DeLong's variance; the interval is made on the scale of logits, so that it stays within 0 and 1.

    With A the AUC and e its standard error (`auc.delong`), the interval is `logit(A) +- t e / (A (1 - A))`, turned back
    (Pepe, The Statistical Evaluation of Medical Tests, 2003, 5.2.4), which covers better than `A +- t e` near 1.  t is
    Student's quantile with the degrees of freedom of the variance, which matters where there are few positives, more
    so near an AUC of 1.
    Where every positive is above every negative the variance is 0 and says nothing; then k = min(P, Q) disjoint pairs
    are in order, whose chance is `A^k`, so the lower end is `((1 - level) / 2)^(1 / k)`, after Clopper and Pearson.

    Args:
        labels: [N] in {0, 1}.
        scores: [N], any scale.
        weight: [N] non-negative.
        level: of confidence.
        group: [N] keys of what was drawn; the variance is then Obuchowski's (see `paired.auc_influence`).

    Raises:
        UndefinedMetricError: There are fewer than two rows of a class, or one group only.

    >>> str(auc_interval(np.array([0, 0, 1, 0, 1, 1]), np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])))
    '0.88889 [0.088036, 0.99849]'
    >>> str(auc_interval(np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.3, 0.4])))
    '1 [0.15811, 1]'
    """
    found = delong(labels, scores, weight)
    if found.variance is None:
        rows = found.positives + found.negatives
        raise UndefinedMetricError(f"{found.positives} of {rows} rows are positive: two of each class are needed")
    value, error, freedom = found.value, math.sqrt(found.variance), found.freedom
    if group is not None and 0 < value < 1:
        y, s, w = columns(labels, scores, weight)
        error, freedom = _of_groups(auc_influence(y, s, w), group)
    if value in (0.0, 1.0):
        far = ((1 - level) / 2) ** (1 / min(found.positives, found.negatives))
        low, high = (far, 1.0) if value == 1 else (0.0, 1 - far)
        return Interval(value, low, high, level, "exact, classes apart", error)
    half = _quantile(level, freedom) * error / (value * (1 - value))
    low, high = (1 / (1 + math.exp(-(math.log(value / (1 - value)) + side * half))) for side in (-1, 1))
    return Interval(value, low, high, level, "delong" if group is None else "delong, by group", error)


def logloss_interval(
    labels: np.ndarray,
    probabilities: np.ndarray,
    weight: np.ndarray | None = None,
    level: float = LEVEL,
    group: np.ndarray | None = None,
) -> Interval:
    """Logloss with the interval of a mean of independent losses.

    >>> str(logloss_interval(np.array([1, 0, 1, 0]), np.array([0.5, 0.5, 0.8, 0.2])))
    '0.45815 [0.19222, 0.72407]'
    """
    y, p, w = _probabilities(labels, probabilities, weight)
    losses = row_losses(y, p)
    value = mean(losses, w)
    return _symmetric(value, losses - value, w, level, group)


def normalised_entropy_interval(
    labels: np.ndarray,
    probabilities: np.ndarray,
    weight: np.ndarray | None = None,
    level: float = LEVEL,
    group: np.ndarray | None = None,
) -> Interval:
    """Normalised entropy with the delta method.

    With L the logloss, b the base rate and H(b) its entropy, NE is L / H(b), and a row of loss l and label y moves it
    by `((l - L) - NE log((1 - b) / b) (y - b)) / H(b)` over the number of rows: the divisor is uncertain too.

    Raises:
        UndefinedMetricError: One of the classes is absent.
    """
    y, p, w = _probabilities(labels, probabilities, weight)
    require_both_classes(float((y * w).sum()), float(((1 - y) * w).sum()), len(y))
    losses, rate = row_losses(y, p), mean(y, w)
    entropy = -rate * math.log(rate) - (1 - rate) * math.log1p(-rate)
    logloss = mean(losses, w)
    value = logloss / entropy
    influence = (losses - logloss - value * math.log((1 - rate) / rate) * (y - rate)) / entropy
    return _symmetric(value, influence, w, level, group)


def calibration_ratio_interval(
    labels: np.ndarray,
    probabilities: np.ndarray,
    weight: np.ndarray | None = None,
    level: float = LEVEL,
    group: np.ndarray | None = None,
) -> Interval:
    """Expected clicks over observed clicks with the delta method on the scale of logarithms.

    With R the ratio and b the base rate, a row moves log R by `(p - R y) / (R b)` over the number of rows.

    Raises:
        UndefinedMetricError: There is no click, or all probabilities are 0.
    """
    y, p, w = _probabilities(labels, probabilities, weight)
    clicks, expected = mean(y, w), mean(p, w)
    if clicks == 0 or expected == 0:
        raise UndefinedMetricError(f"none of {len(y)} rows is positive" if clicks == 0 else "all probabilities are 0")
    value = expected / clicks
    on_logs = _symmetric(math.log(value), (p - value * y) / expected, w, level, group)
    low, high, error = math.exp(on_logs.low), math.exp(on_logs.high), value * (on_logs.error or 0.0)
    return Interval(value, low, high, level, f"{on_logs.method}, on logarithms", error)


def brier_interval(
    labels: np.ndarray,
    probabilities: np.ndarray,
    weight: np.ndarray | None = None,
    level: float = LEVEL,
    group: np.ndarray | None = None,
) -> Interval:
    """Brier score with the interval of a mean of independent losses."""
    y, p, w = _probabilities(labels, probabilities, weight)
    losses = (p - y) ** 2
    value = mean(losses, w)
    return _symmetric(value, losses - value, w, level, group)


def gauc_interval(groups: GroupAuc, level: float = LEVEL) -> Interval:
    """AUC within groups, averaged, with the delta method over groups, which are taken for independent.

    With a_g and s_g the AUC and the weight of group g, the error is `sqrt(sum s_g^2 (a_g - GAUC)^2) / sum s_g`.

    Raises:
        UndefinedMetricError: Fewer than two groups have both classes.
    """
    value = groups.mean()
    return _symmetric(value, groups.values - value, groups.weights, level)


def mean_interval(values: np.ndarray, weight: np.ndarray | None = None, level: float = LEVEL) -> Interval:
    """The mean of independent values, such as those of requests.

    Raises:
        UndefinedMetricError: There are fewer than two values.
    """
    w = np.ones(len(values)) if weight is None else weight
    value = mean(values, w)
    return _symmetric(value, values - value, w, level)


def _symmetric(
    value: float, influence: np.ndarray, weight: np.ndarray, level: float, group: np.ndarray | None = None
) -> Interval:
    """`value +- z e`, e^2 the sum of squared weighted influences (which sum to 0) over that of weights, squared.

    It is divided by `1 - sum w^2 / (sum w)^2`, which for equal weights gives the variance with N - 1.
    """
    total = float(weight.sum())
    if group is not None:
        error, freedom = _of_groups(weight * influence / total, group)
        half = _quantile(level, freedom) * error
        return Interval(value, value - half, value + half, level, "delta, by group", error)
    share = float((weight * weight).sum()) / total**2
    if share > 1 - 1e-9:
        raise UndefinedMetricError(f"{np.count_nonzero(weight)} values: an interval needs two")
    error = math.sqrt(float(((weight * influence) ** 2).sum()) / (1 - share)) / total
    half = _quantile(level) * error
    return Interval(value, value - half, value + half, level, "delta", error)


def _of_groups(influence: np.ndarray, group: np.ndarray) -> tuple[float, float]:
    """Standard error of a figure of which each row moves so much, groups drawn, and its degrees of freedom."""
    codes, count = group_codes(group)
    if count < 2:
        raise UndefinedMetricError(f"{count} group: an interval by group needs two")
    moved = np.bincount(codes, influence, count)
    return math.sqrt(float(moved @ moved) * count / (count - 1)), count - 1


def _probabilities(
    labels: np.ndarray, probabilities: np.ndarray, weight: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    y, p, w = columns(labels, probabilities, weight)
    require_probabilities(p)
    return y, p, w


def _quantile(level: float, freedom: float = math.inf) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level {level} is not between 0 and 1")
    return float(stdtrit(freedom, (1 + level) / 2))
