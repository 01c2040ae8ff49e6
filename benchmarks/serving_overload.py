"""Five times the requests that a server can answer, and a worker that is killed."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

from benchmarks.harness import Bar, Settings
from benchmarks.scripts.send_requests import NOT_SENT, WINDOW_SECONDS
from benchmarks.serving_http import CLIENTS, CONNECTIONS, WARM_UP_SECONDS
from benchmarks.serving_model import Registered
from benchmarks.serving_processes import WORKERS, MemoryWatch, Server, promote, recsys_server, send, sending, serving
from benchmarks.serving_processes import until as wait_until

PATH = "/v1/score"
TIMES_PEAK = 5
MANY_CONNECTIONS = 1500
DEADLINE_MS = 1000
"""Of a request that names none."""
CALM_SECONDS = 10


def measure_overload(settings: Settings, registered: Registered, folder: Path) -> tuple[list[Bar], dict[str, Any]]:
    """Half of the peak load, then five times as much as the peak, then half of it again; then a kill under load."""
    seconds = 8 if settings.quick else 30
    promote(registered.store, 1)
    with recsys_server(registered.store, folder) as server:
        file = registered.json[1]
        phases = [{"clients": CLIENTS, "seconds": s} for s in (WARM_UP_SECONDS, 5)]
        peak = send(server, PATH, file, CLIENTS, phases)["phases"][1]["rate"]
        before = {worker.pid for worker in server.workers()}
        resident = server.memory()
        half = {"rate": peak / 2, "seconds": CALM_SECONDS}
        with MemoryWatch(server) as watch:
            answer = send(
                server,
                PATH,
                file,
                MANY_CONNECTIONS,
                [half, {"rate": TIMES_PEAK * peak, "seconds": seconds}, half],
            )
        calm, over, after = answer["phases"]
        crashed = len(before - {worker.pid for worker in server.workers()})
        settings.log(f"{over['arrival_rate']:.0f} requests a second: {over['status']}, {over['failed']}")
        killed = _kill(server, registered, peak / 2)
        settings.log(f"a worker killed: {killed['failed']} requests lost, replaced after {killed['seconds']:.1f} s")
    told = sum(over["status"].get(status, 0) for status in ("200", "429", "503"))
    sent = over["arrivals"] - over["failed"].get(NOT_SENT, 0)
    bars = [
        Bar("requests that come, over the peak load", over["arrival_rate"] / peak, ">=", TIMES_PEAK * 0.95),
        Bar("workers lost in the overload", crashed, "<=", 0),
        Bar("requests of the overload answered neither with scores nor with 429 or 503", sent - told, "<=", 0),
        Bar("most resident memory over that before", watch.most() / resident, "<=", 1.25),
        Bar("slowest answer with scores, in ms (deadline 1000)", over["worst_from_sending"], "<=", DEADLINE_MS),
        Bar("seconds until it is as before", _recovered(calm, after), "<=", 5),
        Bar("requests lost by a kill, over the connections of a worker", killed["share"], "<=", 1),
        Bar("requests that others than the killed worker refused or lost", killed["others"], "<=", 0),
    ]
    figures = {
        "peak": peak,
        "before": calm,
        "overload": over,
        "after": after,
        "sender_cores": answer["sender_cores"],
        "resident_mb": {"before": resident / 1e6, "most": watch.most() / 1e6},
        "kill": killed,
    }
    return bars, figures


def _recovered(calm: dict[str, Any], after: dict[str, Any]) -> float:
    """Seconds until no request was refused any more and half of them took at most twice as long as before."""
    bad = [
        number
        for number, window in enumerate(after["windows"])
        if window["others"] or window["p50"] is None or window["p50"] > 2 * calm["p50"]
    ]
    return WINDOW_SECONDS * (bad[-1] + 1 if bad else 0)


def _kill(server: Server, registered: Registered, rate: float) -> dict[str, Any]:
    """SIGKILL of a worker under load: what was lost, and how long until there is another."""
    victim = server.workers()[0].pid
    with sending(server, PATH, registered.json[1], CONNECTIONS, [{"rate": rate, "seconds": CALM_SECONDS}]) as asked:
        time.sleep(CALM_SECONDS / 4)
        (worker,) = (worker for worker in server.workers() if worker.pid == victim)
        worker.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        wait_until(lambda: len(server.workers()) == WORKERS and victim not in [w.pid for w in server.workers()])
        wait_until(lambda: _serving(server) == WORKERS)
        replaced = time.monotonic() - killed
        found = asked.result()["phases"][0]
    failed = sum(found["failed"].values())
    refused = sum(count for status, count in found["status"].items() if status != "200")
    windows = [number for number, window in enumerate(found["windows"]) if window["others"]]
    # What is lost later than the kill was not lost by it.
    others = refused if not windows or windows[-1] - windows[0] <= 1 else refused + failed
    return {"failed": failed, "seconds": replaced, "share": failed / (CONNECTIONS / WORKERS), "others": others} | found


def _serving(server: Server) -> int:
    try:
        return serving(server)
    except OSError:  # a connection of the worker that was killed
        return 0
