"""What a baseline has in common with `MultiplexedEmbedding`: all that a `CTRModel` and its trainer ask of it.

All train by the same kernel and optimizers, and all count the bytes of their index.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from features.layout import Layout
from recsys.embeddings.formats import RowFormat
from recsys.embeddings.kernel import make_table
from recsys.embeddings.plan import IdCounts
from recsys.embeddings.table import TableOptimizer

KEY_BYTES = 4
"""Bytes a value in the exact index."""


@dataclass(frozen=True)
class BaselineConfig:
    """What all baselines can be told."""

    width: int = 16
    """Floats D a feature."""
    seed: int = 0
    """Of the initial rows."""
    hash_seed: int = 0
    """Another seed draws all hashes anew."""
    init_scale: float = 0.05
    """An embedding's floats start uniform in [-init_scale, init_scale], or as wide where they are products."""
    optimizer: TableOptimizer = TableOptimizer()  # noqa: RUF009  (frozen)
    """How the rows are moved."""


class BaselineEmbedding(nn.Module, ABC):
    """An embedding of single-valued features for comparisons; every feature gets one vector.

    Args:
        rows: rows of the table.
        row_width: floats a row.
        output_width: floats an example gets, F * D.
        exact_keys: [K] the exact index (`recsys.embeddings.plan.exact_index`), empty without one.
        config: the width, seeds, the optimizer.
    """

    exact_keys: Tensor
    hot_keys: Tensor
    """Empty: baselines have no hot region."""
    hot = None

    def __init__(
        self, rows: int, row_width: int, output_width: int, exact_keys: np.ndarray, config: BaselineConfig
    ) -> None:
        super().__init__()
        self.output_width = output_width
        self.register_buffer("exact_keys", torch.from_numpy(exact_keys.copy()))
        self.register_buffer("hot_keys", torch.empty(0, dtype=torch.int32))
        self.table = make_table(rows, RowFormat("fp32", row_width), config.optimizer)
        self.table.initialise(config.init_scale, torch.Generator().manual_seed(config.seed))

    @abstractmethod
    def forward(self, ids: Tensor, bag_values: Tensor, bag_lengths: Tensor) -> Tensor:
        """[B, F] int64 fingerprints -> [B, F * D], features in layout order; there are no bags."""

    def indices(self) -> dict[str, Tensor]:
        """As `MultiplexedEmbedding.indices`."""
        return {"exact_keys": self.exact_keys, "hot_keys": self.hot_keys}

    def step(self, learning_rate: float, scale: float = 1.0) -> None:
        """One optimizer step of the table."""
        self.table.step(learning_rate, scale)

    def discard(self) -> None:
        """Forgets the lookups since the last step."""
        self.table.discard()

    @property
    def table_bytes(self) -> int:
        """Bytes of everything indexed by ids: fp32 rows and the exact index."""
        stored = (self.table.stored(), self.exact_keys)
        return sum(t.numel() * t.element_size() for t in stored)

    @property
    def training_bytes(self) -> int:
        """As `MultiplexedEmbedding.training_bytes`."""
        return self.table.training_bytes + self.exact_keys.numel() * self.exact_keys.element_size()


def distinct_values(layout: Layout, id_counts: IdCounts) -> dict[str, int]:
    """Number of distinct training values of each feature, in layout order.

    Raises:
        ValueError: the layout has bags, which the baselines do not know.
    """
    if layout.bag_names:
        raise ValueError(f"baselines embed single-valued features only, not {', '.join(layout.bag_names)}")
    return {name: len(id_counts[name][0]) for name in layout.id_names}
