"""The exact AUC, its DeLong variance, and the AUC within groups, made for tens of millions of rows.

Without weights the scores are parted into two ranges, one for each of two cores, sorted there, and one pass counts wins
and ties: no permutation of the rows is ever made, which would take several times as long as the sort.  Probabilities in
float32 have a bit to spare, which holds the label while they are sorted as integers; other scores are parted by class,
too.  With weights the rows are ordered once.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from features.errors import DataError, UndefinedMetricError
from recsys.evaluation import auc_kernels as kernels
from recsys.evaluation.rows import columns, first_task, require, require_both_classes, require_same_rows

_THREADS = 2
_SAMPLE = 4096
"""Scores that the cut between the two ranges is taken from."""
_PARALLEL_ROWS = 100_000
"""With fewer rows a second thread costs more than it brings."""
_FEW = 1000
"""Up to so many rows of a class, the degrees of freedom of its variance are measured."""
_INFINITE = np.float32(np.inf).view(np.uint32)
"""Bits of what is not finite are at least these, but for the sign."""
_BUCKET_ROWS = 8192
"""Rows of a bucket, which with its hash table fits the second level of a cache."""


@dataclass(frozen=True)
class Auc:
    """The area under the ROC curve and its variance."""

    value: float
    variance: float | None
    """After DeLong; None with fewer than two rows of a class."""
    freedom: float
    """Degrees of freedom of the variance, after Welch and Satterthwaite; see `delong`."""
    positives: int
    negatives: int


@dataclass(frozen=True)
class GroupAuc:
    """The AUC within each group that has both classes."""

    values: np.ndarray
    """[G] AUC of each such group, in an order that the keys and the number of rows decide."""
    weights: np.ndarray
    """[G] rows of each, or the sum of their weights."""
    single_class: int
    """Groups with one class, which are left out."""

    def mean(self) -> float:
        """The values' mean, weighted by `weights`: the GAUC.

        Raises:
            UndefinedMetricError: No group has both classes.
        """
        if len(self.values) == 0:
            raise UndefinedMetricError(f"none of {self.single_class} groups has both classes")
        return float((self.values * self.weights).sum() / self.weights.sum())


@dataclass(frozen=True)
class _Keys:
    """A range in which both classes are together."""

    keys: np.ndarray
    """[n] uint32: bits of a score, then the label."""
    positives_below: int
    negatives_below: int

    def classes(self) -> tuple[np.ndarray, np.ndarray]:
        """Positives and negatives, both ascending and on the same scale."""
        positive = self.keys % 2 == 1
        return self.keys[positive] >> 1, self.keys[~positive] >> 1


@dataclass(frozen=True)
class _Classes:
    """A range whose classes are apart."""

    positives: np.ndarray
    negatives: np.ndarray

    def classes(self) -> tuple[np.ndarray, np.ndarray]:
        """Positives and negatives, both ascending."""
        return self.positives, self.negatives


@dataclass(frozen=True)
class _Losses:
    """See `count_losses`; of all ranges."""

    total: int
    squares: float
    negative_squares: float
    ranges: Sequence[_Keys | _Classes]

    @classmethod
    def of(cls, found: Sequence[Any], ranges: Sequence[_Keys | _Classes]) -> _Losses:
        total, squares, negative_squares = zip(*found, strict=True)
        return cls(sum(map(int, total)), sum(squares), sum(negative_squares), ranges)


def delong(labels: np.ndarray, scores: np.ndarray, weight: np.ndarray | None = None) -> Auc:
    """AUC and its variance from structural components (DeLong, DeLong and Clarke-Pearson, Biometrics 1988).

    With v_i the share of negatives below positive i (ties counting half) and u_j the share of positives above negative
    j, both means are the AUC and its variance is `var(v) / P + var(u) / Q`, of P positives and Q negatives, sample
    variances with P - 1 and Q - 1.  With weights the shares, the mean A and the variance are weighted:
    `sum w_i^2 (v_i - A)^2 / W^2 / (1 - sum w_i^2 / W^2)` for a class of total weight W, which is the same for equal
    weights; it takes rows for independent and weights for given.

    A sample variance of P values has the degrees of freedom `1 / (1 / (P - 1) + k / (2 P))`, with k their excess
    kurtosis, as `2 / freedom` is its squared relative error.  Near an AUC of 1 few rows lose much, k is large and the
    variance known badly.  It is measured in a class of up to 1,000 rows (without weights), else taken for 0.

    Args:
        labels: [N] or [N, T] in {0, 1}.
        scores: [N] or [N, T], any scale; float32 is faster than float64.
        weight: [N] non-negative.

    Raises:
        DataError: as `columns` says it.
        UndefinedMetricError: One of the classes is absent.

    >>> delong(np.array([0, 1, 0, 1]), np.array([0.1, 0.4, 0.4, 0.8]))
    Auc(value=0.875, variance=0.03125, freedom=2.0, positives=2, negatives=2)
    """
    if weight is not None:
        return _weighted(*columns(labels, scores, weight))
    y, s = _binary(labels), _floats(scores)
    require_same_rows(y, s, y)
    p = int(np.count_nonzero(y))
    n = len(y) - p
    require_both_classes(p, n, len(y))
    found = _losses_of_keys(y, s, n) if s.dtype == np.float32 else None
    if found is None:
        found = _losses_of_parts(y, s)
    mean = found.total / (2 * p * n)
    parts: list[tuple[float, float]] = []
    if min(p, n) > 1:
        for positives, squares, rows, others in ((True, found.squares, p, n), (False, found.negative_squares, n, p)):
            freedom = rows - 1 if rows > _FEW else _freedom(_places(found.ranges, positives))
            parts.append((max(squares / rows / (2 * others) ** 2 - mean**2, 0.0) / (rows - 1), freedom))
    return Auc(1 - mean, *_sum(parts), p, n)


def group_auc(labels: np.ndarray, scores: np.ndarray, group: np.ndarray, weight: np.ndarray | None = None) -> GroupAuc:
    """AUC within each group.

    Args:
        labels: [N] or [N, T] in {0, 1}.
        scores: [N] or [N, T], any scale.
        group: [N] keys of any type that has an equality, none missing.
        weight: [N] non-negative.

    Raises:
        DataError: as `columns` says it, or a key is missing.

    >>> group_auc(np.array([0, 1, 0, 1, 1]), np.array([0.1, 0.4, 0.4, 0.3, 0.8]), np.array(list("aabbc")))
    GroupAuc(values=array([1., 0.]), weights=array([2., 2.]), single_class=1)
    """
    keys = np.asarray(group)
    if len(keys) != len(labels):
        raise DataError("not one key a row", field="group", found=f"{len(keys)} keys for {len(labels)} rows")
    if weight is not None:
        weights, values = aucs_of_groups(*columns(labels, scores, weight), *group_codes(keys))
        both = weights > 0
        return GroupAuc(values[both], weights[both], int((~both).sum()))
    keys = keys.astype(np.int64, copy=False) if keys.dtype.kind in "iub" else group_codes(keys)[0]
    y, s = _binary(labels), _floats(scores)
    require_same_rows(y, s, y)
    _require_finite(s, s)
    return _bucketed_groups(y, s, np.ascontiguousarray(keys))


def aucs_of_groups(
    y: np.ndarray, scores: np.ndarray, w: np.ndarray, codes: np.ndarray, n: int
) -> tuple[np.ndarray, np.ndarray]:
    """The weight and the AUC of each of n groups, both 0 where a group has one class only.

    Args:
        y: [N] in {0, 1}.
        scores: [N].
        w: [N] weights.
        codes: [N] number of each row's group.
        n: Number of groups.

    >>> aucs_of_groups(np.array([0, 1, 1]), np.array([0.1, 0.4, 0.3]), np.ones(3), np.array([0, 0, 1]), 2)
    (array([2., 0.]), array([1., 0.]))
    """
    order = np.lexsort((scores, codes))
    code, s = codes[order], scores[order]
    positive, negative = (np.where(side, w, 0.0)[order] for side in (y > 0, y <= 0))
    ties = np.cumsum(np.r_[False, (code[1:] != code[:-1]) | (s[1:] != s[:-1])][: len(code)])
    of_tie = np.bincount(ties, weights=negative)
    totals = [np.bincount(code, weights=side, minlength=n) for side in (positive, negative)]
    # negatives of all groups before this one do not count
    before = (np.cumsum(of_tie) - of_tie / 2)[ties] - (np.cumsum(totals[1]) - totals[1])[code]
    wins = np.bincount(code, weights=positive * before, minlength=n)
    both = (totals[0] > 0) & (totals[1] > 0)
    value = np.divide(wins, totals[0] * totals[1], out=np.zeros(n), where=both)
    return np.where(both, totals[0] + totals[1], 0.0), value


def group_codes(group: np.ndarray) -> tuple[np.ndarray, int]:
    """[N] int64 codes of the groups in the order of first appearance, and their number.

    Raises:
        DataError: A key is missing.
    """
    codes, names = pd.factorize(np.asarray(group))
    missing = int((codes < 0).sum())
    if missing:
        raise DataError(
            "group keys are missing",
            field="group",
            found=f"{missing:,} of {len(codes):,} rows",
            mend="give these rows a key of their own, or leave them out",
        )
    return codes.astype(np.int64, copy=False), len(names)


def tied(labels: np.ndarray, scores: np.ndarray, *weights: np.ndarray) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Sums over rows of equal score, ascending: of positives and of negatives, for each column of weights.

    Args:
        labels: [N] float64 in {0, 1}.
        scores: [N].
        weights: [N] each.

    >>> tied(np.array([1.0, 0.0, 1.0]), np.array([0.5, 0.5, 0.7]), np.ones(3))
    ((array([1., 1.]), array([1., 0.])),)
    """
    order = np.argsort(scores)
    ordered, y = scores[order], labels[order]
    start = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    sums = []
    for column in weights:
        w = column[order]
        sums.append((np.add.reduceat(w * y, start), np.add.reduceat(w * (1 - y), start)))
    return tuple(sums)


