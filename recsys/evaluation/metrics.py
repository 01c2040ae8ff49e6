"""Exact metrics of click probabilities: discrimination, accuracy of the probabilities, calibration.

Everything is computed from all rows in float64, nothing is binned but the expected calibration error and the parts of
the Brier score.  `docs/metrics.md` has the definitions side by side.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np

from features.errors import UndefinedMetricError
from features.storage.drift import psi
from recsys.evaluation.auc import delong, group_auc, group_codes, tied
from recsys.evaluation.calibration import brier_parts, expected_calibration_error, reliability_curve
from recsys.evaluation.ece_interval import ece_interval
from recsys.evaluation.intervals import (
    LEVEL,
    Interval,
    auc_interval,
    brier_interval,
    calibration_ratio_interval,
    gauc_interval,
    logloss_interval,
    normalised_entropy_interval,
)
from recsys.evaluation.rows import columns, mean, require_both_classes, require_probabilities, row_losses

__all__ = [
    "auc",
    "average_precision",
    "brier",
    "calibration_ratio",
    "evaluate",
    "evaluate_intervals",
    "expected_calibration_error",
    "gauc",
    "logloss",
    "normalised_entropy",
    "prediction_drift",
    "reliability_curve",
    "row_losses",
]

_INTERVALS: dict[str, Callable[..., Interval]] = {
    "auc": auc_interval,
    "logloss": logloss_interval,
    "normalised_entropy": normalised_entropy_interval,
    "calibration_ratio": calibration_ratio_interval,
    "brier": brier_interval,
}


def evaluate(
    labels: np.ndarray,
    probabilities: np.ndarray,
    weight: np.ndarray | None = None,
    group: np.ndarray | None = None,
) -> dict[str, Any]:
    """All metrics of one task (of the first, when there are several columns).

    Args:
        labels: [N] or [N, T] in {0, 1}.
        probabilities: [N] or [N, T] in [0, 1].
        weight: [N] non-negative; 1 when left out.
        group: [N] group keys for GAUC; left out, there is no GAUC.

    Returns:
        `rows`, `base_rate`, `auc`, `pr_auc`, `logloss`, `normalised_entropy`, `calibration_ratio`, `ece`, `brier` and
        its parts `brier_reliability`, `brier_resolution`, `brier_uncertainty`, and with groups `gauc`, `gauc_groups`,
        `gauc_groups_single_class`.  A metric that does not exist on these rows is None, and `undefined` says why by
        name.

    Raises:
        DataError: A score is not finite or out of range, a label is not binary, a weight is negative, or they are not
            of the same rows.
    """
    y, p, w = columns(labels, probabilities, weight)
    require_probabilities(p)
    given = None if weight is None else w
    out: dict[str, Any] = {"rows": len(y), "undefined": {}}

    def put(name: str, compute: Any) -> None:
        try:
            out[name] = compute()
        except UndefinedMetricError as error:
            out[name] = None
            out["undefined"][name] = error.what

    put("base_rate", lambda: mean(y, w))
    put("auc", lambda: auc(y, p, given))
    put("pr_auc", lambda: average_precision(y, p, w))
    put("logloss", lambda: logloss(y, p, w))
    put("normalised_entropy", lambda: normalised_entropy(y, p, w))
    put("calibration_ratio", lambda: calibration_ratio(y, p, w))
    put("ece", lambda: expected_calibration_error(y, p, w))
    put("brier", lambda: brier(y, p, w))
    if len(y) and w.sum():
        parts = brier_parts(y, p, w)
        out |= {f"brier_{name}": parts[name] for name in ("reliability", "resolution", "uncertainty")}
    if group is not None:
        found = group_auc(y, p, group, given)
        put("gauc", found.mean)
        out["gauc_groups"], out["gauc_groups_single_class"] = len(found.values), found.single_class
    return out


def evaluate_intervals(
    labels: np.ndarray,
    probabilities: np.ndarray,
    weight: np.ndarray | None = None,
    group: np.ndarray | None = None,
    level: float = LEVEL,
) -> dict[str, Interval]:
    """Intervals of the metrics of `evaluate` by their names, rows taken for independent; groups, where they are given.

    The interval of `ece` is by row in any case, and its value the one without noise.  `pr_auc` and the parts of the
    Brier score have none here: see `bootstrap`.  What does not exist on these rows is left out; `evaluate` says why.

    Args:
        labels: [N] or [N, T] in {0, 1}.
        probabilities: [N] or [N, T] in [0, 1].
        weight: [N] non-negative.
        group: [N] keys of what was drawn, such as users.
        level: of confidence.

    Raises:
        DataError: as `evaluate` says it.

    >>> y, p = np.array([0, 0, 1, 0, 1, 1]), np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    >>> {name: str(interval) for name, interval in evaluate_intervals(y, p).items() if name in ("auc", "brier")}
    {'auc': '0.88889 [0.088036, 0.99849]', 'brier': '0.185 [0.04634, 0.32366]'}
    """
    y, p, _ = columns(labels, probabilities, weight)
    found = {}
    codes = None if group is None else group_codes(group)[0]
    for name, interval_of in _INTERVALS.items():
        with contextlib.suppress(UndefinedMetricError):
            found[name] = interval_of(y, p, weight, level=level, group=codes)
    with contextlib.suppress(UndefinedMetricError):
        found["ece"] = ece_interval(y, p, weight, level=level)
    if group is not None:
        with contextlib.suppress(UndefinedMetricError):
            found["gauc"] = gauc_interval(group_auc(y, p, group, weight), level)
    return found


def auc(labels: np.ndarray, scores: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties counting half.

    Args:
        labels: [N] in {0, 1}.
        scores: [N], any scale.
        weight: [N] non-negative.

    Raises:
        UndefinedMetricError: one of the classes is absent.

    >>> auc(np.array([0, 1, 0, 1]), np.array([0.1, 0.4, 0.4, 0.8]))
    0.875
    """
    return delong(labels, scores, weight).value


