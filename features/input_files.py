"""Input files one by one: their names, their fingerprints, and their rows with file and place."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from features.errors import DataError
from features.files import digest_of
from features.frames import FILE_COLUMN, PLACE_COLUMN, first_line, schema_of
from features.pipeline import FeaturePipeline
from features.quality import CHANGED_COLUMN, QualityConfig, problems_of
from features.records import BadRecord, Open, open_records, require_records
from features.unreadable import Unreadable

ADDED_COLUMNS = (FILE_COLUMN, PLACE_COLUMN, CHANGED_COLUMN)
"""Columns that `read_file` adds."""


@dataclasses.dataclass(frozen=True)
class InputFile:
    """A file of the source.

    Attributes:
        name: Its path from the folder that holds all files of the source.
        path: Where it is.
    """

    name: str
    path: Path

    @property
    def bytes(self) -> int:
        """Its size."""
        return self.path.stat().st_size

    @property
    def changed(self) -> int:
        """When it was changed last, in nanoseconds since 1970-01-01 UTC."""
        return self.path.stat().st_mtime_ns

    @property
    def stamp(self) -> tuple[int, int]:
        """Size and time of change: enough to see that it was changed."""
        return self.bytes, self.changed

    def digest(self) -> str:
        """Returns the digest of all its bytes.

        Raises:
            DataError: It cannot be read.
        """
        try:
            return digest_of(self.path)
        except OSError as error:
            raise DataError("file cannot be read", field=str(self.path), found=error.strerror) from error


@dataclasses.dataclass(frozen=True)
class Reading:
    """The rows of a file, or why there are none.

    Attributes:
        file: The file.
        frame: Rows with `__file__`, `__place__` and `__changed__`; None if the file cannot be used at all.
        records: What is no record.
        failure: Why there is no frame.
        note: What is odd about the file.
    """

    file: InputFile
    frame: pl.LazyFrame | None
    records: tuple[BadRecord, ...] = ()
    failure: str | None = None
    note: str | None = None


def input_files(paths: Sequence[Path]) -> list[InputFile]:
    """Returns the files in the order of their names.

    Example:
        >>> [file.name for file in input_files([Path("logs/b/2.csv"), Path("logs/a/1.csv")])]
        ['a/1.csv', 'b/2.csv']
    """
    paths = [Path(os.path.abspath(path)) for path in paths]
    root = Path(os.path.commonpath([path.parent for path in paths])) if paths else Path()
    return sorted((InputFile(path.relative_to(root).as_posix(), path) for path in paths), key=lambda file: file.name)


def read_file(
    file: InputFile,
    open_file: Open,
    pipeline: FeaturePipeline,
    quality: QualityConfig,
    spool: Path,
    *,
    like: pl.Schema | None = None,
) -> Reading:
    """Opens a file and sees whether its records and its columns can be used.

    Args:
        file: The file.
        open_file: Opens it, and a copy of it under another folder, as rows.
        pipeline: Reads the columns; it need not be fitted.
        quality: In strict mode what cannot be used is an error.
        spool: Where to put a copy of the records that are good, if some are bad.
        like: Columns of the files before, whose types must be the same.

    Raises:
        DataError: In strict mode: a record, a column or the file cannot be used.
    """
    try:
        if quality.mode == "strict":
            require_records(file.path)
            frame, records, note = open_file(file.path).with_row_index(PLACE_COLUMN), [], None
        else:
            if not file.bytes:
                raise DataError("file is empty", field=file.name)
            opened = open_records(file.path, open_file, spool)
            frame, records, note = opened.frame, opened.records, opened.note
        schema = schema_of(frame)
        problems_of(pipeline, schema)
        for column, dtype in (like or {}).items():
            if schema.get(column, dtype) != dtype and column != PLACE_COLUMN:
                raise DataError(
                    "column has another type than in the files before",
                    field=column,
                    found=schema[column],
                    expected=dtype,
                    mend="write the file anew",
                )
    except (DataError, OSError) as error:
        if quality.mode == "strict":
            raise
        return Reading(file, None, failure=str(error) if isinstance(error, DataError) else first_line(error))
    changed = file.changed // 1000
    known = {FILE_COLUMN: pl.lit(file.name), CHANGED_COLUMN: pl.lit(changed, dtype=pl.Int64)}
    return Reading(file, frame.with_columns(**known), tuple(records), note=note)


def gather(
    files: Sequence[InputFile], open_file: Open, pipeline: FeaturePipeline, quality: QualityConfig, spool: Path
) -> tuple[pl.LazyFrame, Unreadable]:
    """Opens all files as one frame, with what cannot be read beside it.

    Raises:
        DataError: No file can be read.
    """
    readings: list[Reading] = []
    like: pl.Schema | None = None
    for file in files:
        reading = read_file(file, open_file, pipeline, quality, spool, like=like)
        readings.append(reading)
        if like is None and reading.frame is not None:
            like = schema_of(reading.frame)
    frames = [reading.frame for reading in readings if reading.frame is not None]
    if not frames:
        failures = [reading.failure for reading in readings if reading.failure]
        raise DataError("no file can be read", found=failures[0] if failures else None, mend="check the input files")
    return pl.concat(frames, how="diagonal"), unreadable_of(readings)


def unreadable_of(readings: Sequence[Reading]) -> Unreadable:
    """Returns what of these files could not be read."""
    failed: list[dict[str, Any]] = [
        {"file": reading.file.name, "bytes": reading.file.bytes, "reason": reading.failure}
        for reading in readings
        if reading.failure is not None
    ]
    return Unreadable(
        tuple((reading.file.name, record) for reading in readings for record in reading.records),
        tuple(failed),
        sum(reading.file.bytes for reading in readings),
        tuple(f"{reading.file.name}: {reading.note}" for reading in readings if reading.note),
    )
