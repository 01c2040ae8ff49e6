"""Compositional embeddings (Shi et al., KDD 2020): a value is the product of a quotient row and a remainder row."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from features.layout import Layout
from recsys.embeddings.addressing import Addresser, Lookup, Segment
from recsys.embeddings.baselines.base import KEY_BYTES, BaselineConfig, BaselineEmbedding, distinct_values
from recsys.embeddings.plan import IdCounts, exact_index


class QuotientRemainderEmbedding(BaselineEmbedding):
    """`e = Q_f[v // m] * R_f[v mod m]`, element by element, with tables Q_f and R_f of each feature.

    The paper numbers a feature's N values from 0.  Raw ids have no number, and an index of all values would take a
    large part of a small budget, so v is a hash of the fingerprint into [0, N); values whose hashes coincide are one.
    Small features, and those whose rows the method would not make fewer, stay full: an exact index, a row a value, and
    one row for all unseen values.

    Args:
        layout: the features.
        id_counts: distinct training fingerprints of every feature.
        budget: bytes; `choose_moduli` makes the most of them.
        config: the width D, seeds, the optimizer.
        small: distinct values up to which a feature stays full.

    Raises:
        ValueError: the budget cannot be met, or there are bags.
    """

    _composed: Tensor
    _moduli: Tensor
    _quotient_base: Tensor
    _remainder_base: Tensor

    def __init__(
        self, layout: Layout, id_counts: IdCounts, budget: int, config: BaselineConfig, *, small: int = 64
    ) -> None:
        values = distinct_values(layout, id_counts)
        self.moduli = choose_moduli(values, budget, config.width, small)
        full = sorted(name for name, modulus in self.moduli.items() if not modulus)
        composed = [name for name, modulus in self.moduli.items() if modulus]
        segments, unseen, end, entries = {}, {}, 0, 0
        for name in full:
            segments[name] = Segment(entries, values[name], end, 1) if values[name] else None
            unseen[name] = end + values[name]
            end, entries = end + values[name] + 1, entries + values[name]
        full_rows, bases = end, []
        for name in composed:
            quotients = math.ceil(values[name] / self.moduli[name])
            bases.append((end, end + quotients))
            end += quotients + self.moduli[name]
        super().__init__(
            end,
            config.width,
            len(values) * config.width,
            exact_index({n: id_counts[n][0] for n in full}, config.hash_seed),
            config,
        )
        # factors this wide make products as wide (in variance) as the rows of a full feature
        factor = (3 * config.init_scale**2) ** 0.25 / config.init_scale
        self.table.stored()[full_rows:].mul_(factor)
        self.address = Addresser(
            [
                Lookup(i, n, 0, unseen[n], 1, segments[n]) if n in segments else Lookup(i, n, 0, 0, values[n])
                for i, n in enumerate(values)
            ],
            config.hash_seed,
        )
        for key, column in {
            "composed": [i for i, n in enumerate(values) if self.moduli[n]],
            "moduli": [self.moduli[n] for n in composed],
            "quotient_base": [q for q, _ in bases],
            "remainder_base": [r for _, r in bases],
        }.items():
            self.register_buffer(f"_{key}", torch.tensor(column, dtype=torch.int64), persistent=False)

    def forward(self, ids: Tensor, bag_values: Tensor, bag_lengths: Tensor) -> Tensor:
        # rows of the full features, hashes v of the composed ones
        rows = self.address(ids, self.exact_keys, self.hot_keys).to(torch.int64)
        hashes = rows.index_select(1, self._composed)
        rows = rows.index_copy(1, self._composed, self._quotient_base + hashes // self._moduli)
        remainders = self._remainder_base + hashes % self._moduli
        found: Tensor = self.table(torch.cat([rows.flatten(), remainders.flatten()]).to(torch.int32))
        first, second = found.split([rows.numel(), remainders.numel()])
        factors = torch.ones(*rows.shape, self.table.width).index_copy(
            1, self._composed, second.view(*remainders.shape, self.table.width)
        )
        return (first.view(factors.shape) * factors).flatten(1)


def choose_moduli(values: Mapping[str, int], budget: int, width: int, small: int) -> dict[str, int]:
    """The modulus of each feature: as small as the budget lets it be, and much the same for all.

    A common modulus is raised until all fits, though not above a feature's square root of values, where its rows are
    fewest; then, from the largest feature down, each is lowered by one where there is room.

    Args:
        values: distinct values of each feature.
        budget: bytes of fp32 rows and of the index of full features.
        width: floats a row.
        small: distinct values up to which a feature stays full.

    Returns:
        Feature name -> modulus, 0 for features that stay full.

    Raises:
        ValueError: the smallest tables are above the budget.

    >>> choose_moduli({"ad": 10_000, "day": 7}, 8192, 4, small=64)
    {'ad': 21, 'day': 0}
    """

    def size(n: int, modulus: int) -> int:
        if not modulus:
            return (n + 1) * width * 4 + n * KEY_BYTES
        return (math.ceil(n / modulus) + modulus) * width * 4

    def modulus_of(n: int, common: int) -> int:
        modulus = min(common, math.ceil(math.sqrt(n)))
        return modulus if n > small and size(n, modulus) < size(n, 0) else 0

    def total(moduli: Mapping[str, int]) -> int:
        return sum(size(n, moduli[name]) for name, n in values.items())

    largest = math.ceil(math.sqrt(max(values.values(), default=0)))
    for common in range(1, max(largest, 1) + 1):
        moduli = {name: modulus_of(n, common) for name, n in values.items()}
        if total(moduli) <= budget:
            break
    else:
        raise ValueError(f"no choice of moduli fits into {budget:,} bytes")
    for name in sorted(values, key=lambda name: -values[name]):
        lower = moduli | {name: modulus_of(values[name], moduli[name] - 1) if moduli[name] > 1 else 0}
        if total(lower) <= budget:
            moduli = lower
    return moduli
