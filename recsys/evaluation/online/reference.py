"""What predictions and inputs looked like to begin with: buckets that later windows are counted into."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from features.fingerprint import fingerprint_expr
from recsys.evaluation.online.logs import INPUT

PREDICTION = "prediction"
_TEXT_BITS = 6
_DECILES = np.arange(1, 10) / 10


@dataclass(frozen=True)
class Reference:
    """Counts of a set of rows.

    Attributes:
        counts: By name (`prediction` or `input:NAME`): rows in each bucket. Of a number there is one more bucket
            than edges, and one for missing values; of a text there are 64, by the first bits of the fingerprint, and
            one for missing values.
        edges: Of each number: the deciles of the rows, equal ones once.
        logit: Mean log-odds of the predictions.
    """

    counts: Mapping[str, np.ndarray]
    edges: Mapping[str, np.ndarray] = field(default_factory=dict)
    logit: float = 0.0

    @staticmethod
    def of(rows: pl.DataFrame) -> Reference:
        """Counts rows with `probability` and inputs (see `read_predictions`)."""
        edges, counts = {}, {}
        for name, values in watched(rows).items():
            if values.dtype != pl.String:
                there = values.drop_nulls().to_numpy()
                edges[name] = np.unique(np.quantile(there, _DECILES, method="inverted_cdf")) if len(there) else there
            counts[name] = _count(buckets(values, edges.get(name)), edges.get(name))
        logit = float(np.mean(log_odds(rows["probability"].to_numpy()))) if rows.height else 0.0
        return Reference(counts, edges, logit)

    def count(self, name: str, values: pl.Series) -> np.ndarray:
        """Rows in each bucket of a name."""
        return _count(buckets(values, self.edges.get(name)), self.edges.get(name))

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "counts": {name: values.tolist() for name, values in self.counts.items()},
            "edges": {name: values.tolist() for name, values in self.edges.items()},
            "logit": self.logit,
        }

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Reference:
        """From what `to_json` returned."""
        return Reference(
            {name: np.array(counts, dtype=np.int64) for name, counts in values["counts"].items()},
            {name: np.array(edges, dtype=np.float64) for name, edges in values["edges"].items()},
            values["logit"],
        )


def watched(rows: pl.DataFrame) -> dict[str, pl.Series]:
    """The predictions as `prediction`, and the inputs as `input:NAME`."""
    names = [name for name in rows.columns if name.startswith(INPUT)]
    return {PREDICTION: rows["probability"], **{name: rows[name] for name in names}}


def buckets(values: pl.Series, edges: np.ndarray | None) -> np.ndarray:
    """The bucket of each value; the last one is for missing values.

    Args:
        values: [N] numbers, or texts.
        edges: Of numbers; None for texts.

    >>> buckets(pl.Series([0.5, None, 2.0]), np.array([1.0, 2.0])).tolist()
    [0, 3, 2]
    """
    missing = values.is_null().to_numpy()
    if edges is None:
        hashed = values.to_frame("value").select(fingerprint_expr(pl.col("value").cast(pl.String)))["value"]
        places = (hashed.to_numpy().view(np.uint64) >> np.uint64(64 - _TEXT_BITS)).astype(np.int64)
        return np.where(missing, 1 << _TEXT_BITS, places)
    places = np.searchsorted(edges, values.cast(pl.Float64, strict=False).fill_null(0.0).to_numpy(), side="right")
    return np.where(missing, len(edges) + 1, places)


def log_odds(probabilities: np.ndarray) -> np.ndarray:
    """Log-odds, kept within 8 of 0 so that one sure prediction does not outweigh all others."""
    p = probabilities.clip(1e-12, 1 - 1e-12)
    odds: np.ndarray = (np.log(p) - np.log1p(-p)).clip(-8, 8)
    return odds


def _count(places: np.ndarray, edges: np.ndarray | None) -> np.ndarray:
    return np.bincount(places, minlength=((1 << _TEXT_BITS) if edges is None else len(edges) + 1) + 1)
