"""The table that all features share, as the module above and the trainer see it: rows out, one coalesced update in.

`TorchTable`, `NumbaTable` and `FbgemmTable` are its kernels; `recsys.embeddings.kernel` chooses.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from features.errors import ConfigError
from recsys.embeddings.average import RowAverage
from recsys.embeddings.formats import SHARED_INT8, RowFormat

OptimizerName = Literal["sgd", "rowwise_adagrad", "adam", "rowwise_adam", "rmsprop", "rowwise_rmsprop"]


@dataclass(frozen=True)
class TableOptimizer:
    """Settings of the table's optimizer.

    sgd: `w -= lr * g`.
    rowwise_adagrad: `m += mean(g**2); w -= lr * g / (sqrt(m) + eps)`, one m a row (Duchi et al. 2011; row-wise as in
    FBGEMM).
    adam: Adam whose moments move only when a row is touched, bias-corrected by the step number, as
    `torch.optim.SparseAdam`.
    rmsprop: Adam over the whole table at every step with beta1 = 0, to the last row: a second moment that went on
    decaying while a row was not touched is caught up with when it is, so that rare rows take larger steps.
    rowwise_adam, rowwise_rmsprop: one second moment a row, of the mean square of its gradient.
    """

    name: OptimizerName = "rowwise_adagrad"
    eps: float = 1e-8
    beta1: float = 0.9
    beta2: float = 0.999
    l2: float = 0.0
    """Pull towards 0: `l2 * w` is added to the gradient of every row touched, once a step."""
    master: bool = False
    """Train on an fp32 copy of a table of another format, rounded for every lookup (quantisation-aware training with
    a straight-through gradient); else the stored rows themselves are trained, with stochastic rounding."""


class Table(nn.Module, ABC):
    """A table of rows in some format that updates itself.

    Call it for rows while training, call `backward` on the loss, then `step`.

    Args:
        rows: number of rows, R.
        format: how a row of D values is stored; one whose rows share a step is for reading alone.
        optimizer: how `step` updates.
    """

    clips = True
    """Whether `gradients` can be had before the step, for clipping by the global norm."""
    compiled = False
    """Whether it runs on kernels compiled by numba; addressing then does, too."""

    def __init__(self, rows: int, format: RowFormat, optimizer: TableOptimizer) -> None:
        super().__init__()
        self.rows = rows
        self.width = format.width
        self.format = format
        self.optimizer = optimizer
        self.average: RowAverage | None = None

    def require_trainable(self) -> None:
        """Refuses a format that is for reading alone.

        Raises:
            ConfigError: all rows share one step.
        """
        if self.format.step is not None:
            raise ConfigError(
                "a table whose rows share one step is for serving: its levels could not follow growing values",
                field="embedding.format",
                found=f"{SHARED_INT8}, a step of {self.format.step:.6g} for all rows",
                expected="a format with a scale a row, or a float one",
                mend="train the model it was converted from, or a fresh one that starts from it (train.warm_start)",
            )

    @abstractmethod
    def forward(self, rows: Tensor) -> Tensor:
        """Rows [n] int32 -> embeddings [n, D] fp32."""

    @abstractmethod
    def values(self, rows: Tensor | None = None) -> Tensor:
        """Values [n, D] fp32 of rows [n], of all rows when None; with a master copy, its values. A copy."""

    @abstractmethod
    def assign(self, rows: Tensor | None, values: Tensor) -> None:
        """Sets rows [n] (all when None) to values [n, D], rounded to nearest."""

    @abstractmethod
    def stored(self) -> Tensor:
        """The table as it is serialised: [R, ...] in its format; the live tensor unless there is a master copy."""

    @abstractmethod
    def load_stored(self, stored: Tensor) -> None:
        """Takes in what `stored` gave."""

    def set_learning_rate(self, learning_rate: float) -> None:
        """The rate of the step inside the next backward, for kernels that step there."""

    @abstractmethod
    def step(self, learning_rate: float, scale: float = 1.0) -> None:
        """Applies one optimizer step to the rows looked up since the last one; gradients are first multiplied by scale.

        A row looked up several times gets one update with the sum of its gradients.
        """

    @abstractmethod
    def discard(self) -> None:
        """Forgets the rows looked up since the last step: neither they nor the optimizer's state change."""

    @abstractmethod
    def gradient_norm(self, coalesced: bool) -> Tensor:
        """Norm of the gradient of the rows looked up since the last step, a scalar; 0 when there is none.

        Args:
            coalesced: of the sums over equal rows, which is what is clipped; else lookup by lookup, which is quicker
                and tells as well whether all is finite.
        """

    @abstractmethod
    def optimizer_state(self) -> dict[str, Tensor]:
        """State tensors by name, to be stored in a checkpoint beside `stored`; they are the live tensors."""

    @property
    def training_bytes(self) -> int:
        """Bytes of everything a row has while it trains: weights, master copy, optimizer state and moving average."""
        state = self.optimizer_state()
        tensors = list(state.values())
        if "master" not in state:
            tensors.append(self.stored())
        if self.average is not None:
            tensors += self.average.state().values()
        return sum(t.numel() * t.element_size() for t in tensors)

    def initialise(self, scale: float, generator: torch.Generator) -> None:
        """Fills the table uniformly in [-scale, scale]."""
        for start in range(0, self.rows, _INITIALISED_AT_ONCE):
            rows = torch.arange(start, min(start + _INITIALISED_AT_ONCE, self.rows))
            self.assign(rows, torch.empty(len(rows), self.width).uniform_(-scale, scale, generator=generator))


_INITIALISED_AT_ONCE = 1 << 16
