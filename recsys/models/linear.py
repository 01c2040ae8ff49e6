"""A linear layer that trains and serves with the fastest fp32 matrix product the CPU has.

torch hands fp32 products to MKL, which leaves the AVX-512 units of AMD processors unused.  oneDNN, which torch brings
too, does not: 1.6 to 2.4 times the speed there, at the same precision.
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALLEST_OUTPUT = 16
"""Below this many outputs the product is too thin to gain."""
FEWEST_ROWS = 16
"""Of a request that is served; below, setting oneDNN's product up takes longer than the product."""
MANY_ROWS = 2048
"""From here on the gradients of weights and bias are faster as those of a convolution."""


class Linear(nn.Linear):
    """`torch.nn.Linear`, whose products run in oneDNN while it trains or serves, where that pays (see `onednn_pays`).

    Serving is inference mode.  Evaluation and export use torch's own product, and so does autocast, whose products are
    of another precision.
    """

    def reset_parameters(self) -> None:
        """Draws fresh weights; none on the meta device, where drawing nothing takes half as long as all else."""
        if not self.weight.is_meta:
            super().reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """[B, I] -> [B, O]."""
        if torch.is_inference_mode_enabled():
            faster = len(x) >= FEWEST_ROWS and _onednn_takes(x, self.out_features)
            return (product if faster else F.linear)(x, self.weight, self.bias)
        if self.training and trains_in_onednn(x, self.out_features):
            out: Tensor = _OnednnLinear.apply(x, self.weight, self.bias)
            return out
        return F.linear(x, self.weight, self.bias)


def trains_in_onednn(x: Tensor, outputs: int) -> bool:
    """Whether products of x [B, I] with [outputs, I], and of their gradients, are to be oneDNN's."""
    return torch.is_grad_enabled() and _onednn_takes(x, outputs)


def _onednn_takes(x: Tensor, outputs: int) -> bool:
    return (
        outputs >= SMALLEST_OUTPUT
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and len(x) > 0  # oneDNN takes no empty product
        and not torch.is_autocast_enabled("cpu")
        and onednn_pays()
    )


def thin_product(x: Tensor, weight: Tensor) -> Tensor:
    """`x @ weight.T` for few outputs: [B, I], [O, I] -> [B, O].

    One output is a matrix times a vector, whose gradient torch computes as a product of a column and a row, element by
    element; as a matrix product that takes ten times as long.
    """
    return torch.mv(x, weight[0]).unsqueeze(1) if len(weight) == 1 else F.linear(x, weight)


class _OnednnLinear(torch.autograd.Function):
    """`x @ weight.T + bias` with all three products in oneDNN.

    Transposed views are passed as they are: oneDNN reads them faster than a copy could be made.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:  # type: ignore[no-untyped-def]
        x, weight = ctx.saved_tensors
        grad = grad.contiguous()
        grad_x = product(grad, weight.t()) if ctx.needs_input_grad[0] else None
        return grad_x, *parameter_gradients(grad, x, weight, ctx.has_bias)


def parameter_gradients(grad: Tensor, x: Tensor, weight: Tensor, bias: bool) -> tuple[Tensor, Tensor | None]:
    """The gradients of weight [O, I] and bias [O] from that of the output [B, O], in oneDNN."""
    if len(x) >= MANY_ROWS:
        return _gradients_of_convolution(grad, x.contiguous(), weight, bias)
    return product(grad.t(), x.t()), grad.sum(0) if bias else None


def _gradients_of_convolution(grad: Tensor, x: Tensor, weight: Tensor, bias: bool) -> tuple[Tensor, Tensor | None]:
    """The gradients of weight [O, I] and bias [O], as those of a 1x1 convolution over B points.

    oneDNN sums them over the rows as they lie, where its product wants a turned copy of the gradient first.
    """
    points = [t.view(1, len(t), 1, t.shape[1]).permute(0, 3, 1, 2) for t in (grad, x)]  # [1, channels, B, 1]
    sizes, none, one = [len(weight)] if bias else None, [0, 0], [1, 1]
    _, of_weight, of_bias = torch.ops.aten.convolution_backward(
        *points, weight[:, :, None, None], sizes, one, none, one, False, none, 1, [False, True, bias]
    )
    return of_weight.view(weight.shape), of_bias


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, plus: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias + plus` in oneDNN; what is added [B, O] costs no pass of its own."""
    out: Tensor = (
        torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        if plus is None
        else torch.ops.mkldnn._linear_pointwise.binary(x, plus, weight, bias, "add")
    )
    return out


@functools.cache
def onednn_pays() -> bool:
    """Whether fp32 products are faster in oneDNN than in torch's BLAS: an AMD processor with AVX-512 under MKL."""
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()):
        return False
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and _made_by_amd()


def _made_by_amd() -> bool:
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
