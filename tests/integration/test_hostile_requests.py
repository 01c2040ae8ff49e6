"""Requests from somebody who means harm: refused or answered, by the same process, in bounded memory."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.integration.hostile import ARROW, UNANSWERED, bodies, raw_requests, wide_bundle, wide_rows
from tests.integration.test_serve import PATIENCE, Server, Store

REFUSALS = {400, 413, 415, 422}
GROWTH = 150_000_000
"""Bytes that a worker may gain over thousands of requests; caches and the allocator's arenas fill at first."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A model with one feature of every sort, from a folder."""
    folder = tmp_path_factory.mktemp("hostile")
    bundle = wide_bundle(folder / "clicks")
    options = ["--max-rows", "300", "--max-body-mb", "0.2", "--timeout-ms", "60000"]
    with Server(Store("", folder, {}), *options, model=str(bundle)) as started:
        started.ready()
        fill(started, bodies(200, 0, wide_rows(20, 1)))
        yield started
        assert started.stop() == 0
        assert "Traceback" not in started.log.read_text()


@pytest.fixture
def unharmed(server: Server) -> Iterator[None]:
    """The worker that was there before is there afterwards, answers, and is hardly larger."""
    (worker,) = server.workers()
    before = worker.memory_info().rss
    yield
    assert server.workers() == [worker]
    assert worker.memory_info().rss < before + GROWTH
    assert server.http.get("/healthz").status_code == 200
    assert server.metrics()["recsys_requests_in_hand"] == 0
    intact = server.http.post("/v1/score", json={"rows": wide_rows(3, 2)})
    assert intact.status_code == 200, intact.text


def fill(server: Server, requests: Any) -> Counter[tuple[str, int]]:
    """Sends requests one after another over one connection, and counts the answers."""
    tally: Counter[tuple[str, int]] = Counter()
    connection = http.client.HTTPConnection(*server.address, timeout=PATIENCE)
    for request in requests:
        connection.request("POST", request.path, request.body, {"Content-Type": request.media})
        answer = connection.getresponse()
        text = answer.read()
        tally[request.kind, answer.status] += 1
        assert answer.status in {200, *REFUSALS}, (request, text)
        assert b"Traceback" not in text
        if answer.status != 200:
            assert json.loads(text)["error"]["message"]
        elif request.media == ARROW:
            index = ["index"] if request.path == "/v1/rank" else []
            assert pa.ipc.open_stream(text).read_all().column_names == [*index, "p_click", "p_buy"]
        else:
            assert json.loads(text)["model"] == "clicks"
    return tally


@pytest.mark.parametrize(("count", "seed"), [(700, 1), pytest.param(10_000, 2, marks=pytest.mark.slow)])
@pytest.mark.usefixtures("unharmed")
def test_mutated_bodies_are_answered_or_refused(server: Server, count: int, seed: int) -> None:
    tally = fill(server, bodies(count, seed, wide_rows(20, 1)))
    for (kind, status), number in sorted(tally.items()):
        print(f"{kind:30} {status} {number:6,}")
    statuses = Counter({status: 0 for _, status in tally})
    for (_, status), number in tally.items():
        statuses[status] += number
    print(f"{count:,} bodies: {dict(sorted(statuses.items()))}")
    assert {status for kind, status in tally if "intact" in kind} == {200}
    assert {kind for kind, status in tally if status != 200} == {kind for kind, _ in tally if "intact" not in kind}
    assert set(statuses) >= {200, 400, 413, 422}


def exchange(address: tuple[str, int], sent: bytes, *, answered: bool) -> bytes:
    """All that comes back for some bytes, until either side has had enough."""
    received = b""
    with socket.create_connection(address, timeout=PATIENCE) as connection:
        # The server may close while there is still something to send.
        with contextlib.suppress(ConnectionError):
            connection.sendall(sent)
        with contextlib.suppress(ConnectionError):
            while answered and b"\r\n\r\n" not in received and (part := connection.recv(65536)):
                received += part
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while part := connection.recv(65536):
                received += part
    return received


@pytest.mark.usefixtures("unharmed")
def test_broken_http_is_answered_or_refused(server: Server) -> None:
    requests = raw_requests(json.dumps({"rows": wide_rows(1, 3)}).encode())
    tally: Counter[int] = Counter()
    for name, sent in requests.items():
        received = exchange(server.address, sent, answered=name not in UNANSWERED)
        statuses = [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", received)]
        tally.update(statuses)
        for status in statuses:
            # The body that never came whole, by its deadline.
            assert status in {100, 200, 404, 405, 431, *REFUSALS} or (status == 503 and b'"deadline"' in received), name
        assert b"Traceback" not in received
        assert b"root:" not in received
        if name in ("chunked", "a byte a chunk", "chunk with extensions", "chunk with trailers", "HTTP/1.0"):
            assert 200 in statuses, name
        if name in ("header long", "headers many"):
            assert statuses in ([431], []), name
    print(f"{len(requests)} broken requests: {dict(sorted(tally.items()))}")
    assert tally[503] >= 3


@pytest.mark.parametrize(
    ("row", "field", "says"),
    [
        ('{"price": -1e300}', "price", "so large that there is no probability"),
        ('{"tags": [%s]}' % ("[" * 90 + "]" * 90), "tags", "not a text"),
        ('{"tags": [%s]}' % ("[" * 1015 + "]" * 1015), "tags", "nested too deeply"),
    ],
    ids=["number", "nested", "nested deeply"],
)
def test_what_has_no_probability_is_refused(server: Server, row: str, field: str | None, says: str) -> None:
    body = f'{{"rows": [{json.dumps(wide_rows(1, 4)[0])}, {row}]}}'
    answer = server.http.post("/v1/score", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422, answer.text
    assert answer.json()["error"]["field"] == field
    assert says in answer.json()["error"]["message"]


SCHEMATHESIS = Path(__file__).with_name("schemathesis.toml")


@pytest.mark.parametrize(
    ("phases", "examples", "least"),
    [("fuzzing", 6, 12), pytest.param("coverage,fuzzing", 750, 2000, marks=pytest.mark.slow)],
)
@pytest.mark.usefixtures("unharmed")
def test_what_the_description_says_is_so(server: Server, phases: str, examples: int, least: int) -> None:
    """Schemathesis: data that fit the description and data that do not, over all routes."""
    command = [str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(SCHEMATHESIS), "run"]
    command += [f"{server.url}/openapi.json", "--phases", phases, "-n", str(examples), "--no-color"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=server.log.parent, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    (generated,) = re.findall(r"(\d+) generated", run.stdout)
    print(f"Schemathesis: {generated} cases over all routes")
    assert int(generated) >= least
