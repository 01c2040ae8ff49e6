"""Opens event files lazily by their ending: Parquet, CSV, TSV, NDJSON and Arrow IPC, one file or a glob."""

from __future__ import annotations

from collections.abc import Callable
from glob import glob, has_magic
from pathlib import Path

import polars as pl

from features.errors import DataError, list_names, nearest
from features.frames import first_line

_INFER_ROWS = 10_000


def _csv(files: list[Path]) -> pl.LazyFrame:
    return _separated(files, ",")


def _tsv(files: list[Path]) -> pl.LazyFrame:
    return _separated(files, "\t")


def _separated(files: list[Path], separator: str) -> pl.LazyFrame:
    # A guessed type would lose what the file says: 01234 is not 1234, and the guess hangs on the rows looked at.
    return pl.scan_csv(files, separator=separator, infer_schema=False)


def _ndjson(files: list[Path]) -> pl.LazyFrame:
    return pl.scan_ndjson(files, infer_schema_length=_INFER_ROWS)


_READERS: dict[str, Callable[[list[Path]], pl.LazyFrame]] = {
    ".parquet": pl.scan_parquet,
    ".csv": _csv,
    ".csv.gz": _csv,
    ".tsv": _tsv,
    ".tsv.gz": _tsv,
    ".ndjson": _ndjson,
    ".jsonl": _ndjson,
    ".arrow": pl.scan_ipc,
    ".ipc": pl.scan_ipc,
    ".feather": pl.scan_ipc,
}


def scan(path: str | Path) -> pl.LazyFrame:
    """Opens a file, or all files of a glob in the order of their names.

    The columns of CSV and TSV are all text, and an empty field is null: the spec says what the text means.

    Args:
        path: Such as `events.parquet` or `logs/day-*.csv.gz`; all files must have one ending.

    Raises:
        DataError: There is no such file, its ending is unknown, it is empty, or it is damaged.
    """
    files = _files(str(path))
    endings = {_ending(file) for file in files}
    if len(endings) > 1:
        raise DataError(
            "files of several kinds", field=str(path), found=list_names(sorted(endings)), mend="give one kind at a time"
        )
    for file in files:
        if file.stat().st_size == 0:
            raise DataError("file is empty", field=str(file), mend="write it anew or leave it out")
    read = _READERS[endings.pop()]
    try:
        frame = read(files)
        # Reads the header or the footer of every file: a truncated one shows now, not an hour into a run.
        for file in files if len(files) > 1 else []:
            read([file]).collect_schema()
        frame.collect_schema()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(
            "file is damaged or not what its ending says",
            field=str(path),
            found=first_line(error),
            mend="copy or write the file anew",
        ) from error
    return frame


def _files(path: str) -> list[Path]:
    if has_magic(path):
        files = [Path(file) for file in sorted(glob(path)) if Path(file).is_file()]
        if not files:
            raise DataError("no file matches", field=path, mend="check the pattern")
        return files
    file = Path(path)
    if file.is_dir():
        raise DataError("is a folder", field=path, mend=f"name its files, such as {path}/*.parquet")
    if not file.is_file():
        siblings = [entry.name for entry in file.parent.iterdir()] if file.parent.is_dir() else []
        close = nearest(file.name, siblings)
        raise DataError("file is missing", field=path, mend=f"did you mean {close!r}?" if close else "check the path")
    return [file]


def _ending(file: Path) -> str:
    name = file.name.lower()
    for ending in sorted(_READERS, key=len, reverse=True):
        if name.endswith(ending):
            return ending
    raise DataError(
        "unknown ending", field=str(file), expected=f"one of {list_names(_READERS)}", mend="rename the file"
    )
