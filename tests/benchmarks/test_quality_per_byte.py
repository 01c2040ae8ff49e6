"""Quality per byte: every arm fills its bytes, validation picks, the bars say what the issue asks."""

from __future__ import annotations

import functools
from fractions import Fraction
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from benchmarks.arms import Arm, Limit, Run, Training, embedding_of, plan_within, run_arms
from benchmarks.quality_per_byte import (
    CRITEO_ARMS,
    DATA_SETS,
    MOVIELENS_ARMS,
    MOVIELENS_TARGETS,
    OURS,
    REFERENCE,
    TWENTIETH,
    Compared,
)
from features.layout import Layout
from features.spec import FeatureSpec
from features.storage.splits import RandomSplit
from features.storage.store import build_store
from features.validation import validate

CRITEO_SIZES = (560, 515, 50504, 27127, 141, 12, 8167, 264, 3, 12598, 3932, 46202, 2878, 26, 5511, 38265, 10, 2689)
CRITEO_SIZES += (1283, 4, 42913, 13, 14, 12777, 53, 9730)
MOVIELENS_SIZES = {"user_id": 6040, "movie_id": 3700, "gender": 2, "age": 7, "occupation": 21, "zip": 3439}
Counts = dict[str, tuple[np.ndarray, np.ndarray]]


@functools.cache
def counts_like(name: str) -> Counts:
    """Made-up values, as many a feature as the data set has."""
    rng = np.random.default_rng(0)
    sizes = MOVIELENS_SIZES if name == "movielens" else {f"C{i}": n for i, n in enumerate(CRITEO_SIZES, 1)}
    return {k: (np.unique(rng.integers(-(2**63), 2**63 - 1, n)), rng.zipf(1.3, n)) for k, n in sizes.items()}


def bytes_of(arm: Arm, limit: int | None, counts: Counts) -> int:
    plan, baseline = embedding_of(arm, limit, Layout(id_names=tuple(counts)), counts, seed=0)
    return (baseline or plan).table_bytes


def test_every_arm_of_criteo_has_the_bytes_it_is_compared_at() -> None:
    counts = counts_like("criteo")
    reference = bytes_of(CRITEO_ARMS[0], None, counts)
    for arm in CRITEO_ARMS[1:]:
        assert isinstance(arm.limit, Fraction)
        limit = int(reference * arm.limit)
        assert 0.98 * limit <= bytes_of(arm, limit, counts) <= limit, arm


def test_every_arm_of_movielens_is_within_its_bytes() -> None:
    assert {arm.limit for arm in MOVIELENS_ARMS} == {None, *MOVIELENS_TARGETS}
    for arm in MOVIELENS_ARMS:
        if isinstance(arm.limit, int):
            assert bytes_of(arm, arm.limit, counts_like("movielens")) <= arm.limit


@pytest.mark.parametrize("kind", ["multiplexed", "hashed"])
def test_a_row_more_would_be_too_many(kind: str) -> None:
    counts = counts_like("movielens")
    layout = Layout(id_names=tuple(counts))
    plan = plan_within(layout, {"kind": kind, "width": 8}, counts, 50_000)
    row = 32 * (1 if kind == "multiplexed" else len(counts))
    assert 50_000 - row < plan.table_bytes <= 50_000
    with pytest.raises(ValueError, match="above 500"):
        plan_within(layout, {"kind": kind, "width": 8}, counts, 500)


def runs(method: str, limit: Limit, strength: float, seeds: int = 3, own_rows: bool = False) -> list[Run]:
    """Scores that tell more about the labels the stronger they are."""
    out = []
    for seed in range(seeds):
        rng = np.random.default_rng(seed if own_rows else 0)
        labels = rng.integers(0, 2, 3000).astype(np.float32)
        noise = rng.normal(size=3000)
        scores = 1 / (1 + np.exp(-(strength * (2 * labels - 1) + noise + 0.1 * np.random.default_rng(seed).normal())))
        out.append(Run(Arm(method, {}, limit), {}, seed, 1, 0.8, 0.5, 100, 200, labels, scores))
    return out


