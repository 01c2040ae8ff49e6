"""One run of our Trainer on a prepared store, timed epoch by epoch: the other side of `deepctr_torch_dcn.py`."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from features.loader import Loader
from features.store import Store
from recsys.embeddings import EmbeddingConfig, plan_embedding
from recsys.models import CTRModel, ModelConfig
from recsys.training import TrainConfig, Trainer, TrainResult


class Clock:
    """A listener that times every epoch, from its first batch asked for to its last step."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self.started = 0.0

    def on_start(self, total_steps: int, total_epochs: int, step: int) -> None:
        """The first epoch begins."""
        self.started = time.perf_counter()

    def on_step(self, step: int, values: dict[str, float]) -> None:
        """The last step of an epoch ends its time: validation and checkpoint come after it."""
        if step % self.steps == 0:
            self.seconds.append(time.perf_counter() - self.started)

    def on_epoch(self, epoch: int, step: int, values: dict[str, float]) -> None:
        """The next epoch begins."""
        self.losses.append(values["train/epoch_loss"])
        self.started = time.perf_counter()

    def on_end(self, result: TrainResult) -> None:
        """Nothing to add."""


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Train for `epochs` epochs over `examples` rows and time each.

    Args:
        request: store (its folder), examples, rows (of the whole table), width, hidden, cross_layers, batch_size,
            epochs, threads.

    Returns:
        seconds of each epoch, the loss of each, the number of parameters, settings.
    """
    torch.set_num_threads(request["threads"])
    store = Store.open(Path(request["store"]))
    embedding = EmbeddingConfig(width=request["width"], rows=request["rows"])
    network = ModelConfig(interaction="dcnv2", cross_layers=request["cross_layers"], hidden=tuple(request["hidden"]))
    steps = request["examples"] // request["batch_size"]
    config = TrainConfig(
        batch_size=request["batch_size"], epochs=request["epochs"], threads=request["threads"], log_steps=steps
    )
    plan = plan_embedding(store.layout, embedding, store.id_counts("train"))
    model = CTRModel(store.layout, plan, network, seed=0, optimizer=config.optimizer_of_table)
    clock = Clock(steps)
    train = _First(Loader(store, "train", config.batch_size, shuffle_seed=0), steps)
    with tempfile.TemporaryDirectory(prefix="recsys-benchmark-") as folder:
        trainer = Trainer(model, config, seed=0, folder=Path(folder), listener=clock)
        trainer.fit(train, Loader(store, "valid", config.eval_batch_size))  # type: ignore[arg-type]
    return {
        "examples": request["examples"],
        "epoch_seconds": clock.seconds,
        "epoch_loss": clock.losses,
        "parameters": plan.rows * plan.width + sum(p.numel() for p in model.dense_parameters().values()),
        "settings": {
            "table_optimizer": config.table_optimizer,
            "kernel": type(model.embedding.table).__name__,
            "table_bytes": plan.table_bytes,
            "rows": plan.rows,
        },
    }


class _First:
    """A loader whose epoch ends after some batches."""

    def __init__(self, loader: Loader, steps: int) -> None:
        self._loader, self._steps = loader, min(steps, len(loader))

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Any:
        for _, batch in zip(range(self._steps), self._loader, strict=False):
            yield batch

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Start where the trainer says."""
        self._loader.load_state_dict(state)


if __name__ == "__main__":
    print(json.dumps(run(json.load(sys.stdin))))
