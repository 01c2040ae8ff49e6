"""Interactions against their formulas, and the model around them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from features.batch import Batch
from features.errors import ArtifactError, ConfigError
from features.layout import Layout
from recsys.embeddings import EmbeddingConfig, plan_embedding
from recsys.models import CTRModel, ModelConfig
from recsys.models.dcn import VectorCross
from recsys.models.dcnv2 import MatrixCross

LAYOUT = Layout(
    id_names=("user", "item"),
    dense_names=("price", "price:missing"),
    vector_names=("image",),
    vector_sizes=(3,),
    label_names=("click", "buy"),
)


def build(seed: int = 0, layout: Layout = LAYOUT, chunks: int = 2, **config: object) -> CTRModel:
    embedding = EmbeddingConfig.model_validate({"width": 4, "rows": 50, "chunks": {"default": chunks}})
    values = np.arange(500, dtype=np.int64)
    counts = {n: (values, np.ones_like(values)) for n in (*layout.id_names, *layout.bag_names)}
    plan = plan_embedding(layout, embedding, counts)
    return CTRModel(layout, plan, ModelConfig.model_validate({"hidden": [8], **config}), seed=seed)


def batch(rows: int = 5) -> Batch:
    g = torch.Generator().manual_seed(1)
    return Batch(
        ids=torch.randint(0, 1000, (rows, 2), generator=g),
        bag_values=torch.empty(0, dtype=torch.int64),
        bag_lengths=torch.empty(0, rows, dtype=torch.int64),
        dense=torch.randn(rows, 2, generator=g),
        vectors=torch.randn(rows, 3, generator=g),
    )


def test_vector_cross_is_the_formula_of_dcn() -> None:
    cross, x0 = VectorCross(6, 2), torch.randn(4, 6)
    for bias in cross.biases:
        torch.nn.init.normal_(bias)
    x = x0
    for weight, bias in zip(cross.weights, cross.biases, strict=True):
        x = torch.stack([x0[i] * (weight.weight[0] @ x[i]) + bias + x[i] for i in range(4)])
    torch.testing.assert_close(cross(x0), x)


@pytest.mark.parametrize("rank", [None, 2])
def test_matrix_cross_is_the_formula_of_dcn_v2(rank: int | None) -> None:
    cross, x0 = MatrixCross(6, 2, rank), torch.randn(4, 6)
    x = x0
    for layer in cross.layers:
        if rank is None:
            w, b = layer.weight, layer.bias
        else:
            w, b = layer[1].weight @ layer[0].weight, layer[1].bias
        x = torch.stack([x0[i] * (w @ x[i] + b) + x[i] for i in range(4)])
    torch.testing.assert_close(cross(x0), x)
    with torch.no_grad():
        torch.testing.assert_close(cross(x0), x)
    assert torch.autograd.gradcheck(cross.double(), x0.double().requires_grad_())


@pytest.mark.parametrize("interaction", ["mlp", "dcn", "dcnv2", "fm", "ipnn"])
def test_logits_have_a_column_a_task_and_rows_do_not_mix(interaction: str) -> None:
    model = build(interaction=interaction).eval()
    data = batch()
    logits = model.logits(data)
    assert logits.shape == (5, 2)
    alone = torch.cat([model.logits(data.rows([i])) for i in range(5)])
    torch.testing.assert_close(logits, alone)


def test_stacked_feeds_the_cross_network_into_the_deep_one() -> None:
    model, data = build(structure="stacked").eval(), batch()
    x = torch.cat([model.embedding(data.ids, data.bag_values, data.bag_lengths), data.dense, data.vectors], 1)
    assert model.network.cross is not None
    assert model.network.deep is not None
    torch.testing.assert_close(model.logits(data), model.network.head(model.network.deep(model.network.cross(x))))


def test_an_mlp_without_hidden_layers_is_logistic_regression() -> None:
    model, data = build(interaction="mlp", hidden=[]).eval(), batch()
    x = torch.cat([model.embedding(data.ids, data.bag_values, data.bag_lengths), data.dense, data.vectors], 1)
    torch.testing.assert_close(model.logits(data), x @ model.network.head.weight.T + model.network.head.bias)


def test_the_seed_decides_all_initial_weights_and_nothing_else_does() -> None:
    torch.manual_seed(123)
    a = build(seed=4)
    torch.manual_seed(456)
    state = torch.get_rng_state()
    b = build(seed=4)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(x, y) for x, y in zip(a.tensors().values(), b.tensors().values(), strict=True))
    c = build(seed=5)
    assert not torch.equal(a.tensors()["table"], c.tensors()["table"])
    assert not torch.equal(a.tensors()["network.head.weight"], c.tensors()["network.head.weight"])


def test_tensors_round_trip() -> None:
    a, b = build(seed=1).eval(), build(seed=2).eval()
    b.load_tensors(a.tensors())
    assert torch.equal(a.logits(batch()), b.logits(batch()))


def test_weights_of_another_model_are_refused() -> None:
    with pytest.raises(ArtifactError, match="another model"):
        build().load_tensors(build(hidden=[16]).tensors())


def test_a_model_without_inputs_is_refused() -> None:
    with pytest.raises(ConfigError, match="no input"):
        build(layout=Layout(id_names=("user",), label_names=("click",)), chunks=0)


def test_a_model_of_numbers_alone_works() -> None:
    layout = Layout(dense_names=("price", "price:missing"), label_names=("click",))
    data = batch()
    data.ids, data.vectors = data.ids[:, :0], data.vectors[:, :0]
    assert build(layout=layout).logits(data).shape == (5, 1)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, {"cross": (13, 13), "deep": (8, 13)}),
        ({"low_rank": 2}, {"cross": (2, 13), "deep": (8, 13)}),
        ({"interaction": "dcn"}, {"cross": (1, 13), "deep": (8, 13)}),
        ({"structure": "stacked"}, {"cross": (13, 13)}),
        ({"interaction": "mlp"}, {"deep": (8, 13)}),
        ({"interaction": "mlp", "structure": "stacked"}, {"deep": (8, 13)}),
        ({"interaction": "mlp", "hidden": []}, {"head": (2, 13)}),
        ({"interaction": "fm"}, {"deep": (8, 13), "head": (2, 13)}),
        ({"interaction": "fm", "structure": "stacked"}, {"deep": (8, 13), "head": (2, 13)}),
        ({"interaction": "fm", "hidden": []}, {"head": (2, 13)}),
        ({"interaction": "ipnn"}, {"deep": (8, 13)}),
        ({"interaction": "ipnn", "structure": "stacked"}, {"deep": (8, 13)}),
        ({"interaction": "ipnn", "hidden": []}, {"head": (2, 13)}),
    ],
)
def test_first_layers_are_those_that_read_the_input(config: dict[str, object], expected: dict[str, object]) -> None:
    assert {name: tuple(w.shape) for name, w in build(chunks=1, **config).network.first_layers().items()} == expected
