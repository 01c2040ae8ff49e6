"""All estimates of a policy's value from one log, with intervals, by position and for the whole slate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from features.errors import ConfigError
from recsys.evaluation.bootstrap import percentile_interval, resampled_sums
from recsys.evaluation.intervals import Interval
from recsys.evaluation.off_policy.contributions import Contributions
from recsys.evaluation.off_policy.direct_method import direct_method
from recsys.evaluation.off_policy.doubly_robust import doubly_robust, switch_doubly_robust
from recsys.evaluation.off_policy.intervals import empirical_bernstein
from recsys.evaluation.off_policy.inverse_propensity import ips, self_normalised_ips
from recsys.evaluation.off_policy.log import BanditLog
from recsys.evaluation.off_policy.support import Support, support_of
from recsys.evaluation.off_policy.target import TargetPolicy
from recsys.evaluation.off_policy.weights import importance_weights

LOGGED = "logged"
"""The name of the line of the logging policy itself: the mean of what was logged."""


@dataclass(frozen=True)
class Estimate:
    """The value of a policy, as one estimator has it."""

    estimator: str
    value: float | None
    """None if it is undefined: all weights are 0."""
    interval: Interval | None
    """Bootstrap; None if the value was undefined in a draw."""
    bernstein: Interval | None
    """Empirical Bernstein, cut to what a policy can earn; None of a ratio and of rows that are not independent."""
    gain: float | None
    """The value minus that of the logging policy."""
    gain_interval: Interval | None
    """Bootstrap, of the same draws."""

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)


@dataclass(frozen=True)
class Evaluation:
    """What a log says of a policy."""

    estimates: tuple[Estimate, ...]
    """Per row; the first is that of the logging policy."""
    by_position: tuple[tuple[Estimate, ...], ...]
    """The same of every position; none if there is only one."""
    slate: tuple[Estimate, ...]
    """The sum over positions, which is the value of a slate where positions are independent; none if there is only
    one."""
    support: Support
    max_weight: float
    """What no weight can exceed: the bound of the empirical Bernstein intervals."""
    max_weight_assumed: bool
    """Whether that was read off the log."""

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return {
            "estimates": [estimate.to_json() for estimate in self.estimates],
            "by_position": [[estimate.to_json() for estimate in position] for position in self.by_position],
            "slate": [estimate.to_json() for estimate in self.slate],
            "support": self.support.to_json(),
            "warnings": self.support.warnings(),
            "max_weight": self.max_weight,
            "max_weight_assumed": self.max_weight_assumed,
        }


def evaluate_policy(
    log: BanditLog,
    target: TargetPolicy,
    *,
    clip: float | None = None,
    switch: float = 10.0,
    max_weight: float | None = None,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
    group: np.ndarray | None = None,
) -> Evaluation:
    """Estimates what a policy would have earned, by every estimator there is.

    Args:
        log: N rows.
        target: The evaluated policy on them. With a reward model the direct method, doubly robust and switch-DR are
            among the estimates.
        clip: The largest weight of all but switch-DR; none when left out.
        switch: The weight above which switch-DR believes the model.
        max_weight: What no weight can exceed, if it is known; see `importance_weights`.
        level: Of the intervals.
        draws: Of the bootstrap.
        seed: Of the bootstrap.
        group: [N]: rows that belong together and are drawn together.

    Raises:
        ConfigError: The level is not between 0 and 1, there are too few draws for it, or a bound is not above 0.
        DataError: A weight is above `max_weight`.
    """
    if not 0 < level < 1:
        raise ConfigError(
            "no level of an interval", field="level", found=level, expected="between 0 and 1, such as .95"
        )
    if draws * (1 - level) / 2 < 1:
        raise ConfigError(
            "too few draws for the level", field="draws", found=draws, expected=f"at least {2 / (1 - level):.0f}"
        )
    weights = importance_weights(log, target, clip=clip, max_weight=max_weight)
    lines = [Contributions(LOGGED, log.reward, span=log.reward_range)]
    lines += [method(log, target, clip=clip, max_weight=max_weight) for method in (ips, self_normalised_ips)]
    if target.expected is not None:
        lines += [
            direct_method(log, target),
            doubly_robust(log, target, clip=clip, max_weight=max_weight),
            switch_doubly_robust(log, target, switch=switch, max_weight=max_weight),
        ]
    scopes = _Scopes(log, lines, level, draws, seed, group)
    many = log.positions > 1
    return Evaluation(
        scopes.whole(),
        tuple(scopes.position(place) for place in range(log.positions)) if many else (),
        scopes.slate() if many else (),
        support_of(log, target, clip=clip),
        weights.bound,
        weights.assumed,
    )


class _Scopes:
    """Values over all rows, over a position and over the slate, made of the same sums by estimator and position.

    A sum is [2, E, P]: numerators and denominators of E estimators at P positions; of bootstrapped sums there are D.
    """

    def __init__(
        self,
        log: BanditLog,
        lines: Sequence[Contributions],
        level: float,
        draws: int,
        seed: int,
        group: np.ndarray | None,
    ) -> None:
        self.log, self.lines, self.level, self.independent = log, lines, level, group is None
        at = log.place[:, None] == np.arange(log.positions)
        ones = np.ones(len(log))
        parts = [line.numerator for line in lines]
        parts += [ones if line.denominator is None else line.denominator for line in lines]
        columns = np.concatenate([part[:, None] * at for part in parts], axis=1)
        shape = (2, len(lines), log.positions)
        self.sums = columns.sum(0).reshape(1, *shape)
        self.draws = resampled_sums(columns, draws, seed, group).reshape(draws, *shape)

    def whole(self) -> tuple[Estimate, ...]:
        """Per row, whatever its position."""

        def values(sums: np.ndarray) -> np.ndarray:
            return _ratio(sums.sum(3))

        bernstein = [self._bernstein(line, np.ones(len(self.log), dtype=bool), self.level) for line in self.lines]
        return self._estimates(values(self.sums), values(self.draws), bernstein)

    def position(self, place: int) -> tuple[Estimate, ...]:
        """Per row of a position."""
        bernstein = [self._bernstein(line, self.log.place == place, self.level) for line in self.lines]
        return self._estimates(_ratio(self.sums[..., place]), _ratio(self.draws[..., place]), bernstein)

    def slate(self) -> tuple[Estimate, ...]:
        """The positions' values added up; of empirical Bernstein intervals all hold at once (union bound)."""
        places = range(self.log.positions)
        level = 1 - (1 - self.level) / self.log.positions
        bernstein: list[Interval | None] = []
        for line in self.lines:
            parts = [self._bernstein(line, self.log.place == place, level) for place in places]
            there = [part for part in parts if part is not None]
            value, low, high = (sum(getattr(part, end) for part in there) for end in ("value", "low", "high"))
            found = Interval(value, low, high, self.level, "empirical Bernstein, all positions at once")
            bernstein.append(found if len(there) == len(parts) else None)
        return self._estimates(_ratio(self.sums).sum(2), _ratio(self.draws).sum(2), bernstein)

    def _bernstein(self, line: Contributions, rows: np.ndarray, level: float) -> Interval | None:
        if line.span is None or not self.independent:
            return None
        found = empirical_bernstein(line.numerator[rows], line.span, level)
        if found is None:
            return None
        # What a row brings may be far outside the rewards, but no policy earns more or less than they are.
        low, high = np.clip([found.low, found.high], *self.log.reward_range).tolist()
        return replace(found, low=low, high=high)

    def _estimates(
        self, values: np.ndarray, draws: np.ndarray, bernstein: Sequence[Interval | None]
    ) -> tuple[Estimate, ...]:
        """Args: values [1, E], draws [D, E]."""
        gains, drawn_gains = values - values[:, :1], draws - draws[:, :1]
        return tuple(
            Estimate(
                line.estimator,
                _number(values[0, i]),
                self._bootstrap(values[0, i], draws[:, i]),
                bernstein[i],
                None if line.estimator == LOGGED else _number(gains[0, i]),
                None if line.estimator == LOGGED else self._bootstrap(gains[0, i], drawn_gains[:, i]),
            )
            for i, line in enumerate(self.lines)
        )

    def _bootstrap(self, value: float, draws: np.ndarray) -> Interval | None:
        if not np.isfinite(value) or not np.isfinite(draws).all():
            return None
        by = "row" if self.independent else "group"
        return percentile_interval(float(value), draws, self.level, f"percentile bootstrap by {by}")


def _ratio(sums: np.ndarray) -> np.ndarray:
    """Numerators over denominators, which are the second axis; NaN where a denominator is 0."""
    numerator, denominator = sums[:, 0], sums[:, 1]
    out = np.full(numerator.shape, np.nan)
    np.divide(numerator, denominator, out=out, where=denominator > 0)
    return out


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
