"""New files are added, and a killed run is gone on with: the store is what it would have been."""

import hashlib
import multiprocessing
import os
import signal
import time

import numpy as np
import polars as pl
import pytest

from features.errors import ArtifactError, ConfigError, DataError
from features.folders import workshop
from features.pipeline import FeaturePipeline
from features.reading.input_files import input_files
from features.reading.sources import scan
from features.spec import FeatureSpec
from features.storage.incremental import IncrementalConfig, update_store
from features.storage.quality import QualityConfig
from features.storage.splits import LastPerGroupSplit, RandomSplit, TimeSplit
from features.storage.store import Store, build_store
from features.validation import validate

SPEC = validate(
    FeatureSpec,
    {
        "features": [
            {"type": "id", "name": "user"},
            {"type": "ids", "name": "tags", "separator": " "},
            {"type": "number", "name": "price", "standardise": True},
        ],
        "labels": ["click"],
        "weight": "weight",
        "time": "at",
        "time_unit": "s",
    },
)
SPLIT = RandomSplit(fractions=(0.6, 0.2, 0.2))
DAY = 86_400


def write(folder, name, rows=50, day=0, **changes):
    rng = np.random.default_rng(int(hashlib.md5(name.encode()).hexdigest()[:8], 16))
    frame = pl.DataFrame(
        {
            "user": [f"u{k}" for k in rng.integers(0, 30, rows)],
            "tags": [" ".join("abc"[:k]) for k in rng.integers(0, 4, rows)],
            "price": rng.normal(size=rows).round(4),
            "click": rng.integers(0, 2, rows),
            "weight": rng.random(rows),
            "at": day * DAY + rng.integers(0, DAY, rows),
        }
    ).with_columns(**changes)
    folder.mkdir(exist_ok=True, parents=True)
    frame.write_csv(folder / name)
    return frame


def update(logs, folder, spec=SPEC, split=SPLIT, shard_rows=40, quality=None, anew=False, progress=None, **options):
    return update_store(
        input_files(sorted(logs.rglob("*.csv"))),
        scan,
        spec,
        split,
        folder,
        shard_rows=shard_rows,
        quality=quality or QualityConfig(),
        incremental=IncrementalConfig(**{"piece_rows": 35, **options}),
        anew=anew,
        progress=progress,
    )


def weights(store, split):
    return store.read(split).weight.tolist()


@pytest.fixture
def logs(tmp_path):
    for day in range(3):
        write(tmp_path / "logs", f"day-{day}.csv", day=day)
    return tmp_path / "logs"


def test_new_files_are_added_with_the_pipeline_as_it_was(logs, tmp_path):
    first = update(logs, tmp_path / "s")
    assert first.manifest["rows_read"] == sum(first.manifest["rows"].values()) == 150
    again = update(logs, tmp_path / "s")
    assert again.manifest == first.manifest
    before = {name: weights(first, name) for name in ("train", "valid", "test")}
    frame = write(logs, "day-3.csv", day=3)
    second = update(logs, tmp_path / "s")
    second.verify()
    assert second.pipeline.digest() == first.pipeline.digest()
    assert second.manifest["rows_read"] == sum(second.manifest["rows"].values()) == 200
    added = []
    for name, old in before.items():
        assert weights(second, name)[: len(old)] == old
        added += weights(second, name)[len(old) :]
    assert sorted(added) == sorted(frame["weight"].cast(pl.Float32).to_list())
    assert [batch["files"] for batch in second.manifest["batches"]] == [3, 1]
    assert {path.name for path in tmp_path.iterdir()} == {"logs", "s"}


def test_rows_stay_in_their_split_whatever_stands_before_them(logs, tmp_path):
    all_at_once = update(logs, tmp_path / "a")
    (logs / "day-0.csv").rename(tmp_path / "day-0.csv")
    update(logs, tmp_path / "b")
    (tmp_path / "day-0.csv").rename(logs / "day-0.csv")
    late = update(logs, tmp_path / "b", piece_rows=7)
    for name in ("train", "valid", "test"):
        assert sorted(weights(late, name)) == sorted(weights(all_at_once, name))
    counts = {key: value for key, value in late.manifest["batches"][1].items() if isinstance(value, int)}
    assert counts == {"files": 1, "rows_read": 50, "late_rows": 50, "late_pieces": 8}


