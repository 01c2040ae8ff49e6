"""FM, DeepFM and IPNN against their formulas written as loops, and what chunks mean to them."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor

from features.batch import Batch
from features.layout import Layout
from recsys.embeddings import EmbeddingConfig, EmbeddingPlan, plan_embedding
from recsys.embeddings.plan import IdCounts
from recsys.models import CTRModel, ModelConfig
from recsys.models.fm import FactorisationMachine
from recsys.models.ipnn import InnerProducts
from recsys.models.warm_start import warm_start

WIDTH = 3
LAYOUT = Layout(
    id_names=("user", "item", "city"),
    bag_names=("tags",),
    bag_poolings=("mean",),
    dense_names=("price",),
    vector_names=("image",),
    vector_sizes=(2,),
    label_names=("click", "buy"),
)
COUNTS: IdCounts = {n: (np.arange(60), np.ones(60, np.int64)) for n in (*LAYOUT.id_names, *LAYOUT.bag_names)}
CHUNKS = {"user": 3, "item": 1, "city": 0, "tags": 2}
"""Products: user with item and tags in the first chunk, item with tags there, user with tags in the second."""


def plan(**chunks: int) -> EmbeddingPlan:
    config = {"width": WIDTH, "rows": 40, "exact": {"max_values": 0}, "chunks": {"features": {**CHUNKS, **chunks}}}
    return plan_embedding(LAYOUT, EmbeddingConfig.model_validate(config), COUNTS)


def build(*, seed: int = 0, chunks: dict[str, int] | None = None, **config: object) -> CTRModel:
    return CTRModel(LAYOUT, plan(**(chunks or {})), ModelConfig.model_validate(config), seed=seed).eval()


def batch(rows: int = 6) -> Batch:
    g = torch.Generator().manual_seed(1)
    lengths = torch.arange(rows).unsqueeze(0) % 3
    return Batch(
        ids=torch.randint(0, 1000, (rows, 3), generator=g),
        bag_values=torch.randint(0, 1000, (int(lengths.sum()),), generator=g),
        bag_lengths=lengths,
        dense=torch.randn(rows, 1, generator=g),
        vectors=torch.randn(rows, 2, generator=g),
    )


def read(model: CTRModel, data: Batch) -> Tensor:
    """What the network reads."""
    return torch.cat([model.embedding(data.ids, data.bag_values, data.bag_lengths), data.dense, data.vectors], 1)


def disturb(model: CTRModel) -> CTRModel:
    """Noise on the network, where zeros and ones would hide mistakes."""
    generator = torch.Generator().manual_seed(7)
    for parameter in model.dense_parameters().values():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def padded(x: Tensor, layout: EmbeddingPlan) -> dict[str, Tensor]:
    """Each feature's vector [B, widest], with zeros at its end."""
    widest = max(f.chunks for f in layout.features) * WIDTH
    vectors, start = {}, 0
    for f in layout.features:
        stop = start + f.chunks * WIDTH
        vectors[f.name] = torch.nn.functional.pad(x[:, start:stop], (0, widest - (stop - start)))
        start = stop
    return vectors


@pytest.mark.parametrize("interaction", [FactorisationMachine, InnerProducts])
def test_inputs_are_passed_on(interaction: type[FactorisationMachine] | type[InnerProducts]) -> None:
    x = torch.randn(4, 21)
    out = interaction(21, plan())(x)
    assert torch.equal(out[:, :21], x)


def test_fm_is_half_of_the_square_of_the_sum_less_the_squares() -> None:
    """Rendle's equation 3, on vectors padded to the widest."""
    x = torch.randn(4, 21)
    terms = FactorisationMachine(21, plan())(x)[:, 21:]
    vectors = torch.stack(list(padded(x, plan()).values()), 1)
    expected = 0.5 * (vectors.sum(1) ** 2 - (vectors**2).sum(1)).sum(1)
    torch.testing.assert_close(terms.sum(1), expected)


def test_fm_is_the_sum_over_pairs() -> None:
    x = torch.randn(4, 21)
    terms = FactorisationMachine(21, plan())(x)[:, 21:]
    pairs = list(combinations(padded(x, plan()).values(), 2))
    torch.testing.assert_close(terms.sum(1), torch.stack([(v * w).sum(1) for v, w in pairs]).sum(0))
    for chunk in range(2):
        part = slice(chunk * WIDTH, chunk * WIDTH + WIDTH)
        torch.testing.assert_close(terms[:, chunk], torch.stack([(v * w)[:, part].sum(1) for v, w in pairs]).sum(0))
    assert terms.shape[1] == 2  # the third chunk of user meets no other


