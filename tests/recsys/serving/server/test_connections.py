"""Workers share connections evenly, and none waits for a neighbour that is gone or does not take them."""

from __future__ import annotations

import asyncio
import socket
import struct
import subprocess
from pathlib import Path
from typing import Any

from recsys.serving.server.connections import ConnectionCounts, SharingLoop


def test_who_has_more_than_another_is_told(tmp_path: Path) -> None:
    one, two = (ConnectionCounts(tmp_path / "counts") for _ in range(2))
    assert (one.above_another(), two.above_another()) == (False, False)
    one.add(2)
    two.add(1)
    assert (one.above_another(), two.above_another()) == (True, False)
    two.add(1)
    assert (one.above_another(), two.above_another()) == (False, False)
    one.add(1)
    two.leave()
    assert not one.above_another()


def test_a_worker_that_died_counts_no_more(tmp_path: Path) -> None:
    file = tmp_path / "counts"
    one = ConnectionCounts(file)
    one.add(3)
    dead = subprocess.Popen(["true"])
    dead.wait()
    with file.open("r+b") as opened:
        opened.seek(16)
        opened.write(struct.pack("qq", dead.pid, 1))
    assert not one.above_another()
    # Its place is taken by the worker that takes its place.
    two = ConnectionCounts(file)
    assert struct.unpack_from("qq", file.read_bytes(), 32) == (0, 0)
    two.add(1)
    assert one.above_another()


class Echo(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


def test_connections_are_counted_as_they_come_and_go(tmp_path: Path) -> None:
    file = tmp_path / "counts"
    listening = socket.create_server(("127.0.0.1", 0))
    loop = SharingLoop(file)

    async def talk() -> None:
        server = await loop.create_server(Echo, sock=listening)
        idle = ConnectionCounts(file)  # a neighbour with fewer connections, which never takes one
        streams = []
        for number in range(1, 4):
            reader, writer = await asyncio.open_connection(*listening.getsockname())
            writer.write(b"here")
            assert await reader.readexactly(4) == b"here"
            streams.append(writer)
            assert _count(file) == number
        assert not idle.above_another()
        for writer in streams:
            writer.close()
        while _count(file):
            await asyncio.sleep(0)
        server.close()
        await server.wait_closed()

    with listening:
        loop.run_until_complete(talk())
        loop.close()


def _count(file: Path) -> int:
    return int(struct.unpack_from("qq", file.read_bytes(), 0)[1])
