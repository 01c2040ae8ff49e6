"""A real server in processes of its own, in front of a real registry, asked over real sockets."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import polars as pl
import psutil
import pyarrow as pa
import pytest

from benchmarks.scripts.send_requests import run as send_requests
from features.pipeline import FeaturePipeline
from features.spec import FeatureSpec
from features.validation import validate
from recsys.embeddings import EmbeddingConfig, plan_embedding
from recsys.models import CTRModel, ModelConfig
from recsys.serving.bundle import save_bundle
from recsys.serving.registry import Registry
from recsys.serving.scorer import Scorer

SPEC = {
    "features": [
        {"name": "user", "type": "id", "dtype": "integer"},
        {"name": "item", "type": "id"},
        {"name": "tags", "type": "ids"},
        {"name": "price", "type": "number", "standardise": True, "missing_flag": True},
        {"name": "hour", "type": "time", "column": "at", "part": "hour", "unit": "s"},
        {"name": "user_item", "type": "cross", "of": ["user", "item"]},
    ],
    "labels": ["click", "buy"],
}
PATIENCE = 300.0
ARROW = "application/vnd.apache.arrow.stream"


def rows(count: int, seed: int = 0, *, users: int = 30) -> list[dict[str, Any]]:
    """Rows with nulls and, where `users` is above 30, unseen ids."""
    rng = np.random.default_rng(seed)
    return [
        {
            "user": None if rng.random() < 0.1 else int(rng.integers(users)),
            "item": f"i{rng.integers(50)}",
            "tags": None if rng.random() < 0.1 else [f"t{t}" for t in rng.integers(0, 9, rng.integers(4))],
            "price": None if rng.random() < 0.1 else round(float(rng.gamma(2, 10)), 2),
            "at": int(rng.integers(10**9)),
        }
        for _ in range(count)
    ]


def make_bundle(folder: Path, seed: int) -> Path:
    frame = pl.DataFrame(rows(200), infer_schema_length=None)
    pipeline = FeaturePipeline(validate(FeatureSpec, SPEC)).fit(frame)
    ids = pipeline.encode_frame(frame).ids.numpy()
    counts = {n: np.unique(ids[:, i], return_counts=True) for i, n in enumerate(pipeline.layout.id_names)}
    config = EmbeddingConfig.model_validate({"width": 4, "rows": 100, "init_scale": 1.0})
    plan = plan_embedding(pipeline.layout, config, counts)
    model = CTRModel(pipeline.layout, plan, ModelConfig.model_validate({"hidden": (8,)}), seed=seed).eval()
    return save_bundle(folder, model=model, pipeline=pipeline, metrics={"auc": 0.7})


@dataclass(frozen=True)
class Store:
    """A registry with model `clicks`: versions 1 and 2 are good, 3 is damaged."""

    uri: str
    folder: Path
    scorers: Mapping[str, Scorer]

    def promote(self, version: int) -> None:
        registry = Registry(self.uri)
        registry.set_alias(registry.resolve(f"models:/clicks/{version}"), "champion")

    def expected(self, version: str, data: Any) -> np.ndarray:
        return self.scorers[version].score(data)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("registry")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    registry = Registry(uri)
    scorers = {}
    for number in (1, 2, 3):
        bundle = make_bundle(folder / f"bundle{number}", seed=number)
        scorer = Scorer.load(bundle)
        run = registry.start_run("clicks", str(number))
        registry.register(registry.log_model(run, bundle, scorer.spec), run, "clicks", "challenger", {})
        scorers[str(number)] = scorer
    weights = registry.bundle_of("models:/clicks/3") / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    made = Store(uri, folder, scorers)
    made.promote(1)
    return made


class Server:
    """`recsys serve` in a process of its own."""

    def __init__(
        self,
        store: Store,
        *options: str,
        model: str = "models:/clicks@champion",
        before: Sequence[str] = (sys.executable,),
        **environment: str,
    ) -> None:
        path = {"PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONUNBUFFERED": "1"}
        command = [*before, "-m", "pipelines.cli", "serve", model, "--tracking-uri", store.uri]
        command += ["--port", "0", "--poll-seconds", "0.2", *options]
        self.log = store.folder / f"server-{time.time_ns()}.log"
        with self.log.open("wb") as file:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=file, text=True, env={**os.environ, **path, **environment}
            )
        self.url = ""

    def ready(self) -> Server:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("serving clicks version"), (line, self.log.read_text())
        self.url = line.split()[5]
        self.http = httpx.Client(base_url=self.url, timeout=PATIENCE)
        until(lambda: self.http.get("/readyz").status_code == 200)
        return self

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.url.removeprefix("http://").split(":")
        return host, int(port)

    def score(self, data: Any, **headers: str) -> dict[str, Any]:
        answer = self.http.post("/v1/score", json={"rows": data}, headers=headers)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def metrics(self) -> dict[str, float]:
        lines = [line.rpartition(" ") for line in self.http.get("/metrics").text.splitlines() if line[:1] != "#"]
        return {name: float(value) for name, _, value in lines}

    def workers(self) -> list[psutil.Process]:
        found = []
        for child in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.Error):  # it ended meanwhile
                if any("spawn_main" in part for part in child.cmdline()):
                    found.append(child)
        return found

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        """A test that failed leaves no server behind."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(PATIENCE)


