"""The benchmark of the hot region: equal bytes on both sides, and a stream in which half of the head changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import hot_region
from benchmarks.arms import plan_within
from benchmarks.hot_region import GIANT, HOT, SHARED, SYNTHETIC_ARMS, SYNTHETIC_BYTES, Stream
from features.layout import Layout
from features.store import Store


def test_both_sides_fill_the_same_bytes() -> None:
    rng = np.random.default_rng(0)
    sizes = {"country": 30, "device": 5, GIANT: 200_000, "tags": 200}
    counts = {k: (np.unique(rng.integers(-(2**63), 2**63 - 1, n)), rng.zipf(1.3, n)) for k, n in sizes.items()}
    layout = Layout(id_names=("country", "device", GIANT), bag_names=("tags",), bag_poolings=("mean",))
    assert {arm.method for arm in SYNTHETIC_ARMS} == {HOT, SHARED}
    for arm in SYNTHETIC_ARMS:
        plan = plan_within(layout, arm.embedding, counts, SYNTHETIC_BYTES)
        assert 0.99 * SYNTHETIC_BYTES <= plan.table_bytes <= SYNTHETIC_BYTES, arm
        assert bool(plan.hot_slots) is (arm.method == HOT)


def test_half_of_the_head_gives_way_and_nothing_else_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"BEFORE": 30_000, "AFTER": 20_000, "JUDGE": 2000, "HEAD": 100}.items():
        monkeypatch.setattr(hot_region, name, value)
    monkeypatch.setitem(hot_region.EVENTS, "fields", {"country": 30, "device": 5, GIANT: 5000})
    streams = {fresh: Store.open(hot_region._churn_store(tmp_path / str(fresh), 3, fresh)) for fresh in (False, True)}
    whole = streams[False].read("train")
    assert len(whole) == 50_000
    # what comes after is the same for a model that starts there
    after, fresh = whole.rows(slice(30_000, None)), streams[True].read("train")
    assert np.array_equal(after.ids.numpy(), fresh.ids.numpy())
    ids = whole.ids.numpy()[:, streams[False].layout.id_names.index(GIANT)]
    before, then = ids[:30_000], ids[30_000:]
    values, times = np.unique(before, return_counts=True)
    head = values[np.argsort(-times, kind="stable")[:100]]
    gone = np.isin(head, before) & ~np.isin(head, then)
    assert 45 <= gone.sum() <= 60
    assert np.isin(head[~gone], then).all()


def test_examples_until_it_is_nearly_as_good_again() -> None:
    stream = Stream(HOT, 0, fresh=0.78, curve=[(1000, 0.77), (2000, 0.7791), (3000, 0.785)])
    assert [stream.examples_to(target) for target in (0.771, 0.78, 0.79)] == [1000, 2000, float("inf")]
