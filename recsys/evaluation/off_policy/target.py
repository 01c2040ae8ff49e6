"""What the evaluated policy and a reward model say of the rows of a log: a few numbers a row, for any actions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from features.errors import DataError
from recsys.evaluation.off_policy.log import BanditLog

SUM_TOLERANCE = 1e-5
"""How far the probabilities of a row may be from 1 together; probabilities in fp32 are within it."""


@dataclass(frozen=True)
class TargetPolicy:
    """The evaluated policy pi on N logged rows, with the guess q of a reward model if there is one."""

    taken: np.ndarray
    """[N]: pi(a_i | x_i), the chance it gives to the action that was logged."""
    mass: np.ndarray
    """[P, K]: its chances, summed over the rows of a position."""
    largest: float
    """The largest chance it gives to any action in any row."""
    expected: np.ndarray | None = None
    """[N]: sum over a of pi(a | x_i) q(x_i, a); None without a reward model."""
    predicted: np.ndarray | None = None
    """[N]: q(x_i, a_i); None without a reward model."""

    @classmethod
    def of(cls, log: BanditLog, probabilities: np.ndarray, rewards: np.ndarray | None = None) -> TargetPolicy:
        """Reduces what was computed for every action.

        Args:
            log: N rows, K actions, P positions.
            probabilities: [N, K] or [N, K, P], of the evaluated policy; they sum to 1 over the actions.
            rewards: [N, K] or [N, K, P], the reward model's; None if there is none.

        Raises:
            DataError: The shape is wrong; probabilities are negative, not finite, or do not sum to 1; or rewards are
                not finite or outside the range of rewards.

        >>> log = BanditLog(np.array([1]), np.array([1]), np.array([0.5]), actions=2)
        >>> policy = TargetPolicy.of(log, np.array([[0.25, 0.75]]), np.array([[0.2, 0.4]]))
        >>> policy.taken.tolist(), policy.expected.round(3).tolist(), policy.predicted.tolist()
        ([0.75], [0.35], [0.4])
        """
        chances = np.asarray(log.at_place(probabilities), dtype=np.float64)
        _check_probabilities(chances)
        every = np.arange(len(log))
        mass = np.zeros((log.positions, log.actions))
        np.add.at(mass, log.place, chances)
        taken, largest = chances[every, log.action], float(chances.max())
        if rewards is None:
            return cls(taken, mass, largest)
        guesses = np.asarray(log.at_place(rewards), dtype=np.float64)
        _check_rewards(guesses, log.reward_range)
        return cls(taken, mass, largest, (chances * guesses).sum(1), guesses[every, log.action])

    @classmethod
    def concat(cls, parts: Sequence[TargetPolicy]) -> TargetPolicy:
        """Parts of a log, in order; either all have a reward model or none has."""

        def joined(columns: Sequence[np.ndarray | None]) -> np.ndarray | None:
            there = [column for column in columns if column is not None]
            return np.concatenate(there) if there else None

        return cls(
            np.concatenate([part.taken for part in parts]),
            np.sum([part.mass for part in parts], axis=0),
            max(part.largest for part in parts),
            joined([part.expected for part in parts]),
            joined([part.predicted for part in parts]),
        )

    def model(self) -> tuple[np.ndarray, np.ndarray]:
        """(expected, predicted) of the reward model.

        Raises:
            DataError: There is none.
        """
        if self.expected is None or self.predicted is None:
            raise DataError("this estimator needs a reward model", field="rewards", mend="give the rewards it expects")
        return self.expected, self.predicted


def _check_probabilities(chances: np.ndarray) -> None:
    wrong = ~np.isfinite(chances).all(1) | (chances < 0).any(1)
    if wrong.any():
        raise DataError(
            f"a probability of the evaluated policy is negative or not finite in {int(wrong.sum()):,} rows",
            field="probabilities",
            found=f"row {int(wrong.argmax())}",
            expected="numbers from 0 to 1",
        )
    sums = chances.sum(1)
    wrong = np.abs(sums - 1) > SUM_TOLERANCE
    if wrong.any():
        row = int(wrong.argmax())
        raise DataError(
            f"the probabilities of the evaluated policy do not sum to 1 in {int(wrong.sum()):,} rows",
            field="probabilities",
            found=f"{sums[row]:.6g} in row {row}",
            expected="1 over the actions of every row",
        )


def _check_rewards(guesses: np.ndarray, reward_range: tuple[float, float]) -> None:
    low, high = reward_range
    with np.errstate(invalid="ignore"):
        wrong = ~((guesses >= low) & (guesses <= high)).all(1)
    if wrong.any():
        raise DataError(
            f"the reward model's guess is missing or out of range in {int(wrong.sum()):,} rows",
            field="rewards",
            found=f"row {int(wrong.argmax())}",
            expected=f"{low:g} to {high:g}",
        )