def test_the_fit_is_that_of_the_train_rows(logs, tmp_path):
    store = update(logs, tmp_path / "s")
    frames = pl.concat([pl.read_csv(path, infer_schema=False) for path in sorted(logs.iterdir())])
    train = frames.filter(pl.col("weight").cast(pl.Float32).is_in(weights(store, "train")))
    assert train.height == store.rows("train")
    assert FeaturePipeline(SPEC).fit(train).digest() == store.pipeline.digest()


def test_changed_and_missing_files(logs, tmp_path):
    first = update(logs, tmp_path / "s")
    os.utime(logs / "day-1.csv", (1, 1))
    assert update(logs, tmp_path / "s").digest == first.digest
    write(logs, "day-1.csv", rows=51)
    with pytest.raises(DataError, match=r"day-1\.csv: files changed after they were read.*--rebuild"):
        update(logs, tmp_path / "s")
    (logs / "day-1.csv").unlink()
    with pytest.raises(DataError, match=r"day-1\.csv: files are gone.*gone: keep.*--rebuild"):
        update(logs, tmp_path / "s")
    assert update(logs, tmp_path / "s", gone="keep").digest == first.digest
    assert update(logs, tmp_path / "s", anew=True).manifest["rows_read"] == 100


def test_what_is_finished_is_not_done_again(logs, tmp_path):
    class Stop(Exception):
        pass

    def stop(rows):
        if rows >= 100:
            raise Stop

    with pytest.raises(Stop):
        update(logs, tmp_path / "s", progress=stop)
    assert not (tmp_path / "s").exists()
    finished = {path.stat().st_ino for path in (tmp_path / ".s.work").rglob("*.arrow")}
    store = update(logs, tmp_path / "s")
    assert finished
    assert finished <= {path.stat().st_ino for path in store.folder.rglob("*.arrow")}
    assert content(store.folder) == content(update(logs, tmp_path / "undisturbed").folder)


def test_a_file_that_grows_while_it_is_read(logs, tmp_path):
    def grow(_):
        with (logs / "day-2.csv").open("a") as file:
            file.write("u1,a,1,1,1,1\n")

    with pytest.raises(DataError, match=r"day-2\.csv: file changed while it was read"):
        update(logs, tmp_path / "s", progress=grow)
    assert not (tmp_path / "s").exists()
    assert update(logs, tmp_path / "s").manifest["rows_read"] > 150


def test_a_store_of_another_kind_is_not_added_to(logs, tmp_path):
    build_store(scan(logs / "*.csv"), SPEC, SPLIT, tmp_path / "s")
    with pytest.raises(ArtifactError, match=r"files cannot be added.*--rebuild"):
        update(logs, tmp_path / "s")
    first = update(logs, tmp_path / "s", anew=True)
    with pytest.raises(ArtifactError, match=r"files cannot be added.*--rebuild"):
        update(logs, tmp_path / "s", split=RandomSplit(seed=1))
    assert {path.name for path in tmp_path.iterdir()} == {"logs", "s"}
    assert Store.open(tmp_path / "s").digest == first.digest


def test_splits_that_move_rows_are_refused(logs, tmp_path):
    for split in (TimeSplit(), LastPerGroupSplit(group="user")):
        with pytest.raises(ConfigError, match=r"rows would move.*valid_from"):
            update(logs, tmp_path / "s", split=split)


def test_moments(logs, tmp_path):
    split = TimeSplit(valid_from="1970-01-02", test_from="1970-01-03")
    store = update(logs, tmp_path / "s", split=split)
    assert store.manifest["rows"] == {"train": 50, "valid": 50, "test": 50}


def test_compaction_keeps_the_order(logs, tmp_path):
    many = update(logs, tmp_path / "many", piece_rows=10)
    few = update(logs, tmp_path / "few", piece_rows=10, compact_above=3)
    few.verify()
    assert len(many.shard_rows("train")) == 15
    assert len(few.shard_rows("train")) < 5
    for name in ("train", "valid", "test"):
        assert few.read(name).equal(many.read(name))
    files = {path.relative_to(few.folder).as_posix() for path in few.folder.rglob("*.arrow")}
    assert files == {shard["path"] for shards in few.manifest["shards"].values() for shard in shards}


