"""A model taken over into another shape predicts what it did, for what both shapes know."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from features.batch import Batch
from features.errors import ConfigError
from features.layout import Layout
from recsys.embeddings import EmbeddingConfig, plan_embedding
from recsys.embeddings.plan import IdCounts
from recsys.embeddings.transfer import keep_owners
from recsys.models import CTRModel, ModelConfig
from recsys.models.warm_start import WarmStartReport, warm_start

IDS, BAGS = ("user", "item", "city"), ("tags", "words")
FULL = Layout(
    id_names=IDS,
    bag_names=BAGS,
    bag_poolings=("sum", "mean"),
    dense_names=("price", "price:missing", "age"),
    vector_names=("image", "text"),
    vector_sizes=(3, 2),
    label_names=("click", "buy"),
)
VALUES = {name: np.arange(60, dtype=np.int64) for name in (*IDS, *BAGS)}
COUNTS: IdCounts = {name: (v, np.arange(1, 61)) for name, v in VALUES.items()}
NETWORKS: list[dict[str, Any]] = [
    {"interaction": "mlp"},
    {"interaction": "mlp", "hidden": []},
    {"interaction": "dcn"},
    {"interaction": "dcn", "structure": "stacked"},
    {"interaction": "dcnv2"},
    {"interaction": "dcnv2", "low_rank": 3},
    {"interaction": "dcnv2", "structure": "stacked"},
    {"interaction": "dcnv2", "hidden": []},
    {"interaction": "fm"},
    {"interaction": "fm", "hidden": []},
    {"interaction": "ipnn"},
    {"interaction": "ipnn", "hidden": []},
]
networks = pytest.mark.parametrize("network", NETWORKS, ids=lambda n: "-".join(str(v) for v in n.values()))


def without(layout: Layout, *names: str) -> Layout:
    """The layout less some features or tasks."""

    def kept(every: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(n for n in every if n.partition(":")[0] not in names)

    poolings = dict(zip(layout.bag_names, layout.bag_poolings, strict=True))
    sizes = dict(zip(layout.vector_names, layout.vector_sizes, strict=True))
    bags, vectors = kept(layout.bag_names), kept(layout.vector_names)
    return replace(
        layout,
        id_names=kept(layout.id_names),
        bag_names=bags,
        bag_poolings=tuple(poolings[n] for n in bags),
        dense_names=kept(layout.dense_names),
        vector_names=vectors,
        vector_sizes=tuple(sizes[n] for n in vectors),
        label_names=kept(layout.label_names),
    )


def build(
    layout: Layout = FULL,
    *,
    seed: int = 0,
    network: dict[str, Any] | None = None,
    trained: bool = False,
    counts: IdCounts = COUNTS,
    **table: Any,
) -> CTRModel:
    """A model in evaluation; `trained` puts noise on its network, where zeros would hide mistakes."""
    config = EmbeddingConfig.model_validate({"width": 4, "rows": 50, "exact": {"max_values": 0}, **table})
    plan = plan_embedding(layout, config, {n: counts[n] for n in (*layout.id_names, *layout.bag_names)})
    model = CTRModel(layout, plan, ModelConfig.model_validate({"hidden": [8, 5], **(network or {})}), seed=seed)
    if trained:
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.dense_parameters().values():
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def batch(layout: Layout = FULL, rows: int = 20) -> Batch:
    """Random rows; a feature has the same values whatever the others are."""

    def column(name: str, size: int = 1) -> torch.Tensor:
        return torch.randn(rows, size, generator=torch.Generator().manual_seed(sum(map(ord, name))))

    def ids(name: str) -> torch.Tensor:
        return (column(name, 3) * 20).long().abs()  # some below 60, which training saw

    empty = torch.empty(0, dtype=torch.int64)
    lengths = [ids(n)[:, 1] % 3 for n in layout.bag_names]
    bags = [ids(n)[:, :1].repeat_interleave(k, 0).flatten() for n, k in zip(layout.bag_names, lengths, strict=True)]
    vectors = zip(layout.vector_names, layout.vector_sizes, strict=True)
    return Batch(
        ids=torch.cat([torch.empty(rows, 0, dtype=torch.int64), *(ids(n)[:, :1] for n in layout.id_names)], 1),
        bag_values=torch.cat([empty, *bags]),
        bag_lengths=torch.stack(lengths) if lengths else torch.empty(0, rows, dtype=torch.int64),
        dense=torch.cat([torch.empty(rows, 0), *(column(n) for n in layout.dense_names)], 1),
        vectors=torch.cat([torch.empty(rows, 0), *(column(n, size) for n, size in vectors)], 1),
        labels=torch.ones(rows, len(layout.label_names)),
    )


def changes(report: WarmStartReport) -> dict[str, str]:
    return {f.feature: f.change for f in report.features}


def counts_of(model: CTRModel) -> IdCounts:
    return {f.name: COUNTS[f.name] for f in model.plan.features}


def take_over(old: CTRModel, new: CTRModel, *reset: str) -> WarmStartReport:
    return warm_start(new, old, counts_of(new), reset=reset)


@networks
@pytest.mark.parametrize("factor", [1, 2, 3])
def test_growing_rows_by_a_whole_factor_keeps_every_prediction_bit_for_bit(
    network: dict[str, Any], factor: int
) -> None:
    old = build(network=network, trained=True, seed=1)
    new = build(network=network, seed=2, rows=50 * factor)
    report = take_over(old, new)
    assert torch.equal(new.logits(batch()), old.logits(batch()))
    assert (report.rows, report.rows_kept, report.rows_merged, report.lookups_kept) == (50 * factor, 50 * factor, 0, 1)
    assert set(changes(report).values()) == {"kept"}


@pytest.mark.parametrize("slots", [8, 16])
def test_owners_of_hot_rows_stay_and_no_prediction_moves(slots: int) -> None:
    old = build(trained=True, seed=1, hot={"features": {"user": 8, "tags": 8}})
    rare = {name: (values, 61 - seen) for name, (values, seen) in COUNTS.items()}
    keep_owners(build(hot={"features": {"user": 8, "tags": 8}}, counts=rare).embedding, old.embedding, COUNTS)
    new = build(seed=2, rows=100, hot={"features": {"user": slots, "tags": slots}})
    report = take_over(old, new)
    assert torch.equal(new.logits(batch()), old.logits(batch()))
    assert report.lookups_kept == 1
    assert new.plan is new.embedding.plan


@networks
@settings(max_examples=15, deadline=None)
@given(added=st.sets(st.sampled_from([*IDS, *BAGS, "price", "age", "image", "text"]), min_size=1, max_size=5))
def test_what_is_added_leaves_the_prediction_as_it_was(network: dict[str, Any], added: set[str]) -> None:
    layout = without(FULL, *added)
    old = build(layout, network=network, trained=True, seed=1)
    new = build(network=network, seed=2)
    report = take_over(old, new)
    torch.testing.assert_close(new.logits(batch()), old.logits(batch(layout)), atol=1e-5, rtol=1e-5)
    assert {name for name, change in changes(report).items() if change == "new"} == added
    assert set(changes(report).values()) == {"kept", "new"} or added == set(changes(report))


@networks
def test_a_new_chunk_of_an_old_feature_leaves_the_prediction_as_it_was(network: dict[str, Any]) -> None:
    old = build(network=network, trained=True, seed=1)
    new = build(network=network, seed=2, chunks={"default": 1, "features": {"user": 3, "tags": 2}})
    report = take_over(old, new)
    torch.testing.assert_close(new.logits(batch()), old.logits(batch()), atol=1e-5, rtol=1e-5)
    user = next(f for f in report.features if f.feature == "user")
    assert (user.change, user.chunks_before, user.chunks) == ("kept", 1, 3)
    assert user.rows is not None
    assert user.rows.kept == pytest.approx(1 / 3)
    assert {line["feature"]: line["chunks"] for line in report.lines()}["tags"] == "1 -> 2"


@networks
def test_what_is_added_learns(network: dict[str, Any]) -> None:
    """Within two steps: the first moves the columns that read it, the second its own rows."""
    layout = without(FULL, "city", "age")
    old = build(layout, network=network, trained=True, seed=1)
    new = build(network=network, seed=2)
    take_over(old, new)
    new.train()
    table = new.embedding.table
    before = table.values().clone()
    city = new.embedding.rows_of("city", batch().ids[:, 2]).flatten().long()
    rate = 0.1
    for _ in range(2):
        new.logits(batch()).sum().backward()
        for parameter in new.dense_parameters().values():
            assert parameter.grad is not None
            parameter.data -= rate * parameter.grad
            parameter.grad = None
        table.step(rate)
    assert not torch.equal(table.stored()[city], before[city])
    told = new.logits(batch())
    other = batch()
    other.ids[:, 2] += 7
    other.dense[:, 2] += 1
    assert not torch.allclose(told, new.logits(other), atol=1e-6)


@pytest.mark.parametrize("network", [n for n in NETWORKS if n["interaction"] != "dcn"])
def test_what_is_dropped_is_as_if_it_were_nought(network: dict[str, Any]) -> None:
    """DCN's biases would still speak for it."""
    layout = without(FULL, "user", "words", "price", "image")
    old = build(network=network, trained=True, seed=1, kind="collisionless")
    new = build(layout, network=network, seed=2, kind="collisionless")
    report = take_over(old, new)
    with torch.no_grad():
        for name in ("user", "words"):
            rows = old.embedding.rows_of(name, torch.arange(200)).flatten()
            old.embedding.table.stored()[rows.long()] = 0
    nought = batch()
    nought.dense[:, :2] = 0
    nought.vectors[:, :3] = 0
    torch.testing.assert_close(new.logits(batch(layout)), old.logits(nought), atol=1e-5, rtol=1e-5)
    dropped = {name for name, change in changes(report).items() if change == "dropped"}
    assert dropped == {"user", "words", "price", "image"}


