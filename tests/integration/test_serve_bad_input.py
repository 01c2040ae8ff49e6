"""What is wrong with a request, the disk or the registry is said, counted and survived; see `test_serve.py` too."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl
import psutil
import pyarrow as pa
import pytest

from recsys.serving.scorer import Scorer
from tests.integration.hostile import ARROW, stream, wide_bundle, wide_rows
from tests.integration.test_serve import PATIENCE, Server, Store, until

ROW = wide_rows(1, 5)[0]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """No registry: a bundle in a folder."""
    folder = tmp_path_factory.mktemp("strict")
    return Store("", folder, {"1": Scorer.load(wide_bundle(folder / "clicks"))})


@pytest.fixture(scope="module")
def server(store: Store) -> Iterator[Server]:
    """Refuses fields that the model does not read, and keeps a log."""
    options = ["--unknown-fields", "refuse", "--timeout-ms", "60000", "--log-seconds", "0.2"]
    options += ["--log", str(store.folder / "log")]
    with Server(store, *options, model=str(store.folder / "clicks")) as started:
        yield started.ready()
        assert started.stop() == 0


def test_an_unknown_field_is_refused_and_the_nearest_named(server: Server) -> None:
    before = server.metrics().get('recsys_requests_refused_total{type="unknown_field"}', 0)
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("/v1/score", {"rows": [ROW, {**ROW, "pirce": 1}]}),
        ("/v1/rank", {"user": {"pirce": 1}, "candidates": [ROW]}),
        ("/v1/rank", {"candidates": [{**ROW, "pirce": 1}]}),
    ]
    for path, body in bodies:
        answer = server.http.post(path, json=body)
        assert answer.status_code == 422, answer.text
        error = answer.json()["error"]
        assert (error["type"], error["field"]) == ("unknown_field", "pirce")
        assert "did you mean 'price'?" in error["message"]
    content = stream(pa.table({"price": [1.0], "pirce": [1.0]}))
    assert server.http.post("/v1/score", content=content, headers={"Content-Type": ARROW}).status_code == 422
    assert server.metrics()['recsys_requests_refused_total{type="unknown_field"}'] == before + 4


def test_no_model_but_the_one_that_is_served_can_be_asked_for(server: Server) -> None:
    for path in ("/v1/models/other", "/v1/models/other/score", "/v1/models/..%2f..%2fetc"):
        assert server.http.get(path).status_code == 404
    for name in ("model", "uri", "path", "version"):
        answer = server.http.post("/v1/score", json={"rows": [ROW], name: "models:/other@champion"})
        assert (answer.status_code, answer.json()["error"]["type"]) == (422, "unknown_key")


def test_no_number_is_missing_in_arrow_and_no_json(server: Server, store: Store) -> None:
    content = stream(pa.Table.from_pylist([{**ROW, "price": math.nan, "rank": math.nan}]))
    answer = server.http.post("/v1/score", content=content, headers={"Content-Type": ARROW})
    assert answer.status_code == 200, answer.text
    scores = pa.ipc.open_stream(answer.content).read_all()
    expected = store.expected("1", {**ROW, "price": None, "rank": None})
    np.testing.assert_allclose([scores["p_click"][0].as_py(), scores["p_buy"][0].as_py()], expected[0], atol=1e-6)
    for word in ("NaN", "Infinity", "-Infinity"):
        content = json.dumps({"rows": [ROW]}).replace(json.dumps(ROW["price"]), word).encode()
        answer = server.http.post("/v1/score", content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400
        assert "NaN and Infinity are no JSON: write null" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("column", "values", "says"),
    [
        ("tags", [["t"] * 1001], "tags: list is too long. Found: 1001. Expected: at most 1,000"),
        ("picture", [[1.0, 2.0, 3.0]], "picture"),
        ("user", ["seven"], "user"),
        ("known", ["perhaps"], "known"),
        ("day", ["31.12.2024"], "day"),
        ("codes", [[0.5]], "codes"),
    ],
)
def test_a_wrong_value_is_named_in_json_and_in_arrow(server: Server, column: str, values: Any, says: str) -> None:
    row = {**ROW, column: values[0]}
    content = stream(pa.Table.from_pylist([ROW, row] if column == "tags" else [row]))
    answers = [
        server.http.post("/v1/score", json={"rows": [ROW, row]}),
        server.http.post("/v1/rank", json={"candidates": [ROW, row]}),
        server.http.post("/v1/score", content=content, headers={"Content-Type": ARROW}),
    ]
    for answer in answers:
        assert answer.status_code == 422, answer.text
        assert answer.json()["error"]["field"] == column
        assert answer.json()["error"]["message"].startswith(says)


@pytest.mark.skipif(not hasattr(psutil.Process, "rlimit"), reason="limits of other processes can be set on Linux only")
def test_a_full_disk_loses_rows_of_the_log_and_no_answers(server: Server, store: Store) -> None:
    (worker,) = server.workers()
    folder, lost = store.folder / "log", 'recsys_prediction_log_dropped_total{reason="not written"}'
    noise = np.random.default_rng(0).integers(33, 120, (100, 1000), dtype=np.uint8)
    long = [{**ROW, "title": text.tobytes().decode()} for text in noise]
    before = server.metrics().get(lost, 0)
    worker.rlimit(psutil.RLIMIT_FSIZE, (30_000, psutil.RLIM_INFINITY))
    try:
        server.score(long, **{"X-Request-Id": "lost"})
        until(lambda: server.metrics().get(lost, 0) >= before + 100)
        assert server.metrics()["recsys_prediction_log_failures_total"] >= 1
        server.score([ROW])
        until(lambda: not [path for path in folder.iterdir() if path.name.startswith(".")])
    finally:
        worker.rlimit(psutil.RLIMIT_FSIZE, (psutil.RLIM_INFINITY, psutil.RLIM_INFINITY))
    server.score(long, **{"X-Request-Id": "kept"})

    def logged() -> list[str]:
        files = [path for path in folder.glob("*.parquet") if not path.name.startswith(".")]
        return [name for path in files for name in pl.read_parquet(path)["request_id"].to_list()]

    until(lambda: "kept:99" in logged())
    assert not [name for name in logged() if name.startswith("lost")]
    assert server.workers() == [worker]
    assert re.search(r"prediction log: 10\d rows lost", server.log.read_text())
    assert long[0]["title"] not in server.log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("sqlite:///{folder}/nowhere.db", "there is no MLflow store"),
        ("http://127.0.0.1:9", "cannot open the MLflow store"),
    ],
)
def test_a_registry_that_cannot_be_reached_at_the_start_is_said(store: Store, uri: str, says: str) -> None:
    unreachable = Store(uri.format(folder=store.folder), store.folder, {})
    with Server(unreachable) as server:
        assert server.process.wait(PATIENCE) == 2
        text = server.log.read_text()
        assert says in text
        assert "Mend" in text
        assert "Traceback" not in text
    assert not (store.folder / "nowhere.db").exists()
