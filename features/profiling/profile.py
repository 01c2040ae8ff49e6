"""What the columns of a source hold, learned in one streaming pass: sketches of all rows, and a sample of them.

Memory is bounded whatever the source's size, and the same rows in the same order give the same profile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl

from features.errors import DataError
from features.fingerprint import fingerprint_expr
from features.frames import first_line, iterate, schema_of
from features.ops.text import is_text, number_expr, time_expr, whole_expr
from features.ops.time import microseconds_expr
from features.profiling.sketches import Count, Distinct, Frequent, Quantiles

Kind = Literal["boolean", "integer", "number", "text", "time", "list", "other", "empty"]
Reading = Literal["integer", "number", "time"]

SAMPLE_ROWS = 131_072
"""Most rows of the sample; it is every 2nd, 4th, 8th ... row of a longer source."""
SAMPLE_BYTES = 128 << 20
"""Most bytes of the sample in memory."""
TOP_VALUES = 20
"""Most frequent values that a column's profile names."""
HEAD_VALUES = 10
"""How many of them the head share counts."""
SHARES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
_BATCH_ROWS = 65_536
_LONGEST_TEXT = 100
_READERS: dict[Reading, Callable[[pl.Expr], pl.Expr]] = {
    "time": time_expr,
    "integer": whole_expr,
    "number": number_expr,
}


@dataclass(frozen=True)
class ColumnProfile:
    """One column."""

    name: str
    dtype: str
    """As Polars writes it."""
    kind: Kind
    inner: Kind | None
    """Of a list: what its elements are."""
    reading: Reading | None
    """Of text: what all its values write, as in CSV; None if they are just text."""
    rows: int
    missing: int
    """Rows without a value; NaN is none."""
    values: int
    """Values: rows that are not missing, of a list all its elements."""
    distinct: int
    """Distinct values; an estimate unless `exact`."""
    exact: bool
    """Whether `distinct` and `top` are counts and no estimates."""
    top: tuple[Count, ...]
    """The most frequent values, as text; without those of which less than half of the count is certain."""
    quantiles: dict[float, float] | None
    """Of numbers, of times in microseconds since 1970, of lists' lengths: share -> value."""
    deciles: tuple[float, ...]
    """The nine inner deciles of the same, each once."""
    whole: bool
    """Whether all numbers are whole."""
    leading_zeros: bool
    """Whether some text is a number with zeros in front, which a number would lose."""
    ascending: bool
    """Whether every row's whole number is larger than the one before, as in a row number."""

    @property
    def missing_share(self) -> float:
        """Share of the rows that have no value."""
        return self.missing / self.rows

    @property
    def head_share(self) -> float:
        """Share of the values that are one of the ten most frequent."""
        return min(sum(count.count for count in self.top[:HEAD_VALUES]) / self.values, 1.0) if self.values else 0.0

    @property
    def numeric(self) -> bool:
        """Whether its values are numbers, or the text of numbers."""
        return self.kind in ("integer", "number") or self.reading in ("integer", "number")

    def numbers(self, values: pl.Series) -> pl.Series:
        """Returns what `quantiles` is about for rows of this column, as Float64 with null for missing."""
        column = pl.col(values.name)
        if self.kind == "list":
            expression = _length(values.dtype, column)
        elif self.kind == "time" or self.reading == "time":
            expression = microseconds_expr(values.name, values.dtype, None)[0]
        elif is_text(values.dtype):
            expression = number_expr(column)
        else:
            expression = column
        return values.to_frame().select(expression.cast(pl.Float64).fill_nan(None)).to_series()

    def to_json(self) -> dict[str, Any]:
        """The profile as plain values."""
        fields = ("name", "dtype", "kind", "inner", "reading", "rows", "missing", "missing_share", "values")
        more = ("distinct", "exact", "head_share", "whole", "leading_zeros", "ascending")
        quantiles = self.quantiles
        return {name: getattr(self, name) for name in fields + more} | {
            "top": [{"value": item.value, "count": item.count, "least": item.least} for item in self.top],
            "quantiles": None if quantiles is None else {f"{share:g}": value for share, value in quantiles.items()},
        }


