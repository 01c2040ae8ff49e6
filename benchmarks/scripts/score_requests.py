"""How long a `Scorer` takes for one raw row, and for one user with many candidates; and in which of its parts."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.scripts.encode_requests import CANDIDATES, USER
from features.recipes import RECIPES
from features.recipes.criteo import CATEGORIES, INTEGERS
from recsys.serving.network_inputs import NetworkInputs
from recsys.serving.scorer import Scorer
from recsys.training import predict


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Score rows of the Criteo sample.

    Args:
        request: bundle; calls (whole, and as many in parts; a twentieth as many of many candidates); rows (read from
            the sample; the rows scored are others at each call until all were).

    Returns:
        For `one` and `candidates`: p50 and p99 of a request, p50 of encoding, lookup and network, in milliseconds;
        load and checksum in seconds; the table's bytes; the largest difference to the trainer's probabilities, how
        much these differ from row to row, and the largest logit.
    """
    path = Path(request["bundle"])
    started = time.perf_counter()
    for file in path.rglob("*"):
        if file.is_file():
            with open(file, "rb") as opened:
                hashlib.file_digest(opened, "sha256")
    checksum = time.perf_counter() - started
    started = time.perf_counter()
    scorer = Scorer.load(path, threads=1)
    load = time.perf_counter() - started
    events = RECIPES["criteo"].load(None).tail(request["rows"]).collect()
    rows = events.select(*INTEGERS, *CATEGORIES).rows(named=True)
    expected = predict(scorer.bundle.model, [scorer.bundle.pipeline.encode_frame(events)], scorer.bundle.calibration)
    assert expected.logits is not None
    user = {name: rows[0][name] for name in USER}
    groups = [
        [{name: value for name, value in row.items() if name not in user} for row in rows[start : start + CANDIDATES]]
        for start in range(0, len(rows) - CANDIDATES + 1, CANDIDATES)
    ]
    return {
        "one": _times(scorer, [([row], None) for row in rows], request["calls"]),
        "candidates": _times(scorer, [(group, user) for group in groups], request["calls"] // 20),
        "load": load,
        "checksum": checksum,
        "table_bytes": scorer.bundle.model.plan.table_bytes,
        "spread": float(expected.probabilities.std()),
        "logits": float(np.abs(expected.logits).max()),
        "difference": float(np.abs(scorer.score(rows) - expected.probabilities).max()),
    }


def _times(scorer: Scorer, requests: list[Any], calls: int) -> dict[str, float]:
    pipeline, network = scorer.bundle.pipeline, scorer.bundle.model.network
    inputs = NetworkInputs(scorer.bundle.model)
    times: dict[str, list[float]] = {name: [] for name in ("all", "encode", "lookup", "network")}

    def timed(name: str, work: Callable[..., Any], *given: Any, **options: Any) -> Any:
        started = time.perf_counter()
        out = work(*given, **options)
        times[name].append((time.perf_counter() - started) * 1e3)
        return out

    for call in range(2 * calls):
        rows, shared = requests[call % len(requests)]
        if call % 2:  # whole requests and parts on rows of their own: those of the last call are in the caches
            timed("all", scorer.score, rows, shared=shared)
            continue
        batch = timed("encode", pipeline.encode, rows, shared=shared)
        with torch.inference_mode():
            timed("network", network, timed("lookup", inputs, batch))
    parts = {name: float(np.median(own)) for name, own in times.items() if name != "all"}
    p50, p99 = np.percentile(times["all"], [50, 99])
    return {"p50": float(p50), "p99": float(p99), **parts}


if __name__ == "__main__":
    print(json.dumps(run(json.load(sys.stdin))))
