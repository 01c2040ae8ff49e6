"""Policies made of a model's scores: what a recommender would show that trusts the model so much."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import softmax as _softmax

from features.errors import ConfigError


def logits(probabilities: np.ndarray) -> np.ndarray:
    """Log odds of click probabilities, the scale on which a temperature means the same at every base rate.

    >>> logits(np.array([0.5, 0.9])).round(4).tolist()
    [0.0, 2.1972]
    """
    p = np.clip(np.asarray(probabilities, dtype=np.float64), 1e-15, 1 - 1e-15)
    odds: np.ndarray = np.log(p) - np.log1p(-p)
    return odds


def softmax(scores: np.ndarray, temperature: float) -> np.ndarray:
    """Every action by its score: `pi(a | x) = exp(s_a / t) / sum_b exp(s_b / t)`.

    With log odds as scores and t = 1 an action's chance follows its odds of a click; a small t comes near to always
    showing the best, a large one to showing all alike.

    Args:
        scores: [N, K].
        temperature: Above 0.

    Returns:
        [N, K].

    Raises:
        ConfigError: The temperature is not above 0.

    >>> softmax(np.array([[0.0, np.log(3.0)]]), 1.0).round(6).tolist()
    [[0.25, 0.75]]
    """
    check_temperature(temperature)
    chances: np.ndarray = _softmax(np.asarray(scores, dtype=np.float64) / temperature, axis=1)
    return chances


def epsilon_greedy(scores: np.ndarray, epsilon: float) -> np.ndarray:
    """The best action, but with probability epsilon one of all at random; equally good ones share.

    `pi(a | x) = (1 - e) 1{a is best} / number of best + e / K`

    Args:
        scores: [N, K].
        epsilon: From 0 (always the best) to 1 (all alike).

    Returns:
        [N, K].

    Raises:
        ConfigError: Epsilon is not a probability.

    >>> epsilon_greedy(np.array([[0.1, 0.7, 0.7, 0.2]]), 0.2).round(6).tolist()
    [[0.05, 0.45, 0.45, 0.05]]
    """
    check_epsilon(epsilon)
    best = scores == scores.max(1, keepdims=True)
    chances: np.ndarray = (1 - epsilon) * best / best.sum(1, keepdims=True) + epsilon / scores.shape[1]
    return chances


def check_temperature(temperature: float) -> None:
    """Raises ConfigError unless it is above 0 and finite."""
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ConfigError("the temperature is not above 0", field="temperature", found=temperature)


def check_epsilon(epsilon: float) -> None:
    """Raises ConfigError unless it is a probability."""
    if not 0 <= epsilon <= 1:
        raise ConfigError("epsilon is no probability", field="epsilon", found=epsilon, expected="0 to 1")