def criteo(ours: float, reference: float, hashed: float) -> Compared:
    strengths = {(OURS, TWENTIETH): ours, (REFERENCE, None): reference, ("hashed", TWENTIETH): hashed}
    return Compared({(m, at): runs(m, at, strength) for (m, at), strength in strengths.items()}, True)


@pytest.mark.parametrize(
    ("ours", "reference", "hashed", "met"),
    [
        (1.0, 1.0, 0.8, [True, True, True, True]),
        (1.0, 0.8, 1.2, [True, True, False, False]),
        (0.8, 1.2, 0.7, [False, False, True, True]),
    ],
)
def test_bars_of_criteo(ours: float, reference: float, hashed: float, met: list[bool]) -> None:
    bars = DATA_SETS["criteo"].bars(criteo(ours, reference, hashed))
    assert [bar.met for bar in bars] == met


def test_bars_of_movielens() -> None:
    groups = {(REFERENCE, None): runs(REFERENCE, None, 1.0, own_rows=True)}
    groups |= {(OURS, limit): runs(OURS, limit, 1.1, own_rows=True) for limit in MOVIELENS_TARGETS}
    bars = DATA_SETS["movielens"].bars(Compared(groups, same_rows=False))
    assert [bar.target for bar in bars] == [0.8872, 0.895, 0.8985, 0]
    assert all(bar.met for bar in bars)


def test_seeds_with_rows_of_their_own_are_compared_over_seeds() -> None:
    groups = {(REFERENCE, None): runs(REFERENCE, None, 1.0), (OURS, 5): runs(OURS, 5, 1.1)}
    shared, own = (Compared(groups, same).difference(5, REFERENCE, None)["auc"] for same in (True, False))
    assert shared.mean == pytest.approx(own.mean)
    assert shared.row_error > 0 == own.row_error


@pytest.mark.slow
def test_validation_picks_an_arm_and_a_setting(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    ad = rng.integers(0, 50, 6000)
    click = (rng.random(6000) < np.random.default_rng(1).random(50)[ad]).astype(np.int64)
    spec = validate(FeatureSpec, {"features": [{"type": "id", "name": "ad", "dtype": "integer"}], "labels": ["click"]})
    split = RandomSplit(fractions=(0.6, 0.2, 0.2), seed=0)
    build_store(pl.LazyFrame({"ad": ad, "click": click}), spec, split, tmp_path / "store")
    tiny, roomy = ({"width": 2, "exact": {"max_values": n}} for n in (0, 64))
    arms = [
        Arm(REFERENCE, {"kind": "collisionless", "width": 4}, seeds=(0, 1)),
        Arm(OURS, tiny, 620, seeds=(0, 1)),
        Arm(OURS, roomy, 620, seeds=(0, 1)),
        Arm("ROBE", {"width": 4, "block": 2}, Fraction(1, 2), "robe", seeds=(0,)),
    ]
    training = Training(
        model={"hidden": [4]},
        train={"batch_size": 64, "epochs": 2, "threads": 1, "ema": 0.9},
        grid=[{"table_learning_rate": 1e-6}, {"table_learning_rate": 0.1}],
    )
    lines: list[str] = []
    picked = run_arms(arms, training, dict.fromkeys((0, 1), tmp_path / "store"), lines.append)
    assert list(picked) == [(REFERENCE, None), (OURS, 620), ("ROBE", Fraction(1, 2))]
    assert len(lines) == 2 * 7
    assert [run.seed for run in picked[OURS, 620]] == [0, 1]
    # 620 bytes hold a row of 8 bytes and a key for every value, or 77 shared rows
    assert picked[OURS, 620][0].arm.embedding == roomy
    assert picked[REFERENCE, None][0].setting == {"table_learning_rate": 0.1}
    robe, reference = picked["ROBE", Fraction(1, 2)][0], picked[REFERENCE, None][0]
    assert robe.table_bytes == reference.table_bytes // 2 // 4 * 4
    # a state a float, and the moving average: a float, and when it was last brought up to date
    assert robe.training_bytes == 4 * robe.table_bytes + 4
    assert len(robe.probabilities) == len(robe.labels)
