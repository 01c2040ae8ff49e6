"""Servers in processes of their own in front of one registry, and the process that sends them requests."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from benchmarks.harness import ROOT, child
from recsys.serving.registry import Registry

NAME = "criteo"
WORKERS = 2
PATIENCE_SECONDS = 300.0
SAMPLE_SECONDS = 0.25


class Server:
    """A server that was started, and all the processes it has started.

    Args:
        command: What starts it.
        environment: Variables beside those of this process.
        log: Where its messages go.
        ready: Path that answers 200 once it serves.
        url: Its address; from the first line it prints if left out.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], log: Path, ready: str, url: str | None = None
    ) -> None:
        self.log = log
        with log.open("wb") as messages:
            self.process = subprocess.Popen(
                list(command),
                stdout=subprocess.PIPE if url is None else messages,
                stderr=messages,
                env={**os.environ, **environment},
                cwd=ROOT,
                text=True,
                start_new_session=True,
            )
        try:
            self.url = url or self._announced()
            self._wait(self.url + ready)
        except BaseException:
            self.stop()
            raise

    def get(self, path: str) -> str:
        """What it answers to GET."""
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return str(answer.read().decode())

    def workers(self) -> list[psutil.Process]:
        """The worker processes of `recsys serve`; the process that tries a version out is one while it lasts."""
        return [process for process in self._tree()[1:] if _starts(process, "spawn_main")]

    def memory(self) -> int:
        """Bytes resident in all its processes; what they share counts for each."""
        total = 0
        for process in self._tree():
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
        return total

    def stop(self) -> int:
        """Asks it to end, and ends what is left; its exit code."""
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            return -1
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            if self.process.stdout is not None:
                self.process.stdout.close()

    def _tree(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.Error):
            own = psutil.Process(self.process.pid)
            return [own, *own.children(recursive=True)]
        return []

    def _announced(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        urls = [word for word in line.split() if word.startswith("http://")]
        if not urls:
            raise RuntimeError(f"the server did not start: {line!r}, {self.log.read_text()[-2000:]}")
        return urls[0]

    def _wait(self, url: str) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
                if answer.status == 200:
                    return
            time.sleep(0.2)
        raise RuntimeError(f"the server is not ready: {self.log.read_text()[-2000:]}")


@contextlib.contextmanager
def recsys_server(store: str, folder: Path, *options: str) -> Iterator[Server]:
    """`recsys serve` as its users start it."""
    command = [sys.executable, "-m", "pipelines.cli", "serve", f"models:/{NAME}@champion", "--tracking-uri", store]
    command += ["--workers", str(WORKERS), "--port", "0", *options]
    log = folder / f"recsys-{time.time_ns()}.log"
    server = Server(command, {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}, log, "/readyz")
    try:
        until(lambda: serving(server) == WORKERS)
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def mlflow_server(store: str, folder: Path) -> Iterator[Server]:
    """`mlflow models serve` as its users start it, with a thread of torch a worker, which is faster for it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", f"models:/{NAME}@champion"]
    command += ["--env-manager", "local", "-w", str(WORKERS), "-p", str(port)]
    environment = {"MLFLOW_TRACKING_URI": store, "MLFLOW_DISABLE_TELEMETRY": "true", "OMP_NUM_THREADS": "1"}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    server = Server(command, environment, folder / "mlflow.log", "/ping", f"http://127.0.0.1:{port}")
    try:
        yield server
    finally:
        server.stop()


def serving(server: Server, version: int | None = None) -> int:
    """Workers of `recsys serve` that serve the version, or any."""
    total = 0
    for line in server.get("/metrics").splitlines():
        if line.startswith("recsys_workers_serving{"):
            name, _, value = line.rpartition(" ")
            if version is None or f'version="{version}"' in name:
                total += int(float(value))
    return total


def promote(store: str, version: int) -> None:
    """Moves the alias."""
    registry = Registry(store)
    registry.set_alias(registry.resolve(f"models:/{NAME}/{version}"), "champion")


def send(server: Server, path: str, file: Path, connections: int, phases: Sequence[Mapping[str, Any]]) -> Any:
    """Sends requests, see `benchmarks.scripts.send_requests`."""
    request = {"url": server.url + path, "file": str(file), "connections": connections, "phases": list(phases)}
    return child([sys.executable, "-m", "benchmarks.scripts.send_requests"], request, threads=1)


@contextlib.contextmanager
def sending(
    server: Server, path: str, file: Path, connections: int, phases: Sequence[Mapping[str, Any]]
) -> Iterator[Future[Any]]:
    """The same while something else is done."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(send, server, path, file, connections, phases)


class MemoryWatch:
    """Samples the resident memory of a server's processes while inside.

    Attributes:
        samples: (time, bytes) by the clock of `time.monotonic`.
    """

    def __init__(self, server: Server) -> None:
        self._server, self._over = server, threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.samples: list[tuple[float, int]] = []

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def most(self, start: float = 0.0, end: float = float("inf")) -> int:
        """The most bytes of a time."""
        return max((size for at, size in self.samples if start <= at < end), default=0)

    def _run(self) -> None:
        while not self._over.wait(SAMPLE_SECONDS):
            self.samples.append((time.monotonic(), self._server.memory()))


def until(done: Any) -> Any:
    """Asks again and again until the answer is true.

    Raises:
        RuntimeError: It does not become true.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if answer := done():
            return answer
        time.sleep(0.05)
    raise RuntimeError("it did not come true in time")


def _starts(process: psutil.Process, what: str) -> bool:
    try:
        return any(what in part for part in process.cmdline())
    except psutil.Error:
        return False
