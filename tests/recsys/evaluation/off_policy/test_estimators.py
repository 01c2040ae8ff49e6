"""Estimators: their formulas row by row, what must hold of them, and the truth where it is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.errors import ConfigError, DataError
from recsys.evaluation.off_policy import (
    BanditLog,
    TargetPolicy,
    direct_method,
    doubly_robust,
    effective_sample_size,
    importance_weights,
    ips,
    self_normalised_ips,
    switch_doubly_robust,
)
from tests.recsys.evaluation.off_policy.bandits import bandit

METHODS = (ips, self_normalised_ips, direct_method, doubly_robust)


def random_case(seed, rows=30, actions=4, positions=3):
    rng = np.random.default_rng(seed)
    log = BanditLog(
        rng.integers(0, actions, rows),
        rng.integers(0, 2, rows),
        rng.uniform(0.05, 1, rows),
        actions=actions,
        position=rng.integers(0, positions, rows),
        positions=positions,
    )
    probabilities = rng.dirichlet(np.ones(actions), (rows, positions)).transpose(0, 2, 1)
    return log, probabilities, rng.random((rows, actions, positions))


@given(seed=st.integers(0, 10_000), clip=st.floats(0.1, 5), switch=st.floats(0, 5))
@settings(max_examples=30)
def test_formulas_row_by_row(seed, clip, switch):
    log, pi, q = random_case(seed)
    target = TargetPolicy.of(log, pi, q)
    weights, dm, error = [], [], []
    for i in range(len(log)):
        a, k = log.action[i], log.place[i]
        weights.append(pi[i, a, k] / log.propensity[i])
        dm.append(sum(pi[i, b, k] * q[i, b, k] for b in range(log.actions)))
        error.append(log.reward[i] - q[i, a, k])
    w, dm, error = np.array(weights), np.array(dm), np.array(error)
    cut = np.minimum(w, clip)
    assert ips(log, target).value == pytest.approx(np.mean(w * log.reward))
    assert ips(log, target, clip=clip).value == pytest.approx(np.mean(cut * log.reward))
    assert self_normalised_ips(log, target).value == pytest.approx(np.sum(w * log.reward) / np.sum(w))
    assert direct_method(log, target).value == pytest.approx(np.mean(dm))
    assert doubly_robust(log, target).value == pytest.approx(np.mean(dm + w * error))
    assert doubly_robust(log, target, clip=clip).value == pytest.approx(np.mean(dm + cut * error))
    kept = np.where(w <= switch, w, 0)
    assert switch_doubly_robust(log, target, switch=switch).value == pytest.approx(np.mean(dm + kept * error))
    assert effective_sample_size(w) == pytest.approx(w.sum() ** 2 / (w**2).sum())


@given(seed=st.integers(0, 10_000), clip=st.none() | st.floats(0.1, 5), switch=st.floats(0, 5))
@settings(max_examples=30)
def test_contributions_lie_within_their_bounds(seed, clip, switch):
    log, pi, q = random_case(seed)
    target = TargetPolicy.of(log, pi, q)
    found = [ips(log, target, clip=clip), doubly_robust(log, target, clip=clip), direct_method(log, target)]
    for line in (*found, switch_doubly_robust(log, target, switch=switch)):
        low, high = line.span
        assert line.numerator.min() >= low - 1e-12
        assert line.numerator.max() <= high + 1e-12


def test_a_policy_on_its_own_log_earns_what_was_logged():
    rng = np.random.default_rng(0)
    pi = rng.dirichlet(np.ones(5), 200)
    action = rng.integers(0, 5, 200)
    log = BanditLog(action, rng.integers(0, 2, 200), pi[np.arange(200), action], actions=5)
    target = TargetPolicy.of(log, pi)
    assert importance_weights(log, target).values == pytest.approx(np.ones(200))
    assert ips(log, target).value == pytest.approx(log.reward.mean())
    assert self_normalised_ips(log, target).value == pytest.approx(log.reward.mean())


def test_switching_lies_between_the_direct_method_and_doubly_robust():
    log, pi, q = random_case(1)
    target = TargetPolicy.of(log, pi, q)
    assert switch_doubly_robust(log, target, switch=0.0).value == direct_method(log, target).value
    assert switch_doubly_robust(log, target, switch=np.inf).value == doubly_robust(log, target).value


def test_self_normalised_ips_moves_with_the_rewards_and_ips_does_not():
    log, pi, _ = random_case(2)
    higher = BanditLog(
        log.action, log.reward + 1, log.propensity, log.actions, log.position, log.positions, reward_range=(0, 2)
    )
    of_log, of_higher = (TargetPolicy.of(one, pi) for one in (log, higher))
    assert self_normalised_ips(higher, of_higher).value == pytest.approx(self_normalised_ips(log, of_log).value + 1)
    assert ips(higher, of_higher).value != pytest.approx(ips(log, of_log).value + 1, abs=1e-3)


def test_a_right_model_makes_doubly_robust_right_whatever_the_propensities():
    world = bandit()
    context = np.repeat(np.arange(6), 4)
    action = np.tile(np.arange(4), 6)
    # Rewards that are what the model says, propensities that are nonsense.
    log = BanditLog(action, world.clicks[context, action], np.full(24, 0.9), actions=4)
    target = TargetPolicy.of(log, world.evaluated[context], world.clicks[context])
    assert doubly_robust(log, target).value == pytest.approx(world.value)
    assert ips(log, target).value != pytest.approx(world.value, abs=0.02)


def test_known_truth():
    world = bandit()
    log, target = world.sample(200_000, np.random.default_rng(0))
    for line in (ips(log, target), doubly_robust(log, target), switch_doubly_robust(log, target, switch=50.0)):
        error = line.numerator.std() / np.sqrt(len(log))
        assert abs(line.value - world.value) < 4 * error
        assert error < 0.003
    assert self_normalised_ips(log, target).value == pytest.approx(world.value, abs=0.006)
    # The model is wrong, and the direct method with it; mended it is not.
    wrong = float((world.evaluated * world.guess).sum(1).mean())
    assert direct_method(log, target).value == pytest.approx(wrong, abs=0.002)
    assert abs(wrong - world.value) > 0.01


def test_clipping_makes_ips_too_low_and_never_by_more_than_it_cuts():
    log, target = bandit().sample(5000, np.random.default_rng(1))
    raw = importance_weights(log, target).values
    values = [ips(log, target, clip=clip).value for clip in (0.5, 1.0, 2.0, 100.0)]
    assert values == sorted(values)
    assert values[-1] == ips(log, target).value
    lost = np.mean(np.maximum(raw - 1.0, 0) * log.reward)
    assert values[1] == pytest.approx(values[-1] - lost)


def test_parts_of_a_log_are_the_whole():
    log, pi, q = random_case(3)
    halves = [slice(0, 11), slice(11, None)]
    joined = TargetPolicy.concat([TargetPolicy.of(log.take(part), pi[part], q[part]) for part in halves])
    whole = TargetPolicy.of(log, pi, q)
    for method in METHODS:
        assert method(log, joined).value == method(log, whole).value
    assert joined.mass == pytest.approx(whole.mass)
    assert joined.largest == whole.largest


def test_a_policy_that_is_the_same_at_every_position_needs_no_third_axis():
    log, pi, _ = random_case(4)
    flat = pi[:, :, 0]
    assert ips(log, TargetPolicy.of(log, flat)).value == pytest.approx(
        ips(log, TargetPolicy.of(log, np.repeat(flat[:, :, None], 3, axis=2))).value
    )


def columns(**changes):
    good = {
        "action": np.array([0, 1, 1]),
        "reward": np.array([1.0, 0.0, 1.0]),
        "propensity": np.array([0.5, 0.5, 1.0]),
    }
    return good | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"propensity": np.array([0.5, 0.0, 1.0])}, "propensity is not above 0 in 1 of 3 rows. Found: 0.0"),
        ({"propensity": np.array([0.5, -0.1, 1.0])}, "propensity is not above 0"),
        ({"propensity": np.array([0.5, 1.1, 1.0])}, "propensity is above 1 in 1 of 3 rows. Found: 1.1"),
        ({"propensity": np.array([0.5, np.nan, 1.0])}, "propensity is missing"),
        ({"reward": np.array([np.nan, 0, 1])}, "reward is missing"),
        ({"reward": np.array([2.0, 0, 1])}, "reward is out of range in 1 of 3 rows. Found: 2.0. Expected: 0 to 1"),
        ({"action": np.array([0, 1, 2])}, "action is out of range in 1 of 3 rows. Found: 2.0"),
        ({"action": np.array([0, 1, -1])}, "action is out of range"),
        ({"action": np.array([0, 0.5, 1])}, "action is out of range"),
        ({"action": np.array([0, 5, 1]), "reward": np.array([7.0, 0, 1])}, "and 1 more kinds of bad rows"),
        ({"position": np.array([0, 1, 0])}, "position is out of range"),
        ({"reward": np.array([1.0, 0.0])}, "not equally long"),
        ({"action": np.array([]), "reward": np.array([]), "propensity": np.array([])}, "there is no row"),
    ],
)
def test_bad_rows_are_refused(changes, message):
    with pytest.raises(DataError) as error:
        BanditLog(**columns(**changes), actions=2)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("probabilities", "message"),
    [
        ([[0.5, 0.6]] * 3, "do not sum to 1 in 3 rows. Found: 1.1 in row 0"),
        ([[0.5, 0.5], [0.5, 0.5], [1.5, -0.5]], "negative or not finite in 1 rows. Found: row 2"),
        ([[0.5, 0.5], [np.nan, 0.5], [0.5, 0.5]], "negative or not finite in 1 rows. Found: row 1"),
        ([[0.5, 0.5]] * 2, "the shape is not that of the log"),
        ([[0.5, 0.5, 0.0]] * 3, "the shape is not that of the log"),
    ],
)
def test_bad_policies_are_refused(probabilities, message):
    with pytest.raises(DataError) as error:
        TargetPolicy.of(BanditLog(**columns(), actions=2), np.array(probabilities))
    assert message in str(error.value)


def test_other_bad_input():
    log = BanditLog(**columns(), actions=2)
    even = np.full((3, 2), 0.5)
    with pytest.raises(DataError, match="guess is missing or out of range in 1 rows"):
        TargetPolicy.of(log, even, np.array([[0.5, 0.5], [0.5, np.nan], [0.5, 0.5]]))
    target = TargetPolicy.of(log, even)
    with pytest.raises(DataError, match="needs a reward model"):
        doubly_robust(log, target)
    with pytest.raises(ConfigError, match="clip"):
        ips(log, target, clip=0.0)
    with pytest.raises(ConfigError, match="switch"):
        switch_doubly_robust(log, TargetPolicy.of(log, even, even), switch=-1.0)
    with pytest.raises(DataError, match="above what was said to be the largest"):
        ips(log, target, max_weight=0.9)


def test_nothing_in_common_is_zero_for_ips_and_undefined_when_normalised():
    log = BanditLog(np.array([0, 0]), np.array([1, 1]), np.array([0.5, 0.5]), actions=2)
    target = TargetPolicy.of(log, np.array([[0.0, 1.0]] * 2))
    assert ips(log, target).value == 0.0
    assert self_normalised_ips(log, target).value is None
