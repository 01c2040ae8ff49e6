"""Trainings that the tests run under torchrun: `torchrun --nproc_per_node N distributed_job.py REQUEST.json`.

The request names the store and a list of cases: `folder`, `train` (settings), `resume`, `cut` (a step after which the
run is given up).  The first process ends its output with one JSON object: every case's losses by step, its metrics
and where the table's parts lay.  Without torchrun each case is an ordinary training.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from features.loader import Loader
from features.store import Store
from recsys.embeddings.sharded import ShardedTable
from recsys.embeddings.table import Table
from recsys.models import ModelConfig
from recsys.processes import Processes, joined
from recsys.training import Trainer, TrainResult
from recsys.training.distributed import DistributedTrainer, sharded_model
from tests.recsys.training import training_job

MODEL = ModelConfig(interaction="dcnv2", cross_layers=1, hidden=(16,))
TRAIN = {
    "batch_size": 64,
    "epochs": 3,
    "table_optimizer": "rowwise_adagrad",
    "table_learning_rate": 0.05,
    "table_l2": 0.0,
    "ema": None,
    "clip_norm": None,
    "checkpoint_steps": 10,
}


class Cut(Exception):
    """The run is given up here."""


class Losses:
    """Keeps the loss of every step."""

    def __init__(self, cut: int | None) -> None:
        self.cut = cut
        self.losses: dict[int, float] = {}

    def on_start(self, total_steps: int, total_epochs: int, step: int) -> None:
        pass

    def on_step(self, step: int, values: dict[str, float]) -> None:
        self.losses[step] = values["train/loss"]
        if step == self.cut:
            raise Cut

    def on_epoch(self, epoch: int, step: int, values: dict[str, float]) -> None:
        pass

    def on_end(self, result: TrainResult) -> None:
        pass


def run(store: Store, case: dict[str, Any], processes: Processes) -> dict[str, Any]:
    """One case."""
    outline, config = training_job.build(store, **{**TRAIN, **case.get("train", {})})
    plan, folder, watch = outline.plan, Path(case["folder"]), Losses(case.get("cut"))
    parts = {"rank": processes.rank, "world_size": processes.count}
    train = Loader(store, "train", config.batch_size, shuffle_seed=5, **parts)
    valid = Loader(store, "valid", config.eval_batch_size, **parts)
    trainer: Trainer
    if processes.connected:
        model = sharded_model(store.layout, plan, MODEL, seed=1, train=config, processes=processes)
        trainer = DistributedTrainer(model, config, seed=3, folder=folder, processes=processes, listener=watch)
    else:
        model = training_job.CTRModel(store.layout, plan, MODEL, seed=1, optimizer=config.optimizer_of_table)
        trainer = Trainer(model, config, seed=3, folder=folder, listener=watch)
    table: Table = model.embedding.table
    out: dict[str, Any] = {"losses": watch.losses}
    if isinstance(table, ShardedTable):
        out["report"] = table.report()
    try:
        out["metrics"] = trainer.fit(train, valid, resume=case.get("resume", False)).best_metrics
    except Cut:
        out["metrics"] = None
    return out


def main(request: dict[str, Any]) -> None:
    """All cases, one after another, in one group of processes."""
    store = Store.open(Path(request["store"]))
    with joined(60) as processes:
        results = [run(store, case, processes) for case in request["cases"]]
        if processes.rank == 0:
            print(json.dumps(results), flush=True)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