def _weighted(y: np.ndarray, s: np.ndarray, w: np.ndarray) -> Auc:
    counted = w > 0
    y, s, w = y[counted], s[counted], w[counted]
    p = int(y.sum())
    require_both_classes(p, len(y) - p, len(counted))
    (positive, negative), (positive_squares, negative_squares) = tied(y, s, w, w * w)
    total, other = positive.sum(), negative.sum()
    of_positives = (negative[::-1].cumsum()[::-1] - negative / 2) / other
    of_negatives = (positive.cumsum() - positive / 2) / total
    mean = float((positive * of_positives).sum() / total)
    parts: list[tuple[float, float]] = []
    for squares, weights, shares in (
        (positive_squares, positive, of_positives),
        (negative_squares, negative, of_negatives),
    ):
        whole = float(weights.sum()) ** 2
        rows = whole / float(squares.sum())
        if min(p, len(y) - p) > 1:
            spread = float((squares * (shares - mean) ** 2).sum()) / whole
            parts.append((spread / (1 - 1 / rows), rows - 1))
    return Auc(1 - mean, *_sum(parts), p, len(y) - p)


def _places(ranges: Sequence[_Keys | _Classes], positives: bool) -> np.ndarray:
    """How many of the other class are below each row of a class, ties counting half."""
    parts, below = [], 0
    for sorted_range in ranges:
        one, other = sorted_range.classes()
        own, others = (one, other) if positives else (other, one)
        places = (np.searchsorted(others, own, "left") + np.searchsorted(others, own, "right")) / 2
        parts.append(below + places)
        below += len(others)
    return np.concatenate(parts)


