"""Policies sum to 1, follow their formulas, and slates show nothing twice."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.errors import ConfigError
from recsys.evaluation.off_policy import epsilon_greedy, epsilon_greedy_slate, logits, plackett_luce, softmax


def enumerated(weights, positions):
    """[K, P]: by adding up all slates."""
    out = np.zeros((len(weights), positions))
    for slate in permutations(range(len(weights)), positions):
        chance, left = 1.0, list(range(len(weights)))
        for item in slate:
            chance *= weights[item] / sum(weights[left])
            left.remove(item)
        for place, item in enumerate(slate):
            out[item, place] += chance
    return out


@given(seed=st.integers(0, 10_000), actions=st.integers(3, 6), temperature=st.floats(0.2, 3))
@settings(max_examples=25)
def test_plackett_luce_is_the_sum_over_all_slates(seed, actions, temperature):
    scores = np.random.default_rng(seed).normal(size=(3, actions))
    found = plackett_luce(scores, temperature, 3)
    for row in range(3):
        assert found[row] == pytest.approx(enumerated(np.exp(scores[row] / temperature), 3), abs=1e-12)


@pytest.mark.parametrize("temperature", [0.02, 1.0, 50.0])
def test_plackett_luce_is_exact_where_one_action_is_almost_certain(temperature):
    scores = np.array([[10.0, 3.0, 2.9, 0.0, -1.0]])
    found = plackett_luce(scores, temperature, 3)
    assert found.sum(1) == pytest.approx(np.ones((1, 3)), abs=1e-12)
    assert (found >= 0).all()
    assert found.sum(2).max() <= 1 + 1e-12
    if temperature == 0.02:
        # The best stands first; the rest is a softmax of its own.
        left = softmax(scores[:, 1:], temperature)
        assert found[0, 1:, 1] == pytest.approx(left[0], rel=1e-6)


def test_first_position_is_the_softmax_and_the_slate_is_complete():
    scores = np.random.default_rng(1).normal(size=(4, 3))
    found = plackett_luce(scores, 0.5, 3)
    assert found[:, :, 0] == pytest.approx(softmax(scores, 0.5))
    # Three actions at three positions: each is shown exactly once.
    assert found.sum(2) == pytest.approx(np.ones((4, 3)))


@given(seed=st.integers(0, 10_000), epsilon=st.floats(0, 1))
@settings(max_examples=25)
def test_epsilon_greedy(seed, epsilon):
    scores = np.random.default_rng(seed).integers(0, 3, (5, 4)).astype(float)
    found = epsilon_greedy(scores, epsilon)
    assert found.sum(1) == pytest.approx(np.ones(5))
    assert found.min() >= epsilon / 4 - 1e-12
    assert found[scores < scores.max(1, keepdims=True)] == pytest.approx(epsilon / 4)
    slate = epsilon_greedy_slate(scores, epsilon, 4)
    assert slate.sum(1) == pytest.approx(np.ones((5, 4)))
    assert slate.sum(2) == pytest.approx(np.ones((5, 4)))


def test_epsilon_greedy_slate_orders_by_score():
    slate = epsilon_greedy_slate(np.array([[0.1, 0.9, 0.9, 0.5]]), 0.0, 3)
    assert slate[0].argmax(0).tolist() == [1, 2, 3]


def test_temperature_goes_from_greedy_to_all_alike():
    scores = logits(np.array([[0.01, 0.02, 0.05]]))
    assert softmax(scores, 1e-3)[0] == pytest.approx([0, 0, 1])
    assert softmax(scores, 1e6)[0] == pytest.approx([1 / 3] * 3, abs=1e-5)
    odds = np.array([0.01 / 0.99, 0.02 / 0.98, 0.05 / 0.95])
    assert softmax(scores, 1.0)[0] == pytest.approx(odds / odds.sum())


def test_refusals():
    scores = np.array([[0.0, 1.0, 800.0]])
    with pytest.raises(ConfigError, match="temperature is not above 0"):
        softmax(scores, 0.0)
    with pytest.raises(ConfigError, match="too low for these scores"):
        plackett_luce(scores, 1.0, 2)
    with pytest.raises(ConfigError, match="no probability"):
        epsilon_greedy(scores, 1.5)
    with pytest.raises(ConfigError, match="no such length"):
        epsilon_greedy_slate(scores, 0.1, 4)
    with pytest.raises(ConfigError, match="too many positions"):
        plackett_luce(np.zeros((1, 9)), 1.0, 4)