def arrow_body(table: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, **options) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


class HalfRequest:
    """A request whose server is known to have taken it and waits for the rest of its body."""

    def __init__(self, address: tuple[str, int], body: bytes, **headers: str) -> None:
        self.body = body
        self.socket = socket.create_connection(address, timeout=PATIENCE)
        lines = ["POST /v1/score HTTP/1.1", "Host: here", f"Content-Length: {len(body)}", "Expect: 100-continue"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.socket.sendall("\r\n".join([*lines, "", ""]).encode())
        self.file = self.socket.makefile("rb")
        self.status = self._head()

    def finish(self) -> tuple[int, dict[str, Any]]:
        """Sends the rest, and gives the answer's status and body."""
        self.socket.sendall(self.body)
        return self.answer()

    def answer(self) -> tuple[int, dict[str, Any]]:
        status = self._head()
        return status, json.loads(self.file.read(self.length))

    def _head(self) -> int:
        status = int(self.file.readline().split()[1])
        self.length = 0
        while line := self.file.readline().strip():
            name, _, value = line.decode().lower().partition(": ")
            self.length = int(value) if name == "content-length" else self.length
        return status


def until(done: Callable[[], Any]) -> Any:
    """Asks again and again until the answer is true."""
    deadline = time.monotonic() + PATIENCE
    while not (answer := done()):
        assert time.monotonic() < deadline, "it did not come true in time"
    return answer


def nearly(scores: Mapping[str, list[float]], expected: np.ndarray) -> None:
    np.testing.assert_allclose(np.array([scores["p_click"], scores["p_buy"]]).T, expected, atol=1e-6, rtol=0)


@pytest.fixture(scope="module")
def server(store: Store) -> Iterator[Server]:
    log = store.folder / "predictions"
    options = ["--queue", "2", "--max-rows", "300", "--max-body-mb", "0.1", "--timeout-ms", "60000"]
    with Server(store, *options, "--log", str(log), "--log-seconds", "0.2") as started:
        yield started.ready()
        assert started.stop() == 0


def test_json_and_arrow_give_the_scores_of_the_scorer(server: Server, store: Store) -> None:
    data = rows(300, seed=1, users=60)
    answer = server.score(data, **{"X-Request-Id": "r1"})
    assert (answer["model"], answer["version"], answer["request_id"]) == ("clicks", "1", "r1")
    nearly(answer["scores"], store.expected("1", data))
    body = arrow_body(pl.DataFrame(data, infer_schema_length=None).to_arrow())
    arrow = server.http.post("/v1/score", content=body, headers={"Content-Type": ARROW})
    assert arrow.status_code == 200, arrow.text
    got = pa.ipc.open_stream(arrow.content).read_all()
    assert got.schema.metadata[b"version"] == b"1"
    nearly(got.to_pydict(), store.expected("1", data))


def test_a_field_that_is_left_out_is_null_and_counted(server: Server, store: Store) -> None:
    before = server.metrics().get('recsys_missing_fields_total{field="price"}', 0)
    full = {**rows(1, seed=2)[0], "price": None}
    lacking = {name: value for name, value in full.items() if name != "price"}
    answer = server.score([lacking, {**full, "more": 1}])
    nearly(answer["scores"], store.expected("1", [full, full]))
    body = arrow_body(pl.DataFrame([lacking], infer_schema_length=None).to_arrow())
    arrow = server.http.post("/v1/score", content=body, headers={"Content-Type": ARROW})
    nearly(pa.ipc.open_stream(arrow.content).read_all().to_pydict(), store.expected("1", [full]))
    assert server.metrics()['recsys_missing_fields_total{field="price"}'] == before + 2


def test_rank_gives_the_best_candidates_of_a_user(server: Server, store: Store) -> None:
    data = rows(80, seed=3, users=60)
    user = {"user": 7, "at": 123_456}
    candidates = [{name: row[name] for name in ("item", "tags", "price")} for row in data]
    expected = store.expected("1", [{**user, **candidate} for candidate in candidates])
    body = {"user": user, "candidates": candidates, "k": 5, "by": "p_buy"}
    answer = server.http.post("/v1/rank", json=body)
    assert answer.status_code == 200, answer.text
    ranking = answer.json()["ranking"]
    best = np.argsort(-expected[:, 1], kind="stable")[:5]
    assert [item["index"] for item in ranking] == best.tolist()
    np.testing.assert_allclose([[item["p_click"], item["p_buy"]] for item in ranking], expected[best], atol=1e-6)
    everything = server.http.post("/v1/rank", json={"candidates": [{**user, **c} for c in candidates]}).json()
    assert [item["index"] for item in everything["ranking"]] == np.argsort(-expected[:, 0], kind="stable").tolist()


def test_rank_in_arrow_is_rank_in_json(server: Server) -> None:
    candidates = [{name: row[name] for name in ("item", "tags", "price")} for row in rows(80, seed=9, users=60)]
    asked = {"user": {"user": 7, "at": 123_456}, "k": 12, "by": "p_buy"}
    told = server.http.post("/v1/rank", json={**asked, "candidates": candidates}).json()
    table = pa.Table.from_pylist(candidates).replace_schema_metadata({"request": json.dumps(asked)})
    headers = {"Content-Type": ARROW, "X-Request-Id": "in-arrow"}
    answer = server.http.post("/v1/rank", content=arrow_body(table), headers=headers)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, ARROW), answer.text
    ranking = pa.ipc.open_stream(answer.content).read_all()
    assert ranking.to_pylist() == told["ranking"]
    assert len(ranking) == 12
    who = {"model": "clicks", "version": "1", "request_id": "in-arrow"}
    assert {name.decode(): value.decode() for name, value in ranking.schema.metadata.items()} == who
    wrong = table.replace_schema_metadata({"request": json.dumps({**asked, "by": "p_sale"})})
    refused = server.http.post("/v1/rank", content=arrow_body(wrong), headers=headers)
    assert (refused.status_code, refused.json()["error"]["field"]) == (422, "by")