def _freedom(values: np.ndarray) -> float:
    """Degrees of freedom of the variance of values."""
    rows, squares = len(values), (values - values.mean()) ** 2
    spread = float(squares.mean()) ** 2
    kurtosis = float((squares**2).mean()) / spread - 3 if spread > 0 else 0.0
    return 1 / (1 / (rows - 1) + max(kurtosis, 0.0) / (2 * rows))


def _sum(parts: list[tuple[float, float]]) -> tuple[float | None, float]:
    """Variance and degrees of freedom of a sum, from those of its parts."""
    variance = sum(part for part, _ in parts)
    scale = sum(part**2 / freedom for part, freedom in parts)
    return (variance if parts else None), (variance**2 / scale if scale else math.inf)


def _bucketed_groups(y: np.ndarray, s: np.ndarray, keys: np.ndarray) -> GroupAuc:
    """Rows go to buckets by a hash of their key, and within a bucket, which fits the cache, to their groups."""
    bits = min(max(len(y) // _BUCKET_ROWS, 2).bit_length(), 11)
    buckets, shift, slices = 1 << bits, np.uint64(64 - bits), _slices(len(y))
    counts = np.zeros((_THREADS, buckets, 2), np.int64)
    _run(lambda k: kernels.count_buckets(y[slices[k]], keys[slices[k]], shift, counts[k]), range(_THREADS), len(y))
    rows = counts.sum(0)
    places = (rows.cumsum() - rows.reshape(-1)).reshape(buckets, 2) + counts.cumsum(0) - counts
    out_keys, out_scores = np.empty(len(y), np.int64), np.empty(len(y))
    _run(
        lambda k: kernels.fill_buckets(
            y[slices[k]], s[slices[k]], keys[slices[k]], shift, places[k], out_keys, out_scores
        ),
        range(_THREADS),
        len(y),
    )
    starts = np.r_[0, rows.sum(1).cumsum()]
    groups = np.empty((buckets, 2), np.int64)
    half = int(np.searchsorted(starts, len(y) // 2))
    _run(
        lambda part: kernels.bucket_aucs(out_keys, out_scores, starts, rows[:, 0].copy(), *part, groups),
        [(0, min(half, buckets)), (min(half, buckets), buckets)],
        len(y),
    )
    ends = starts[:-1] + groups[:, 0]
    kept = [slice(begin, end) for begin, end in zip(starts[:-1], ends, strict=True)]
    values = np.concatenate([out_scores[part] for part in kept])
    return GroupAuc(values, np.concatenate([out_keys[part] for part in kept]).astype(float), int(groups[:, 1].sum()))


def _losses_of_keys(y: np.ndarray, s: np.ndarray, negatives: int) -> _Losses | None:
    """Of float32 scores; None if one of them has a sign.

    The bits of floats that have none are in the order of the floats and leave the highest bit free: with the label as
    their lowest bit they are integers of 32 bits, whose sort also orders the classes within a tie.
    """
    bits, slices = s.view(np.uint32), _slices(len(y))
    cut = np.uint32(2**31) if len(y) < _PARALLEL_ROWS else _cut(s).view(np.uint32)
    counts = np.array(_run(lambda part: kernels.count_keys(y[part], bits[part], cut), slices, len(y)), dtype=np.int64)
    high, high_positives, signs = counts.T
    if signs.any():
        return None
    low = len(y) - int(high.sum())
    keys = np.empty(len(y), np.uint32)
    rows = np.array([part.stop - part.start for part in slices])
    places = np.stack([(rows - high).cumsum() - (rows - high), low + high.cumsum() - high], 1)
    _run(lambda k: kernels.fill_keys(y[slices[k]], bits[slices[k]], cut, places[k], keys), range(_THREADS), len(y))
    low_positives = int(np.count_nonzero(y)) - int(high_positives.sum())
    ranges = [_Keys(keys[:low], 0, 0), _Keys(keys[low:], low_positives, low - low_positives)]

    def losses(part: _Keys) -> Any:
        part.keys.sort()
        # what is not finite has the largest bits
        if len(part.keys) and part.keys[-1] >> 1 >= _INFINITE:
            _require_finite(s, s)
        return kernels.count_key_losses(part.keys, part.positives_below, part.negatives_below, negatives)

    return _Losses.of(_run(losses, ranges, len(y)), ranges)


def _losses_of_parts(y: np.ndarray, s: np.ndarray) -> _Losses:
    """Of any scores, each class by itself."""
    low_negatives, low_positives, high_negatives, high_positives = _parts(y, s)
    ranges = [_Classes(low_positives, low_negatives), _Classes(high_positives, high_negatives)]
    beside = [(0, len(high_negatives)), (len(low_positives), 0)]
    tasks = list(zip(ranges, beside, strict=True))

    def losses(task: tuple[_Classes, tuple[int, int]]) -> Any:
        part, (positives_below, negatives_above) = task
        for scores in (part.positives, part.negatives):
            scores.sort()
            # a sort puts what is not a number last, and the infinite at the ends
            _require_finite(scores[[0, -1]] if len(scores) else scores, s)
        return kernels.count_losses(part.positives, part.negatives, positives_below, negatives_above)

    return _Losses.of(_run(losses, tasks, len(y)), ranges)


def _cut(s: np.ndarray) -> Any:
    """About the median."""
    return np.median(s[:: len(s) // _SAMPLE])


def _parts(y: np.ndarray, s: np.ndarray) -> list[np.ndarray]:
    """Scores of low negatives, low positives, high negatives and high positives, of which each range has about half."""
    cut = s.dtype.type(np.inf) if len(y) < _PARALLEL_ROWS else _cut(s)
    slices = _slices(len(y))
    found = _run(lambda part: kernels.count_parts(y[part], s[part], cut), slices, len(y))
    positive, high, both = np.array(found, dtype=np.int64).T
    rows = np.array([part.stop - part.start for part in slices])
    counts = np.stack([rows - positive - high + both, positive - both, high - both, both], 1)
    ends = counts.sum(0).cumsum()
    places = np.r_[0, ends[:-1]] + np.cumsum(counts, axis=0) - counts
    out = np.empty_like(s)
    _run(lambda k: kernels.fill_parts(y[slices[k]], s[slices[k]], cut, places[k], out), range(_THREADS), len(y))
    return np.split(out, ends[:-1])


def _run(work: Callable[[Any], Any], tasks: Iterable[Any], rows: int) -> list[Any]:
    """Results of the tasks, in their order; by several threads where it is worth it."""
    if rows < _PARALLEL_ROWS:
        return [work(task) for task in tasks]
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        return list(pool.map(work, tasks))


def _binary(labels: np.ndarray) -> np.ndarray:
    """[N] uint8 of labels in {0, 1}."""
    y = first_task(labels)
    if y.dtype == bool:
        return np.ascontiguousarray(y).view(np.uint8)
    if y.dtype not in (np.float32, np.float64, np.int64):
        y = y.astype(np.float64)
    one = np.empty(len(y), dtype=bool)
    if any(_run(lambda part: kernels.mark_positives(y[part], one[part]), _slices(len(y)), len(y))):
        require(one | (y == 0), y, "labels are not binary", "labels", "0 or 1", "leave these rows out")
    return one.view(np.uint8)


def _slices(rows: int) -> list[slice]:
    """The rows of each thread."""
    return [slice(rows * k // _THREADS, rows * (k + 1) // _THREADS) for k in range(_THREADS)]


def _floats(scores: np.ndarray) -> np.ndarray:
    s = first_task(scores)
    return np.ascontiguousarray(s, dtype=np.float32 if s.dtype == np.float32 else np.float64)


def _require_finite(some: np.ndarray, scores: np.ndarray) -> None:
    if not np.isfinite(some).all():
        columns(np.zeros(len(scores)), scores)
