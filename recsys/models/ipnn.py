"""The products of the inner product-based neural network, IPNN (Qu et al., ICDM 2016)."""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor, nn

from recsys.embeddings.plan import EmbeddingPlan
from recsys.models.axes import Axes, Axis, pair_name
from recsys.models.chunks import ChunkVectors


class InnerProducts(nn.Module):
    """The inputs, and for each chunk `<v_fc, v_gc>` of all pairs of features that have it; what follows reads both.

    Between features of one chunk these are the products of the paper.  Those of several chunks are not summed: what
    follows weighs each, so that one that comes with a new chunk can join a trained model in silence.  Numbers and
    vectors are in no product.

    Args:
        inputs: input width I.
        plan: where the features' chunks stand in the input.
    """

    def __init__(self, inputs: int, plan: EmbeddingPlan) -> None:
        super().__init__()
        self.vectors = ChunkVectors(plan)
        self.output_width = inputs
        for chunk, names in enumerate(self.vectors.names):
            first, second = torch.triu_indices(len(names), len(names), 1, device="cpu")
            self.register_buffer(f"pairs_{chunk}", first * len(names) + second, persistent=False)
            self.output_width += len(first)

    def axes(self, inputs: Axis) -> tuple[Axes, Axis]:
        """Names along its parameters' axes, of which it has none, and of its outputs, from those of its inputs."""
        pairs = [
            pair_name(*pair, chunk) for chunk, names in enumerate(self.vectors.names) for pair in combinations(names, 2)
        ]
        return {}, [*inputs, *pairs]

    def forward(self, x: Tensor) -> Tensor:
        """[B, I] -> [B, I + P], P the pairs of all chunks."""
        parts = [x]
        for chunk, vectors in enumerate(self.vectors(x)):
            products = torch.bmm(vectors, vectors.transpose(1, 2))
            parts.append(products.flatten(1).index_select(1, self.get_buffer(f"pairs_{chunk}")))
        return torch.cat(parts, 1)
