"""Trainings whose losses are compared step by step: in one process, or under torchrun in several.

The argument is a JSON file: the prepared `store` and a list of `cases`, each with `folder`, `embedding`, `model` and
`train` (configs), `seed`, and perhaps `resume` and `cut`, the step after which the run is given up. The first process
ends its output with a JSON object: `results`, for every case its losses by step, validation metrics and the parts of
the table.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from features.loading.loader import Loader
from features.storage.store import Store
from recsys.embeddings import EmbeddingConfig, plan_embedding
from recsys.embeddings.sharded import ShardedTable
from recsys.models import CTRModel, ModelConfig
from recsys.processes import Processes, joined, leave
from recsys.training import TrainConfig, Trainer, TrainResult
from recsys.training.distributed import DistributedTrainer, check_distributed, sharded_model


class Cut(Exception):
    """The run is given up here."""


class Losses:
    """A listener that keeps the loss of every step and gives up after one of them."""

    def __init__(self, cut: int | None) -> None:
        self.cut = cut
        self.losses: dict[int, float] = {}

    def on_start(self, total_steps: int, total_epochs: int, step: int) -> None:
        """Nothing to keep yet."""

    def on_step(self, step: int, values: dict[str, float]) -> None:
        """Keep the loss."""
        self.losses[step] = values["train/loss"]
        if step == self.cut:
            raise Cut

    def on_epoch(self, epoch: int, step: int, values: dict[str, float]) -> None:
        """Nothing to keep."""

    def on_end(self, result: TrainResult) -> None:
        """Nothing to keep."""


def train(store: Store, case: dict[str, Any], processes: Processes) -> dict[str, Any]:
    """One case: its losses by step, its metrics unless it was cut, and which process had which part of the table."""
    embedding = EmbeddingConfig.model_validate(case["embedding"])
    network = ModelConfig.model_validate(case["model"])
    config = TrainConfig.model_validate({**case["train"], "log_steps": 1})
    seed, watch = case["seed"], Losses(case.get("cut"))
    plan = plan_embedding(store.layout, embedding, store.id_counts("train"))
    rank, count = processes.rank, processes.count
    loader = Loader(store, "train", config.batch_size, shuffle_seed=seed, rank=rank, world_size=count)
    valid = Loader(store, "valid", config.eval_batch_size, rank=rank, world_size=count)
    common: dict[str, Any] = {"seed": seed, "folder": Path(case["folder"]), "listener": watch}
    trainer: Trainer
    if processes.connected:
        check_distributed(config, embedding, plan, count)
        model = sharded_model(store.layout, plan, network, seed=seed, train=config, processes=processes)
        trainer = DistributedTrainer(model, config, processes=processes, **common)
    else:
        optimizer, kernel = config.optimizer_of_table, embedding.kernel
        model = CTRModel(store.layout, plan, network, seed=seed, optimizer=optimizer, kernel=kernel)
        trainer = Trainer(model, config, **common)
    try:
        metrics = trainer.fit(loader, valid, resume=case.get("resume", False)).best_metrics
    except Cut:
        metrics = None
    table = model.embedding.table
    parts = table.report() if isinstance(table, ShardedTable) else []
    return {"losses": watch.losses, "metrics": metrics, "parts": parts}


def main(request: dict[str, Any]) -> None:
    """All cases, one after another, in one group of processes."""
    store = Store.open(Path(request["store"]))
    with joined(300) as processes:
        results = [train(store, case, processes) for case in request["cases"]]
        if processes.rank == 0:
            print(json.dumps({"results": results}), flush=True)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    leave(0)
