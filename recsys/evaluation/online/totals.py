"""Metrics of all rows so far in a fixed amount of memory: sums are exact, the AUC is within a stated distance."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from recsys.evaluation.metrics import row_losses

METRICS = ("auc", "auc_error", "logloss", "normalised_entropy", "calibration_ratio", "base_rate", "mean_prediction")
_BINS = 1 << 14
_REACH = 20.0


class Totals:
    """Adds up rows.

    Scores are counted in 16,384 bins of equal width in log-odds, between -20 and 20. Pairs in the same bin count half
    for the AUC, which is therefore wrong by at most half their share of all pairs: `auc_error`.

    >>> totals = Totals()
    >>> totals.update(np.array([0, 1, 0, 1]), np.array([0.1, 0.4, 0.4, 0.8]))
    >>> found = totals.compute()
    >>> found["rows"], found["auc"], found["auc_error"]
    (4, 0.875, 0.125)
    """

    def __init__(self) -> None:
        self._sums = dict.fromkeys(("rows", "clicks", "expected", "loss"), 0.0)
        self._counts = np.zeros((2, _BINS), dtype=np.int64)

    def update(self, labels: np.ndarray, probabilities: np.ndarray) -> None:
        """Adds rows: [N] labels in {0, 1} and [N] probabilities."""
        y, p = labels.astype(np.float64), probabilities.astype(np.float64)
        for name, value in (("rows", len(y)), ("clicks", y.sum()), ("expected", p.sum())):
            self._sums[name] += float(value)
        self._sums["loss"] += float(row_losses(y, p).sum())
        inside = p.clip(1e-12, 1 - 1e-12)
        odds = np.log(inside) - np.log1p(-inside)
        bins = ((odds / _REACH + 1) / 2 * _BINS).astype(np.int64).clip(0, _BINS - 1)
        for label in (0, 1):
            self._counts[label] += np.bincount(bins[y == label], minlength=_BINS)

    def compute(self) -> dict[str, float | None]:
        """`rows` and `METRICS`; what is not defined is None."""
        rows, clicks, expected = (self._sums[name] for name in ("rows", "clicks", "expected"))
        out: dict[str, float | None] = {"rows": int(rows), **dict.fromkeys(METRICS)}
        if not rows:
            return out
        rate, loss = clicks / rows, self._sums["loss"] / rows
        out |= {"base_rate": rate, "mean_prediction": expected / rows, "logloss": loss}
        if clicks:
            out["calibration_ratio"] = expected / clicks
        if 0 < clicks < rows:
            out["normalised_entropy"] = loss / -(rate * math.log(rate) + (1 - rate) * math.log1p(-rate))
            negative, positive = self._counts.astype(np.float64)
            below, pairs = np.cumsum(negative) - negative, clicks * (rows - clicks)
            out["auc"] = float((positive * (below + 0.5 * negative)).sum() / pairs)
            out["auc_error"] = float(0.5 * (positive * negative).sum() / pairs)
        return out

    def to_json(self) -> dict[str, Any]:
        """All there is to go on from, as plain values."""
        used = np.flatnonzero(self._counts.any(0))
        return {"sums": dict(self._sums), "bins": used.tolist(), "counts": self._counts[:, used].tolist()}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Totals:
        """Goes on from what `to_json` returned."""
        totals = Totals()
        totals._sums = dict(values["sums"])
        totals._counts[:, values["bins"]] = values["counts"]
        return totals
