"""The store: all rows and nothing but them, whole or not at all, and damage is seen."""

import datetime
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import polars as pl
import pytest

from features.errors import ArtifactError, DataError
from features.fingerprint import fingerprint
from features.pipeline import FeaturePipeline
from features.reading.sources import scan
from features.spec import FeatureSpec
from features.storage.splits import ColumnSplit, RandomSplit, TimeSplit, assign_split
from features.storage.store import Store, build_store
from features.validation import validate


@pytest.fixture
def copy(store, tmp_path):
    """A copy of the store that a test may damage."""
    folder = tmp_path / "copy"
    shutil.copytree(store.folder, folder)
    return folder


def test_rows_and_order_are_those_of_the_input(store, events, spec):
    assigned = assign_split(events.lazy(), RandomSplit(seed=3), spec).collect()
    assert sum(store.rows(name) for name in ("train", "valid", "test")) == 1000
    for name in ("train", "valid", "test"):
        mine = assigned.filter(pl.col("__split__") == name)
        assert store.rows(name) == mine.height
        assert store.read(name).equal(store.pipeline.encode_frame(mine, labels=True))


def test_only_train_is_fitted_on(store, events, spec):
    train = assign_split(events.lazy(), RandomSplit(seed=3), spec).filter(pl.col("__split__") == "train")
    assert FeaturePipeline(spec).fit(train).digest() == store.pipeline.digest()


def test_manifest(store, spec, events):
    manifest = store.manifest
    assert manifest["rows_read"] == 1000
    assert manifest["dropped"] == {}
    assert manifest["spec_digest"] == spec.digest()
    shards = manifest["shards"]["train"]
    assert [shard["rows"] for shard in shards[:-1]] == [230] * (len(shards) - 1)
    assert sum(shard["rows"] for shard in shards) == store.rows("train")
    assert shards[0]["path"] == "train/part-00000.arrow"
    train = store.read("train")
    assert manifest["label_means"]["train"]["click"] == pytest.approx(float(train.labels[:, 0].mean()))
    assert manifest["time_range"]["train"] == [int(train.time.min()), int(train.time.max())]
    assert str(store.folder) not in json.dumps(manifest)


def test_same_input_same_bytes(store, events, spec, tmp_path):
    again = build_store(events.lazy(), spec, RandomSplit(seed=3), tmp_path / "again", shard_rows=230)
    assert again.digest == store.digest
    assert again.manifest == store.manifest
    other = build_store(events.lazy(), spec, RandomSplit(seed=4), tmp_path / "other", shard_rows=230)
    assert other.digest != store.digest


def test_the_source_of_the_frame_changes_no_byte(store, events, spec, tmp_path):
    events.write_parquet(tmp_path / "e.parquet", row_group_size=77)
    lazy = pl.scan_parquet(tmp_path / "e.parquet")
    assert build_store(lazy, spec, RandomSplit(seed=3), tmp_path / "p", shard_rows=230).digest == store.digest


