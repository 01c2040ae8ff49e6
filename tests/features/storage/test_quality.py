"""The quality gate: what cannot be used is named or set aside, and every row is counted once."""

import os

import polars as pl
import pytest

from features.errors import ConfigError, DataError
from features.pipeline import FeaturePipeline
from features.reading.input_files import gather, input_files
from features.reading.records import open_records, require_records
from features.reading.sources import scan
from features.spec import FeatureSpec
from features.storage.quality import QualityConfig
from features.storage.splits import ColumnSplit, RandomSplit, TimeSplit
from features.storage.store import QUARANTINE, Store, build_store
from features.validation import validate

SPEC = validate(
    FeatureSpec,
    {
        "features": [{"type": "id", "name": "user", "dtype": "integer"}, {"type": "number", "name": "price"}],
        "labels": ["click"],
        "time": "at",
        "time_unit": "s",
    },
)
SPLIT = RandomSplit(fractions=(0.4, 0.3, 0.3))
OPEN = {"mode": "quarantine", "max_bad_share": 1.0}


def events(**changes):
    """Sixty good rows; `column={row: value}` changes some."""
    columns = {
        "user": [str(k) for k in range(60)],
        "price": ["1.5"] * 60,
        "click": ["0", "1"] * 30,
        "at": [str(1000 + k) for k in range(60)],
    }
    for name, values in changes.items():
        for row, value in values.items():
            columns[name][row] = value
    return pl.LazyFrame(columns)


def build(tmp_path, rows, split=SPLIT, **quality):
    return build_store(rows, SPEC, split, tmp_path / "s", quality=QualityConfig(**quality))


def quarantined(store):
    return pl.read_parquet(store.folder / QUARANTINE / "rows-00000.parquet")


BAD = {"user": {3: "x"}, "click": {5: "7", 9: None}, "price": {7: "dear"}}
REASONS = {
    "click: label is missing": 1,
    "click: label outside {0, 1}": 1,
    "price: text that is no number": 1,
    "user: not a whole number of 64 bits": 1,
}


@pytest.mark.parametrize("split", [SPLIT, TimeSplit(fractions=(0.4, 0.3, 0.3))], ids=["random", "time"])
def test_rows_in_quarantine_are_kept_with_place_and_reason(tmp_path, split):
    store = build(tmp_path, events(**BAD), split, **OPEN)
    assert store.manifest["quarantined"] == REASONS
    assert store.manifest["rows_read"] == 60
    assert sum(store.manifest["rows"].values()) == 56
    rows = quarantined(store)
    assert rows["__place__"].to_list() == [3, 5, 7, 9]
    assert rows["__reason__"][1] == "click: label outside {0, 1}"
    assert rows["user"].to_list() == ["x", "5", "7", "9"]


def test_what_is_left_is_what_the_good_rows_alone_give(tmp_path):
    bad = events(**BAD)
    good = bad.with_row_index("n").filter(~pl.col("n").is_in([3, 5, 7, 9])).drop("n")
    split = TimeSplit(fractions=(0.4, 0.3, 0.3))
    with_bad = build(tmp_path, bad, split, **OPEN).read("train")
    assert with_bad.equal(build_store(good, SPEC, split, tmp_path / "good").read("train"))


def test_strict_is_the_default_and_names_the_first(tmp_path):
    with pytest.raises(DataError, match=r"user: not a whole number of 64 bits \(in 1 row\). Found: 'x'"):
        build(tmp_path, events(**BAD))


def test_too_much_fails_the_run_and_leaves_the_old_store_and_the_quarantine(tmp_path):
    first = build(tmp_path, events())
    with pytest.raises(DataError, match=r"too many rows are in quarantine.*4 of 60 rows \(6.67%\).*at most 5.00%"):
        build(tmp_path, events(**BAD), mode="quarantine", max_bad_share=0.05)
    assert Store.open(tmp_path / "s").digest == first.digest
    assert pl.read_parquet(tmp_path / "s.quarantine" / "rows-00000.parquet").height == 4
    assert {path.name for path in tmp_path.iterdir()} == {"s", "s.quarantine"}
    build(tmp_path, events(**BAD), mode="quarantine", max_bad_share=0.07)
    assert {path.name for path in tmp_path.iterdir()} == {"s"}


def test_times_out_of_bounds(tmp_path):
    early_and_late = events(at={0: "999", 1: "2000"})
    bounds = {"since": "1970-01-01 00:16:40", "now": "1970-01-01 00:20:00"}
    store = build(tmp_path, early_and_late, **OPEN, **bounds)
    assert store.manifest["quarantined"] == {
        "at: time is before data.quality.since": 1,
        "at: time is in the future": 1,
    }
    with pytest.raises(DataError, match=r"at: time is before data.quality.since \(in 1 row\). Found: '999'"):
        build(tmp_path, early_and_late, since=bounds["since"])


