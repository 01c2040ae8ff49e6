"""The cross network of DCN (Wang et al., ADKDD 2017): every layer multiplies the input by one scalar an example."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recsys.models.axes import Axes, Axis, unit_names
from recsys.models.linear import Linear


class VectorCross(nn.Module):
    """`x_{l+1} = x_0 * (w_l . x_l) + b_l + x_l`.

    Args:
        inputs: input width I, also the output width.
        layers: number of layers.
    """

    def __init__(self, inputs: int, layers: int) -> None:
        super().__init__()
        self.weights = nn.ModuleList(Linear(inputs, 1, bias=False) for _ in range(layers))
        self.biases = nn.ParameterList(torch.zeros(inputs) for _ in range(layers))
        self.output_width = inputs

    def axes(self, inputs: Axis) -> tuple[Axes, Axis]:
        """Names along its parameters' axes and of its outputs, from those of its inputs."""
        axes: Axes = {f"weights.{i}.weight": (unit_names(f"cross {i}", 1), inputs) for i in range(len(self.weights))}
        return axes | {f"biases.{i}": (inputs,) for i in range(len(self.biases))}, inputs

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, I] -> [B, I]; under a mask [B or 1, I] the biases of masked places are 0, as the inputs are there."""
        out = x
        for weight, bias in zip(self.weights, self.biases, strict=True):
            out = x * weight(out) + (bias if mask is None else bias * mask) + out
        return out
