"""From raw rows to click probabilities: in process, over HTTP, while models are replaced, and under too many requests.

Criteo form: 13 numbers and 26 categories of the Criteo sample, one million rows of width 16, DCN-v2 with a feed-forward
network of 256 x 128, isotonic calibration, one thread a process.  The weights are random, which no time depends on, and
the calibration is fitted to clicks drawn by a flatter curve than the model's own.  Everything measured runs in
processes of its own; what is compared takes turns.  Whoever sends requests shares the machine with the server.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness import Bar, Outcome, Settings, main
from benchmarks.serving_http import measure_http
from benchmarks.serving_in_process import measure_in_process
from benchmarks.serving_model import register
from benchmarks.serving_overload import measure_overload
from benchmarks.serving_promotion import measure_promotion

IN_PROCESS = "in_process"
SERVERS = {"http": measure_http, "promotion": measure_promotion, "overload": measure_overload}
PARTS = (IN_PROCESS, *SERVERS)


def measure(settings: Settings) -> Outcome:
    """The parts that are asked for."""
    parts = settings.parts or PARTS
    bars: list[Bar] = []
    figures: dict[str, Any] = {}
    if IN_PROCESS in parts:
        own, figures[IN_PROCESS] = measure_in_process(settings)
        bars += own
    servers = {name: part for name, part in SERVERS.items() if name in parts}
    with tempfile.TemporaryDirectory() as folder:
        registered = register(Path(folder)) if servers else None
        for name, part in servers.items():
            assert registered is not None
            own, figures[name] = part(settings, registered, Path(folder))
            bars += own
    return Outcome(bars, figures, threads=1)


if __name__ == "__main__":
    sys.exit(main("serving", measure, parts=PARTS))
