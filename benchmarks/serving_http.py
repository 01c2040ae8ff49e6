"""Over HTTP: requests a second beside `mlflow models serve`, and how even the times are at half of the most."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from benchmarks.harness import Bar, Settings
from benchmarks.serving_model import BODIES, Registered
from benchmarks.serving_processes import Server, mlflow_server, recsys_server, send

CLIENTS, CONNECTIONS = 8, 64
TIMES_FASTER = {1: 6.0, 100: 3.0}
"""Rows of a request -> the bar."""
PATHS = {"recsys": "/v1/score", "mlflow": "/invocations"}
WARM_UP_SECONDS = 2.0


def measure_http(settings: Settings, registered: Registered, folder: Path) -> tuple[list[Bar], dict[str, Any]]:
    """Both servers up, asked in turns by clients that wait for their answers; then ours at half of its rate."""
    turns, seconds = (1, 3.0) if settings.quick else (3, 8.0)
    rates: dict[tuple[str, int], list[float]] = {(name, rows): [] for name in PATHS for rows in BODIES}
    half: dict[int, list[dict[str, Any]]] = {rows: [] for rows in BODIES}
    runs: list[dict[str, Any]] = []
    faults = 0
    with recsys_server(registered.store, folder) as ours, mlflow_server(registered.store, folder) as theirs:
        sides: dict[str, tuple[Server, dict[int, Path]]] = {
            "recsys": (ours, registered.json),
            "mlflow": (theirs, registered.mlflow),
        }
        for turn in range(turns):
            for rows in BODIES:
                for name, (server, files) in sides.items():
                    phases = [{"clients": CLIENTS, "seconds": s} for s in (WARM_UP_SECONDS, seconds)]
                    answer = send(server, PATHS[name], files[rows], CLIENTS, phases)
                    found = answer["phases"][1]
                    faults += _faults(found)
                    rates[name, rows].append(found["rate"])
                    runs.append(_run(name, rows, "closed", answer))
                    settings.log(f"turn {turn + 1} of {turns}: {name}, {rows} rows: {found['rate']:.0f} a second")
                rate = rates["recsys", rows][-1] / 2
                phases = [{"rate": rate, "seconds": s} for s in (WARM_UP_SECONDS, 2 * seconds)]
                answer = send(ours, PATHS["recsys"], registered.json[rows], CONNECTIONS, phases)
                found = answer["phases"][1]
                faults += _faults(found)
                half[rows].append(found)
                runs.append(_run("recsys", rows, "open", answer))
                settings.log(f"   at half of it: p50 {found['p50']:.2f} ms, p99 {found['p99']:.2f} ms")
    median = {key: statistics.median(own) for key, own in rates.items()}
    times = {
        rows: statistics.median(
            ours / theirs for ours, theirs in zip(rates["recsys", rows], rates["mlflow", rows], strict=True)
        )
        for rows in BODIES
    }
    spread = {rows: statistics.median(found["p99"] / found["p50"] for found in own) for rows, own in half.items()}
    bars = [
        *(Bar(f"requests/s over MLflow's, {_rows(rows)}", times[rows], ">=", TIMES_FASTER[rows]) for rows in BODIES),
        *(Bar(f"p99 over p50 at half the peak load, {_rows(rows)}", spread[rows], "<=", 5.0) for rows in BODIES),
        Bar("answers to clients that failed or were wrong", faults, "<=", 0),
    ]
    figures = {
        "requests_a_second": {f"{name}/{rows}": value for (name, rows), value in median.items()},
        "half_peak_ms": {
            str(rows): {name: statistics.median(found[name] for found in own) for name in ("p50", "p99")}
            for rows, own in half.items()
        },
        "runs": runs,
    }
    return bars, figures


def _faults(found: dict[str, Any]) -> int:
    others = sum(count for status, count in found["status"].items() if status != "200")
    return others + sum(found["failed"].values()) + int(found["wrong"])


def _run(name: str, rows: int, loop: str, answer: dict[str, Any]) -> dict[str, Any]:
    found = {key: value for key, value in answer["phases"][1].items() if key != "windows"}
    return {"server": name, "rows": rows, "loop": loop, "sender_cores": answer["sender_cores"], **found}


def _rows(rows: int) -> str:
    return "1 row" if rows == 1 else f"{rows} rows"