@dataclass(frozen=True)
class Profile:
    """All columns of a source.

    Attributes:
        rows: Rows read.
        columns: In the order of the source.
        sample: Every `stride`-th row, without columns of kind other.
        stride: 1 if the sample is the whole source.
    """

    rows: int
    columns: tuple[ColumnProfile, ...]
    sample: pl.DataFrame
    stride: int

    def column(self, name: str) -> ColumnProfile:
        """Returns the column of that name, which is there."""
        return next(column for column in self.columns if column.name == name)


def profile_of(
    frame: pl.LazyFrame, progress: Callable[[int], None] | None = None, *, sample_rows: int = SAMPLE_ROWS
) -> Profile:
    """Reads a source once.

    Args:
        frame: One row an event.
        progress: Told the number of rows read so far.
        sample_rows: Most rows of the sample.

    Raises:
        DataError: It has no rows or no columns, or it cannot be read.

    Example:
        >>> found = profile_of(pl.LazyFrame({"city": ["a", "b", "a", None], "age": ["20", "40", "30", "30"]}))
        >>> [(column.name, column.distinct, column.missing, column.reading) for column in found.columns]
        [('city', 2, 1, None), ('age', 3, 0, 'integer')]
    """
    schema = schema_of(frame)
    columns = [_Column(name, dtype) for name, dtype in schema.items()]
    sample = _Sample([column.name for column in columns if column.kind != "other"], sample_rows)
    rows = 0
    try:
        for piece in iterate(frame, _BATCH_ROWS):
            for column in columns:
                column.update(piece.get_column(column.name))
            sample.update(piece, rows)
            rows += piece.height
            if progress is not None:
                progress(rows)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError("data cannot be read", found=first_line(error), mend="check the input files") from error
    if not rows:
        raise DataError("the input has no rows", mend="check the input files")
    return Profile(rows, tuple(column.finish() for column in columns), sample.frame(), sample.stride)


def kind_of(dtype: pl.DataType) -> Kind:
    """Returns what a column of this dtype holds; other is what no operator reads."""
    if dtype == pl.Null:
        return "empty"
    if dtype == pl.Boolean:
        return "boolean"
    if dtype.is_integer():
        return "integer"
    if dtype.is_float():
        return "number"
    if is_text(dtype):
        return "text"
    if isinstance(dtype, pl.Date | pl.Datetime):
        return "time"
    return "list" if _inner(dtype) in ("boolean", "integer", "number", "text", "empty") else "other"


def _inner(dtype: pl.DataType) -> Kind | None:
    if not isinstance(dtype, pl.List | pl.Array):
        return None
    inner = dtype.inner() if isinstance(dtype.inner, type) else dtype.inner
    return kind_of(inner)


def _length(dtype: pl.DataType, column: pl.Expr) -> pl.Expr:
    return (column.arr.to_list() if isinstance(dtype, pl.Array) else column).list.len()


