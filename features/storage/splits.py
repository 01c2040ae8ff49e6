"""Divides events into train, valid and test: at random, by time, the last of each group, or by a column."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import polars as pl
from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from features.errors import ConfigError, DataError
from features.fingerprint import mix_expr
from features.frames import PLACE_COLUMN, ROW_COLUMN, SPLIT_COLUMN, first_line, require_column, schema_of
from features.ops.base import Problem
from features.ops.outcome import EventTime
from features.ops.text import is_text, number_expr, time_expr, time_of, whole_expr
from features.ops.time import microseconds_expr
from features.spec import FeatureSpec
from features.times import IsoTime, microseconds_of
from features.validation import Strict

SPLITS = ("train", "valid", "test")

Fractions = tuple[float, float, float]


class _Fractional(Strict):
    fractions: Fractions = (0.8, 0.1, 0.1)
    """Shares of train, valid and test; they sum to 1."""

    @field_validator("fractions", mode="before")
    @classmethod
    def _check_three(cls, fractions: Any) -> Any:
        if isinstance(fractions, list | tuple) and len(fractions) != 3:
            raise ConfigError(
                "wrong number of fractions",
                field="split.fractions",
                found=list(fractions),
                expected="three fractions: train, valid, test",
            )
        return fractions

    @model_validator(mode="after")
    def _check(self) -> _Fractional:
        if min(self.fractions) <= 0 or abs(sum(self.fractions) - 1) > 1e-9:
            raise ConfigError(
                "fractions are wrong",
                field="split.fractions",
                found=list(self.fractions),
                expected="three numbers above 0 that sum to 1",
            )
        return self


class RandomSplit(_Fractional):
    """Each row by a hash of its number: a row stays where it is when rows are added at the end."""

    kind: Literal["random"] = "random"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Another seed, another division."""

    @property
    def by_row(self) -> bool:
        """Whether a row's split hangs on that row alone."""
        return True


