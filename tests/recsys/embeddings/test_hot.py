"""Who owns the hot slots: the head of a stream, also after it has moved; and what owning changes and what not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from features.errors import ConfigError
from features.layout import Layout
from recsys.embeddings import EmbeddingConfig, EmbeddingPlan, MultiplexedEmbedding, TableOptimizer, plan_embedding
from recsys.embeddings.addressing import NO_OWNER, WAYS, find_hot, hashed_rows, hot_buckets, hot_key, mix64, salt
from recsys.embeddings.average import RowAverage
from recsys.embeddings.hot import HotRegion, contest, most_frequent
from recsys.embeddings.kernel import is_installed
from recsys.embeddings.plan import head_of
from recsys.embeddings.torch_table import TorchTable
from recsys.tensorfile import write_tensors

NO_BAGS = (torch.empty(0, dtype=torch.int64), torch.empty(0, 1, dtype=torch.int64)[:0])
WIDTH = 4


def make(
    hot: dict[str, Any] | None = None, bags: tuple[str, ...] = (), counts: dict[str, Any] | None = None, **config: Any
) -> MultiplexedEmbedding:
    """Features user and item, 100 shared rows, two chunks of width 4 for user."""
    layout = Layout(id_names=("item", "user"), bag_names=bags, bag_poolings=("sum",) * len(bags))
    embedding = {
        "width": WIDTH,
        "rows": 100,
        "chunks": {"features": {"user": 2, **dict.fromkeys(bags, 3)}},
        "exact": {"max_values": 0},
        "hot": {"start": "empty", **hot} if hot else {},
        **config,
    }
    plan = plan_embedding(layout, EmbeddingConfig.model_validate(embedding), counts or {})
    module = MultiplexedEmbedding(plan, layout.bag_poolings, optimizer=TableOptimizer("adam"))
    module.table.initialise(0.5, torch.Generator().manual_seed(3))
    return module


def region(module: MultiplexedEmbedding) -> HotRegion:
    assert module.hot is not None
    return module.hot


def owners(module: MultiplexedEmbedding, ids: Tensor, feature: str = "user") -> Tensor:
    """Which of the ids own a slot."""
    f = next(f for f in module.plan.features if f.name == feature)
    hashes = mix64(ids ^ salt(feature, 0))
    return find_hot(module.hot_keys, hot_buckets(hashes, f.hot_start // WAYS, f.hot_slots // WAYS), hot_key(hashes))[1]


def zipf(size: int, exponent: float) -> np.ndarray:
    weights = np.arange(1, size + 1) ** -exponent
    return weights / weights.sum()


def stream(module: MultiplexedEmbedding, ids: np.ndarray, steps: int, seed: int) -> None:
    """Shows the region batches of 512 users drawn from a Zipf law over `ids`, all with gradients of norm 1."""
    rng = np.random.default_rng(seed)
    shares = zipf(len(ids), 1.1)
    for _ in range(steps):
        batch = torch.from_numpy(ids[rng.choice(len(ids), 512, p=shares)])
        region(module).step(module.hot_keys, [(batch, torch.ones(512))])


def mass(module: MultiplexedEmbedding, ids: np.ndarray) -> float:
    """The owners' share of the stream, relative to that of as many most frequent ids as there are slots."""
    shares = zipf(len(ids), 1.1)
    own = owners(module, torch.from_numpy(ids)).numpy()
    return float(shares[own].sum() / shares[: module.plan.hot_slots].sum())


def test_the_owners_are_the_head_of_the_stream_and_follow_it_when_it_moves() -> None:
    module = make({"features": {"user": 256}, "half_life": 100})
    before = np.arange(20_000, dtype=np.int64)
    stream(module, before, 300, seed=0)
    assert mass(module, before) > 0.98
    assert owners(module, torch.from_numpy(before[:100])).all()
    after = before.copy()
    replaced = np.random.default_rng(1).permutation(512)[:256]
    after[replaced] += 1_000_000
    gone = torch.from_numpy(before[replaced])
    assert mass(module, after) < 0.65
    stream(module, after, 900, seed=2)
    assert mass(module, after) > 0.98
    assert not owners(module, gone).any()
    evicted = module.rows(torch.stack([gone, gone], 1), *NO_BAGS)[0]
    assert torch.equal(evicted[:, 1:].long(), hashed_rows("user", gone, 2, 0, 100))


