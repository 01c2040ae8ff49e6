"""What one column alone tells of the label: its rate by value, an AUC, and whether that is too good to be true."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from features.errors import UndefinedMetricError
from features.ops.text import TRUE
from features.profiling.bins import bins_of
from features.profiling.profile import ColumnProfile
from recsys.evaluation.metrics import auc

SUSPICIOUS_AUC = 0.95
"""A single column above this knows the label, or was written after it."""
COPY_SHARE = 0.99
"""A column tells this share of both classes: it is the label by another name."""
_PRIOR_ROWS = 10
_NORMAL_95 = 1.959964


@dataclass(frozen=True)
class Rate:
    """The label rate of the rows in one bin.

    Attributes:
        value: Value or range.
        rows: Rows of the sample.
        rate: Share of label 1.
        low: Lower end of its 95 % interval (Wilson).
        high: Upper end.
    """

    value: str
    rows: int
    rate: float
    low: float
    high: float


@dataclass(frozen=True)
class Power:
    """What a column tells of the label.

    Attributes:
        rates: Label rate by value or range; bins without a row are left out.
        by_value: AUC when each value predicts the rate of the other half of the rows with that value.
        by_range: The same with the ranges of a number, a time or a list's length; None of what has none.
        by_size: AUC of the number itself, or of minus it if that is better; None where there are no ranges.
        copies: Whether it is the label by another name.
    """

    rates: tuple[Rate, ...]
    by_value: float
    by_range: float | None
    by_size: float | None
    copies: bool

    @property
    def auc(self) -> float:
        """The best of them."""
        return max(self.by_value, self.by_range or 0.0, self.by_size or 0.0)

    @property
    def suspicious(self) -> bool:
        """Whether it predicts too well."""
        return self.copies or self.auc > SUSPICIOUS_AUC


def label_of(values: pl.Series) -> np.ndarray:
    """float64 [N] of a label column of 0 and 1, false and true, or their text."""
    return values.cast(pl.String).is_in([*TRUE, "1", "1.0"]).cast(pl.Float64).to_numpy()


def power_of(column: ColumnProfile, values: pl.Series, labels: np.ndarray) -> Power | None:
    """Measures a column against the label; None if both halves of the rows do not have both classes.

    Args:
        column: Profile of the column, which has some value.
        values: [N] of it.
        labels: [N] in {0, 1}.
    """
    bins = bins_of(column, values)
    predicted = [_cross_rates(_codes(values), labels)]
    by_range = by_size = None
    try:
        by_value = _halves_auc(labels, predicted[0])
    except UndefinedMetricError:
        return None
    if bins.ordered:
        predicted.append(_cross_rates(bins.codes, labels))
        by_range = _halves_auc(labels, predicted[1])
        numbers = column.numbers(values)
        size = auc(labels, numbers.fill_null(numbers.median()).to_numpy())
        by_size = max(size, 1 - size)
    told = [min(float(((rates >= 0.5)[labels == side] == side).mean()) for side in (0, 1)) for rates in predicted]
    there = bins.counts()
    return Power(
        rates=tuple(_rate(name, labels[bins.codes == code]) for code, name in enumerate(bins.names) if there[code]),
        by_value=by_value,
        by_range=by_range,
        by_size=by_size,
        copies=max(told) >= COPY_SHARE,
    )


def _codes(values: pl.Series) -> np.ndarray:
    if isinstance(values.dtype, pl.List | pl.Array):
        values = values.cast(pl.List(pl.String)).list.join("\0", ignore_nulls=True)
    return values.cast(pl.String).rank("dense").fill_null(0).to_numpy().astype(np.int64)


def _cross_rates(codes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """[N] label rate of the rows with the same code in the other half, drawn towards the rate of all."""
    half = np.arange(len(codes)) % 2
    predicted = np.empty(len(codes))
    for side in (0, 1):
        here, there = half == side, half != side
        prior = labels[there].mean() if there.any() else 0.0
        size = int(codes.max()) + 1
        rows = np.bincount(codes[there], minlength=size)
        ones = np.bincount(codes[there], weights=labels[there], minlength=size)
        predicted[here] = ((ones + prior * _PRIOR_ROWS) / (rows + _PRIOR_ROWS))[codes[here]]
    return predicted


def _halves_auc(labels: np.ndarray, predicted: np.ndarray) -> float:
    # The halves have different priors, so that their predictions are not to be compared.
    return (auc(labels[::2], predicted[::2]) + auc(labels[1::2], predicted[1::2])) / 2


def _rate(name: str, labels: np.ndarray) -> Rate:
    n, p, z = len(labels), float(labels.mean()), _NORMAL_95
    centre, scale = (p + z * z / (2 * n)), 1 + z * z / n
    spread = z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Rate(name, n, p, max(0.0, float((centre - spread) / scale)), min(1.0, float((centre + spread) / scale)))