ROW = {"user": 1, "item": "a", "tags": [], "price": 1.0, "at": 0}
BAD = [
    ("/v1/score", b"{", 400, None, "no JSON"),
    ("/v1/score", b"[]", 400, None, "no JSON object"),
    ("/v1/score", b'{"rows": [{"price": NaN}]}', 400, None, "NaN and Infinity are no JSON: write null"),
    ("/v1/score", b"\xff\xfe", 400, None, "no JSON"),
    ("/v1/score", {}, 422, "rows", "missing"),
    ("/v1/score", {"rows": {}}, 422, "rows", "a list of objects"),
    ("/v1/score", {"rows": [1]}, 422, "rows.0", "an object of fields"),
    ("/v1/score", {"rows": [], "row": []}, 422, "row", "did you mean 'rows'?"),
    ("/v1/score", {"rows": [{**ROW, "user": "u7"}]}, 422, "user", "not a whole number"),
    ("/v1/score", {"rows": [{**ROW, "user": 2**70}]}, 422, "user", "not a whole number"),
    ("/v1/score", {"rows": [{**ROW, "price": "dear"}]}, 422, "price", "text that is no number"),
    ("/v1/score", {"rows": [{**ROW, "price": {}}]}, 422, "price", "number"),
    ("/v1/score", {"rows": [{**ROW, "tags": "a"}]}, 422, "tags", "a list"),
    ("/v1/score", {"rows": [{**ROW, "tags": ["a"] * 1001}]}, 422, "tags", "list is too long"),
    ("/v1/score", {"rows": [{**ROW, "item": 1.5}]}, 422, "item", "not a text"),
    ("/v1/score", {"rows": [ROW] * 301}, 413, "rows", "at most 300"),
    ("/v1/score", b" " * 100_001, 413, None, "at most 100,000 bytes"),
    ("/v1/rank", {"candidates": [ROW], "user": {"user": 2}}, 422, "user", "by the user and by a candidate"),
    ("/v1/rank", {"candidates": [ROW], "user": 2}, 422, "user", "an object of fields"),
    ("/v1/rank", {"candidates": [ROW], "k": 0}, 422, "k", "above 0"),
    ("/v1/rank", {"candidates": [ROW], "by": "p_sale"}, 422, "by", "p_click, p_buy"),
    ("/v1/rank", {"user": ROW}, 422, "candidates", "missing"),
    ("/v1/nothing", {}, 404, None, "Not Found"),
]


