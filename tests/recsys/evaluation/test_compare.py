"""Comparisons: parity with DeLong and with resampling written out, coverage, what may be claimed and what not."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from features.errors import DataError
from recsys.evaluation.compare import METRICS, PairDifference, compare, holm
from recsys.evaluation.divisions import Division
from recsys.evaluation.metrics import auc, evaluate, gauc, row_losses
from recsys.evaluation.paired import paired_auc, paired_logloss
from recsys.evaluation.paired_slices import SliceDifference, compare_slices


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def world(rows: int, seed: int = 0, noise: float = 0.6) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """Labels, two models (`good` sees more than `poor`), and groups of rows that are alike."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, max(rows // 10, 2), rows)
    signal = rng.normal(size=rows) + rng.normal(size=rows)[group] - 1
    labels = (rng.random(rows) < sigmoid(signal)).astype(float)
    poor = sigmoid(signal + noise * rng.normal(size=rows) + noise * rng.normal(size=rows)[group])
    return labels, {"good": sigmoid(signal), "poor": poor}, group


def test_values_are_those_of_evaluate_and_every_metric_finds_the_better_model() -> None:
    labels, scores, group = world(6000)
    weight = np.random.default_rng(1).uniform(0.5, 2, 6000)
    found = compare(labels, scores, weight=weight, group=group, resamples=200)
    assert [d.metric for d in found.differences] == list(METRICS)
    for name, p in scores.items():
        expected = evaluate(labels, p, weight, group)
        for metric in ("auc", "logloss", "normalised_entropy", "calibration_ratio", "gauc"):
            assert found.models[name][metric] == expected[metric]
    for d in found.differences:
        assert d.difference == found.models["good"][d.metric] - found.models["poor"][d.metric]
        assert (d.low > 0 or d.high < 0) == (d.p_value < 0.05)
        assert d.p_value <= d.p_adjusted
    better = {d.metric: d.better for d in found.differences}
    assert better["auc"] == better["logloss"] == better["normalised_entropy"] == better["gauc"] == "good"
    assert "good is better in auc, logloss" in found.verdicts()[0]
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["by"] == "group"


def test_by_row_it_is_delong_and_the_paired_difference_of_losses() -> None:
    labels, scores, _ = world(1500)
    found = compare(labels, scores, resamples=2000)
    delong = paired_auc(labels, scores["good"], scores["poor"])
    area = found.of("auc", "good", "poor")
    assert area is not None
    assert (area.low, area.high) == pytest.approx((delong.low, delong.high), abs=1e-9)
    assert area.method == "DeLong"
    loss, paired = found.of("logloss", "good", "poor"), paired_logloss(labels, scores["good"], scores["poor"])
    assert loss is not None
    assert (loss.low, loss.high) == pytest.approx((paired.low, paired.high), abs=0.08 * (paired.high - paired.low))
    assert found.of("gauc", "good", "poor") is None
    assert (found.by, found.units) == ("row", 1500)


def test_by_group_the_error_is_that_of_whole_groups_drawn_anew() -> None:
    labels, scores, group = world(1200)
    found = compare(labels, scores, group=group, resamples=500)
    rng = np.random.default_rng(3)
    members = [np.flatnonzero(group == g) for g in np.unique(group)]
    drawn: dict[str, list[float]] = {"auc": [], "logloss": [], "gauc": []}
    for _ in range(300):
        chosen = rng.integers(0, len(members), len(members))
        rows = np.concatenate([members[c] for c in chosen])
        # a group that is drawn twice counts as two
        keys = np.repeat(np.arange(len(chosen)), [len(members[c]) for c in chosen])
        y, p, q = labels[rows], scores["good"][rows], scores["poor"][rows]
        drawn["auc"].append(auc(y, p) - auc(y, q))
        drawn["logloss"].append(float((row_losses(y, p) - row_losses(y, q)).mean()))
        drawn["gauc"].append(gauc(y, p, keys) - gauc(y, q, keys))
    for metric, values in drawn.items():
        difference = found.of(metric, "good", "poor")
        assert difference is not None
        assert difference.error == pytest.approx(np.std(values, ddof=1), rel=0.15)


