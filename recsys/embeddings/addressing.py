"""From a 64-bit fingerprint to rows of the table, with integer torch operations only.

`row = base + range_reduce(mix64(fingerprint ^ salt(feature name, chunk)), span)`.  The salt comes from the
feature's name, so the rows of one feature do not depend on which other features there are, nor on their order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import xxhash
from torch import Tensor, nn

HASH_VERSION = 1
"""Changes whenever a fingerprint would reach other rows; stored with every artefact."""

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
class ExactSegment:
    """Where the values of one exact feature lie: in the exact index, and in the table."""

    start: int
    """First of the feature's entries in the index."""
    values: int
    """Number of its entries, above 0."""
    base: int
    """First of its rows; the value of entry `start + i` has the rows from `base + i * chunks` on."""
    chunks: int
    """Rows a value."""


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
    exact: ExactSegment | None = None
    """Rows of the feature's own values, sought first."""


class Addresser(nn.Module):
    """Turns columns of fingerprints into rows, for a fixed list of lookups.

    Args:
        lookups: the lookups, in output order; a feature's chunks follow one another from 0.
        hash_seed: another seed is another draw of all hashes.
    """

    _columns: Tensor
    _salts: Tensor
    _base: Tensor
    _span: Tensor

    def __init__(self, lookups: list[Lookup], hash_seed: int = 0) -> None:
        super().__init__()
        self.columns = [lookup.column for lookup in lookups]
        self._identity = self.columns == list(range(len(lookups)))
        self.register_buffer("_columns", _int64(self.columns), persistent=False)
        self.register_buffer("_salts", _int64([salt(x.feature, x.chunk, hash_seed) for x in lookups]), persistent=False)
        self.register_buffer("_base", _int64([x.base for x in lookups]), persistent=False)
        self.register_buffer("_span", _int64([x.span for x in lookups]), persistent=False)
        self._all_at_zero = all(x.base == 0 for x in lookups)
        self._exact = _ExactLookups(lookups) if any(x.exact for x in lookups) else None

    def forward(self, values: Tensor, exact_keys: Tensor) -> Tensor:
        """Rows of every lookup.

        Args:
            values: [n, columns] int64 fingerprints.
            exact_keys: [K] int32 or int64: the exact index, `exact_key` of every value with rows of its own, ascending
                within each feature's segment.

        Returns:
            [n, lookups] int32 rows of the table.
        """
        x = values if self._identity and values.shape[1] == len(self.columns) else values.index_select(1, self._columns)
        hashes = mix64(x ^ self._salts)
        rows = range_reduce(hashes, self._span)
        if not self._all_at_zero:
            rows = rows + self._base
        if self._exact is not None:
            rows = self._exact(hashes, rows, exact_keys)
        return rows.to(torch.int32)


class _ExactLookups(nn.Module):
    """Puts the own rows of exact values in the place of the rows they hash to."""

    _first: Tensor
    _start: Tensor
    _row: Tensor
    _chunks: Tensor
    _lookup: Tensor
    _segment: Tensor
    _chunk: Tensor

    def __init__(self, lookups: list[Lookup]) -> None:
        super().__init__()
        first = [(i, x.exact) for i, x in enumerate(lookups) if x.exact and x.chunk == 0]
        number = {lookups[i].feature: n for n, (i, _) in enumerate(first)}
        every = [(i, x) for i, x in enumerate(lookups) if x.exact]
        self._segments = [segment for _, segment in first]
        for name, values in {
            "first": [i for i, _ in first],
            "start": [s.start for s in self._segments],
            "row": [s.base for s in self._segments],
            "chunks": [s.chunks for s in self._segments],
            "lookup": [i for i, _ in every],
            "segment": [number[x.feature] for _, x in every],
            "chunk": [x.chunk for _, x in every],
        }.items():
            self.register_buffer(f"_{name}", _int64(values), persistent=False)

    def forward(self, hashes: Tensor, rows: Tensor, exact_keys: Tensor) -> Tensor:
        """[n, lookups] hashes and hashed rows -> [n, lookups] int64 rows."""
        keys = _key(hashes.t().index_select(0, self._first), exact_keys.dtype)
        # one binary search a feature, in its own segment: contiguous, short, and no key says whose it is
        place = [
            torch.searchsorted(exact_keys[s.start : s.start + s.values], own).clamp_(max=s.values - 1)
            for s, own in zip(self._segments, keys, strict=True)
        ]
        places = torch.stack(place)
        hit = exact_keys[places + self._start.unsqueeze(1)] == keys
        row = places * self._chunks.unsqueeze(1) + self._row.unsqueeze(1)
        own_row = row.index_select(0, self._segment).t() + self._chunk
        hashed = rows.index_select(1, self._lookup)
        return rows.index_copy(1, self._lookup, torch.where(hit.index_select(0, self._segment).t(), own_row, hashed))


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
