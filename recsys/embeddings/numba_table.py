"""The table on kernels compiled by numba: the fastest on a CPU, in every format."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recsys.embeddings import numba_kernels as kernels
from recsys.embeddings.formats import BEST_STEP, RowFormat
from recsys.embeddings.torch_table import TorchTable

# the dtype a kernel tells a format by
_VIEWS = {"fp32": torch.float32, "bf16": torch.uint16, "fp16": torch.int16, "int8": torch.int8}
_OPTIMIZERS = {
    "sgd": kernels.SGD,
    "rowwise_adagrad": kernels.ADAGRAD,
    "adam": kernels.ADAM,
    "rowwise_adam": kernels.ADAM,
    "rmsprop": kernels.RMSPROP,
    "rowwise_rmsprop": kernels.RMSPROP,
}
_NO_ROWS, _NO_STEPS = np.empty((0, 1), np.float32), np.empty(0, np.int32)


class NumbaTable(TorchTable):
    """`TorchTable` with its gather and its step compiled.  CPU only.

    Equal inputs give equal bits, whatever the number of threads.  Lookups are bit-equal to those of `TorchTable`,
    updates equal but for the order in which a row's squares are summed.
    """

    compiled = True

    @functools.cached_property
    def _bits(self) -> np.uint64 | np.float32:
        return bits_or_step(self.format)

    def gather(self, rows: Tensor) -> Tensor:
        out = torch.empty(rows.numel(), self.width)
        workers = kernels.workers_for(rows.numel())
        kernels.gather(self._weight(), self._bits, rows.contiguous().numpy(), out.numpy(), workers)
        if not self.rounds:
            return out
        if not self.format.is_integer:
            return self.format.round(out)
        kernels.round_rows(out.numpy(), self._bits, BEST_STEP.get(self.format.bits, math.inf), workers)
        return out

    @torch.no_grad()
    def step(self, learning_rate: float, scale: float = 1.0) -> None:
        if self._coalesced is not None:
            (rows, grad), self._coalesced = self._coalesced, None
            order = torch.arange(len(rows))
        else:
            joined = self._take_pending()
            if joined is None:
                return
            rows, order = torch.sort(joined[0], stable=True)
            grad = joined[1].contiguous()
        o, average = self.optimizer, self.average
        step = int(self.state["step"].add_(1))
        if average is not None:
            average.steps += 1
        kernels.update(
            self._weight(),
            self._bits,
            rows.numpy(),
            order.numpy(),
            grad.numpy(),
            _OPTIMIZERS[o.name],
            np.array([learning_rate, o.eps, o.beta1, o.beta2, o.l2, scale], np.float32),
            step,
            self._moments("first"),
            self._moments("momentum" if o.name == "rowwise_adagrad" else "second"),
            self.state["last"].numpy() if "last" in self.state else _NO_STEPS,
            average.mean.numpy() if average is not None else _NO_ROWS,
            average.last.numpy() if average is not None else _NO_STEPS,
            int(average.steps) if average is not None else 0,
            average.decay if average is not None else 0.0,
            kernels.workers_for(len(rows)),
        )

    def _weight(self) -> Any:
        return self.weight.numpy() if self.rounds else typed(self.weight, self.format)

    def _moments(self, name: str) -> Any:
        state = self.state.get(name)
        if state is None:
            return _NO_ROWS
        return (state if state.ndim == 2 else state.unsqueeze(1)).numpy()


def bits_or_step(format: RowFormat) -> np.uint64 | np.float32:
    """What the kernels must know of a format beside the dtype: the bits of a code, or the step that all rows share."""
    return np.uint64(format.bits) if format.step is None else np.float32(format.step)


def typed(stored: Tensor, format: RowFormat) -> np.ndarray:
    """Stored rows as an array by whose dtype the kernels tell the format; the same memory."""
    array: np.ndarray = stored.view(_VIEWS.get(format.name, torch.uint8)).numpy()
    return array
