"""The compiled lookup of serving (numba): fingerprints and numbers of a few examples -> what the network reads.

Addressing, gather, decoding and pooling in one call.  Done with torch operations, they take thirty of them, each of
which costs more than the work for a single example.  The rows are those of `addressing.Addresser`, the values those of
the table's own format, bit for bit; one thread does it all.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from recsys.embeddings.addressing import NO_OWNER, WAYS
from recsys.embeddings.numba_kernels import decode, prefetch_row

COLUMN, SALT, BASE, SPAN, CHUNK, KIND, START, SIZE, OWN, CHUNKS = range(10)
"""What is told of a lookup: which column or bag it reads, then as in `addressing.Lookup` and `addressing.Segment`."""
HASHED, EXACT, HOT = range(3)
"""Where a lookup seeks rows of its own first."""

_COMPILE = {"nogil": True, "error_model": "numpy", "cache": True}
_M1, _M2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_WAYS = np.uint64(WAYS)
_NO_OWNER = np.int64(NO_OWNER)
_LOW32 = np.uint64(0xFFFFFFFF)
_ONE, _SIX, _31, _32 = np.uint64(1), np.uint64(6), np.uint64(31), np.uint64(32)
_PAIRS, _NIBBLES = np.uint64(0x5555555555555555), np.uint64(0x3333333333333333)
_BYTES, _ONES = np.uint64(0x0F0F0F0F0F0F0F0F), np.uint64(0x0101010101010101)


@njit(**_COMPILE)
def look_up(
    stored: Any,
    bits: Any,
    width: Any,
    singles: Any,
    bags: Any,
    means: Any,
    exact_keys: Any,
    hot_keys: Any,
    kept_words: Any,
    kept_before: Any,
    left: Any,
    ids: Any,
    bag_values: Any,
    bag_lengths: Any,
    dense: Any,
    vectors: Any,
    out: Any,
) -> None:
    """Writes what the network reads of every example.

    Args:
        stored: [R, ...] rows in their format, as `numba_table.typed` gives them.
        bits: of a code.
        width: D.
        singles: [L, 10] uint64, the lookups of single-valued features; a feature's chunks follow one another from 0.
        bags: [M, 10] uint64, those of bags, bag by bag; their column is the number of the bag.
        means: [G] whether a bag's vectors are averaged; else they are summed.
        exact_keys: [K] int32 or int64, the exact index.
        hot_keys: [S] int32, the hot index.
        kept_words: [W] int64, the bitmap of the rows that pruning left; empty if all are.
        kept_before: [W] int32.
        left: how many rows pruning left.
        ids: [B, F] int64.
        bag_values: [N] int64.
        bag_lengths: [G, B] int64.
        dense: [B, numbers] fp32.
        vectors: [B, floats] fp32.
        out: [B, I] fp32, written: the lookups side by side, then numbers, then vectors.
    """
    rows = np.empty(len(singles), np.int64)
    scratch = np.empty((1, width), np.float32)
    table, size = np.uint64(stored.ctypes.data), np.uint64(stored.strides[0])
    batch, values, numbers = len(ids), np.int64(width), dense.shape[1]
    bags_at = len(singles) * values
    dense_at = bags_at + len(bags) * values
    for b in range(batch):
        place, hit = np.uint64(0), False
        for i in range(len(singles)):
            fingerprint = np.uint64(ids[b, singles[i, COLUMN]])
            row, place, hit = _row(
                fingerprint, singles, i, place, hit, exact_keys, hot_keys, kept_words, kept_before, left
            )
            prefetch_row(table, size, row)
            rows[i] = row
        for i in range(len(singles)):
            decode(stored, bits, np.uint64(rows[i]), scratch, np.uint64(0), width)
            for j in range(values):
                out[b, i * values + j] = scratch[0, j]
        for j in range(numbers):
            out[b, dense_at + j] = dense[b, j]
        for j in range(vectors.shape[1]):
            out[b, dense_at + numbers + j] = vectors[b, j]
    first, value = 0, 0
    for bag in range(len(means)):
        end = first  # a bag that was dropped has values and no lookups
        while end < len(bags) and bags[end, COLUMN] == bag:
            end += 1
        start_at, end_at = bags_at + first * values, bags_at + end * values
        for b in range(batch):
            length = bag_lengths[bag, b]
            for j in range(start_at, end_at):
                out[b, j] = np.float32(0)
            for _ in range(length):
                place, hit = np.uint64(0), False
                for i in range(first, end):
                    fingerprint = np.uint64(bag_values[value])
                    row, place, hit = _row(
                        fingerprint, bags, i, place, hit, exact_keys, hot_keys, kept_words, kept_before, left
                    )
                    decode(stored, bits, row, scratch, np.uint64(0), width)
                    for j in range(values):
                        out[b, bags_at + i * values + j] += scratch[0, j]
                value += 1
            if means[bag] and length > 1:
                for j in range(start_at, end_at):
                    out[b, j] /= np.float32(length)
        first = end


@njit(inline="always", **_COMPILE)
def _row(
    fingerprint: Any,
    lookups: Any,
    i: Any,
    place: Any,
    hit: Any,
    exact_keys: Any,
    hot_keys: Any,
    kept_words: Any,
    kept_before: Any,
    left: Any,
) -> Any:
    """The row of one lookup; and the place of the value among those with rows of their own, and whether it is there.

    Both are sought for the feature's first chunk and given on to the others.
    """
    x = fingerprint ^ lookups[i, SALT]
    x = (x ^ (x >> np.uint64(30))) * _M1
    x = (x ^ (x >> np.uint64(27))) * _M2
    x ^= x >> _31
    row = lookups[i, BASE] + (((x >> _32) * lookups[i, SPAN]) >> _32)
    if len(kept_words):
        word, bit = np.uint64(kept_words[row >> _SIX]), row & np.uint64(63)
        before = np.uint64(kept_before[row >> _SIX]) + _popcount(word & ((_ONE << bit) - _ONE))
        row = before if (word >> bit) & _ONE else np.uint64(left)
    kind, start, size = lookups[i, KIND], lookups[i, START], lookups[i, SIZE]
    if kind != HASHED and lookups[i, CHUNK] == np.uint64(0):
        if kind == EXACT:
            key = np.int64(x)
            if exact_keys.itemsize == 4:
                key >>= 32
            low, high = start, start + size
            while low < high:
                middle = (low + high) >> _ONE
                if np.int64(exact_keys[middle]) < key:
                    low = middle + _ONE
                else:
                    high = middle
            hit = low < start + size and np.int64(exact_keys[min(low, start + size - _ONE)]) == key
            place = low - start
        else:
            key = max(np.int64(np.int32(x & _LOW32)), _NO_OWNER + 1)
            buckets = size // _WAYS
            hit = False
            for bucket in (((x >> _32) * buckets) >> _32, (((x * _M1) >> _32) * buckets) >> _32):
                for way in range(WAYS):
                    slot = bucket * _WAYS + np.uint64(way)
                    if not hit and np.int64(hot_keys[start + slot]) == key:
                        hit, place = True, slot
    if hit and kind != HASHED:
        row = lookups[i, OWN] + place * lookups[i, CHUNKS] + lookups[i, CHUNK]
    return row, place, hit


@njit(**_COMPILE)
def _popcount(x: Any) -> Any:
    """Of uint64, as `kept.popcount`."""
    x = x - ((x >> _ONE) & _PAIRS)
    x = (x & _NIBBLES) + ((x >> np.uint64(2)) & _NIBBLES)
    x = (x + (x >> np.uint64(4))) & _BYTES
    return (x * _ONES) >> np.uint64(56)
