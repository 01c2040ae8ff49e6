"""A model behind HTTP: worker processes that follow an alias of the registry, started, watched and ended here."""

from __future__ import annotations

import functools
import os
import socket
import tempfile
import threading
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.supervisors import Multiprocess

from features.errors import ConfigError
from features.frames import first_line
from features.validation import validate
from pipelines.console import Console
from pipelines.serve_beside import Beside
from pipelines.serve_worker import BoundedLog, WorkerConfig
from pipelines.tls import Tls
from recsys.serving.server.follower import AliasFollower
from recsys.serving.server.protocol import BoundedHttp
from recsys.serving.server.settings import ServerSettings

KEYS_VARIABLE = "RECSYS_API_KEYS"
"""Environment variable with the API keys, separated by commas."""
CONNECTIONS = 2000
"""Connections of a worker; further ones get 503."""
KEEP_ALIVE_SECONDS = 60
REQUEST_SECONDS = 30
"""Beyond its deadline a request has so long to come, head and body; then its connection is closed."""
WORKER_SILENT_SECONDS = 30
"""A worker that answers its parent no longer is replaced after so long."""


def serve(
    model: str,
    console: Console,
    *,
    tracking_uri: str,
    host: str = "127.0.0.1",
    port: int = 8080,
    workers: int = 1,
    poll_seconds: float = 2.0,
    drain_seconds: int = 30,
    log: Path | None = None,
    log_max_bytes: int = 10_000_000_000,
    tls: Tls | None = None,
    settings: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Serve a model until the process is told to stop.

    Args:
        model: `models:/NAME@ALIAS`, which is followed, `models:/NAME/VERSION`, or a bundle's folder.
        console: Told the address once the first version is announced.
        tracking_uri: Store of the registry.
        host: Address to listen on.
        port: Port; 0 takes a free one.
        workers: Processes.
        poll_seconds: The registry is asked this often.
        drain_seconds: Requests in hand have so long to be finished after SIGTERM.
        log: Folder of the prediction log; nothing is logged without it.
        log_max_bytes: When the log is larger than this its oldest files are removed.
        tls: Certificates; plain HTTP without them.
        settings: Further ones of `ServerSettings`.

    Returns:
        model, url.

    Raises:
        ConfigError: The address or a certificate cannot be used, or there can be no such model beside the served one.
        ArtifactError: There is no such store or model, or it cannot be served.
    """
    if tls is not None:
        tls.check()
    with tempfile.TemporaryDirectory(prefix="recsys-serve-") as folder:
        listening = _listen(host, port)
        url = f"http{'s' if tls else ''}://{host}:{listening.getsockname()[1]}"
        common = {"state": folder, "parent": os.getpid(), "api_keys": _keys()}
        told = validate(ServerSettings, common | dict(settings or {}))
        _prepare_environment(Path(folder))
        write = None if log is None else BoundedLog(log, log_max_bytes)
        beside = Beside(model, tracking_uri, told, write, poll_seconds, _LOG_CONFIG)
        supervisor = Multiprocess(_config(told, write, workers, drain_seconds, tls), [listening])
        follower = AliasFollower(model, tracking_uri, Path(folder))
        failed: list[BaseException] = []

        def follow() -> None:
            try:
                first = follower.first()
                console.note(f"serving {first.name} version {first.version} on {url} ({workers} workers)")
                beside.start(supervisor.should_exit)
                follower.follow(poll_seconds, supervisor.should_exit)
            except BaseException as error:
                failed.append(error)
                supervisor.should_exit.set()

        # The workers import while the first version is found and tried out.
        following = threading.Thread(target=follow, name="follow")
        following.start()
        try:
            supervisor.run()
        finally:
            supervisor.should_exit.set()
            following.join()
            beside.end()
            listening.close()
    if failed:
        raise failed[0]
    console.note("stopped")
    return {"model": model, "url": url}


def _config(
    settings: ServerSettings, write: BoundedLog | None, workers: int, drain_seconds: int, tls: Tls | None
) -> uvicorn.Config:
    protocol: Any = functools.partial(BoundedHttp, request_seconds=REQUEST_SECONDS + settings.timeout_ms / 1000)
    return WorkerConfig(
        settings,
        write,
        workers=workers,
        http=protocol,
        ws="none",
        lifespan="on",
        access_log=False,
        server_header=False,
        log_config=_LOG_CONFIG,
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=drain_seconds,
        timeout_worker_healthcheck=WORKER_SILENT_SECONDS,
        **(tls.options() if tls else {}),
    )


_LOG_CONFIG: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"plain": {"format": "%(asctime)s %(levelname)s %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "plain"}},
    "loggers": {
        "recsys": {"handlers": ["stderr"], "level": "INFO", "propagate": False},
        "uvicorn": {"handlers": ["stderr"], "level": "WARNING", "propagate": False},
    },
}


def _prepare_environment(state: Path) -> None:
    """What the processes that are started, and libraries imported later, read."""
    values = state / "metrics"
    values.mkdir()
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(values)
    # By default MLflow tries for minutes before it says that a server is gone.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.socket(family)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
    except OSError as error:
        raise ConfigError(
            "cannot listen on this address",
            field=f"{host}:{port}",
            found=first_line(error),
            mend="choose another --port",
        ) from error
    listening.set_inheritable(True)
    return listening


def _keys() -> list[str]:
    return [key.strip() for key in os.environ.get(KEYS_VARIABLE, "").split(",") if key.strip()]
