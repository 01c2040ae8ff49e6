"""A small training job that the tests run in processes of their own: `python training_job.py STORE FOLDER [resume]`.

Prints `step N` after every step, so that a test can kill it at a known point.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from features.errors import RecsysError
from features.loading.loader import Loader
from features.storage.store import Store
from recsys.embeddings import EmbeddingConfig, plan_embedding
from recsys.models import CTRModel, ModelConfig
from recsys.training import TrainConfig, Trainer, TrainResult

EMBEDDING = {"width": 4, "rows": 300, "chunks": {"default": 2}, "exact": {"max_values": 10}}
HOT = {"features": {"user": 16, "tags": 8}, "start": "empty", "half_life": 10, "expire": 20}
MODEL = {"interaction": "dcnv2", "cross_layers": 1, "hidden": [16], "dropout": 0.2}
TRAIN = {
    "batch_size": 64,
    "epochs": 3,
    "table_optimizer": "adam",
    "table_learning_rate": 0.01,
    "table_l2": 1e-3,
    "ema": 0.9,
    "clip_norm": 1.0,
    "schedule": "cosine",
    "warmup_steps": 5,
    "checkpoint_steps": 7,
    "log_steps": 1,
    "threads": 1,
}


class PrintSteps:
    """Says which step was done."""

    def on_start(self, total_steps: int, total_epochs: int, step: int) -> None:
        print(f"start {step} of {total_steps}", flush=True)

    def on_step(self, step: int, values: dict[str, float]) -> None:
        print(f"step {step}", flush=True)

    def on_epoch(self, epoch: int, step: int, values: dict[str, float]) -> None:
        print(f"epoch {epoch}", flush=True)

    def on_end(self, result: TrainResult) -> None:
        print("end", flush=True)


def build(
    store: Store, *, kernel: str = "auto", embedding: Mapping[str, object] | None = None, **train: object
) -> tuple[CTRModel, TrainConfig]:
    """The job's model and training config, with some of its settings replaced."""
    config = TrainConfig.model_validate({**TRAIN, **train})
    table = EmbeddingConfig.model_validate({**EMBEDDING, **(embedding or {})})
    plan = plan_embedding(store.layout, table, store.id_counts("train"))
    network = ModelConfig.model_validate(MODEL)
    optimizer = config.optimizer_of_table
    return CTRModel(store.layout, plan, network, seed=1, optimizer=optimizer, kernel=kernel), config


def loaders(store: Store, config: TrainConfig) -> tuple[Loader, Loader]:
    """Shuffled training and ordered validation batches."""
    train = Loader(store, "train", config.batch_size, shuffle_seed=5)
    return train, Loader(store, "valid", config.eval_batch_size)


def run(store_folder: Path, folder: Path, *, resume: bool = False, **train: object) -> TrainResult:
    """Trains in this process, with all regions."""
    store = Store.open(store_folder)
    model, config = build(store, embedding={"hot": HOT}, **train)
    trainer = Trainer(model, config, seed=3, folder=folder, listener=PrintSteps())
    return trainer.fit(*loaders(store, config), resume=resume)


if __name__ == "__main__":
    try:
        run(Path(sys.argv[1]), Path(sys.argv[2]), resume="resume" in sys.argv[3:])
    except RecsysError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
