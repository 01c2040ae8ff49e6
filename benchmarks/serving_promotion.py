"""The alias is moved while requests come: nothing fails, every answer is its version's, old models leave memory."""

from __future__ import annotations

import itertools
import re
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.harness import Bar, Settings
from benchmarks.serving_http import CLIENTS, CONNECTIONS, WARM_UP_SECONDS
from benchmarks.serving_model import Registered
from benchmarks.serving_processes import WORKERS, Server, promote, recsys_server, send, sending, serving, until

MOVES = (2, 1, 2, 1, 3, 2, 1, 2, 1, 2)
"""Versions the alias is moved to; 3 is damaged."""
PATH = "/v1/score"
POLL_SECONDS = 0.5
LATE_SECONDS = 4.0
"""Traffic between a reload and the look at the memory, so that it holds what a model in use holds."""


def measure_promotion(settings: Settings, registered: Registered, folder: Path) -> tuple[list[Bar], dict[str, Any]]:
    """Ten moves under half of the peak load; then reloads one after another under a light load."""
    seconds, moves, reloads = (20, MOVES[2:6], 5) if settings.quick else (60, MOVES, 20)
    file = registered.json[1]
    promote(registered.store, 1)
    with recsys_server(registered.store, folder, "--poll-seconds", str(POLL_SECONDS)) as server:
        phases = [{"clients": CLIENTS, "seconds": s} for s in (WARM_UP_SECONDS, 5)]
        peak = send(server, PATH, file, CLIENTS, phases)["phases"][1]["rate"]
        loads = _loads(server)
        with sending(server, PATH, file, CONNECTIONS, [{"rate": peak / 2, "seconds": seconds}]) as asked:
            for version in moves:
                time.sleep(seconds / (len(moves) + 1))
                promote(registered.store, version)
            under_load = asked.result()["phases"][0]
        settings.log(f"{len(moves)} moves at {peak / 2:.0f} requests a second: {under_load['version']}")
        until(lambda: serving(server, moves[-1]) == WORKERS)
        loads = _loads(server) - loads
        memory = _reload(settings, server, registered, reloads, moves[-1])
    failed = sum(under_load["failed"].values())
    failed += sum(count for status, count in under_load["status"].items() if status != "200")
    flat = [sum(own) for own in zip(*memory, strict=True)]
    first, last = (statistics.median(part) for part in (flat[: len(flat) // 4], flat[-(len(flat) // 4) :]))
    bars = [
        Bar(f"requests that failed in {len(moves)} moves of the alias", failed, "<=", 0),
        Bar("answers that are not of the version they name", under_load["wrong"], "<=", 0),
        Bar("loads by the workers meanwhile", loads, ">=", WORKERS * len(moves) / 2),
        Bar(f"resident memory after {reloads} reloads over before, last quarter", last / first, "<=", 1.05),
    ]
    figures = {
        "peak": peak,
        "under_load": under_load,
        "loads": loads,
        "resident_mb": [round(size / 1e6, 1) for size in flat],
    }
    return bars, figures


def _reload(settings: Settings, server: Server, registered: Registered, reloads: int, version: int) -> list[list[int]]:
    """Bytes resident in every worker after each reload."""
    sizes: dict[int, list[int]] = {worker.pid: [] for worker in server.workers()}
    versions = itertools.cycle((3 - version, version))
    for _ in range(reloads):
        version = next(versions)
        promote(registered.store, version)
        until(lambda wanted=version: serving(server, wanted) == WORKERS)
        send(server, PATH, registered.json[1], CLIENTS, [{"rate": 200, "seconds": LATE_SECONDS}])
        for worker in server.workers():
            if worker.pid in sizes:
                sizes[worker.pid].append(worker.memory_info().rss)
    settings.log(f"{reloads} reloads: {[sum(own) // 10**6 for own in zip(*sizes.values(), strict=True)]} MB")
    return list(sizes.values())


def _loads(server: Server) -> int:
    found = re.search(r'recsys_model_loads_total\{outcome="loaded"\} (\S+)', server.get("/metrics"))
    return int(float(found[1])) if found else 0
