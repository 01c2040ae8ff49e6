"""Storage and kernels of the table: gather rows forward, one coalesced optimizer step on the rows touched.

`TorchTable` needs nothing but torch and is the faster on a CPU; `FbgemmTable` wraps FBGEMM's table-batched
embedding.  Both give the same rows and the same row-wise Adagrad and SGD updates.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from features.errors import ConfigError

OptimizerName = Literal["sgd", "rowwise_adagrad", "adam"]


@dataclass(frozen=True)
class TableOptimizer:
    """Settings of the table's optimizer.

    sgd: `w -= lr * g`.
    rowwise_adagrad: `m += mean(g**2); w -= lr * g / (sqrt(m) + eps)`, one m a row (Duchi et al. 2011; row-wise as in
    FBGEMM).
    adam: Adam on the rows touched in a step, bias-corrected by the step number, as `torch.optim.SparseAdam`.
    """

    name: OptimizerName = "rowwise_adagrad"
    eps: float = 1e-8
    beta1: float = 0.9
    beta2: float = 0.999
    l2: float = 0.0
    """Pull towards 0: `l2 * w` is added to the gradient of every row touched, once a step."""


class Table(nn.Module, ABC):
    """A [rows, width] fp32 table that updates itself.

    Call it for rows while training, call `backward` on the loss, then `step`.

    Args:
        rows: number of rows.
        width: floats a row.
        optimizer: how `step` updates.
    """

    clips = True
    """Whether `gradients` can be had before the step, for clipping by the global norm."""

    def __init__(self, rows: int, width: int, optimizer: TableOptimizer) -> None:
        super().__init__()
        self.rows = rows
        self.width = width
        self.optimizer = optimizer
        self.average: RowAverage | None = None

    @abstractmethod
    def weights(self) -> Tensor:
        """The [rows, width] tensor itself."""

    @abstractmethod
    def forward(self, rows: Tensor) -> Tensor:
        """Rows [n] int32 -> embeddings [n, width]."""

    def set_learning_rate(self, learning_rate: float) -> None:
        """The rate of the step inside the next backward, for kernels that step there."""

    @abstractmethod
    def step(self, learning_rate: float, scale: float = 1.0) -> None:
        """Applies one optimizer step to the rows looked up since the last one; gradients are first multiplied by scale.

        A row looked up several times gets one update with the sum of its gradients.
        """

    @abstractmethod
    def optimizer_state(self) -> dict[str, Tensor]:
        """State tensors by name, to be stored in a checkpoint; they are the live tensors."""

    def initialise(self, scale: float, generator: torch.Generator) -> None:
        """Fills the table uniformly in [-scale, scale]."""
        with torch.no_grad():
            self.weights().uniform_(-scale, scale, generator=generator)


class TorchTable(Table):
    """The pure torch kernel.  Equal inputs give equal bits, whatever the number of threads."""

    weight: Tensor

    def __init__(self, rows: int, width: int, optimizer: TableOptimizer) -> None:
        super().__init__(rows, width, optimizer)
        self.register_buffer("weight", torch.zeros(rows, width))
        self._pending: list[tuple[Tensor, Tensor]] = []
        self._coalesced: tuple[Tensor, Tensor] | None = None
        self._state: dict[str, Tensor] = {}
        if optimizer.name == "rowwise_adagrad":
            self._state["momentum"] = torch.zeros(rows)
        elif optimizer.name == "adam":
            self._state["first"] = torch.zeros(rows, width)
            self._state["second"] = torch.zeros(rows, width)
            self._state["step"] = torch.zeros((), dtype=torch.int64)

    def weights(self) -> Tensor:
        return self.weight

    def optimizer_state(self) -> dict[str, Tensor]:
        return self._state

    def forward(self, rows: Tensor) -> Tensor:
        out = self.weight.index_select(0, rows)
        if torch.is_grad_enabled() and self.training:
            # the gathered copy is a leaf of its own: its .grad is the table's gradient, row by row
            out.requires_grad_(True)
            self._pending.append((rows, out))
        return out

    def gradients(self) -> tuple[Tensor, Tensor] | None:
        """The rows touched since the last step, ascending [U] int32, and the sums of their gradients [U, width].

        Returns:
            None when nothing was looked up, or no gradient reached the table.
        """
        if self._coalesced is None:
            pending = [(rows, out.grad) for rows, out in self._pending if out.grad is not None]
            self._pending = []
            if not pending:
                return None
            rows = torch.cat([rows for rows, _ in pending]) if len(pending) > 1 else pending[0][0]
            grad = torch.cat([grad for _, grad in pending]) if len(pending) > 1 else pending[0][1]
            self._coalesced = sum_by_row(rows, grad)
        return self._coalesced

    @torch.no_grad()
    def step(self, learning_rate: float, scale: float = 1.0) -> None:
        touched = self.gradients()
        self._coalesced = None
        if touched is None:
            return
        rows, grad = touched
        if scale != 1.0:
            grad = grad * scale
        old = self.weight.index_select(0, rows)
        if self.optimizer.l2:
            grad = torch.add(grad, old, alpha=self.optimizer.l2)
        new = old - self._direction(rows, grad, learning_rate)
        index = rows.to(torch.int64)
        self.weight.index_copy_(0, index, new)
        if self.average is not None:
            self.average.update(index, old, new)

    def _direction(self, rows: Tensor, grad: Tensor, learning_rate: float) -> Tensor:
        """What to subtract from the rows; moves the optimizer's state on."""
        o = self.optimizer
        if o.name == "sgd":
            return grad * learning_rate
        index = rows.to(torch.int64)
        if o.name == "rowwise_adagrad":
            momentum = self._state["momentum"].index_select(0, rows).add_(grad.square().mean(1))
            self._state["momentum"].index_copy_(0, index, momentum)
            return grad * (learning_rate / momentum.sqrt_().add_(o.eps)).unsqueeze(1)
        step = self._state["step"].add_(1).item()
        first = self._state["first"].index_select(0, rows).lerp_(grad, 1 - o.beta1)
        second = self._state["second"].index_select(0, rows).mul_(o.beta2).addcmul_(grad, grad, value=1 - o.beta2)
        self._state["first"].index_copy_(0, index, first)
        self._state["second"].index_copy_(0, index, second)
        correction = (1 - o.beta2**step) ** 0.5
        return first.mul_(learning_rate * correction / (1 - o.beta1**step)).div_(second.sqrt_().add_(o.eps))