@networks
def test_a_reset_feature_is_as_silent_as_a_new_one(network: dict[str, Any]) -> None:
    old = build(network=network, trained=True, seed=1)
    dropped, reset = build(without(FULL, "user", "price"), network=network, seed=2), build(network=network, seed=2)
    take_over(old, dropped)
    report = take_over(old, reset, "user", "price")
    expected = dropped.logits(batch(without(FULL, "user", "price")))
    torch.testing.assert_close(reset.logits(batch()), expected, atol=1e-5, rtol=1e-5)
    assert {name for name, change in changes(report).items() if change == "reset"} == {"user", "price"}


@networks
def test_the_order_of_features_does_not_matter(network: dict[str, Any]) -> None:
    turned = replace(FULL, id_names=IDS[::-1], bag_names=BAGS[::-1], bag_poolings=FULL.bag_poolings[::-1])
    old, new = build(network=network, trained=True, seed=1), build(turned, network=network, seed=2)
    take_over(old, new)
    torch.testing.assert_close(new.logits(batch(turned)), old.logits(batch()), atol=1e-5, rtol=1e-5)


def test_a_feature_without_chunks_has_no_part() -> None:
    """Dropped by `chunks: 0` it is as gone as one that the spec no longer has."""
    old = build(trained=True, seed=1)
    gone, silent = build(without(FULL, "item"), seed=2), build(seed=2, chunks={"features": {"item": 0}})
    assert changes(take_over(old, gone))["item"] == changes(take_over(old, silent))["item"] == "dropped"
    torch.testing.assert_close(silent.logits(batch()), gone.logits(batch(without(FULL, "item"))), atol=1e-6, rtol=1e-5)
    back = build(seed=3)
    assert changes(take_over(silent, back))["item"] == "new"
    assert "item" not in changes(take_over(silent, build(seed=3, chunks={"features": {"item": 0}})))


