"""A challenger and a shadow beside the champion: one real server, a real registry, and the log they leave."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import psutil
import pytest

from pipelines.logs import append
from recsys.serving.registry import Registry
from recsys.serving.scorer import Scorer
from recsys.serving.server.shares import in_share
from tests.integration.conftest import Command
from tests.integration.test_serve import ARROW, Server, Store, arrow_body, make_bundle, rows, until

SHARE = 0.3


def point(store: Store, alias: str, version: int) -> None:
    registry = Registry(store.uri)
    registry.set_alias(registry.resolve(f"models:/clicks/{version}"), alias)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Versions 1, 2 and 3 are good, 4 is damaged."""
    folder = tmp_path_factory.mktemp("registry")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    registry, scorers = Registry(uri), {}
    for number in (1, 2, 3, 4):
        bundle = make_bundle(folder / f"bundle{number}", seed=number)
        scorers[str(number)] = scorer = Scorer.load(bundle)
        run = registry.start_run("clicks", str(number))
        registry.register(registry.log_model(run, bundle, scorer.spec), run, "clicks", "newest", {})
    weights = registry.bundle_of("models:/clicks/4") / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    made = Store(uri, folder, scorers)
    for alias, version in (("champion", 1), ("challenger", 2), ("shadow", 3)):
        point(made, alias, version)
    return made


@pytest.fixture(scope="module")
def log(store: Store) -> Path:
    return store.folder / "predictions"


@pytest.fixture(scope="module")
def server(store: Store, log: Path) -> Iterator[Server]:
    options = ["--challenger", "challenger", "--challenger-share", str(SHARE), "--shadow", "shadow"]
    with Server(store, *options, "--log", str(log), "--log-seconds", "0.2", "--timeout-ms", "60000") as started:
        started.ready()
        until(lambda: beside(started, "challenger") and beside(started, "shadow"))
        yield started
        assert started.stop() == 0, started.log.read_text()


def beside(server: Server, role: str) -> list[str]:
    """The versions that are loaded in a role."""
    head = f'recsys_{role}_workers_serving{{model="clicks",version="'
    return [name.removeprefix(head)[:-2] for name, value in server.metrics().items() if name.startswith(head) and value]


def outcome(server: Server, name: str) -> float:
    return server.metrics().get(f'recsys_shadow_requests_total{{outcome="{name}"}}', 0)


def read(log: Path, ids: str = "") -> pl.DataFrame:
    files = sorted(path for path in log.glob("*.parquet") if not path.name.startswith("."))
    if not files:
        return pl.DataFrame({"request_id": [], "role": []}, schema={"request_id": pl.String, "role": pl.String})
    found = pl.concat([pl.read_parquet(path) for path in files], how="diagonal_relaxed")
    return found.filter(pl.col("request_id").str.starts_with(ids)).sort("role", "request_id")


def logged(log: Path, ids: str, count: int) -> pl.DataFrame:
    until(lambda: read(log, ids).height >= count)
    return read(log, ids)


def test_a_share_of_the_requests_is_answered_by_the_challenger(server: Server, store: Store, log: Path) -> None:
    data = rows(1, seed=1, users=60)
    expected = {version: store.expected(version, data)[0] for version in ("1", "2")}
    before = server.metrics().get("recsys_challenger_requests_total", 0)
    ids = [f"dealt{number}" for number in range(150)]
    went = {}
    for id in ids:
        answer = server.score(data, **{"X-Request-Id": id})
        went[id] = answer["version"]
        np.testing.assert_allclose(
            [answer["scores"]["p_click"][0], answer["scores"]["p_buy"][0]], expected[went[id]], atol=1e-6
        )
    assert {id for id in ids if went[id] == "2"} == {id for id in ids if in_share(id, SHARE, seed=1)}
    assert 25 < sum(version == "2" for version in went.values()) < 65
    ranked = {
        id: server.http.post("/v1/rank", json={"candidates": data}, headers={"X-Request-Id": id}).json()["version"]
        for id in ids[:20]
    }
    assert ranked == {id: went[id] for id in ids[:20]}
    challenged = sum(version == "2" for version in [*went.values(), *ranked.values()])
    assert server.metrics()["recsys_challenger_requests_total"] - before == challenged
    found = logged(log, "dealt", len(ids) + 20 + len(ids) + 20 - challenged)
    by_role = {role: set(part["request_id"]) for (role,), part in found.group_by("role")}
    assert by_role["challenger"] == {f"{id}:0" for id, version in went.items() if version == "2"}
    assert by_role["shadow"] == by_role["champion"] == {f"{id}:0" for id, version in went.items() if version == "1"}
    versions = found.select("role", "version").unique().sort("role")["version"].to_list()
    assert versions == ["2", "1", "3"]


