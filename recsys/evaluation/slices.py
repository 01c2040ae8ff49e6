"""Where a model does badly: its metrics on parts of the rows, and how much each part adds to the loss of all."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from features.errors import UndefinedMetricError
from recsys.evaluation.divisions import Division, slice_name
from recsys.evaluation.intervals import Interval, auc_interval, calibration_ratio_interval
from recsys.evaluation.rows import columns, require_probabilities, row_losses

MIN_ROWS = 100
MIN_SHARE = 0.002
"""A slice has at least so many rows, and at least this share of all."""


@dataclass(frozen=True)
class Slice:
    """A model on the rows of one slice."""

    by: str
    """What divides the rows: value, training frequency, seen in training, range or day."""
    feature: str
    value: str
    rows: int
    share: float
    """Of the weight of all rows."""
    base_rate: float
    auc: Interval | None
    """None where it does not exist, such as with one class; `undefined` says why."""
    logloss: float
    calibration: Interval | None
    """Expected over observed clicks."""
    excess_loss: float
    """What the slice adds to the logloss of all beyond its share: `share * (logloss - logloss of all)`."""
    excess_error: float
    """Its standard error, rows taken for independent."""
    undefined: dict[str, str]

    @property
    def name(self) -> str:
        """What people call it."""
        return slice_name(self.by, self.feature, self.value)

    def to_json(self) -> dict[str, Any]:
        """All fields, and the name."""
        return {"name": self.name, **asdict(self)}


@dataclass(frozen=True)
class Slices:
    """All slices that are large enough, the most harmful first."""

    found: tuple[Slice, ...]
    rows: int
    """That were divided."""
    min_rows: int
    too_small: int
    """Slices with fewer rows, which are left out."""

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self) | {"found": [one.to_json() for one in self.found]}


def slice_metrics(
    labels: np.ndarray,
    probabilities: np.ndarray,
    divisions: Sequence[Division],
    weight: np.ndarray | None = None,
    *,
    min_rows: int = MIN_ROWS,
    min_share: float = MIN_SHARE,
) -> Slices:
    """Metrics of every slice of some divisions.

    Slices are sorted by `excess_loss`.  Over the slices of a division that parts all rows it adds up to 0, so a
    positive one is paid for by the others; it is large where many rows are hard or badly predicted.  With l_i the loss
    of row i, L its mean, s the share of slice S and x its excess, the error of x is that of a mean of independent
    `(1_S(i) - s) (l_i - L) - x`.

    Args:
        labels: [N] in {0, 1}.
        probabilities: [N] in [0, 1].
        divisions: ways to part the N rows.
        weight: [N] non-negative; slices whose rows all weigh 0 are left out.
        min_rows: of a slice.
        min_share: of N.

    Raises:
        DataError: A score is not finite or out of range, a label is not binary, or a weight is negative.
        UndefinedMetricError: There are no rows, or all weigh 0.
    """
    y, p, w = columns(labels, probabilities, weight)
    require_probabilities(p)
    total = float(w.sum())
    if total == 0:
        raise UndefinedMetricError("all weights are 0" if len(y) else "there are no rows")
    losses = row_losses(y, p)
    mean = float((w * losses).sum()) / total
    beyond = w * (losses - mean) / total
    all_squares = float((beyond**2).sum())
    least = max(min_rows, math.ceil(min_share * len(y)))
    found: list[Slice] = []
    too_small = 0
    for division in divisions:
        order = np.argsort(division.codes, kind="stable")
        codes = division.codes[order]
        starts = np.flatnonzero(np.r_[True, codes[1:] != codes[:-1]]) if len(codes) else np.empty(0, np.int64)
        ends = np.r_[starts[1:], len(codes)]
        large = ends - starts >= least
        too_small += int((~large).sum())
        for start, end in zip(starts[large], ends[large], strict=True):
            rows = order[start:end] if division.rows is None else division.rows[order[start:end]]
            mass = float(w[rows].sum())
            if mass == 0:
                too_small += 1
                continue
            share, excess = mass / total, float(beyond[rows].sum())
            squares = float((beyond[rows] ** 2).sum())
            variance = (1 - share) ** 2 * squares + share**2 * (all_squares - squares) - excess**2 / len(y)
            undefined: dict[str, str] = {}
            own = None if weight is None else w[rows]
            found.append(
                Slice(
                    division.by,
                    division.feature,
                    division.name(int(codes[start])),
                    len(rows),
                    share,
                    float((w[rows] * y[rows]).sum()) / mass,
                    _defined(auc_interval, "auc", undefined, y[rows], p[rows], own),
                    float((w[rows] * losses[rows]).sum()) / mass,
                    _defined(calibration_ratio_interval, "calibration", undefined, y[rows], p[rows], own),
                    excess,
                    math.sqrt(max(variance, 0.0)),
                    undefined,
                )
            )
    found.sort(key=lambda one: (-one.excess_loss, one.feature, one.value))
    return Slices(tuple(found), len(y), least, too_small)


def miscalibrated(slices: Slices) -> list[Slice]:
    """The slices whose calibration is known, the surest to be off first.

    They are sorted by the distance of log(expected / observed) from 0 in standard errors.
    """

    def distance(one: Slice) -> float:
        assert one.calibration is not None
        error = (math.log(one.calibration.high) - math.log(one.calibration.low)) / 2
        off = abs(math.log(one.calibration.value))
        return off / error if error > 0 else math.inf if off > 0 else 0.0

    known = [one for one in slices.found if one.calibration is not None]
    return sorted(known, key=lambda one: (-distance(one), one.feature, one.value))


def _defined(
    interval: Callable[..., Interval], name: str, undefined: dict[str, str], *rows: np.ndarray | None
) -> Interval | None:
    try:
        return interval(*rows)
    except UndefinedMetricError as error:
        undefined[name] = error.what
        return None
