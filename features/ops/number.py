"""number: clip, logarithm and standardisation of one number a row, or its place among quantiles; a flag for missing.

All arithmetic is in float64 and in one order of operations, so that Polars and Python give the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl

from features.errors import DataError
from features.ops.base import Encoder, FittedOperator, Problem, Schema, plain, shown, wrong_dtype
from features.ops.quantiles import QuantileSample, QuantileScale
from features.ops.text import is_text, number_expr, number_of
from features.spec import NumberFeature

FLOAT32_MAX = 3.4028234663852886e38
_INFINITE = (math.inf, -math.inf)
_EXPECTED = "integers or floats, or their text"


class Number(FittedOperator):
    """NaN is missing. An infinity is clipped if there is a bound, else missing. Missing becomes 0."""

    kind = "number"

    def __init__(self, feature: NumberFeature) -> None:
        self.name, self.column = feature.name, feature.column
        self.low, self.high = feature.clip or (None, None)
        self.log, self.standardise, self.flag = feature.log, feature.standardise, feature.missing_flag
        self.mean: float | None = None
        self.deviation: float | None = None
        self.outputs = 2 if self.flag else 1
        self._seen = (0, 0.0, 0.0)
        self.quantiles = feature.quantiles
        self.scale: QuantileScale | None = None
        self._sample = QuantileSample()

    def fitted_expressions(self, value: pl.Expr) -> list[pl.Expr]:
        """[B] Float32, and another with the missing flag if it is wanted."""
        missing = value.is_null()
        if self.standardise:
            value = (value - self.mean) / self.deviation
        if self.quantiles is not None:
            value = value.map_batches(self._places, return_dtype=pl.Float64(), is_elementwise=True)
        number = value.clip(-FLOAT32_MAX, FLOAT32_MAX).fill_null(0.0).cast(pl.Float32)
        return [number, missing.cast(pl.Float32)] if self.flag else [number]

    def problems(self, schema: Schema) -> list[Problem]:
        """Text that is no number."""
        return float_problems(self.column, schema[self.column])

    def encoder(self) -> Encoder:
        """Value -> the number, or a tuple of it and the missing flag."""
        read, flag, log = float_encoder(self.column), self.flag, self.log
        low, high = -math.inf if self.low is None else self.low, math.inf if self.high is None else self.high
        mean, deviation = (self.mean, self.deviation) if self.standardise else (None, None)
        place = None if self.scale is None else self.scale.place
        absent = (0.0, 1.0) if flag else 0.0

        def encode(value: Any) -> float | tuple[float, float]:
            number = read(value)
            if number is None:
                return absent
            if number < low:
                number = low
            elif number > high:
                number = high
            if number in _INFINITE:
                return absent
            if log is not None:
                number = math.log(number + log)
            if mean is not None and deviation is not None:
                number = (number - mean) / deviation
            if place is not None:
                number = place(number)
            if number > FLOAT32_MAX:
                number = FLOAT32_MAX
            elif number < -FLOAT32_MAX:
                number = -FLOAT32_MAX
            return (number, 0.0) if flag else number

        return encode

    @property
    def fitted(self) -> bool:
        """Whether mean and deviation, or the quantiles, are known, or not needed."""
        if self.quantiles is not None:
            return self.scale is not None
        return not self.standardise or self.mean is not None

    def fit_expression(self, schema: Schema) -> pl.Expr:
        """The number before standardisation."""
        return self._before_scale(schema[self.column])

    def start(self) -> None:
        """Starts with no rows."""
        self._seen = (0, 0.0, 0.0)
        self._sample = QuantileSample()

    def update(self, values: np.ndarray) -> None:
        """Merges the moments of these rows into those so far (Chan, Golub and LeVeque 1983), or samples them."""
        if self.quantiles is not None:
            self._sample.update(values)
            return
        values = values[~np.isnan(values)]
        if not len(values):
            return
        count, mean, squares = self._seen
        with np.errstate(over="ignore", invalid="ignore"):
            here = float(values.mean())
            total, delta = count + len(values), here - mean
            self._seen = (
                total,
                mean + delta * len(values) / total,
                squares + float(np.square(values - here).sum()) + delta * delta * count * len(values) / total,
            )

    def finish(self) -> None:
        """Mean and standard deviation (divisor n); a constant column has deviation 1.

        Raises:
            DataError: The numbers are too large for a mean or deviation in float64.
        """
        if self.quantiles is not None:
            self.scale, self._sample = QuantileScale.fit(self._sample.finite(), self.quantiles), QuantileSample()
        if not self.standardise:
            return
        count, mean, squares = self._seen
        deviation = math.sqrt(squares / count) if count else 1.0
        if not (math.isfinite(mean) and math.isfinite(deviation)):
            raise DataError(
                "numbers are too large to standardise", field=self.column, found=f"mean {mean}", mend="clip the feature"
            )
        self.mean, self.deviation = mean, deviation or 1.0

    def state(self) -> dict[str, Any] | None:
        """{"mean": ..., "deviation": ...}, or {"edges": [...], "levels": [...]}."""
        if self.scale is not None:
            return {"edges": self.scale.edges, "levels": self.scale.levels}
        return {"mean": self.mean, "deviation": self.deviation} if self.standardise and self.fitted else None

    def restore(self, state: dict[str, Any]) -> None:
        """Takes mean and deviation, or the quantiles."""
        if self.quantiles is not None:
            edges, levels = [[float(value) for value in state[key]] for key in ("edges", "levels")]
            if len(edges) != len(levels):
                raise ValueError("quantiles and their levels differ in number")
            self.scale = QuantileScale(edges, levels)
            return
        self.mean, self.deviation = float(state["mean"]), float(state["deviation"])

    def _places(self, values: pl.Series) -> pl.Series:
        known = values.drop_nulls().to_numpy()
        places = known if self.scale is None else self.scale.places(known)
        found = np.full(len(values), np.nan)
        found[values.is_not_null().to_numpy()] = places
        return pl.Series(values.name, found).fill_nan(None)

    def _before_scale(self, dtype: pl.DataType) -> pl.Expr:
        value = float_expr(self.column, dtype)
        if self.low is not None:
            value = pl.when(value < self.low).then(self.low).otherwise(value)
        if self.high is not None:
            value = pl.when(value > self.high).then(self.high).otherwise(value)
        if not dtype.is_integer():  # which is never infinite
            value = pl.when(value.is_infinite()).then(None).otherwise(value)
        return value if self.log is None else (value + self.log).log()


def float_expr(column: str, dtype: pl.DataType) -> pl.Expr:
    """Returns the column as Float64 with NaN as null; it fails when collected if a text is no number.

    Raises:
        DataError: The column holds no numbers.
    """
    if dtype == pl.Null:
        return pl.lit(None, dtype=pl.Float64)
    if is_text(dtype):
        return _no_number(column).guard(number_expr(pl.col(column)).fill_nan(None))
    if not (dtype.is_integer() or dtype.is_float()):
        raise wrong_dtype(column, dtype, _EXPECTED, "cast the column to a number before")
    value = pl.col(column).cast(pl.Float64)
    return value if dtype.is_integer() else value.fill_nan(None)


def float_problems(column: str, dtype: pl.DataType) -> list[Problem]:
    """Returns the test for text that is no number; there is none for a column of numbers."""
    return [_no_number(column)] if is_text(dtype) else []


def float_encoder(column: str, *, text: bool = True) -> Callable[[Any], float | None]:
    """Python form of `float_expr`.

    Args:
        column: The column, for errors.
        text: Whether a number may be written as text.
    """

    def encode(value: Any) -> float | None:
        kind = type(value)
        if kind is float:
            return None if value != value else value
        if value is None:
            return None
        if kind is not int:
            value = plain(value)
            if text and isinstance(value, str):
                read = number_of(value)
                if read is None:
                    raise _no_number(column).error(value)
                value = read
            if type(value) not in (int, float):
                raise wrong_dtype(column, shown(value), _EXPECTED, "cast the value to a number before")
        try:
            number = float(value)
        except OverflowError:
            raise wrong_dtype(column, "an integer above 1e308", _EXPECTED) from None
        return None if number != number else number

    return encode


def _no_number(column: str) -> Problem:
    value = pl.col(column)
    bad = value.is_not_null() & number_expr(value).is_null()
    return Problem(column, bad, "text that is no number", "a number such as 12, -1.5 or 1e3", "mend the column")
