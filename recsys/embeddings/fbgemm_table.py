"""The table on FBGEMM's table-batched embedding, TorchRec's kernel, on the CPU: a second one beside our own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from features.errors import ConfigError
from recsys.embeddings.formats import RowFormat
from recsys.embeddings.fused_table import FusedTable
from recsys.embeddings.table import TableOptimizer

_KINDS = {"sgd": "EXACT_SGD", "rowwise_adagrad": "EXACT_ROWWISE_ADAGRAD"}


class FbgemmTable(FusedTable):
    """FBGEMM's table-batched embedding, which updates itself inside its own `backward`.

    SGD and row-wise Adagrad on a CPU; fp32.  The width must be a multiple of 4.
    """

    def __init__(self, rows: int, format: RowFormat, optimizer: TableOptimizer) -> None:
        super().__init__(rows, format, optimizer)
        if format.name != "fp32":
            raise ConfigError(
                "the fbgemm kernel does not train this format on a CPU",
                field="embedding.format",
                found=format.name,
                expected="fp32",
                mend="set it to fp32, or embedding.kernel to auto",
            )
        if format.width % 4:
            raise ConfigError(
                "the fbgemm kernel needs a width that is a multiple of 4",
                field="embedding.width",
                found=format.width,
                mend="choose such a width, or set embedding.kernel to auto",
            )
        if optimizer.name not in _KINDS:
            raise ConfigError(
                "the fbgemm kernel does not have this optimizer on a CPU",
                field="train.table_optimizer",
                found=optimizer.name,
                expected="rowwise_adagrad or sgd",
                mend="change the optimizer, or set embedding.kernel to auto",
            )
        if optimizer.l2:
            raise ConfigError(
                "the fbgemm kernel has no such pull towards 0",
                field="train.table_l2",
                found=optimizer.l2,
                mend="leave it out, or set embedding.kernel to auto",
            )
        self._tbe = _table_batched_embedding(rows, format.width, optimizer)

    def values(self, rows: Tensor | None = None) -> Tensor:
        weights = self.stored()
        return weights.clone() if rows is None else weights.index_select(0, rows)

    def assign(self, rows: Tensor | None, values: Tensor) -> None:
        if rows is None:
            self.stored().copy_(values)
        else:
            self.stored().index_copy_(0, rows.to(torch.int64), values)

    def stored(self) -> Tensor:
        weights: Tensor = self._tbe.split_embedding_weights()[0]
        return weights.detach()

    def load_stored(self, stored: Tensor) -> None:
        self.stored().copy_(stored)

    def optimizer_state(self) -> dict[str, Tensor]:
        steps = {"step": self._steps}  # as the other kernels have it, so that checkpoints fit all of them
        return (
            steps if self.optimizer.name == "sgd" else {**steps, "momentum": self._tbe.split_optimizer_states()[0][0]}
        )

    def forward(self, rows: Tensor) -> Tensor:
        offsets = torch.arange(rows.numel() + 1, dtype=torch.int64, device=rows.device)
        return self._hand_out(self._tbe(rows.to(torch.int64), offsets))

    def set_learning_rate(self, learning_rate: float) -> None:
        """The rate of the next step; FBGEMM takes it in at the lookup, so it is told before."""
        self._tbe.set_learning_rate(learning_rate)


def _table_batched_embedding(rows: int, width: int, optimizer: TableOptimizer) -> Any:
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

    return SplitTableBatchedEmbeddingBagsCodegen(
        [(rows, width, EmbeddingLocation.HOST, ComputeDevice.CPU)],
        optimizer=EmbOptimType[_KINDS[optimizer.name]],
        eps=optimizer.eps,
        pooling_mode=PoolingMode.SUM,
        bounds_check_mode=BoundsCheckMode.NONE,
        weights_precision=SparseType.FP32,
    )
