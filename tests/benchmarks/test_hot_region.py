"""The benchmark of the hot region: equal bytes on both sides, and a stream in which half of the head changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import hot_region
from benchmarks.arms import plan_within
from benchmarks.hot_region import GIANT, HOT, SHARED, SYNTHETIC_ARMS, SYNTHETIC_BYTES, Stream
from features.layout import Layout
from features.pipeline import FeaturePipeline
from features.recipes import RECIPES
from features.spec import FeatureSpec
from features.storage.store import Store
from features.validation import validate


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
    before, after, judge, head = 30_000, 20_000, 2000, 100
    for name, value in {"BEFORE": before, "AFTER": after, "JUDGE": judge, "HEAD": head}.items():
        monkeypatch.setattr(hot_region, name, value)
    monkeypatch.setitem(hot_region.EVENTS, "fields", {"country": 30, "device": 5, GIANT: 5000})
    changed, fresh = (
        Store.open(hot_region._churn_store(tmp_path / str(fresh), 3, fresh)).read("train") for fresh in (False, True)
    )
    assert len(changed) == before + after
    # a model that starts with the change sees what the other sees from then on
    assert torch.equal(changed.ids[before:], fresh.ids)

    events = RECIPES["synthetic"].load(None, **hot_region.EVENTS, seed=3, rows=before + after + judge)
    spec = validate(FeatureSpec, hot_region.SYNTHETIC_SPEC)
    plain = FeaturePipeline(spec).fit(events).transform(events).select("ids", "labels").collect()
    ids = torch.from_numpy(plain["ids"].to_numpy().copy())[: before + after]
    column = list(spec.layout.id_names).index(GIANT)
    others = [i for i in range(ids.shape[1]) if i != column]
    assert torch.equal(changed.ids[:, others], ids[:, others])
    assert torch.equal(changed.labels, torch.from_numpy(plain["labels"].to_numpy().copy())[: before + after])
    old, new = ids[:, column], changed.ids[:, column]
    assert torch.equal(old[:before], new[:before])
    moved = torch.unique(torch.stack([old, new], 1)[old != new], dim=0)
    # every id that gave way became one new id, which nobody had seen; half of the most frequent ones did
    assert len(moved) == len(moved[:, 0].unique()) == len(moved[:, 1].unique())
    assert not torch.isin(moved[:, 1], old).any()
    assert 0.45 * head <= len(moved) <= 0.5 * head
    values, times = old[:before].unique(return_counts=True)
    rest = values[times < times.sort(descending=True).values[head - 1]]
    assert not torch.isin(moved[:, 0], rest).any()
    assert not torch.isin(new[before:], moved[:, 0]).any()


def test_examples_until_it_is_nearly_as_good_again() -> None:
    stream = Stream(HOT, 0, fresh=0.78, curve=[(1000, 0.77), (2000, 0.7791), (3000, 0.785)])
    assert [stream.examples_to(target) for target in (0.771, 0.78, 0.79)] == [1000, 2000, hot_region.AFTER]
