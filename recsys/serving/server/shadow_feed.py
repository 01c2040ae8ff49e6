"""From a worker to the shadow's process: what was answered, sent some time after, dropped if nobody takes it."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import orjson
from prometheus_client import CollectorRegistry, Counter

from recsys.serving.server.settings import ServerSettings
from recsys.serving.server.shares import in_share

SCORE, SCORE_ARROW, RANK, RANK_ARROW = "score", "score arrow", "rank", "rank arrow"
BUFFER_BYTES = 8_000_000
"""So much waits in a worker for the shadow at most."""
_CONNECT_SECONDS = 0.2
_GATHER_SECONDS = 0.1
"""What was answered meanwhile is sent in one go: a message each would wake the shadow for every request."""
_SIZES = struct.Struct(">II")


@dataclass(frozen=True)
class Answered:
    """A request that was answered.

    Attributes:
        request_id: Its id.
        at: When it was answered, in seconds since 1970.
        name: The model that answered.
        version: Its version.
        kind: How the body is to be read: `SCORE`, `SCORE_ARROW`, `RANK` or `RANK_ARROW`.
    """

    request_id: str
    at: float
    name: str
    version: str
    kind: str


def socket_of(settings: ServerSettings) -> Path:
    """Where the shadow listens."""
    return settings.state / "shadow.sock"


def outcomes(own: CollectorRegistry) -> Counter:
    """The counter of what became of the requests for the shadow; workers and the shadow count in it."""
    return Counter(
        "recsys_shadow_requests",
        "Requests for the shadow: scored, or dropped and why.",
        ["outcome"],
        registry=own,
    )


class ShadowFeed:
    """Hands requests to the shadow's process. It never waits: what finds no room is dropped and counted.

    Args:
        settings: The shadow's sample.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._path = socket_of(settings)
        # A score that the prediction log would leave out need not be made.
        self._sample = min(settings.shadow_sample, settings.log_sample)
        counter = outcomes(CollectorRegistry())
        self._busy, self._away = counter.labels("busy"), counter.labels("away")
        self._transport: asyncio.WriteTransport | None = None
        self._gathered: list[bytes] = []
        self._gathered_bytes = 0

    async def keep_connected(self) -> None:
        """Connects, and again whenever the shadow was started anew."""
        loop = asyncio.get_running_loop()
        while True:
            if self._transport is None or self._transport.is_closing():
                with contextlib.suppress(OSError):  # it is not there yet
                    transport, _ = await loop.create_unix_connection(asyncio.Protocol, str(self._path))
                    self._transport = cast(asyncio.WriteTransport, transport)
            await asyncio.sleep(_CONNECT_SECONDS)

    def offer(self, answered: Answered, body: bytes) -> None:
        """Takes a request, to be sent within a tenth of a second."""
        if not in_share(answered.request_id, self._sample):
            return
        transport = self._transport
        if transport is None or transport.is_closing():
            self._away.inc()
            return
        head = orjson.dumps(answered)
        size = _SIZES.size + len(head) + len(body)
        if transport.get_write_buffer_size() + self._gathered_bytes + size > BUFFER_BYTES:
            self._busy.inc()
            return
        if not self._gathered:
            asyncio.get_running_loop().call_later(_GATHER_SECONDS, self._send)
        self._gathered.append(b"".join((_SIZES.pack(len(head), len(body)), head, body)))
        self._gathered_bytes += size

    def close(self) -> None:
        """Ends the connection once everything was sent."""
        self._send()
        if self._transport is not None:
            self._transport.close()

    def _send(self) -> None:
        sent, self._gathered, self._gathered_bytes = self._gathered, [], 0
        if self._transport is None or self._transport.is_closing():
            self._away.inc(len(sent))
        else:
            self._transport.write(b"".join(sent))


async def read_answered(reader: asyncio.StreamReader) -> AsyncIterator[tuple[Answered, bytes]]:
    """What a worker sends, until it ends."""
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            head, body = _SIZES.unpack(await reader.readexactly(_SIZES.size))
            answered = Answered(**orjson.loads(await reader.readexactly(head)))
            yield answered, await reader.readexactly(body)