class FbgemmTable(Table):
    """FBGEMM's table-batched embedding; its optimizer step happens inside `backward`.

    Two lookups before one backward are two updates, so a step must look up once.  SGD and row-wise Adagrad on a
    CPU; fp32.  The width must be a multiple of 4.
    """

    clips = False

    def __init__(self, rows: int, width: int, optimizer: TableOptimizer) -> None:
        super().__init__(rows, width, optimizer)
        if width % 4:
            raise ConfigError(
                "the fbgemm kernel needs a width that is a multiple of 4",
                field="embedding.width",
                found=width,
                mend="choose such a width, or set embedding.kernel to torch",
            )
        if optimizer.name == "adam":
            raise ConfigError(
                "the fbgemm kernel has no Adam on a CPU",
                field="train.table_optimizer",
                found="adam",
                expected="rowwise_adagrad or sgd",
                mend="change the optimizer, or set embedding.kernel to torch",
            )
        if optimizer.l2:
            raise ConfigError(
                "the fbgemm kernel has no such pull towards 0",
                field="train.table_l2",
                found=optimizer.l2,
                mend="leave it out, or set embedding.kernel to torch",
            )
        self._tbe = _table_batched_embedding(rows, width, optimizer)

    def weights(self) -> Tensor:
        weights: Tensor = self._tbe.split_embedding_weights()[0]
        return weights.detach()

    def optimizer_state(self) -> dict[str, Tensor]:
        if self.optimizer.name == "sgd":
            return {}
        return {"momentum": self._tbe.split_optimizer_states()[0][0]}

    def forward(self, rows: Tensor) -> Tensor:
        offsets = torch.arange(rows.numel() + 1, dtype=torch.int64, device=rows.device)
        out: Tensor = self._tbe(rows.to(torch.int64), offsets)
        return out if torch.is_grad_enabled() and self.training else out.detach()

    def step(self, learning_rate: float, scale: float = 1.0) -> None:
        if scale != 1.0:
            raise ValueError("the fbgemm kernel has already stepped: its gradients cannot be scaled")

    def set_learning_rate(self, learning_rate: float) -> None:
        self._tbe.set_learning_rate(learning_rate)


