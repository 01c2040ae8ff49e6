"""What tables have in common whose kernel updates its rows inside its own backward."""

from __future__ import annotations

import torch
from torch import Tensor

from recsys.embeddings.formats import RowFormat
from recsys.embeddings.table import Table, TableOptimizer


class FusedTable(Table):
    """Hands out vectors that are a leaf of their own, so that the kernel's backward runs in `step` and not before.

    Two lookups are two updates, so a step must look up once.

    Args:
        rows: number of rows, R.
        format: how a row of D values is stored.
        optimizer: how `step` updates.
    """

    clips = False

    def __init__(self, rows: int, format: RowFormat, optimizer: TableOptimizer) -> None:
        super().__init__(rows, format, optimizer)
        self._steps = torch.zeros((), dtype=torch.int64)
        self._pending: list[tuple[Tensor, Tensor]] = []

    def gradient_norm(self, coalesced: bool) -> Tensor:
        """Norm of the gradients lookup by lookup (of this process, bag by bag): the kernel sums equal rows later."""
        norms = [torch.linalg.vector_norm(leaf.grad) for _, leaf in self._pending if leaf.grad is not None]
        return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())

    def step(self, learning_rate: float, scale: float = 1.0) -> None:
        for out, leaf in self._pending:
            if leaf.grad is not None:
                out.backward(leaf.grad if scale == 1.0 else leaf.grad * scale)
        if self._pending:
            self._steps += 1
        self._pending = []

    def discard(self) -> None:
        self._pending = []

    def _hand_out(self, out: Tensor) -> Tensor:
        """The vectors a lookup gave, as a leaf whose gradient waits for `step`."""
        leaf = out.detach()
        if torch.is_grad_enabled() and self.training:
            leaf.requires_grad_(True)
            self._pending.append((out, leaf))
        return leaf
