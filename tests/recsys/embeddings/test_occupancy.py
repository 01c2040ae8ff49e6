"""Occupancy against tables filled by hand, plain loops, and what chance gives."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from features.batch import Batch
from features.errors import DataError
from features.layout import Layout
from recsys.embeddings import EmbeddingConfig, EmbeddingPlan, FeaturePlan, MultiplexedEmbedding, plan_embedding
from recsys.embeddings.occupancy import FeatureUse, Occupancy, count_ids, occupy, regions_of

Counts = dict[str, tuple[np.ndarray, np.ndarray]]


def sample(sizes: dict[str, int], seed: int = 0, most: int = 50) -> Counts:
    """Random ids, each seen 1 to `most` times."""
    rng = np.random.default_rng(seed)
    return {
        name: (np.sort(rng.integers(-(2**63), 2**63 - 1, n)), rng.integers(1, most + 1, n)) for name, n in sizes.items()
    }


def build(counts: Counts, bags: tuple[str, ...] = (), **config: object) -> MultiplexedEmbedding:
    """A table planned for exactly these ids."""
    layout = Layout(
        id_names=tuple(n for n in counts if n not in bags), bag_names=bags, bag_poolings=("sum",) * len(bags)
    )
    settings_ = EmbeddingConfig.model_validate({"width": 4, "rows": 100, "exact": {"max_values": 0}, **config})
    return MultiplexedEmbedding(plan_embedding(layout, settings_, counts), layout.bag_poolings)


def by_hand(*features: FeaturePlan, rows: int) -> MultiplexedEmbedding:
    return MultiplexedEmbedding(EmbeddingPlan("multiplexed", 4, rows, features, 0.05), ("sum",))


def ids(*counts: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids 0, 1, ... seen so often."""
    return np.arange(len(counts), dtype=np.int64), np.array(counts, np.int64)


def of(occupancy: Occupancy, name: str) -> FeatureUse:
    return next(f for f in occupancy.features if f.feature == name)


def test_a_table_filled_by_hand() -> None:
    """Row 0 takes two ids of `user` and one of `item`; `tag` alone has row 1, in both its chunks; row 2 is empty."""
    embedding = by_hand(
        FeaturePlan("user", False, 1, 2, "shared", 0, 1),
        FeaturePlan("item", False, 1, 1, "shared", 0, 1),
        FeaturePlan("unused", False, 0, 0, "dropped", 0, 0),
        FeaturePlan("tag", True, 2, 1, "shared", 1, 1),
        rows=3,
    )
    found = occupy(embedding, {"user": ids(6, 2), "item": ids(2), "tag": ids(5)})
    user, item, tag = found.features
    assert [(f.ids, f.lookups) for f in found.features] == [(2, 8), (1, 2), (1, 10)]
    assert user.measured is not None
    assert item.measured is not None
    assert tag.measured is not None
    # every user meets the other and the item; the item meets users only
    assert (user.measured.intra, user.measured.inter, user.measured.confused) == (1, 1, 1)
    assert (item.measured.intra, item.measured.inter, item.measured.confused) == (0, 1, 0)
    # of the row's 10 lookups others of the feature have 2 (seen by 6) and 6 (seen by 2)
    assert user.intra_traffic == pytest.approx((6 * 0.2 + 2 * 0.6) / 8)
    assert user.inter_traffic == pytest.approx(0.2)
    assert (item.intra_traffic, item.inter_traffic) == (0, 0.8)
    # a chunk does not collide with a chunk of its own id, but it is a duplicate of it
    assert (tag.measured.intra, tag.measured.inter, tag.measured.duplicate_chunks) == (0, 0, 1)
    np.testing.assert_array_equal(found.touched, [0, 1])
    np.testing.assert_array_equal(found.ids_in_row, [3, 1])
    np.testing.assert_array_equal(found.load_of(np.array([2, 1, 0])), [0, 1, 3])


