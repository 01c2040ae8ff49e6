"""Connections, shared out evenly between the workers of a server.

All workers wait at one socket.  Left alone, the loop of the worker that wakes first takes every connection that waits,
and with clients that keep theirs one worker may answer all of them while its neighbour answers none.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import mmap
import os
import socket
from collections.abc import Callable
from pathlib import Path
from ssl import SSLContext
from typing import Any

import uvloop

from recsys.serving.server.liveness import lives

STEP_BACK_SECONDS = 0.005
"""A worker that has more connections than another leaves it so long to take the next one."""
RETRY_SECONDS = 1.0
"""After no connection could be taken, as when the process has too many files open."""

_SLOTS = 512
_BYTES = 16

logger = logging.getLogger(__name__)


class ConnectionCounts:
    """How many connections every worker has, in a small file that they share.

    Args:
        file: Made if it is not there.
    """

    def __init__(self, file: Path) -> None:
        with open(os.open(file, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as opened:
            fcntl.flock(opened, fcntl.LOCK_EX)
            opened.truncate(_SLOTS * _BYTES)
            self._values = memoryview(mmap.mmap(opened.fileno(), _SLOTS * _BYTES)).cast("q")
            free = [slot for slot in range(_SLOTS) if not self._taken(slot)]
            self._slot = free[0]
            self._values[2 * self._slot + 1] = 0
            self._values[2 * self._slot] = os.getpid()
            # The map keeps a copy of the open file, and with it the lock.
            fcntl.flock(opened, fcntl.LOCK_UN)

    def add(self, change: int) -> None:
        """Counts own connections that came or went."""
        self._values[2 * self._slot + 1] += change

    def above_another(self) -> bool:
        """Whether another worker that lives has fewer."""
        own = self._values[2 * self._slot + 1]
        for slot in range(_SLOTS):
            if slot != self._slot and self._values[2 * slot + 1] < own and self._taken(slot):
                return True
        return False

    def leave(self) -> None:
        """This worker takes no more connections."""
        self._values[2 * self._slot] = 0

    def _taken(self, slot: int) -> bool:
        process = self._values[2 * slot]
        return process != 0 and lives(process)


class SharingLoop(uvloop.Loop):
    """The event loop of a worker: a server made on a socket takes a connection only if no other worker has fewer.

    Args:
        file: Of `ConnectionCounts`.
    """

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file = file

    async def create_server(  # type: ignore[override]
        self, protocol_factory: Any, *, sock: socket.socket, ssl: SSLContext | None = None, backlog: int = 100
    ) -> Any:
        """A server on a socket that is bound."""
        sock.setblocking(False)
        sock.listen(backlog)
        return _Listener(self, protocol_factory, sock, ssl, ConnectionCounts(self._file))


class _Listener:
    """What uvicorn needs of a server."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        factory: Callable[[], asyncio.Protocol],
        listening: socket.socket,
        ssl: SSLContext | None,
        counts: ConnectionCounts,
    ) -> None:
        self._loop, self._factory, self._listening, self._ssl = loop, factory, listening, ssl
        self._counts = counts
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        loop.add_reader(listening, self._ready)

    def close(self) -> None:
        """Takes no more connections; those there are go on."""
        self._counts.leave()
        if self._timer is None:
            self._loop.remove_reader(self._listening)
        else:
            self._timer.cancel()

    async def wait_closed(self) -> None:
        """Nothing is left to wait for."""

    def _ready(self) -> None:
        if self._counts.above_another():
            self._later(STEP_BACK_SECONDS)
        else:
            self._take()

    def _later(self, seconds: float) -> None:
        self._loop.remove_reader(self._listening)
        self._timer = self._loop.call_later(seconds, self._again)

    def _again(self) -> None:
        self._timer = None
        self._loop.add_reader(self._listening, self._ready)
        self._take()

    def _take(self) -> None:
        """Takes one connection, if another worker did not: then the next one is again whose turn it is."""
        try:
            connection, _ = self._listening.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            logger.error("no connection could be taken: %s", error.strerror)
            self._later(RETRY_SECONDS)
            return
        self._counts.add(1)
        task = self._loop.create_task(self._connect(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await self._loop.connect_accepted_socket(self._counted, connection, ssl=self._ssl)
        except Exception as error:  # no TLS, or gone again: its end was told to no protocol
            logger.info("a connection was lost before its first request: %s", type(error).__name__)
            self._counts.add(-1)
            with contextlib.suppress(OSError):
                connection.close()

    def _counted(self) -> asyncio.Protocol:
        protocol = self._factory()
        lost = protocol.connection_lost

        def connection_lost(error: Exception | None) -> None:
            self._counts.add(-1)
            lost(error)

        protocol.connection_lost = connection_lost  # type: ignore[method-assign, assignment]
        return protocol
