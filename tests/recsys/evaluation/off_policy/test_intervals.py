"""Intervals: their formulas, what they are drawn from, and how often they hold the truth."""

import numpy as np
import pytest

from features.errors import ConfigError, DataError
from recsys.evaluation.bootstrap import percentile_interval, resampled_sums
from recsys.evaluation.off_policy import BanditLog, TargetPolicy, empirical_bernstein, evaluate_policy
from tests.recsys.evaluation.off_policy.bandits import bandit


def test_empirical_bernstein_is_the_formula():
    values = np.random.default_rng(0).random(50) * 4 - 1
    found = empirical_bernstein(values, (-1.0, 3.0), 0.9)
    # Maurer and Pontil 2009, Theorem 4, for values scaled to [0, 1] and either side with d = 0.05.
    scaled, n, log_term = (values + 1) / 4, 50, np.log(2 / 0.05)
    half = np.sqrt(2 * scaled.var(ddof=1) * log_term / n) + 7 * log_term / (3 * (n - 1))
    assert found.low == pytest.approx(max(-1.0, values.mean() - 4 * half))
    assert found.high == pytest.approx(min(3.0, values.mean() + 4 * half))


def test_empirical_bernstein_covers_where_the_bootstrap_cannot():
    # 1 of 1,000 rows has all the value: most samples of 300 hold none of it.
    rng = np.random.default_rng(0)
    held = {"bootstrap": 0, "bernstein": 0}
    for trial in range(200):
        values = (rng.random(300) < 0.001) * 1.0
        draws = resampled_sums(values[:, None], 100, trial)[:, 0] / 300
        boot = percentile_interval(float(values.mean()), draws, 0.95, "bootstrap")
        sure = empirical_bernstein(values, (0, 1), 0.95)
        held["bootstrap"] += boot.low <= 0.001 <= boot.high
        held["bernstein"] += sure.low <= 0.001 <= sure.high
    assert held["bernstein"] == 200
    assert held["bootstrap"] < 80


def test_values_outside_their_bounds_are_refused():
    with pytest.raises(DataError, match="outside its bounds"):
        empirical_bernstein(np.array([0.0, 2.0]), (0.0, 1.0), 0.95)
    assert empirical_bernstein(np.array([0.5]), (0.0, 1.0), 0.95) is None


