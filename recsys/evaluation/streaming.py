"""The metrics as sums that grow: update with some rows, merge with others, compute at any time.

What is a mean over rows (logloss, Brier score, calibration ratio, normalised entropy) is exact.  What depends on the
order of the rows (AUC, PR-AUC, ECE) is read from a fixed histogram, and comes with a bound on its distance to the exact
figure, computed from the same histogram.  The histogram has ranges of equal width in logits: probabilities near 0 and 1
keep their order as those in the middle do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from features.errors import ArtifactError, DataError, UndefinedMetricError
from recsys.evaluation.calibration import ECE_BINS
from recsys.evaluation.rows import columns, require_both_classes, require_probabilities, row_losses

RANGES = 8192
LIMIT = 16.0
"""Logits beyond it share the outermost ranges: probabilities below 1e-7 or above 1 - 1e-7."""
_FORMAT = 1
_COUNTS = ("rows", "positive", "negative", "predicted")
_EDGES = 1 / (1 + np.exp(-np.linspace(-LIMIT, LIMIT, RANGES + 1)[1:-1]))


class StreamingMetrics:
    """Metrics of one or more tasks over rows that come in pieces.

    Sums are float64: the order of updates and merges shows in their last bits, never in counts of rows, nor in the
    histogram while weights are whole numbers.  A task takes 260 kB, however many rows there are.

    Args:
        tasks: their names, in the order of the columns.

    >>> day, night = StreamingMetrics(), StreamingMetrics()
    >>> day.update(np.array([0, 1, 0]), np.array([0.2, 0.7, 0.4]))
    >>> night.update(np.array([1, 0]), np.array([0.3, 0.1]))
    >>> both = day.merge(night).compute()["label"]
    >>> both["rows"], round(both["auc"], 3), both["auc_error"], round(both["logloss"], 3)
    (5, 0.833, 0.0, 0.48)
    """

    def __init__(self, tasks: Sequence[str] = ("label",)) -> None:
        self.tasks = tuple(tasks)
        self._sums = {name: np.zeros(len(self.tasks)) for name in ("loss", "squares")}
        self._counts = {name: np.zeros((len(self.tasks), RANGES)) for name in _COUNTS}

    def update(self, labels: np.ndarray, probabilities: np.ndarray, weight: np.ndarray | None = None) -> None:
        """Adds rows.

        Args:
            labels: [N] with one task, or [N, T], in {0, 1}.
            probabilities: as the labels, in [0, 1].
            weight: [N] or [N, T], non-negative; 0 where a task has no label yet.

        Raises:
            DataError: as `metrics.evaluate` says it; then nothing is added.
        """
        checked = [self._checked(task, labels, probabilities, weight) for task in range(len(self.tasks))]
        for task, (y, p, w) in enumerate(checked):
            place = np.searchsorted(_EDGES, p, side="right")
            added = {"rows": None, "positive": w * y, "negative": w * (1 - y), "predicted": w * p}
            for name, values in added.items():
                self._counts[name][task] += np.bincount(place, values, RANGES)
            self._sums["loss"][task] += float((w * row_losses(y, p)).sum())
            self._sums["squares"][task] += float((w * (p - y) ** 2).sum())

    def merge(self, other: StreamingMetrics) -> StreamingMetrics:
        """The metrics of the rows of both.

        Raises:
            DataError: They are of other tasks.
        """
        if self.tasks != other.tasks:
            raise DataError(
                "metrics of other tasks", field="tasks", found=", ".join(other.tasks), expected=", ".join(self.tasks)
            )
        both = StreamingMetrics(self.tasks)
        both._sums = {name: self._sums[name] + other._sums[name] for name in self._sums}
        both._counts = {name: self._counts[name] + other._counts[name] for name in self._counts}
        return both

    def compute(self) -> dict[str, dict[str, Any]]:
        """The metrics of each task, named as `metrics.evaluate` names them.

        Beside `auc`, `pr_auc` and `ece` stand `auc_error`, `pr_auc_error` and `ece_error`: the exact figure is no
        further away than that.  A metric that does not exist on these rows is None, and `undefined` says why.
        """
        return {name: self._of_task(place) for place, name in enumerate(self.tasks)}

    def to_json(self) -> dict[str, Any]:
        """The state: ranges that hold no row are left out."""
        tasks = []
        for place, name in enumerate(self.tasks):
            filled = np.flatnonzero(self._counts["rows"][place])
            counts = {key: values[place, filled].tolist() for key, values in self._counts.items()}
            sums = {key: float(values[place]) for key, values in self._sums.items()}
            tasks.append({"task": name, "ranges": filled.tolist(), **counts, **sums})
        return {"format": _FORMAT, "ranges": RANGES, "limit": LIMIT, "tasks": tasks}

    @staticmethod
    def from_json(state: Mapping[str, Any]) -> StreamingMetrics:
        """Reads what `to_json` wrote.

        Raises:
            ArtifactError: It is damaged, or of another form.
        """
        wanted = {"format": _FORMAT, "ranges": RANGES, "limit": LIMIT}
        found = {key: state.get(key) for key in wanted}
        if found != wanted:
            raise ArtifactError("metrics are of another form", field="state", found=found, expected=wanted)
        try:
            metrics = StreamingMetrics([task["task"] for task in state["tasks"]])
            for place, task in enumerate(state["tasks"]):
                for key, values in metrics._counts.items():
                    values[place, task["ranges"]] = task[key]
                for key, sums in metrics._sums.items():
                    sums[place] = task[key]
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ArtifactError("metrics are damaged", field="state", found=repr(error)) from error
        return metrics

    def _checked(
        self, task: int, labels: np.ndarray, probabilities: np.ndarray, weight: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        y, p = (self._column(values, task) for values in (labels, probabilities))
        y, p, w = columns(y, p, weight if weight is None or np.ndim(weight) == 1 else self._column(weight, task))
        require_probabilities(p)
        return y, p, w

    def _column(self, values: np.ndarray, task: int) -> np.ndarray:
        values = np.asarray(values)
        wide = values[:, None] if values.ndim == 1 else values
        if wide.shape[1:] != (len(self.tasks),):
            raise DataError(
                "not one column a task", field="predictions", found=values.shape, expected=f"[N, {len(self.tasks)}]"
            )
        return wide[:, task]

    def _of_task(self, task: int) -> dict[str, Any]:
        rows, positive, negative, predicted = (self._counts[name][task] for name in _COUNTS)
        loss, squares = (float(self._sums[name][task]) for name in ("loss", "squares"))
        clicks, total = float(positive.sum()), float((positive + negative).sum())
        out: dict[str, Any] = {"rows": int(rows.sum()), "undefined": {}}

        def put(name: str, compute: Any) -> None:
            try:
                out[name] = compute()
            except UndefinedMetricError as error:
                out[name] = None
                out["undefined"][name] = error.what

        def per_weight(value: float) -> float:
            _require_weight(total, out["rows"])
            return value / total

        def entropy_ratio() -> float:
            require_both_classes(clicks, total - clicks, out["rows"])
            rate = clicks / total
            return loss / total / -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))

        def calibration_ratio() -> float:
            _require_clicks(clicks, out["rows"])
            return float(predicted.sum()) / clicks

        put("base_rate", lambda: per_weight(clicks))
        put("auc", lambda: _auc(positive, negative, out))
        put("pr_auc", lambda: _average_precision(positive, negative, out))
        put("logloss", lambda: per_weight(loss))
        put("normalised_entropy", entropy_ratio)
        put("calibration_ratio", calibration_ratio)
        put("ece", lambda: _ece(rows, positive, negative, predicted, out))
        put("brier", lambda: per_weight(squares))
        return out


def _auc(positive: np.ndarray, negative: np.ndarray, out: dict[str, Any]) -> float:
    """Rows of one range count as equal; at worst all their pairs are in one order, half a pair off each."""
    require_both_classes(float(positive.sum()), float(negative.sum()), out["rows"])
    pairs = positive.sum() * negative.sum()
    out["auc_error"] = float(0.5 * (positive * negative).sum() / pairs)
    below = negative.cumsum() - negative
    return float((positive * (below + 0.5 * negative)).sum() / pairs)


def _average_precision(positive: np.ndarray, negative: np.ndarray, out: dict[str, Any]) -> float:
    """The precision at a positive is at most that with all positives of its range and none of its negatives above it.

    And at least that with all of its negatives and none of its positives.
    """
    _require_clicks(float(positive.sum()), out["rows"])
    a, b = positive[::-1], negative[::-1]
    kept = a > 0
    true, false = a.cumsum()[kept], b.cumsum()[kept]
    share, inside = a[kept] / true[-1], b[kept]
    before = true - a[kept]
    value, highest, lowest = (
        float((share * x / y).sum())
        for x, y in ((true, true + false), (true, true + false - inside), (before, np.maximum(before + false, 1e-300)))
    )
    out["pr_auc_error"] = max(highest - value, value - lowest)
    return value


def _ece(
    rows: np.ndarray, positive: np.ndarray, negative: np.ndarray, predicted: np.ndarray, out: dict[str, Any]
) -> float:
    """Bins begin where a range begins.

    The exact bins are cut within such a range.  Rows outside of the ranges that hold a cut are in the same bins either
    way, so both figures are within M of what those rows alone give, where M is the weight times |p - y| of the others.
    """
    number, total = int(rows.sum()), float((positive + negative).sum())
    _require_weight(total, number)
    cuts = np.searchsorted(rows.cumsum(), (np.arange(ECE_BINS) * number) // ECE_BINS, side="right")
    low, high = np.r_[0.0, _EDGES], np.r_[_EDGES, 1.0]
    parted = np.unique(cuts[1:])
    off = positive[parted] * (1 - low[parted]) + negative[parted] * high[parted]
    out["ece_error"] = float(2 * off.sum() / total)
    gaps = np.add.reduceat(predicted - positive, np.unique(cuts))
    return float(np.abs(gaps).sum() / total)


def _require_weight(total: float, rows: int) -> None:
    if total == 0:
        raise UndefinedMetricError("all weights are 0" if rows else "there are no rows")


def _require_clicks(clicks: float, rows: int) -> None:
    if clicks == 0:
        raise UndefinedMetricError(f"none of {rows} rows is positive")
