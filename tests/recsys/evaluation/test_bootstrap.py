"""Bootstrap: the three ways give the same resamples, groups are drawn whole, and the corrections are scipy's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from features.errors import UndefinedMetricError
from recsys.evaluation.bootstrap import Kind, bootstrap, bootstrap_auc, bootstrap_sums
from recsys.evaluation.metrics import auc, calibration_ratio


def sample(rows: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    p = rng.integers(1, 20, rows) / 20
    return (rng.random(rows) < p).astype(float), p, rng.random(rows), rng.integers(0, 40, rows)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("kind", ["percentile", "bca"])
def test_fast_forms_give_what_the_general_one_gives(grouped: bool, kind: Kind) -> None:
    y, p, w, group = sample()
    given = {"group": group if grouped else None, "replicates": 100, "seed": 3, "kind": kind}
    general = bootstrap(lambda drawn: auc(y, p, drawn), len(y), weight=w, **given)
    fast = bootstrap_auc(y, p, w, **given)
    assert (fast.value, fast.low, fast.high) == pytest.approx((general.value, general.low, general.high), abs=1e-12)
    assert fast.method == general.method == f"{kind} bootstrap by {'group' if grouped else 'row'}"
    general = bootstrap(lambda drawn: calibration_ratio(y, p, drawn), len(y), weight=w, **given)
    fast = bootstrap_sums(lambda s: s[..., 1] / s[..., 0], np.stack([w * y, w * p], 1), **given)
    assert (fast.value, fast.low, fast.high) == pytest.approx((general.value, general.low, general.high), abs=1e-12)


def test_a_seed_gives_its_interval_and_another_another() -> None:
    y, p, _, _ = sample()
    first = bootstrap_auc(y, p, seed=1)
    assert bootstrap_auc(y, p, seed=1) == first
    assert bootstrap_auc(y, p, seed=2) != first


def test_rows_that_repeat_within_groups_do_not_narrow_the_interval_by_group() -> None:
    y, p, _, _ = sample()
    alone = bootstrap_auc(y, p, seed=0)
    copies, group = np.repeat([y, p], 10, axis=1), np.repeat(np.arange(len(y)), 10)
    by_group, by_row = bootstrap_auc(*copies, group=group, seed=0), bootstrap_auc(*copies, seed=0)
    assert (by_group.low, by_group.high) == pytest.approx((alone.low, alone.high), abs=1e-12)
    assert by_row.high - by_row.low == pytest.approx((alone.high - alone.low) / np.sqrt(10), rel=0.15)


def test_error_of_a_mean_is_that_of_textbooks() -> None:
    values = np.random.default_rng(0).exponential(size=400)
    found = bootstrap_sums(lambda s: s[..., 0] / s[..., 1], np.stack([values, np.ones(400)], 1), replicates=4000)
    assert found.error == pytest.approx(values.std() / 20, rel=0.05)


def test_bca_is_that_of_scipy() -> None:
    values = np.random.default_rng(1).exponential(size=60) ** 2
    columns = np.stack([values, np.ones(60)], 1)
    found = bootstrap_sums(lambda s: s[..., 0] / s[..., 1], columns, replicates=10_000, kind="bca")
    plain = bootstrap_sums(lambda s: s[..., 0] / s[..., 1], columns, replicates=10_000)
    expected = stats.bootstrap((values,), np.mean, n_resamples=10_000, method="BCa", rng=0).confidence_interval
    width = expected.high - expected.low
    assert found.low == pytest.approx(expected.low, abs=0.08 * width)
    assert found.high == pytest.approx(expected.high, abs=0.08 * width)
    assert found.high - plain.high > 0.1 * width


def test_what_does_not_exist_says_why() -> None:
    y, p = np.r_[1.0, np.zeros(29)], np.arange(30) / 30
    with pytest.raises(UndefinedMetricError, match=r"does not exist on \d+ of 1000 resamples"):
        bootstrap_auc(y, p)
    with pytest.raises(UndefinedMetricError, match=r"does not exist on \d+ of 1000 resamples"):
        bootstrap(lambda w: auc(y, p, w), 30)
    with pytest.raises(UndefinedMetricError, match="none of 30 rows is positive"):
        bootstrap_auc(0 * y, p)
    with pytest.raises(UndefinedMetricError, match="1 groups of 30 rows to draw from: two are needed"):
        bootstrap_auc(y, p, group=np.zeros(30))
    with pytest.raises(UndefinedMetricError, match="does not exist on all rows"):
        bootstrap_sums(lambda s: s[..., 0] / s[..., 1], np.zeros((3, 2)))
