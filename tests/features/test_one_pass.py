"""A pipeline fitted on the rows that it encodes learns and writes what it does in two passes, bit for bit."""

import polars as pl
import pytest

from features.errors import DataError
from features.pipeline import FeaturePipeline
from features.spec import FeatureSpec
from features.storage.quality import STRICT, check
from features.storage.shards import write_shards
from features.storage.splits import RandomSplit
from features.validation import validate
from tests.features.conftest import make_events

NUMBER = {"type": "number", "name": "age", "standardise": True, "missing_flag": True}
QUANTILES = {"type": "number", "name": "price", "column": "importance", "quantiles": 7}
PLAIN = {"type": "number", "name": "p", "clip": [0.2, 0.8]}
BUCKET = {"type": "bucket", "name": "age_bucket", "column": "age", "quantiles": 4}
FREQUENCY = {"type": "frequency", "name": "often", "column": "city", "min_count": 1}
DERIVED = {"type": "number", "name": "older", "standardise": True}
ID, TAGS = {"type": "id", "name": "city"}, {"type": "ids", "name": "tags"}
CROSSES = [
    {"type": "cross", "name": "city_age", "of": ["city", "age_bucket"]},
    {"type": "cross", "name": "city_user", "of": ["city", "user"]},
]
USER = {"type": "id", "name": "user", "dtype": "integer"}
FEATURES = {
    "all": [CROSSES[0], USER, NUMBER, QUANTILES, PLAIN, TAGS, BUCKET, ID, FREQUENCY, DERIVED, CROSSES[1]],
    "ids of fitted operators alone": [BUCKET, FREQUENCY],
    "nothing is fitted": [USER, ID, TAGS],
    "a flag": [NUMBER],
}


def spec_of(features):
    derive = {"derive": {"older": "age + 10"}} if DERIVED in features else {}
    return validate(FeatureSpec, {"features": features, "labels": ["click"], **derive})


@pytest.mark.parametrize("features", FEATURES.values(), ids=FEATURES)
@pytest.mark.parametrize("together", [1000, 131])
def test_one_pass_gives_the_bits_of_two(tmp_path, monkeypatch, features, together):
    # Rows that are learned from together are several pieces, or parts of one.
    monkeypatch.setattr("features.pipeline.FIT_ROWS", together)
    monkeypatch.setattr("features.one_pass.FIT_ROWS", together)
    make_events(3000).write_parquet(tmp_path / "events.parquet", row_group_size=170)
    events, spec = pl.scan_parquet(tmp_path / "events.parquet"), spec_of(features)
    kept = check(events, RandomSplit(), FeaturePipeline(spec), STRICT).kept
    two, one = FeaturePipeline(spec), FeaturePipeline(spec)
    two.fit(kept.filter(pl.col("__split__") == "train"))
    wanted = write_shards(tmp_path / "two", kept, two, 700)
    assert write_shards(tmp_path / "one", kept, one, 700, fit=True) == wanted
    assert one.digest() == two.digest()
    assert [len(entries) for entries in wanted.values()] == [4, 1, 1]
    assert one.encode(make_events(1).row(0, named=True)).equal(two.encode(make_events(1).row(0, named=True)))
    for name in ("one", "two"):
        assert {path.suffix for path in (tmp_path / name).rglob("*") if path.is_file()} == {".arrow"}
    assert not list((tmp_path / "one").rglob(".*"))


def test_a_column_without_a_value(tmp_path):
    events = make_events(200).with_columns(age=pl.lit(None), city=pl.lit(None))
    spec = spec_of([USER, NUMBER, BUCKET, FREQUENCY])
    kept = check(events.lazy(), RandomSplit(), FeaturePipeline(spec), STRICT).kept
    two, one = FeaturePipeline(spec), FeaturePipeline(spec)
    two.fit(kept.filter(pl.col("__split__") == "train"))
    assert write_shards(tmp_path / "one", kept, one, 90, fit=True) == write_shards(tmp_path / "two", kept, two, 90)


def test_a_value_that_is_no_number_is_named(tmp_path):
    text = pl.when(pl.int_range(200) == 170).then(pl.lit("old")).otherwise(pl.col("age").cast(pl.String))
    events = make_events(200).with_columns(age=text)
    spec = spec_of([NUMBER, ID])
    kept = check(events.lazy(), RandomSplit(), FeaturePipeline(spec), STRICT).kept
    with pytest.raises(DataError, match=r"age: text that is no number \(in 1 row\)"):
        write_shards(tmp_path / "one", kept, FeaturePipeline(spec), 90, fit=True)
