"""Calibrations against scikit-learn, against a known truth, and on rows they were not fitted on."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from features.errors import UndefinedMetricError
from recsys.evaluation.metrics import auc, expected_calibration_error, logloss
from recsys.serving.calibration import (
    Calibration,
    Line,
    Method,
    Steps,
    fit_calibration,
    fit_isotonic,
    fit_platt,
    fit_temperature,
    sigmoid,
)

METHODS: tuple[Method, ...] = ("isotonic", "platt", "temperature")


def clicks(rows: int, slope: float, intercept: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits [N] of a model, and labels [N] whose true logit is `slope * logit + intercept`."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-1.0, 2.0, rows)
    return logits, (rng.random(rows) < sigmoid(slope * logits + intercept)).astype(np.float64)


def test_platt_finds_the_true_line() -> None:
    logits, labels = clicks(50_000, 0.5, -1.0)
    line = fit_platt(logits, labels, np.ones(len(labels)))
    assert line.slope == pytest.approx(0.5, abs=0.03)
    assert line.intercept == pytest.approx(-1.0, abs=0.06)


def test_temperature_finds_the_true_one() -> None:
    logits, labels = clicks(50_000, 0.4, 0.0)
    line = fit_temperature(logits, labels, np.ones(len(labels)))
    assert line.intercept == 0
    assert line.slope == pytest.approx(0.4, abs=0.02)


def test_platt_is_a_logistic_regression_on_his_targets() -> None:
    logits, labels = clicks(500, 0.7, 0.3)
    positive, negative = labels.sum(), (1 - labels).sum()
    targets = np.where(labels > 0, (positive + 1) / (positive + 2), 1 / (negative + 2))
    peer = LogisticRegression(C=np.inf, tol=1e-12, max_iter=1000)
    twice = np.r_[logits, logits][:, None]
    peer.fit(twice, np.r_[np.ones(500), np.zeros(500)], sample_weight=np.r_[targets, 1 - targets])
    line = fit_platt(logits, labels, np.ones(500))
    assert line.slope == pytest.approx(float(peer.coef_[0, 0]), rel=1e-4)
    assert line.intercept == pytest.approx(float(peer.intercept_[0]), rel=1e-3)


@pytest.mark.parametrize("weighted", [False, True])
def test_isotonic_passes_through_scikit_learns_pieces(weighted: bool) -> None:
    rng = np.random.default_rng(1)
    logits, labels = clicks(2000, 0.6, 0.5)
    logits = logits.round(2)  # some are equal
    weight = rng.integers(1, 4, 2000).astype(np.float64) if weighted else np.ones(2000)
    ours = fit_isotonic(logits, labels, weight)
    theirs = IsotonicRegression().fit(logits, labels, weight).predict(logits)
    met = 0
    for value in np.unique(theirs):
        piece = theirs == value
        centre = np.average(logits[piece], weights=weight[piece])
        met += np.isclose(ours(centre), value, rtol=0, atol=1e-9)
    # but for the ends, which are not 0 and 1 with us, and what was too steep
    assert met >= 0.6 * len(np.unique(theirs)) > 10
    assert np.average(np.abs(ours(logits) - theirs), weights=weight) < 0.02


def test_isotonic_is_not_steep() -> None:
    logits, labels = clicks(5000, 3.0, 0.0)
    found = fit_isotonic(logits, labels, np.ones(5000))
    assert len(found.logits) > 5
    assert (np.diff(found.probabilities) <= np.diff(found.logits) * (1 + 1e-12)).all()


@given(
    st.lists(st.tuples(st.floats(-30, 30), st.booleans(), st.integers(0, 3)), min_size=2, max_size=60).filter(
        lambda rows: {click for _, click, weight in rows if weight} == {True, False}
    )
)
def test_isotonic_rises_and_is_sure_of_nothing(rows: list[tuple[float, bool, int]]) -> None:
    logits, labels, weight = (np.array(column, np.float64) for column in zip(*rows, strict=True))
    found = fit_isotonic(logits, labels, weight)(np.linspace(-40, 40, 200))
    assert (np.diff(found) >= 0).all()
    assert found.min() > 0
    assert found.max() < 1


@pytest.mark.parametrize("method", METHODS)
def test_other_rows_are_calibrated_too(method: Method) -> None:
    logits, labels = clicks(30_000, 0.5, 0.0)
    fitted = fit_calibration(method, logits[:, None], labels[:, None])
    others, truth = clicks(30_000, 0.5, 0.0, seed=1)
    before, after = sigmoid(others), fitted(others[:, None])[:, 0]
    assert logloss(truth, after) < logloss(truth, before) - 0.05
    assert expected_calibration_error(truth, before) > 0.08
    assert expected_calibration_error(truth, after) < 0.02
    assert auc(truth, after) == pytest.approx(auc(truth, before), abs=1e-3 if method == "isotonic" else 0)


@pytest.mark.parametrize("method", METHODS)
def test_a_weight_of_two_is_a_row_twice(method: Method) -> None:
    logits, labels = clicks(300, 0.8, 0.2)
    weight = np.random.default_rng(2).integers(0, 3, 300)
    weighted = fit_calibration(method, logits[:, None], labels[:, None], weight)
    repeated = fit_calibration(method, logits.repeat(weight)[:, None], labels.repeat(weight)[:, None])
    asked = np.linspace(-5, 5, 50)[:, None]
    np.testing.assert_allclose(weighted(asked), repeated(asked), rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_rows_told_apart_without_an_error_give_finite_losses(method: Method) -> None:
    logits, labels = np.array([-3.0, -2.0, 2.0, 3.0]), np.array([0.0, 0.0, 1.0, 1.0])
    found = fit_calibration(method, logits[:, None], labels[:, None])(np.array([[-9.0], [9.0]]))
    assert 0 < found[0, 0] < 0.5 < found[1, 0] < 1


@pytest.mark.parametrize("method", METHODS)
def test_each_task_has_a_curve_and_json_keeps_the_bits(method: Method) -> None:
    (x, y), (u, v) = clicks(400, 0.5, 0.0), clicks(400, 1.0, -1.0, seed=3)
    logits, labels = np.stack([x, u], 1), np.stack([y, v], 1)
    fitted = fit_calibration(method, logits, labels)
    alone = fit_calibration(method, u[:, None], v[:, None])
    np.testing.assert_array_equal(fitted(logits)[:, 1:], alone(u[:, None]))
    again = Calibration.from_json(json.loads(json.dumps(fitted.to_json())))
    assert again == fitted
    np.testing.assert_array_equal(again(logits), fitted(logits))


def test_one_class_is_refused() -> None:
    with pytest.raises(UndefinedMetricError, match=r"buy: a calibration needs rows of both classes.*none of them posi"):
        fit_calibration("platt", np.zeros((3, 2)), np.array([[1, 0], [0, 0], [1, 0]]), names=("click", "buy"))


@pytest.mark.parametrize(
    "curve",
    [{"slope": 1.0}, {"logits": [1.0, 1.0], "probabilities": [0.1, 0.2]}, {"logits": [], "probabilities": []}, {}],
)
def test_what_is_no_curve_is_refused(curve: dict[str, object]) -> None:
    with pytest.raises((KeyError, ValueError)):
        Calibration.from_json({"method": "isotonic", "curves": [curve]})


def test_no_rows() -> None:
    for curve in (Line(1.0, 0.0), Steps((0.0,), (0.5,))):
        assert Calibration("platt", (curve,))(np.empty((0, 1))).shape == (0, 1)
