"""Compiled loops of the AUC (numba): rows parted by class and range, and one pass over two sorted classes.

All release the interpreter's lock, so that threads of Python run them side by side.  Counts are integers; what is
summed in floats is summed in an order that does not depend on the number of threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

_COMPILE = {"nogil": True, "error_model": "numpy", "cache": True}
_SMALL = 24
"""Up to this many values a sort by insertion is the fastest."""


@njit(**_COMPILE)
def count_parts(labels: Any, scores: Any, cut: Any) -> Any:
    """How many rows are positive, how many score at least `cut`, and how many are both.

    Args:
        labels: [n] uint8 in {0, 1}.
        scores: [n].
        cut: of the scores' type.
    """
    positive, high, both = np.int64(0), np.int64(0), np.int64(0)
    for row in range(len(scores)):
        a, b = np.int64(labels[row]), np.int64(scores[row] >= cut)
        positive += a
        high += b
        both += a & b
    return positive, high, both


@njit(**_COMPILE)
def fill_parts(labels: Any, scores: Any, cut: Any, places: Any, out: Any) -> None:
    """Copies each score to the part of its class and range; cursors stay in registers and no branch is taken.

    Args:
        labels: [n] uint8 in {0, 1}.
        scores: [n].
        cut: as counted by.
        places: [4] int64: where the low negatives, low positives, high negatives and high positives go.
        out: [N], written.
    """
    low_negative, low_positive, high_negative, high_positive = places[0], places[1], places[2], places[3]
    for row in range(len(scores)):
        score = scores[row]
        positive, high = labels[row] != 0, score >= cut
        if_low = low_positive if positive else low_negative
        if_high = high_positive if positive else high_negative
        out[if_high if high else if_low] = score
        a, b = np.int64(positive), np.int64(high)
        both = a & b
        high_positive += both
        low_positive += a - both
        high_negative += b - both
        low_negative += 1 - a - b + both


@njit(**_COMPILE)
def count_losses(positives: Any, negatives: Any, positives_below: Any, negatives_above: Any) -> Any:
    """How often rows of two classes are in the wrong order, in half pairs, in one pass over both.

    A positive loses 2 to each negative above it and 1 to each equal one; a negative loses as much to positives below.

    Args:
        positives: [P] sorted.
        negatives: [Q] sorted.
        positives_below: positives of lower ranges.
        negatives_above: negatives of higher ranges.

    Returns:
        The losses of the positives, the sum of their squares, and the sum of the squares of the negatives' losses.
    """
    total, squares, negative_squares = np.int64(0), 0.0, 0.0
    i, j = 0, 0
    above = 2 * (negatives_above + len(negatives))
    below = 2 * positives_below
    while i < len(positives):
        score, start = positives[i], j
        while j < len(negatives) and negatives[j] < score:
            j += 1
        loss = np.float64(below + 2 * i)
        negative_squares += (j - start) * (loss * loss)
        if j < len(negatives) and negatives[j] == score:
            a, b = i, j
            while i < len(positives) and positives[i] == score:
                i += 1
            while j < len(negatives) and negatives[j] == score:
                j += 1
            tied, equal = i - a, j - b
            loss = np.float64(below + 2 * a + tied)
            negative_squares += equal * (loss * loss)
            own = above - 2 * b - equal
            total += tied * own
            squares += tied * (np.float64(own) * np.float64(own))
        else:
            own = above - 2 * j
            total += own
            squares += np.float64(own) * np.float64(own)
            i += 1
    loss = np.float64(below + 2 * len(positives))
    negative_squares += (len(negatives) - j) * (loss * loss)
    return total, squares, negative_squares


@njit(**_COMPILE)
def part_groups(labels: Any, scores: Any, codes: Any, starts: Any, positives: Any, out: Any) -> None:
    """Brings the scores of each group together: its positives first, then its negatives.

    Args:
        labels: [N] uint8 in {0, 1}.
        scores: [N].
        codes: [N] int64 in [0, G).
        starts: [G + 1] int64, written: where each group begins.
        positives: [G] int64, written: how many of each group are positive.
        out: [N], written.
    """
    starts[:] = 0
    positives[:] = 0
    for row in range(len(codes)):
        starts[codes[row] + 1] += 1
        positives[codes[row]] += labels[row]
    for group in range(len(positives)):
        starts[group + 1] += starts[group]
    front = starts[:-1].copy()
    back = starts[:-1] + positives
    for row in range(len(codes)):
        group = codes[row]
        if labels[row]:
            out[front[group]] = scores[row]
            front[group] += 1
        else:
            out[back[group]] = scores[row]
            back[group] += 1


@njit(**_COMPILE)
def group_losses(
    values: Any, starts: Any, positives: Any, first: Any, last: Any, sorted_from: Any, losses: Any
) -> None:
    """The losses of the positives of each group, in half pairs.

    Args:
        values: [N] as `part_groups` wrote them; sorted in place.
        starts: [G + 1] as written there.
        positives: [G] as written there.
        first: the first group of this thread.
        last: the group to stop before.
        sorted_from: groups of so many rows are sorted already.
        losses: [G] int64, written.
    """
    for group in range(first, last):
        begin, end = starts[group], starts[group + 1]
        middle = begin + positives[group]
        if end - begin < sorted_from:
            _sort(values[begin:middle])
            _sort(values[middle:end])
        total, _, _ = count_losses(values[begin:middle], values[middle:end], 0, 0)
        losses[group] = total


@njit(**_COMPILE)
def weighted_aucs(positive: Any, own: Any, units: Any, last_of_tie: Any, times: Any, out: Any) -> None:
    """The AUC of the same rows under many weightings.

    Args:
        positive: [N] bool, in ascending order of score.
        own: [N] weights of the rows.
        units: [N] int64: to which unit a row belongs.
        last_of_tie: [N] bool: whether the next row has a higher score.
        times: [R, U] weights of the units.
        out: [R], written; not a number where a class has no weight.
    """
    for draw in range(len(out)):
        wins, below, tied, equal, total = 0.0, 0.0, 0.0, 0.0, 0.0
        for row in range(len(own)):
            weight = own[row] * times[draw, units[row]]
            if positive[row]:
                tied += weight
            else:
                equal += weight
            if last_of_tie[row]:
                wins += tied * (below + 0.5 * equal)
                below += equal
                total += tied
                tied, equal = 0.0, 0.0
        out[draw] = wins / (below * total)


@njit(**_COMPILE)
def _sort(values: Any) -> None:
    if len(values) > _SMALL:
        values.sort()
        return
    for i in range(1, len(values)):
        value, j = values[i], i
        while j > 0 and values[j - 1] > value:
            values[j] = values[j - 1]
            j -= 1
        values[j] = value
