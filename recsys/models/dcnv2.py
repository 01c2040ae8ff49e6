"""The cross network of DCN-v2 (Wang et al., WWW 2021): every layer multiplies the input by a projection of itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recsys.models.axes import Axes, Axis, unit_names
from recsys.models.linear import Linear


class MatrixCross(nn.Module):
    """`x_{l+1} = x_0 * (W_l x_l + b_l) + x_l`, with W_l full or of a low rank.

    Args:
        inputs: input width I, also the output width.
        layers: number of layers.
        low_rank: rank R of W_l = U_l V_l; full when None.
    """

    def __init__(self, inputs: int, layers: int, low_rank: int | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            Linear(inputs, inputs)
            if low_rank is None
            else nn.Sequential(Linear(inputs, low_rank, bias=False), Linear(low_rank, inputs))
            for _ in range(layers)
        )
        self.output_width = inputs
        self._low_rank = low_rank

    def axes(self, inputs: Axis) -> tuple[Axes, Axis]:
        """Names along its parameters' axes and of its outputs, from those of its inputs."""
        axes: Axes = {}
        for i in range(len(self.layers)):
            if self._low_rank is None:
                axes |= {f"layers.{i}.weight": (inputs, inputs), f"layers.{i}.bias": (inputs,)}
            else:
                middle = unit_names(f"cross {i}", self._low_rank)
                axes |= {f"layers.{i}.0.weight": (middle, inputs), f"layers.{i}.1.weight": (inputs, middle)}
                axes[f"layers.{i}.1.bias"] = (inputs,)
        return axes, inputs

    def forward(self, x: Tensor) -> Tensor:
        """[B, I] -> [B, I]."""
        out = x
        for layer in self.layers:
            out = _Cross.apply(x, layer(out), out) if torch.is_grad_enabled() else torch.addcmul(out, x, layer(out))
        return out


class _Cross(torch.autograd.Function):
    """`x * z + y` in one pass over memory, and two for its gradients: torch's own `addcmul` takes four for those."""

    @staticmethod
    def forward(ctx, x: Tensor, z: Tensor, y: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, z)
        return torch.addcmul(y, x, z)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[no-untyped-def]
        x, z = ctx.saved_tensors
        return grad * z, grad * x, grad
