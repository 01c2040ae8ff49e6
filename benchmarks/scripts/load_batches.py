"""Epochs of our Loader over a prepared store, timed; with `arrays`, the same rows for a peer."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from features.loading.loader import Loader
from features.storage.store import Store


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Iterate over the training split.

    Args:
        request: store (its folder), batch_size, epochs, threads, arrays (rows to write for a peer, none if 0), out
            (folder for them).

    Returns:
        By order, rows, seconds and processor seconds of every epoch; paths of the arrays.
    """
    torch.set_num_threads(request["threads"])
    store = Store.open(Path(request["store"]))
    answer = {
        order: [_epoch(store, request["batch_size"], seed, epoch) for epoch in range(request["epochs"])]
        for order, seed in (("in order", None), ("shuffled", 0))
    }
    return {"epochs": answer, "arrays": _arrays(store, request["arrays"], Path(request["out"]))}


def _epoch(store: Store, batch_size: int, seed: int | None, epoch: int) -> dict[str, float]:
    loader = Loader(store, "train", batch_size, shuffle_seed=seed)
    loader.set_epoch(epoch)
    started, busy = time.perf_counter(), time.process_time()
    rows = sum(len(batch) for batch in loader)
    return {"rows": rows, "seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - busy}


def _arrays(store: Store, rows: int, folder: Path) -> dict[str, str]:
    paths: dict[str, str] = {}
    if rows:
        batch = next(iter(Loader(store, "train", rows)))
        assert batch.labels is not None
        ids = (batch.ids.numpy().view(np.uint64) % np.uint64(1_000_000)).astype(np.int64)
        for name, array in (("ids", ids), ("dense", batch.dense.numpy()), ("labels", batch.labels[:, 0].numpy())):
            paths[name] = str(folder / f"{name}.npy")
            np.save(paths[name], array)
    return paths


if __name__ == "__main__":
    print(json.dumps(run(json.load(sys.stdin))))
