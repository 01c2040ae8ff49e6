"""Sketches of a column in bounded memory: quantiles, number of distinct values, frequent values; all can be merged.

Apache DataSketches does the work. Its KLL, REQ and classic quantiles toss coins whose seed cannot be set; the t-digest
does not, so that the same rows in the same order give the same figures.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import datasketches as ds
import numpy as np
import polars as pl

from features.fingerprint import fingerprint_expr

QUANTILE_K = 2000
"""Size of a t-digest, 38 kB. Ranks measured off by at most 4 / k: .2 %."""
DISTINCT_LOG_K = 13
"""8,192 registers, 8 kB: a standard error of .9 %."""
FREQUENT_LOG_SIZE = 12
"""At most 3,072 counters."""


class Quantiles:
    """Quantiles of numbers by a t-digest.

    Example:
        >>> sketch = Quantiles()
        >>> sketch.update(np.array([4.0, 1.0, float("nan"), 3.0, 2.0]))
        >>> sketch.count, sketch.quantile(0), sketch.quantile(1)
        (4, 1.0, 4.0)
    """

    def __init__(self) -> None:
        self._digest = ds.tdigest_double(QUANTILE_K)

    def update(self, values: np.ndarray) -> None:
        """Takes more numbers.

        Args:
            values: float64 [B]; NaN and infinities are left out.
        """
        # A digest takes ordered numbers in half the time.
        self._digest.update(np.sort(values[np.isfinite(values)]))

    def merge(self, other: Quantiles) -> None:
        """Takes all that another one has seen."""
        self._digest.merge(other._digest)

    @property
    def count(self) -> int:
        """Numbers seen."""
        return int(self._digest.get_total_weight())

    def quantile(self, share: float) -> float | None:
        """Returns the number below which this share of the numbers lies; None if there were none.

        Args:
            share: From 0, the smallest, to 1, the largest; both are exact.
        """
        if not self.count:
            return None
        ends = {0.0: self._digest.get_min_value, 1.0: self._digest.get_max_value}
        return float(ends[share]() if share in ends else self._digest.get_quantile(share))


class Distinct:
    """How many distinct values there are, by HyperLogLog.

    Example:
        >>> sketch = Distinct()
        >>> sketch.update(pl.Series(["a", "b", "a"]))
        >>> sketch.count
        2
    """

    def __init__(self) -> None:
        self._sketch = ds.hll_sketch(DISTINCT_LOG_K, ds.HLL_8)

    def update(self, values: pl.Series) -> None:
        """Takes more values.

        Args:
            values: Text without nulls; a value given often counts once.
        """
        fingerprints = pl.select(fingerprint_expr(pl.lit(values))).to_series()
        deque(map(self._sketch.update, fingerprints.to_list()), maxlen=0)

    def merge(self, other: Distinct) -> None:
        """Takes all that another one has seen."""
        union = ds.hll_union(DISTINCT_LOG_K)
        union.update(self._sketch)
        union.update(other._sketch)
        self._sketch = union.get_result(ds.HLL_8)

    @property
    def count(self) -> int:
        """The estimate."""
        return round(self._sketch.get_estimate())

    def bounds(self, deviations: int = 3) -> tuple[float, float]:
        """Returns the lowest and highest number of values that is likely, within 1, 2 or 3 standard deviations."""
        return self._sketch.get_lower_bound(deviations), self._sketch.get_upper_bound(deviations)


@dataclass(frozen=True)
class Count:
    """A value and how often it was seen.

    Attributes:
        value: The value.
        count: The estimate, which is never below the truth.
        least: No less than this is certain.
    """

    value: str
    count: int
    least: int


class Frequent:
    """The most frequent values and their counts, by the space-saving sketch of DataSketches.

    Example:
        >>> sketch = Frequent()
        >>> sketch.update(pl.Series(["a", "b"]), pl.Series([5, 2]))
        >>> sketch.top(1), sketch.exact
        ([Count(value='a', count=5, least=5)], True)
    """

    def __init__(self) -> None:
        self._sketch = ds.frequent_strings_sketch(FREQUENT_LOG_SIZE)

    def update(self, values: pl.Series, counts: pl.Series) -> None:
        """Takes more values.

        Args:
            values: Text without nulls.
            counts: How often each is there, int.
        """
        deque(map(self._sketch.update, values.to_list(), counts.to_list()), maxlen=0)

    def merge(self, other: Frequent) -> None:
        """Takes all that another one has seen."""
        self._sketch.merge(other._sketch)

    @property
    def total(self) -> int:
        """The counts of all values together."""
        return int(self._sketch.total_weight)

    @property
    def error(self) -> int:
        """The most by which a count may be too high."""
        return max((count.count - count.least for count in self.top(None)), default=0)

    @property
    def exact(self) -> bool:
        """Whether no value was ever forgotten, so that `top(None)` holds all of them with their true counts."""
        return sum(count.count for count in self.top(None)) == self.total and not self.error

    def top(self, number: int | None) -> list[Count]:
        """Returns the most frequent values, the most frequent first and equals in the order of their text.

        Args:
            number: At most so many; all that are still counted when None.
        """
        kept = self._sketch.get_frequent_items(ds.frequent_items_error_type.NO_FALSE_NEGATIVES)
        counts = [Count(value, int(count), int(least)) for value, count, least, _ in kept]
        return sorted(counts, key=lambda item: (-item.count, item.value))[:number]