class TimeSplit(_Fractional):
    """The oldest rows are train, the next valid, the newest test: exact shares, or by two moments."""

    kind: Literal["time"] = "time"
    columns: list[str] | None = None
    """Columns to order by, the first first; the spec's time when not given. Ties keep the input's order."""
    valid_from: IsoTime | None = None
    """The first moment of valid; takes the place of fractions, together with `test_from`."""
    test_from: IsoTime | None = None
    """The first moment of test."""

    @model_serializer(mode="wrap")
    def _one_way(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # What is written can be read again, and a split by shares is written as it was before there were moments.
        aside = ("fractions", "columns") if self.by_row else ("valid_from", "test_from")
        return {key: value for key, value in dump(self).items() if key not in aside}

    @model_validator(mode="after")
    def _check_moments(self) -> TimeSplit:
        if self.valid_from is None and self.test_from is None:
            return self
        first, second = (time_of(text or "") for text in (self.valid_from, self.test_from))
        if first is None or second is None or first >= second:
            raise ConfigError(
                "the moments do not divide time",
                field="split.valid_from",
                found=f"valid_from {self.valid_from}, test_from {self.test_from}",
                expected="two times in UTC such as 2024-01-02 03:04:05, valid_from before test_from",
            )
        if self.columns is not None or "fractions" in self.model_fields_set:
            raise ConfigError(
                "moments and shares at once",
                field="split.valid_from",
                mend="drop fractions and columns: the moments are of the spec's time",
            )
        return self

    @property
    def by_row(self) -> bool:
        """Whether a row's split hangs on that row alone."""
        return self.valid_from is not None


class LastPerGroupSplit(Strict):
    """The last event of each group is test, the one before valid, all others train."""

    kind: Literal["last_per_group"] = "last_per_group"
    group: str | None = None
    """Column with the group; the spec's group when not given."""
    columns: list[str] | None = None
    """Columns to order by; the spec's time when not given."""

    @property
    def by_row(self) -> bool:
        """Whether a row's split hangs on that row alone."""
        return False


class ColumnSplit(Strict):
    """A column says which split a row belongs to; rows with other values are dropped and counted."""

    kind: Literal["column"] = "column"
    column: str
    """The column."""
    values: dict[Literal["train", "valid", "test"], list[str | int | bool]]
    """The column's values of each split."""

    @model_validator(mode="after")
    def _check(self) -> ColumnSplit:
        every = [str(value) for values in self.values.values() for value in values]
        if set(self.values) != set(SPLITS) or not all(self.values.values()) or len(every) != len(set(every)):
            raise ConfigError(
                "values do not divide the column",
                field="split.values",
                found=self.values,
                expected="one or more values for each of train, valid and test, none twice",
            )
        return self

    @property
    def by_row(self) -> bool:
        """Whether a row's split hangs on that row alone."""
        return True


SplitConfig = Annotated[RandomSplit | TimeSplit | LastPerGroupSplit | ColumnSplit, Field(discriminator="kind")]
Split = RandomSplit | TimeSplit | LastPerGroupSplit | ColumnSplit


def assign_split(
    frame: pl.LazyFrame, split: Split, spec: FeatureSpec, *, salt: int | None = None, first: int = 0
) -> pl.LazyFrame:
    """Adds the column `__split__`: train, valid, test, or null for a row that belongs to none.

    A time split by shares or a last-per-group split reads its key columns at once; the rest stays lazy. In a time
    split by moments a row whose time is no time is test: `split_problems` finds such rows.

    Args:
        frame: Events.
        split: How to divide them.
        spec: Names the time and the group column.
        salt: If given, a random split goes by this number and by the column `__place__`, not by the row's number:
            a row stays where it is whatever files stand before its own.
        first: The number of the first row, where the frame holds a part of the events.

    Raises:
        DataError: A key column is missing or has missing values, or a column has a name of ours.
        ConfigError: The split needs a column that neither it nor the spec names.

    Example:
        >>> from features.validation import validate
        >>> spec = validate(FeatureSpec, {"features": [{"type": "id", "name": "u"}], "labels": ["y"], "time": "t"})
        >>> events = pl.LazyFrame({"u": list("abcde"), "t": [3, 1, 2, 5, 4]})
        >>> assigned = assign_split(events, TimeSplit(fractions=(0.6, 0.2, 0.2)), spec)
        >>> assigned.collect()["__split__"].to_list()
        ['train', 'train', 'train', 'test', 'valid']
    """
    schema = schema_of(frame)
    for column in (SPLIT_COLUMN, ROW_COLUMN):
        if column in schema:
            raise DataError("this name is taken: we give it to a column of our own", field=column, mend="rename it")
    if isinstance(split, RandomSplit):
        row = pl.col(ROW_COLUMN if salt is None else PLACE_COLUMN)
        numbered = frame.with_row_index(ROW_COLUMN, offset=first) if salt is None else frame
        # In a column of its own: Polars would compute the draw again for every comparison.
        drawn = numbered.with_columns(_draw(split.seed, row, salt or 0).alias(ROW_COLUMN))
        return drawn.with_columns(_by_draw(split, pl.col(ROW_COLUMN)).alias(SPLIT_COLUMN)).drop(ROW_COLUMN)
    if isinstance(split, TimeSplit) and split.by_row:
        time = _moments_column(split, spec, schema)
        steps, _ = microseconds_expr(time, schema[time], spec.time_unit)
        first, second = (microseconds_of(str(text)) for text in (split.valid_from, split.test_from))
        name = pl.when(steps < first).then(pl.lit("train")).when(steps < second).then(pl.lit("valid"))
        return frame.with_columns(name.otherwise(pl.lit("test")).alias(SPLIT_COLUMN))
    if isinstance(split, ColumnSplit):
        require_column(split.column, schema, role="split")
        text = pl.col(split.column).cast(pl.String)
        names = {_text(value): name for name, values in split.values.items() for value in values}
        return frame.with_columns(text.replace_strict(names, default=None, return_dtype=pl.String).alias(SPLIT_COLUMN))
    columns = split.columns or ([spec.time] if spec.time else None)
    if not columns:
        raise ConfigError("no column to order by", field="split.columns", mend="name columns here or the spec's time")
    group = None
    if isinstance(split, LastPerGroupSplit):
        group = split.group or spec.group
        if group is None:
            raise ConfigError("no group column", field="split.group", mend="name it here or as the spec's group")
    keys = list(dict.fromkeys([*columns, *([group] if group else [])]))
    for column in keys:
        require_column(column, schema, role="split")
    try:
        values = frame.select(keys).with_row_index(ROW_COLUMN).collect()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError("data cannot be read", found=first_line(error), mend="check the input files") from error
    for column in keys:
        if missing := values.get_column(column).null_count():
            raise DataError(
                f"is missing in {missing} of {values.height} rows",
                field=column,
                expected="a value in every row, to divide by",
                mend="order by another column or drop these rows",
            )
    values = values.with_columns(_ordered(values.get_column(column)) for column in columns if column != group)
    assigned = _by_time(values, columns, split) if isinstance(split, TimeSplit) else _last(values, columns, str(group))
    return pl.concat([frame, assigned.lazy()], how="horizontal")


def _ordered(column: pl.Series) -> pl.Series:
    """Turns text that is all whole numbers, all numbers or all times into what it writes: "9" comes before "10"."""
    if not is_text(column.dtype):
        return column
    for read in (whole_expr, number_expr, time_expr):
        values = column.to_frame().select(read(pl.col(column.name))).to_series()
        if not values.null_count():
            return values
    return column


def split_problems(split: Split, spec: FeatureSpec, schema: pl.Schema) -> list[Problem]:
    """Returns the tests for rows that a split by moments cannot divide.

    Raises:
        ConfigError: The spec names no time.
        DataError: Its column is missing or holds no times.
    """
    if not (isinstance(split, TimeSplit) and split.by_row):
        return []
    time = _moments_column(split, spec, schema)
    return EventTime(time, spec.time_unit).problems(schema)


def drop_reason(split: Split) -> str:
    """Returns why a row belongs to no split, for the manifest."""
    return f"{split.column} has a value of no split" if isinstance(split, ColumnSplit) else "no split"


def _draw(seed: int, row: pl.Expr, salt: int) -> pl.Expr:
    """Even over UInt64."""
    # Seeds that follow each other must not give shifted copies of one another: mix the seed by itself first.
    mixed = mix_expr(pl.lit(seed, dtype=pl.UInt64) ^ pl.lit(0xA0761D6478BD642F, dtype=pl.UInt64))
    if salt:
        mixed = mixed ^ mix_expr(pl.lit(salt, dtype=pl.UInt64))
    return mix_expr(mix_expr(row.cast(pl.UInt64)) ^ mixed)


def _by_draw(split: RandomSplit, draw: pl.Expr) -> pl.Expr:
    train, valid, _ = split.fractions

    def below(share: float) -> pl.Expr:
        return draw < pl.lit(min(int(share * 2.0**64), 2**64 - 1), dtype=pl.UInt64)

    name = pl.when(below(train)).then(pl.lit("train")).when(below(train + valid)).then(pl.lit("valid"))
    return name.otherwise(pl.lit("test"))


def _moments_column(split: TimeSplit, spec: FeatureSpec, schema: pl.Schema) -> str:
    if spec.time is None:
        raise ConfigError("the spec names no time", field="split.valid_from", mend="name the spec's time")
    require_column(spec.time, schema, role="time")
    return spec.time


def _by_time(values: pl.DataFrame, columns: list[str], split: TimeSplit) -> pl.DataFrame:
    ordered = values.sort([*columns, ROW_COLUMN]).select(ROW_COLUMN).with_row_index("place")
    train, valid, _ = split.fractions
    first, second = round(values.height * train), round(values.height * (train + valid))
    name = pl.when(pl.col("place") < first).then(pl.lit("train")).when(pl.col("place") < second).then(pl.lit("valid"))
    return ordered.sort(ROW_COLUMN).select(name.otherwise(pl.lit("test")).alias(SPLIT_COLUMN))


def _last(values: pl.DataFrame, columns: list[str], group: str) -> pl.DataFrame:
    ordered = values.sort([*columns, ROW_COLUMN])
    from_end = pl.len().over(group) - 1 - pl.int_range(pl.len()).over(group)
    name = pl.when(from_end == 0).then(pl.lit("test")).when(from_end == 1).then(pl.lit("valid"))
    return (
        ordered.with_columns(name.otherwise(pl.lit("train")).alias(SPLIT_COLUMN)).sort(ROW_COLUMN).select(SPLIT_COLUMN)
    )


def _text(value: str | int | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
