"""HTTP/1.1 on one connection, with a bound on what comes beside a body, and on the time until a request is there.

Uvicorn's protocol under httptools keeps headers of any size, and waits for them for ever: a handful of clients could
take the memory, and some thousand idle ones all connections.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES = 65_536
"""Bytes in a row that are no body: request line, headers, trailers, chunk sizes."""
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class BoundedHttp(HttpToolsProtocol):
    """Uvicorn's protocol, with bounds.

    Args:
        request_seconds: From its first byte a request, head and body, has so long to come; so has the first byte of a
            new connection.
        arguments: Uvicorn's.
    """

    def __init__(self, *, request_seconds: float, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._request_seconds = request_seconds
        self._beside = 0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._there()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._beside += len(data)
        super().data_received(data)
        if self._beside > HEAD_BYTES and not self.transport.is_closing():
            if self.cycle is None or self.cycle.response_complete:
                self.transport.write(_TOO_LARGE)
            self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._wait()

    def on_body(self, body: bytes) -> None:
        self._beside = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._beside = 0
        self._there()
        super().on_message_complete()

    def _wait(self) -> None:
        self._there()
        self._timer = self.loop.call_later(self._request_seconds, self._late)

    def _there(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()
