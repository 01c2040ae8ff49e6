"""A candidate judged at its own size: the same as the full network under a mask, and as a smaller model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from features.errors import UndefinedMetricError
from features.layout import Layout
from recsys.models.warm_start import warm_start
from recsys.search.fitness import Fitness, Sample, SubNetworks, drawn_places, predict_allocations
from recsys.search.space import SearchFeature, SearchSpace
from recsys.search.supernet import ChunkMasks
from recsys.training import predict
from tests.recsys.search.models import COUNTS, LARGEST, LAYOUT, NAMES, batch, build, networks

ALLOCATIONS = [
    [4, 2, 1, 3, 2],  # everything
    [1, 1, 1, 1, 1],
    [0, 2, 0, 3, 1],
    [4, 0, 0, 0, 0],
    [0, 0, 0, 1, 2],
    [0, 0, 0, 0, 0],  # numbers and vectors are left
]
SPACE = SearchSpace(tuple(SearchFeature(name, tuple(range(most + 1))) for name, most in LARGEST.items()))
IDS_ALONE = Layout(id_names=("user", "item", "city"), label_names=("click",))


@networks
def test_a_subnetwork_is_the_full_one_under_a_mask(network: dict[str, Any]) -> None:
    model = build(network)
    subnetworks, masks, x = SubNetworks(model), ChunkMasks(model), model.inputs_of(batch())
    for chunks in ALLOCATIONS:
        small, pick = subnetworks.of(chunks)
        mask = masks(torch.tensor([chunks]))
        assert pick(x).shape[1] == small.input_width == int(mask.sum())
        torch.testing.assert_close(small(pick(x)), model.network(x, mask), atol=1e-5, rtol=1e-5)


@networks
def test_a_chunk_of_zeros_is_as_good_as_none_but_to_the_biases_of_dcn(network: dict[str, Any]) -> None:
    model = build(network)
    x, mask = model.inputs_of(batch()), ChunkMasks(model)(torch.tensor([ALLOCATIONS[2]]))
    same = torch.allclose(model.network(x * mask), model.network(x, mask), atol=1e-5, rtol=1e-5)
    assert same == (network["interaction"] != "dcn")


@networks
def test_a_subnetwork_is_the_network_of_a_smaller_model(network: dict[str, Any]) -> None:
    model, data = build(network), batch()
    for chunks in ALLOCATIONS[1:4]:
        smaller = build(network, chunks=dict(zip(NAMES, chunks, strict=True)), seed=1, trained=False)
        warm_start(smaller, model, COUNTS)
        small, pick = SubNetworks(model).of(chunks)
        found = small(pick(model.inputs_of(data)))
        torch.testing.assert_close(found, smaller.logits(data), atol=1e-5, rtol=1e-5)


@networks
def test_rows_may_have_masks_of_their_own(network: dict[str, Any]) -> None:
    model, data = build(network), batch(rows=len(ALLOCATIONS))
    x, masks = model.inputs_of(data), ChunkMasks(model)(torch.tensor(ALLOCATIONS))
    found = model.network(x, masks)
    for row, chunks in enumerate(ALLOCATIONS):
        small, pick = SubNetworks(model).of(chunks)
        expected = small(pick(x[row : row + 1]))
        torch.testing.assert_close(found[row : row + 1], expected, atol=1e-5, rtol=1e-5)


def test_subnetworks_work_without_numbers_and_vectors() -> None:
    model = build(layout=IDS_ALONE)
    x = model.inputs_of(batch(IDS_ALONE))
    small, pick = SubNetworks(model).of([2, 0, 1])
    mask = ChunkMasks(model)(torch.tensor([[2, 0, 1]]))
    assert mask.shape == x[:1].shape
    torch.testing.assert_close(small(pick(x)), model.network(x, mask), atol=1e-5, rtol=1e-5)


def test_subnetworks_drop_nothing_at_random() -> None:
    model = build({"dropout": 0.5}).train()
    small, pick = SubNetworks(model).of(ALLOCATIONS[0])
    x = model.inputs_of(batch()).detach()
    assert torch.equal(small(pick(x)), small(pick(x)))


def auc_by_hand(labels: np.ndarray, scores: np.ndarray, weight: np.ndarray) -> float:
    """The share of pairs of a positive and a negative that are in order, by the product of their weights."""
    right = pairs = 0.0
    for i in np.flatnonzero(labels == 1):
        for j in np.flatnonzero(labels == 0):
            both = float(weight[i] * weight[j])
            pairs += both
            right += both * (float(scores[i] > scores[j]) + 0.5 * float(scores[i] == scores[j]))
    return right / pairs


@pytest.mark.parametrize("metric", ["auc", "logloss"])
def test_fitness_is_the_metric_of_the_first_task(metric: str) -> None:
    model, batches = build(), [batch(seed=1), batch(rows=13, seed=2)]
    sample = Sample.of(model, batches)
    assert len(sample.inputs) == 33
    genes = np.array(ALLOCATIONS)
    found = Fitness(model, SPACE, sample, metric)(genes)
    assert found.dtype == np.float64
    masks = ChunkMasks(model)(torch.tensor(ALLOCATIONS))
    labels = np.concatenate([b.labels.numpy() for b in batches if b.labels is not None])[:, 0]
    weight = np.concatenate([b.weight.numpy() for b in batches if b.weight is not None])
    for mask, fitness in zip(masks, found, strict=True):
        logits = torch.cat([model.network(model.inputs_of(b), mask.unsqueeze(0)) for b in batches])
        p = torch.sigmoid(logits[:, 0].detach().double()).numpy()
        losses = -np.log(np.where(labels == 1, p, 1 - p))
        expected = auc_by_hand(labels, p, weight) if metric == "auc" else -float((losses * weight).sum() / weight.sum())
        assert fitness == pytest.approx(expected, abs=1e-6)
    assert len(set(found.tolist())) == len(found)


def test_fitness_reads_levels_not_places() -> None:
    model, sample = build(), Sample.of(build(), [batch()])
    sparse = SearchSpace(
        tuple(SearchFeature(n, own) for n, own in zip(NAMES, [(0, 4), (2,), (0, 1), (1, 3), (2,)], strict=True))
    )
    found = Fitness(model, sparse, sample, "logloss")(np.array([[1, 0, 0, 1, 0]]))
    assert found == Fitness(model, SPACE, sample, "logloss")(np.array([[4, 2, 0, 3, 2]]))


def test_rows_without_weights_weigh_the_same() -> None:
    model, data = build(), batch()
    even = replace(data, weight=torch.full((20,), 2.0))
    data.weight = None
    unweighted = Sample.of(model, [data])
    assert unweighted.weight is None
    genes = np.array(ALLOCATIONS)
    expected = Fitness(model, SPACE, Sample.of(model, [even]), "auc")(genes)
    np.testing.assert_allclose(Fitness(model, SPACE, unweighted, "auc")(genes), expected)


def test_a_sample_has_the_wanted_rows_of_all_batches() -> None:
    model, batches = build(), [batch(seed=1), batch(rows=13, seed=2), batch(rows=5, seed=3)]
    whole = Sample.of(model, batches)
    places = drawn_places(38, 12, seed=3)
    part = Sample.of(model, batches, places)
    assert torch.equal(part.inputs, whole.inputs[torch.from_numpy(places)])
    np.testing.assert_array_equal(part.labels, whole.labels[places])
    assert part.weight is not None
    assert whole.weight is not None
    np.testing.assert_array_equal(part.weight, whole.weight[places])


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_rows_of_one_class_judge_nothing(label: float) -> None:
    data = batch()
    assert data.labels is not None
    data.labels[:, 0] = label
    with pytest.raises(UndefinedMetricError, match=r"search.sample_rows.*of 20 validation rows"):
        Sample.of(build(), [data])


@networks
def test_all_chunks_predict_what_the_model_does(network: dict[str, Any]) -> None:
    model, batches = build(network), [batch(seed=1), batch(rows=7, seed=2)]
    full, other = predict_allocations(model, batches, np.array([ALLOCATIONS[0], ALLOCATIONS[2]]))
    expected = predict(model, batches)
    np.testing.assert_allclose(full.probabilities, expected.probabilities, atol=1e-7)
    assert np.array_equal(full.labels, expected.labels)  # type: ignore[arg-type]
    assert np.array_equal(full.weight, expected.weight)  # type: ignore[arg-type]
    masks = ChunkMasks(model)(torch.tensor([ALLOCATIONS[2]]))
    logits = torch.cat([model.network(model.inputs_of(b), masks).detach() for b in batches])
    np.testing.assert_allclose(other.probabilities, torch.sigmoid(logits.double()).numpy(), atol=1e-6)


def test_predictions_leave_a_model_in_training_as_it_was() -> None:
    """Hot ids that are judged by what they do to the loss are not told of validation."""
    model = build({"dropout": 0.5}, hot={"features": {"user": 8}}).train()
    before = {name: t.clone() for name, t in model.tensors().items()}
    first, again = (predict_allocations(model, [batch()], np.array(ALLOCATIONS[:1]))[0] for _ in range(2))
    assert np.array_equal(first.probabilities, again.probabilities)
    assert model.training
    assert model.embedding._watched == []
    assert all(torch.equal(t, before[name]) for name, t in model.tensors().items())


def test_the_layout_is_as_wide_as_it_says() -> None:
    """What the tests above stand on."""
    model = build()
    assert model.inputs_of(batch()).shape[1] == model.network.input_width == 12 * 4 + 2 + 3
    assert [f.name for f in model.plan.features] == list(NAMES)
    assert LAYOUT.bag_names == ("tags", "words")
