"""Exponential moving average of the table, kept only where rows move."""

from __future__ import annotations

import torch
from torch import Tensor

from recsys.hugepages import zeros


class RowAverage:
    """Exponential moving average of a table, brought up to date only on the rows touched.

    Between two updates a row is constant, so the average of the steps between has a closed form and the result
    equals the average taken over the whole table at every step.  The sum starts at 0 and is divided by the weight it
    has gathered, so that the initial weights have no part in it.

    Args:
        rows: number of rows, R.
        width: values a row, D.
        decay: share of the average kept a step.
    """

    def __init__(self, rows: int, width: int, decay: float) -> None:
        self.decay = decay
        self.mean = zeros(rows, width)
        self.last = zeros(rows, dtype=torch.int32)
        self.steps = torch.zeros((), dtype=torch.int32)

    def state(self) -> dict[str, Tensor]:
        """The live state tensors by name."""
        return {"mean": self.mean, "last": self.last, "steps": self.steps}

    def update(self, index: Tensor, old: Tensor, new: Tensor) -> None:
        """Takes in one step that moved the rows `index` from `old` to `new` and left the others alone.

        In a low-bit table `new` may be the values before they were rounded: on average they are the same.
        """
        self.steps += 1
        mean = self._caught_up(self.mean.index_select(0, index), old, self.last.index_select(0, index), 1)
        self.mean.index_copy_(0, index, mean.lerp_(new, 1 - self.decay))
        self.last.index_fill_(0, index, int(self.steps))

    def materialise(self, weights: Tensor) -> Tensor:
        """The average of the whole table as of the last step, [R, D]; the weights if there was none."""
        if not self.steps:
            return weights.clone()
        return self._caught_up(self.mean, weights, self.last, 0) / (1 - self.decay ** int(self.steps))

    def _caught_up(self, mean: Tensor, weights: Tensor, last: Tensor, before: int) -> Tensor:
        missed = (self.steps - before - last).to(torch.float32)
        return weights + (mean - weights) * torch.pow(self.decay, missed).unsqueeze(1)
