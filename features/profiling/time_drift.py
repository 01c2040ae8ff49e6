"""How the values of columns change over time: the distribution in each slice of time against the first."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from features.ops.time import microseconds_expr
from features.profiling.bins import bins_of
from features.profiling.profile import Profile
from features.spec import TimeUnit

SLICES = 8
"""Slices of time, with about equally many rows each."""
SLICE_ROWS = 200
"""Fewer rows in a slice tell nothing; there are fewer slices then."""


@dataclass(frozen=True)
class Drift:
    """Drift of all columns.

    Attributes:
        starts: Start of each slice, microseconds since 1970.
        rows: Rows of the sample in each.
        divergence: Column -> Jensen-Shannon divergence of each slice from the first, 0 to 1 bit.
        chance: Column -> what chance alone would make of it with so many rows.
    """

    starts: tuple[int, ...]
    rows: tuple[int, ...]
    divergence: dict[str, tuple[float, ...]]
    chance: dict[str, float]

    def of(self, column: str) -> float | None:
        """The largest divergence of a column beyond chance; None if it was not measured."""
        if column not in self.divergence:
            return None
        return max(0.0, *(value - self.chance[column] for value in self.divergence[column]))


def drift_of(profile: Profile, time: str, unit: TimeUnit | None) -> Drift | None:
    """Compares slices of time on the sample; None if there are not two of them.

    Args:
        profile: Of the source.
        time: Its time column.
        unit: Of integer times.
    """
    sample = profile.sample
    expression = microseconds_expr(time, sample.schema[time], unit)[0]
    moments = sample.select(expression).to_series().to_numpy()
    slices = min(SLICES, len(moments) // SLICE_ROWS)
    edges = np.unique(np.quantile(moments, np.arange(slices) / slices, method="inverted_cdf")) if slices else moments
    if len(edges) < 2:
        return None
    places = np.searchsorted(edges, moments, side="right") - 1
    inside = [places == place for place in range(len(edges))]
    rows = [int(rows.sum()) for rows in inside]
    divergence, chance = {}, {}
    for column in profile.columns:
        if column.name == time or column.name not in sample.columns or column.missing == column.rows:
            continue
        bins = bins_of(column, sample.get_column(column.name))
        shares = [bins.shares(rows) for rows in inside]
        divergence[column.name] = tuple(jensen_shannon(shares[0], other) for other in shares)
        used = len(np.unique(bins.codes))
        chance[column.name] = (used - 1) / (8 * np.log(2)) * (1 / rows[0] + 1 / min(rows))
    return Drift(tuple(int(edge) for edge in edges), tuple(rows), divergence, chance)


def jensen_shannon(a: np.ndarray, b: np.ndarray) -> float:
    """Jensen-Shannon divergence of two distributions in bits, from 0 (equal) to 1 (nothing in common).

    Args:
        a: [bins] shares that sum to 1.
        b: The same bins.

    Example:
        >>> jensen_shannon(np.array([1.0, 0.0]), np.array([0.0, 1.0]))
        1.0
        >>> jensen_shannon(np.array([0.5, 0.5]), np.array([0.5, 0.5]))
        0.0
    """
    middle = (a + b) / 2

    def relative(shares: np.ndarray) -> float:
        there = shares > 0
        return float((shares[there] * np.log2(shares[there] / middle[there])).sum())

    return max(0.0, (relative(a) + relative(b)) / 2)