def test_csv_gives_the_bits_of_parquet(tmp_path):
    """CSV has text only; leading zeros, nulls and every kind of column come out as from typed columns."""
    rows = 400
    rng = np.random.default_rng(5)

    def some(values):
        return [None if draw < 0.1 else value for draw, value in zip(rng.random(rows), values, strict=True)]

    start = datetime.datetime(2024, 1, 1)
    events = pl.DataFrame(
        {
            "zip": some([f"{k:05d}" for k in rng.integers(0, 3000, rows)]),
            "user": some(rng.integers(-(2**62), 2**62, rows).tolist()),
            "member": some((rng.random(rows) < 0.5).tolist()),
            "tags": some(["|".join(f"0{k}" for k in range(n)) for n in rng.integers(0, 4, rows)]),
            "price": some((rng.normal(size=rows) * 10.0 ** rng.integers(-9, 9, rows)).tolist()),
            "age": some(rng.integers(0, 90, rows).tolist()),
            "at": [start + datetime.timedelta(microseconds=int(k)) for k in rng.integers(0, 10**13, rows)],
            "seen": some(rng.integers(0, 10**9, rows).tolist()),
            "click": rng.integers(0, 2, rows),
            "liked": rng.random(rows) < 0.5,
            "w": rng.random(rows),
            "p": rng.random(rows),
        }
    )
    spec = validate(
        FeatureSpec,
        {
            "features": [
                {"type": "id", "name": "zip"},
                {"type": "id", "name": "user", "dtype": "integer"},
                {"type": "id", "name": "user_text", "column": "user"},
                {"type": "id", "name": "member", "dtype": "boolean"},
                {"type": "ids", "name": "tags", "separator": "|"},
                {"type": "ids", "name": "tag_numbers", "column": "tags", "separator": "|", "dtype": "integer"},
                {"type": "number", "name": "price", "standardise": True, "missing_flag": True},
                {"type": "number", "name": "age", "clip": [0, None], "log": 1, "standardise": True},
                {"type": "bucket", "name": "age_bucket", "column": "age", "quantiles": 5},
                {"type": "cross", "name": "zip_age", "of": ["zip", "age_bucket"]},
                {"type": "time", "name": "hour", "column": "at", "part": "hour"},
                {"type": "time", "name": "weekday", "column": "seen", "part": "weekday", "unit": "s"},
            ],
            "labels": ["click", "liked"],
            "weight": "w",
            "reference": "p",
            "group": "user",
            "time": "at",
        },
    )
    events.write_parquet(tmp_path / "e.parquet")
    events.write_csv(tmp_path / "e.csv")
    events.write_csv(tmp_path / "e.tsv", separator="\t", datetime_format="%Y-%m-%d %H:%M:%S%.6fZ")
    events.with_columns(pl.col("at").dt.to_string("%Y-%m-%dT%H:%M:%S%.6f")).write_ndjson(tmp_path / "e.ndjson")
    stores = {
        ending: build_store(scan(tmp_path / f"e.{ending}"), spec, TimeSplit(), tmp_path / ending)
        for ending in ("parquet", "csv", "tsv", "ndjson")
    }
    assert len({store.digest for store in stores.values()}) == 1
    pipeline = stores["parquet"].pipeline
    text = scan(tmp_path / "e.csv").collect()
    assert pipeline.encode(text.to_dicts(), labels=True).equal(pipeline.encode_frame(events, labels=True))


def test_id_counts(store):
    counts = store.id_counts()
    batch = store.read("train")
    values, number = np.unique(batch.ids[:, 0].numpy(), return_counts=True)
    assert np.array_equal(counts["user"][0], values)
    assert np.array_equal(counts["user"][1], number)
    assert set(counts) == {"user", "city", "age_bucket", "city_age", "hour", "tags", "words"}
    tags = dict(zip(*(part.tolist() for part in counts["tags"]), strict=True))
    lengths = batch.bag_lengths[0]
    assert sum(tags.values()) == int(lengths.sum())
    assert tags[fingerprint("t2")] == int((lengths == 3).sum())


def test_dropped_rows_are_counted(events, spec, tmp_path):
    split = ColumnSplit(column="city", values={"train": ["Oslo"], "valid": ["Zürich"], "test": [""]})
    store = build_store(events.lazy(), spec, split, tmp_path / "s")
    missing = events["city"].null_count()
    assert store.manifest["dropped"] == {"city has a value of no split": missing}
    assert sum(store.manifest["rows"].values()) == 1000 - missing


def test_rows_of_no_split_may_hold_anything(events, spec, tmp_path):
    values = {"train": ["Oslo"], "valid": ["Zürich"], "test": [""]}
    split = ColumnSplit(column="city", values=values)
    outside = pl.col("city").is_null()
    bad = events.with_columns(
        click=pl.when(outside).then(None).otherwise(pl.col("click")),
        p=pl.when(outside).then(7.0).otherwise(pl.col("p")),
    )
    store = build_store(bad.lazy(), spec, split, tmp_path / "bad")
    good = build_store(events.lazy(), spec, split, tmp_path / "good")
    assert store.digest == good.digest
    assert store.manifest["rows_read"] == 1000
    assert sum(store.manifest["dropped"].values()) == events["city"].null_count()