def test_weights_of_fm_scale_the_vectors() -> None:
    fm, x = FactorisationMachine(21, plan()), torch.randn(4, 21)
    with torch.no_grad():
        for weight in fm.weights:
            weight.normal_()
    vectors = padded(x, plan())
    first, second = (dict(zip(names, w[0], strict=True)) for names, w in zip(fm.vectors.names, fm.weights, strict=True))
    assert (list(first), list(second)) == (["user", "item", "tags"], ["user", "tags"])
    expected = sum(first[f] * first[g] * (vectors[f] * vectors[g])[:, :3].sum(1) for f, g in combinations(first, 2))
    torch.testing.assert_close(fm(x)[:, 21], expected)
    torch.testing.assert_close(
        fm(x)[:, 22], second["user"] * second["tags"] * (vectors["user"] * vectors["tags"])[:, 3:6].sum(1)
    )


def test_inner_products_are_those_of_each_pair() -> None:
    products, x = InnerProducts(21, plan()), torch.randn(4, 21)
    _, names = products.axes([("x", i) for i in range(21)])
    vectors = padded(x, plan())
    expected = {}
    for f, g in combinations(vectors, 2):
        for chunk in range(min(CHUNKS[f], CHUNKS[g])):
            part = slice(chunk * WIDTH, chunk * WIDTH + WIDTH)
            expected[frozenset({f, g}), chunk] = (vectors[f] * vectors[g])[:, part].sum(1)
    found = dict(zip(names[21:], products(x)[:, 21:].T, strict=True))
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values)


def test_products_of_a_pair_sum_to_that_of_the_padded_vectors() -> None:
    products, x = InnerProducts(21, plan()), torch.randn(4, 21)
    _, names = products.axes([("x", i) for i in range(21)])
    vectors = padded(x, plan())
    of_pair = [i for i, (name, *_) in enumerate(names) if name == {"user", "tags"}]
    torch.testing.assert_close(products(x)[:, of_pair].sum(1), (vectors["user"] * vectors["tags"]).sum(1))


@pytest.mark.parametrize("interaction", [FactorisationMachine, InnerProducts])
def test_gradients(interaction: type[FactorisationMachine] | type[InnerProducts]) -> None:
    module = interaction(21, plan()).double()
    assert torch.autograd.gradcheck(module, torch.randn(3, 21, dtype=torch.float64).requires_grad_())


def test_a_fresh_fm_is_that_of_the_paper() -> None:
    """Bias, linear term and the sum over pairs, whose weight is 1."""
    model, data = build(interaction="fm", hidden=[]), batch()
    x = read(model, data)
    weights = model.network.head.weight[:, : x.shape[1]]
    pairs = torch.stack([(v * w).sum(1) for v, w in combinations(padded(x, model.plan).values(), 2)]).sum(0)
    torch.testing.assert_close(model.logits(data), model.network.head.bias + x @ weights.T + pairs.unsqueeze(1))


def test_deepfm_is_fm_and_the_network_side_by_side() -> None:
    deep = disturb(build(interaction="fm", hidden=[8, 5]))
    fm, mlp, data = build(interaction="fm", hidden=[]), build(interaction="mlp", hidden=[8, 5]), batch()
    of_fm = fm.network.head.weight.shape[1]
    with torch.no_grad():
        for model in (fm, mlp):
            model.embedding.table.load_stored(deep.embedding.table.stored())
            for name, parameter in model.dense_parameters().items():
                if not name.startswith("head"):
                    parameter.copy_(deep.dense_parameters()[name])
        fm.network.head.weight.copy_(deep.network.head.weight[:, :of_fm])
        fm.network.head.bias.copy_(deep.network.head.bias)
        mlp.network.head.weight.copy_(deep.network.head.weight[:, of_fm:])
        mlp.network.head.bias.zero_()
    torch.testing.assert_close(deep.logits(data), fm.logits(data) + mlp.logits(data))


