"""What runs in a worker process of the server; light to import, since every worker does."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import uvicorn

from features.files import size_of
from pipelines.logs import append
from recsys.serving.server.settings import ServerSettings

if TYPE_CHECKING:
    from fastapi import FastAPI


def worker_app(settings: ServerSettings, write: BoundedLog | None) -> FastAPI:
    """The application of a worker process; what it needs is imported there and not in the parent."""
    from recsys.serving.server.app import create_app

    return create_app(settings, write)


class WorkerConfig(uvicorn.Config):
    """uvicorn's settings of a worker, whose connections are shared out evenly.

    Args:
        settings: Of the application.
        write: Writes the prediction log, if there is one.
        options: Of uvicorn.
    """

    def __init__(self, settings: ServerSettings, write: BoundedLog | None, **options: Any) -> None:
        super().__init__(functools.partial(worker_app, settings, write), factory=True, **options)
        self._connections = settings.state / "connections"

    def get_loop_factory(self) -> Callable[[], asyncio.AbstractEventLoop]:
        """Of the event loop of a worker, asked for in the worker."""
        from recsys.serving.server.connections import SharingLoop

        return functools.partial(SharingLoop, self._connections)


class BoundedLog:
    """Adds files to a log and removes the oldest ones when it becomes too large.

    Args:
        folder: The log.
        max_bytes: Bytes of all its files.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder, self._max_bytes = folder, max_bytes

    def __call__(self, rows: pl.DataFrame) -> None:
        """Adds rows.

        Raises:
            ArtifactError: They cannot be written.
        """
        append(self._folder, rows)
        # Names begin with the time of writing.
        files = sorted(path for path in self._folder.glob("*.parquet") if not path.name.startswith("."))
        sizes = [size_of(path) for path in files]
        excess = sum(sizes) - self._max_bytes
        for path, size in zip(files[:-1], sizes, strict=False):
            if excess <= 0:
                break
            path.unlink(missing_ok=True)
            excess -= size