def test_load_and_traffic_filled_by_hand() -> None:
    """Two users in one row, one item in the other."""
    embedding = by_hand(
        FeaturePlan("user", False, 1, 2, "shared", 0, 1), FeaturePlan("item", False, 1, 1, "shared", 1, 1), rows=2
    )
    load = occupy(embedding, {"user": ids(6, 2), "item": ids(2)}).load
    assert load is not None
    assert (load.rows, load.measured.mean, load.measured.maximum, load.measured.empty) == (2, 1.5, 2, 0)
    assert load.expected.mean == pytest.approx(1.5)
    assert load.expected.empty == pytest.approx((math.exp(-2) + math.exp(-1)) / 2)
    assert load.dispersion == pytest.approx(0.25 / 1.5)
    assert (load.traffic_mean, load.traffic_max) == (5, 8)
    # the busiest row has 8 of 10 lookups, but one id has only 6 of them
    assert (load.top_row, load.top_id) == (0.8, 0.6)
    assert load.curve == [
        {"number": 1, "rows": 0.8, "ids": 0.6},
        {"number": 2, "rows": 1.0, "ids": 0.8},
        {"number": 3, "rows": 1.0, "ids": 1.0},
    ]
    assert [(bin_["from"], bin_["to"], bin_["rows"]) for bin_ in load.histogram] == [(0, 0, 0), (1, 1, 1), (2, 2, 1)]
    assert [tuple(bin_.values()) for bin_ in load.traffic_histogram] == [
        (0, 0, 0),
        (1, 1, 0),
        (2, 3, 1),
        (4, 7, 0),
        (8, 15, 1),
    ]


def brute_force(embedding: MultiplexedEmbedding, counts: Counts) -> dict[str, tuple[float, ...]]:
    """intra, inter, confused, duplicate_chunks, intra_traffic and inter_traffic by plain loops."""
    tables: dict[str, dict[int, tuple[int, ...]]] = {}
    bags = [f.name for f in embedding.plan.features if f.bag]
    for f in embedding.plan.features:
        values = torch.from_numpy(counts[f.name][0])
        singles = [g for g in embedding.plan.features if not g.bag]
        columns = torch.zeros(len(values), len(singles), dtype=torch.int64)
        if f.bag:
            lengths = torch.tensor([[len(values) if name == f.name else 0] for name in bags])
            rows = embedding.rows(columns, values, lengths)[1][bags.index(f.name)]
        else:
            place = [g.name for g in singles].index(f.name)
            columns[:, place] = values
            start = sum(g.chunks for g in singles[:place])
            rows = embedding.rows(columns, values[:0], torch.zeros(len(bags), 1, dtype=torch.int64))[0]
            rows = rows[:, start : start + f.chunks]
        tables[f.name] = {int(v): tuple(r) for v, r in zip(values, rows.tolist(), strict=True)}
    traffic: Counter[int] = Counter()
    traffic_of: Counter[tuple[str, int]] = Counter()
    for name, table in tables.items():
        for value, count in zip(*counts[name], strict=True):
            for row in table[int(value)]:
                traffic[row] += int(count)
                traffic_of[name, row] += int(count)
    out = {}
    for name, table in tables.items():
        sums, lookups, occurrences = np.zeros(6), 0, 0
        for value, count in zip(*counts[name], strict=True):
            own = table[int(value)]
            peers = [rows for v, rows in table.items() if v != value]
            others = {row for n, t in tables.items() if n != name for rows in t.values() for row in rows}
            occurrences += int(count)
            sums[2] += count * (own in peers)
            sums[3] += count * (len(set(own)) < len(own))
            for row in own:
                lookups += int(count)
                sums[0] += count * any(row in rows for rows in peers)
                sums[1] += count * (row in others)
                mine = int(count) * own.count(row)
                sums[4] += count * (traffic_of[name, row] - mine) / traffic[row]
                sums[5] += count * (traffic[row] - traffic_of[name, row]) / traffic[row]
        out[name] = tuple(sums / [lookups, lookups, occurrences, occurrences, lookups, lookups])
    return out


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 12), min_size=3, max_size=3),
    chunks=st.lists(st.integers(1, 3), min_size=3, max_size=3),
    rows=st.integers(1, 40),
    exact=st.sampled_from([0, 4]),
    kind=st.sampled_from(["multiplexed", "hashed", "collisionless"]),
    seed=st.integers(0, 1000),
)
def test_rates_equal_plain_loops(
    sizes: list[int], chunks: list[int], rows: int, exact: int, kind: str, seed: int
) -> None:
    names = ("user", "item", "tags")
    counts = sample(dict(zip(names, sizes, strict=True)), seed)
    embedding = build(
        counts,
        ("tags",),
        rows=rows,
        kind=kind,
        exact={"max_values": exact},
        chunks={"features": dict(zip(names, chunks, strict=True))},
        hash_seed=seed,
    )
    found = occupy(embedding, counts)
    for name, expected in brute_force(embedding, counts).items():
        use = of(found, name)
        assert use.measured is not None
        measured = (*vars(use.measured).values(), use.intra_traffic, use.inter_traffic)
        assert measured == pytest.approx(expected, abs=1e-12)