def test_retention(logs, tmp_path):
    store = update(logs, tmp_path / "s", piece_rows=50)
    write(logs, "day-5.csv", day=5)
    store = update(logs, tmp_path / "s", keep_days=3.5, piece_rows=50)
    assert store.manifest["retired"] == 100
    assert sum(store.manifest["rows"].values()) == 100
    assert store.manifest["time_range"]["train"][0] >= 2 * DAY * 1_000_000
    store.verify()
    assert update(logs, tmp_path / "s", keep_days=3.5).manifest == store.manifest


def test_quarantine_and_keys_across_files(logs, tmp_path):
    quality = QualityConfig(mode="quarantine", max_bad_share=0.5, key=["user", "at"])
    first = update(logs, tmp_path / "s", quality=quality)
    (logs / "copy.csv").write_text((logs / "day-1.csv").read_text() + "a,b\n")
    (logs / "noise.csv").write_bytes(b"PK\x03\x04")
    with pytest.raises(DataError, match=r"too many rows.*51 of 51.*key of an earlier row"):
        update(logs, tmp_path / "s", quality=quality)
    assert Store.open(tmp_path / "s").digest == first.digest
    assert pl.read_parquet(tmp_path / "s.quarantine" / "batch-00001" / "rows-*.parquet").height == 50
    open_quality = quality.model_copy(update={"max_bad_share": 1.0})
    second = update(logs, tmp_path / "s", quality=open_quality)
    assert second.rows("train") == first.rows("train")
    assert second.manifest["quarantined"] == {"too few fields": 1, "user, at: key of an earlier row": 50}
    assert [file["file"] for file in second.manifest["quarantined_files"]] == ["noise.csv"]
    keys = next((second.folder / "keys").iterdir())
    whole = keys.read_bytes()
    write(logs, "noise.csv", day=9)
    keys.write_bytes(whole[:90])
    with pytest.raises(ArtifactError, match=r"keys cannot be read.*--rebuild"):
        update(logs, tmp_path / "s", quality=open_quality)
    keys.write_bytes(whole)
    third = update(logs, tmp_path / "s", quality=open_quality)
    assert third.manifest["quarantined_files"] == []
    assert third.manifest["rows_read"] == 251
    assert pl.read_parquet(third.folder / "quarantine" / "batch-00001" / "rows-*.parquet")["__file__"][0] == "copy.csv"


def test_two_at_once(logs, tmp_path):
    with workshop(tmp_path / "s"), pytest.raises(ArtifactError, match="another process is preparing"):
        update(logs, tmp_path / "s")


def prepare_until_killed(logs, folder, ready):
    ready.set()
    update(logs, folder, piece_rows=25, quality=QualityConfig(key=["user", "at", "weight"]))


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_killed_at_ten_moments(tmp_path):
    """The first run and then an update, each killed at moments drawn from the time that it takes."""
    logs = tmp_path / "logs"
    for day in range(6):
        write(logs, f"day-{day}.csv", day=day, rows=100)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["features.storage.incremental", __name__])

    def run(folder, wait=None):
        ready = context.Event()
        process = context.Process(target=prepare_until_killed, args=(logs, folder, ready))
        process.start()
        assert ready.wait(60)
        started = time.perf_counter()
        if wait is not None:
            time.sleep(wait)
            process.kill()
        process.join()
        return time.perf_counter() - started, process.exitcode

    draws = np.random.default_rng(0)
    killed = 0
    for stage in range(2):
        if stage:
            for day in range(6, 10):
                write(logs, f"day-{day}.csv", day=day, rows=100)
        seconds, code = run(tmp_path / "undisturbed")
        assert code == 0
        for _ in range(5):
            killed += run(tmp_path / "killed", draws.random() * seconds * 0.6)[1] == -signal.SIGKILL
        assert run(tmp_path / "killed")[1] == 0
        assert content(tmp_path / "killed") == content(tmp_path / "undisturbed")
        Store.open(tmp_path / "killed").verify()
    assert killed >= 5
