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
def count_parts(labels: Any, scores: Any, cuts: Any, counts: Any) -> None:
    """Counts rows by class and range.

    Args:
        labels: [n] uint8 in {0, 1}.
        scores: [n].
        cuts: [C] ascending; a range is from one cut up to the next.
        counts: [2 * (C + 1)] int64, written: the ranges of the negatives, then those of the positives.
    """
    ranges = len(cuts) + 1
    counts[:] = 0
    for row in range(len(scores)):
        place = labels[row] * ranges
        for cut in cuts:
            place += scores[row] >= cut
        counts[place] += 1


@njit(**_COMPILE)
def fill_parts(labels: Any, scores: Any, cuts: Any, places: Any, out: Any) -> None:
    """Copies each score to the part of its class and range.

    Args:
        labels: [n] uint8 in {0, 1}.
        scores: [n].
        cuts: [C] as counted by.
        places: [2 * (C + 1)] int64: where each part goes on; moved on.
        out: [N], written.
    """
    ranges = len(cuts) + 1
    for row in range(len(scores)):
        score = scores[row]
        part = labels[row] * ranges
        for cut in cuts:
            part += score >= cut
        out[places[part]] = score
        places[part] += 1


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
    while i < len(positives) and j < len(negatives):
        x, y = positives[i], negatives[j]
        if x < y:
            loss = above - 2 * j
            total += loss
            squares += np.float64(loss) * np.float64(loss)
            i += 1
        elif y < x:
            loss = below + 2 * i
            negative_squares += np.float64(loss) * np.float64(loss)
            j += 1
        else:
            a, b = i, j
            while i < len(positives) and positives[i] == x:
                i += 1
            while j < len(negatives) and negatives[j] == x:
                j += 1
            tied, equal = i - a, j - b
            loss = above - 2 * b - equal
            total += tied * loss
            squares += tied * (np.float64(loss) * np.float64(loss))
            loss = below + 2 * a + tied
            negative_squares += equal * (np.float64(loss) * np.float64(loss))
    loss = 2 * negatives_above
    total += (len(positives) - i) * loss
    squares += (len(positives) - i) * (np.float64(loss) * np.float64(loss))
    loss = below + 2 * len(positives)
    negative_squares += (len(negatives) - j) * (np.float64(loss) * np.float64(loss))
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
