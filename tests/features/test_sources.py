"""Event files of every kind open by their ending, and damaged ones say so."""

import gzip
import os

import polars as pl
import pytest

from features.errors import DataError
from features.sources import scan

FRAME = pl.DataFrame({"user": [1, 2, 3], "city": ["a", None, "ü"]})


def write(frame, path):
    name = path.name
    if name.endswith(".parquet"):
        frame.write_parquet(path)
    elif name.endswith(".csv"):
        frame.write_csv(path)
    elif name.endswith(".tsv"):
        frame.write_csv(path, separator="\t")
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress(frame.write_csv(separator="\t" if "tsv" in name else ",").encode()))
    elif name.endswith(("ndjson", "jsonl")):
        frame.write_ndjson(path)
    else:
        frame.write_ipc(path)
    return path


def as_read(frame, ending):
    """CSV and TSV know no types."""
    return frame.cast(pl.String) if "sv" in ending else frame


ENDINGS = ["parquet", "csv", "tsv", "csv.gz", "tsv.gz", "ndjson", "jsonl", "arrow", "ipc", "feather"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_kind(tmp_path, ending):
    assert scan(write(FRAME, tmp_path / f"e.{ending}")).collect().equals(as_read(FRAME, ending))


@pytest.mark.parametrize("ending", ["csv", "tsv", "csv.gz", "tsv.gz"])
def test_text_stays_as_the_file_has_it(tmp_path, ending):
    frame = pl.DataFrame({"zip": ["01234", None, "", "1e3", "NULL"], "flag": ["true", "0", "1", "nan", None]})
    assert scan(write(frame, tmp_path / f"e.{ending}")).collect().equals(frame)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_glob_in_the_order_of_names(tmp_path, ending):
    for day in (2, 1, 3):
        write(FRAME.with_columns(user=pl.lit(day)), tmp_path / f"day-{day}.{ending}")
    found = scan(tmp_path / f"day-*.{ending}").collect()
    assert found["user"].cast(pl.Int64).to_list() == [1] * 3 + [2] * 3 + [3] * 3


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_empty_file(tmp_path, ending):
    (tmp_path / f"e.{ending}").write_bytes(b"")
    with pytest.raises(DataError, match="file is empty"):
        scan(tmp_path / f"e.{ending}")


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_a_truncated_file(tmp_path, ending):
    path = write(FRAME, tmp_path / f"e-2.{ending}")
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(DataError, match="damaged"):
        scan(path)
    write(FRAME, tmp_path / f"e-1.{ending}")
    with pytest.raises(DataError, match="damaged"):
        scan(tmp_path / f"e-*.{ending}")


def test_a_missing_file_with_its_nearest(tmp_path):
    write(FRAME, tmp_path / "events.parquet")
    with pytest.raises(DataError, match=r"did you mean 'events\.parquet'"):
        scan(tmp_path / "event.parquet")
    with pytest.raises(DataError, match="file is missing"):
        scan(tmp_path / "no" / "where.csv")
    with pytest.raises(DataError, match="no file matches"):
        scan(tmp_path / "*.csv")


def test_what_cannot_be_read(tmp_path):
    (tmp_path / "e.xlsx").write_text("x")
    with pytest.raises(DataError, match="unknown ending"):
        scan(tmp_path / "e.xlsx")
    with pytest.raises(DataError, match="is a folder"):
        scan(tmp_path)
    write(FRAME, tmp_path / "a.csv")
    write(FRAME, tmp_path / "a.parquet")
    with pytest.raises(DataError, match="several kinds"):
        scan(tmp_path / "a.*[vt]")
