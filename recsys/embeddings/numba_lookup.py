"""Compiled lookups (numba): `address`, from fingerprints to rows, and `look_up`, to what the network reads.

Done with torch operations, addressing takes twenty passes over the rows of a batch, and a lookup thirty operations,
each of which costs more than the work for a single example.  The rows are those of `addressing.Addresser`, the values
those of the table's own format, bit for bit.  `look_up` is for serving: one thread does it all.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, prange, types
from numba.extending import intrinsic
from torch import Tensor

from recsys.embeddings.addressing import (
    BASE,
    CHUNK,
    CHUNKS,
    COLUMN,
    EXACT,
    HASHED,
    HOT,
    KIND,
    NO_OWNER,
    OWN,
    SALT,
    SIZE,
    SPAN,
    START,
    TOLD,
    WAYS,
)
from recsys.embeddings.kept import WORD, KeptRows
from recsys.embeddings.numba_kernels import decode, prefetch_row, workers_for

_COMPILE = {"nogil": True, "error_model": "numpy", "cache": True}
_M1, _M2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_WAYS = np.uint64(WAYS)
_NO_OWNER = np.int64(NO_OWNER)
_LOW32 = np.uint64(0xFFFFFFFF)
_ONE, _SIX, _31, _32 = np.uint64(1), np.uint64(6), np.uint64(31), np.uint64(32)
_4, _8, _LOOKUP_BYTES = np.uint64(4), np.uint64(8), np.uint64(8 * TOLD)
_PAIRS, _NIBBLES = np.uint64(0x5555555555555555), np.uint64(0x3333333333333333)
_BYTES, _ONES = np.uint64(0x0F0F0F0F0F0F0F0F), np.uint64(0x0101010101010101)
_NO_WORDS, _NO_COUNTS = np.empty(0, np.int64), np.empty(0, np.int32)


def rows_of(lookups: np.ndarray, values: Tensor, exact_keys: Tensor, hot_keys: Tensor, kept: KeptRows | None) -> Tensor:
    """Rows of every lookup, as `addressing.Addresser` gives them.

    Args:
        lookups: [L, 10] uint64, `Addresser.lookups`.
        values: [n, columns] int64 fingerprints.
        exact_keys: [K] int32 or int64, the exact index.
        hot_keys: [S] int32, the hot index.
        kept: where the hashed rows lie that pruning left.

    Returns:
        [n, L] int32.

    Raises:
        IndexError: a lookup leads outside of the columns or of an index; the kernel itself looks at no bounds.
    """
    columns, words, before, left = values.shape[1], _NO_WORDS, _NO_COUNTS, 0
    entries = {EXACT: len(exact_keys), HOT: len(hot_keys)}
    for kind, size in entries.items():
        own = lookups[lookups[:, KIND] == kind]
        if len(own) and (own[:, START] + own[:, SIZE]).max() > size:
            raise IndexError(f"the index has {size} entries, fewer than its segments")
    if len(lookups) and lookups[:, COLUMN].max() >= columns:
        raise IndexError(f"{columns} columns, fewer than the lookups read")
    if kept is not None:
        words, before, left = kept.words.numpy(), kept.before.numpy(), kept.left
        if len(lookups) and (lookups[:, BASE] + lookups[:, SPAN]).max() > len(words) * WORD:
            raise IndexError("ids hash to rows that the index of kept rows does not have")
    out = torch.empty(len(values), len(lookups), dtype=torch.int32)
    address(
        lookups,
        exact_keys.numpy(),
        hot_keys.numpy(),
        words,
        before,
        left,
        values.contiguous().numpy(),
        out.numpy(),
        workers_for(out.numel()),
    )
    return out


@njit(parallel=True, **_COMPILE)
def address(
    lookups: Any,
    exact_keys: Any,
    hot_keys: Any,
    kept_words: Any,
    kept_before: Any,
    left: Any,
    values: Any,
    out: Any,
    workers: Any,
) -> None:
    """Writes the rows of every lookup.

    Args:
        lookups: [L, 10] uint64; a feature's chunks follow one another from 0.
        exact_keys: [K] int32 or int64, the exact index.
        hot_keys: [S] int32, the hot index.
        kept_words: [W] int64, the bitmap of the rows that pruning left; empty if all are.
        kept_before: [W] int32.
        left: how many rows pruning left.
        values: [n, columns] int64.
        out: [n, L] int32, written.
        workers: parts the work is divided into.
    """
    n = len(values)
    lookups_at = np.uint64(lookups.ctypes.data)
    exact_at, hot_at = np.uint64(exact_keys.ctypes.data), np.uint64(hot_keys.ctypes.data)
    words_at = np.uint64(kept_words.ctypes.data) if len(kept_words) else np.uint64(0)
    before_at, wide = np.uint64(kept_before.ctypes.data), exact_keys.itemsize == 8
    for worker in prange(workers):
        for b in range(n * worker // workers, n * (worker + 1) // workers):
            place, hit = np.uint64(0), False
            for i in range(len(lookups)):
                fingerprint = np.uint64(values[b, lookups[i, COLUMN]])
                lookup = lookups_at + np.uint64(i) * _LOOKUP_BYTES
                row, place, hit = _row(
                    fingerprint, lookup, place, hit, exact_at, wide, hot_at, words_at, before_at, np.uint64(left)
                )
                out[b, i] = np.int32(row)


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
        bits: of a code; or the step that all rows share, as `numba_table.bits_or_step` gives it.
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
    # addresses, for an array that is given to a function is counted
    singles_at, of_bags_at = np.uint64(singles.ctypes.data), np.uint64(bags.ctypes.data)
    exact_at, hot_at = np.uint64(exact_keys.ctypes.data), np.uint64(hot_keys.ctypes.data)
    words_at = np.uint64(kept_words.ctypes.data) if len(kept_words) else np.uint64(0)
    before_at, wide = np.uint64(kept_before.ctypes.data), exact_keys.itemsize == 8
    for b in range(batch):
        place, hit = np.uint64(0), False
        for i in range(len(singles)):
            fingerprint = np.uint64(ids[b, singles[i, COLUMN]])
            lookup = singles_at + np.uint64(i) * _LOOKUP_BYTES
            row, place, hit = _row(
                fingerprint, lookup, place, hit, exact_at, wide, hot_at, words_at, before_at, np.uint64(left)
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
                    lookup = of_bags_at + np.uint64(i) * _LOOKUP_BYTES
                    row, place, hit = _row(
                        fingerprint, lookup, place, hit, exact_at, wide, hot_at, words_at, before_at, np.uint64(left)
                    )
                    decode(stored, bits, row, scratch, np.uint64(0), width)
                    for j in range(values):
                        out[b, bags_at + i * values + j] += scratch[0, j]
                value += 1
            if means[bag] and length > 1:
                for j in range(start_at, end_at):
                    out[b, j] /= np.float32(length)
        first = end


@intrinsic
def _int64_at(context: Any, address: Any) -> Any:
    """The int64 at an address."""
    return types.int64(types.uint64), _load(64)


@intrinsic
def _int32_at(context: Any, address: Any) -> Any:
    """The int32 at an address."""
    return types.int32(types.uint64), _load(32)


def _load(bits: int) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(builder.inttoptr(arguments[0], ir.IntType(bits).as_pointer()))

    return generate


@njit(**_COMPILE)
def _row(
    fingerprint: Any,
    lookup: Any,
    place: Any,
    hit: Any,
    exact_keys: Any,
    wide: Any,
    hot_keys: Any,
    kept_words: Any,
    kept_before: Any,
    left: Any,
) -> Any:
    """The row of one lookup; and the place of the value among those with rows of their own, and whether it is there.

    Both are sought for the feature's first chunk and given on to the others.  Arrays are given by their addresses.
    """
    x = fingerprint ^ _told(lookup, SALT)
    x = (x ^ (x >> np.uint64(30))) * _M1
    x = (x ^ (x >> np.uint64(27))) * _M2
    x ^= x >> _31
    row = _told(lookup, BASE) + (((x >> _32) * _told(lookup, SPAN)) >> _32)
    if kept_words:
        word, bit = np.uint64(_int64_at(kept_words + (row >> _SIX) * _8)), row & np.uint64(63)
        before = np.uint64(_int32_at(kept_before + (row >> _SIX) * _4)) + _popcount(word & ((_ONE << bit) - _ONE))
        row = before if (word >> bit) & _ONE else left
    kind, chunk = _told(lookup, KIND), _told(lookup, CHUNK)
    if kind == np.uint64(HASHED):
        return row, place, False
    if chunk == np.uint64(0):
        start, size = _told(lookup, START), _told(lookup, SIZE)
        if kind == np.uint64(EXACT):
            place, hit = _find_exact(x, start, size, exact_keys, wide)
        else:
            place, hit = _find_hot(x, start, size, hot_keys)
    if hit:
        row = _told(lookup, OWN) + place * _told(lookup, CHUNKS) + chunk
    return row, place, hit


@njit(**_COMPILE)
def _told(lookup: Any, what: Any) -> Any:
    return np.uint64(_int64_at(lookup + np.uint64(what) * _8))


@njit(**_COMPILE)
def _find_exact(x: Any, start: Any, size: Any, keys: Any, wide: Any) -> Any:
    """The place of a value in its segment of the exact index, from the first chunk's hash; and whether it is there.

    A binary search without branches: which way it turns cannot be foretold.
    """
    key = np.int64(x) if wide else np.int64(x) >> 32
    low = start
    while size > _ONE:
        half = size >> _ONE
        found = _exact_key(keys, low + half - _ONE, wide)
        low += half if found < key else np.uint64(0)
        size -= half
    found = _exact_key(keys, low, wide)
    return low - start, found == key


@njit(**_COMPILE)
def _exact_key(keys: Any, place: Any, wide: Any) -> Any:
    return _int64_at(keys + place * _8) if wide else np.int64(_int32_at(keys + place * _4))


@njit(**_COMPILE)
def _find_hot(x: Any, start: Any, size: Any, keys: Any) -> Any:
    """The slot of an id in its segment of the hot index, from the hash of its first chunk; and whether it has one."""
    key = max(np.int64(np.int32(x & _LOW32)), _NO_OWNER + 1)
    buckets = size // _WAYS
    first, second = ((x >> _32) * buckets) >> _32, (((x * _M1) >> _32) * buckets) >> _32
    for n in range(2 * WAYS):
        slot = (first if n < WAYS else second) * _WAYS + np.uint64(n % WAYS)
        if np.int64(_int32_at(keys + (start + slot) * _4)) == key:
            return slot, True
    return np.uint64(0), False


@njit(**_COMPILE)
def _popcount(x: Any) -> Any:
    """Of uint64, as `kept.popcount`."""
    x = x - ((x >> _ONE) & _PAIRS)
    x = (x & _NIBBLES) + ((x >> np.uint64(2)) & _NIBBLES)
    x = (x + (x >> np.uint64(4))) & _BYTES
    return (x * _ONES) >> np.uint64(56)
