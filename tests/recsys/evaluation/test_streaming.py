"""Metrics in pieces: what is exact is exact, what is binned keeps its bound, and merging has no order."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.errors import ArtifactError, DataError
from recsys.evaluation.metrics import evaluate
from recsys.evaluation.streaming import StreamingMetrics

EXACT = ("base_rate", "logloss", "normalised_entropy", "calibration_ratio", "brier")
BINNED = ("auc", "pr_auc", "ece")


def of_rows(*rows: np.ndarray | None) -> StreamingMetrics:
    metrics = StreamingMetrics()
    metrics.update(*rows)
    return metrics


def sample(rows: int, spread: float, seed: int, weights: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Rows whose logits lie within `spread`: the smaller, the more share a range of the histogram."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=rows) * spread - 1
    probabilities = 1 / (1 + np.exp(-logits))
    labels = rng.random(rows) < 1 / (1 + np.exp(-20 * spread * rng.normal(size=rows) - logits))
    weight = np.where(rng.random(rows) < 0.2, 0.0, rng.random(rows)) if weights else None
    return labels.astype(float), probabilities, weight


@settings(max_examples=60)
@given(st.integers(1, 400), st.sampled_from([1e-4, 1e-3, 0.01, 0.3, 3.0, 30.0]), st.integers(0, 1000), st.booleans())
def test_binned_figures_keep_their_bound_and_sums_are_exact(rows: int, spread: float, seed: int, weights: bool) -> None:
    data = sample(rows, spread, seed, weights)
    found, exact = of_rows(*data).compute()["label"], evaluate(*data)
    assert found["undefined"] == {k: v for k, v in exact["undefined"].items() if k in (*EXACT, *BINNED)}
    for name in EXACT:
        if exact[name] is not None:
            assert found[name] == pytest.approx(exact[name], rel=1e-9), name
    for name in BINNED:
        if exact[name] is not None:
            assert abs(found[name] - exact[name]) <= found[f"{name}_error"] + 1e-12, name


def test_bounds_are_small_on_ordinary_predictions() -> None:
    found = of_rows(*sample(20_000, 1.0, 0, False)).compute()["label"]
    assert found["auc_error"] < 0.001
    assert found["ece_error"] < 0.03
    assert found["pr_auc_error"] < 0.005


def test_certain_predictions_have_a_place() -> None:
    found = of_rows(np.array([0, 1, 1]), np.array([0.0, 1.0, 1.0])).compute()["label"]
    assert (found["auc"], found["auc_error"], found["ece"], found["pr_auc"]) == (1.0, 0.0, 0.0, 1.0)


def test_merging_has_no_order_and_no_grouping() -> None:
    a, b, c = (of_rows(*sample(500, 1.0, seed, False)) for seed in range(3))
    left, right = a.merge(b).merge(c), a.merge(b.merge(c))
    assert left._counts["rows"].tolist() == right._counts["rows"].tolist()
    whole = of_rows(*(np.concatenate(x) for x in zip(*(sample(500, 1.0, s, False)[:2] for s in range(3)), strict=True)))
    for one in (right, c.merge(a).merge(b), whole):
        for name, value in one.compute()["label"].items():
            assert value == pytest.approx(left.compute()["label"][name], rel=1e-12), name


def test_state_goes_through_json() -> None:
    metrics = of_rows(*sample(300, 1.0, 0, True))
    again = StreamingMetrics.from_json(json.loads(json.dumps(metrics.to_json())))
    assert again.compute() == metrics.compute()
    assert again.merge(metrics).compute()["label"]["rows"] == 600
    with pytest.raises(ArtifactError, match="of another form"):
        StreamingMetrics.from_json({**metrics.to_json(), "ranges": 10})
    state = metrics.to_json()
    del state["tasks"][0]["positive"]
    with pytest.raises(ArtifactError, match="damaged"):
        StreamingMetrics.from_json(state)


def test_tasks_have_their_own_labels_weights_and_figures() -> None:
    y1, p1, w1 = sample(200, 1.0, 0, True)
    y2, p2, w2 = sample(200, 1.0, 1, True)
    metrics = StreamingMetrics(["click", "buy"])
    metrics.update(np.stack([y1, y2], 1), np.stack([p1, p2], 1), np.stack([w1, w2], 1))
    alone = StreamingMetrics(["buy"])
    alone.update(y2, p2, w2)
    assert metrics.compute()["buy"] == alone.compute()["buy"]
    shared = StreamingMetrics(["click", "buy"])
    shared.update(np.stack([y1, y2], 1), np.stack([p1, p2], 1), w1)
    assert shared.compute()["click"] == metrics.compute()["click"]
    with pytest.raises(DataError, match="metrics of other tasks"):
        metrics.merge(alone)


def test_bad_rows_leave_nothing_behind() -> None:
    metrics = StreamingMetrics(["click", "buy"])
    good, bad = np.array([0.2, 0.4]), np.array([0.5, 1.5])
    with pytest.raises(DataError, match="probabilities are out of range"):
        metrics.update(np.zeros((2, 2)), np.stack([good, bad], 1))
    with pytest.raises(DataError, match="not one column a task"):
        metrics.update(np.zeros(2), good)
    found = metrics.compute()["click"]
    assert found["rows"] == 0
    assert found["undefined"]["logloss"] == "there are no rows"
    assert found["auc"] is None