def test_tasks_are_taken_over_by_name() -> None:
    layout = without(FULL, "click")
    old, new = build(layout, trained=True, seed=1), build(seed=2)
    take_over(old, new)
    torch.testing.assert_close(new.logits(batch())[:, 1], old.logits(batch(layout))[:, 0])
    assert float(new.logits(batch()).detach()[:, 0].std()) > 0
    back = build(layout, seed=3)
    take_over(new, back)
    assert torch.equal(back.logits(batch(layout)), old.logits(batch(layout)))


def test_dropout_may_change() -> None:
    old, new = build(trained=True, seed=1), build(network={"dropout": 0.5}, seed=2)
    take_over(old, new)
    assert torch.equal(new.logits(batch()), old.logits(batch()))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"width": 8}, r"embedding\.width.*Found: 8. Expected: 4.*set embedding\.width to 4"),
        ({"hash_seed": 1}, r"embedding\.hash_seed.*Expected: 0"),
        ({"network": {"hidden": [8]}}, r"model\.hidden.*\(8,\).*\(8, 5\)"),
        ({"network": {"cross_layers": 3}}, r"model\.cross_layers"),
        ({"network": {"interaction": "dcn"}}, r"model\.interaction.*dcnv2"),
        ({"network": {"low_rank": 2}}, r"model\.low_rank"),
        ({"network": {"structure": "stacked"}}, r"model\.structure"),
    ],
)
def test_what_cannot_be_taken_over_is_refused_and_changes_nothing(change: dict[str, Any], words: str) -> None:
    old, new = build(trained=True, seed=1), build(seed=2, **change)
    before = {name: t.clone() for name, t in new.tensors().items()}
    with pytest.raises(ConfigError, match=words):
        take_over(old, new)
    assert all(torch.equal(t, before[name]) for name, t in new.tensors().items())


def test_a_feature_to_reset_must_be_there() -> None:
    with pytest.raises(ConfigError, match=r"no such feature to reset.*did you mean 'user'"):
        take_over(build(seed=1), build(seed=2), "usr")


@networks
def test_every_parameter_has_a_name_for_each_place(network: dict[str, Any]) -> None:
    model = build(network=network)
    for (name, axes), (own, parameter) in zip(
        model.network.axes().items(), model.dense_parameters().items(), strict=True
    ):
        assert name == own
        assert tuple(len(axis) for axis in axes) == tuple(parameter.shape)
        assert all(len(set(axis)) == len(axis) for axis in axes)