def champions_ids(prefix: str) -> Iterator[str]:
    """Ids of requests that the champion answers."""
    return (id for number in itertools.count() if not in_share(id := f"{prefix}{number}", SHARE, seed=1))


def test_the_shadow_scores_what_the_champion_answered_as_it_came(server: Server, store: Store, log: Path) -> None:
    data = rows(30, seed=2, users=60)
    json_id, arrow_id, rank_id = itertools.islice(champions_ids("shadowed"), 3)
    server.score(data, **{"X-Request-Id": json_id})
    body = arrow_body(pl.DataFrame(data, infer_schema_length=None).to_arrow())
    server.http.post("/v1/score", content=body, headers={"Content-Type": ARROW, "X-Request-Id": arrow_id})
    user = {"user": 7, "at": 5}
    candidates = [{name: row[name] for name in ("item", "tags", "price")} for row in data]
    server.http.post(
        "/v1/rank", json={"user": user, "candidates": candidates, "k": 2}, headers={"X-Request-Id": rank_id}
    )
    found = logged(log, "shadowed", 180)
    assert found.height == 180
    for id, sent in ((json_id, data), (arrow_id, data), (rank_id, [{**user, **c} for c in candidates])):
        of = found.filter(pl.col("request_id").str.starts_with(f"{id}:"))
        of = of.with_columns(place=pl.col("request_id").str.split(":").list.last().cast(pl.Int64)).sort("place")
        for role, version in (("champion", "1"), ("shadow", "3")):
            part = of.filter(pl.col("role") == role)
            assert set(part["version"]) == {version}
            np.testing.assert_allclose(
                part.select("probability", "p_buy").to_numpy(), store.expected(version, sent), atol=1e-6
            )
        # Of one time, so that a window of the monitor has both.
        assert of.group_by("place").agg(pl.col("time").n_unique())["time"].to_list() == [1] * 30
        assert of["price"].to_list() == [row["price"] for row in sent for _ in range(2)]


def test_a_request_that_was_refused_is_not_shadowed(server: Server, log: Path) -> None:
    done = outcome(server, "scored")
    bad, good = itertools.islice(champions_ids("refused"), 2)
    wrong = {"rows": [{"user": "u7"}]}
    assert server.http.post("/v1/score", json=wrong, headers={"X-Request-Id": bad}).status_code == 422
    server.score(rows(1), **{"X-Request-Id": good})
    logged(log, "refused", 2)
    assert set(read(log, "refused")["request_id"]) == {f"{good}:0"}
    until(lambda: outcome(server, "scored") == done + 1)


