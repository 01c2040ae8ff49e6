"""Streams a lazy frame in pieces of a fixed size, and finds columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import polars as pl

from features.errors import DataError, did_you_mean, list_names

SPLIT_COLUMN = "__split__"
"""The column that names the split of a row."""
ROW_COLUMN = "__row__"
"""The number of a row while rows are divided."""
FILE_COLUMN = "__file__"
"""The file a row comes from."""
PLACE_COLUMN = "__place__"
"""The number of a row in its file, from 0."""
OUR_COLUMNS = (SPLIT_COLUMN, ROW_COLUMN, FILE_COLUMN, PLACE_COLUMN)
"""Names that no input may have."""


def iterate(frame: pl.LazyFrame, rows: int) -> Iterator[pl.DataFrame]:
    """Yields the rows in order, `rows` at a time (the last piece may be shorter).

    The pieces depend on the data alone, never on threads or on how the engine cuts its work.
    """
    waiting: list[pl.DataFrame] = []
    height = 0
    for piece in frame.collect_batches(chunk_size=rows, maintain_order=True, engine="streaming"):
        while height + piece.height >= rows:
            take = rows - height
            yield pl.concat([*waiting, piece.head(take)], rechunk=True)
            piece, waiting, height = piece.slice(take), [], 0
        if piece.height:
            waiting.append(piece)
            height += piece.height
    if height:
        yield pl.concat(waiting, rechunk=True)


def stream(frame: pl.LazyFrame) -> Iterator[pl.DataFrame]:
    """Yields the rows in order, in pieces as the engine has them: none is empty, and nothing may hang on their size."""
    for piece in frame.collect_batches(maintain_order=True, engine="streaming"):
        if piece.height:
            yield piece.rechunk()


def schema_of(frame: pl.LazyFrame) -> pl.Schema:
    """Returns the schema.

    Raises:
        DataError: The frame cannot even be described, such as a file that is damaged or gone.
    """
    try:
        return frame.collect_schema()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError("data cannot be read", found=first_line(error), mend="check the file") from error


def require_column(name: str, known: Mapping[str, object], *, role: str | None = None) -> None:
    """Checks that a column is there.

    Raises:
        DataError: It is not; names the columns there are and the nearest one.
    """
    if name not in known:
        given = [column for column in known if column not in OUR_COLUMNS]
        raise DataError(
            "column is missing" if role is None else f"column is missing (the spec's {role})",
            field=name,
            found=f"columns {list_names(given)}",
            mend=did_you_mean(name, given, "add the column or change the spec"),
        )


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
