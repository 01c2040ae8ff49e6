"""The AUC with its variance and within groups: against definitions, peers, and itself with more threads or weights."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from features.errors import DataError, UndefinedMetricError
from recsys.evaluation import auc
from recsys.evaluation.paired import auc_components


def sample(rows: int, levels: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    scores = np.round(rng.normal(size=rows) * levels) / levels
    labels = rng.random(rows) < 1 / (1 + np.exp(1 - scores))
    return labels, scores, rng.random(rows)


def in_order(found: auc.GroupAuc) -> list[tuple[float, float]]:
    return sorted(zip(found.values.round(12).tolist(), found.weights.tolist(), strict=True))


def variance_by_definition(labels: np.ndarray, scores: np.ndarray) -> float:
    wins = (scores[labels][:, None] > scores[~labels]) + 0.5 * (scores[labels][:, None] == scores[~labels])
    of_positives, of_negatives = wins.mean(1), wins.mean(0)
    return float(of_positives.var(ddof=1) / len(of_positives) + of_negatives.var(ddof=1) / len(of_negatives))


@settings(max_examples=50)
@given(st.lists(st.tuples(st.booleans(), st.integers(-3, 3)), min_size=4, max_size=40))
def test_value_and_variance_are_those_of_all_pairs(rows: list[tuple[bool, int]]) -> None:
    labels, scores = np.array([r[0] for r in rows]), np.array([r[1] for r in rows], float)
    if min(labels.sum(), (~labels).sum()) < 2:
        return
    for weight in (None, np.ones(len(rows)), np.full(len(rows), 0.3)):
        found = auc.delong(labels, scores, weight)
        assert found.value == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
        assert found.variance == pytest.approx(variance_by_definition(labels, scores), abs=1e-12)


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int64])
@pytest.mark.parametrize("levels", [3, 10_000])
def test_many_rows_in_ranges_and_threads_give_what_one_sort_gives(kind: type, levels: int) -> None:
    labels, scores, _ = sample(auc._PARALLEL_ROWS + 17, levels)
    scores = (scores * levels).astype(kind)
    found = auc.delong(labels, scores)
    assert found.value == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    of_positives, of_negatives = auc_components(labels, scores.astype(float))
    expected = of_positives.var(ddof=1) / len(of_positives) + of_negatives.var(ddof=1) / len(of_negatives)
    assert found.variance == pytest.approx(expected, rel=1e-9)
    assert auc.delong(labels, scores) == found


def exact_variance(labels: np.ndarray, scores: np.ndarray) -> Fraction:
    """In integers, whatever their size."""
    positives, negatives = np.sort(scores[labels]), np.sort(scores[~labels])
    parts = []
    for own, others in ((positives, negatives), (negatives, positives)):
        twice = np.searchsorted(others, own, "left") + np.searchsorted(others, own, "right")
        shares = [
            Fraction(value, 2 * len(others)) for value in (sum(twice.tolist()), sum(v * v for v in twice.tolist()))
        ]
        mean, squares = shares[0] / len(own), shares[1] / (2 * len(others)) / len(own)
        parts.append((squares - mean**2) / (len(own) - 1))
    return sum(parts, Fraction())


@pytest.mark.parametrize("rows", [2_000, auc._PARALLEL_ROWS + 17])
@pytest.mark.parametrize("levels", [7, 2**22])
def test_probabilities_in_float32_give_what_they_give_in_float64(rows: int, levels: int) -> None:
    rng = np.random.default_rng(rows)
    scores = (rng.integers(0, levels, rows) / levels).astype(np.float32)
    labels = rng.random(rows) < scores * 0.4
    found, wide = auc.delong(labels, scores), auc.delong(labels, scores.astype(float))
    assert (found.value, found.positives, found.negatives) == (wide.value, wide.positives, wide.negatives)
    assert found.variance == pytest.approx(float(exact_variance(labels, scores)), rel=1e-13)
    assert (found.variance, found.freedom) == pytest.approx((wide.variance, wide.freedom), rel=1e-11)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4)), min_size=4, max_size=40))
def test_probabilities_in_float32_have_the_variance_of_all_pairs_and_its_freedom(rows: list[tuple[bool, int]]) -> None:
    labels, scores = np.array([r[0] for r in rows]), np.array([r[1] for r in rows]) / np.float32(4)
    if min(labels.sum(), (~labels).sum()) < 2:
        return
    found, wide = auc.delong(labels, scores.astype(np.float32)), auc.delong(labels, scores.astype(float))
    assert found.variance == pytest.approx(variance_by_definition(labels, scores), abs=1e-12)
    assert (found.value, found.freedom) == (wide.value, pytest.approx(wide.freedom))


def test_a_constant_score_has_half_and_no_variance() -> None:
    labels = np.arange(200_000) % 3 == 0
    for kind in (np.float64, np.float32):
        assert auc.delong(labels, np.zeros(200_000, kind)) == auc.Auc(0.5, 0.0, np.inf, 66_667, 133_333)


def test_zeros_of_both_signs_are_equal() -> None:
    for kind in (np.float64, np.float32):
        assert auc.delong(np.array([0, 1]), np.array([0.0, -0.0], kind)).value == 0.5


@pytest.mark.parametrize("seed", range(3))
def test_weights_count_as_copies_do(seed: int) -> None:
    labels, scores, _ = sample(300, 5, seed)
    times = np.random.default_rng(seed).integers(0, 4, 300)
    copied = auc.delong(labels.repeat(times), scores.repeat(times))
    assert auc.delong(labels, scores, times).value == pytest.approx(copied.value, abs=1e-12)


def test_variance_with_weights_is_that_of_many_samples() -> None:
    rng = np.random.default_rng(0)
    values, variances = [], []
    for _ in range(400):
        labels = rng.random(300) < 0.4
        scores = rng.normal(size=300) + labels
        found = auc.delong(labels, scores, rng.gamma(1.0, size=300))
        values.append(found.value)
        variances.append(found.variance)
    assert np.mean(variances) == pytest.approx(np.var(values), rel=0.15)


@pytest.mark.parametrize("keys", ["dense", "random", "text"])
@pytest.mark.parametrize("weighted", [False, True])
def test_groups_have_the_auc_of_their_rows(keys: str, weighted: bool) -> None:
    labels, scores, weight = sample(6000, 4)
    group = np.random.default_rng(1).integers(0, 300, 6000) ** 2 % 311
    group[:3000] = 5  # a large one among many small
    names = {"dense": group, "random": group * 0x1E3779B97F4A7C15, "text": group.astype(str)}[keys]
    found = auc.group_auc(labels, scores, names, weight if weighted else None)
    values, shares, single = [], [], 0
    for key in dict.fromkeys(names.tolist()):
        rows = names == key
        if len(set(labels[rows].tolist())) == 1:
            single += 1
            continue
        values.append(roc_auc_score(labels[rows], scores[rows], sample_weight=weight[rows] if weighted else None))
        shares.append(weight[rows].sum() if weighted else rows.sum())
    np.testing.assert_allclose(
        in_order(found), sorted(zip(np.round(values, 12).tolist(), shares, strict=True)), atol=1e-12
    )
    assert found.single_class == single > 0


@given(seed=st.integers(0, 1000), rows=st.integers(0, 60))
@settings(max_examples=40)
def test_aucs_of_groups_are_those_of_each_group_alone(seed: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    y, s = rng.integers(0, 2, rows).astype(float), rng.integers(0, 5, rows) / 4
    w, units = rng.uniform(0.1, 2, rows), rng.integers(0, 6, rows)
    share, value = auc.aucs_of_groups(y, s, w, units, 6)
    for unit in range(6):
        here = units == unit
        if 0 < y[here].sum() < here.sum():
            assert value[unit] == pytest.approx(auc.delong(y[here], s[here], w[here]).value)
            assert share[unit] == pytest.approx(w[here].sum())
        else:
            assert share[unit] == value[unit] == 0


def test_groups_over_several_threads() -> None:
    labels, scores, _ = sample(auc._PARALLEL_ROWS * 2, 50)
    group = np.random.default_rng(1).integers(0, 20_000, len(labels))
    fast, exact = auc.group_auc(labels, scores, group), auc.group_auc(labels, scores, group, np.ones(len(labels)))
    np.testing.assert_allclose(in_order(fast), in_order(exact), atol=1e-9)
    assert fast.single_class == exact.single_class


@pytest.mark.parametrize("rows", [4, auc._PARALLEL_ROWS])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", [np.float64, np.float32])
def test_scores_that_are_no_numbers_are_refused(rows: int, bad: float, weighted: bool, kind: type) -> None:
    labels, scores = np.arange(rows) % 2, np.arange(rows, dtype=kind)
    scores[2] = bad
    weight = np.ones(rows) if weighted else None
    with pytest.raises(DataError, match=rf"scores are not finite.*1 of {rows:,} rows, the first {bad}"):
        auc.delong(labels, scores, weight)
    with pytest.raises(DataError, match="scores are not finite"):
        auc.group_auc(labels, scores, labels, weight)


def test_bad_input_is_named() -> None:
    y, s = np.array([0, 1, 2]), np.array([0.1, 0.2, 0.3])
    with pytest.raises(DataError, match=r"labels: labels are not binary.*1 of 3 rows, the first 2"):
        auc.delong(y, s)
    with pytest.raises(DataError, match=r"weights are negative.*1 of 3 rows, the first -1"):
        auc.delong(y > 0, s, np.array([1, -1, 1]))
    with pytest.raises(DataError, match="not of the same rows"):
        auc.delong(y[:2], s)
    with pytest.raises(DataError, match="not one key a row"):
        auc.group_auc(y > 0, s, np.array([1, 2]))
    with pytest.raises(DataError, match=r"group keys are missing.*1 of 3 rows"):
        auc.group_auc(y > 0, s, np.array(["a", None, "b"], dtype=object))
    with pytest.raises(UndefinedMetricError, match="none of 2 rows is negative"):
        auc.delong(np.ones(2), s[:2])
    with pytest.raises(UndefinedMetricError, match="none of 0 rows"):
        auc.delong(np.empty(0), np.empty(0))