class RowAverage:
    """Exponential moving average of a table, brought up to date only on the rows touched.

    Between two updates a row is constant, so the average of the steps between has a closed form and the result
    equals the average taken over the whole table at every step.  The sum starts at 0 and is divided by the weight it
    has gathered, so that the initial weights have no part in it.

    Args:
        weights: the [rows, width] table.
        decay: share of the average kept a step.
    """

    def __init__(self, weights: Tensor, decay: float) -> None:
        self.decay = decay
        self.mean = torch.zeros_like(weights)
        self.last = torch.zeros(len(weights), dtype=torch.int32)
        self.steps = torch.zeros((), dtype=torch.int32)

    def state(self) -> dict[str, Tensor]:
        """The live state tensors by name."""
        return {"mean": self.mean, "last": self.last, "steps": self.steps}

    def update(self, index: Tensor, old: Tensor, new: Tensor) -> None:
        """Takes in one step that moved the rows `index` from `old` to `new` and left the others alone."""
        self.steps += 1
        mean = self._caught_up(self.mean.index_select(0, index), old, self.last.index_select(0, index), 1)
        self.mean.index_copy_(0, index, mean.lerp_(new, 1 - self.decay))
        self.last.index_fill_(0, index, int(self.steps))

    def materialise(self, weights: Tensor) -> Tensor:
        """The average of the whole table as of the last step, [rows, width]; the weights if there was none."""
        if not self.steps:
            return weights.clone()
        return self._caught_up(self.mean, weights, self.last, 0) / (1 - self.decay ** int(self.steps))

    def _caught_up(self, mean: Tensor, weights: Tensor, last: Tensor, before: int) -> Tensor:
        missed = (self.steps - before - last).to(torch.float32)
        return weights + (mean - weights) * torch.pow(self.decay, missed).unsqueeze(1)


def sum_by_row(rows: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Sums the gradients of equal rows, in a fixed order.

    Args:
        rows: [n] int32.
        grad: [n, width].

    Returns:
        The distinct rows ascending [U] int32, and their sums [U, width].

    >>> r, g = sum_by_row(torch.tensor([7, 2, 7], dtype=torch.int32), torch.tensor([[1.0], [2.0], [4.0]]))
    >>> r.tolist(), g.tolist()
    ([2, 7], [[2.0], [5.0]])
    """
    ordered, permutation = torch.sort(rows, stable=True)
    unique, counts = torch.unique_consecutive(ordered, return_counts=True)
    offsets = torch.zeros(unique.numel() + 1, dtype=torch.int32, device=rows.device)
    torch.cumsum(counts, 0, out=offsets[1:])
    # embedding_bag over the permuted gradients is a segment sum, 5-10x faster than index_add_ on a CPU
    sums = F.embedding_bag(
        permutation.to(torch.int32), grad.contiguous(), offsets, mode="sum", include_last_offset=True
    )
    return unique, sums


def make_table(rows: int, width: int, optimizer: TableOptimizer, kernel: str) -> Table:
    """The table on the kernel asked for; `auto` is torch.

    Raises:
        ConfigError: fbgemm is asked for and not installed, or lacks the optimizer; or there is no memory for the table.
    """
    try:
        if kernel == "fbgemm":
            return FbgemmTable(rows, width, optimizer)
        return TorchTable(rows, width, optimizer)
    except (RuntimeError, MemoryError) as error:
        raise ConfigError(
            "the table and its optimizer's state do not fit into memory",
            field="embedding.rows",
            found=f"{rows:,} rows x {width} floats: {rows * width * 4:,} bytes, before the optimizer's state",
            mend="lower embedding.rows or embedding.width",
        ) from error


@functools.cache
def fbgemm_available() -> bool:
    """Whether fbgemm-gpu can be imported."""
    try:
        import fbgemm_gpu  # noqa: F401
    except ImportError:
        return False
    return True


def _table_batched_embedding(rows: int, width: int, optimizer: TableOptimizer) -> Any:
    if not fbgemm_available():
        raise ConfigError(
            "fbgemm is not installed",
            field="embedding.kernel",
            found="fbgemm",
            mend="pip install 'recsys-embeddings[torchrec]' on Linux, or set it to torch",
        )
    from fbgemm_gpu.split_embedding_configs import EmbOptimType, SparseType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import (
        BoundsCheckMode,
        EmbeddingLocation,
        PoolingMode,
    )
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        SplitTableBatchedEmbeddingBagsCodegen,
    )

    kinds = {"sgd": EmbOptimType.EXACT_SGD, "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD}
    return SplitTableBatchedEmbeddingBagsCodegen(
        [(rows, width, EmbeddingLocation.HOST, ComputeDevice.CPU)],
        optimizer=kinds[optimizer.name],
        eps=optimizer.eps,
        pooling_mode=PoolingMode.SUM,
        bounds_check_mode=BoundsCheckMode.NONE,
        weights_precision=SparseType.FP32,
    )
