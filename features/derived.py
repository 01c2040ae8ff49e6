"""Derived columns: computed from the columns of the same row by SQL expressions, before the operators.

A request is computed by Polars too, so that it has the bits of a frame. For this every column that an expression
reads is first read as one of five kinds; which, is learned from the training rows and saved with the pipeline.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, Literal, get_args

import polars as pl

from features.errors import ConfigError, DataError
from features.frames import first_line, require_column, schema_of
from features.ops.base import Problem, Schema
from features.ops.cast import text_encoder, text_expr
from features.ops.number import float_encoder, float_expr, float_problems
from features.ops.text import is_text
from features.ops.time import microseconds_encoder, microseconds_expr
from features.sql import roots, row_expressions

InputKind = Literal["string", "integer", "number", "boolean", "time"]
_DTYPES: dict[InputKind, pl.DataType] = {
    "string": pl.String(),
    "integer": pl.Int64(),
    "number": pl.Float64(),
    "boolean": pl.Boolean(),
    "time": pl.Datetime("us"),
}
_RAW = "__raw__"


class Derived:
    """The derived columns of a spec, each after those it reads.

    Args:
        derive: SQL by name.

    Attributes:
        expressions: Polars expression by name, in the order of computation.
        inputs: The columns of the data that they read.
        kinds: How each input is read; None until `fit`.

    Raises:
        ConfigError: An expression is wrong, or columns are derived from each other in a circle.
    """

    def __init__(self, derive: Mapping[str, str]) -> None:
        self.expressions = row_expressions(derive)
        self._readers: dict[str, str] = {}
        for name, expression in self.expressions.items():
            for column in expression.meta.root_names():
                if column not in self.expressions:
                    self._readers.setdefault(column, f"derive.{name}")
        self.inputs: list[str] = list(self._readers)
        self.kinds: dict[str, InputKind] | None = None if self.inputs else {}

    def fit(self, schema: Schema) -> None:
        """Learns how to read the inputs from the dtypes of the training rows.

        Raises:
            DataError: A column is missing or of a dtype that no expression can read, or an expression does not fit.
        """
        self.check_names(schema)
        kinds: dict[str, InputKind] = {}
        for column, reader in self._readers.items():
            require_column(column, schema, role=reader)
            kinds[column] = _kind_of(column, schema[column])
        self.kinds = kinds
        # Some expressions that do not fit their inputs have a schema all the same.
        self.encode({column: [] for column in self.inputs})

    def restore(self, kinds: Mapping[str, Any]) -> None:
        """Takes the kinds of a fitted pipeline.

        Raises:
            ValueError: They are not those of these inputs.
        """
        if set(kinds) != set(self.inputs) or not set(kinds.values()) <= set(get_args(InputKind)):
            raise ValueError("inputs of derived columns do not belong to the spec")
        self.kinds = {column: kinds[column] for column in self.inputs}

    def check_names(self, known: Container[str]) -> None:
        """Raises DataError if the data hold a column of a derived column's name."""
        for name in self.expressions:
            if name in known:
                raise DataError(
                    "the data hold a column of this name, and the spec derives one",
                    field=name,
                    mend="give the derived column another name",
                )

    def apply(self, frame: pl.LazyFrame, schema: Schema) -> pl.LazyFrame:
        """Returns the frame with the derived columns; all others are as they were.

        Raises:
            DataError: An input is missing or of a wrong dtype, or an expression does not fit its inputs.
        """
        if not self.inputs:
            return frame
        self.check_names(schema)
        for column, reader in self._readers.items():
            require_column(column, schema, role=reader)
        frame = frame.with_columns(pl.col(column).alias(_RAW + column) for column in self.inputs)
        frame = frame.with_columns(self._read(column, schema[column])[0].alias(column) for column in self.inputs)
        for name, expression in self.expressions.items():
            frame = frame.with_columns(expression.alias(name))
            try:
                frame.collect_schema()
            except pl.exceptions.PolarsError as error:
                raise self._failure(name, error) from error
        frame = frame.with_columns(pl.col(_RAW + column).alias(column) for column in self.inputs)
        return frame.drop(_RAW + column for column in self.inputs)

    def encode(self, columns: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """Computes the derived columns of a few rows.

        Args:
            columns: The values of each input, all of one length.

        Raises:
            DataError: A value cannot be read, or an expression fails on it.
        """
        data = {}
        for column, values in columns.items():
            kind = self._kind(column)
            read = list(map(_encoder(column, kind), values))
            raw = pl.Int64() if kind == "time" else _DTYPES[kind]
            data[column] = pl.Series(column, read, dtype=raw).cast(_DTYPES[kind])
        frame = pl.DataFrame(data)
        found = {}
        for name, expression in self.expressions.items():
            try:
                frame = frame.with_columns(expression.alias(name))
                found[name] = frame.get_column(name).to_list()
            except (pl.exceptions.PolarsError, OverflowError, ValueError) as error:
                raise self._failure(name, error) from error
        return found

    def problems(self, schema: Schema) -> list[Problem]:
        """Returns the tests for values of the inputs that cannot be read."""
        return [problem for column in self.inputs for problem in self._read(column, schema[column])[1]]

    def explain(self, frame: pl.LazyFrame) -> DataError | None:
        """Returns the reason why a derived column cannot be collected, if one cannot; the inputs are good."""
        schema = schema_of(frame)
        for name in self.expressions:
            try:
                self.apply(frame, schema).select(name).collect()
            except pl.exceptions.PolarsError as error:
                return self._failure(name, error)
        return None

    def _failure(self, name: str, error: Exception) -> DataError:
        return DataError(
            f"the expression cannot be computed ({first_line(error)})",
            field=f"derive.{name}",
            found="inputs "
            + ", ".join(f"{column}: {self._kind(column)}" for column in sorted(roots(name, self.expressions))),
            mend="use cast for other types, or try_cast for values that may be of none",
        )

    def _kind(self, column: str) -> InputKind:
        if self.kinds is None:
            raise ConfigError(
                "the pipeline is not fitted", field="derive", mend="call fit with the training rows first"
            )
        return self.kinds[column]

    def _read(self, column: str, dtype: pl.DataType) -> tuple[pl.Expr, list[Problem]]:
        """Returns a column of any dtype read as its kind, and the tests for values that cannot be."""
        kind = self._kind(column)
        if dtype == pl.Null:
            return pl.lit(None, dtype=_DTYPES[kind]), []
        if kind == "number":
            return float_expr(column, dtype), float_problems(column, dtype)
        if kind == "time":
            time, problems = microseconds_expr(column, dtype, None)
            for problem in problems:
                time = problem.guard(time)
            return time.cast(_DTYPES[kind]), problems
        text, problems = text_expr(pl.col(column), dtype, kind, column)
        if kind == "boolean":
            return text == "true", problems
        return text.cast(_DTYPES[kind]), problems


def _kind_of(column: str, dtype: pl.DataType) -> InputKind:
    if is_text(dtype):
        return "string"
    if dtype.is_integer():
        return "integer"
    if dtype.is_float():
        return "number"
    if dtype == pl.Boolean:
        return "boolean"
    if isinstance(dtype, pl.Date | pl.Datetime):
        return "time"
    raise DataError(
        "derived columns cannot read a column of this dtype",
        field=column,
        found=dtype,
        expected="text, integers, floats, booleans, dates or times",
        mend="cast the column before, or remove it from the expression",
    )


def _encoder(column: str, kind: InputKind) -> Callable[[Any], Any]:
    """Python form of `Derived._read`."""
    if kind == "number":
        return float_encoder(column)
    if kind == "time":
        return microseconds_encoder(column, None)
    read = text_encoder(kind, column)
    if kind == "string":
        return read
    if kind == "boolean":
        return lambda value: None if (text := read(value)) is None else text == "true"
    return lambda value: None if (text := read(value)) is None else int(text)
