"""Tests that may be looked at at any time: e-values and intervals that hold at all looks together.

A test made for one look at a number of rows fixed beforehand gives more and more false alarms the more often it is
looked at.  These do not: whoever stops as soon as a difference is claimed is wrong in at most `level` of all cases.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import brentq

from features.errors import DataError
from recsys.evaluation.metrics import row_losses
from recsys.evaluation.power import LEVEL, rates_deviation

SPLIT_LEVEL = 0.01
"""Chance of a false alarm that traffic is not split as declared."""
_EDGE = 0.95
"""Share of what may be bet at most: all of it would end at 0 with the first value at the bound."""
_HALVINGS = 16
_FADE = 0.125
"""Of a plan, the weight of a bet that is twice or half as large as another one."""
_PIECE = 65_536


@dataclass(frozen=True)
class Plan:
    """What a test is made to see soon; it holds, and sees other differences too, whatever comes."""

    effect: float
    """The mean difference that is worth seeing; its sign does not matter."""
    deviation: float
    """Standard deviation of the values."""


class SequentialMean:
    """Whether the mean of bounded values differs from 0, at any time.

    For a bet `b` and any mean `m` the wealth `prod_i (1 + b x_i) / (1 + b m)` is a martingale that starts at 1 if each
    value has the mean `m`, whatever came before it.  The e-value of `m` after n values is a mixture of bets of both
    signs, weights `w_k` adding up to 1::

        E(m) = sum_k w_k exp(g_k - n log(1 + b_k m)),   g_k = sum_i log(1 + b_k x_i)

    By Ville's inequality E(m) ever reaches 1 / level with a chance of at most `level` if `m` is the mean.  So a
    difference may be claimed as soon as E(0) does, and `interval`, all m whose e-value is below 1 / level, holds the
    mean at all times together with the chance 1 - level.  Nothing is approximated, and only the bounds are assumed.

    The bets are those of Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting" (JRSS B
    2023), with `lambda = b / (1 + b m)`, so that the sums `g_k` serve every m; the mixture over them takes the place
    that the prior of effects has in the mixture SPRT of Johari, Pekelis and Walsh (2017).  On the line of methods see
    Howard, Ramdas, McAuliffe and Sekhon (Annals of Statistics 2021).

    Args:
        low: No value is lower; below 0.
        high: No value is higher; above 0.
        level: Chance of ever claiming a difference where there is none.
        plan: Puts most of the weight near the bet `effect / deviation^2`, which is the best one for that plan.  Without
            it 16 bets from the largest downwards, each half of the one before, weigh the same.

    >>> test = SequentialMean(-1, 1).update(np.tile([0.5, -0.1], 20))
    >>> round(test.mean, 3), round(test.e_value, 1), test.decided
    (0.2, 12.0, False)
    """

    def __init__(self, low: float, high: float, *, level: float = LEVEL, plan: Plan | None = None) -> None:
        if not low < 0 < high:
            raise ValueError(f"0 must lie between the bounds, which are {low} and {high}")
        if not 0 < level < 1:
            raise ValueError(f"level {level} must be between 0 and 1")
        self.low, self.high, self.level, self.plan = float(low), float(high), level, plan
        up, up_weights = _bets(_EDGE / -self.low, plan)
        down, down_weights = _bets(_EDGE / self.high, plan)
        self._bets = np.concatenate([up, -down])
        self._log_weights = np.log(np.concatenate([up_weights, down_weights]) / 2)
        self._sums = np.zeros(len(self._bets))
        self.rows = 0
        self._total = 0.0

    def update(self, values: np.ndarray) -> SequentialMean:
        """Takes in more values.

        Args:
            values: [N], in any number at a time: what comes out does not depend on how they are cut.

        Returns:
            Itself.

        Raises:
            DataError: A value is outside the bounds, or no number.
        """
        x = self._checked(values)
        for start in range(0, len(x), _PIECE):
            self._sums += np.log1p(np.outer(x[start : start + _PIECE], self._bets)).sum(0)
        self.rows += len(x)
        self._total += float(x.sum())
        return self

    def merge(self, other: SequentialMean) -> SequentialMean:
        """A test over the values of both, which must have been made alike."""
        if self._settings() != other._settings():
            raise ValueError("the tests have other bounds, levels or plans")
        merged = SequentialMean(self.low, self.high, level=self.level, plan=self.plan)
        merged._sums = self._sums + other._sums
        merged.rows, merged._total = self.rows + other.rows, self._total + other._total
        return merged

    def e_values(self, values: np.ndarray) -> np.ndarray:
        """The e-values that each of more values in turn would bring it to; it takes none of them in.

        Args:
            values: [N].

        Returns:
            [N].
        """
        x = self._checked(values)
        sums = self._sums + np.log1p(np.outer(x, self._bets)).cumsum(0)
        with np.errstate(over="ignore"):
            path: np.ndarray = np.exp(np.logaddexp.reduce(self._log_weights + sums, axis=1))
        return path

    @property
    def mean(self) -> float:
        """Of the values; 0 before there are any."""
        return self._total / self.rows if self.rows else 0.0

    @property
    def e_value(self) -> float:
        """Evidence against a mean of 0: its expectation is at most 1 if the mean is 0, whenever one stops."""
        return math.exp(min(self._log_e(0.0), 700.0))

    @property
    def p_value(self) -> float:
        """1 / e_value, at most 1: a p-value that holds at any time."""
        return min(1.0, 1 / self.e_value)

    @property
    def decided(self) -> bool:
        """Whether a difference may be claimed. Once it may, it may for good: stop, and say so."""
        return self._log_e(0.0) >= -math.log(self.level)

    @property
    def interval(self) -> tuple[float, float]:
        """Holds the mean with the chance 1 - level, at all times together."""
        # E is convex in m and at most 1 at the mean of the values: the values cannot gain on their own mean
        ends = []
        for bound in (self.low, self.high):
            outside = self._over(bound) > 0
            ends.append(brentq(self._over, bound, self.mean, xtol=1e-12) if outside else bound)
        return ends[0], ends[1]

    def to_json(self) -> dict[str, Any]:
        """All of its state, to be gone on with by `from_json`."""
        low, high, level, plan = self._settings()
        plans = None if plan is None else {"effect": plan.effect, "deviation": plan.deviation}
        settings = {"low": low, "high": high, "level": level, "plan": plans}
        return settings | {"rows": self.rows, "total": self._total, "sums": self._sums.tolist()}

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> SequentialMean:
        """The test that `to_json` wrote."""
        plan = None if state["plan"] is None else Plan(**state["plan"])
        test = cls(state["low"], state["high"], level=state["level"], plan=plan)
        test._sums = np.array(state["sums"], dtype=np.float64)
        test.rows, test._total = int(state["rows"]), float(state["total"])
        return test

    def _log_e(self, mean: float) -> float:
        return float(np.logaddexp.reduce(self._log_weights + self._sums - self.rows * np.log1p(self._bets * mean)))

    def _over(self, mean: float) -> float:
        return self._log_e(mean) + math.log(self.level)

    def _settings(self) -> tuple[float, float, float, Plan | None]:
        return self.low, self.high, self.level, self.plan

    def _checked(self, values: np.ndarray) -> np.ndarray:
        x = np.asarray(values, dtype=np.float64).reshape(-1)
        outside = ~((x >= self.low) & (x <= self.high))
        if outside.any():
            raise DataError(
                f"{np.count_nonzero(outside):,} of {len(x):,} values are outside the bounds of the test",
                field="values",
                found=float(x[outside][0]),
                expected=f"{self.low:g} to {self.high:g}",
                mend="give the test the bounds of the values before the first of them is seen",
            )
        return x


class TwoArms:
    """Whether the click rates of two arms differ, at any time; and whether traffic is split as declared.

    Requests go to the challenger at random with the chance `share`.  A request's value is `(click - rate) / share` if
    it went there and `-(click - rate) / (1 - share)` if it did not: its mean is the difference of the arms' rates at
    that time, whatever the rates are and however they move (Howard et al. 2021, section 4.2).  `rate` only makes the
    values spread less.

    Args:
        rate: Of clicks, as expected, in (0, 1).
        effect: The difference of rates that is worth seeing.
        share: Of the requests that go to the challenger, in (0, 1).
        level: Chance of ever claiming a difference where there is none.

    Attributes:
        difference: The test of the challenger's rate minus the champion's.
        split: The test of the challenger's share minus `share`, at the level .01.  If it is decided, requests were
            lost or sent elsewhere, and `difference` says nothing.

    >>> arms = TwoArms(rate=0.1, effect=0.05)
    >>> challenger = np.tile([1, 0], 1000)
    >>> clicks = np.where(challenger, np.arange(2000) % 20 == 0, np.arange(2000) % 10 == 1)
    >>> arms.update(challenger, clicks).difference.decided, arms.split.decided
    (True, False)
    """

    def __init__(self, *, rate: float, effect: float, share: float = 0.5, level: float = LEVEL) -> None:
        plan = Plan(effect, rates_deviation(rate, share))
        self.rate, self.share = rate, share
        low = -max(rate / share, (1 - rate) / (1 - share))
        high = max((1 - rate) / share, rate / (1 - share))
        self.difference = SequentialMean(low, high, level=level, plan=plan)
        self.split = SequentialMean(-share, 1 - share, level=SPLIT_LEVEL)

    def update(self, challenger: np.ndarray, clicks: np.ndarray) -> TwoArms:
        """Takes in more requests whose clicks are known.

        Args:
            challenger: [N], 1 where the request went to the challenger, else 0.
            clicks: [N] in {0, 1}.

        Returns:
            Itself.

        Raises:
            DataError: There is something else than 0 and 1.
        """
        arm, click = _binary(challenger, "challenger"), _binary(clicks, "clicks")
        if arm.shape != click.shape:
            raise ValueError(f"{len(arm)} requests have an arm and {len(click)} have clicks")
        values = (click - self.rate) * np.where(arm == 1, 1 / self.share, -1 / (1 - self.share))
        # rounding may put a value that is at the bound just beyond it
        self.difference.update(values.clip(self.difference.low, self.difference.high))
        self.split.update((arm - self.share).clip(self.split.low, self.split.high))
        return self

    def to_json(self) -> dict[str, Any]:
        """All of its state, to be gone on with by `from_json`."""
        tests = {"difference": self.difference.to_json(), "split": self.split.to_json()}
        return {"rate": self.rate, "share": self.share, **tests}

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> TwoArms:
        """The test that `to_json` wrote."""
        difference = SequentialMean.from_json(state["difference"])
        assert difference.plan is not None
        arms = cls(rate=state["rate"], effect=difference.plan.effect, share=state["share"], level=difference.level)
        arms.difference, arms.split = difference, SequentialMean.from_json(state["split"])
        return arms


def loss_differences(
    labels: np.ndarray, a: np.ndarray, b: np.ndarray, floor: float = 0.001
) -> tuple[np.ndarray, float]:
    """Row by row the logloss of model `a` minus that of `b`, bounded, as `SequentialMean` needs it.

    Args:
        labels: [N] in {0, 1}.
        a: [N] probabilities of one model, kept within [floor, 1 - floor].
        b: [N] probabilities of the other, likewise.
        floor: Choose it before the first row is seen; the lower, the wider the bounds.

    Returns:
        [N] differences, and the bound: none is above it, none below its negative.

    >>> values, bound = loss_differences(np.array([1, 0]), np.array([0.5, 0.2]), np.array([0.25, 0.2]))
    >>> values.round(3).tolist(), round(bound, 3)
    ([-0.693, 0.0], 6.907)
    """
    y = np.asarray(labels, dtype=np.float64)
    p, q = (np.asarray(scores, dtype=np.float64).clip(floor, 1 - floor) for scores in (a, b))
    bound = math.log((1 - floor) / floor)
    return (row_losses(y, p) - row_losses(y, q)).clip(-bound, bound), bound


def _bets(largest: float, plan: Plan | None) -> tuple[np.ndarray, np.ndarray]:
    """Bets of one sign and their weights, which add up to 1."""
    if plan is None:
        bets = largest * 0.5 ** np.arange(_HALVINGS)
        return bets, np.full(len(bets), 1 / len(bets))
    best = min(abs(plan.effect) / plan.deviation**2, largest)
    steps = np.arange(-_HALVINGS, _HALVINGS + 1) / 2
    bets = best * 2.0**steps
    weights = _FADE ** np.abs(steps)
    possible = bets <= largest
    return bets[possible], weights[possible] / weights[possible].sum()


def _binary(values: np.ndarray, name: str) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64).reshape(-1)
    wrong = (array != 0) & (array != 1)
    if wrong.any():
        raise DataError(
            f"{np.count_nonzero(wrong):,} of {len(array):,} values are neither 0 nor 1",
            field=name,
            found=float(array[wrong][0]),
            expected="0 or 1",
        )
    return array