def test_an_error_about_the_whole_input_names_the_source(events, spec, tmp_path):
    source = {"source": "logs/*.parquet"}
    with pytest.raises(DataError, match=r"logs/\*\.parquet: the input has no rows"):
        build_store(events.head(0).lazy(), spec, RandomSplit(), tmp_path / "s", source=source)
    with pytest.raises(DataError, match="click: label is missing"):
        build_store(events.with_columns(click=None).lazy(), spec, RandomSplit(), tmp_path / "s", source=source)
    path = tmp_path / "e.parquet"
    events.write_parquet(path)
    data = bytearray(path.read_bytes())
    data[8 : len(data) // 2] = bytes(len(data) // 2 - 8)
    path.write_bytes(data)
    for split in (RandomSplit(), TimeSplit()):
        with pytest.raises(DataError, match=r"^logs/\*\.parquet: data cannot be read"):
            build_store(scan(path), spec, split, tmp_path / "s", source=source)


def test_a_missing_column_lists_no_column_of_ours(events, spec, tmp_path):
    with pytest.raises(DataError, match="city: column is missing") as caught:
        build_store(events.drop("city").lazy(), spec, RandomSplit(), tmp_path / "s")
    assert "__split__" not in str(caught.value)


def test_progress_and_source(events, spec, tmp_path):
    seen = []
    store = build_store(
        events.lazy(), spec, TimeSplit(), tmp_path / "s", source={"recipe": "made up"}, progress=seen.append
    )
    assert seen[-1] == 1000
    assert store.manifest["source"] == {"recipe": "made up"}


def test_verify_sees_a_changed_byte(copy):
    store = Store.open(copy)
    store.verify()
    path = copy / "valid" / "part-00000.arrow"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match="shard is damaged"):
        Store.open(copy).verify()


def other_fingerprint(path):
    path.write_text(json.dumps({**json.loads(path.read_text()), "fingerprint_version": 7}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: os.truncate(f / "train" / "part-00001.arrow", 1000), "truncated"),
        (lambda f: (f / "train" / "part-00001.arrow").write_bytes(b""), "truncated"),
        (lambda f: (f / "train" / "part-00001.arrow").unlink(), "shard is missing"),
        (lambda f: (f / "manifest.json").unlink(), "no prepared data"),
        (lambda f: (f / "manifest.json").write_text("{"), "cannot be read"),
        (lambda f: (f / "manifest.json").write_text("[]"), "damaged"),
        (lambda f: (f / "manifest.json").write_text('{"version": 9}'), "version of the prepared data"),
        (lambda f: other_fingerprint(f / "manifest.json"), r"of the fingerprint.*version 7\. Expected: 1.*prepare"),
        (lambda f: (f / "spec.json").unlink(), "file is missing"),
        (lambda f: shutil.rmtree(f / "pipeline"), "file is missing"),
        (lambda f: shutil.rmtree(f), "no prepared data"),
    ],
)
def test_damage_is_seen_on_opening(copy, damage, message):
    damage(copy)
    with pytest.raises(ArtifactError, match=message) as caught:
        Store.open(copy)
    assert caught.value.mend


def test_shards_of_another_store_are_refused(copy, store):
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["rows"]["train"] += 1
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="do not belong together"):
        Store.open(copy)


def test_a_changed_spec_is_named(store, spec):
    assert Store.open(store.folder, spec=spec).digest == store.digest
    data = spec.model_dump(mode="json")
    data["features"] = data["features"][1:]
    data["features"][0]["column"] = "town"
    data["features"].append({"type": "id", "name": "shop"})
    data["weight"] = None
    with pytest.raises(ArtifactError, match="the spec changed since the data was prepared") as caught:
        Store.open(store.folder, spec=validate(FeatureSpec, data))
    message = str(caught.value)
    for words in ("added shop", "removed user", "changed city, weight", "recsys prepare"):
        assert words in message
    swapped = spec.model_copy(update={"features": spec.features[::-1]})
    with pytest.raises(ArtifactError, match="order of the features"):
        Store.open(store.folder, spec=swapped)