def test_times_after_the_last_change_of_the_file(tmp_path):
    path = tmp_path / "e.csv"
    events().collect().write_csv(path)
    os.utime(path, (1029.5, 1029.5))
    quality = QualityConfig(**OPEN, now="file")
    rows, _, _ = gather(input_files([path]), scan, FeaturePipeline(SPEC), quality, tmp_path / "spool")
    store = build_store(rows, SPEC, SPLIT, tmp_path / "s", quality=quality)
    assert store.manifest["quarantined"] == {"at: time is in the future": 30}
    assert quarantined(store).columns == ["__file__", "__place__", "__reason__", "user", "price", "click", "at"]
    assert quarantined(store).row(0) == ("e.csv", 30, "at: time is in the future", "30", "1.5", "0", "1030")


def test_of_one_key_the_first_good_row_is_kept(tmp_path):
    rows = events(user={10: "4", 20: "4", 30: "8", 8: "8"}, click={8: "7"})
    store = build(tmp_path, rows, **OPEN, key=["user"])
    assert store.manifest["quarantined"] == {"click: label outside {0, 1}": 1, "user: key of an earlier row": 2}
    assert quarantined(store)["__place__"].to_list() == [8, 10, 20]
    with pytest.raises(DataError, match=r"user: key is not unique \(in 3 rows\). Found: '4'"):
        build(tmp_path, rows, key=["user"])
    with pytest.raises(DataError, match=r"usr: column is missing.*did you mean 'user'"):
        build(tmp_path, rows, key=["usr"])


def test_rows_of_no_split_are_dropped_not_quarantined(tmp_path):
    split = ColumnSplit(column="price", values={"train": ["1.5"], "valid": ["2"], "test": ["3"]})
    rows = events(price={0: "2", 1: "3", 2: "dear"}, click={2: "9"})
    store = build(tmp_path, rows, split, **OPEN)
    assert store.manifest["quarantined"] == {}
    assert sum(store.manifest["dropped"].values()) == 1


def test_a_split_by_moments_and_bad_times(tmp_path):
    split = TimeSplit(valid_from="1970-01-01 00:17:00", test_from="1970-01-01 00:17:20")
    store = build(tmp_path, events(), split)
    assert store.manifest["rows"] == {"train": 20, "valid": 20, "test": 20}
    assert TimeSplit.model_validate(split.model_dump(mode="json")) == split
    assert TimeSplit().model_dump() == {"kind": "time", "fractions": (0.8, 0.1, 0.1), "columns": None}
    late = events(at={0: None, 1: "soon"})
    assert sum(build(tmp_path, late, split, **OPEN).manifest["quarantined"].values()) == 2
    with pytest.raises(DataError, match="at: text that is no time"):
        build(tmp_path, late, split)


def test_rules_that_make_no_sense(tmp_path):
    with pytest.raises(ConfigError, match="these events come from no file"):
        build(tmp_path, events(), now="file")
    with pytest.raises(ConfigError, match="not a time"):
        validate(QualityConfig, {"since": "yesterday"})
    with pytest.raises(ConfigError, match="valid_from before test_from"):
        TimeSplit(valid_from="2024-01-02", test_from="2024-01-01")
    with pytest.raises(ConfigError, match="moments and shares at once"):
        TimeSplit(valid_from="2024-01-01", test_from="2024-01-02", fractions=(0.8, 0.1, 0.1))


@pytest.mark.parametrize(
    ("text", "bad", "rows"),
    [
        (b"a,b\n1,2\n3\n5,6\n", {1: "too few fields"}, [("1", "2", 0), ("5", "6", 2)]),
        (b"a,b\n1,2\n\n3,4\n", {1: "blank line"}, [("1", "2", 0), ("3", "4", 2)]),
        (b'a,b\n1,"x\ny"\n3\n', {1: "too few fields"}, [("1", "x\ny", 0)]),
        (b'a,b\n1,"x\n3,4\n5,6\n', {0: "quotes that do not fit together"}, [("3", "4", 1), ("5", "6", 2)]),
        (b'a,b\n1,"x,y"\n3,"4""5"\n', {}, [("1", "x,y", 0), ("3", '4"5', 1)]),
        (b"\xef\xbb\xbfa,b\n1,\xff\n3,4", {0: "invalid UTF-8"}, [("3", "4", 1)]),
    ],
)
def test_records(tmp_path, text, bad, rows):
    path = tmp_path / "e.csv"
    path.write_bytes(text)
    opened = open_records(path, scan, tmp_path / "spool")
    assert {record.place: record.reason for record in opened.records} == bad
    assert opened.frame.select("a", "b", "__place__").collect().rows() == rows
    if bad:
        with pytest.raises(DataError, match=r"e\.csv: .*in [0-9] line"):
            require_records(path)
    else:
        require_records(path)


def test_json_lines(tmp_path):
    path = tmp_path / "e.ndjson"
    path.write_bytes(b'\xef\xbb\xbf{"a":1}\n\n{"a":\n[1]\n{"a":4}\n')
    opened = open_records(path, scan, tmp_path / "spool")
    assert [(record.place, record.reason) for record in opened.records] == [(1, "no JSON"), (2, "no JSON object")]
    assert opened.frame.select("a", "__place__").collect().rows() == [(1, 0), (4, 3)]