class _Column:
    """What is known of one column so far."""

    def __init__(self, name: str, dtype: pl.DataType) -> None:
        self.name, self.dtype, self.kind, self.inner = name, dtype, kind_of(dtype), _inner(dtype)
        self.rows = self.missing = self.values = 0
        self.distinct, self.frequent, self.numbers = Distinct(), Frequent(), Quantiles()
        # Digests of what text may turn out to write; a reading is given up after a batch that mostly is not that.
        self.readings: dict[Reading, Quantiles] = {name: Quantiles() for name in _READERS} if is_text(dtype) else {}
        self.read: dict[Reading, int] = dict.fromkeys(self.readings, 0)
        self.whole, self.leading_zeros, self.ascending = True, False, self.kind == "integer"
        self.last: int | None = None

    def update(self, column: pl.Series) -> None:
        self.rows += len(column)
        if self.kind == "number":
            column = column.fill_nan(None)
        self.missing += column.null_count()
        values = column.drop_nulls()
        if not len(values) or self.kind in ("other", "empty"):
            return
        if self.kind == "list":
            self.numbers.update(_floats(values, _length(values.dtype, pl.col(self.name))))
            values = values.explode(empty_as_null=False).drop_nulls()
        elif self.kind == "time":
            self.numbers.update(_floats(values, microseconds_expr(self.name, values.dtype, None)[0]))
        elif self.kind in ("integer", "number"):
            self.numbers.update(_floats(values, pl.col(self.name)))
        if self.kind == "integer":
            self._see_order(column)
        if "number" in (self.kind, self.inner):
            self.whole = self.whole and bool((values == values.floor()).all())
        if is_text(self.dtype):
            self._see_text(values)
        self.values += len(values)
        self._count(values)

    def finish(self) -> ColumnProfile:
        digest, reading = self.numbers, None
        for name, found in self.readings.items():
            if self.read[name] == self.values > 0:
                digest, reading = found, name
                break
        exact = self.frequent.exact
        top = self.frequent.top(None)
        whole = self.kind in ("integer", "number") or reading == "integer" or self.inner == "number"
        whole = whole and self.whole

        def quantile(share: float) -> float:
            value = digest.quantile(share) or 0.0
            # Between two whole numbers the digest gives something in between.
            return round(value) * 1.0 if whole or self.kind == "list" else value

        return ColumnProfile(
            name=self.name,
            dtype=str(self.dtype),
            kind=self.kind,
            inner=self.inner,
            reading=reading,
            rows=self.rows,
            missing=self.missing,
            values=self.values,
            distinct=len(top) if exact else min(self.distinct.count, self.values),
            exact=exact,
            # Of a long tail, what is counted last has a high count by error alone.
            top=tuple(item for item in top[:TOP_VALUES] if 2 * item.least >= item.count),
            quantiles={share: quantile(share) for share in SHARES} if digest.count else None,
            deciles=tuple(sorted({quantile(place / 10) for place in range(1, 10)})) if digest.count else (),
            whole=whole,
            leading_zeros=self.leading_zeros,
            ascending=self.ascending and self.rows > 1,
        )

    def _count(self, values: pl.Series) -> None:
        # In the order of appearance, which both sketches depend on.
        counts = values.cast(pl.String).to_frame("value").group_by("value", maintain_order=True).len()
        text = counts.get_column("value")
        self.distinct.update(text)
        long = pl.col("value").str.len_chars() > _LONGEST_TEXT
        mark = pl.lit("... #") + fingerprint_expr(pl.col("value")).cast(pl.String)
        short = pl.when(long).then(pl.col("value").str.head(_LONGEST_TEXT) + mark).otherwise(pl.col("value"))
        self.frequent.update(counts.select(short).to_series(), counts.get_column("len"))

    def _see_text(self, values: pl.Series) -> None:
        for name in list(self.readings):
            numbers = _floats(values, _READERS[name](pl.col(self.name)))
            self.readings[name].update(numbers)
            self.read[name] += len(numbers)
            if 2 * len(numbers) < len(values):
                del self.readings[name]
        if not self.leading_zeros and self.readings:
            self.leading_zeros = bool(values.cast(pl.String).str.contains(r"^0[0-9]+$").any())

    def _see_order(self, column: pl.Series) -> None:
        if not self.ascending:
            return
        steps = column.cast(pl.Int128)
        follows = self.last is None or (steps[0] is not None and steps[0] > self.last)
        self.ascending = not column.null_count() and follows and bool((steps.diff().drop_nulls() > 0).all())
        self.last = steps[-1]


def _floats(values: pl.Series, expression: pl.Expr) -> np.ndarray:
    """[N] float64 of the values that the expression can read."""
    return values.to_frame().select(expression.cast(pl.Float64)).to_series().drop_nulls().to_numpy()


class _Sample:
    """Every `stride`-th row; the stride doubles when that is more than the sample holds."""

    def __init__(self, columns: list[str], rows: int) -> None:
        self.columns, self.limit, self.stride = columns, rows, 1
        self._kept: list[pl.DataFrame] = []

    def update(self, piece: pl.DataFrame, first: int) -> None:
        self._kept.append(piece.select(self.columns).gather_every(self.stride, -first % self.stride))
        while self._height() > self.limit or (self._bytes() > SAMPLE_BYTES and self._height() > 1):
            self._kept = [pl.concat(self._kept).gather_every(2)]
            self.stride *= 2

    def frame(self) -> pl.DataFrame:
        return pl.concat(self._kept).rechunk()

    def _height(self) -> int:
        return sum(frame.height for frame in self._kept)

    def _bytes(self) -> int:
        return sum(int(frame.estimated_size()) for frame in self._kept)
