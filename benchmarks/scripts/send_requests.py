"""Sends requests over HTTP and takes the time: clients that wait for their answers, or arrivals that do not.

Answers are kept as they come and looked at after the clock has stopped, so that looking costs no request anything.
"""

from __future__ import annotations

import asyncio
import gc
import json
import signal
import sys
import time
from collections import Counter, deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import orjson
import uvloop

TOLERANCE = 1e-6
PATIENCE_SECONDS = 10.0
"""How long answers are waited for after the last request was sent."""
NOT_SENT = "not sent"
GIVE_UP_SECONDS = 1.0
"""A request that has found no idle connection for so long is not sent any more."""
WINDOW_SECONDS = 0.5


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Send requests in phases that follow one another.

    Args:
        request: url; file (JSON: `bodies`, sent in turn, and `expected`: version -> body -> [rows, tasks]
            probabilities); connections (opened before the first request and again when they are lost); phases, each
            with seconds and either clients (each sends its next request when its last is answered) or rate (a second;
            arrivals are a Poisson process, and one that finds no idle connection waits for it).

    Returns:
        A list `phases`: rate of arrivals and of answers 200, p50, p99 and worst time of these in milliseconds from the
        arrival on, worst from the sending on, times of refusals, counts of answers by `status` and by `version`,
        `failed` (no answer) by reason, `wrong` (answers 200 that are not what the version they name scores),
        `windows` of half a second; and the share of a core the sender took.
    """
    given = json.loads(Path(request["file"]).read_text(encoding="utf-8"))
    load = _Load(request, [body.encode() for body in given["bodies"]])
    gc.disable()
    cpu = time.process_time()
    started = time.perf_counter()
    try:
        uvloop.run(load.run())
    finally:
        gc.enable()
    busy = (time.process_time() - cpu) / (time.perf_counter() - started)
    phases = []
    for number, phase in enumerate(request["phases"]):
        own = [sent for sent in load.sent if sent.phase == number]
        phases.append(_summary(own, phase["seconds"], load.starts[number], given["expected"]))
    return {"phases": phases, "sender_cores": round(busy, 3)}


@dataclass(slots=True)
class _Sent:
    """One request: when it arrived, and what became of it."""

    phase: int
    body: int
    arrived: float
    written: float = 0.0
    answered: float = 0.0
    answer: bytes | None = None
    failure: str | None = None


class _Load:
    def __init__(self, request: dict[str, Any], bodies: list[bytes]) -> None:
        url = urlsplit(request["url"])
        self._host, self._port = str(url.hostname), int(url.port or 80)
        self._phases, self._wanted = request["phases"], request["connections"]
        head = f"POST {url.path} HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Type: application/json\r\nContent-Length: "
        self._requests = [head.encode() + str(len(body)).encode() + b"\r\n\r\n" + body for body in bodies]
        self._next = 0
        self._idle: deque[_Connection] = deque()
        self._backlog: deque[_Sent] = deque()
        self._opening = 0
        self._open: set[_Connection] = set()
        self._closed_until = 0.0
        self._phase = 0
        self.sent: list[_Sent] = []
        self.starts: list[float] = []

    async def run(self) -> None:
        self._loop = asyncio.get_running_loop()
        await asyncio.gather(*(self._connect() for _ in range(self._wanted)))
        rng = np.random.default_rng(0)
        for number, phase in enumerate(self._phases):
            self._phase = number
            start = time.perf_counter()
            self.starts.append(start)
            if "clients" in phase:
                self._closed_until = start + phase["seconds"]
                for _ in range(phase["clients"]):
                    self._arrive(time.perf_counter())
                await asyncio.sleep(phase["seconds"])
                self._closed_until = 0.0
            else:
                gaps = rng.exponential(1 / phase["rate"], int(phase["rate"] * phase["seconds"]))
                await self._arrivals(start + np.cumsum(gaps))
        end = time.perf_counter() + PATIENCE_SECONDS
        while any(connection.sent for connection in self._open) and time.perf_counter() < end:
            await asyncio.sleep(0.05)
        for sent in self.sent:
            if sent.answer is None and sent.failure is None:
                sent.failure = "no answer" if sent.written else NOT_SENT

    async def _arrivals(self, times: np.ndarray) -> None:
        """Sends at these times. The timer of the process is exact where that of an event loop counts milliseconds."""
        woken = asyncio.Event()
        self._loop.add_signal_handler(signal.SIGALRM, woken.set)
        for at in times.tolist():
            wait = at - time.perf_counter()
            if wait > 0:
                woken.clear()
                signal.setitimer(signal.ITIMER_REAL, wait)
                await woken.wait()
            self._arrive(at)

    def _arrive(self, at: float) -> None:
        sent = _Sent(self._phase, self._next % len(self._requests), at)
        self._next += 1
        self.sent.append(sent)
        if self._idle:
            self._idle.popleft().send(sent, self._requests[sent.body])
        else:
            self._backlog.append(sent)

    def answered(self, connection: _Connection) -> None:
        now = time.perf_counter()
        while self._backlog:
            sent = self._backlog.popleft()
            if now - sent.arrived < GIVE_UP_SECONDS:
                connection.send(sent, self._requests[sent.body])
                return
            sent.failure = NOT_SENT
        self._idle.append(connection)
        if now < self._closed_until:
            self._arrive(now)

    def lost(self, connection: _Connection) -> None:
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        self._loop.create_task(self._connect())
        if connection.sent is not None and time.perf_counter() < self._closed_until:
            self._arrive(time.perf_counter())

    async def _connect(self) -> None:
        while True:
            try:
                _, connection = await self._loop.create_connection(lambda: _Connection(self), self._host, self._port)
            except OSError:
                await asyncio.sleep(0.05)
                continue
            self._open.add(connection)
            self.answered(connection)
            return


class _Connection(asyncio.Protocol):
    def __init__(self, load: _Load) -> None:
        self._load = load
        self._read = b""
        self.sent: _Sent | None = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def send(self, sent: _Sent, request: bytes) -> None:
        self.sent, sent.written = sent, time.perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._read = self._read + data if self._read else data
        end = self._read.find(b"\r\n\r\n")
        if end < 0:
            return
        at = self._read.lower().find(b"content-length:", 0, end)
        length = int(self._read[at + 15 : self._read.find(b"\r", at)])
        if len(self._read) < end + 4 + length or self.sent is None:
            return
        self.sent.answered, self.sent.answer = time.perf_counter(), self._read
        self._read, self.sent = b"", None
        self._load.answered(self)

    def connection_lost(self, error: Exception | None) -> None:
        if self.sent is not None:
            self.sent.failure = type(error).__name__ if error else "closed"
        self._load.lost(self)


def _summary(own: list[_Sent], seconds: float, start: float, expected: dict[str, Any]) -> dict[str, Any]:
    statuses: Counter[str] = Counter()
    versions: Counter[str] = Counter()
    failed = Counter(sent.failure for sent in own if sent.failure)
    wrong = 0
    good: list[tuple[float, float]] = []
    bad: list[float] = []
    from_written: list[float] = []
    refused: list[float] = []
    for sent in own:
        if sent.answer is None:
            bad.append(sent.arrived)
            continue
        status = sent.answer[9:12].decode()
        statuses[status] += 1
        taken = (sent.answered - sent.arrived) * 1e3
        if status != "200":
            bad.append(sent.arrived)
            refused.append((sent.answered - sent.written) * 1e3)
            continue
        good.append((sent.arrived, taken))
        from_written.append((sent.answered - sent.written) * 1e3)
        version, right = _look(sent, expected)
        versions[version] += 1
        wrong += not right
    times = np.array([taken for _, taken in good] or [np.nan])
    windows: list[dict[str, Any]] = []
    arrived, others = np.array([at for at, _ in good]), np.array(bad)
    for number in range(round(seconds / WINDOW_SECONDS)):
        from_, to = start + number * WINDOW_SECONDS, start + (number + 1) * WINDOW_SECONDS
        within = times[: len(arrived)][(from_ <= arrived) & (arrived < to)]
        windows.append(
            {
                "answered": len(within),
                "others": int(((from_ <= others) & (others < to)).sum()),
                "p50": _percentile(within, 50),
                "p99": _percentile(within, 99),
            }
        )
    return {
        "arrivals": len(own),
        "arrival_rate": round(len(own) / seconds, 1),
        "rate": round(sum(at + taken / 1e3 < start + seconds for at, taken in good) / seconds, 1),
        "p50": _percentile(times, 50),
        "p99": _percentile(times, 99),
        "worst": _percentile(times, 100),
        "worst_from_sending": _percentile(from_written, 100),
        "refused_p50": _percentile(refused, 50),
        "refused_p99": _percentile(refused, 99),
        "status": dict(statuses),
        "version": dict(versions),
        "failed": {str(reason): count for reason, count in failed.items()},
        "wrong": wrong,
        "windows": windows,
    }


def _look(sent: _Sent, expected: dict[str, Any]) -> tuple[str, bool]:
    """The version an answer names, and whether its probabilities are that version's."""
    assert sent.answer is not None
    head, _, body = sent.answer.partition(b"\r\n\r\n")
    answer = orjson.loads(body)
    scores: Any
    if "predictions" in answer:  # MLflow's server, which names no version
        version, named = next(iter(expected)), True
        scores = [list(row.values()) for row in answer["predictions"]]
    else:
        version, scores = answer["version"], np.transpose(list(answer["scores"].values()))
        named = f"x-model-version: {version}\r\n".encode() in head.lower() + b"\r\n"
    right = version in expected and np.allclose(scores, expected[version][sent.body], rtol=0, atol=TOLERANCE)
    return version, bool(named and right)


def _percentile(times: Any, share: float) -> float | None:
    if not len(times) or np.isnan(times[0]):
        return None
    return round(float(np.percentile(times, share)), 3)


if __name__ == "__main__":
    print(json.dumps(run(json.load(sys.stdin))))