@pytest.mark.parametrize(("path", "body", "status", "field", "says"), BAD)
def test_what_is_wrong_is_named(
    server: Server, path: str, body: Any, status: int, field: str | None, says: str
) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = server.http.post(path, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["field"] == field
    assert says in error["message"]
    assert "Traceback" not in answer.text


def damaged_offsets() -> bytes:
    body = bytearray(arrow_body(pa.table({"item": ["aaaa", "bbbb", "cccc"]})))
    place = body.index(np.array([0, 4, 8, 12], dtype=np.int32).tobytes())
    body[place + 4 : place + 8] = np.int32(2**30).tobytes()
    return bytes(body)


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"", 400, "no Arrow IPC stream"),
        (b"ARROW1" * 9, 400, "no Arrow IPC stream"),
        (damaged_offsets(), 400, "no Arrow IPC stream"),
        (arrow_body(pa.table({"other": [1]})), 400, "no column is one of user, item"),
        (arrow_body(pa.table({"user": pa.nulls(10**6)})), 413, "at most 300"),
        (arrow_body(pa.table({"user": [1.5]})), 422, "user: not a whole number"),
        (arrow_body(pa.table({"price": [[1.0]]})), 422, "price: wrong dtype"),
        (
            arrow_body(pa.table({"item": ["a" * 10**6]}), options=pa.ipc.IpcWriteOptions(compression="zstd")),
            415,
            "compressed",
        ),
    ],
)
def test_a_wrong_arrow_body_is_refused(server: Server, body: bytes, status: int, says: str) -> None:
    answer = server.http.post("/v1/score", content=body, headers={"Content-Type": ARROW})
    assert answer.status_code == status, answer.text
    assert says in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "text/csv"}, 415),
        ({"Content-Encoding": "gzip"}, 415),
        ({"X-Timeout-Ms": "soon"}, 400),
        ({"X-Timeout-Ms": "0"}, 400),
        ({"X-Request-Id": "a b"}, 400),
    ],
)
def test_wrong_headers_are_refused(server: Server, headers: dict[str, str], status: int) -> None:
    answer = server.http.post("/v1/score", json={"rows": []}, headers=headers)
    assert answer.status_code == status, answer.text


