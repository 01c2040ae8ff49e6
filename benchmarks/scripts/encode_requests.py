"""How long `FeaturePipeline.encode` takes for one request, and for one with many candidates."""

from __future__ import annotations

import inspect
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.scripts.prepare_criteo import spec
from features.pipeline import FeaturePipeline
from features.recipes import RECIPES
from features.recipes.criteo import CATEGORIES, INTEGERS

CANDIDATES = 500
USER = [*INTEGERS[:7], *CATEGORIES[:13]]
"""The fields that all candidates share."""


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Encode rows of the Criteo sample.

    Args:
        request: raw (a folder with train.txt, or None for the sample), calls (of one row; a twentieth as many of many
            candidates).

    Returns:
        Median seconds, and median processor seconds, of one row and of the candidates; whether the user's fields
        were given once.
    """
    torch.set_num_threads(1)
    folder = Path(request["raw"]) if request["raw"] else None
    events = RECIPES["criteo"].load(folder).head(20 * CANDIDATES).collect()
    pipeline = FeaturePipeline(spec()).fit(events)
    rows = events.select(*INTEGERS, *CATEGORIES).rows(named=True)
    user = {name: rows[0][name] for name in USER}
    groups = [rows[start : start + CANDIDATES] for start in range(0, len(rows), CANDIDATES)]
    once = "shared" in inspect.signature(pipeline.encode).parameters
    if once:
        items = [[{k: v for k, v in row.items() if k not in user} for row in group] for group in groups]
        options: dict[str, Any] = {"shared": user}
    else:
        items, options = [[{**row, **user} for row in group] for group in groups], {}
    return {
        "one": _median(pipeline.encode, rows, request["calls"]),
        "candidates": _median(lambda group: pipeline.encode(group, **options), items, request["calls"] // 20),
        "user's fields given once": once,
    }


def _median(encode: Callable[[Any], Any], inputs: list[Any], calls: int) -> dict[str, float]:
    wall, busy = [], []
    for call in range(calls + calls // 10):
        value = inputs[call % len(inputs)]
        started, cpu = time.perf_counter(), time.thread_time()
        encode(value)
        if call >= calls // 10:
            wall.append(time.perf_counter() - started)
            busy.append(time.thread_time() - cpu)
    return {"seconds": statistics.median(wall), "cpu_seconds": statistics.median(busy)}


if __name__ == "__main__":
    print(json.dumps(run(json.load(sys.stdin))))
