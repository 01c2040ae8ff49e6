"""Features' vectors as products between features read them: chunk by chunk."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recsys.embeddings.plan import EmbeddingPlan


class ChunkVectors(nn.Module):
    """First the first chunks of all features, then the second chunks of those that have one, and so on.

    A product of two features' vectors, the shorter padded with zeros at its end, is the sum of the products of their
    chunks.  Products taken chunk by chunk cost nothing for padding, and a feature can get another chunk, or lose its
    last ones, without a change to any product of the others.

    Args:
        plan: where the features' chunks stand in the input.
    """

    def __init__(self, plan: EmbeddingPlan) -> None:
        super().__init__()
        self.names: list[tuple[str, ...]] = []
        """For every chunk that two or more features have: which they are."""
        self._lookups, self._width = plan.lookups, plan.width
        starts, start = {}, 0
        for f in plan.features:
            starts[f.name] = start
            start += f.chunks
        for chunk in range(max((f.chunks for f in plan.features), default=0)):
            names = tuple(f.name for f in plan.features if f.chunks > chunk)
            if len(names) < 2:
                break
            self.names.append(names)
            places = torch.tensor([starts[name] + chunk for name in names], device="cpu")  # also in an outline
            self.register_buffer(f"places_{chunk}", places, persistent=False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Inputs [B, I], embeddings first -> for every chunk [B, features that have it, width]."""
        vectors = x[:, : self._lookups * self._width].view(x.shape[0], self._lookups, self._width)
        if [len(names) for names in self.names] == [self._lookups]:
            return [vectors]
        return [vectors.index_select(1, self.get_buffer(f"places_{chunk}")) for chunk in range(len(self.names))]
