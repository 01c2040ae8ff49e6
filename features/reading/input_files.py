"""Input files one by one: their names, their fingerprints, and their rows with file and place."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from features.errors import DataError
from features.files import digest_of
from features.frames import FILE_COLUMN, PLACE_COLUMN, first_line, schema_of
from features.pipeline import FeaturePipeline
from features.reading.records import BadRecord, Open, Opened, open_records, require_records, with_places
from features.reading.unreadable import Unreadable
from features.storage.engines.base import LOCAL, Engine
from features.storage.quality import CHANGED_COLUMN, QualityConfig, problems_of

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
class FileRows:
    """Where the rows of a file are; it can be sent to another process, which opens them.

    Attributes:
        file: The file.
        changed: When it was changed last, in microseconds since 1970-01-01 UTC.
        path: What holds the rows: the file, or a copy of its good records.
        places: uint32 [R], of the rows of a copy their places in the file; None for the file itself.
        schema: The columns of the rows, and `__place__`.
    """

    file: InputFile
    changed: int
    path: Path
    places: np.ndarray | None
    schema: pl.Schema

    def open(self, open_file: Open) -> pl.LazyFrame:
        """Returns the rows with `__file__`, `__place__` and `__changed__`."""
        known = {FILE_COLUMN: pl.lit(self.file.name), CHANGED_COLUMN: pl.lit(self.changed, dtype=pl.Int64)}
        return with_places(open_file(self.path), self.places).with_columns(**known)


@dataclasses.dataclass(frozen=True)
class Reading:
    """Where the rows of a file are, or why there are none.

    Attributes:
        file: The file.
        rows: None if the file cannot be used at all.
        records: What is no record.
        failure: Why there are no rows.
        note: What is odd about the file.
    """

    file: InputFile
    rows: FileRows | None
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
    labels: bool = True,
) -> Reading:
    """Opens a file and sees whether its records and its columns can be used.

    Args:
        file: The file.
        open_file: Opens it, and a copy of it under another folder, as rows.
        pipeline: Reads the columns; it need not be fitted.
        quality: In strict mode what cannot be used is an error.
        spool: Where to put a copy of the records that are good, if some are bad.
        labels: False for rows to be scored, which need no label.

    Raises:
        DataError: In strict mode: a record, a column or the file cannot be used.
    """
    try:
        if quality.mode == "strict":
            require_records(file.path)
            opened = Opened(with_places(open_file(file.path), None), file.path, None, [])
        elif not file.bytes:
            raise DataError("file is empty", field=file.name)
        else:
            opened = open_records(file.path, open_file, spool)
        schema = schema_of(opened.frame)
        problems_of(pipeline, schema, labels=labels)
    except (DataError, OSError) as error:
        if quality.mode == "strict":
            raise
        return Reading(file, None, failure=str(error) if isinstance(error, DataError) else first_line(error))
    rows = FileRows(file, file.changed // 1000, opened.path, opened.places, schema)
    return Reading(file, rows, tuple(opened.records), note=opened.note)


def read_files(
    files: Sequence[InputFile],
    open_file: Open,
    pipeline: FeaturePipeline,
    quality: QualityConfig,
    spool: Path,
    engine: Engine | None = None,
    labels: bool = True,
) -> list[Reading]:
    """Opens files as `read_file` does, each by itself.

    Raises:
        DataError: In strict mode: a record, a column or a file cannot be used.
    """
    read = functools.partial(
        read_file, open_file=open_file, pipeline=pipeline, quality=quality, spool=spool, labels=labels
    )
    return list((engine or LOCAL).map(read, files))


def gather(
    files: Sequence[InputFile],
    open_file: Open,
    pipeline: FeaturePipeline,
    quality: QualityConfig,
    spool: Path,
    engine: Engine | None = None,
    labels: bool = True,
) -> tuple[pl.LazyFrame, list[FileRows], Unreadable]:
    """Opens all files as one frame; returns also its parts, one a file, and what cannot be read.

    The types of the columns must be those of the first file that can be read.

    Raises:
        DataError: No file can be read; or in strict mode a file cannot be used.
    """
    readings: list[Reading] = []
    like: pl.Schema | None = None
    for reading in read_files(files, open_file, pipeline, quality, spool, engine, labels):
        rows = reading.rows
        other = None if rows is None or like is None else _other_type(rows.schema, like)
        if other is not None and quality.mode == "strict":
            raise other
        readings.append(reading if other is None else Reading(reading.file, None, failure=str(other)))
        if like is None and rows is not None:
            like = rows.schema
    parts = [reading.rows for reading in readings if reading.rows is not None]
    if not parts:
        failures = [reading.failure for reading in readings if reading.failure]
        raise DataError("no file can be read", found=failures[0] if failures else None, mend="check the input files")
    return pl.concat([rows.open(open_file) for rows in parts], how="diagonal"), parts, unreadable_of(readings)


def _other_type(schema: pl.Schema, like: pl.Schema) -> DataError | None:
    for column, dtype in like.items():
        if schema.get(column, dtype) != dtype and column != PLACE_COLUMN:
            return DataError(
                "column has another type than in the files before",
                field=column,
                found=schema[column],
                expected=dtype,
                mend="write the file anew",
            )
    return None


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
