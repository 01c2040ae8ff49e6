"""Quantiles of the training rows from a bounded sample, and the place of a number among them."""

from __future__ import annotations

from bisect import bisect_right

import numpy as np

QUANTILE_SAMPLE = 1 << 20
"""Up to this many training rows the quantiles are exact; of more, every 2nd, 4th, 8th ... row is looked at."""


class QuantileSample:
    """Every row, or every 2nd, 4th, 8th ... one, so that no more than `QUANTILE_SAMPLE` are held."""

    def __init__(self) -> None:
        self._kept: list[np.ndarray] = []
        self._rows = 0
        self._stride = 1

    def update(self, values: np.ndarray) -> None:
        """Keeps every stride-th row; doubles the stride when that is more than the sample holds."""
        first = -self._rows % self._stride
        self._kept.append(values[first :: self._stride].copy())
        self._rows += len(values)
        while sum(map(len, self._kept)) > QUANTILE_SAMPLE:
            self._kept = [np.concatenate(self._kept)[::2]]
            self._stride *= 2

    def finite(self) -> np.ndarray:
        """The sample without what is missing or infinite."""
        values = np.concatenate(self._kept) if self._kept else np.empty(0)
        return values[np.isfinite(values)]


class QuantileScale:
    """Piecewise linear: 0 at the smallest training value, 1 at the largest, k/N at the k-th of N quantiles.

    Attributes:
        edges: The values of the quantiles, each once, in rising order; empty if there was no training value.
        levels: Their places from 0 to 1; where several quantiles have one value, the middle of theirs.
    """

    def __init__(self, edges: list[float], levels: list[float]) -> None:
        self.edges, self.levels = edges, levels

    @staticmethod
    def fit(values: np.ndarray, quantiles: int) -> QuantileScale:
        """Takes finite training values."""
        if not len(values):
            return QuantileScale([], [])
        levels = np.arange(quantiles + 1) / quantiles
        edges, first, count = np.unique(
            np.quantile(values, levels, method="inverted_cdf"), return_index=True, return_counts=True
        )
        return QuantileScale(edges.tolist(), ((levels[first] + levels[first + count - 1]) / 2).tolist())

    def place(self, value: float) -> float:
        """The place of a finite number."""
        edges, levels = self.edges, self.levels
        above = bisect_right(edges, value)
        if above == 0:
            return 0.0
        if above == len(edges):
            return levels[-1] if value == edges[-1] else 1.0
        # Halves, as the difference of two numbers may be too large.
        low, high = edges[above - 1] * 0.5, edges[above] * 0.5
        share = (value * 0.5 - low) / (high - low if high > low else 1.0)
        return levels[above - 1] + share * (levels[above] - levels[above - 1])

    def places(self, values: np.ndarray) -> np.ndarray:
        """The same for an array, to the same bits.

        Args:
            values: float64 [B], finite.
        """
        if not self.edges:
            return np.zeros(len(values))
        edges, levels = np.array(self.edges), np.array(self.levels)
        above = np.searchsorted(edges, values, side="right")
        before, after = np.maximum(above - 1, 0), np.minimum(above, len(edges) - 1)
        low, high = edges[before] * 0.5, edges[after] * 0.5
        width = np.where(high > low, high - low, 1.0)
        found = levels[before] + (values * 0.5 - low) / width * (levels[after] - levels[before])
        found = np.where(above == len(edges), np.where(values == edges[-1], levels[-1], 1.0), found)
        return np.where(above == 0, 0.0, found)