def coverage(runs: int, rows: int, resamples: int) -> dict[str, float]:
    """Share of worlds whose interval holds the truth, by metric: the mean of the worlds, which is it to a tenth.

    Both models say too little by far.  Of miscalibration, whose mean is not its truth, that is of a very large world.
    """

    def low(rows: int, seed: int) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
        labels, scores, group = world(rows, seed=seed)
        return labels, {name: 0.6 * p for name, p in scores.items()}, group

    found: dict[str, list[PairDifference]] = {}
    for seed in range(runs):
        labels, scores, group = low(rows, seed)
        for d in compare(labels, scores, group=group, resamples=resamples).differences:
            found.setdefault(d.metric, []).append(d)
    truth = {metric: float(np.mean([d.difference for d in found[metric]])) for metric in found}
    labels, scores, _ = low(4_000_000, runs)
    off = {name: abs(p.sum() / labels.sum() - 1) for name, p in scores.items()}
    truth["miscalibration"] = off["good"] - off["poor"]
    return {metric: float(np.mean([d.low <= truth[metric] <= d.high for d in found[metric]])) for metric in found}


def test_intervals_cover_the_truth_when_groups_are_alike() -> None:
    covered = coverage(runs=120, rows=400, resamples=100)
    for metric in METRICS:
        assert 0.88 <= covered[metric] <= 0.995


@pytest.mark.slow
def test_coverage_over_1000_sets() -> None:
    covered = coverage(runs=1000, rows=1000, resamples=200)
    print("coverage of the 95 % intervals: " + ", ".join(f"{metric} {share:.1%}" for metric, share in covered.items()))
    for metric in METRICS:
        assert 0.93 <= covered[metric] <= 0.97


def test_with_equal_models_claims_are_rare_over_all_pairs_and_metrics() -> None:
    """Five models as good as one another: ten pairs, four metrics; uncorrected, hardly a run would stay silent."""
    rng = np.random.default_rng(4)
    runs, any_claim, single = 40, 0, 0
    for _ in range(runs):
        signal = rng.normal(size=400)
        labels = (rng.random(400) < sigmoid(signal)).astype(float)
        scores = {f"m{i}": sigmoid(signal + 0.5 * rng.normal(size=400)) for i in range(5)}
        found = compare(labels, scores, resamples=100)
        any_claim += any(d.better for d in found.differences)
        single += any(d.p_value < 0.05 for d in found.differences)
    assert any_claim <= 6
    assert single > 10


def test_the_same_scores_are_no_different_and_that_is_said() -> None:
    labels, scores, group = world(500)
    found = compare(labels, {"a": scores["good"], "b": scores["good"].copy()}, group=group, resamples=50)
    assert len(found.differences) == len(METRICS)
    for d in found.differences:
        assert d.equal
        assert (d.difference, d.low, d.high, d.error, d.p_adjusted) == (0, 0, 0, 0, 1)
        assert (d.better, d.detectable, d.rows_needed(0.01, 500)) == (None, None, None)
    assert found.verdicts() == ["a and b: equal in every metric"]


def test_models_that_rank_alike_are_equal_in_what_ranks_alone_decide() -> None:
    labels, scores, group = world(900)
    found = compare(labels, {"a": scores["good"], "b": scores["good"] / 2}, group=group, resamples=200)
    equal = {d.metric: d.equal for d in found.differences}
    assert equal == dict.fromkeys(METRICS, False) | {"auc": True, "gauc": True}
    assert "equal in auc and gauc" in found.verdicts()[0]


def test_a_seed_repeats_itself_and_rows_needed_follow_the_error() -> None:
    labels, scores, group = world(800)
    first, again = (compare(labels, scores, group=group, resamples=50, seed=5) for _ in range(2))
    assert first == again
    d = first.of("logloss", "good", "poor")
    assert d is not None
    assert d.rows_needed(d.detectable, 800) == pytest.approx(800, abs=1)
    assert d.rows_needed(d.detectable / 2, 800) == pytest.approx(3200, abs=4)


def test_holm_on_a_worked_example() -> None:
    # Holm (1979): .01 * 4, .01 * 4 (monotone), .03 * 2, .04
    assert holm([0.04, 0.01, 0.03, 0.005]) == pytest.approx([0.06, 0.03, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_one_class_leaves_what_exists() -> None:
    p = np.random.default_rng(0).uniform(0.1, 0.9, (2, 50))
    found = compare(np.zeros(50), {"a": p[0], "b": p[1]}, resamples=50)
    assert [d.metric for d in found.differences] == ["logloss"]
    assert set(found.undefined) == {"auc", "pr_auc", "normalised_entropy", "calibration_ratio", "miscalibration"}
    one = compare(np.r_[1.0, np.zeros(49)], {"a": p[0], "b": p[1]}, resamples=50)
    assert "two of each class" in one.undefined["auc"]


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ({"a": [0.1, 0.2]}, "needs two models"),
        ({"a": [0.1, 0.2], "b": [0.1]}, "b: the model has scores of other rows.*1 scores.*2 labels"),
        ({"a": [0.1, 0.2], "b": [0.1, 1.5]}, "b: 1 of 2 scores are no probabilities.*1.5"),
        ({"a": [0.1, math.nan], "b": [0.1, 0.5]}, "a: 1 of 2 scores are no probabilities"),
    ],
)
def test_what_cannot_be_compared_is_refused(scores: dict[str, list[float]], words: str) -> None:
    with pytest.raises(DataError, match=words):
        compare(np.array([0, 1]), {name: np.array(values) for name, values in scores.items()})


