"""One preparation of raw Criteo events in this environment: ours, the floor under it, or scikit-learn's hasher."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl

from benchmarks.scripts.peak_memory import PeakMemory
from features.recipes import RECIPES
from features.recipes.criteo import CATEGORIES, INTEGERS
from features.spec import FeatureSpec
from features.storage.splits import RandomSplit
from features.storage.store import Store, build_store
from features.validation import validate

HASHED_SIZE = 2**20
_PIECE = 50_000


def spec() -> FeatureSpec:
    """39 features: 13 numbers, clipped, logarithmic and standardised, and 26 ids."""
    numbers = [{"type": "number", "name": name, "clip": [0, None], "log": 1, "standardise": True} for name in INTEGERS]
    ids = [{"type": "id", "name": name} for name in CATEGORIES]
    return validate(FeatureSpec, {"features": [*numbers, *ids], "labels": ["label"]})


def ours(request: dict[str, Any]) -> int:
    """From the raw file to a store: divided, fitted, encoded, checked, written. Returns the rows."""
    store: Store = build_store(
        RECIPES["criteo"].load(Path(request["raw"])),
        spec(),
        RandomSplit(seed=0),
        Path(request["out"]),
        shard_rows=request["shard_rows"],
    )
    return int(store.manifest["rows_read"])


def floor(request: dict[str, Any]) -> int:
    """Polars scans and sinks the same columns, typed as the recipe types them, with no operator. Returns the rows."""
    RECIPES["criteo"].load(Path(request["raw"])).drop("row").sink_ipc(Path(request["out"]), compression="uncompressed")
    return int(pl.scan_ipc(Path(request["out"])).select(pl.len()).collect().item())


def hasher(request: dict[str, Any]) -> int:
    """scikit-learn's FeatureHasher over the first rows, `name=value` for every field. Returns the rows."""
    from sklearn.feature_extraction import FeatureHasher

    hashing = FeatureHasher(HASHED_SIZE, input_type="string")
    events = RECIPES["criteo"].load(Path(request["raw"])).head(request["rows"]).select(*INTEGERS, *CATEGORIES)
    done = 0
    for piece in events.collect_batches(chunk_size=_PIECE, maintain_order=True):
        done += int(hashing.transform(_fields(piece)).shape[0])
    return done


TASKS: dict[str, Callable[[dict[str, Any]], int]] = {"ours": ours, "floor": floor, "hasher": hasher}


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Run one task.

    Args:
        request: task (ours, floor, hasher), raw (the folder with train.txt), out (what to write), shard_rows, rows.

    Returns:
        rows, seconds, processor seconds, peak memory in bytes.
    """
    out = Path(request["out"])
    shutil.rmtree(out, ignore_errors=True)
    out.unlink(missing_ok=True)
    with PeakMemory() as peak:
        started, busy = time.perf_counter(), time.process_time()
        rows = TASKS[request["task"]](request)
        seconds, busy = time.perf_counter() - started, time.process_time() - busy
    return {"rows": rows, "seconds": seconds, "cpu_seconds": busy, "rss": peak.rss, "anonymous": peak.anonymous}


def _fields(piece: pl.DataFrame) -> Iterator[list[str]]:
    names = piece.columns
    for row in piece.iter_rows():
        yield [f"{name}={value}" for name, value in zip(names, row, strict=True)]


if __name__ == "__main__":
    print(json.dumps(run(json.load(sys.stdin))))
