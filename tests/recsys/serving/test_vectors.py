"""Vectors outside of a model are what its network reads, for every region and row format."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from features.batch import Batch
from features.errors import ConfigError
from features.layout import Layout
from recsys.embeddings import EmbeddingConfig, plan_embedding
from recsys.embeddings.plan import IdCounts
from recsys.models import CTRModel, ModelConfig
from recsys.models.compact import compact
from recsys.models.convert import convert
from recsys.serving.vectors import REGIONS, ItemVectors, ValueVectors

LAYOUT = Layout(
    id_names=("user", "item", "kind"),
    bag_names=("tags",),
    bag_poolings=("mean",),
    dense_names=("price", "price:missing"),
    vector_names=("picture",),
    vector_sizes=(3,),
    label_names=("click",),
)
SIZES = {"user": 500, "item": 300, "kind": 9, "tags": 20}
COUNTS: IdCounts = {name: (np.arange(n), np.arange(n)[::-1] + 1) for name, n in SIZES.items()}
UNSEEN = np.arange(1000, 1010)


def build(**config: Any) -> CTRModel:
    settings = {
        "width": 6,
        "rows": 150,
        "exact": {"max_values": 30},
        "chunks": {"default": 2, "features": {"item": 3, "tags": 1}},
        "hot": {"features": {"user": 16}},
        "init_scale": 0.5,
        **config,
    }
    plan = plan_embedding(LAYOUT, EmbeddingConfig.model_validate(settings), COUNTS)
    return CTRModel(LAYOUT, plan, ModelConfig(interaction="dcnv2", hidden=(8,)), seed=1, kernel="torch").eval()


def batch(rows: int = 64) -> Batch:
    g = torch.Generator().manual_seed(1)
    ids = torch.stack([torch.randint(0, 2 * SIZES[n], (rows,), generator=g) for n in LAYOUT.id_names], 1)
    lengths = torch.randint(0, 4, (1, rows), generator=g)
    tags = torch.randint(0, SIZES["tags"], (int(lengths.sum()),), generator=g)
    return Batch(ids, tags, lengths, torch.randn(rows, 2, generator=g), torch.randn(rows, 3, generator=g))


def model_of(form: str) -> CTRModel:
    model = build(**({"kind": form, "hot": {}} if form in ("hashed", "collisionless") else {}))
    if form == "pruned":
        kept = torch.rand(model.plan.rows, generator=torch.Generator().manual_seed(2)) < 0.5
        return compact(model, kept)
    return convert(model, form) if form in ("fp16", "int8", "int4") else model  # type: ignore[arg-type]


FORMS = ("fp32", "fp16", "int8", "int4", "pruned", "hashed", "collisionless")


@pytest.mark.parametrize("form", FORMS)
def test_vectors_of_values_are_those_of_the_embedding_module(form: str) -> None:
    model, rows = model_of(form), batch()
    expected = model.embedding(rows.ids, rows.bag_values, rows.bag_lengths).detach()
    at = 0
    for column, f in enumerate(f for f in model.plan.features if not f.bag):
        made = ValueVectors(model, f.name)
        found = made.vectors(rows.ids[:, column].numpy())
        assert found.dtype == np.float32
        assert found.shape == (64, made.width) == (64, f.chunks * 6)
        assert np.array_equal(found, expected[:, at : at + made.width].numpy())
        at += made.width
    # a list of one element is pooled to that element's vector
    ones = torch.ones(1, 20, dtype=torch.int64)
    alone = model.embedding(torch.zeros(20, 3, dtype=torch.int64), torch.arange(20), ones).detach()
    assert np.array_equal(ValueVectors(model, "tags").vectors(np.arange(20)), alone[:, at:].numpy())


@pytest.mark.parametrize("form", FORMS)
def test_vectors_of_items_are_what_the_network_reads_of_them(form: str) -> None:
    model, rows = model_of(form), batch()
    names = ["picture", "price", "tags", "item"]
    made = ItemVectors(model, names)
    found, inputs = made.vectors(rows), model.inputs_of(rows).detach().numpy()
    axis = [str(key[0]) for key in model.network.input_axis()]  # type: ignore[index]
    chosen = [i for i, name in enumerate(axis) if name.partition(":")[0] in names]
    assert np.array_equal(found, inputs[:, chosen])
    assert [(p.feature, p.chunks, p.start, p.width) for p in made.parts] == [
        ("item", 3, 0, 18),
        ("tags", 1, 18, 6),
        ("price", 0, 24, 1),
        ("price:missing", 0, 25, 1),
        ("picture", 0, 26, 3),
    ]
    assert made.width == 29


def told(model: CTRModel, feature: str, values: np.ndarray) -> set[tuple[str, bool | None]]:
    made = ValueVectors(model, feature)
    regions = made.regions(values)
    return {(REGIONS[region], seen) for region, seen in zip(regions.tolist(), made.seen(regions), strict=True)}


def test_where_rows_lie_and_whether_training_saw_the_value() -> None:
    model = model_of("fp32")
    assert told(model, "kind", np.arange(9)) == {("exact", True)}
    assert told(model, "kind", UNSEEN) == {("shared", False)}
    assert told(model, "tags", np.arange(20)) == {("exact", True)}
    assert told(model, "user", np.arange(500)) == {("hot", True), ("shared", None)}
    assert told(model, "user", UNSEEN) == {("shared", None)}
    owners = ValueVectors(model, "user").regions(np.arange(500)) == REGIONS.index("hot")
    assert owners.sum() == 16  # and they are the most frequent
    assert owners[:8].all()
    assert told(model, "item", np.arange(300)) == {("shared", None)}


def test_own_rows_and_vocabularies() -> None:
    assert told(model_of("hashed"), "item", np.arange(300)) == {("own", None)}
    assert told(model_of("collisionless"), "item", np.arange(300)) == {("exact", True)}
    assert told(model_of("collisionless"), "item", UNSEEN) == {("own", False)}


def test_what_pruning_left_of_nothing_is_zeros_and_of_unknown_origin() -> None:
    model = model_of("pruned")
    assert told(model, "kind", np.arange(9)) == {("exact", True), ("pruned", None)}
    assert told(model, "kind", UNSEEN) == {("pruned", None)}
    made = ValueVectors(model, "item")
    gone = made.regions(np.arange(300)) == REGIONS.index("pruned")
    assert 0 < gone.sum() < 300
    assert np.array_equal((made.vectors(np.arange(300)) == 0).all(1), gone)


def test_an_item_names_the_features_whose_id_was_never_seen() -> None:
    model, rows = model_of("fp32"), batch()
    found = ItemVectors(model, ["item", "kind", "user"]).unseen(rows)
    assert found == [["kind"] if kind >= 9 else [] for kind in rows.ids[:, 2].tolist()]
    assert ItemVectors(model, ["item", "user"]).unseen(rows) == [[]] * 64


def test_features_without_vectors() -> None:
    model = build(chunks={"default": 1, "features": {"item": 0}})
    for make in (lambda name: ValueVectors(model, name), lambda name: ItemVectors(model, ["user", name])):
        with pytest.raises(ConfigError, match=r"item: the feature has no rows of the table.*0 chunks"):
            make("item")
        with pytest.raises(ConfigError, match=r"itme: there is no such .*did you mean 'item'\?"):
            make("itme")
    with pytest.raises(ConfigError, match="price: there is no such embedded feature"):
        ValueVectors(model, "price")
