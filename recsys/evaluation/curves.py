"""The points of an evaluation's curves, as a report draws them and as its JSON holds them."""

from __future__ import annotations

import numpy as np
from scipy.special import ndtri

from features.errors import UndefinedMetricError
from recsys.evaluation.auc import tied
from recsys.evaluation.calibration import reliability_curve
from recsys.evaluation.intervals import LEVEL
from recsys.evaluation.rows import columns, require_both_classes, require_probabilities

POINTS = 400
"""Points a curve keeps: more cannot be seen."""
BINS = 40

Curve = dict[str, list[float]]


def curves_of(labels: np.ndarray, probabilities: np.ndarray, weight: np.ndarray | None = None) -> dict[str, Curve]:
    """All curves that exist on these rows: `roc` and `precision_recall` need both classes.

    Args:
        labels: [N] in {0, 1}.
        probabilities: [N] in [0, 1].
        weight: [N] non-negative.

    Raises:
        DataError: A score is not finite or out of range, a label is not binary, or a weight is negative.
    """
    makers = {
        "roc": roc_points,
        "precision_recall": precision_recall_points,
        "reliability": reliability_points,
        "scores": score_histogram,
    }
    found: dict[str, Curve] = {}
    for name, make in makers.items():
        try:
            found[name] = make(labels, probabilities, weight)
        except UndefinedMetricError:
            continue
    return found


def roc_points(labels: np.ndarray, scores: np.ndarray, weight: np.ndarray | None = None) -> Curve:
    """`false_positive_rate` and `true_positive_rate` at distinct scores, descending, from (0, 0) to (1, 1).

    Raises:
        UndefinedMetricError: one of the classes is absent.

    >>> points = roc_points(np.array([0, 1, 0, 1]), np.array([0.1, 0.4, 0.4, 0.8]))
    >>> points["false_positive_rate"], points["true_positive_rate"]
    ([0.0, 0.0, 0.5, 1.0], [0.0, 0.5, 1.0, 1.0])
    """
    true, false = _above(labels, scores, weight)
    x, y = thin(np.r_[0.0, false / false[-1]], np.r_[0.0, true / true[-1]])
    return {"false_positive_rate": x.tolist(), "true_positive_rate": y.tolist()}


def precision_recall_points(labels: np.ndarray, scores: np.ndarray, weight: np.ndarray | None = None) -> Curve:
    """`recall` and `precision` of the rows from every distinct score upwards, by rising recall.

    Raises:
        UndefinedMetricError: one of the classes is absent.

    >>> points = precision_recall_points(np.array([0, 1, 0, 1]), np.array([0.1, 0.4, 0.4, 0.8]))
    >>> points["recall"], [round(p, 3) for p in points["precision"]]
    ([0.5, 1.0, 1.0], [1.0, 0.667, 0.5])
    """
    true, false = _above(labels, scores, weight)
    x, y = thin(true / true[-1], true / (true + false))
    return {"recall": x.tolist(), "precision": y.tolist()}


def reliability_points(labels: np.ndarray, probabilities: np.ndarray, weight: np.ndarray | None = None) -> Curve:
    """`predicted`, `observed` and its interval `low` .. `high` in bins of equally many rows, and their `weight`.

    The interval is Wilson's (1927) for the rows of the bin; with weights their effective number, (sum w)^2 / sum w^2 of
    all rows, is taken in proportion.

    Raises:
        UndefinedMetricError: there are no rows.
    """
    curve = reliability_curve(labels, probabilities, weight)
    total = curve["weight"].sum()
    effective = len(labels) if weight is None else float(total**2 / (np.asarray(weight, np.float64) ** 2).sum())
    low, high = _wilson(curve["observed"], curve["weight"] / total * effective)
    points = {"predicted": curve["predicted"], "observed": curve["observed"], "low": low, "high": high}
    return {name: values.tolist() for name, values in {**points, "weight": curve["weight"]}.items()}


def score_histogram(labels: np.ndarray, probabilities: np.ndarray, weight: np.ndarray | None = None) -> Curve:
    """`edges` of bins of equal width and the share of each class in them, `positive` and `negative`, each adding to 1.

    The bins end at the highest score that one row in a thousand reaches; scores above are counted in the last one.

    Raises:
        UndefinedMetricError: there are no rows.
    """
    y, p, w = columns(labels, probabilities, weight)
    require_probabilities(p)
    if not w.sum():
        raise UndefinedMetricError("all weights are 0" if len(y) else "there are no rows")
    top = float(np.quantile(p, 0.999)) or 1.0
    edges = np.linspace(0, top, BINS + 1)
    found = {"edges": edges.tolist()}
    for name, side in (("positive", y), ("negative", 1 - y)):
        rows, _ = np.histogram(p.clip(0, top), edges, weights=w * side)
        found[name] = (rows / (w * side).sum() if rows.any() else rows).tolist()
    return found


def thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most `POINTS` points of a curve, evenly along its length, ends included."""
    if len(x) <= POINTS:
        return x, y
    along = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))])
    keep = np.unique(np.searchsorted(along, np.linspace(0, along[-1], POINTS - 1)).clip(0, len(x) - 1))
    keep = np.union1d(keep, [len(x) - 1])
    return x[keep], y[keep]


def _above(labels: np.ndarray, scores: np.ndarray, weight: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Weight of positives and of negatives from every distinct score upwards, by falling score."""
    y, s, w = columns(labels, scores, weight)
    require_both_classes(float((w * y).sum()), float((w * (1 - y)).sum()), len(y))
    counted = w > 0
    ((positive, negative),) = tied(y[counted], s[counted], w[counted])
    return positive[::-1].cumsum(), negative[::-1].cumsum()


def _wilson(rate: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    z = float(ndtri((1 + LEVEL) / 2))
    middle = rate + z**2 / (2 * rows)
    half = z * np.sqrt(rate * (1 - rate) / rows + z**2 / (4 * rows**2))
    return (middle - half) / (1 + z**2 / rows), (middle + half) / (1 + z**2 / rows)
