"""In process: a click probability from a raw row, in which parts, and in which row formats."""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness import Bar, Settings, child
from benchmarks.serving_model import ASKED, fit, write_bundles

FORMATS_TIMED = ("fp32", "int8", "int8-table", "int4")
TURNS, CALLS = 3, 4000


def measure_in_process(settings: Settings) -> tuple[list[Bar], dict[str, Any]]:
    """Time from a raw row to a probability, its parts, and the same in int8, int8-table and int4."""
    calls, turns = (1000, 1) if settings.quick else (CALLS, TURNS)
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in FORMATS_TIMED}
    with tempfile.TemporaryDirectory() as folder:
        bundles = write_bundles(fit(), Path(folder), FORMATS_TIMED)
        for turn in range(turns):
            for name, bundle in bundles.items():
                request = {"bundle": str(bundle), "calls": calls, "rows": ASKED}
                answer = child([sys.executable, "-m", "benchmarks.scripts.score_requests"], request, threads=1)
                answers[name].append(answer)
                one, many = answer["one"], answer["candidates"]
                settings.log(
                    f"turn {turn + 1} of {turns}: {name}: 1 row {one['p50']:.3f} ms, p99 {one['p99']:.3f}; "
                    f"500 candidates {many['p50']:.2f} ms"
                )
    median = {
        (name, kind, part): statistics.median(answer[kind][part] for answer in own)
        for name, own in answers.items()
        for kind in ("one", "candidates")
        for part in own[0][kind]
    }

    def outside(kind: str) -> float:
        within = median["fp32", kind, "encode"] + median["fp32", kind, "network"]
        return 1 - within / median["fp32", kind, "p50"]

    bars = [
        Bar("1 row, p50 in ms", median["fp32", "one", "p50"], "<=", 0.35),
        Bar("1 row, p99 in ms", median["fp32", "one", "p99"], "<=", 1.0),
        Bar("500 candidates of one user, p50 in ms", median["fp32", "candidates", "p50"], "<=", 9.0),
        Bar("share outside of encoding and network, 1 row", outside("one"), "<=", 0.15),
        Bar("share outside of encoding and network, 500 candidates", outside("candidates"), "<=", 0.15),
        *(
            Bar(f"{name} over fp32, {text}", median[name, kind, "p50"] / median["fp32", kind, "p50"], "<=", 1.1)
            for name in FORMATS_TIMED[1:]
            for kind, text in (("one", "1 row"), ("candidates", "500 candidates"))
        ),
        Bar(
            f"largest difference to the trainer's probability, {ASKED:,} rows",
            max(answer["difference"] for own in answers.values() for answer in own),
            "<=",
            1e-6,
        ),
    ]
    figures = {
        "calls": calls,
        "table_bytes": {name: own[0]["table_bytes"] for name, own in answers.items()},
        "median": {"/".join(key): round(value, 4) for key, value in median.items()},
        "runs": answers,
    }
    return bars, figures
