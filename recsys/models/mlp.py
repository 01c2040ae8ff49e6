"""The feed-forward network: linear layers with ReLU between."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from recsys.models.axes import Axes, Axis, unit_names
from recsys.models.linear import Linear


class MLP(nn.Module):
    """Linear, ReLU and dropout, once a hidden layer.

    Args:
        inputs: input width I.
        hidden: units a layer; the last is the output width O (I when empty).
        dropout: share of units dropped in training.
    """

    def __init__(self, inputs: int, hidden: Sequence[int], dropout: float = 0.0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = inputs
        for units in hidden:
            layers += [Linear(width, units), nn.ReLU()]
            if dropout:
                layers.append(nn.Dropout(dropout))
            width = units
        self.layers = nn.Sequential(*layers)
        self.output_width = width

    def axes(self, inputs: Axis) -> tuple[Axes, Axis]:
        """Names along its parameters' axes and of its outputs, from those of its inputs."""
        axes: Axes = {}
        linear = [(place, layer) for place, layer in enumerate(self.layers) if isinstance(layer, Linear)]
        for number, (place, layer) in enumerate(linear):
            outputs = unit_names(f"hidden {number}", layer.out_features)
            axes |= {f"layers.{place}.weight": (outputs, inputs), f"layers.{place}.bias": (outputs,)}
            inputs = outputs
        return axes, inputs

    def forward(self, x: Tensor) -> Tensor:
        """[B, I] -> [B, O]."""
        out: Tensor = self.layers(x)
        return out