def test_resampled_sums_are_those_of_whole_numbers_of_rows():
    columns = np.array([[1.0, 1.0], [10.0, 1.0], [100.0, 1.0]])
    sums = resampled_sums(columns, 500, seed=3)
    assert (sums[:, 1] == 3).all()
    digits = np.stack([sums[:, 0] % 10, sums[:, 0] // 10 % 10, sums[:, 0] // 100], axis=1)
    assert (digits.sum(1) == 3).all()
    assert digits.mean(0) == pytest.approx([1, 1, 1], abs=0.15)
    assert (resampled_sums(columns, 500, seed=3) == sums).all()
    assert not (resampled_sums(columns, 500, seed=4) == sums).all()


def test_groups_are_drawn_whole():
    columns = np.array([[1.0], [2.0], [10.0], [20.0]])
    sums = resampled_sums(columns, 300, seed=0, group=np.array(["a", "a", "b", "b"]))
    assert set(sums[:, 0].tolist()) == {6.0, 33.0, 60.0}


def test_copies_of_rows_fool_the_bootstrap_of_rows_and_not_that_of_groups():
    log, target = bandit().sample(300, np.random.default_rng(0))
    copies = np.repeat(np.arange(300), 9)
    many = log.take(copies)
    copied = TargetPolicy(
        target.taken[copies], target.mass * 9, target.largest, target.expected[copies], target.predicted[copies]
    )
    once = evaluate_policy(log, target).estimates[1].interval
    fooled = evaluate_policy(many, copied).estimates[1]
    by_group = evaluate_policy(many, copied, group=copies).estimates[1]
    width = once.high - once.low
    assert fooled.interval.high - fooled.interval.low == pytest.approx(width / 3, rel=0.1)
    assert by_group.interval.high - by_group.interval.low == pytest.approx(width, rel=0.1)
    # Rows that hang together are no independent values.
    assert fooled.bernstein is not None
    assert by_group.bernstein is None


def slates(rows=3000, seed=0):
    rng = np.random.default_rng(seed)
    log = BanditLog(
        rng.integers(0, 4, rows),
        rng.integers(0, 2, rows),
        np.full(rows, 0.25),
        actions=4,
        position=rng.choice(3, rows, p=[0.5, 0.3, 0.2]),
        positions=3,
    )
    return log, TargetPolicy.of(log, rng.dirichlet(np.ones(4), rows), rng.random((rows, 4)))


def test_positions_and_slates():
    log, target = slates()
    found = evaluate_policy(log, target, draws=500)
    for i, line in enumerate(found.slate):
        alone = []
        for place in range(3):
            rows = log.place == place
            part = BanditLog(log.action[rows], log.reward[rows], log.propensity[rows], actions=4)
            there = TargetPolicy(
                target.taken[rows],
                target.mass[[place]],
                target.largest,
                target.expected[rows],
                target.predicted[rows],
            )
            alone.append(evaluate_policy(part, there, draws=500).estimates[i])
            assert found.by_position[place][i].value == pytest.approx(alone[-1].value)
            if alone[-1].bernstein is not None:
                ours = found.by_position[place][i].bernstein
                # The bound of a weight is that of the whole log.
                assert (ours.low, ours.high) == pytest.approx((alone[-1].bernstein.low, alone[-1].bernstein.high))
        assert line.value == pytest.approx(sum(one.value for one in alone))
        # Positions are independent: variances add.
        widths = [one.interval.high - one.interval.low for one in alone]
        assert line.interval.high - line.interval.low == pytest.approx(np.sqrt(np.sum(np.square(widths))), rel=0.15)
    one = BanditLog(log.action, log.reward, log.propensity, actions=4)
    flat = TargetPolicy(target.taken, target.mass.sum(0, keepdims=True), target.largest)
    assert evaluate_policy(one, flat, draws=100).slate == ()


def test_the_gain_is_over_what_was_logged_and_its_interval_knows_what_both_share():
    log, target = bandit().sample(4000, np.random.default_rng(2))
    found = {line.estimator: line for line in evaluate_policy(log, target).estimates}
    assert list(found) == ["logged", "ips", "snips", "dm", "dr", "switch-dr"]
    assert found["logged"].value == pytest.approx(log.reward.mean())
    assert found["logged"].gain is None
    assert found["dr"].gain == pytest.approx(found["dr"].value - log.reward.mean())
    # A policy that does as the logger did gains nothing, for certain.
    own = TargetPolicy(log.propensity, target.mass, 1.0)
    same = evaluate_policy(log, own).estimates[1]
    assert (same.gain, same.gain_interval.low, same.gain_interval.high) == pytest.approx((0, 0, 0), abs=1e-12)


def test_empirical_bernstein_ends_where_a_policy_can_earn_no_more():
    log, target = slates(rows=60)
    found = evaluate_policy(log, target, draws=100)
    for line in found.estimates:
        assert line.bernstein is None or 0 <= line.bernstein.low <= line.bernstein.high <= 1
    ends = [(line.bernstein.low, line.bernstein.high) for line in found.slate if line.bernstein is not None]
    assert all(0 <= low <= high <= 3 for low, high in ends)
    # 60 rows and weights of up to 4 say nothing: the whole range is left.
    assert (0.0, 3.0) in ends


def test_no_interval_where_a_draw_has_no_value():
    log = BanditLog(np.array([0, 0, 1]), np.array([1, 0, 1]), np.full(3, 0.5), actions=2)
    found = evaluate_policy(log, TargetPolicy.of(log, np.array([[0.0, 1.0]] * 3)))
    snips = found.estimates[2]
    assert snips.value == 1.0
    assert snips.interval is None
    assert found.estimates[1].interval is not None


@pytest.mark.parametrize(("change", "field"), [({"level": 1.0}, "level"), ({"draws": 20}, "draws")])
def test_levels_that_cannot_be(change, field):
    log, target = bandit().sample(50, np.random.default_rng(0))
    with pytest.raises(ConfigError, match=field):
        evaluate_policy(log, target, **change)


@pytest.mark.slow
def test_nominal_95_percent_intervals_cover():
    """1,000 simulated logs of 1,500 rows; the reward model is wrong, and fitted on none of them."""
    world, sets = bandit(), 1000
    held = dict.fromkeys(("ips", "snips", "dr", "switch-dr"), 0)
    sure = dict.fromkeys(("ips", "dr", "switch-dr"), 0)
    for seed in range(sets):
        log, target = world.sample(1500, np.random.default_rng(seed))
        # No weight is above the threshold: switch-DR is without bias.
        for line in evaluate_policy(log, target, switch=50.0, draws=1000, seed=seed).estimates:
            if line.estimator in held:
                held[line.estimator] += line.interval.low <= world.value <= line.interval.high
            if line.estimator in sure:
                sure[line.estimator] += line.bernstein.low <= world.value <= line.bernstein.high
    print(f"coverage of 95 % intervals over {sets:,} logs: bootstrap {held}, empirical Bernstein {sure}")
    assert all(0.93 <= count / sets <= 0.97 for count in held.values())
    assert all(count / sets >= 0.95 for count in sure.values())
