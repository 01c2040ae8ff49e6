"""Exponential moving average of a whole model: the network at every step, the table on the rows touched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from recsys.embeddings.average import RowAverage
from recsys.embeddings.torch_table import TorchTable
from recsys.models.ctr import CTRModel


class ModelAverage:
    """The average of a model's weights over its steps (Polyak and Juditsky 1992, exponentially weighted).

    As in Adam, sums start at 0 and are divided by `1 - decay ** steps`: the initial weights have no part in it, so
    that a short run is averaged as truly as a long one.

    Args:
        model: averaged; its table tells the average which rows moved.
        decay: share kept a step.
    """

    def __init__(self, model: CTRModel, decay: float) -> None:
        self.decay = decay
        self._model = model
        self._network = {name: torch.zeros_like(p, requires_grad=False) for name, p in model.dense_parameters().items()}
        self._steps = torch.zeros((), dtype=torch.int32)
        table = model.embedding.table
        assert isinstance(table, TorchTable)
        self._table = table
        self._rows = table.average = RowAverage(table.rows, table.width, decay)

    @property
    def begun(self) -> bool:
        """Whether there was a step: before, there is nothing to average."""
        return int(self._steps) > 0

    def state(self) -> dict[str, Tensor]:
        """The live state tensors by name."""
        return {
            "steps": self._steps,
            **{f"network.{name}": t for name, t in self._network.items()},
            **{f"table.{name}": t for name, t in self._rows.state().items()},
        }

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the network after a step (the table has told of its own)."""
        self._steps += 1
        parameters = [p.detach() for p in self._model.dense_parameters().values()]
        torch._foreach_lerp_(list(self._network.values()), parameters, 1 - self.decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within, the model holds the averaged weights; after, its own again."""
        table, parameters = self._table, self._model.dense_parameters()
        own_table, own = table.weight.clone(), {name: p.detach().clone() for name, p in parameters.items()}
        gathered = 1 - self.decay ** int(self._steps)
        with torch.no_grad():
            table.assign(None, self._rows.materialise(table.values()))
            for name, parameter in parameters.items():
                parameter.copy_(self._network[name] / gathered)
        try:
            yield
        finally:
            with torch.no_grad():
                table.weight.copy_(own_table)
                for name, parameter in parameters.items():
                    parameter.copy_(own[name])
