"""Events cut into pieces that any process can open, and what is learned from them in the order of the rows."""

from __future__ import annotations

import dataclasses
import os
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import polars as pl

from features.errors import DataError
from features.files import cannot_write
from features.frames import SPLIT_COLUMN, first_line
from features.pipeline import FeaturePipeline

Rows = Callable[[], pl.LazyFrame]
"""Opens rows; it can be sent to another process."""


@dataclasses.dataclass(frozen=True)
class Piece:
    """Rows that follow each other in a part of the events.

    Attributes:
        part: Opens the part.
        start: The number of the first row in the part.
        rows: How many there are.
        first: The number of the first row among all events.
    """

    part: Rows
    start: int
    rows: int
    first: int

    def frame(self) -> pl.LazyFrame:
        """Opens the rows."""
        return self.part().slice(self.start, self.rows)


def count_rows(part: Rows) -> int:
    """Returns the number of rows of a part.

    Raises:
        DataError: It cannot be read.
    """
    try:
        return int(part().select(pl.len()).collect(engine="streaming").item())
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError("data cannot be read", found=first_line(error), mend="check the input files") from error


def cut(parts: Sequence[Rows], counts: Sequence[int], piece_rows: int) -> list[Piece]:
    """Cuts parts into pieces of at most `piece_rows` rows; no piece holds rows of two parts.

    Args:
        parts: The events, in order.
        counts: The number of rows of each part.
        piece_rows: Rows a piece.

    Example:
        >>> parts = [lambda: pl.LazyFrame({"x": range(5)}), lambda: pl.LazyFrame({"x": range(5, 7)})]
        >>> pieces = cut(parts, [5, 2], 3)
        >>> [(piece.first, piece.frame().collect()["x"].to_list()) for piece in pieces]
        [(0, [0, 1, 2]), (3, [3, 4]), (5, [5, 6])]
    """
    pieces: list[Piece] = []
    before = 0
    for part, rows in zip(parts, counts, strict=True):
        starts = range(0, rows, piece_rows)
        pieces += [Piece(part, start, min(piece_rows, rows - start), before + start) for start in starts]
        before += rows
    return pieces


def write_fit_columns(pipeline: FeaturePipeline, kept: pl.LazyFrame, path: Path) -> None:
    """Writes what a pipeline is fitted on, of the train rows among `kept`; no file if nothing is fitted.

    Raises:
        DataError: A column or a value is wrong.
        ArtifactError: It cannot be written.
    """
    train = kept.filter(pl.col(SPLIT_COLUMN) == "train")
    columns = pipeline.fit_columns(train)
    if not len(columns.collect_schema()):
        return
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        columns.sink_ipc(partial, compression="uncompressed", maintain_order=True)
        os.replace(partial, path)
    except pl.exceptions.PolarsError as error:
        raise pipeline.explain(train, error, labels=False) from error
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        partial.unlink(missing_ok=True)


def fit_on_files(pipeline: FeaturePipeline, events: pl.LazyFrame, paths: Sequence[Path]) -> None:
    """Fits on what `write_fit_columns` wrote of each piece, to the same bits as `FeaturePipeline.fit` on all rows.

    Sums of floats and samples hang on the order of the rows and on how they are divided: pieces are only read and
    cast apart, and what is learned from them is learned here, row after row.

    Args:
        pipeline: Is fitted.
        events: Rows with the columns of all pieces; only their types are looked at.
        paths: The files, in the order of the pieces.

    Raises:
        DataError: There is no row, or the numbers are too large.
    """
    columns = pipeline.fit_columns(events)
    written = pl.scan_ipc(list(paths)) if len(columns.collect_schema()) else columns
    pipeline.fit_on(written)
