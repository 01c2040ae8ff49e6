"""Logs as folders of Parquet files to which files are added: by a server, or by a replay."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import polars as pl

from features.errors import ArtifactError, DataError
from features.files import cannot_write
from features.frames import first_line

PIECE_ROWS = 65_536
"""Rows handed out at a time."""

_numbers = itertools.count()


def append(folder: Path, rows: pl.DataFrame) -> Path:
    """Adds rows to a log as a new file, which no reader meets half-written.

    Files are read in the order of their names, and a name begins with the time of writing; so rows of one process are
    read in the order they were written.

    Args:
        folder: The log; made if need be.
        rows: As of `PREDICTION_LOG` or `LABEL_LOG` of `recsys.evaluation.online`.

    Returns:
        The file.

    Raises:
        ArtifactError: It cannot be written.
    """
    path = folder / f"{time.time_ns():020d}-{os.getpid()}-{next(_numbers):06d}.parquet"
    partial = path.with_name(f".{path.name}.partial")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        rows.write_parquet(partial)
        os.replace(partial, path)
    except (OSError, pl.exceptions.PolarsError) as error:  # of a full disk Polars says so in its own way
        with suppress(OSError):  # such as of a log that is a file
            partial.unlink()
        raise cannot_write(path, error if isinstance(error, OSError) else OSError(first_line(error))) from error
    return path


class LogReader:
    """Reads what is new in a log, file by file in the order of their names; one file at a time is in memory.

    Args:
        path: A folder of Parquet files, or one such file. Names that begin with a dot or an underscore are no log.
        columns: What to read; all columns when left out.

    Attributes:
        read: Size in bytes of each file that was read and is still there.

    Raises:
        DataError: There is no such file or folder.
    """

    def __init__(self, path: Path, columns: Mapping[str, Any] | None = None) -> None:
        if not path.exists():
            raise DataError("no such log", field=str(path), expected="a folder of Parquet files, or one such file")
        self.path = path
        self.read: dict[str, int] = {}
        self._columns = columns

    def files(self) -> dict[str, Path]:
        """The files of the log by name, in the order in which they are read."""
        if self.path.is_file():
            return {self.path.name: self.path}
        found = self.path.glob("*.parquet")
        return {path.name: path for path in sorted(found) if not path.name.startswith((".", "_"))}

    def pieces(self) -> Iterator[pl.DataFrame]:
        """Yields the rows of the files that were not read yet.

        A file counts as read when all its pieces were taken; one that is damaged is met again the next time.

        Raises:
            DataError: A file is damaged.
            ArtifactError: A file has changed since it was read.
        """
        files = self.files()
        self.read = {name: size for name, size in self.read.items() if name in files}
        for name, path in files.items():
            size = path.stat().st_size
            if name in self.read:
                if self.read[name] != size:
                    raise ArtifactError(
                        "file has changed since it was read",
                        field=str(path),
                        found=f"{size:,} bytes",
                        expected=f"{self.read[name]:,} bytes",
                        mend="add new rows as new files, or begin anew with another folder for the results",
                    )
                continue
            yield from self._file(path).iter_slices(PIECE_ROWS)
            self.read[name] = size

    def _file(self, path: Path) -> pl.DataFrame:
        try:
            have = pl.read_parquet_schema(path)
            # A column that is missing is told of where it is needed.
            columns = None if self._columns is None else [name for name in self._columns if name in have]
            return pl.read_parquet(path, columns=columns)
        except (pl.exceptions.PolarsError, OSError) as error:
            raise DataError(
                "the file cannot be read", field=str(path), found=first_line(error), mend="write it anew or remove it"
            ) from error
