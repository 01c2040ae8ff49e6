"""The factorisation machine (Rendle, ICDM 2010); with a feed-forward network beside it DeepFM (Guo et al., 2017)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recsys.embeddings.plan import EmbeddingPlan
from recsys.models.axes import Axes, Axis, unit_names
from recsys.models.chunks import ChunkVectors


class FactorisationMachine(nn.Module):
    """The inputs, and for each chunk c `sum_{f<g} <u_fc, u_gc>` with `u_fc = w_fc v_fc`.

    The head reads both.  Its weights for the sums begin at 1, and so do the scales w: `b + a.x + sum_{f<g} <v_f, v_g>`,
    the machine of the paper over vectors padded to the widest.  Sums over pairs take time linear in the features, as
    `(|sum_f u_f|^2 - sum_f |u_f|^2) / 2`.  Two things are other than in the paper:

    - The linear term is one layer over the whole input (embeddings, numbers, vectors), not a weight of its own for
      every value.  Numbers and vectors are in no product.
    - The scales are learned.  Where features share no rows they add nothing to what the machine can say; but a feature
      that joins a trained one begins with 0, so that its products join in silence (see `warm_start`).

    Args:
        inputs: input width I.
        plan: where the features' chunks stand in the input.
    """

    def __init__(self, inputs: int, plan: EmbeddingPlan) -> None:
        super().__init__()
        self.vectors = ChunkVectors(plan)
        self.weights = nn.ParameterList(torch.ones(1, len(names)) for names in self.vectors.names)
        self.output_width = inputs + len(self.weights)
        self._inputs = inputs

    @torch.no_grad()
    def start(self, head: Tensor) -> None:
        """Gives the sums the weight 1 in a fresh head [tasks, I + chunks and more]."""
        head[:, self._inputs : self.output_width] = 1.0

    @torch.no_grad()
    def wake(self, head: Tensor) -> None:
        """Where all scales of a chunk are 0, makes them 1 and the head's weight 0: as silent, but it can learn."""
        for chunk, weight in enumerate(self.weights):
            if not weight.any():
                weight.fill_(1.0)
                head[:, self._inputs + chunk] = 0.0

    def axes(self, inputs: Axis) -> tuple[Axes, Axis]:
        """Names along its parameters' axes and of its outputs, from those of its inputs."""
        sums = unit_names("fm sums", len(self.weights))
        axes: Axes = {
            f"weights.{chunk}": ([sums[chunk]], [(name, chunk) for name in names])
            for chunk, names in enumerate(self.vectors.names)
        }
        return axes, [*inputs, *sums]

    def forward(self, x: Tensor) -> Tensor:
        """[B, I] -> [B, I + chunks]."""
        sums = [_pair_sum(v * w.view(-1, 1)) for v, w in zip(self.vectors(x), self.weights, strict=True)]
        return torch.cat([x, *sums], 1)


def _pair_sum(vectors: Tensor) -> Tensor:
    """The sum of the inner products of all pairs: [B, F, D] -> [B, 1]."""
    return (vectors.sum(1).square().sum(1) - vectors.square().sum((1, 2))).unsqueeze(1) / 2
