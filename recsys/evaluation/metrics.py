"""Exact metrics of click probabilities: discrimination, accuracy of the probabilities, calibration.

Everything is computed from all rows in float64, nothing is binned but the expected calibration error.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from features.errors import DataError, UndefinedMetricError

ECE_BINS = 20
_CLIP = 1e-12


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
        `rows`, `base_rate`, `auc`, `logloss`, `normalised_entropy`, `calibration_ratio`, `ece`, and with groups
        `gauc`, `gauc_groups`, `gauc_groups_single_class`.  A metric that does not exist on these rows is None, and
        `undefined` says why by name.

    Raises:
        DataError: a score is not finite.
    """
    y, p, w = _columns(labels, probabilities, weight)
    out: dict[str, Any] = {"rows": len(y), "undefined": {}}

    def put(name: str, compute: Any) -> None:
        try:
            out[name] = compute()
        except UndefinedMetricError as error:
            out[name] = None
            out["undefined"][name] = error.what

    put("base_rate", lambda: _mean(y, w))
    put("auc", lambda: auc(y, p, w))
    put("logloss", lambda: logloss(y, p, w))
    put("normalised_entropy", lambda: normalised_entropy(y, p, w))
    put("calibration_ratio", lambda: calibration_ratio(y, p, w))
    put("ece", lambda: expected_calibration_error(y, p, w))
    if group is not None:
        value, groups, single = _gauc(y, p, group, w)
        out["gauc"], out["gauc_groups"], out["gauc_groups_single_class"] = value, groups, single
        if value is None:
            out["undefined"]["gauc"] = f"none of {single} groups has both classes"
    return out


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
    y, s, w = _columns(labels, scores, weight)
    positive, negative = np.where(y > 0, w, 0.0), np.where(y > 0, 0.0, w)
    _require_both_classes(positive.sum(), negative.sum(), len(y))
    order = np.argsort(s, kind="stable")
    ordered = s[order]
    start = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    positives = np.add.reduceat(positive[order], start)
    negatives = np.add.reduceat(negative[order], start)
    below = np.cumsum(negatives) - negatives
    return float((positives * (below + 0.5 * negatives)).sum() / (positives.sum() * negatives.sum()))


