"""The cross network of DCN-v2 (Wang et al., WWW 2021): every layer multiplies the input by a projection of itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recsys.models.axes import Axes, Axis, unit_names
from recsys.models.linear import Linear, parameter_gradients, product, trains_in_onednn


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
        if self.training and self._low_rank is None and trains_in_onednn(x, self.output_width):
            out: Tensor = _FullCross.apply(x, *(p for layer in self.layers for p in (layer.weight, layer.bias)))
            return out
        out = x
        for layer in self.layers:
            out = _Cross.apply(x, layer(out), out) if torch.is_grad_enabled() else torch.addcmul(out, x, layer(out))
        return out


class _FullCross(torch.autograd.Function):
    """All layers with W_l full, in oneDNN: what gradients are added up to is added where it is computed.

    The first layer is `x * (z + 1)`, the 1 being added to the bias: of the same worth as `x * z + x`, and its gradient
    of x needs no term beside it.
    """

    @staticmethod
    def forward(ctx, x: Tensor, *parameters: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        out, saved = x, [x]
        for weight, bias in zip(parameters[::2], parameters[1::2], strict=True):
            first = out is x
            z = product(out, weight, bias + 1 if first else bias)
            out = x * z if first else torch.addcmul(out, x, z)
            saved += [weight, z, out]
        ctx.save_for_backward(*saved[:-1])
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
        x, *saved = ctx.saved_tensors
        weights, zs, inputs = saved[::3], saved[1::3], [x, *saved[2::3]]
        of_x: Tensor | None = None
        of_parameters: list[Tensor | None] = []
        for weight, z, own in zip(reversed(weights), reversed(zs), reversed(inputs), strict=True):
            of_x = grad * z if of_x is None else of_x.addcmul_(grad, z)
            of_z = grad * x
            of_parameters += [*reversed(parameter_gradients(of_z, own, weight, True))]
            grad = product(of_z, weight.t(), plus=of_x if own is x else grad)
        return grad, *reversed(of_parameters)


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
