"""Policies that fill a slate: the chance that an action comes to stand at each position, none of them twice."""

from __future__ import annotations

import numpy as np

from features.errors import ConfigError
from recsys.evaluation.off_policy.policies import check_epsilon, check_temperature

MOST_POSITIONS = 3
"""Of `plackett_luce`, whose work grows with actions to the power of positions - 1."""
_SPREAD = 600.0
"""Largest difference of scores in units of the temperature that fp64 still tells from 0."""


def plackett_luce(scores: np.ndarray, temperature: float, positions: int) -> np.ndarray:
    """Positions filled one after the other by softmax over the actions that are left.

    `P(a at 1) = p_a`,  `P(b at 2) = sum_{a != b} p_a p_b / (1 - p_a)`, and so on: exact, not sampled (Plackett, "The
    Analysis of Permutations", Applied Statistics 1975).

    Args:
        scores: [N, K].
        temperature: Above 0.
        positions: P, from 1 to 3.

    Returns:
        [N, K, P]; sums to 1 over the actions.

    Raises:
        ConfigError: The temperature is not above 0, or so low that most chances vanish; or there are more positions
            than 3 or than actions.

    >>> plackett_luce(np.log([[0.5, 0.3, 0.2]]), 1.0, 2).round(4).tolist()
    [[[0.5, 0.3393], [0.3, 0.375], [0.2, 0.2857]]]
    """
    check_temperature(temperature)
    _check_positions(scores, positions)
    if positions > MOST_POSITIONS:
        raise ConfigError(
            "too many positions for a softmax slate",
            field="positions",
            found=positions,
            expected=f"at most {MOST_POSITIONS}",
            mend="use an epsilon-greedy slate",
        )
    exponents = (scores - scores.max(1, keepdims=True)) / temperature
    if exponents.min() < -_SPREAD:
        raise ConfigError(
            "the temperature is too low for these scores",
            field="temperature",
            found=temperature,
            expected=f"at least {temperature * -exponents.min() / _SPREAD:.3g}",
            mend="use an epsilon-greedy slate with epsilon 0 to always show the best",
        )
    powers = np.exp(exponents)
    first = powers / powers.sum(1, keepdims=True)
    out = [first]
    if positions > 1:
        out.append(_second(powers, first))
    if positions > 2:
        third = np.zeros_like(first)
        for action in range(scores.shape[1]):
            left = powers.copy()
            left[:, action] = 0
            third += first[:, [action]] * _second(left, left / left.sum(1, keepdims=True))
        out.append(third)
    return np.stack(out, axis=2)


def epsilon_greedy_slate(scores: np.ndarray, epsilon: float, positions: int) -> np.ndarray:
    """The best actions in order, but with probability epsilon a slate of all actions at random.

    `P(a at k) = (1 - e) 1{a is the k-th best} + e / K`; of equally good actions the first is the better.

    Args:
        scores: [N, K].
        epsilon: From 0 to 1.
        positions: P.

    Returns:
        [N, K, P]; sums to 1 over the actions.

    Raises:
        ConfigError: Epsilon is not a probability, or there are more positions than actions.

    >>> epsilon_greedy_slate(np.array([[0.2, 0.9, 0.5]]), 0.3, 2).round(6).tolist()
    [[[0.1, 0.1], [0.8, 0.1], [0.1, 0.8]]]
    """
    check_epsilon(epsilon)
    _check_positions(scores, positions)
    best = np.argsort(-scores, axis=1, kind="stable")[:, :positions]
    chances = np.full((*scores.shape, positions), epsilon / scores.shape[1])
    rows, places = np.arange(len(scores))[:, None], np.arange(positions)[None, :]
    chances[rows, best, places] += 1 - epsilon
    return chances


def _second(powers: np.ndarray, first: np.ndarray) -> np.ndarray:
    return powers * _sum_of_others(first / _sum_of_others(powers))


def _sum_of_others(values: np.ndarray) -> np.ndarray:
    """[N, K]: the row's sum without the entry itself, added from both sides: a difference would lose small numbers."""
    none = np.zeros((len(values), 1))
    before = np.cumsum(np.concatenate([none, values[:, :-1]], axis=1), axis=1)
    after = np.cumsum(np.concatenate([none, values[:, :0:-1]], axis=1), axis=1)[:, ::-1]
    others: np.ndarray = before + after
    return others


def _check_positions(scores: np.ndarray, positions: int) -> None:
    if not 1 <= positions <= scores.shape[1]:
        raise ConfigError(
            "the slate has no such length",
            field="positions",
            found=positions,
            expected=f"1 to {scores.shape[1]}, the number of actions",
        )