def logloss(labels: np.ndarray, probabilities: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Mean binary cross-entropy in nats.

    >>> round(logloss(np.array([1, 0]), np.array([0.5, 0.5])), 4)
    0.6931
    """
    y, p, w = _columns(labels, probabilities, weight)
    return _mean(row_losses(y, p), w)


def row_losses(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Binary cross-entropy of every row, in nats; probabilities are kept 1e-12 away from 0 and 1.

    Args:
        labels: [N] float64 in {0, 1}.
        probabilities: [N] float64.

    Returns:
        [N].
    """
    p = probabilities.clip(_CLIP, 1 - _CLIP)
    losses: np.ndarray = -(labels * np.log(p) + (1 - labels) * np.log1p(-p))
    return losses


def normalised_entropy(labels: np.ndarray, probabilities: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Logloss divided by that of always saying the base rate (He et al., ADKDD 2014); below 1 is better than that.

    Raises:
        UndefinedMetricError: one of the classes is absent, so the divisor is 0.
    """
    y, p, w = _columns(labels, probabilities, weight)
    _require_both_classes(float((y * w).sum()), float(((1 - y) * w).sum()), len(y))
    return logloss(y, p, w) / logloss(y, np.full_like(p, _mean(y, w)), w)


def calibration_ratio(labels: np.ndarray, probabilities: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Expected clicks over observed clicks; 1 is calibrated on the whole.

    Raises:
        UndefinedMetricError: there is no click.
    """
    y, p, w = _columns(labels, probabilities, weight)
    clicks = float((y * w).sum())
    if clicks == 0:
        raise UndefinedMetricError(f"none of {len(y)} rows is positive")
    return float((p * w).sum()) / clicks


def expected_calibration_error(
    labels: np.ndarray, probabilities: np.ndarray, weight: np.ndarray | None = None, bins: int = ECE_BINS
) -> float:
    """Mean distance between predicted and observed rate over bins of equally many rows (equal scores stay together).

    >>> expected_calibration_error(np.array([0, 1]), np.array([0.25, 0.75]), bins=2)
    0.25
    """
    curve = reliability_curve(labels, probabilities, weight, bins)
    total = curve["weight"].sum()
    return float((np.abs(curve["predicted"] - curve["observed"]) * curve["weight"]).sum() / total)


def gauc(labels: np.ndarray, scores: np.ndarray, group: np.ndarray, weight: np.ndarray | None = None) -> float:
    """AUC within each group, averaged by the groups' rows (their weight, when given); one-class groups are left out.

    Raises:
        UndefinedMetricError: no group has both classes.
    """
    y, s, w = _columns(labels, scores, weight)
    value, _, single = _gauc(y, s, group, w)
    if value is None:
        raise UndefinedMetricError(f"none of {single} groups has both classes")
    return value


def roc_curve(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rates at every distinct score, descending, from (0, 0) to (1, 1).

    Raises:
        UndefinedMetricError: one of the classes is absent.
    """
    y, s, _ = _columns(labels, scores, None)
    _require_both_classes(float(y.sum()), float((1 - y).sum()), len(y))
    order = np.argsort(-s, kind="stable")
    ordered = s[order]
    last = np.flatnonzero(np.r_[ordered[1:] != ordered[:-1], True])
    true, false = np.cumsum(y[order])[last], np.cumsum(1 - y[order])[last]
    return np.r_[0.0, false / false[-1]], np.r_[0.0, true / true[-1]]


def reliability_curve(
    labels: np.ndarray, probabilities: np.ndarray, weight: np.ndarray | None = None, bins: int = ECE_BINS
) -> dict[str, np.ndarray]:
    """Predicted and observed rate in bins of equally many rows.

    Returns:
        `predicted`, `observed`, `weight`, each [bins] or shorter where equal scores fill several bins.

    Raises:
        UndefinedMetricError: there are no rows.
    """
    y, p, w = _columns(labels, probabilities, weight)
    if len(y) == 0 or w.sum() == 0:
        raise UndefinedMetricError("there are no rows")
    order = np.argsort(p, kind="stable")
    ordered = p[order]
    # a bin's first row moves back to the first of its equals, so that no score is split between bins
    cuts = np.searchsorted(ordered, ordered[(np.arange(bins) * len(p)) // bins], side="left")
    cuts = np.unique(cuts)
    weights = np.add.reduceat(w[order], cuts)
    kept = weights > 0
    predicted = np.add.reduceat((p * w)[order], cuts)[kept] / weights[kept]
    observed = np.add.reduceat((y * w)[order], cuts)[kept] / weights[kept]
    return {"predicted": predicted, "observed": observed, "weight": weights[kept]}


def _gauc(y: np.ndarray, s: np.ndarray, group: np.ndarray, w: np.ndarray) -> tuple[float | None, int, int]:
    """(GAUC or None, groups with both classes, groups with one class), in one sort over all groups."""
    order = np.lexsort((s, group))
    g, scores = group[order], s[order]
    positive, negative = np.where(y > 0, w, 0.0)[order], np.where(y > 0, 0.0, w)[order]
    if len(g) == 0:
        return None, 0, 0
    new_group = np.r_[True, g[1:] != g[:-1]]
    tie = np.flatnonzero(new_group | np.r_[True, scores[1:] != scores[:-1]])
    positives, negatives = np.add.reduceat(positive, tie), np.add.reduceat(negative, tie)
    first = np.flatnonzero(new_group[tie])
    before = np.cumsum(negatives) - negatives
    lengths = np.diff(np.r_[first, len(tie)])
    below = before - np.repeat(before[first], lengths)
    wins = np.add.reduceat(positives * (below + 0.5 * negatives), first)
    n_positive, n_negative = np.add.reduceat(positives, first), np.add.reduceat(negatives, first)
    both = (n_positive > 0) & (n_negative > 0)
    if not both.any():
        return None, 0, len(first)
    share = (n_positive + n_negative)[both]
    value = wins[both] / (n_positive[both] * n_negative[both])
    return float((value * share).sum() / share.sum()), int(both.sum()), int((~both).sum())


def _columns(
    labels: np.ndarray, scores: np.ndarray, weight: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    y, s = (np.asarray(a, dtype=np.float64) for a in (labels, scores))
    y, s = (a[:, 0] if a.ndim == 2 else a for a in (y, s))
    w = np.ones(len(y)) if weight is None else np.asarray(weight, dtype=np.float64)
    if not np.isfinite(s).all():
        raise DataError(
            "scores are not finite",
            field="predictions",
            found=f"{np.count_nonzero(~np.isfinite(s)):,} of {len(s):,} rows",
            mend="lower train.learning_rate and train.table_learning_rate, or set train.clip_norm",
        )
    return y, s, w


def _mean(values: np.ndarray, weight: np.ndarray) -> float:
    if weight.sum() == 0:
        raise UndefinedMetricError("all weights are 0" if len(values) else "there are no rows")
    return float((values * weight).sum() / weight.sum())


def _require_both_classes(positive: float, negative: float, rows: int) -> None:
    if positive > 0 and negative > 0:
        return
    missing = "positive" if positive == 0 else "negative"
    raise UndefinedMetricError(f"none of {rows} rows is {missing}")