def test_of_equally_frequent_ids_those_with_large_gradients_own() -> None:
    module = make({"features": {"user": 96}})
    ids = torch.arange(640)
    norms = torch.where(ids % 10 == 3, 2.0, 1.0)
    for _ in range(30):
        region(module).step(module.hot_keys, [(ids, norms)])
    assert owners(module, ids[ids % 10 == 3]).all()


def test_scores_are_the_decayed_sum_of_shares() -> None:
    """Against a plain loop, over so many half-lives that the unit is renormalised several times."""
    module = make({"features": {"user": 64}, "half_life": 2})
    hot, ids = region(module), torch.arange(20)
    rng = np.random.default_rng(0)
    expected = np.zeros(20)
    for _ in range(200):
        norms = rng.random(20) + 0.1
        hot.step(module.hot_keys, [(ids, torch.from_numpy(norms).float())])
        expected = (expected + norms / norms.sum()) / np.sqrt(2)
    hashes = mix64(ids ^ salt("user", 0))
    slot, own = find_hot(module.hot_keys, hot_buckets(hashes, 0, 64 // WAYS), hot_key(hashes))
    assert own.all()
    np.testing.assert_allclose(hot.scores[slot] / float(hot.unit), expected, rtol=1e-4)
    assert float(hot.unit) < 2.0**33


def test_owners_not_seen_for_long_enough_lose_their_slots() -> None:
    module = make({"features": {"user": 64}, "expire": 40})
    dying, living = torch.arange(10), torch.arange(10, 20)
    for step in range(100):
        values = torch.cat([dying, living]) if step < 20 else living
        region(module).step(module.hot_keys, [(values, torch.ones(len(values)))])
        if 10 < step < 59:
            assert owners(module, dying).all()
    assert not owners(module, dying).any()
    assert owners(module, living).all()
    assert int((module.hot_keys != NO_OWNER).sum()) == 10


def test_an_evicted_id_is_remembered() -> None:
    """One that lost its slot by a little comes back as soon as it has caught up, not from nothing."""
    module = make({"features": {"user": 8}, "half_life": 1000})
    hot, rivals = region(module), torch.arange(8)
    for _ in range(10):
        hot.step(module.hot_keys, [(rivals, torch.ones(8))])
    newcomer = torch.tensor([100])
    for _ in range(5):
        hot.step(module.hot_keys, [(newcomer, torch.ones(1))])
    loser = rivals[~owners(module, rivals)]
    assert len(loser) == 1
    score = hot.sketch[hot._counters(hot.features[0], hot_key(mix64(loser ^ salt("user", 0))))].min()
    assert float(score) == pytest.approx(10 / 8, rel=0.02)


streams = st.lists(
    st.tuples(st.lists(st.integers(-40, 40), max_size=12), st.lists(st.integers(-40, 40), max_size=12)), max_size=25
)


@settings(max_examples=40, deadline=None)
@given(streams, st.integers(1, 20))
def test_an_id_has_one_slot_in_its_own_feature(batches: list[tuple[list[int], list[int]]], half_life: int) -> None:
    both = make({"features": {"user": 16, "item": 8}, "half_life": half_life})
    alone = make({"features": {"user": 16}, "half_life": half_life})
    for items, users in batches:
        user = (torch.tensor(users, dtype=torch.int64), torch.ones(len(users)))
        item = (torch.tensor(items, dtype=torch.int64), torch.ones(len(items)))
        source, target = region(both).step(both.hot_keys, [item, user])
        assert len(target.unique()) == len(target)
        assert not set(target.tolist()) & set(source.tolist())
        region(alone).step(alone.hot_keys, [user])
    # item's slots are 0-7, user's 8-23: what one does moves nothing of the other
    assert torch.equal(both.hot_keys[8:], alone.hot_keys)
    assert torch.equal(region(both).scores[8:], region(alone).scores)
    for feature, start, slots in (("item", 0, 8), ("user", 8, 16)):
        ids = torch.arange(-40, 41)
        hashes = mix64(ids ^ salt(feature, 0))
        buckets = hot_buckets(hashes, start // WAYS, slots // WAYS)
        places = (buckets.unsqueeze(2) * WAYS + torch.arange(WAYS)).flatten(1)
        taken = [p[both.hot_keys[p] == k].unique() for p, k in zip(places, hot_key(hashes), strict=True)]
        assert max(len(t) for t in taken) <= 1
        assert len(torch.cat(taken).unique()) == len(torch.cat(taken))
        assert len(torch.cat(taken)) == int((both.hot_keys[start : start + slots] != NO_OWNER).sum())


@given(st.lists(st.integers(0, 9), min_size=32, max_size=32), st.lists(st.integers(1, 15), min_size=1, max_size=12))
def test_a_contest_is_won_by_the_best_candidate_of_each_slot(scores: list[int], candidates: list[int]) -> None:
    buckets = [(i % 4, (3 * i + 1) % 4) for i in range(len(candidates))]
    expected: dict[int, int] = {}
    for i, score in enumerate(candidates):
        slot = min((b * WAYS + way for b in buckets[i] for way in range(WAYS)), key=lambda s: scores[s])
        if score > scores[slot] * 1.5 and (slot not in expected or score > candidates[expected[slot]]):
            expected[slot] = i
    held, given_ = torch.tensor(scores, dtype=torch.float32), torch.tensor(candidates, dtype=torch.float32)
    winner, lost = contest(held, torch.tensor(buckets), given_, 1.5)
    assert dict(zip(lost.tolist(), winner.tolist(), strict=True)) == expected


def train(module: MultiplexedEmbedding, ids: Tensor, steps: int = 1) -> None:
    """Steps whose gradients are those of a fixed random target."""
    target = torch.randn(len(ids), module.plan.output_width, generator=torch.Generator().manual_seed(1))
    module.train()
    for _ in range(steps):
        (module(ids, *NO_BAGS) - target).square().sum().backward()
        module.step(0.1)


def test_a_new_owner_starts_as_it_was() -> None:
    """Its values and their moving average come from the rows it shared; its optimizer state is new."""
    module = make({"features": {"user": 16}})
    table = module.table
    assert isinstance(table, TorchTable)
    table.average = RowAverage(table.rows, table.width, 0.9)
    ids = torch.tensor([[1, 10], [2, 11], [3, 10]])
    shared = hashed_rows("user", torch.tensor([10, 11]), 2, 0, 100)
    train(module, ids)
    assert owners(module, torch.tensor([10, 11])).all()
    rows = module.rows(ids[:2], *NO_BAGS)[0][:, 1:].long()
    assert int(rows.min()) >= 100
    assert torch.equal(table.values()[rows], table.values()[shared])
    averaged = table.average.materialise(table.values())
    assert torch.equal(averaged[rows], averaged[shared])
    for state in table.optimizer_state().values():
        if state.dim():
            assert not state[rows].any()
            assert state[shared].any()
    train(module, ids)
    assert not torch.equal(table.values()[rows], table.values()[shared])


def test_what_an_owner_learns_touches_no_shared_row() -> None:
    module = make({"features": {"user": 16}})
    ids = torch.tensor([[1, 10], [1, 11]])
    train(module, ids)
    shared = hashed_rows("user", torch.tensor([10, 11]), 2, 0, 100).flatten()
    item = hashed_rows("item", torch.tensor([1]), 1, 0, 100).flatten()
    before = module.table.values().clone()
    train(module, ids, steps=3)
    moved = (module.table.values() != before).any(1).nonzero().flatten()
    assert not set(shared.tolist()) & set(moved.tolist()) - set(item.tolist())
    assert set(item.tolist()) <= set(moved.tolist())


def test_other_features_lookups_do_not_change() -> None:
    ids = torch.randint(-(2**62), 2**62, (50, 2), generator=torch.Generator().manual_seed(0))
    plain, hot = make(), make({"features": {"user": 16}})
    train(hot, ids)
    assert not torch.equal(plain.rows(ids, *NO_BAGS)[0], hot.rows(ids, *NO_BAGS)[0])
    assert torch.equal(plain.rows(ids, *NO_BAGS)[0][:, :1], hot.rows(ids, *NO_BAGS)[0][:, :1])


def test_evaluation_moves_nobody() -> None:
    module = make({"features": {"user": 16}}).eval()
    module(torch.tensor([[1, 10]]), *NO_BAGS)
    with torch.no_grad():
        module.train()(torch.tensor([[1, 10]]), *NO_BAGS)
    module.step(0.1)
    assert (module.hot_keys == NO_OWNER).all()


def test_evidence_is_the_norm_of_each_lookups_gradient() -> None:
    """Single-valued features and bags, two lookups before one step."""
    module = make({"features": {"user": 16, "tags": 16}}, bags=("genres", "tags")).train()
    ids = torch.tensor([[1, 10], [2, 11]])
    bags = torch.tensor([5, 6, 7, 8, 9]), torch.tensor([[1, 1], [2, 1]])
    weights = [torch.randn(2, module.plan.output_width, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    for weight in weights:
        (module(ids, *bags) * weight).sum().backward()
    watched = list(module._watched)
    _, user, _, tags = module.plan.features
    values, norms = module._evidence(user, watched)
    assert values.tolist() == [10, 11, 10, 11]
    torch.testing.assert_close(norms, torch.cat([w[:, WIDTH : 3 * WIDTH] for w in weights]).norm(dim=1))
    values, norms = module._evidence(tags, watched)
    assert values.tolist() == [7, 8, 9] * 2
    own = [w[:, 6 * WIDTH :] for w in weights]  # item 1, user 2, genres 3 chunks; a sum passes its gradient on
    torch.testing.assert_close(norms, torch.cat([w[[0, 0, 1]] for w in own]).norm(dim=1))
    module.step(0.1)
    assert not module._watched


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_gradients_that_say_nothing_move_nobody(value: float) -> None:
    module = make({"features": {"user": 16}})
    source, target = region(module).step(
        module.hot_keys, [(torch.arange(4), torch.tensor([1.0, 1.0, 1.0, value]) * value)]
    )
    assert len(source) == len(target) == 0
    assert (module.hot_keys == NO_OWNER).all()


def test_training_may_start_with_the_most_frequent_ids() -> None:
    ids = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 5000)
    counts = np.maximum(1e5 * zipf(5000, 1.1), 1).astype(np.int64)
    module = make({"features": {"user": 256}, "start": "counts"}, counts={"user": (ids, counts)})
    own = owners(module, torch.from_numpy(ids)).numpy()
    assert own.sum() == 256
    assert own[:200].mean() > 0.98
    assert counts[own].sum() / counts[:256].sum() > 0.995
    hot = region(module)
    assert float(hot.scores.sum()) == pytest.approx(counts[own].sum() / counts.sum() / (1 - 0.5**0.001), rel=1e-4)


def test_slots_are_divided_by_who_has_the_most_frequent_ids() -> None:
    rng = np.random.default_rng(0)
    sizes = {"user": 1000, "item": 300}
    counts = {
        name: (rng.integers(-(2**63), 2**63 - 1, n), 1 + (1e4 * zipf(n, 1.2)).astype(np.int64))
        for name, n in sizes.items()
    }
    head = head_of(counts, list(sizes), 200)
    slots = {f.name: f.hot_slots for f in make({"slots": 200}, counts=counts).plan.features}
    assert slots == {name: -(-len(ids) // WAYS) * WAYS for name, ids in head.items()}
    assert 200 <= sum(slots.values()) < 200 + 2 * WAYS
    # what is named keeps its own number, what is exact has none: the others divide all slots
    named = make({"slots": 200, "features": {"item": 16}}, counts=counts).plan
    assert {f.name: f.hot_slots for f in named.features} == {"user": 200, "item": 16}
    exact = make({"slots": 200}, counts=counts, exact={"features": {"item": True}}).plan
    assert {f.name: f.hot_slots for f in exact.features} == {"user": 200, "item": 0}


@pytest.mark.parametrize("slots", [7, 720])
def test_slots_do_not_depend_on_the_order_of_features(slots: int) -> None:
    ids = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 360)
    counts = {name: (ids, np.ones(len(ids), np.int64)) for name in ("a", "b")}
    plans = [
        plan_embedding(
            Layout(id_names=names),
            EmbeddingConfig.model_validate({"width": 2, "hot": {"slots": slots}}),
            counts,
        )
        for names in (("a", "b"), ("b", "a"))
    ]
    first, second = ({f.name: f.hot_slots for f in plan.features} for plan in plans)
    assert first == second
    assert slots <= sum(first.values()) < slots + 2 * WAYS


@pytest.mark.parametrize("config", [{"kind": "collisionless"}, {"chunks": {"default": 0}}])
def test_slots_that_no_feature_could_have_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"hot\.slots.*no feature whose ids could be hot.*leave it out"):
        make({"slots": 100}, **config)


def test_first_owners_do_not_depend_on_the_order_of_the_counts() -> None:
    ids = np.arange(500, dtype=np.int64)
    counts = np.ones(500, np.int64)
    order = np.random.default_rng(0).permutation(500)
    first, second = most_frequent("user", 64, ids, counts), most_frequent("user", 64, ids[order], counts)
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])


def test_keys_and_slots_are_golden() -> None:
    """Stored models hold them: they may only change together with HASH_VERSION."""
    hashes = mix64(torch.tensor([0, 1, -1]) ^ salt("user", 0))
    assert hot_key(hashes).tolist() == [-1135748019, 1078834381, -774173802]
    assert hot_buckets(hashes, 1, 100).tolist() == [[74, 85], [16, 31], [30, 45]]
    assert hot_key(torch.tensor([-(1 << 31)])).tolist() == [NO_OWNER + 1]


def test_bytes_are_counted_and_serialised(tmp_path: Path) -> None:
    module = make({"features": {"user": 250}})
    plan = module.plan
    assert (plan.hot_slots, plan.rows) == (256, 100 + 256 * 2)
    assert plan.table_bytes == plan.rows * WIDTH * 4 + 256 * 4
    write_tensors(tmp_path / "table", {"table": module.table.stored(), "hot_keys": module.hot_keys}, {})
    assert (tmp_path / "table").stat().st_size == pytest.approx(plan.table_bytes, rel=0.02)
    lines = {line["feature"]: line for line in plan.summary()}
    assert (lines["user"]["region"], lines["user"]["hot_slots"]) == ("hot + shared", 256)
    assert lines["user"]["bytes"] == 256 * (2 * WIDTH * 4 + 4)
    assert (lines["item"]["region"], lines["item"]["bytes"]) == ("shared", 0)


def test_training_bytes_are_what_the_state_takes() -> None:
    module = make({"features": {"user": 256}})
    rows = module.plan.rows
    adam = 2 * rows * WIDTH * 4 + 8
    hot = 256 * (4 + 4 + 8 * 4) + 8 + 4  # score, last seen, 8 counters a slot; unit and step number
    index = (len(module.exact_keys) + len(module.hot_keys)) * 4
    stored = rows * WIDTH * 4 + index
    assert module.training_bytes == stored + adam + hot
    table = module.table
    table.average = RowAverage(table.rows, table.width, 0.9)
    assert module.training_bytes == stored + adam + hot + rows * (WIDTH * 4 + 4) + 4


def test_a_plan_with_hot_slots_survives_json() -> None:
    plan = make({"features": {"user": 64}, "half_life": 7, "expire": 9}).plan
    again = EmbeddingPlan.from_json(plan.to_json())
    assert again == plan
    assert (again.hot_keys == NO_OWNER).all()
    assert (again.hot_half_life, again.hot_expire) == (7, 9)


def test_a_dropped_feature_has_no_slots() -> None:
    assert make({"features": {"user": 64}}, chunks={"features": {"user": 0}}).plan.hot_slots == 0


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"exact": {"features": {"user": True}}}, r"hot\.features\.user.*embedding\.exact\.features\.user to false"),
        ({"kind": "collisionless"}, r"hot\.features\.user.*leave it out"),
        ({"chunks": {"default": 64}, "features": {"user": 2**27}}, "more rows than can be addressed"),
        ({"features": {"usr": 8}}, "did you mean 'user'"),
    ],
)
def test_what_cannot_be_hot_is_refused(config: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        make({"features": config.pop("features", {"user": 64})}, **config)


@pytest.mark.skipif(not is_installed("fbgemm_gpu"), reason="fbgemm-gpu is not installed")
def test_fbgemm_has_no_hot_region() -> None:
    with pytest.raises(ConfigError, match=r"hot.*kernel to auto"):
        MultiplexedEmbedding(make({"features": {"user": 64}}).plan, optimizer=TableOptimizer(), kernel="fbgemm")
