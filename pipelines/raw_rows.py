"""Raw rows for a trained model: files of every kind, with the columns of the side tables it was trained with."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from features.errors import DataError
from features.frames import first_line, iterate
from features.reading.inputs import Inputs, find_inputs, states
from features.reading.joins import SideTables
from features.reading.sources import scan
from features.spec import FeatureSpec
from pipelines.config import DataConfig


class RawRows:
    """What a path stands for, opened as `recsys prepare` opens its source.

    Args:
        source: A file, glob, folder, Delta table or URL, see docs/sources.md.
        spec: Of the model: its time is what side tables are joined by.
        data: Of the config that the model was trained with: its side tables and storage options; None for none.

    Raises:
        DataError: There is no such file, its ending is unknown, or the files are of several kinds.
        ConfigError: An environment variable of the storage options is not set.
    """

    def __init__(self, source: str, spec: FeatureSpec, data: DataConfig | None = None) -> None:
        self.source, self.spec = source, spec
        self.joins = [] if data is None else data.join
        self._options = {} if data is None else data.resolved_options
        self.inputs: Inputs = find_inputs(source)

    def plain(self, path: Path | None = None) -> pl.LazyFrame:
        """The rows without side tables: of one of the files, or all."""
        return scan(self.source if path is None else path, storage_options=self._options)

    def joined(self, path: Path | None = None) -> pl.LazyFrame:
        """The rows with the columns of the side tables."""
        return self.sides.join_to(self.plain(path))

    @functools.cached_property
    def sides(self) -> SideTables:
        """The side tables, read once.

        Raises:
            DataError: One of them lacks a column, or cannot be read.
        """
        spec = self.spec
        return SideTables(self.joins, time=spec.time, time_unit=spec.time_unit, storage_options=self._options)

    def states(self) -> dict[str, Any]:
        """What changes when a file, or a side table, changes; see `features.reading.inputs.states`."""
        sources = [self.inputs, *(find_inputs(join.source) for join in self.joins)]
        return {name: state for one in sources for name, state in states(one, self._options).items()}


def pieces(frame: pl.LazyFrame, rows: int, source: str) -> Iterator[pl.DataFrame]:
    """The rows in order; a file whose end reads well may still be damaged inside."""
    try:
        yield from iterate(frame, rows)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(
            "the file cannot be read to its end",
            field=source,
            found=first_line(error),
            mend="copy or write the file anew",
        ) from error