def nothing_left(tmp_path):
    return sorted(path.name for path in tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e.head(0), "no rows"),
        (lambda e: e.head(3), "split is empty"),
        (lambda e: e.drop("city"), "city: column is missing"),
        (lambda e: e.drop("click"), "click: column is missing"),
        (lambda e: e.with_columns(click=pl.lit(2)), "label outside"),
        (lambda e: e.with_columns(click=pl.lit("yes")), r"click: label outside.*Found: 'yes'"),
        (lambda e: e.with_columns(age=pl.lit("old")), r"age: text that is no number.*Found: 'old'"),
        (lambda e: e.with_columns(city=pl.col("tags")), "city: wrong dtype"),
        (lambda e: e.with_columns(user=pl.lit("x1")), "user: not a whole number"),
        (lambda e: e.with_columns(p=pl.lit(None, dtype=pl.Float64)), "p: reference probability is missing"),
    ],
)
def test_bad_input_leaves_nothing(events, spec, tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        build_store(change(events).lazy(), spec, RandomSplit(), tmp_path / "s")
    assert nothing_left(tmp_path)


def test_an_error_half_way_leaves_nothing_and_keeps_the_old(store, events, spec, tmp_path):
    class Stop(Exception):
        pass

    def stop(rows):
        raise Stop

    with pytest.raises(Stop):
        build_store(events.lazy(), spec, RandomSplit(), tmp_path / "s", progress=stop)
    assert nothing_left(tmp_path)
    first = build_store(events.lazy(), spec, RandomSplit(), tmp_path / "s")
    with pytest.raises(Stop):
        build_store(events.lazy(), spec, RandomSplit(seed=9), tmp_path / "s", progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
    assert Store.open(tmp_path / "s").digest == first.digest
    second = build_store(events.lazy(), spec, RandomSplit(seed=9), tmp_path / "s")
    assert Store.open(tmp_path / "s").digest == second.digest != first.digest
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_leftovers_of_dead_processes_go_and_of_running_ones_stay(store, events, spec, tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for kind in ("partial", "old"):
        for process in (dead.pid, os.getppid()):
            (tmp_path / f".s.{process}.{kind}").mkdir()
    (tmp_path / f".s.t.{dead.pid}.partial").mkdir()
    build_store(events.lazy(), spec, RandomSplit(), tmp_path / "s")
    running = {f".s.{os.getppid()}.{kind}" for kind in ("partial", "old")}
    assert {path.name for path in tmp_path.iterdir()} == {"s", f".s.t.{dead.pid}.partial", *running}


def test_a_store_that_a_killed_process_moved_aside_comes_back(store, events, spec, tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    shutil.copytree(store.folder, tmp_path / f".s.{dead.pid}.old")
    with pytest.raises(DataError, match="no rows"):
        build_store(events.head(0).lazy(), spec, RandomSplit(), tmp_path / "s")
    assert Store.open(tmp_path / "s").digest == store.digest
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_two_processes_at_once_leave_one_whole_store(events, tmp_path):
    events.select("city", "click").write_parquet(tmp_path / "e.parquet")
    program = """if True:
        import sys
        from pathlib import Path
        from features.reading.sources import scan
        from features.spec import FeatureSpec
        from features.storage.splits import RandomSplit
        from features.storage.store import build_store

        spec = FeatureSpec.model_validate({"features": [{"type": "id", "name": "city"}], "labels": ["click"]})
        folder = Path(sys.argv[1])
        for _ in range(20):
            build_store(scan(folder / "e.parquet"), spec, RandomSplit(), folder / "out" / "s")
    """
    both = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path)]) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    Store.open(tmp_path / "out" / "s").verify()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["s"]


def test_a_folder_of_something_else_is_not_touched(events, spec, tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "thesis.txt").write_text("dear")
    with pytest.raises(ArtifactError, match="no prepared data is there"):
        build_store(events.lazy(), spec, RandomSplit(), tmp_path / "s")
    assert (tmp_path / "s" / "thesis.txt").read_text() == "dear"


def test_a_place_that_cannot_be_written(events, spec, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot be written"):
        build_store(events.lazy(), spec, RandomSplit(), tmp_path / "file" / "s")


def test_unknown_split(store):
    with pytest.raises(DataError, match="no such split"):
        store.rows("tset")


def test_a_store_without_ids_or_without_anything_but_bags(events, tmp_path):
    for feature in ({"type": "number", "name": "age"}, {"type": "ids", "name": "tags"}):
        spec = validate(FeatureSpec, {"features": [feature], "labels": ["click"]})
        store = build_store(events.lazy(), spec, RandomSplit(), tmp_path / feature["name"])
        assert len(store.read("test")) == store.rows("test")
        assert store.read("test").ids.shape == (store.rows("test"), 0)
