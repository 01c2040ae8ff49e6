"""The exact AUC, its DeLong variance, and the AUC within groups, made for tens of millions of rows.

Without weights the scores are parted by class and into two ranges, each part is sorted by itself (two ranges on two
cores) and one pass over the two sorted classes counts wins and ties: no permutation of the rows is ever made, which
would take several times as long as the sort.  With weights the rows are ordered once.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
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
    low_negatives, low_positives, high_negatives, high_positives = _parts(y, s)
    ranges = [
        (low_positives, low_negatives, 0, len(high_negatives)),
        (high_positives, high_negatives, len(low_positives), 0),
    ]
    found = _run(lambda part: _sorted_losses(s, *part), ranges, len(y))
    losses = sum(int(part[0]) for part in found)
    mean = losses / (2 * p * n)
    parts: list[tuple[float, float]] = []
    if min(p, n) > 1:
        low, high = (low_positives, low_negatives), (high_positives, high_negatives)
        for squares, rows, others, places in (
            (sum(part[1] for part in found), p, n, (*low, *high)),
            (sum(part[2] for part in found), n, p, (*low[::-1], *high[::-1])),
        ):
            freedom = rows - 1 if rows > _FEW else _freedom(_places(*places))
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
        return _weighted_groups(*columns(labels, scores, weight), group_codes(keys)[0])
    keys = keys.astype(np.int64, copy=False) if keys.dtype.kind in "iub" else group_codes(keys)[0]
    y, s = _binary(labels), _floats(scores)
    require_same_rows(y, s, y)
    _require_finite(s, s)
    return _bucketed_groups(y, s, np.ascontiguousarray(keys))


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


def _places(low: np.ndarray, low_others: np.ndarray, high: np.ndarray, high_others: np.ndarray) -> np.ndarray:
    """How many of the other class are below each row of a class, ties counting half; all four ascending."""
    parts = [
        (np.searchsorted(others, own, "left") + np.searchsorted(others, own, "right")) / 2
        for own, others in ((low, low_others), (high, high_others))
    ]
    return np.concatenate([parts[0], len(low_others) + parts[1]])


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


def _weighted_groups(y: np.ndarray, s: np.ndarray, w: np.ndarray, codes: np.ndarray) -> GroupAuc:
    if len(y) == 0:
        return GroupAuc(np.empty(0), np.empty(0), 0)
    order = np.lexsort((s, codes))
    g, scores = codes[order], s[order]
    positive, negative = (w * y)[order], (w * (1 - y))[order]
    new_group = np.r_[True, g[1:] != g[:-1]]
    tie = np.flatnonzero(new_group | np.r_[True, scores[1:] != scores[:-1]])
    positives, negatives = np.add.reduceat(positive, tie), np.add.reduceat(negative, tie)
    first = np.flatnonzero(new_group[tie])
    before = np.cumsum(negatives) - negatives
    below = before - np.repeat(before[first], np.diff(np.r_[first, len(tie)]))
    wins = np.add.reduceat(positives * (below + 0.5 * negatives), first)
    n_positive, n_negative = np.add.reduceat(positives, first), np.add.reduceat(negatives, first)
    both = (n_positive > 0) & (n_negative > 0)
    values = wins[both] / (n_positive[both] * n_negative[both])
    return GroupAuc(values, (n_positive + n_negative)[both], int((~both).sum()))


def _parts(y: np.ndarray, s: np.ndarray) -> list[np.ndarray]:
    """Scores of low negatives, low positives, high negatives and high positives, of which each range has about half."""
    cut = s.dtype.type(np.inf) if len(y) < _PARALLEL_ROWS else np.median(s[:: len(s) // _SAMPLE])
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


def _sorted_losses(
    scores: np.ndarray, positives: np.ndarray, negatives: np.ndarray, positives_below: int, negatives_above: int
) -> Any:
    """What `count_losses` says of one range; its scores are sorted in place."""
    for part in (positives, negatives):
        part.sort()
        # a sort puts what is not a number last, and the infinite at the ends
        _require_finite(part[[0, -1]] if len(part) else part, scores)
    return kernels.count_losses(positives, negatives, positives_below, negatives_above)


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
    one = np.empty(len(y), dtype=bool)

    def convert(part: slice) -> int:
        np.equal(y[part], 1, out=one[part])
        return int(np.count_nonzero(one[part]) + np.count_nonzero(y[part] == 0))

    if sum(_run(convert, _slices(len(y)), len(y))) != len(y):
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