@pytest.mark.parametrize("hidden", [[8], []])
def test_ipnn_feeds_inputs_and_products_to_the_network(hidden: list[int]) -> None:
    model, data = build(interaction="ipnn", hidden=hidden), batch()
    x = read(model, data)
    vectors = padded(x, model.plan)
    first, second = slice(0, 3), slice(3, 6)
    pairs = [("user", "item", first), ("user", "tags", first), ("item", "tags", first), ("user", "tags", second)]
    products = torch.stack([(vectors[f] * vectors[g])[:, part].sum(1) for f, g, part in pairs], 1)
    joined = torch.cat([x, products], 1)
    if hidden:
        assert model.network.deep is not None
        joined = model.network.deep(joined)
    torch.testing.assert_close(model.logits(data), model.network.head(joined))


@pytest.mark.parametrize("interaction", ["fm", "ipnn"])
@pytest.mark.parametrize("hidden", [[8], []])
def test_trailing_chunks_of_zeros_are_as_good_as_none(interaction: str, hidden: list[int]) -> None:
    wide = disturb(build(interaction=interaction, hidden=hidden, chunks={"user": 4, "item": 3, "city": 2}))
    narrow = build(interaction=interaction, hidden=hidden, seed=1, chunks={"user": 2, "item": 1, "city": 0})
    warm_start(narrow, wide, COUNTS)  # leaves the weights that remain as they are
    mask = torch.cat(
        [
            torch.arange(f.chunks).repeat_interleave(WIDTH) < g.chunks
            for f, g in zip(wide.plan.features, narrow.plan.features, strict=True)
        ]
    )
    assert int(mask.sum()) == narrow.plan.output_width < wide.plan.output_width
    wide.embedding.register_forward_hook(lambda module, given, out: out * mask)
    torch.testing.assert_close(narrow.logits(batch()), wide.logits(batch()))


@pytest.mark.parametrize("interaction", ["fm", "ipnn"])
@pytest.mark.parametrize("chunks", [dict.fromkeys(CHUNKS, 0), {**dict.fromkeys(CHUNKS, 0), "user": 2}])
def test_without_a_pair_nothing_is_multiplied(interaction: str, chunks: dict[str, int]) -> None:
    model, data = build(interaction=interaction, hidden=[], chunks=chunks), batch()
    x = read(model, data) if any(chunks.values()) else torch.cat([data.dense, data.vectors], 1)
    torch.testing.assert_close(model.logits(data), model.network.head(x))


@pytest.mark.parametrize("interaction", ["fm", "ipnn"])
@pytest.mark.parametrize("more", [{"city": 1}, {"item": 3, "tags": 3}, {"city": 3, "item": 2}])
def test_products_that_are_new_to_a_trained_model_learn(interaction: str, more: dict[str, int]) -> None:
    """Nothing is 0 on both sides of a product that a step could move."""
    old, new = disturb(build(interaction=interaction)), build(interaction=interaction, seed=1, chunks=more)
    warm_start(new, old, COUNTS)
    torch.testing.assert_close(new.logits(batch()), old.logits(batch()))
    new.logits(batch()).sum().backward()
    axes, was = new.network.axes(), old.network.axes()
    for name, parameter in new.dense_parameters().items():
        if name == "cross.weights.0" or (name, interaction) == ("deep.layers.0.weight", "ipnn"):
            added = [i for i, place in enumerate(axes[name][1]) if place not in was[name][1]]
            assert parameter.grad is not None
            assert bool(parameter.grad[:, added].any(0).all())
        if name == "head.weight":
            sums = [i for i, (part, *_) in enumerate(axes[name][1]) if part == "fm sums"]
            assert parameter.grad is not None
            assert bool(parameter.grad[:, sums].all())


@pytest.mark.parametrize("interaction", ["fm", "ipnn"])
def test_no_rows_give_no_logits(interaction: str) -> None:
    assert build(interaction=interaction).logits(batch().rows([])).shape == (0, 2)


def test_fm_learns_again_when_every_feature_is_reset() -> None:
    """Vectors scaled by 0 and read with a weight that is not would never get a gradient."""
    old, new = disturb(build(interaction="fm", hidden=[])), build(interaction="fm", hidden=[], seed=1)
    warm_start(new, old, COUNTS, reset=("user", "item", "tags"))
    assert isinstance(new.network.cross, FactorisationMachine)
    data = batch()
    x = read(new, data)
    dense = x[:, new.plan.output_width :] @ new.network.head.weight[:, new.plan.output_width : x.shape[1]].T
    torch.testing.assert_close(new.logits(data), new.network.head.bias + dense)
    new.logits(data).sum().backward()
    assert new.network.head.weight.grad is not None
    assert bool(new.network.head.weight.grad[:, x.shape[1] :].all())