def average_precision(labels: np.ndarray, scores: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Area under the precision-recall curve as `sum (R_n - R_(n-1)) P_n` over the distinct scores, descending.

    Precision and recall are those of all rows of at least that score, so that rows of equal score have no order among
    them.  There is no interpolation between points (Davis and Goadrich, ICML 2006, on why straight lines are wrong).

    Args:
        labels: [N] in {0, 1}.
        scores: [N], any scale.
        weight: [N] non-negative.

    Raises:
        UndefinedMetricError: none of the rows is positive.

    >>> round(average_precision(np.array([0, 1, 0, 1]), np.array([0.1, 0.4, 0.4, 0.8])), 4)
    0.8333
    """
    y, s, w = columns(labels, scores, weight)
    if not (y * w).sum():
        raise UndefinedMetricError(f"none of {len(y)} rows is positive")
    ((positive, negative),) = tied(y, s, w)
    true, false = (sums[::-1].cumsum() for sums in (positive, negative))
    precision = np.divide(true, true + false, out=np.zeros_like(true), where=true > 0)
    return float((positive[::-1] * precision).sum() / true[-1])


def logloss(labels: np.ndarray, probabilities: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Mean binary cross-entropy in nats.

    >>> round(logloss(np.array([1, 0]), np.array([0.5, 0.5])), 4)
    0.6931
    """
    y, p, w = columns(labels, probabilities, weight)
    require_probabilities(p)
    return mean(row_losses(y, p), w)


def brier(labels: np.ndarray, probabilities: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Mean squared distance between probability and label (Brier 1950); `calibration.brier_parts` takes it apart.

    >>> brier(np.array([1, 0]), np.array([0.5, 0.5]))
    0.25
    """
    y, p, w = columns(labels, probabilities, weight)
    require_probabilities(p)
    return mean((p - y) ** 2, w)


def normalised_entropy(labels: np.ndarray, probabilities: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Logloss divided by that of always saying the base rate (He et al., ADKDD 2014); below 1 is better than that.

    Raises:
        UndefinedMetricError: one of the classes is absent, so the divisor is 0.
    """
    y, p, w = columns(labels, probabilities, weight)
    require_both_classes(float((y * w).sum()), float(((1 - y) * w).sum()), len(y))
    return logloss(y, p, w) / logloss(y, np.full_like(p, mean(y, w)), w)


def calibration_ratio(labels: np.ndarray, probabilities: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Expected clicks over observed clicks; 1 is calibrated on the whole.

    Raises:
        UndefinedMetricError: there is no click.
    """
    y, p, w = columns(labels, probabilities, weight)
    require_probabilities(p)
    clicks = float((y * w).sum())
    if clicks == 0:
        raise UndefinedMetricError(f"none of {len(y)} rows is positive")
    return float((p * w).sum()) / clicks


def gauc(labels: np.ndarray, scores: np.ndarray, group: np.ndarray, weight: np.ndarray | None = None) -> float:
    """AUC within each group, averaged by the groups' rows (their weight, when given); one-class groups are left out.

    Raises:
        UndefinedMetricError: no group has both classes.
    """
    return group_auc(labels, scores, group, weight).mean()


def prediction_drift(before: np.ndarray, now: np.ndarray, bins: int = 10) -> dict[str, float]:
    """How far the distribution of predictions has moved: the population stability index over quantiles of the old ones.

    Args:
        before: [N] predictions to compare with, such as those on the training rows.
        now: [M] predictions.
        bins: ranges of equally many old predictions; fewer where equal ones fill several.

    Returns:
        `psi`, and `chance`: what as many predictions of the same distribution give, `(bins - 1) (1 / N + 1 / M)`.
        By custom .1 is a change and .25 a large one.

    Raises:
        UndefinedMetricError: One of the two is empty.

    >>> old = np.arange(1000) / 1000
    >>> drift = prediction_drift(old, old**2)
    >>> round(drift["psi"], 2), round(drift["chance"], 3)
    (0.38, 0.018)
    """
    for values in (before, now):
        if len(values) == 0:
            raise UndefinedMetricError("there are no predictions")
    _, old, _ = columns(np.zeros(len(before)), before)
    _, new, _ = columns(np.zeros(len(now)), now)
    edges = np.unique(np.quantile(old, np.arange(1, bins) / bins, method="inverted_cdf"))
    counts = [np.bincount(np.searchsorted(edges, v, "left"), minlength=len(edges) + 1) for v in (old, new)]
    filled = int((counts[0] + counts[1] > 0).sum())
    return {"psi": psi(*counts), "chance": (filled - 1) * (1 / len(old) + 1 / len(new))}
