"""The table on plain torch operations: every format and optimizer, no compiler.  Its state lies on the CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.embeddings.formats import RowFormat, rounding_noise
from recsys.embeddings.table import Table, TableOptimizer
from recsys.hugepages import zeros


class _Lookup(torch.autograd.Function):
    """Gathers rows; the gradient stays with the table, which updates itself in `step`."""

    @staticmethod
    def forward(ctx, anchor: Tensor, rows: Tensor, table: TorchTable) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.lookup = [rows, None]
        table.pending.append(ctx.lookup)
        return table.gather(rows)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[None, None, None]:  # type: ignore[no-untyped-def]
        ctx.lookup[1] = grad
        return None, None, None


class TorchTable(Table):
    """The pure torch kernel.  Equal inputs give equal bits, whatever the number of threads."""

    weight: Tensor
    """[R, ...] rows in their format, or [R, D] fp32 with a master copy."""

    def __init__(self, rows: int, format: RowFormat, optimizer: TableOptimizer) -> None:
        super().__init__(rows, format, optimizer)
        width = format.width
        # autograd calls back only for an input that wants a gradient; this one has no elements
        self.anchor = nn.Parameter(torch.zeros(0))
        self.rounds = optimizer.master and format.name != "fp32"
        self.register_buffer("weight", zeros(rows, width) if self.rounds else format.empty(rows))
        self.pending: list[list[Tensor | None]] = []
        """[rows [n] int32, gradient [n, D] or None] of every lookup since the last step, in the order of lookups."""
        self._coalesced: tuple[Tensor, Tensor] | None = None
        self.state: dict[str, Tensor] = {"step": torch.zeros((), dtype=torch.int64)}
        second = (rows,) if optimizer.name.startswith("rowwise") else (rows, width)
        if optimizer.name == "rowwise_adagrad":
            self.state["momentum"] = zeros(*second)
        elif optimizer.name != "sgd":
            self.state["second"] = zeros(*second)
            if optimizer.name.endswith("adam"):
                self.state["first"] = zeros(rows, width)
            else:
                self.state["last"] = zeros(rows, dtype=torch.int32)

    def forward(self, rows: Tensor) -> Tensor:
        if torch.is_grad_enabled() and self.training:
            self.require_trainable()
            out: Tensor = _Lookup.apply(self.anchor, rows, self)
            return out
        return self.gather(rows)

    def gather(self, rows: Tensor) -> Tensor:
        """Rows [n] -> what lookups of them give, [n, D] fp32."""
        found = self.weight.index_select(0, rows)
        return self.format.round(found) if self.rounds else self.format.decode(found)

    def values(self, rows: Tensor | None = None) -> Tensor:
        weight = self.weight if rows is None else self.weight.index_select(0, rows)
        if rows is not None and (self.rounds or self.format.name == "fp32"):
            return weight
        return weight.clone() if self.rounds else self.format.decode(weight)

    def assign(self, rows: Tensor | None, values: Tensor) -> None:
        with torch.no_grad():
            if rows is None:
                self.weight.copy_(values if self.rounds else self.format.encode_table(values))
            else:
                stored = values if self.rounds else self.format.encode(values)
                self.weight.index_copy_(0, rows.to(torch.int64), stored)

    def stored(self) -> Tensor:
        return self.format.encode_table(self.weight) if self.rounds else self.weight

    def load_stored(self, stored: Tensor) -> None:
        self.weight.copy_(self.format.decode(stored) if self.rounds else stored)

    def optimizer_state(self) -> dict[str, Tensor]:
        return {**self.state, "master": self.weight} if self.rounds else self.state

    def gradients(self) -> tuple[Tensor, Tensor] | None:
        """The rows touched since the last step, ascending [U] int32, and the sums of their gradients [U, D].

        Returns:
            None when nothing was looked up, or no gradient reached the table.
        """
        if self._coalesced is None:
            joined = self._take_pending()
            self._coalesced = sum_by_row(*joined) if joined is not None else None
        return self._coalesced

    def gradient_norm(self, coalesced: bool) -> Tensor:
        if coalesced:
            touched = self.gradients()
            return torch.zeros(()) if touched is None else torch.linalg.vector_norm(touched[1])
        norms = [torch.linalg.vector_norm(grad) for _, grad in self.pending if grad is not None]
        return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())

    def discard(self) -> None:
        self.pending = []
        self._coalesced = None

    @torch.no_grad()
    def step(self, learning_rate: float, scale: float = 1.0) -> None:
        touched = self.gradients()
        self._coalesced = None
        if touched is None:
            return
        rows, grad = touched
        step = int(self.state["step"].add_(1))
        if scale != 1.0:
            grad = grad * scale
        index = rows.to(torch.int64)
        stored = self.weight.index_select(0, rows)
        old = stored if self.rounds else self.format.decode(stored)
        if self.optimizer.l2:
            grad = torch.add(grad, old, alpha=self.optimizer.l2)
        new = old - self._direction(index, grad, learning_rate, step)
        if self.rounds or self.format.name == "fp32":
            self.weight.index_copy_(0, index, new)
        else:
            noise = rounding_noise(rows, self.width, step)
            self.weight.index_copy_(0, index, self.format.encode(new, noise, stored))
        if self.average is not None:
            self.average.update(index, old, new)

    @torch.no_grad()
    def hand_over(self, source: Tensor, target: Tensor) -> None:
        """Lets rows begin anew with the values of others.

        Their moving average is copied too; their optimizer's state is that of a row never touched, so that they learn
        as fast as one.

        Args:
            source: [n] int64.
            target: [n] int64, distinct, none of them a source.
        """
        copied = [self.weight] if self.average is None else [self.weight, self.average.mean, self.average.last]
        for tensor in copied:
            tensor.index_copy_(0, target, tensor.index_select(0, source))
        for tensor in self.state.values():
            if tensor.dim():
                tensor.index_fill_(0, target, 0)

    def _take_pending(self) -> tuple[Tensor, Tensor] | None:
        """Rows [n] and gradients [n, D] of all lookups that a gradient reached; there are none after."""
        pending = [(rows, grad) for rows, grad in self.pending if rows is not None and grad is not None]
        self.pending = []
        if len(pending) <= 1:
            return pending[0] if pending else None
        return torch.cat([rows for rows, _ in pending]), torch.cat([grad for _, grad in pending])

    def _direction(self, index: Tensor, grad: Tensor, learning_rate: float, step: int) -> Tensor:
        """What to subtract from the rows; moves the optimizer's state on."""
        o = self.optimizer
        if o.name == "sgd":
            return grad * learning_rate
        square = grad.square()
        if o.name.startswith("rowwise"):
            square = square.mean(1)
        if o.name == "rowwise_adagrad":
            momentum = self.state["momentum"].index_select(0, index).add_(square)
            self.state["momentum"].index_copy_(0, index, momentum)
            return grad * (learning_rate / momentum.sqrt_().add_(o.eps)).unsqueeze(1)
        second = self.state["second"].index_select(0, index)
        if o.name.endswith("rmsprop"):
            missed = (step - self.state["last"].index_select(0, index)).to(torch.float32)
            kept = torch.pow(o.beta2, missed)
            second.mul_(kept if second.ndim == 1 else kept.unsqueeze(1))
            self.state["last"].index_fill_(0, index, step)
        else:
            second.mul_(o.beta2)
        second.add_(square, alpha=1 - o.beta2)
        self.state["second"].index_copy_(0, index, second)
        divisor = second.sqrt_().div_((1 - o.beta2**step) ** 0.5).add_(o.eps)
        if o.name.endswith("adam"):
            first = self.state["first"].index_select(0, index).lerp_(grad, 1 - o.beta1)
            self.state["first"].index_copy_(0, index, first)
            grad = first.div_(1 - o.beta1**step)
        return grad * learning_rate / (divisor if divisor.ndim == 2 else divisor.unsqueeze(1))


def sum_by_row(rows: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Sums the gradients of equal rows, in a fixed order.

    Args:
        rows: [n] int32.
        grad: [n, D].

    Returns:
        The distinct rows ascending [U] int32, and their sums [U, D].

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