def test_a_wrong_row_does_not_spoil_others_that_wait_with_it(server: Server, store: Store) -> None:
    good = rows(5, seed=4)
    bodies = [good, [{**ROW, "user": "u7"}]]
    requests = [HalfRequest(server.address, json.dumps({"rows": body}).encode()) for body in bodies]
    for request in requests:  # both bodies are there before either is answered
        request.socket.sendall(request.body)
    (first, answer), (second, error) = (request.answer() for request in requests)
    assert (first, second) == (200, 422)
    nearly(answer["scores"], store.expected("1", good))
    assert error["error"]["field"] == "user"


def test_more_requests_than_there_is_room_for_are_told_to_come_again(server: Server) -> None:
    body = json.dumps({"rows": [ROW]}).encode()
    held = [HalfRequest(server.address, body) for _ in range(2)]
    assert [request.status for request in held] == [100, 100]
    refused = server.http.post("/v1/score", json={"rows": [ROW]})
    assert refused.status_code == 429
    assert int(refused.headers["Retry-After"]) >= 1
    assert server.http.get("/healthz").status_code == 200
    assert server.metrics()["recsys_requests_in_hand"] == 2
    assert [request.finish()[0] for request in held] == [200, 200]
    assert server.http.post("/v1/score", json={"rows": [ROW]}).status_code == 200


def test_too_many_requests_are_answered_or_told_to_come_again(server: Server, store: Store) -> None:
    data = [rows(20, seed=7), rows(20, seed=8)]
    asked = store.folder / "asked.json"
    expected = {"1": [store.expected("1", own).tolist() for own in data]}
    asked.write_text(json.dumps({"bodies": [json.dumps({"rows": own}) for own in data], "expected": expected}))
    phases = [{"clients": 40, "seconds": 1}, {"rate": 20, "seconds": 1}]
    answer = send_requests({"url": f"{server.url}/v1/score", "file": str(asked), "connections": 40, "phases": phases})
    crowd, calm = answer["phases"]
    for found in (crowd, calm):
        assert set(found["status"]) <= {"200", "429", "503"}
        assert (found["failed"], found["wrong"]) == ({}, 0)
    assert crowd["status"]["200"] > 0
    assert crowd["status"]["429"] > 0
    assert server.score([ROW])["version"] == "1"


def test_a_request_whose_deadline_passes_is_let_go(server: Server) -> None:
    status, error = HalfRequest(server.address, b"{}", X_Timeout_Ms="50").answer()
    assert status == 503
    assert error["error"]["type"] == "deadline"


def test_the_description_has_examples_that_work(server: Server) -> None:
    described = server.http.get("/openapi.json").json()
    assert set(described["paths"]) == {
        "/v1/score",
        "/v1/rank",
        "/v1/models",
        "/healthz",
        "/readyz",
        "/metrics",
        "/openapi.json",
    }
    schemas = described["components"]["schemas"]
    assert schemas["Row"]["properties"]["user"]["type"] == ["integer", "null"]
    for name in ("Score", "Rank"):
        answer = server.http.post(f"/v1/{name.lower()}", json=schemas[f"{name}Request"]["example"])
        assert answer.status_code == 200, answer.text
        assert set(answer.json()) == set(schemas[f"{name}Response"]["properties"])


def test_what_is_served_and_what_was_done_can_be_seen(server: Server) -> None:
    server.score(rows(3))
    (model,) = server.http.get("/v1/models").json()["models"]
    assert (model["name"], model["version"], model["alias"]) == ("clicks", "1", "champion")
    assert model["inputs"]["tags"] == "string[]"
    assert model["metrics"] == {"auc": 0.7}
    ready = server.http.get("/readyz").json()
    assert ready["registry"]["reachable"] is True
    metrics = server.metrics()
    assert metrics['recsys_workers_serving{model="clicks",version="1"}'] == 1
    assert metrics['recsys_rows_total{model="clicks",version="1"}'] >= 3
    assert metrics['recsys_request_seconds_count{route="/v1/score"}'] >= 1
    assert metrics["recsys_registry_reachable"] == 1


