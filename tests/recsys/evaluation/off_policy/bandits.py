"""A bandit whose truth is known: what any policy earns in it is a sum, not an estimate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recsys.evaluation.off_policy import BanditLog, TargetPolicy, softmax


@dataclass(frozen=True)
class Bandit:
    """C contexts, all alike in frequency, K actions."""

    clicks: np.ndarray
    """[C, K]: the chance of a click."""
    logging: np.ndarray
    """[C, K]: the logging policy."""
    evaluated: np.ndarray
    """[C, K]: the evaluated policy."""
    guess: np.ndarray
    """[C, K]: a reward model, which is wrong and was fitted on no log."""

    @property
    def value(self) -> float:
        """What the evaluated policy earns a row."""
        return float((self.evaluated * self.clicks).sum(1).mean())

    def sample(self, rows: int, rng: np.random.Generator) -> tuple[BanditLog, TargetPolicy]:
        """A log, and the evaluated policy on it."""
        context = rng.integers(0, len(self.clicks), rows)
        below = rng.random(rows)[:, None] >= np.cumsum(self.logging, axis=1)[context][:, :-1]
        action = below.sum(1)
        reward = (rng.random(rows) < self.clicks[context, action]).astype(float)
        log = BanditLog(action, reward, self.logging[context, action], actions=self.clicks.shape[1])
        return log, TargetPolicy.of(log, self.evaluated[context], self.guess[context])


def bandit(contexts: int = 6, actions: int = 4) -> Bandit:
    """Both policies show everything, at most 10 times as often as the other."""
    c, a = np.arange(contexts)[:, None], np.arange(actions)[None, :]
    clicks = 0.1 + 0.5 * ((c * 5 + a * 7) % 11) / 11
    logging = softmax((c * 3 + a * 5) % 7 / 4.0, 1.0)
    evaluated = softmax(clicks * 4, 0.7)
    guess = np.clip(clicks + 0.15 * np.sin(c + 2.0 * a), 0, 1)
    return Bandit(clicks, logging, evaluated, guess)
