"""Compiled loops of the AUC (numba): rows parted by range or by class and range, and one pass over what was sorted.

All release the interpreter's lock, so that threads of Python run them side by side.  Counts are integers; what is
summed in floats is summed in an order that does not depend on the number of threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

_COMPILE = {"nogil": True, "error_model": "numpy", "cache": True}
_BLOCK = 4096
"""Rows that are summed by themselves before they are added up, so that little is rounded away."""
_SMALL = 24
"""Up to this many values a sort by insertion is the fastest."""


@njit(**_COMPILE)
def mark_positives(labels: Any, positive: Any) -> Any:
    """Writes whether each of `labels` [n] is 1 to `positive` [n] bool; returns how many are neither 0 nor 1."""
    others = np.int64(0)
    for row in range(len(labels)):
        label = labels[row]
        one = label == 1
        positive[row] = one
        others += np.int64(not (one or label == 0))
    return others


@njit(**_COMPILE)
def count_keys(labels: Any, bits: Any, cut: Any) -> Any:
    """How many scores have bits of at least `cut`, how many of these are positive, and how many have a sign.

    Args:
        labels: [n] uint8 in {0, 1}.
        bits: [n] uint32 of scores in float32.
        cut: uint32.
    """
    high, positive, signs = np.int64(0), np.int64(0), np.int64(0)
    for row in range(len(bits)):
        a = np.int64(bits[row] >= cut)
        high += a
        positive += a & np.int64(labels[row])
        signs += np.int64(bits[row] >> np.uint32(31))
    return high, positive, signs


@njit(**_COMPILE)
def fill_keys(labels: Any, bits: Any, cut: Any, places: Any, out: Any) -> None:
    """Makes keys of scores and labels, those of low scores and those of high ones apart.

    Args:
        labels: [n] uint8 in {0, 1}.
        bits: [n] uint32 of scores in float32 without a sign.
        cut: as counted by.
        places: [2] int64: where the low ones and the high ones go.
        out: [N] uint32, written: the bits, then the label.
    """
    low, high = places[0], places[1]
    for row in range(len(bits)):
        a = np.int64(bits[row] >= cut)
        out[high if a else low] = np.uint32(bits[row] << np.uint32(1)) | np.uint32(labels[row])
        high += a
        low += 1 - a


@njit(**_COMPILE)
def count_key_losses(keys: Any, positives_below: Any, negatives_below: Any, negatives: Any) -> Any:
    """What `count_losses` says, of keys in which both classes are sorted together; no branch is taken.

    Within a tie the negatives come first, so a positive knows all that it ties with.  Each of these e negatives has
    lost i + c so far, of i positives below the tie and c that came before this one, and loses 1 more to it:
    `e ((i + c + 1)^2 - (i + c)^2)` is added to the squares of the negatives.

    Args:
        keys: [n] uint32 as `fill_keys` makes them, sorted.
        positives_below: positives of lower ranges.
        negatives_below: negatives of lower ranges.
        negatives: of all ranges.
    """
    total, squares, negative_squares = np.int64(0), 0.0, 0.0
    positives, seen = np.int64(positives_below), np.int64(negatives_below)
    tie_positives, tie_negatives = positives, seen  # before the tie
    twice, before = np.int64(2 * negatives), np.uint32(0xFFFFFFFF)
    for start in range(0, len(keys), _BLOCK):
        block, negative_block = 0.0, 0.0
        for row in range(start, min(start + _BLOCK, len(keys))):
            positive, score = np.int64(keys[row]) & 1, keys[row] >> np.uint32(1)
            new = np.int64(score != before)
            before = score
            tie_positives += (positives - tie_positives) * new
            tie_negatives += (seen - tie_negatives) * new
            own = (twice - tie_negatives - seen) * positive
            total += own
            block += np.float64(own) * np.float64(own)
            # of a negative its loss so far, squared; of a positive e (2 (i + c) + 1)
            factor = 2 * positives * (1 - positive) + (seen - tie_negatives) * positive
            other = 2 * positives + (2 * tie_positives + 1) * positive
            negative_block += np.float64(factor) * np.float64(other)
            positives += positive
            seen += 1 - positive
        squares += block
        negative_squares += negative_block
    return total, squares, negative_squares


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
def count_buckets(labels: Any, keys: Any, shift: Any, counts: Any) -> None:
    """Counts rows by the bucket of their key and by class.

    Args:
        labels: [n] uint8 in {0, 1}.
        keys: [n] int64.
        shift: bits of a key's hash that are not the bucket.
        counts: [B, 2] int64, added to: positives, then negatives.
    """
    for row in range(len(keys)):
        counts[_mixed(keys[row]) >> shift, 1 - labels[row]] += 1


@njit(**_COMPILE)
def fill_buckets(labels: Any, scores: Any, keys: Any, shift: Any, places: Any, out_keys: Any, out_scores: Any) -> None:
    """Copies rows to their buckets, positives before negatives.

    Args:
        labels: [n] uint8 in {0, 1}.
        scores: [n].
        keys: [n] int64.
        shift: as counted by.
        places: [B, 2] int64: where each bucket and class goes on; moved on.
        out_keys: [N] int64, written.
        out_scores: [N] float64, written.
    """
    for row in range(len(keys)):
        bucket, other = _mixed(keys[row]) >> shift, 1 - labels[row]
        place = places[bucket, other]
        places[bucket, other] = place + 1
        out_keys[place] = keys[row]
        out_scores[place] = scores[row]


@njit(**_COMPILE)
def bucket_aucs(keys: Any, scores: Any, starts: Any, positives: Any, first: Any, last: Any, groups: Any) -> None:
    """The AUC of each group of some buckets; a bucket fits the cache.

    Args:
        keys: [N] as `fill_buckets` wrote them. Where a bucket begins, its two-class groups' rows are written.
        scores: [N] as written there. Where a bucket begins, the AUC of these groups is written.
        starts: [B + 1] where each bucket begins.
        positives: [B] how many of its rows are positive.
        first: the first bucket of this thread.
        last: the bucket to stop before.
        groups: [B, 2] int64, written: groups of two classes and of one.
    """
    most = np.int64(1)
    for bucket in range(first, last):
        most = max(most, starts[bucket + 1] - starts[bucket])
    size = np.int64(2)
    while size < 2 * most:
        size *= 2
    table, owner = np.empty(size, np.int64), np.empty(size, np.int32)
    codes, counts = np.empty(most, np.int32), np.empty((most, 2), np.int64)
    places, values = np.empty((most, 2), np.int64), np.empty(most, np.float64)
    for bucket in range(first, last):
        begin, middle, end = starts[bucket], starts[bucket] + positives[bucket], starts[bucket + 1]
        slots = np.int64(2)
        while slots < 2 * (end - begin):
            slots *= 2
        owner[:slots] = -1
        found = 0
        for row in range(begin, end):
            key = keys[row]
            slot = np.int64(_mixed(key) & np.uint64(slots - 1))
            while owner[slot] >= 0 and table[slot] != key:
                slot = (slot + 1) & (slots - 1)
            if owner[slot] < 0:
                table[slot] = key
                owner[slot] = found
                counts[found] = 0
                found += 1
            codes[row - begin] = owner[slot]
            counts[owner[slot], np.int64(row >= middle)] += 1
        place = 0
        for group in range(found):
            places[group, 0] = place
            places[group, 1] = place + counts[group, 0]
            place += counts[group, 0] + counts[group, 1]
        for row in range(begin, end):
            group, other = codes[row - begin], np.int64(row >= middle)
            values[places[group, other]] = scores[row]
            places[group, other] += 1
        both = 0
        for group in range(found):
            p, n = counts[group]
            if p == 0 or n == 0:
                continue
            stop = places[group, 1]
            own, others = values[stop - n - p : stop - n], values[stop - n : stop]
            _sort(own)
            _sort(others)
            losses, _, _ = count_losses(own, others, 0, 0)
            scores[begin + both] = 1 - losses / (2 * np.float64(p) * np.float64(n))
            keys[begin + both] = p + n
            both += 1
        groups[bucket, 0] = both
        groups[bucket, 1] = found - both


@njit(**_COMPILE)
def _mixed(key: Any) -> Any:
    """A hash of 64 bits, each of which depends on all of the key's (the finaliser of MurmurHash3)."""
    mixed = np.uint64(key)
    mixed = (mixed ^ (mixed >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    mixed = (mixed ^ (mixed >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return mixed ^ (mixed >> np.uint64(33))


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
