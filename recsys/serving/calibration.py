"""Calibration: a trained model's logits become probabilities that are right on rows it was not trained on.

It is fitted on the validation split after training, one curve a task, and is part of the bundle.  The network stays as
it is; temperature and Platt scaling with a positive slope also leave the order of rows, and so every AUC.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from scipy.optimize import isotonic_regression, minimize, minimize_scalar
from scipy.special import expit

from features.errors import UndefinedMetricError

Method = Literal["isotonic", "platt", "temperature"]

_STEEPEST = 1.0
"""Of an isotonic curve, in probability by unit of the logit; the logistic function rises by a quarter at most."""
_LOG_TEMPERATURES = (-5.0, 5.0)
"""Bounds of the search."""


@dataclass(frozen=True)
class Line:
    """`p = sigmoid(slope * logit + intercept)`."""

    slope: float
    intercept: float

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        """[N] float64 -> [N]."""
        return expit(self.slope * logits + self.intercept)


@dataclass(frozen=True)
class Steps:
    """Probabilities at some logits, both ascending; straight lines between, the first and the last value beyond."""

    logits: tuple[float, ...]
    probabilities: tuple[float, ...]

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        """[N] float64 -> [N]."""
        return np.interp(logits, *self._arrays)

    @functools.cached_property
    def _arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """The points as arrays, made once: a request would wait longer for them than for its own value."""
        return np.array(self.logits), np.array(self.probabilities)


@dataclass(frozen=True)
class Calibration:
    """The curves of all tasks.

    >>> Calibration("temperature", (Line(0.5, 0.0),))(np.array([[0.0], [4.0]])).round(4).tolist()
    [[0.5], [0.8808]]
    """

    method: Method
    curves: tuple[Line | Steps, ...]

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        """[N, T] logits -> [N, T] float64 probabilities."""
        out = np.empty(logits.shape)
        for task, curve in enumerate(self.curves):
            out[:, task] = curve(logits[:, task].astype(np.float64))
        return out

    def to_json(self) -> dict[str, Any]:
        """Plain values, from which `from_json` makes the same bits."""
        return {"method": self.method, "curves": [asdict(curve) for curve in self.curves]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Calibration:
        """Reads what `to_json` gave.

        Raises:
            KeyError, TypeError, ValueError: it is no calibration.
        """
        return cls(data["method"], tuple(_curve(curve) for curve in data["curves"]))


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """[N, T] logits -> [N, T] float64 probabilities, of a model without calibration.

    >>> sigmoid(np.array([[0.0, -1000.0]])).tolist()
    [[0.5, 0.0]]
    """
    return expit(np.asarray(logits, np.float64))


def fit_calibration(
    method: Method,
    logits: np.ndarray,
    labels: np.ndarray,
    weight: np.ndarray | None = None,
    names: Sequence[str] = (),
) -> Calibration:
    """Fits one curve a task.

    Args:
        method: `fit_temperature`, `fit_platt` or `fit_isotonic`.
        logits: [N, T] of rows that the network was not trained on.
        labels: [N, T] in {0, 1}.
        weight: [N] non-negative; 1 when left out.
        names: of the tasks, for the error.

    Raises:
        UndefinedMetricError: a task has one class only.
    """
    fits: dict[Method, Callable[[np.ndarray, np.ndarray, np.ndarray], Line | Steps]] = {
        "isotonic": fit_isotonic,
        "platt": fit_platt,
        "temperature": fit_temperature,
    }
    weight = np.ones(len(labels)) if weight is None else np.asarray(weight, np.float64)
    curves: list[Line | Steps] = []
    for task in range(labels.shape[1]):
        x, y = (np.ascontiguousarray(column[:, task], np.float64) for column in (logits, labels))
        positive, total = float((y * weight).sum()), float(weight.sum())
        if not 0 < positive < total:
            raise UndefinedMetricError(
                "a calibration needs rows of both classes",
                field=names[task] if names else f"task {task}",
                found=f"{len(y):,} rows, none of them {'positive' if positive == 0 else 'negative'}",
                mend="fit on more rows, or set calibration to null",
            )
        curves.append(fits[method](x, y, weight))
    return Calibration(method, tuple(curves))


def fit_temperature(logits: np.ndarray, labels: np.ndarray, weight: np.ndarray) -> Line:
    """One temperature for all logits, `p = sigmoid(logit / T)`, of the least logloss (Guo et al., ICML 2017).

    The targets are Platt's, as in `fit_platt`.

    Args:
        logits: [N] float64.
        labels: [N] in {0, 1}, both there.
        weight: [N].

    >>> x, y = np.array([4.0, -4.0]).repeat(4000), np.array([1.0] * 3000 + [0.0] * 4000 + [1.0] * 1000)
    >>> round(4 * fit_temperature(x, y, np.ones(8000)).slope, 2)  # 3 of 4 are right: log(3) is what should be said
    1.1
    """
    targets = _platt_targets(labels, weight)

    def loss(log_temperature: float) -> float:
        return _logloss(logits * math.exp(-log_temperature), targets, weight)

    best = minimize_scalar(loss, bounds=_LOG_TEMPERATURES, method="bounded", options={"xatol": 1e-9})
    return Line(math.exp(-best.x), 0.0)


def fit_platt(logits: np.ndarray, labels: np.ndarray, weight: np.ndarray) -> Line:
    """Slope and intercept of the least logloss (Platt 1999), with his targets, which are not quite 0 and 1.

    Args:
        logits: [N] float64.
        labels: [N] in {0, 1}, both there.
        weight: [N].
    """
    targets, total = _platt_targets(labels, weight), weight.sum()

    def loss(line: np.ndarray) -> tuple[float, np.ndarray]:
        z = line[0] * logits + line[1]
        difference = (expit(z) - targets) * weight / total
        return _logloss(z, targets, weight), np.array([difference @ logits, difference.sum()])

    def curvature(line: np.ndarray) -> np.ndarray:
        p = expit(line[0] * logits + line[1])
        share = p * (1 - p) * weight / total
        first = share @ logits
        return np.array([[share @ logits**2, first], [first, share.sum()]])

    options = {"gtol": 1e-10}
    best = minimize(loss, np.array([1.0, 0.0]), jac=True, hess=curvature, method="trust-exact", options=options)
    return Line(float(best.x[0]), float(best.x[1]))


def fit_isotonic(logits: np.ndarray, labels: np.ndarray, weight: np.ndarray) -> Steps:
    """The rising curve of the least squared error (Zadrozny and Elkan, KDD 2002), by pooling adjacent violators.

    Every flat piece is one point, at the mean of its logits, and straight lines lead from point to point (centred
    isotonic regression, Oron and Flournoy 2017): rows within a piece keep their order.  Where that would be steeper
    than `_STEEPEST`, points are joined: a step up between two neighbouring rows is noise, and would turn a rounding
    error of the logit into another probability.  A lowest piece of 0 or a highest of 1 would make a single surprise
    infinitely bad: it is what it would be with half a row more of the other class, though never beyond the next piece.

    Args:
        logits: [N] float64.
        labels: [N] in {0, 1}, both there.
        weight: [N].
    """
    x, place = np.unique(logits[weight > 0], return_inverse=True)
    w = np.bincount(place, weight[weight > 0])
    rate = np.bincount(place, (labels * weight)[weight > 0]) / w
    p = isotonic_regression(rate, weights=w).x
    inside = p[(p > 0) & (p < 1)]
    zeros, ones = p == 0, p == 1
    if zeros.any():
        p[zeros] = min(0.5 / (w[zeros].sum() + 1), inside.min(initial=0.5))
    if ones.any():
        p[ones] = max(1 - 0.5 / (w[ones].sum() + 1), inside.max(initial=0.5))
    first = np.flatnonzero(np.r_[True, p[1:] != p[:-1]])
    weights = np.add.reduceat(w, first)
    centres = np.add.reduceat(w * x, first) / weights
    return _joined_where_steep(centres.tolist(), p[first].tolist(), weights.tolist())


def _joined_where_steep(logits: list[float], probabilities: list[float], weights: list[float]) -> Steps:
    """The points, ascending, with neighbours joined to their weighted mean until no line between two is too steep."""
    points: list[tuple[float, float, float]] = []
    for x, p, w in zip(logits, probabilities, weights, strict=True):
        while points and p - points[-1][1] > _STEEPEST * (x - points[-1][0]):
            x0, p0, w0 = points.pop()
            x, p, w = (x0 * w0 + x * w) / (w0 + w), (p0 * w0 + p * w) / (w0 + w), w0 + w
        points.append((x, p, w))
    return Steps(tuple(x for x, _, _ in points), tuple(p for _, p, _ in points))


def _platt_targets(labels: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """`(N+ + 1) / (N+ + 2)` and `1 / (N- + 2)`: they keep the slope finite where the logits tell all rows apart."""
    positive, negative = (labels * weight).sum(), ((1 - labels) * weight).sum()
    return np.where(labels > 0, (positive + 1) / (positive + 2), 1 / (negative + 2))


def _logloss(logits: np.ndarray, targets: np.ndarray, weight: np.ndarray) -> float:
    return float((np.logaddexp(0, logits) - targets * logits) @ weight / weight.sum())


def _curve(data: Mapping[str, Any]) -> Line | Steps:
    if "slope" in data:
        return Line(float(data["slope"]), float(data["intercept"]))
    logits, probabilities = (np.asarray(data[name], np.float64) for name in ("logits", "probabilities"))
    if not len(logits) == len(probabilities) > 0 or (np.diff(logits) <= 0).any():
        raise ValueError("the logits of a calibration do not ascend")
    return Steps(tuple(logits.tolist()), tuple(probabilities.tolist()))