def crossed(rows: int = 8000) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """Model a is blind where the city is 0, model b where it is 1; elsewhere they are the same."""
    rng = np.random.default_rng(6)
    city, signal = rng.integers(0, 4, rows), 1.5 * rng.normal(size=rows)
    labels = (rng.random(rows) < sigmoid(signal)).astype(float)
    scores = {name: sigmoid(np.where(city == blind, 0, signal)) for name, blind in (("a", 0), ("b", 1))}
    return labels, scores, city


def test_slices_show_where_each_wins() -> None:
    labels, scores, city = crossed()
    found = compare_slices(labels, scores, [Division("value", "city", city, names={0: "Oslo", 1: "Rome"})])
    by_name = {entry.value: entry for entry in found.slices}
    assert set(by_name) == {"Oslo", "Rome", "#0000000000000002", "#0000000000000003"}
    assert (by_name["Oslo"].better, by_name["Rome"].better) == ("b", "a")
    assert [entry.better for name, entry in by_name.items() if name.startswith("#")] == [None, None]
    assert found.slices[0].value == "Oslo"
    rows = city == 0
    paired = paired_logloss(labels[rows], scores["a"][rows], scores["b"][rows])
    oslo = by_name["Oslo"]
    assert (oslo.difference, oslo.low, oslo.high) == pytest.approx((paired.mean, paired.low, paired.high))
    assert oslo.rows == rows.sum()
    json.dumps(found.to_json(), allow_nan=False)


def test_slices_that_tell_nothing_are_left_out_and_counted() -> None:
    labels = np.array([0.0, 1] * 20 + [0.0] * 20 + [0.0, 1] * 3)
    city = np.repeat([1, 2, 3], [40, 20, 6])
    scores = {"a": np.full(66, 0.3), "b": np.full(66, 0.4)}
    cities = [Division("value", "city", city)]
    found = compare_slices(labels, scores, cities, min_rows=10)
    assert [entry.value for entry in found.slices] == ["#0000000000000001"]
    assert found.left_out == {"few rows": 1, "one class": 1}
    lone = compare_slices(labels, scores, cities, group=city, min_rows=10)
    assert lone.left_out == {"few rows": 1, "one class": 1, "one group": 1}
    most = compare_slices(labels, scores, cities, min_rows=1, most=2)
    assert most.left_out == {"beyond the 2 most frequent values": 1, "one class": 1}


def test_weights_and_groups_reach_the_slices() -> None:
    labels, scores, city = crossed(2000)
    sliced = [Division("value", "city", city)]

    def first(**given: np.ndarray) -> SliceDifference:
        return compare_slices(labels, scores, sliced, min_rows=100, **given).slices[0]

    plain = first()
    twice = compare_slices(
        np.tile(labels, 2), {k: np.tile(p, 2) for k, p in scores.items()},
        [Division("value", "city", np.tile(city, 2))], group=np.tile(np.arange(2000), 2), min_rows=100,
    ).slices[0]  # fmt: skip
    # the same rows twice, as groups of two, tell no more than once
    assert twice.difference == pytest.approx(plain.difference)
    assert twice.high - twice.low == pytest.approx(plain.high - plain.low, rel=0.02)
    assert first(weight=np.full(2000, 3.0)).high == pytest.approx(plain.high)


def test_a_row_with_a_list_is_in_the_slice_of_each_of_its_values() -> None:
    labels, scores, city = crossed(2000)
    # every row has its city's tag, and every other row one tag more
    rows = np.r_[np.arange(2000), np.arange(0, 2000, 2)]
    tags = Division("value", "tag", np.r_[city, np.full(1000, 9)], rows, {9: "even", 0: "Oslo"})
    by_name = {entry.name: entry for entry in compare_slices(labels, scores, [tags], min_rows=100).slices}
    even = paired_logloss(labels[::2], scores["a"][::2], scores["b"][::2])
    assert by_name["tag = even"].rows == 1000
    assert by_name["tag = even"].difference == pytest.approx(even.mean)
    assert by_name["tag = Oslo"].rows == (city == 0).sum()
