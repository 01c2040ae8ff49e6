"""Steps a second of one embedding table: forward, backward and update, on every kernel and in every format.

One table, 26 features, Zipf-distributed ids, width 16, batch 8192, row-wise Adagrad (Adagrad for nn.EmbeddingBag), two
threads.  Each side runs in a process of its own; sides alternate, so that a slow spell of the machine meets all.
"""

from __future__ import annotations

import statistics
import sys
from typing import Any

from benchmarks.harness import Bar, Outcome, Settings, child, main
from recsys.embeddings.kernel import is_installed

THREADS = 2
TURNS = 3
SMALL, LARGE = 1_000_000, 50_000_000
SHAPE = {
    "width": 16,
    "features": 26,
    "values": 10_000_000,
    "batch_size": 8192,
    "batches": 12,
    "rounds": 3,
    "threads": THREADS,
}
OURS = "auto"
"""What `embedding.kernel: auto` chooses."""
FORMATS = ("fp32", "bf16", "fp16", "int8", "int4", "int2")

Side = tuple[str, str, int]
"""Kernel, format, rows."""


def measure(settings: Settings) -> Outcome:
    """Lookups a second of our choice of kernel, FBGEMM's and torch's own."""
    sides: list[Side] = [(OURS, form, SMALL) for form in FORMATS]
    sides += [("torch", "fp32", SMALL), ("sparse", "fp32", SMALL), ("dense", "fp32", SMALL)]
    sides += [] if settings.quick else [(OURS, "fp32", LARGE), ("torch", "fp32", LARGE), ("sparse", "fp32", LARGE)]
    if is_installed("fbgemm_gpu"):
        sides += [("fbgemm", "fp32", SMALL)] + ([] if settings.quick else [("fbgemm", "fp32", LARGE)])
    else:
        settings.log("fbgemm-gpu is not installed: its bar is not measured")
    turns = 1 if settings.quick else TURNS
    times: dict[Side, list[float]] = {side: [] for side in sides}
    answers: dict[Side, dict[str, Any]] = {}
    for turn in range(turns):
        for side in sides:
            if turn >= 2 and (side[0] == "dense" or side[2] == LARGE):
                continue  # slow, and far from any bar's edge
            kernel, form, rows = side
            request = {**SHAPE, "kernel": kernel, "format": form, "rows": rows}
            if kernel in ("dense", "sparse"):
                request |= {"batches": 4, "rounds": 1}
            answers[side] = child([sys.executable, "-m", "benchmarks.scripts.step_table"], request, threads=THREADS)
            times[side].append(answers[side]["milliseconds"])
            settings.log(f"turn {turn + 1} of {turns}: {kernel} {form} {rows:,} rows: {times[side][-1]:.2f} ms a step")
    median = {side: statistics.median(own) for side, own in times.items()}
    ours = median[OURS, "fp32", SMALL]

    def times_ours(side: Side) -> float | None:
        return median[side] / ours if side in median else None

    bars = [
        Bar("our lookups/s over FBGEMM's, 1M rows", times_ours(("fbgemm", "fp32", SMALL)), ">=", 1.3),
        Bar("over nn.EmbeddingBag(sparse) with Adagrad, 1M rows", times_ours(("sparse", "fp32", SMALL)), ">=", 3),
        Bar("a step with 50M rows over one with 1M", times_ours((OURS, "fp32", LARGE)), "<=", 2.5),
        *(
            Bar(f"{form} lookups/s over fp32's, 1M rows", ours / median[OURS, form, SMALL], ">=", 0.8)
            for form in ("bf16", "int8")
        ),
    ]
    table = [
        {
            "kernel": kernel,
            "format": form,
            "rows": rows,
            "milliseconds": round(median[kernel, form, rows], 3),
            "lookups_per_second": round(answers[kernel, form, rows]["lookups"] / median[kernel, form, rows] * 1e3),
            "runs": [round(time, 3) for time in times[kernel, form, rows]],
        }
        for kernel, form, rows in sides
    ]
    figures = {"shape": SHAPE, "distinct_share": answers[sides[0]]["distinct_share"], "table": table}
    return Outcome(bars, figures, threads=THREADS)


if __name__ == "__main__":
    sys.exit(main("table_kernels", measure))
