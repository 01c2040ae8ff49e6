"""`engine=ray` prepares what this process prepares, also when a worker dies: on a Ray of two workers here."""

import os
import signal
from pathlib import Path

import polars as pl
import pytest

from features.errors import DataError
from features.spec import FeatureSpec
from features.storage.engines.ray import RayEngine
from features.storage.splits import RandomSplit
from features.storage.store import build_store
from features.validation import validate
from pipelines.config import config_from
from pipelines.console import Console
from pipelines.prepare import open_store, prepare

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two_workers():
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100_000_000,
        log_to_driver=False,
        logging_level="error",
    )
    yield
    ray.shutdown()


def log(number: int, rows: int = 200) -> pl.DataFrame:
    places = range(number * rows, (number + 1) * rows)
    return pl.DataFrame(
        {
            "user": [f"u{k % 7}" for k in places],
            "tags": [" ".join("abc"[: k % 4]) for k in places],
            "price": [k % 11 / 7 for k in places],
            "at": list(places),
            "click": [int(k % 3 == 0) for k in places],
        }
    )


def test_the_same_store(two_workers: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From files with bad lines and a side table by relative paths; all at once, and added file by file."""
    monkeypatch.chdir(tmp_path)
    Path("logs").mkdir()
    for number in range(3):
        text = log(number).write_csv().splitlines()
        text[50] = "short"
        Path("logs", f"day-{number}.csv").write_text("\n".join([*text, ""]))
    pl.DataFrame({"user": ["u0", "u3"], "plan": ["paid", "free"]}).write_parquet("users.parquet")
    features = [
        {"type": "id", "name": "user"},
        {"type": "id", "name": "plan"},
        {"type": "ids", "name": "tags", "separator": " "},
        {"type": "number", "name": "price", "standardise": True},
    ]
    config = config_from(
        {
            "name": "local",
            "data": {
                "source": "logs/*.csv",
                "join": [{"source": "users.parquet", "on": "user"}],
                "split": {"kind": "random"},
                "shard_rows": 120,
                "quality": {"mode": "quarantine"},
            },
            "spec": {"features": features, "labels": ["click"], "time": "at", "time_unit": "s"},
        }
    )
    for data in ([], ["data.incremental={piece_rows: 80}"]):
        local = config_from(config.to_json(), data)
        other = config_from(config.to_json(), [*data, "name=ray", "engine=ray"])
        there, here = (prepare(chosen, Console(quiet=True), rebuild=True) for chosen in (other, local))
        assert there["digest"] == here["digest"]
        assert there["quarantined"] == here["quarantined"] == {"too few fields": 3}
        assert open_store(other).manifest["source"] == open_store(local).manifest["source"]
        assert {path.name for path in other.store_folder.parent.iterdir()} == {"data"}
    log(3).write_csv("logs/day-3.csv")
    assert prepare(other, Console(quiet=True))["digest"] == prepare(local, Console(quiet=True))["digest"]


def test_a_worker_that_is_killed_leaves_no_hole_and_doubles_nothing(two_workers: None, tmp_path: Path) -> None:
    """SIGKILL while it writes encoded rows: its task is done again by another."""
    path, marker, folder = tmp_path / "log.parquet", tmp_path / "killed", tmp_path / "store"
    log(0, rows=600).write_parquet(path)
    features = [{"type": "id", "name": "user"}, {"type": "number", "name": "price", "standardise": True}]
    spec = validate(FeatureSpec, {"features": features, "labels": ["click"]})

    def mortal() -> pl.LazyFrame:
        def die(values: pl.Series) -> pl.Series:
            if not marker.exists() and list(tmp_path.rglob("shards.*.partial")):
                marker.write_text(str(os.getpid()))
                os.kill(os.getpid(), signal.SIGKILL)
            return values

        return pl.scan_parquet(path).with_columns(pl.col("user").map_batches(die, return_dtype=pl.String))

    split = RandomSplit(seed=1)
    undisturbed = build_store(pl.scan_parquet(path), spec, split, tmp_path / "undisturbed", shard_rows=150)
    store = build_store(pl.scan_parquet(path), spec, split, folder, shard_rows=150, engine=RayEngine(), parts=[mortal])
    assert int(marker.read_text()) != os.getpid()
    assert store.digest == undisturbed.digest
    store.verify()


def test_results_come_in_order_and_errors_as_they_are(two_workers: None) -> None:
    def root(number: int) -> float:
        if number < 0:
            raise DataError("number has no root", field=f"item {number}", found=number)
        return float(number**0.5)

    engine = RayEngine()
    assert list(engine.map(root, [9, 4, 1])) == [3.0, 2.0, 1.0]
    assert list(engine.map(root, [])) == []
    with pytest.raises(DataError, match=r"item -1: number has no root\. Found: -1"):
        list(engine.map(root, [4, -1, -2]))
