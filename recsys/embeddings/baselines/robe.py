"""ROBE (Desai, Chou and Shrivastava, MLSys 2022): every embedding is cut from one circular array of floats."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from features.layout import Layout
from recsys.embeddings.addressing import mix64, range_reduce, salt
from recsys.embeddings.baselines.base import BaselineConfig, BaselineEmbedding, distinct_values
from recsys.embeddings.plan import IdCounts


class RobeEmbedding(BaselineEmbedding):
    """Blocks of Z contiguous floats, each at a hashed place of the array and under a hashed sign.

    `e[block z, float k] = sign(f, z, id) * array[(offset(f, z, id) + k) mod floats]`, of feature f; offsets need not
    be multiples of Z, and the array goes round.  No index: unseen values are cut like all others.  The array is a table
    of rows of one float, so a row-wise optimizer has a state for every float.

    Args:
        layout: the features.
        id_counts: asked of every baseline; not used here.
        budget: bytes; all of them become floats.
        config: the width D, seeds, the optimizer.
        block: floats Z a block; divides the width.

    Raises:
        ValueError: blocks do not fill the width, or there are bags.
    """

    _salts: Tensor
    _within: Tensor

    def __init__(
        self, layout: Layout, id_counts: IdCounts, budget: int, config: BaselineConfig, *, block: int = 8
    ) -> None:
        if config.width % block:
            raise ValueError(f"blocks of {block} floats do not fill a width of {config.width}")
        names = distinct_values(layout, id_counts)
        super().__init__(budget // 4, 1, len(names) * config.width, np.empty(0, np.int32), config)
        self.blocks = config.width // block
        salts = [salt(name, z, config.hash_seed) for name in names for z in range(self.blocks)]
        self.register_buffer("_salts", torch.tensor(salts, dtype=torch.int64), persistent=False)
        self.register_buffer("_within", torch.arange(block), persistent=False)

    def forward(self, ids: Tensor, bag_values: Tensor, bag_lengths: Tensor) -> Tensor:
        hashes = mix64(ids.repeat_interleave(self.blocks, 1) ^ self._salts)
        # the offset comes from the high half of the hash, the sign from the lowest bit
        offsets = range_reduce(hashes, self.table.rows)
        places = (offsets.unsqueeze(2) + self._within) % self.table.rows
        signs = 1 - 2 * (hashes & 1)
        floats: Tensor = self.table(places.flatten().to(torch.int32))
        return (floats.view(places.shape) * signs.unsqueeze(2)).flatten(1)