def test_rates_of_random_ids_are_those_of_a_perfect_hash() -> None:
    """Within four standard errors, for every feature; the ids are equally frequent, so that each counts."""
    sizes = {"user": 4000, "item": 1500, "tags": 500}
    counts = {name: (values, np.ones_like(n)) for name, (values, n) in sample(sizes).items()}
    chunks = {"user": 1, "item": 2, "tags": 4}
    found = occupy(build(counts, ("tags",), rows=2000, chunks={"features": chunks}), counts)
    for f in found.features:
        assert f.measured is not None
        assert f.expected is not None
        assert f.trained == f.expected
        for name in ("intra", "inter", "confused", "duplicate_chunks"):
            measured, expected = getattr(f.measured, name), getattr(f.expected, name)
            # ids that share a row are not independent: twice the binomial error
            assert measured == pytest.approx(expected, abs=4 * 2 * math.sqrt(expected / f.ids) + 1e-12), (f, name)
    load = found.load
    assert load is not None
    keys = sum(sizes[n] * chunks[n] for n in sizes)
    assert load.expected.mean == pytest.approx(keys / 2000, rel=1e-3)
    assert load.measured.mean == pytest.approx(load.expected.mean, rel=1e-3)
    assert load.measured.empty == pytest.approx(load.expected.empty, abs=4 * math.sqrt(load.expected.empty / 2000))
    assert load.dispersion == pytest.approx(1, abs=4 * math.sqrt(2 / 2000))
    assert abs(load.measured.maximum - load.expected.maximum) <= 3
    assert sum(bin_["rows"] for bin_ in load.histogram) == 2000
    assert sum(bin_["expected"] for bin_ in load.histogram) == pytest.approx(2000, rel=1e-3)
    chi = sum((b["rows"] - b["expected"]) ** 2 / b["expected"] for b in load.histogram if b["expected"] >= 5)
    bins = sum(b["expected"] >= 5 for b in load.histogram)
    assert chi < bins + 4 * math.sqrt(2 * bins)


def test_expected_rates_are_the_formulas() -> None:
    counts = sample({"user": 30, "item": 20})
    found = occupy(build(counts, rows=50, chunks={"features": {"user": 2, "item": 1}}), counts)
    expected = of(found, "user").expected
    assert expected is not None
    assert expected.intra == pytest.approx(1 - 0.98 ** (2 * 29))
    assert expected.inter == pytest.approx(1 - 0.98**20)
    assert expected.confused == pytest.approx(1 - (1 - 1 / 50**2) ** 29)
    assert expected.duplicate_chunks == pytest.approx(1 / 50)


def test_expected_with_all_training_values_counts_those_outside_the_sample() -> None:
    counts = sample({"user": 300, "item": 200})
    embedding = build(counts, rows=500)
    part = {name: (values[::10], n[::10]) for name, (values, n) in counts.items()}
    user = of(occupy(embedding, part), "user")
    assert user.trained is not None
    assert user.expected is not None
    assert user.trained.intra == pytest.approx(1 - (1 - 1 / 500) ** 299)
    assert user.expected.intra == pytest.approx(1 - (1 - 1 / 500) ** 29)


def test_exact_fields_collide_with_nothing_and_unseen_values_hash() -> None:
    counts = sample({"user": 200, "age": 7})
    embedding = build(counts, rows=1, exact={"max_values": 10})
    alone = of(occupy(embedding, counts), "age")
    assert alone.traffic == {"exact": 1}
    assert alone.measured == alone.expected
    assert set(vars(alone.measured).values()) == {0}
    unseen = np.append(counts["age"][0], 3)
    mixed = of(occupy(embedding, {**counts, "age": (unseen, np.ones(8, np.int64))}), "age")
    assert mixed.traffic == {"exact": 7 / 8, "shared": 1 / 8}
    assert mixed.measured is not None
    assert (mixed.measured.intra, mixed.measured.inter, mixed.measured.confused) == (0, 1 / 8, 0)
    assert mixed.expected == mixed.measured


