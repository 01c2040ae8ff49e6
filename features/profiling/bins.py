"""Puts the rows of a column into a few bins: its most frequent values, ranges of its numbers, and missing."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import polars as pl

from features.profiling.profile import ColumnProfile

MISSING, OTHER = "(missing)", "(other)"
MOST_VALUES = 20
"""Numbers with more distinct values are put into ranges."""


@dataclass(frozen=True)
class Bins:
    """Bins of the rows.

    Attributes:
        names: What is in each bin.
        codes: int64 [N], the bin of each row.
        ordered: Whether the bins are ranges in ascending order, `missing` aside.
        edges: Of ranges: where one ends and the next begins.
    """

    names: tuple[str, ...]
    codes: np.ndarray
    ordered: bool
    edges: tuple[float, ...] = ()

    def counts(self) -> np.ndarray:
        """int64 [bins] rows in each."""
        return np.bincount(self.codes, minlength=len(self.names))

    def shares(self, rows: np.ndarray) -> np.ndarray:
        """[bins] share of these rows (bool [N]) that is in each bin."""
        counts = np.bincount(self.codes[rows], minlength=len(self.names))
        return counts / max(counts.sum(), 1)


def bins_of(column: ColumnProfile, values: pl.Series) -> Bins:
    """Bins rows of a column: numbers and times with many values by their deciles, lists by length, others by value.

    Args:
        column: Profile of the column, which has some value.
        values: [N] of it.
    """
    measured = column.numeric or column.kind in ("time", "list") or column.reading == "time"
    if measured and column.quantiles is not None and (column.kind == "list" or column.distinct > MOST_VALUES):
        return _ranges(column, column.numbers(values).to_numpy())
    known = [item.value for item in column.top[:MOST_VALUES]]
    text = values.cast(pl.String)
    names = (*known, OTHER, MISSING)
    places = {name: place for place, name in enumerate(known)}
    codes = text.replace_strict(places, default=len(known), return_dtype=pl.Int64)
    codes = codes.zip_with(text.is_not_null(), pl.Series([len(known) + 1]).new_from_index(0, len(text)))
    return Bins(names, codes.to_numpy(), ordered=False)


def _ranges(column: ColumnProfile, numbers: np.ndarray) -> Bins:
    quantiles = column.quantiles or {}
    low, high = quantiles[0.0], quantiles[1.0]
    edges = np.array([edge for edge in column.deciles if low < edge <= high])
    missing = np.isnan(numbers)
    codes = np.where(missing, len(edges) + 1, np.searchsorted(edges, numbers, side="right"))
    bounds = [low, *edges.tolist(), high]
    times = column.kind == "time" or column.reading == "time"
    names = [f"{_text(a, times)} to {_text(b, times)}" for a, b in pairwise(bounds)]
    return Bins((*names, MISSING), codes.astype(np.int64), True, tuple(edges.tolist()))


def _text(value: float, time: bool) -> str:
    if time:
        moment = datetime.datetime(1970, 1, 1) + datetime.timedelta(microseconds=value)
        return moment.strftime("%Y-%m-%d %H:%M")
    return f"{value:.4g}" if abs(value) < 1e4 and value != round(value) else f"{value:,.0f}"
