"""What every operator offers: one Polars form for frames, one plain Python form for single values.

Both must give the same bits for the same value; tests/features/test_parity.py holds every operator to it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import polars as pl

from features.errors import DataError

Encoder = Callable[..., Any]
ColumnEncoder = Callable[..., list[Any]]
Schema = Mapping[str, pl.DataType]
_LONGEST = 80
"""Characters of a value in an error."""
Kind = Literal["id", "bag", "number", "vector"]


@dataclasses.dataclass(frozen=True)
class Problem:
    """A test for values that an operator cannot take.

    Attributes:
        column: The column.
        bad: Boolean expression, true where the value is bad; never null.
        what: What is wrong with such a value.
        expected: What it should be.
        mend: What the user should do.
    """

    column: str
    bad: pl.Expr
    what: str
    expected: str
    mend: str | None = None

    def guard(self, value: pl.Expr) -> pl.Expr:
        """Returns `value` as an expression that fails when collected if any row is bad.

        Polars has no expression that raises. A strict cast of text that is no number does, and shows the text.
        """
        message = pl.lit(f"column {self.column!r}: {self.what}; expected {self.expected}")
        alarm = pl.when(self.bad).then(message).otherwise(None).cast(pl.Int64)
        return pl.when(alarm.is_null()).then(value).otherwise(None)

    def error(self, sample: object, count: int | None = None) -> DataError:
        """Returns the error that shows a sample value and how many rows are bad."""
        rows = "" if count is None else f" (in {count} row{'s' if count > 1 else ''})"
        return DataError(
            f"{self.what}{rows}",
            field=self.column,
            found=shown(sample),
            expected=self.expected,
            mend=self.mend,
        )


class Operator:
    """One operator on one column, or on several: the base of all.

    Attributes:
        kind: What a model sees of it.
        name: Name of the feature.
        column: Column it reads.
        outputs: Number of expressions; of a vector, which has one, its size.
    """

    kind: ClassVar[Kind] = "id"
    name: str
    column: str
    outputs: int = 1

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns it reads; `column` is the first."""
        return (self.column,)

    def expressions(self, schema: Schema) -> list[pl.Expr]:
        """Returns the encoded values for columns of these dtypes, in Polars.

        Raises:
            DataError: The operator cannot take a column of its dtype.
        """
        raise NotImplementedError

    def problems(self, schema: Schema) -> list[Problem]:
        """Returns the tests for values it cannot take, used to explain why collecting failed."""
        raise NotImplementedError

    def encoder(self) -> Encoder:
        """Returns a function from the values of `columns` to what `expressions` gives for them.

        It gives one value, or `outputs` of them as a tuple or list, and raises DataError for a value of a type or
        content it cannot take.
        """
        raise NotImplementedError

    def column_encoder(self) -> ColumnEncoder:
        """Returns a function from equally long lists of values of `columns` to what `encoder` gives for each row."""
        encode = self.encoder()
        return lambda *lists: list(map(encode, *lists))


class FittedOperator(Operator):
    """An operator that looks at the training rows first."""

    @property
    def fitted(self) -> bool:
        """Whether it holds a state, or needs none."""
        raise NotImplementedError

    def expressions(self, schema: Schema) -> list[pl.Expr]:
        """Returns the encoded values for columns of these dtypes, in Polars: reads them, then applies the state.

        Raises:
            DataError: The operator cannot take a column of its dtype.
        """
        return self.fitted_expressions(self.fit_expression(schema))

    def fit_expression(self, schema: Schema) -> pl.Expr:
        """Returns what it wants to see of its column, which is all that it is: Float64 or Int64, null for missing."""
        raise NotImplementedError

    def fitted_expressions(self, value: pl.Expr) -> list[pl.Expr]:
        """Returns the encoded values of what `fit_expression` gave."""
        raise NotImplementedError

    def start(self) -> None:
        """Forgets the state and starts to learn a new one."""
        raise NotImplementedError

    def update(self, values: np.ndarray) -> None:
        """Takes the next rows.

        Args:
            values: float64 [B], NaN for missing, or int64 [B], in the order of the rows.
        """
        raise NotImplementedError

    def finish(self) -> None:
        """Turns what was seen into the state."""
        raise NotImplementedError

    def state(self) -> dict[str, Any] | None:
        """Returns the state as plain JSON, or None if it has none."""
        raise NotImplementedError

    def restore(self, state: dict[str, Any]) -> None:
        """Takes a state that `state` returned."""
        raise NotImplementedError

    def table(self) -> pl.DataFrame | None:
        """Returns what of the state is too large for JSON, or None; `state` then holds its digest as "table"."""
        return None

    def restore_table(self, table: pl.DataFrame) -> None:
        """Takes a table that `table` returned."""
        raise NotImplementedError


def wrong_dtype(column: str, dtype: object, expected: str, mend: str | None = None) -> DataError:
    """Returns the error for a column, or one value, of a type that an operator cannot take."""
    return DataError("wrong dtype", field=column, found=dtype, expected=expected, mend=mend)


def shown(value: object) -> str:
    """Returns how an error shows a value.

    Example:
        >>> shown("a" * 100)[-8:], shown([1.5, None])
        ('aaaaa...', '[1.5, None]')
    """
    try:
        text = repr(value)
    except RecursionError:
        return f"a {type(value).__name__} that is nested too deeply"
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def plain(value: Any) -> Any:
    """Returns a numpy scalar as the Python value it stands for; anything else as it is."""
    return value.item() if isinstance(value, np.generic) else value
