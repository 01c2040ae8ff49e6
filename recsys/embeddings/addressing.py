"""From a 64-bit fingerprint to rows of the table, with integer torch operations only.

`row = base + range_reduce(mix64(fingerprint ^ salt(feature name, chunk)), span)`.  The salt comes from the
feature's name, so the rows of one feature do not depend on which other features there are, nor on their order.
"""

from __future__ import annotations

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


class Lookup:
    """One lookup: which column is read, and where its rows lie.

    Args:
        column: position of the feature among the columns given to the `Addresser`.
        feature: name the salt is made from.
        chunk: number of this chunk within the feature, from 0.
        base: first row ids may hash to.
        span: number of rows ids may hash to.
        exact: whether values are first sought in the exact index.
    """

    __slots__ = ("base", "chunk", "column", "exact", "feature", "span")

    def __init__(self, column: int, feature: str, chunk: int, base: int, span: int, exact: bool) -> None:
        self.column = column
        self.feature = feature
        self.chunk = chunk
        self.base = base
        self.span = span
        self.exact = exact


class Addresser(nn.Module):
    """Turns columns of fingerprints into rows, for a fixed list of lookups.

    Args:
        lookups: the lookups, in output order.
        hash_seed: another seed is another draw of all hashes.
    """

    _columns: Tensor
    _salts: Tensor
    _base: Tensor
    _span: Tensor
    _exact: Tensor
    _key: Tensor
    _chunk: Tensor

    def __init__(self, lookups: list[Lookup], hash_seed: int = 0) -> None:
        super().__init__()
        self.columns = [lookup.column for lookup in lookups]
        self._identity = self.columns == list(range(len(lookups)))
        self.register_buffer("_columns", _int64(self.columns), persistent=False)
        self.register_buffer("_salts", _int64([salt(x.feature, x.chunk, hash_seed) for x in lookups]), persistent=False)
        self.register_buffer("_base", _int64([x.base for x in lookups]), persistent=False)
        self.register_buffer("_span", _int64([x.span for x in lookups]), persistent=False)
        exact = [i for i, x in enumerate(lookups) if x.exact]
        first = {x.feature: i for i, x in enumerate(lookups) if x.chunk == 0}
        self.has_exact = bool(exact)
        self._all_at_zero = all(x.base == 0 for x in lookups)
        self.register_buffer("_exact", _int64(exact), persistent=False)
        self.register_buffer("_key", _int64([first[lookups[i].feature] for i in exact]), persistent=False)
        self.register_buffer("_chunk", _int64([lookups[i].chunk for i in exact]), persistent=False)

    def forward(self, values: Tensor, exact_keys: Tensor, exact_rows: Tensor) -> Tensor:
        """Rows of every lookup.

        Args:
            values: [n, columns] int64 fingerprints.
            exact_keys: [K] int64, sorted: `exact_key` of every value that has rows of its own.
            exact_rows: [K] int32: the first of its rows.

        Returns:
            [n, lookups] int32 rows of the table.
        """
        x = values if self._identity and values.shape[1] == len(self.columns) else values.index_select(1, self._columns)
        hashes = mix64(x ^ self._salts)
        rows = range_reduce(hashes, self._span)
        if not self._all_at_zero:
            rows = rows + self._base
        if self.has_exact and exact_keys.numel():
            keys = hashes.index_select(1, self._key)
            slot = torch.searchsorted(exact_keys, keys).clamp_(max=exact_keys.numel() - 1)
            hit = exact_keys[slot] == keys
            own = exact_rows[slot].to(torch.int64) + self._chunk
            hashed = rows.index_select(1, self._exact)
            rows = rows.index_copy(1, self._exact, torch.where(hit, own, hashed))
        return rows.to(torch.int32)


def exact_key(feature: str, fingerprints: Tensor, hash_seed: int = 0) -> Tensor:
    """The key under which a feature's values are found in the exact index: the hash of their first chunk.

    Args:
        feature: name of the feature.
        fingerprints: int64 of any shape.
        hash_seed: that of the `Addresser`.

    Returns:
        int64 of the same shape.
    """
    return mix64(fingerprints ^ salt(feature, 0, hash_seed))


def _int64(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)
