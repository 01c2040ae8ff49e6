"""In which parts of the rows one model wins and in which it loses: by value of a feature, by how often it was seen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from scipy.special import stdtrit

from recsys.evaluation.compare import better_of, holm, p_value
from recsys.evaluation.divisions import BANDS, frequency_bands
from recsys.evaluation.metrics import row_losses
from recsys.evaluation.power import LEVEL

MIN_ROWS = 1000
MOST_VALUES = 20
FREQUENCIES = (*BANDS, "unseen")


@dataclass(frozen=True)
class Slicing:
    """One way to cut the rows."""

    name: str
    codes: np.ndarray
    """[N] number of each row's slice; -1 for none."""
    values: tuple[str, ...]
    """Name of each slice."""
    left_out: Mapping[str, int]
    """Why slices were not made -> how many."""


@dataclass(frozen=True)
class SliceDifference:
    """Logloss of model `a` minus that of model `b` in one slice: below 0 `a` is the better one."""

    slicing: str
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


@dataclass(frozen=True)
class SliceComparison:
    """All slices, those that harm most first for each pair."""

    slices: tuple[SliceDifference, ...]
    left_out: dict[str, int]
    """Why slices were left out -> how many."""

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return asdict(self)


def by_value(
    name: str,
    ids: np.ndarray,
    texts: Mapping[int, str] | None = None,
    *,
    min_rows: int = MIN_ROWS,
    most: int = MOST_VALUES,
) -> Slicing:
    """A slice for each of a feature's most frequent values.

    Args:
        name: Of the feature.
        ids: [N] fingerprints.
        texts: What stands behind fingerprints; the others are written as # and hexadecimal digits.
        min_rows: A slice has so many.
        most: There are no more slices than that.

    >>> by_value("city", np.array([7, 7, 8, 7]), {7: "Rome"}, min_rows=2)
    Slicing(name='city', codes=array([ 0,  0, -1,  0]), values=('Rome',), left_out={'few rows': 1})
    """
    values, place, counts = np.unique(ids, return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    enough = order[counts[order] >= min_rows]
    number = np.full(len(values), -1)
    number[enough[:most]] = np.arange(len(enough[:most]))
    known = texts or {}
    names = tuple(known.get(int(v), f"#{int(v) & (2**64 - 1):016x}") for v in values[enough[:most]])
    left_out = {
        "few rows": len(values) - len(enough),
        f"beyond the {most} most frequent values": max(0, len(enough) - most),
    }
    return Slicing(name, number[place], names, {reason: count for reason, count in left_out.items() if count})


def by_frequency(
    name: str, ids: np.ndarray, seen: tuple[np.ndarray, np.ndarray], *, min_rows: int = MIN_ROWS
) -> Slicing:
    """Slices by how often a row's id was seen in training: head, torso, tail, unseen; see `frequency_bands`.

    Args:
        name: Of the feature.
        ids: [N] fingerprints.
        seen: Fingerprints of the training rows, sorted, and how often each occurs.
        min_rows: A slice has so many.

    >>> ids, counts = np.array([1, 2, 3]), np.array([5, 4, 1])
    >>> sliced = by_frequency("user", np.array([1, 2, 3, 9]), (ids, counts), min_rows=1)
    >>> [sliced.values[code] for code in sliced.codes]
    ['head', 'torso', 'tail', 'unseen']
    """
    codes = frequency_bands(ids, *seen)
    rows = np.bincount(codes, minlength=len(FREQUENCIES))
    few = (rows > 0) & (rows < min_rows)
    codes = np.where(few[codes], -1, codes)
    return Slicing(f"{name} by frequency", codes, FREQUENCIES, {"few rows": int(few.sum())} if few.any() else {})


def compare_slices(
    labels: np.ndarray,
    scores: Mapping[str, np.ndarray],
    slicings: Sequence[Slicing],
    *,
    weight: np.ndarray | None = None,
    group: np.ndarray | None = None,
    level: float = LEVEL,
) -> SliceComparison:
    """Compare the logloss of all pairs of models in every slice.

    The standard error is that of a (weighted) mean of paired differences over rows, with groups over sums of groups.

    Args:
        labels: [N] in {0, 1}.
        scores: [N] probabilities of each model.
        slicings: How the rows are cut. A slice of one class, or of one group, is left out and counted.
        weight: [N] non-negative.
        group: [N] keys of what the rows were drawn in, as for `compare`.
        level: Chance of any false claim, over all slices and pairs.
    """
    y = np.asarray(labels, dtype=np.float64).reshape(-1)
    w = np.ones(len(y)) if weight is None else np.asarray(weight, dtype=np.float64)
    losses = {name: row_losses(y, np.asarray(p, dtype=np.float64).reshape(-1)) for name, p in scores.items()}
    left_out: dict[str, int] = {}
    found: list[tuple[SliceDifference, float]] = []

    def leave_out(reason: str, count: int = 1) -> None:
        left_out[reason] = left_out.get(reason, 0) + count

    for slicing in slicings:
        for reason, count in slicing.left_out.items():
            leave_out(reason, count)
        order = np.argsort(slicing.codes, kind="stable")
        bounds = np.searchsorted(slicing.codes[order], np.arange(len(slicing.values) + 1))
        for number, value in enumerate(slicing.values):
            rows = order[bounds[number] : bounds[number + 1]]
            if not len(rows):
                continue
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
                    slicing.name, value, len(rows), rate, a, b, float(loss_a), float(loss_b),
                    difference, difference - half, difference + half, 1.0, None,
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
