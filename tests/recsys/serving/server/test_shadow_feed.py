"""What a worker hands to the shadow arrives whole and in order; what finds no taker is counted, and nobody waits."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from recsys.serving.server import shadow_feed
from recsys.serving.server.settings import ServerSettings
from recsys.serving.server.shadow_feed import Answered, ShadowFeed, read_answered, socket_of


@pytest.fixture
def settings() -> Iterator[ServerSettings]:
    with tempfile.TemporaryDirectory() as folder:  # a socket's path must be short
        yield ServerSettings(state=Path(folder), parent=1, shadow="s", shadow_sample=0.5)


def answered(number: int) -> Answered:
    return Answered(f"r{number}", 1.5 * number, "clicks", "1", "score")


def outcomes(feed: ShadowFeed) -> dict[str, float]:
    return {name: getattr(feed, f"_{name}")._value.get() for name in ("busy", "away")}


async def connected(feed: ShadowFeed) -> asyncio.Task[None]:
    task = asyncio.create_task(feed.keep_connected())
    while feed._transport is None:
        await asyncio.sleep(0)
    return task


def test_what_is_in_the_sample_arrives_whole_and_in_order(settings: ServerSettings) -> None:
    bodies = {f"r{number}": b"x" * (number * 97) for number in range(400)}
    taken: list[tuple[Answered, bytes]] = []

    async def run() -> None:
        done = asyncio.Event()

        async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            taken.extend([item async for item in read_answered(reader)])
            writer.close()
            done.set()

        server = await asyncio.start_unix_server(listen, str(socket_of(settings)))
        feed = ShadowFeed(settings)
        task = await connected(feed)
        for number in range(400):
            feed.offer(answered(number), bodies[f"r{number}"])
            if number == 200:  # what was gathered is sent without being told to
                while feed._gathered:
                    await asyncio.sleep(0)
        task.cancel()
        feed.close()
        await done.wait()
        server.close()
        assert outcomes(feed) == {"busy": 0, "away": 0}

    asyncio.run(run())
    numbers = [int(item.request_id[1:]) for item, _ in taken]
    assert numbers == sorted(numbers)
    assert 150 < len(numbers) < 250
    assert all(item == answered(number) for (item, _), number in zip(taken, numbers, strict=True))
    assert all(body == bodies[item.request_id] for item, body in taken)


def test_a_shadow_that_takes_nothing_holds_nobody_up(settings: ServerSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadow_feed, "BUFFER_BYTES", 500_000)
    everything = settings.model_copy(update={"shadow_sample": 1.0})

    async def run() -> dict[str, Any]:
        hung = asyncio.Event()

        async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await hung.wait()
            writer.close()

        server = await asyncio.start_unix_server(listen, str(socket_of(settings)))
        feed = ShadowFeed(everything)
        task = await connected(feed)
        transport = feed._transport
        assert transport is not None
        for wave in (1, 2, 3):
            for number in range(100):
                feed.offer(answered(number), b"x" * 100_000)
            assert transport.get_write_buffer_size() + feed._gathered_bytes <= 500_000
            if wave == 1:
                assert outcomes(feed) == {"busy": 96, "away": 0}
            while feed._gathered:
                await asyncio.sleep(0)
        task.cancel()
        transport.abort()
        feed.offer(answered(0), b"")
        hung.set()
        server.close()
        return outcomes(feed)

    found = asyncio.run(run())
    # Of three hundred the buffer has room for four, and the kernel and the reader take some before they stop.
    assert 288 <= found["busy"] < 296
    assert found["away"] == 1


def test_without_a_shadow_requests_are_counted(settings: ServerSettings) -> None:
    everything = settings.model_copy(update={"shadow_sample": 1.0})

    async def run() -> dict[str, Any]:
        feed = ShadowFeed(everything)
        for number in range(7):
            feed.offer(answered(number), b"")
        return outcomes(feed)

    assert asyncio.run(run()) == {"busy": 0, "away": 7}


def test_a_request_that_the_log_leaves_out_is_not_sent(settings: ServerSettings) -> None:
    async def run() -> dict[str, Any]:
        feed = ShadowFeed(settings.model_copy(update={"log_sample": 0.0}))
        for number in range(7):
            feed.offer(answered(number), b"")
        return outcomes(feed)

    assert asyncio.run(run()) == {"busy": 0, "away": 0}