def test_unseen_ids_are_counted(server: Server) -> None:
    name = 'recsys_ids_unseen_total{field="user"}'
    before = server.metrics().get(name, 0)

    def counted() -> bool:  # a sample of the batches is looked at
        server.score([{**ROW, "user": 10**6}])
        return server.metrics().get(name, 0) > before

    until(counted)


def test_predictions_are_logged_with_their_inputs(server: Server, store: Store) -> None:
    data = rows(4, seed=5)
    server.score(data, **{"X-Request-Id": "logged"})
    server.http.post(
        "/v1/rank", json={"user": {"user": 3}, "candidates": [{"item": "a"}]}, headers={"X-Request-Id": "ranked"}
    )
    folder = store.folder / "predictions"

    def found() -> pl.DataFrame | None:
        files = sorted(path for path in folder.glob("*.parquet") if not path.name.startswith("."))
        if not files:
            return None
        log = pl.concat([pl.read_parquet(path) for path in files], how="diagonal_relaxed")
        log = log.filter(pl.col("request_id").str.contains("logged|ranked"))
        return log.sort("request_id") if len(log) == 5 else None

    until(lambda: found() is not None)
    log = found()
    assert log is not None
    assert log["request_id"].to_list() == ["logged:0", "logged:1", "logged:2", "logged:3", "ranked:0"]
    assert set(log["model"]) == {"clicks"}
    assert set(log["version"]) == {"1"}
    assert set(log["role"]) == {"champion"}
    assert log["time"].dtype == pl.Datetime("us")
    assert log["user"].to_list() == [*[row["user"] for row in data], 3]
    assert log["price"].to_list() == [*[row["price"] for row in data], None]
    expected = store.expected("1", data)
    np.testing.assert_allclose(log["probability"][:4], expected[:, 0], atol=1e-6)
    np.testing.assert_allclose(log["p_buy"][:4], expected[:, 1], atol=1e-6)
    assert "tags" not in log.columns


def test_a_promotion_under_load_mixes_and_loses_nothing(server: Server, store: Store) -> None:
    """Last of this server's tests but one: it changes the version."""
    data = rows(20, seed=6, users=60)
    expected = {version: store.expected(version, data) for version in ("1", "2")}
    seen: list[str] = []
    over = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=server.url, timeout=PATIENCE) as http:
            while not over.is_set():
                answer = http.post("/v1/score", json={"rows": data})
                assert answer.status_code == 200, answer.text
                body = answer.json()
                assert answer.headers["X-Model-Version"] == body["version"]
                nearly(body["scores"], expected[body["version"]])
                seen.append(body["version"])

    failures: list[BaseException] = []

    def guarded() -> None:
        try:
            ask()
        except BaseException as error:
            failures.append(error)

    asking = threading.Thread(target=guarded)
    asking.start()
    try:
        until(lambda: seen)
        store.promote(2)
        until(lambda: failures or seen[-1] == "2")
        store.promote(3)  # damaged: refused, and 2 stays
        until(lambda: failures or server.http.get("/readyz").json()["registry"]["refused_version"] == "3")
        count = len(seen)
        until(lambda: failures or len(seen) > count + 3)
        assert seen[-1] == "2"
        store.promote(1)
        until(lambda: failures or seen[-1] == "1")
    finally:
        over.set()
        asking.join()
        store.promote(1)
    assert not failures, failures
    changes = [version for before, version in itertools.pairwise(seen) if before != version]
    assert changes == ["2", "1"]
    until(lambda: server.http.get("/readyz").json()["registry"]["refused_version"] is None)


