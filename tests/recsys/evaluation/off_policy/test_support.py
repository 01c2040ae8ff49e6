"""Thin support is seen and said; good support is silent."""

import json

import numpy as np
import pytest

from recsys.evaluation.off_policy import BanditLog, TargetPolicy, assign_folds, evaluate_policy, support_of
from tests.recsys.evaluation.off_policy.bandits import bandit


def test_good_support_is_silent():
    log, target = bandit().sample(5000, np.random.default_rng(0))
    assert support_of(log, target).warnings() == []


def uniform_log(rows=4000, actions=50, rate=0.3):
    rng = np.random.default_rng(0)
    return BanditLog(
        rng.integers(0, actions, rows), rng.random(rows) < rate, np.full(rows, 1 / actions), actions=actions
    )


def greedy(log, action):
    chances = np.zeros((len(log), log.actions))
    chances[:, action] = 1
    return TargetPolicy.of(log, chances)


def test_few_rows_speak_for_a_policy_that_does_one_thing():
    log = uniform_log()
    found = support_of(log, greedy(log, 3))
    shown = int((log.action == 3).sum())
    assert found.effective_rows == pytest.approx(shown)
    assert found.effective_share == pytest.approx(shown / len(log))
    assert found.zero_weight_rows == len(log) - shown
    assert found.rewarded_rows == pytest.approx(log.reward[log.action == 3].sum())
    assert any("thin support: 4,000 rows tell as much as" in text for text in found.warnings())
    assert any("few rewards" in text for text in found.warnings())


def test_what_was_never_shown_is_missed_by_the_weights():
    log = uniform_log(actions=4)
    log = log.take(log.action != 2)
    target = TargetPolicy.of(log, np.tile([0.1, 0.1, 0.6, 0.2], (len(log), 1)))
    found = support_of(log, target)
    assert found.unseen_mass == pytest.approx(0.6)
    assert found.unseen_actions == 1
    said = " ".join(found.warnings())
    assert "60.0% of its choices to actions that the log never shows" in said
    assert "the mean weight is" in said


def test_an_action_shown_at_another_position_only_is_unseen_there():
    log = BanditLog(
        np.array([0, 1, 1]), np.ones(3), np.full(3, 0.5), actions=2, position=np.array([0, 0, 1]), positions=2
    )
    found = support_of(log, TargetPolicy.of(log, np.full((3, 2), 0.5)))
    assert found.unseen_mass == pytest.approx(0.5 / 3)
    assert found.unseen_actions == 1


def test_one_row_that_carries_all_and_clipping_are_said():
    log = BanditLog(np.zeros(400, dtype=int), np.ones(400), np.r_[1e-4, np.full(399, 0.5)], actions=2)
    target = TargetPolicy.of(log, np.full((400, 2), 0.5))
    assert any("one row carries 92.6% of all weight" in text for text in support_of(log, target).warnings())
    clipped = support_of(log, target, clip=2.0)
    assert clipped.clipped_rows == 1
    assert any("1 weights were clipped" in text for text in clipped.warnings())


def test_wrong_propensities_show_in_the_mean_weight():
    log, target = bandit().sample(5000, np.random.default_rng(0))
    halved = BanditLog(log.action, log.reward, log.propensity / 2, log.actions)
    assert any("should be 1" in text for text in support_of(halved, target).warnings())


def test_all_figures_are_json():
    log, target = bandit().sample(200, np.random.default_rng(0))
    found = json.loads(json.dumps(evaluate_policy(log, target, draws=100).to_json(), allow_nan=False))
    assert [line["estimator"] for line in found["estimates"]] == ["logged", "ips", "snips", "dm", "dr", "switch-dr"]
    one = evaluate_policy(log.take(slice(0, 1)), TargetPolicy(target.taken[:1], target.mass, target.largest), draws=100)
    json.dumps(one.to_json(), allow_nan=False)


def test_folds_keep_groups_together():
    group = np.random.default_rng(0).integers(0, 40, 500)
    fold = assign_folds(500, 5, seed=1, group=group)
    assert all(len(set(fold[group == g])) == 1 for g in range(40))
    assert sorted(set(fold)) == [0, 1, 2, 3, 4]
    assert (assign_folds(500, 5, seed=1, group=group) == fold).all()
    assert not (assign_folds(500, 5, seed=2, group=group) == fold).all()
