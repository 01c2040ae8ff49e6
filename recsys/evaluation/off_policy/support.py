"""Whether a log can tell about a policy at all: how many rows speak for it, and what it does that was never tried."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np

from recsys.evaluation.off_policy.log import BanditLog
from recsys.evaluation.off_policy.target import TargetPolicy
from recsys.evaluation.off_policy.weights import effective_sample_size, importance_weights

LEAST_SHARE = 0.01
LEAST_ROWS = 100
LEAST_REWARDED = 30
LARGEST_SHARE = 0.05
UNSEEN_MASS = 0.01
MEAN_ERRORS = 4.0


@dataclass(frozen=True)
class Support:
    """How far the log covers the evaluated policy."""

    rows: int
    effective_rows: float
    """Kish's effective sample size of the weights, clipped if they are."""
    effective_share: float
    """The same over the rows."""
    rewarded_rows: float
    """Effective sample size of the weighted rewards: on how many clicks the value rests."""
    largest_weight: float
    """Before clipping."""
    largest_share: float
    """Share of the largest weight, clipped if it is, in the sum of all."""
    mean_weight: float
    """Before clipping; 1 but for chance, if the propensities are right and the log covers the policy."""
    mean_weight_error: float | None
    """Its standard error; None of one row."""
    zero_weight_rows: int
    """Rows showing what the policy would never show."""
    clipped_rows: int
    unseen_mass: float
    """Share of its choices that the policy gives to actions that the log never shows at that position."""
    unseen_actions: int
    """(position, action) pairs to which it gives any."""

    def warnings(self) -> list[str]:
        """What a reader must know before believing an estimate; nothing if the support is good."""
        said = []
        if self.effective_share < LEAST_SHARE or self.effective_rows < LEAST_ROWS:
            said.append(
                f"thin support: {self.rows:,} rows tell as much as {self.effective_rows:,.1f} would "
                f"({self.effective_share:.2%}); the bootstrap may be too narrow"
            )
        if self.rewarded_rows < LEAST_REWARDED:
            said.append(f"few rewards: the weighted rewards tell as much as {self.rewarded_rows:,.1f} equal ones would")
        if self.largest_share > LARGEST_SHARE:
            said.append(
                f"one row carries {self.largest_share:.1%} of all weight (largest weight {self.largest_weight:.4g})"
            )
        if self.unseen_mass > UNSEEN_MASS:
            said.append(
                f"the evaluated policy gives {self.unseen_mass:.1%} of its choices to actions that the log never shows "
                f"there ({self.unseen_actions:,} of them): only the reward model can tell what they bring"
            )
        off = abs(self.mean_weight - 1)
        if self.mean_weight_error is not None and off > max(0.01, MEAN_ERRORS * self.mean_weight_error):
            said.append(
                f"the mean weight is {self.mean_weight:.4g} and should be 1: propensities are wrong, or the logging "
                "policy never shows part of what the evaluated one does"
            )
        if self.clipped_rows:
            said.append(
                f"{self.clipped_rows:,} weights were clipped: IPS is too low by what they lose, others are moved too"
            )
        return said

    def to_json(self) -> dict[str, float | int | None]:
        """All fields."""
        return asdict(self)


def support_of(log: BanditLog, target: TargetPolicy, *, clip: float | None = None) -> Support:
    """Measures the overlap of a log and a policy.

    Args:
        log: N rows.
        target: The evaluated policy on them.
        clip: As the estimators have it.

    >>> log = BanditLog(np.array([0, 0, 1]), np.array([1, 0, 0]), np.full(3, 0.5), actions=3)
    >>> found = support_of(log, TargetPolicy.of(log, np.array([[0.5, 0.25, 0.25]] * 3)))
    >>> found.unseen_mass, found.unseen_actions, found.largest_weight
    (0.25, 1, 1.0)
    """
    raw = importance_weights(log, target).values
    weights = importance_weights(log, target, clip=clip)
    total = float(weights.values.sum())
    shown = np.zeros((log.positions, log.actions), dtype=bool)
    shown[log.place, log.action] = True
    unseen = target.mass[~shown]
    effective = effective_sample_size(weights.values)
    return Support(
        rows=len(log),
        effective_rows=effective,
        effective_share=effective / len(log),
        rewarded_rows=effective_sample_size(weights.values * log.reward),
        largest_weight=float(raw.max()),
        largest_share=float(weights.values.max()) / total if total > 0 else 0.0,
        mean_weight=float(raw.mean()),
        mean_weight_error=float(raw.std(ddof=1)) / math.sqrt(len(log)) if len(log) > 1 else None,
        zero_weight_rows=int((raw == 0).sum()),
        clipped_rows=weights.clipped,
        unseen_mass=float(unseen.sum() / target.mass.sum()),
        unseen_actions=int((unseen > 0).sum()),
    )