def test_without_the_registry_the_last_version_is_served(server: Server, store: Store) -> None:
    path, away = store.folder / "mlflow.db", store.folder / "away.db"
    path.rename(away)
    try:
        until(lambda: not server.http.get("/readyz").json()["registry"]["reachable"])
        assert server.score([ROW])["version"] == "1"
        until(lambda: server.metrics()["recsys_registry_reachable"] == 0)
    finally:
        away.rename(path)
    until(lambda: server.http.get("/readyz").json()["registry"]["reachable"])


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_sigterm_lets_requests_finish(store: Store) -> None:
    log = store.folder / "log-that-fills"
    with Server(store, "--workers", "2", "--log", str(log), "--log-seconds", "0.2") as server:
        server.ready()

        def both_serve() -> bool:
            with contextlib.suppress(httpx.TransportError):  # a connection of the worker that was killed
                return server.metrics()['recsys_workers_serving{model="clicks",version="1"}'] == 2
            return False

        until(both_serve)
        with contextlib.ExitStack() as clients:
            for _ in range(8):
                http = clients.enter_context(httpx.Client(base_url=server.url, timeout=PATIENCE))
                assert http.get("/healthz").status_code == 200
            held = [len(worker.net_connections()) for worker in server.workers()]
            assert min(held) > 1, held  # the socket at which all of them wait is one of each worker's
        victim, *others = server.workers()
        victim.send_signal(signal.SIGKILL)
        until(lambda: len(server.workers()) == 2 and victim.pid not in [worker.pid for worker in server.workers()])
        until(both_serve)
        assert {other.pid for other in others} <= {worker.pid for worker in server.workers()}

        server.score([ROW])
        until(lambda: log.is_dir())
        # No file can be added where there is no folder any more: as on a full disk, serving goes on.
        shutil.rmtree(log)
        log.write_text("in the way")
        server.score([ROW])
        dropped = 'recsys_prediction_log_dropped_total{reason="not written"}'
        until(lambda: server.metrics().get(dropped, 0) >= 1)

        request = HalfRequest(server.address, json.dumps({"rows": [ROW]}).encode())
        server.process.terminate()
        status, answer = request.finish()
        assert (status, answer["version"]) == (200, "1")
        assert server.process.wait(PATIENCE) == 0
        assert not [worker for worker in others if worker.is_running()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("models:/clikcs@champion", "did you mean 'clicks'?"),
        ("models:/clicks@best", "no such version or alias"),
        ("models:/clicks/3", "the bundle is damaged"),
        ("nowhere", "is no model bundle"),
    ],
)
def test_what_cannot_be_served_is_said_at_once(store: Store, model: str, says: str) -> None:
    with Server(store, model=model) as server:
        assert server.process.wait(PATIENCE) == 2
        assert says in server.log.read_text()


@pytest.mark.slow
def test_a_key_is_asked_for(store: Store) -> None:
    """Also a bundle from no registry."""
    folder = Registry(store.uri).bundle_of("models:/clicks/2")
    with Server(store, model=str(folder), RECSYS_API_KEYS="first, second") as server:
        assert server.process.stdout is not None
        server.url = server.process.stdout.readline().split()[5]
        with httpx.Client(base_url=server.url, timeout=PATIENCE) as http:
            until(lambda: http.get("/readyz").status_code == 200)
            body = {"rows": [ROW]}
            assert http.post("/v1/score", json=body).status_code == 401
            for headers in ({"Authorization": "Bearer third"}, {"X-Api-Key": "fir"}, {"Authorization": "first"}):
                assert http.post("/v1/score", json=body, headers=headers).status_code == 401
                assert http.get("/metrics", headers=headers).status_code == 401
            for headers in ({"Authorization": "Bearer second"}, {"X-Api-Key": "first"}):
                answer = http.post("/v1/score", json=body, headers=headers)
                assert answer.status_code == 200
                nearly(answer.json()["scores"], store.expected("2", [ROW]))
        assert server.stop() == 0
        assert "second" not in server.log.read_text()
