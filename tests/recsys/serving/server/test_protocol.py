"""A connection on which no request comes in time, or one that never ends, is closed; others are served."""

from __future__ import annotations

import asyncio
import functools
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn

from recsys.serving.server.protocol import HEAD_BYTES, BoundedHttp

GET = b"GET / HTTP/1.1\r\nHost: here\r\n"
POST = b"POST / HTTP/1.1\r\nHost: here\r\n"


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the size of the body."""
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    body = str(size).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture(scope="module")
def address() -> Iterator[tuple[str, int]]:
    protocol: Any = functools.partial(BoundedHttp, request_seconds=0.5)
    server = uvicorn.Server(uvicorn.Config(app, http=protocol, ws="none", lifespan="off", log_level="error"))
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])))
    thread.start()
    yield listening.getsockname()
    server.should_exit = True
    thread.join()


def answers(address: tuple[str, int], *sent: bytes) -> bytes:
    """What comes back until the server closes, each part sent when the one before was answered or as it is."""
    received = b""
    with socket.create_connection(address, timeout=60) as connection:
        try:
            for part in sent:
                connection.sendall(part)
            while found := connection.recv(65536):
                received += found
        except ConnectionError:
            pass
    return received


def test_a_connection_without_a_request_is_closed(address: tuple[str, int]) -> None:
    assert answers(address) == b""
    assert answers(address, GET) == b""
    assert answers(address, POST + b"Content-Length: 9\r\n\r\nhalf") == b""


def test_a_request_after_another_has_its_own_time(address: tuple[str, int]) -> None:
    found = answers(address, GET + b"\r\n", POST + b"Content-Length: 9\r\n\r\nhalf")
    assert found.count(b"200 OK") == 1
    found = answers(address, GET + b"\r\n", POST + b"Content-Length: 4\r\nConnection: close\r\n\r\nfull")
    assert found.count(b"200 OK") == 2
    assert found.endswith(b"\r\n\r\n4")


@pytest.mark.parametrize(
    "endless",
    [
        b"GET /" + b"a" * (1 << 20),
        GET + b"X-Long: " + b"a" * (1 << 20),
        GET + b"".join(b"X-%d: a\r\n" % number for number in range(100_000)),
    ],
    ids=["address", "header", "headers"],
)
def test_headers_without_end_are_refused(address: tuple[str, int], endless: bytes) -> None:
    # Bytes that were still on their way when the connection was closed may take the answer with them.
    assert answers(address, endless)[:12] in (b"HTTP/1.1 431", b"")


def test_trailers_without_end_are_cut_off(address: tuple[str, int]) -> None:
    trailers = b"".join(b"X-%d: a\r\n" % number for number in range(100_000))
    assert b"200 OK" not in answers(address, POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n" + trailers)


def test_bodies_may_be_larger_than_headers(address: tuple[str, int]) -> None:
    size = 20 * HEAD_BYTES
    body = b"x" * size
    plain = POST + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % size
    assert answers(address, plain, body).endswith(b"\r\n\r\n%d" % size)
    chunks = POST + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    tiny = b"1\r\nx\r\n" * HEAD_BYTES
    assert answers(address, chunks, tiny, b"0\r\n\r\n").endswith(b"\r\n\r\n%d" % HEAD_BYTES)