def test_the_monitor_reads_the_log_and_holds_the_shadow_against_the_champion(
    server: Server, store: Store, log: Path, tmp_path: Path, recsys: Command
) -> None:
    data = rows(400, seed=3, users=60)
    ids = list(itertools.islice(champions_ids("watched"), 40))
    for place, id in enumerate(ids):
        server.score(data[10 * place : 10 * place + 10], **{"X-Request-Id": id})
    found = logged(log, "watched", 800)
    mine = tmp_path / "predictions"
    append(mine, found)
    champion = found.filter(pl.col("role") == "champion")
    shadow = found.filter(pl.col("role") == "shadow")
    assert champion["request_id"].to_list() == shadow["request_id"].to_list()
    # What comes of it is on the champion's side wherever the two differ.
    label = (champion["probability"] > shadow["probability"]).cast(pl.Int8)
    labels = champion.select("request_id", "time").with_columns(label=label)
    append(tmp_path / "labels", labels)
    outcome = recsys("monitor", mine, tmp_path / "labels", "--once", "--finish", "--out", tmp_path / "out", "--json")
    assert outcome.code == 0, outcome.err
    totals = {row["role"]: row for row in outcome.json["totals"]}
    assert {role: (row["version"], row["rows"]) for role, row in totals.items()} == {
        "champion": ("1", 400),
        "shadow": ("3", 400),
    }
    assert sum(row["rows"] for row in outcome.json["differences"]) == 400
    assert outcome.json["differences"][0]["role"] == "shadow"
    assert totals["champion"]["logloss"] < totals["shadow"]["logloss"]
    (verdict,) = outcome.json["anytime"]
    assert (verdict["role"], verdict["rows"], verdict["verdict"]) == ("shadow", 400, "worse")


def test_readiness_names_the_models_beside(server: Server) -> None:
    ready = server.http.get("/readyz").json()
    assert ready["version"] == "1"
    assert ready["challenger"] == {"alias": "challenger", "share": SHARE, "version": "2", "refused_version": None}
    assert ready["shadow"] == {"alias": "shadow", "sample": 1.0, "version": "3", "refused_version": None}


@pytest.mark.slow
def test_aliases_are_followed_and_what_is_wrong_with_them_touches_no_answer(server: Server, store: Store) -> None:
    """Last but one: it changes the versions."""
    client = Registry(store.uri)._client
    for role in ("challenger", "shadow"):
        point(store, role, 4)
    for role in ("challenger", "shadow"):
        until(lambda role=role: server.http.get("/readyz").json()[role]["refused_version"] == "4")
    until(lambda: server.metrics()["recsys_shadow_alias_refused"] == 1)
    assert (beside(server, "challenger"), beside(server, "shadow")) == (["2"], ["3"])
    assert server.http.get("/readyz").json()["registry"]["refused_version"] is None
    challenged = next(id for id in (f"x{i}" for i in itertools.count()) if in_share(id, SHARE, seed=1))
    assert server.score(rows(1), **{"X-Request-Id": challenged})["version"] == "2"
    client.delete_registered_model_alias("clicks", "challenger")
    until(lambda: not beside(server, "challenger"))
    assert server.score(rows(1), **{"X-Request-Id": challenged})["version"] == "1"
    assert server.http.get("/readyz").json()["challenger"]["version"] is None
    point(store, "shadow", 2)
    until(lambda: beside(server, "shadow") == ["2"])
    # The champion's own version is no shadow of it.
    point(store, "shadow", 1)
    until(lambda: beside(server, "shadow") == ["1"])
    same = outcome(server, "same version")
    server.score(rows(1))
    until(lambda: outcome(server, "same version") == same + 1)


@pytest.mark.slow
def test_a_shadow_that_dies_is_replaced_and_its_requests_counted(server: Server) -> None:
    (shadow,) = [p for p in psutil.Process(server.process.pid).children() if p.nice() == 19]
    shadow.send_signal(signal.SIGKILL)
    until(lambda: not shadow.is_running() or shadow.status() == psutil.STATUS_ZOMBIE)

    def counted() -> bool:
        assert server.score(rows(1))["version"] == "1"
        return outcome(server, "away") > 0

    until(counted)
    until(lambda: beside(server, "shadow") == ["1"])
    until(lambda: server.score(rows(1)) and outcome(server, "same version"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--shadow", "challenger"], "--shadow: the shadow's scores go into the prediction log. Mend: add --log"),
        (["--shadow", "clicks@challenger", "--log", "x"], "--shadow: is no alias"),
        (["--challenger", "challenger", "--role", "challenger"], "--challenger: what is served is the challenger"),
    ],
)
def test_what_cannot_be_beside_is_said_at_once(store: Store, options: list[str], says: str) -> None:
    with Server(store, *options) as server:
        assert server.process.wait(300) == 2
        assert says in server.log.read_text()
