"""One run of our Trainer on a prepared store, timed epoch by epoch: the other side of `deepctr_torch_dcn.py`.

With `breakdown` in the request, the last epoch runs under torch's profiler and is told apart by what took the time.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from features.loading.loader import Loader
from features.storage.store import Store
from recsys.embeddings import EmbeddingConfig, plan_embedding
from recsys.embeddings.torch_table import TorchTable
from recsys.models import CTRModel, ModelConfig
from recsys.training import TrainConfig, Trainer, TrainResult

PRODUCTS = (
    "aten::mm",
    "aten::addmm",
    "aten::bmm",
    "aten::addmv_",
    "mkldnn::_linear_pointwise",
    "aten::convolution_backward",  # the gradients of the weights (recsys.models.linear)
)
TABLE = ("table lookup", "table update")


class Clock:
    """A listener that times every epoch, from its first batch asked for to its last step.

    Args:
        steps: steps of an epoch.
        profiler: started with the second epoch and stopped at its end, if given.
    """

    def __init__(self, steps: int, profiler: torch.profiler.profile | None = None) -> None:
        self.steps = steps
        self.profiler = profiler
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
            if self.profiler and len(self.seconds) == 2:
                self.profiler.stop()

    def on_epoch(self, epoch: int, step: int, values: dict[str, float]) -> None:
        """The next epoch begins."""
        self.losses.append(values["train/epoch_loss"])
        if self.profiler and epoch == 1:
            self.profiler.start()
        self.started = time.perf_counter()

    def on_end(self, result: TrainResult) -> None:
        """Nothing to add."""


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Train for `epochs` epochs over `examples` rows and time each.

    Args:
        request: store (its folder), examples, rows (of the whole table), width, hidden, cross_layers, batch_size,
            epochs, threads, breakdown.

    Returns:
        seconds of each epoch, the loss of each, the number of parameters, settings; shares of the time with breakdown.
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
    profiler = _profiler(model) if request.get("breakdown") else None
    clock = Clock(steps, profiler)
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
        "shares": _shares(profiler, clock.seconds[1]) if profiler else None,
    }


def _profiler(model: CTRModel) -> torch.profiler.profile:
    """A profiler that also sees the table's kernels, which are not torch's."""
    table = model.embedding.table
    assert isinstance(table, TorchTable)
    for name, label in zip(("gather", "step"), TABLE, strict=True):
        setattr(table, name, torch.profiler.record_function(label)(getattr(table, name)))
    return torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])


def _shares(profiler: torch.profiler.profile, seconds: float) -> dict[str, float]:
    """What took the time of the profiled epoch, as shares of it."""
    events = {event.key: event for event in profiler.key_averages()}
    shares = {
        "matrix products": sum(events[name].self_cpu_time_total for name in PRODUCTS if name in events),
        **{name: events[name].cpu_time_total for name in TABLE},
    }
    shares = {name: microseconds / 1e6 / seconds for name, microseconds in shares.items()}
    within = {"table lookup", "table update", *PRODUCTS}
    others = sorted((e for e in events.values() if e.key not in within), key=lambda e: -e.self_cpu_time_total)[:6]
    return {
        **shares,
        "outside": 1 - sum(shares.values()),
        **{f"of which {e.key}": e.self_cpu_time_total / 1e6 / seconds for e in others},
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
