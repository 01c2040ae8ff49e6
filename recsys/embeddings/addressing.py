"""From a 64-bit fingerprint to rows of the table, with integer torch operations only; or in one compiled call.

`row = base + range_reduce(mix64(fingerprint ^ salt(feature name, chunk)), span)`.  The salt comes from the
feature's name, so the rows of one feature do not depend on which other features there are, nor on their order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xxhash
from torch import Tensor, nn

from recsys.embeddings.kept import KeptRows

HASH_VERSION = 1
"""Changes whenever a fingerprint would reach other rows; stored with every artefact."""

WAYS = 8
"""Slots of a bucket of the hot index; an id may lie in two buckets."""
NO_OWNER = -(1 << 31)
"""Key of an empty slot of the hot index."""

_M1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_M2 = 0x94D049BB133111EB - (1 << 64)


def salt(feature: str, chunk: int, hash_seed: int = 0) -> int:
    """The signed 64-bit salt of one chunk of a feature: xxh64 of `name#chunk`, seeded by hash version and hash seed.

    >>> salt("user_id", 0), salt("user_id", 1)
    (358653878879521741, -2685942674216333866)
    """
    value = xxhash.xxh64_intdigest(f"{feature}#{chunk}".encode(), seed=hash_seed * 256 + HASH_VERSION)
    return value - (1 << 64) if value >= 1 << 63 else value


def mix64(x: Tensor) -> Tensor:
    """The splitmix64 finaliser (Steele, Lea and Flood 2014; constants of Stafford's variant 13), element by element.

    Args:
        x: int64 of any shape.

    Returns:
        int64 of the same shape, a bijection of x whose bits each depend on all bits of x.

    >>> mix64(torch.tensor([0, 1, -1])).tolist()
    [0, 6238072747940578789, -5417735806833148549]
    """
    # >> is arithmetic on int64: the mask makes it a logical shift
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * _M1
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * _M2
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


def range_reduce(hashes: Tensor, span: Tensor | int) -> Tensor:
    """Maps hashes to [0, span) by multiply and shift (Lemire 2019); no 64-bit division.

    Args:
        hashes: int64, well mixed.
        span: number of rows, below 2**31; broadcasts against `hashes`.

    Returns:
        int64 in [0, span), of the broadcast shape.

    >>> range_reduce(torch.tensor([0, -1]), 10).tolist()
    [0, 9]
    """
    return (((hashes >> 32) & 0xFFFFFFFF) * span) >> 32


@dataclass(frozen=True)
class Segment:
    """Where the own rows of one feature lie: entries of the exact or the hot index and place in the table."""

    start: int
    """First of the feature's entries in the index."""
    size: int
    """Number of its entries, above 0; in the hot index a multiple of `WAYS`, as `start` is."""
    base: int
    """First of its rows; the value of entry `start + i` has the rows from `base + i * chunks` on."""
    chunks: int
    """Rows an entry."""


@dataclass(frozen=True)
class Lookup:
    """One lookup: which column is read, and where its rows lie."""

    column: int
    """Position of the feature among the columns given to the `Addresser`."""
    feature: str
    """Name the salt is made from."""
    chunk: int
    """Number of this chunk within the feature, from 0."""
    base: int
    """First row ids may hash to."""
    span: int
    """Number of rows ids may hash to."""
    exact: Segment | None = None
    """Rows of the feature's own values, sought first."""
    hot: Segment | None = None
    """Rows of the ids that own a slot at present, sought first."""


COLUMN, SALT, BASE, SPAN, CHUNK, KIND, START, SIZE, OWN, CHUNKS = range(10)
"""What a compiled call is told of a lookup: the numbers of `Lookup` and of its `Segment`, if it has one."""
TOLD = 10
HASHED, EXACT, HOT = range(3)
"""KIND: where a lookup seeks rows of its own first."""


def _told(x: Lookup, hash_seed: int) -> list[int]:
    if x.exact and x.hot:
        raise ValueError(f"{x.feature} has rows of its own in two regions")
    kind, own = (EXACT, x.exact) if x.exact else (HOT, x.hot) if x.hot else (HASHED, Segment(0, 0, 0, 0))
    assert own is not None
    seed = salt(x.feature, x.chunk, hash_seed) % 2**64
    return [x.column, seed, x.base, x.span, x.chunk, kind, own.start, own.size, own.base, own.chunks]


class Addresser(nn.Module):
    """Turns columns of fingerprints into rows, for a fixed list of lookups.

    Args:
        lookups: the lookups, in output order; a feature's chunks follow one another from 0.
        hash_seed: another seed is another draw of all hashes.
        compiled: whether columns in the CPU's memory go through one call compiled by numba, to the same rows: twenty
            passes over [n, lookups] less.

    Attributes:
        lookups: [L, 10] uint64, the lookups as `numba_lookup` is told of them.

    Raises:
        ValueError: a lookup has rows of its own in both the exact and the hot region.
    """

    _columns: Tensor
    _salts: Tensor
    _base: Tensor
    _span: Tensor

    def __init__(self, lookups: list[Lookup], hash_seed: int = 0, *, compiled: bool = False) -> None:
        super().__init__()
        self.lookups = np.array([_told(x, hash_seed) for x in lookups], np.uint64).reshape(-1, TOLD)
        self._compiled = compiled
        self.columns = [lookup.column for lookup in lookups]
        self._identity = self.columns == list(range(len(lookups)))
        self.register_buffer("_columns", _int64(self.columns), persistent=False)
        self.register_buffer("_salts", torch.from_numpy(self.lookups[:, SALT].astype(np.int64)), persistent=False)
        self.register_buffer("_base", _int64([x.base for x in lookups]), persistent=False)
        self.register_buffer("_span", _int64([x.span for x in lookups]), persistent=False)
        self._all_at_zero = all(x.base == 0 for x in lookups)
        self._exact = _ExactLookups(lookups) if any(x.exact for x in lookups) else None
        self._hot = _HotLookups(lookups) if any(x.hot for x in lookups) else None

    def forward(self, values: Tensor, exact_keys: Tensor, hot_keys: Tensor, kept: KeptRows | None = None) -> Tensor:
        """Rows of every lookup.

        Args:
            values: [n, columns] int64 fingerprints.
            exact_keys: [K] int32 or int64: the exact index, `exact_key` of every value with rows of its own, ascending
                within each feature's segment.
            hot_keys: [S] int32: the hot index, the key of every slot's owner.
            kept: where the hashed rows lie that pruning left.

        Returns:
            [n, lookups] int32 rows of the table.
        """
        if self._compiled and values.device.type == "cpu":
            from recsys.embeddings.numba_lookup import rows_of

            return rows_of(self.lookups, values, exact_keys, hot_keys, kept)
        x = values if self._identity and values.shape[1] == len(self.columns) else values.index_select(1, self._columns)
        hashes = mix64(x ^ self._salts)
        rows = range_reduce(hashes, self._span)
        if not self._all_at_zero:
            rows = rows + self._base
        if kept is not None:
            rows = kept(rows)
        if self._exact is not None:
            rows = self._exact(hashes, rows, exact_keys)
        if self._hot is not None:
            rows = self._hot(hashes, rows, hot_keys)
        return rows.to(torch.int32)


class _OwnRows(nn.Module):
    """Which lookups of a list have segments of their own, a feature at a time.

    Args:
        segments: of each lookup; None for those without.
        lookups: all of them.
    """

    _first: Tensor
    _start: Tensor
    _row: Tensor
    _chunks: Tensor
    _lookup: Tensor
    _segment: Tensor
    _chunk: Tensor

    def __init__(self, segments: Sequence[Segment | None], lookups: list[Lookup]) -> None:
        super().__init__()
        first = [(i, s) for i, (s, x) in enumerate(zip(segments, lookups, strict=True)) if s and x.chunk == 0]
        every = [i for i, s in enumerate(segments) if s]
        number = {lookups[i].feature: n for n, (i, _) in enumerate(first)}
        for name, values in {
            "first": [i for i, _ in first],
            "start": [s.start for _, s in first],
            "row": [s.base for _, s in first],
            "chunks": [s.chunks for _, s in first],
            "lookup": every,
            "segment": [number[lookups[i].feature] for i in every],
            "chunk": [lookups[i].chunk for i in every],
        }.items():
            self.register_buffer(f"_{name}", _int64(values), persistent=False)

    def _place(self, rows: Tensor, place: Tensor, hit: Tensor) -> Tensor:
        """Puts own rows in the place of hashed ones.

        Args:
            rows: [n, lookups] int64.
            place: [segments, n] int64, position within the segment.
            hit: [segments, n], whether the value was found.

        Returns:
            [n, lookups] int64.
        """
        row = place * self._chunks.unsqueeze(1) + self._row.unsqueeze(1)
        own = row.index_select(0, self._segment).t() + self._chunk
        hashed = rows.index_select(1, self._lookup)
        return rows.index_copy(1, self._lookup, torch.where(hit.index_select(0, self._segment).t(), own, hashed))


class _ExactLookups(_OwnRows):
    """Finds values in the exact index."""

    def __init__(self, lookups: list[Lookup]) -> None:
        super().__init__([x.exact for x in lookups], lookups)
        self._segments = [x.exact for x in lookups if x.exact and x.chunk == 0]

    def forward(self, hashes: Tensor, rows: Tensor, exact_keys: Tensor) -> Tensor:
        """[n, lookups] hashes and rows -> [n, lookups] rows."""
        keys = _key(hashes.t().index_select(0, self._first), exact_keys.dtype)
        # one binary search a feature, in its own segment: short, contiguous, and no key need say whose it is
        places = [
            torch.searchsorted(exact_keys[s.start : s.start + s.size], own).clamp_(max=s.size - 1)
            for s, own in zip(self._segments, keys, strict=True)
        ]
        place = torch.stack(places)
        return self._place(rows, place, exact_keys[place + self._start.unsqueeze(1)] == keys)


class _HotLookups(_OwnRows):
    """Finds ids in the hot index."""

    _buckets: Tensor

    def __init__(self, lookups: list[Lookup]) -> None:
        super().__init__([x.hot for x in lookups], lookups)
        buckets = [x.hot.size // WAYS for x in lookups if x.hot and x.chunk == 0]
        self.register_buffer("_buckets", _int64(buckets).unsqueeze(1), persistent=False)

    def forward(self, hashes: Tensor, rows: Tensor, hot_keys: Tensor) -> Tensor:
        """[n, lookups] hashes and rows -> [n, lookups] rows."""
        own = hashes.t().index_select(0, self._first)
        buckets = hot_buckets(own, (self._start // WAYS).unsqueeze(1), self._buckets)
        slot, hit = find_hot(hot_keys, buckets, hot_key(own))
        return self._place(rows, slot - self._start.unsqueeze(1), hit)


def hot_key(hashes: Tensor) -> Tensor:
    """The key under which an id is found in the hot index: the low bits of its first chunk's hash.

    The buckets come from the high bits: an id without a slot passes for an owner with probability `2 * WAYS / 2**32`
    at most, whatever the size of the index.

    Args:
        hashes: int64 of any shape.

    Returns:
        int32 of the same shape, never `NO_OWNER`.
    """
    return hashes.to(torch.int32).clamp_(min=NO_OWNER + 1)


def hot_buckets(hashes: Tensor, first: Tensor | int, buckets: Tensor | int) -> Tensor:
    """The two buckets in whose slots an id may lie, drawn independently.

    With the choice between two, buckets fill so evenly (Azar et al. 1999) that nearly all of the most valuable ids
    find a place; one bucket an id would turn away one in seven of as many ids as there are slots.

    Args:
        hashes: int64 of any shape, of the first chunk.
        first: the feature's first bucket; broadcasts against `hashes`, as `buckets` does.
        buckets: number of the feature's buckets.

    Returns:
        [..., 2] int64 buckets of the hot index, each of `WAYS` slots.
    """
    both = torch.stack([range_reduce(hashes, buckets), range_reduce(hashes * _M1, buckets)], -1)
    return both + (first.unsqueeze(-1) if isinstance(first, Tensor) else first)


def find_hot(hot_keys: Tensor, buckets: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Where ids lie in the hot index.

    Args:
        hot_keys: [S] int32, the index.
        buckets: [..., 2] int64 of `hot_buckets`.
        keys: [...] int32 of `hot_key`.

    Returns:
        [...] int64 the slot each id owns, and [...] whether it owns one; the slot of an id without one means nothing.
    """
    match = (hot_keys.view(-1, WAYS)[buckets] == keys[..., None, None]).flatten(-2)
    return hot_slot(buckets, match.to(torch.uint8).argmax(-1)), match.any(-1)


def hot_slot(buckets: Tensor, way: Tensor) -> Tensor:
    """The slot at a place in the pair of buckets: [..., 2] buckets and [...] in [0, 2 * WAYS) -> [...]."""
    return buckets.gather(-1, (way // WAYS).unsqueeze(-1)).squeeze(-1) * WAYS + way % WAYS


def hashed_rows(feature: str, fingerprints: Tensor, chunks: int, base: int, span: int, hash_seed: int = 0) -> Tensor:
    """The rows that ids of one feature hash to.

    Args:
        feature: name of the feature.
        fingerprints: [n] int64.
        chunks: rows an id.
        base: first row.
        span: number of rows.
        hash_seed: that of the `Addresser`.

    Returns:
        [n, chunks] int64.
    """
    salts = _int64([salt(feature, chunk, hash_seed) for chunk in range(chunks)])
    return base + range_reduce(mix64(fingerprints.unsqueeze(1) ^ salts), span)


def exact_key(feature: str, fingerprints: Tensor, bits: int = 32, hash_seed: int = 0) -> Tensor:
    """The key under which a feature's values are found in the exact index: the high bits of their first chunk's hash.

    With 32 bits a value that training never saw passes for one of the feature's V known ones with probability
    V / 2**32.

    Args:
        feature: name of the feature.
        fingerprints: int64 of any shape.
        bits: 32 or 64.
        hash_seed: that of the `Addresser`.

    Returns:
        int32 or int64 of the same shape.
    """
    return _key(mix64(fingerprints ^ salt(feature, 0, hash_seed)), torch.int32 if bits == 32 else torch.int64)


def _key(hashes: Tensor, dtype: torch.dtype) -> Tensor:
    return (hashes >> 32).to(torch.int32) if dtype == torch.int32 else hashes


def _int64(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)
