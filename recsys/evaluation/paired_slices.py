"""In which parts of the rows one model wins and in which it loses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from scipy.special import stdtrit

from recsys.evaluation.compare import better_of, holm, p_value
from recsys.evaluation.divisions import Division, slice_name
from recsys.evaluation.metrics import row_losses
from recsys.evaluation.power import LEVEL

MIN_ROWS = 1000
MOST_VALUES = 20


@dataclass(frozen=True)
class SliceDifference:
    """Logloss of model `a` minus that of model `b` in one slice: below 0 `a` is the better one."""

    by: str
    """What divides the rows: value, training frequency, seen in training, range or day."""
    feature: str
    value: str
    rows: int
    base_rate: float
    a: str
    b: str
    loss_a: float
    loss_b: float
    difference: float
    low: float
    """Lower end of the interval for this slice alone."""
    high: float
    """Upper end of it."""
    p_adjusted: float
    """After Holm's correction over all slices and pairs."""
    better: str | None
    """The better model, if that may be claimed after the correction."""

    @property
    def name(self) -> str:
        """What people call the slice."""
        return slice_name(self.by, self.feature, self.value)

    def to_json(self) -> dict[str, Any]:
        """All fields, and the name."""
        return {"name": self.name, **asdict(self)}


@dataclass(frozen=True)
class SliceComparison:
    """All slices, those that harm most first for each pair."""

    slices: tuple[SliceDifference, ...]
    left_out: dict[str, int]
    """Why slices were left out -> how many."""

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return {"slices": [one.to_json() for one in self.slices], "left_out": self.left_out}


def compare_slices(
    labels: np.ndarray,
    scores: Mapping[str, np.ndarray],
    divisions: Sequence[Division],
    *,
    weight: np.ndarray | None = None,
    group: np.ndarray | None = None,
    level: float = LEVEL,
    min_rows: int = MIN_ROWS,
    most: int = MOST_VALUES,
) -> SliceComparison:
    """Compare the logloss of all pairs of models in every slice.

    The standard error is that of a (weighted) mean of paired differences over rows, with groups over sums of groups.

    Args:
        labels: [N] in {0, 1}.
        scores: [N] probabilities of each model.
        divisions: Ways to part the rows. A slice of one class, or of one group, is left out and counted.
        weight: [N] non-negative.
        group: [N] keys of what the rows were drawn in, as for `compare`.
        level: Chance of any false claim, over all slices and pairs.
        min_rows: A slice has so many.
        most: Of a division no more slices than that: those with most rows.
    """
    y = np.asarray(labels, dtype=np.float64).reshape(-1)
    w = np.ones(len(y)) if weight is None else np.asarray(weight, dtype=np.float64)
    losses = {name: row_losses(y, np.asarray(p, dtype=np.float64).reshape(-1)) for name, p in scores.items()}
    left_out: dict[str, int] = {}
    found: list[tuple[SliceDifference, float]] = []

    def leave_out(reason: str, count: int = 1) -> None:
        if count:
            left_out[reason] = left_out.get(reason, 0) + count

    for division in divisions:
        codes, place, counts = np.unique(division.codes, return_inverse=True, return_counts=True)
        enough = np.flatnonzero(counts >= min_rows)
        chosen = enough[np.argsort(-counts[enough], kind="stable")][:most]
        leave_out("few rows", len(codes) - len(enough))
        leave_out(f"beyond the {most} most frequent values", len(enough) - len(chosen))
        order = np.argsort(place, kind="stable")
        ends = counts.cumsum()
        for number in chosen:
            entries = order[ends[number] - counts[number] : ends[number]]
            rows = entries if division.rows is None else division.rows[entries]
            y_here, w_here = y[rows], w[rows]
            keys = None if group is None else group[rows]
            if y_here.min() == y_here.max() or w_here.sum() == 0:
                leave_out("one class")
                continue
            if keys is not None and (keys == keys[0]).all():
                leave_out("one group")
                continue
            for a, b in combinations(losses, 2):
                loss_a, loss_b = ((losses[name][rows] * w_here).sum() / w_here.sum() for name in (a, b))
                error, freedom = _error(losses[a][rows] - losses[b][rows], w_here, keys)
                difference = float(loss_a - loss_b)
                half = float(stdtrit(freedom, 1 - level / 2)) * error
                rate = float((y_here * w_here).sum() / w_here.sum())
                entry = SliceDifference(
                    division.by, division.feature, division.name(int(codes[number])), len(rows), rate, a, b,
                    float(loss_a), float(loss_b), difference, difference - half, difference + half, 1.0, None,
                )  # fmt: skip
                found.append((entry, p_value(difference, error, freedom)))
    adjusted = holm([p for _, p in found])
    slices = [_claimed(entry, p, level) for (entry, _), p in zip(found, adjusted, strict=True)]
    slices.sort(key=lambda entry: (entry.a, entry.b, -entry.difference))
    return SliceComparison(tuple(slices), left_out)


def _claimed(entry: SliceDifference, p_adjusted: float, level: float) -> SliceDifference:
    better = better_of("logloss", entry.a, entry.b, entry.difference) if p_adjusted < level else None
    return replace(entry, p_adjusted=p_adjusted, better=better)


def _error(values: np.ndarray, weight: np.ndarray, group: np.ndarray | None) -> tuple[float, float]:
    """Standard error of a weighted mean, and its degrees of freedom."""
    moved = weight * (values - (weight @ values) / weight.sum()) / weight.sum()
    freedom = math.inf
    if group is not None:
        _, units = np.unique(group, return_inverse=True)
        moved = np.bincount(units, weights=moved)
        freedom = len(moved) - 1
    n = len(moved)
    return math.sqrt(float(moved @ moved) * n / (n - 1)), freedom
