"""The trainer's loop in several processes: a part of every batch and of the table each, the network in all alike."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from features.batch import Batch
from features.errors import ConfigError
from features.layout import Layout
from recsys.embeddings.config import EmbeddingConfig
from recsys.embeddings.plan import EmbeddingPlan
from recsys.embeddings.sharded import ShardedEmbedding, ShardedTable, divisible, torchrec_available
from recsys.models.config import ModelConfig
from recsys.models.ctr import CTRModel
from recsys.processes import Processes
from recsys.tensorfile import write_tensors
from recsys.training.config import TrainConfig
from recsys.training.listener import TrainingListener
from recsys.training.prediction import Predictions
from recsys.training.sharded_checkpoints import ShardedCheckpoints
from recsys.training.teacher import Teacher
from recsys.training.trainer import Trainer
from recsys.versions import check_versions

if TYPE_CHECKING:
    from features.loading.loader import Loader


class DistributedTrainer(Trainer):
    """Trains a model of `sharded_model` in all processes of a group.

    The loss is the mean over the whole step, gradients are averaged over the processes, metrics are taken over all
    rows: but for rounding, the numbers are those of a single process.  Every process passes its own part of the
    batches (`Loader` with rank and world_size).

    The same config, seed, data, threads and number of processes give the same bits, whether or not the run was cut
    and resumed in between.

    Args:
        model: of `sharded_model`; holds the best epoch's weights at the end.
        config: how.
        seed: of dropout.
        folder: where checkpoints go, on storage that all processes share.
        processes: who takes part.
        listener: told about progress; in the first process only.
        teacher: learned from beside the labels.
    """

    def __init__(
        self,
        model: CTRModel,
        config: TrainConfig,
        *,
        seed: int,
        folder: Path,
        processes: Processes,
        listener: TrainingListener | None = None,
        teacher: Teacher | None = None,
    ) -> None:
        super().__init__(model, config, seed=seed, folder=folder, listener=listener, teacher=teacher)
        self._processes = processes
        self._checkpoints = ShardedCheckpoints(folder, processes)

    def _step(self, batch: Batch, factor: float) -> tuple[float, float, int]:
        # Dropout is a function of seed, step and process: nothing of it need be in a checkpoint.
        torch.manual_seed(((self.seed << 32) + self._progress.step * 65_536 + self._processes.rank) % (1 << 63))
        return super()._step(batch, factor)

    def _loss(self, batch: Batch) -> tuple[Tensor, float, float, int]:
        batch = self._taught(batch)
        assert batch.labels is not None
        losses = F.binary_cross_entropy_with_logits(self.model.logits(batch), batch.labels, reduction="none").mean(1)
        if batch.weight is not None:
            losses = losses * batch.weight
        weight = float(len(batch)) if batch.weight is None else batch.weight.double().sum()
        sums = torch.tensor([losses.detach().double().sum(), weight, len(batch)], dtype=torch.float64)
        total, weights, rows = self._processes.summed(sums).tolist()
        weights = max(weights, 1e-12)
        # The gradients of all processes will be averaged: the share of one counts as often as there are processes.
        return losses.sum() * (self._processes.count / weights), total / weights, weights, int(rows)

    def _share_gradients(self) -> None:
        grads = self._gradients()
        mean = self._processes.summed(torch.cat([g.flatten() for g in grads])).div_(self._processes.count)
        for grad, shared in zip(grads, mean.split([g.numel() for g in grads]), strict=True):
            grad.copy_(shared.view_as(grad))

    def _gradient_norm(self) -> float:
        """As `Trainer._gradient_norm` lookup by lookup, over all processes: they skip a step together or not at all."""
        count = self._processes.count
        network = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(self._gradients()))).double()
        table = self.model.embedding.table.gradient_norm(coalesced=False).double()
        # The network's gradient is the same in all; of the table's, which will be averaged, everyone has a part.
        return float(self._processes.summed(network.square() / count + (table / count).square()).sqrt())

    def _predict(self, valid: Loader) -> Predictions:
        """The predictions of all rows, in the order of a single process, in every process."""
        own = super()._predict(valid)
        order = self._processes.rows_of_all(valid.positions()).argsort()
        whole: dict[str, np.ndarray | None] = {}
        for field in fields(Predictions):
            part = getattr(own, field.name)
            rows = None if part is None else self._processes.rows_of_all(torch.from_numpy(part))[order]
            whole[field.name] = None if rows is None else rows.numpy()
        return Predictions(**whole)  # type: ignore[arg-type]

    def _save_best(self, state: dict[str, Any]) -> None:
        table = self.model.embedding.table
        assert isinstance(table, ShardedTable)
        tensors = {**self.model.tensors(), "table": table.values()}
        self._processes.first(lambda: write_tensors(self._checkpoints.best, tensors, state))

    def _tensors(self) -> dict[str, Tensor]:
        return {name: t for name, t in super()._tensors().items() if name != "random_state"}


def sharded_model(
    layout: Layout,
    plan: EmbeddingPlan,
    config: ModelConfig,
    *,
    seed: int,
    train: TrainConfig,
    processes: Processes,
) -> CTRModel:
    """A model whose table is divided over the processes, with the initial weights of a single process.

    Args:
        layout: the encoded features.
        plan: where their rows lie.
        config: the network.
        seed: of all initial weights.
        train: says the table's optimizer and how it is divided.
        processes: who shares it; all make the model together.

    Raises:
        ConfigError: the table does not fit into the processes' memory.
    """
    own = -(-train.batch_size // processes.count)
    table = ShardedTable(plan, train.optimizer_of_table, train.distributed.sharding, own, processes)
    embedding = ShardedEmbedding(plan, layout.bag_poolings, table, processes)
    return CTRModel(layout, plan, config, seed=seed, embedding=embedding)


def check_distributed(train: TrainConfig, embedding: EmbeddingConfig, plan: EmbeddingPlan, count: int) -> None:
    """Refuses what `count` processes cannot do.

    Raises:
        ConfigError: the setting, and what to do about it.
    """
    check_versions()
    if not torchrec_available():
        raise ConfigError(
            "training in several processes needs TorchRec, which is not installed",
            field="train.distributed",
            mend="pip install 'recsys-embeddings[torchrec]' on Linux, or start without torchrun",
        )
    alone = "or start without torchrun"
    if not plan.lookups:
        raise ConfigError(
            "there is no table to divide over processes",
            field="embedding.chunks",
            found="every id feature dropped",
            mend=f"give some feature a chunk, {alone}",
        )
    if embedding.kernel not in ("auto", "fbgemm"):
        raise ConfigError(
            f"the {embedding.kernel} kernel works in one process only",
            field="embedding.kernel",
            found=embedding.kernel,
            expected="auto or fbgemm",
            mend=f"leave it out, {alone}",
        )
    if embedding.width % 4:
        raise ConfigError(
            "several processes need a width that is a multiple of 4",
            field="embedding.width",
            found=embedding.width,
            mend=f"choose such a width, {alone}",
        )
    if embedding.format != "fp32":
        raise ConfigError(
            "several processes have no low-bit rows",
            field="embedding.format",
            found=embedding.format,
            expected="fp32",
            mend=f"change it, {alone}",
        )
    if plan.hot_slots:
        raise ConfigError(
            "several processes have no hot region: each sees the gradients of its own lookups only",
            field="embedding.hot",
            found=", ".join(f.name for f in plan.features if f.hot_slots),
            mend=f"leave it empty, {alone}",
        )
    if train.table_optimizer not in ("rowwise_adagrad", "sgd"):
        raise ConfigError(
            "a table in several processes does not have this optimizer",
            field="train.table_optimizer",
            found=train.table_optimizer,
            expected="rowwise_adagrad or sgd",
            mend=f"change it, {alone}",
        )
    if train.distributed.sharding == "column_wise" and train.table_optimizer != "sgd":
        raise ConfigError(
            "row-wise Adagrad has one state a row, which columns in several processes cannot share",
            field="train.distributed.sharding",
            found="column_wise",
            expected="row_wise, table_wise or auto",
            mend="change it, or set train.table_optimizer to sgd",
        )
    if train.distributed.sharding == "row_wise" and not divisible(plan.rows, count):
        raise ConfigError(
            "the table has too few rows for a part in every process",
            field="train.distributed.sharding",
            found=f"row_wise, {plan.rows} rows, {count} processes",
            mend="set it to auto or table_wise, or raise embedding.rows",
        )
    inside = "their table steps inside FBGEMM"
    for name, why in {
        "table_l2": inside,
        "clip_norm": inside,
        "ema": inside,
        "table_master": "their table is fp32",
    }.items():
        value = getattr(train, name)
        if value:
            raise ConfigError(
                f"cannot be had in several processes: {why}",
                field=f"train.{name}",
                found=value,
                mend=f"leave it out, {alone}",
            )