def test_hot_rows_are_those_of_the_ids_that_own_a_slot() -> None:
    counts = sample({"user": 400, "item": 30}, most=1000)
    embedding = build(counts, rows=20, hot={"features": {"user": 64}}, chunks={"features": {"user": 2}})
    assert [(r.name, r.start, r.stop) for r in regions_of(embedding.plan)] == [("shared", 0, 20), ("hot", 20, 148)]
    found = occupy(embedding, counts)
    user, item = of(found, "user"), of(found, "item")
    # both chunks of an owner's lookups, and nobody else, read its rows
    ids = torch.zeros(400, 2, dtype=torch.int64)
    ids[:, 0] = torch.from_numpy(counts["user"][0])
    rows, _ = embedding.rows(ids, torch.empty(0, dtype=torch.int64), torch.empty(0, 400, dtype=torch.int64))
    owns = (rows[:, 0] >= 20).numpy()
    hit = counts["user"][1][owns].sum() / counts["user"][1].sum()
    assert 30 < owns.sum() <= 64
    assert user.traffic == {"shared": pytest.approx(1 - hit), "hot": pytest.approx(hit)}
    assert item.traffic == {"shared": 1}
    assert user.expected is not None
    assert user.expected.intra == pytest.approx((1 - hit) * (1 - 0.95 ** (2 * (400 - owns.sum() - 1))))
    assert user.trained == user.expected
    hot = next(region for region in found.regions if region.region == "hot")
    assert (hot.rows, hot.touched) == (128, owns.sum() * 2 / 128)


def test_regions_tell_all_bytes_and_all_traffic() -> None:
    counts = sample({"user": 200, "age": 7})
    embedding = build(counts, rows=30, exact={"max_values": 10}, chunks={"features": {"age": 2}})
    found = occupy(embedding, counts)
    shared, exact, *index = found.regions
    assert (shared.region, shared.rows, shared.bytes) == ("shared", 30, 30 * 16)
    assert (exact.region, exact.rows, exact.bytes, exact.touched) == ("exact", 14, 14 * 16, 1)
    assert [part.region for part in index] == ["index"]
    assert sum(part.bytes for part in found.regions) == embedding.plan.table_bytes
    users, ages = counts["user"][1].sum(), 2 * counts["age"][1].sum()
    assert (shared.traffic, exact.traffic) == pytest.approx((users / (users + ages), ages / (users + ages)))


def test_counts_of_batches_are_those_of_plain_counting() -> None:
    layout = Layout(id_names=("user", "item"), bag_names=("tags",), bag_poolings=("sum",))
    rng = np.random.default_rng(0)
    batches, seen = [], {name: Counter[int]() for name in ("user", "item", "tags")}
    for _ in range(3):
        columns, lengths = rng.integers(0, 9, (20, 2)), rng.integers(0, 3, (1, 20))
        tags = rng.integers(0, 9, int(lengths.sum()))
        for name, values in (("user", columns[:, 0]), ("item", columns[:, 1]), ("tags", tags)):
            seen[name].update(values.tolist())
        parts = [torch.from_numpy(x) for x in (columns, tags, lengths)]
        batches.append(Batch(*parts, dense=torch.zeros(20, 0), vectors=torch.zeros(20, 0)))
    counts = count_ids(layout, batches)
    assert {name: dict(zip(*map(np.ndarray.tolist, pair), strict=True)) for name, pair in counts.items()} == seen
    assert all((np.diff(values) > 0).all() for values, _ in counts.values())


def test_a_bag_that_is_empty_in_the_sample_has_no_rates() -> None:
    counts = sample({"user": 5, "tags": 5})
    embedding = build(counts, ("tags",))
    tags = of(occupy(embedding, {**counts, "tags": ids()}), "tags")
    assert (tags.ids, tags.lookups, tags.measured, tags.expected) == (0, 0, None, None)


def test_more_ids_than_a_block_are_addressed_alike() -> None:
    counts = sample({"user": 70_000, "item": 3})
    found = occupy(build(counts, rows=2**20), counts)
    assert found.ids_in_row.sum() == 70_003
    assert of(found, "user").ids == 70_000


def test_a_feature_that_the_sample_lacks_is_named() -> None:
    counts = sample({"user": 5, "item": 5})
    with pytest.raises(DataError, match="item: the sample lacks a feature"):
        occupy(build(counts), {"user": counts["user"]})


def test_no_rows_are_refused() -> None:
    with pytest.raises(DataError, match="no rows"):
        count_ids(Layout(id_names=("user",)), [])
