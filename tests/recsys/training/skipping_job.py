"""Steps in several processes, of which the last one sees what is not finite: `torchrun skipping_job.py STORE FOLDER`.

Every process prints a JSON object: its `rank`, and for each kind of step whether it was `skipped` and left its state
`unchanged`.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import torch

from features.loading.loader import Loader
from features.storage.store import Store
from recsys.embeddings import EmbeddingConfig, plan_embedding
from recsys.models import ModelConfig
from recsys.processes import joined, leave
from recsys.training import TrainConfig
from recsys.training.distributed import DistributedTrainer, sharded_model


class _Infinite(torch.autograd.Function):
    """The gradient alone is infinite."""

    @staticmethod
    def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * math.inf


def main(store_folder: Path, folder: Path) -> None:
    store = Store.open(store_folder)
    table = EmbeddingConfig.model_validate({"width": 4, "rows": 300, "exact": {"max_values": 10}})
    plan = plan_embedding(store.layout, table, store.id_counts("train"))
    config = TrainConfig(batch_size=64)
    with joined(60) as processes:
        network = ModelConfig(hidden=(8,))
        model = sharded_model(store.layout, plan, network, seed=1, train=config, processes=processes)
        trainer = DistributedTrainer(model, config, seed=3, folder=folder, processes=processes)
        place = {"rank": processes.rank, "world_size": processes.count}
        batches = iter(Loader(store, "train", config.batch_size, shuffle_seed=5, **place))
        model.train()

        def state() -> list[torch.Tensor]:
            live = {**trainer._tensors(), "model.table": model.embedding.table.values()}
            parts = [t.local_shards() if hasattr(t, "local_shards") else [t] for t in live.values()]
            return [getattr(t, "tensor", t).clone() for part in parts for t in part]

        skipped, unchanged = {}, {}
        for kind in ("nothing", "loss", "table", "network", "after"):
            batch, before, hook = next(batches), state(), None
            if processes.rank == processes.count - 1:
                if kind == "loss":
                    batch.dense = torch.full_like(batch.dense, math.nan)
                elif kind == "table":
                    hook = model.embedding.register_forward_hook(lambda module, given, out: _Infinite.apply(out))
                elif kind == "network":
                    hook = model.network.head.weight.register_hook(lambda gradient: gradient * math.inf)
            skipped[kind] = trainer._step(batch, 1.0)[:2] == (0.0, 0.0)
            unchanged[kind] = all(torch.equal(t, old) for t, old in zip(state(), before, strict=True))
            if hook is not None:
                hook.remove()
        sys.stdout.write(json.dumps({"rank": processes.rank, "skipped": skipped, "unchanged": unchanged}) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
    leave(0)
