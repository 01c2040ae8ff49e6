"""The supernet: what is masked, that every recipe learns, and that a cut run goes on to the same bits."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from features.batch import Batch
from features.errors import ArtifactError
from features.layout import Layout
from features.loading.loader import Loader
from features.storage.store import Store
from recsys.embeddings import EmbeddingConfig, plan_embedding
from recsys.models import CTRModel, ModelConfig
from recsys.search.config import RecipeName, SupernetConfig
from recsys.search.fitness import predict_allocations
from recsys.search.space import SearchFeature, SearchSpace
from recsys.search.supernet import MONITORED, ChunkMasks, SupernetTrainer, chunk_lasso
from recsys.training import TrainConfig, TrainingListener
from recsys.training.trainer import weighted_loss
from tests.recsys.search.models import LARGEST, NAMES, WIDTH, batch, build, networks
from tests.recsys.training.training_job import PrintSteps

RECIPES = get_args(RecipeName)
LEVELS = {"user": (0, 1, 2, 4), "kind": (0, 1), "tags": (0, 1, 2)}
TRAIN = {
    "batch_size": 128,
    "epochs": 3,
    "learning_rate": 0.01,
    "table_learning_rate": 0.05,
    "ema": 0.9,
    "checkpoint_steps": 4,
    "threads": 1,
}
SPACE = SearchSpace(tuple(SearchFeature(name, tuple(range(most + 1))) for name, most in LARGEST.items()))


def trainer(
    store: Store,
    folder: Path,
    recipe: str = "mixed",
    *,
    network: dict[str, Any] | None = None,
    levels: dict[str, tuple[int, ...]] = LEVELS,
    listener: TrainingListener | None = None,
    seed: int = 3,
    **train: object,
) -> tuple[SupernetTrainer, tuple[Loader, Loader]]:
    """A supernet of the store's features with its trainer, and its data."""
    config = TrainConfig.model_validate({**TRAIN, **train})
    chunks = {name: own[-1] for name, own in levels.items()}
    table = EmbeddingConfig.model_validate({"width": 4, "rows": 300, "chunks": {"features": chunks}})
    plan = plan_embedding(store.layout, table, store.id_counts("train"))
    model = CTRModel(
        store.layout,
        plan,
        ModelConfig.model_validate({"hidden": [16], "cross_layers": 1, "dropout": 0.1, **(network or {})}),
        seed=1,
        optimizer=config.optimizer_of_table,
    )
    space = SearchSpace(tuple(SearchFeature(f.name, levels[f.name]) for f in plan.features))
    supernet = SupernetConfig.model_validate({"recipe": recipe})
    out = SupernetTrainer(model, config, space=space, supernet=supernet, seed=seed, folder=folder, listener=listener)
    return out, (Loader(store, "train", config.batch_size, shuffle_seed=5), Loader(store, "valid", 512))


def bare(tmp_path: Path, recipe: str = "mixed", space: SearchSpace = SPACE, **network: Any) -> SupernetTrainer:
    """A trainer of a model with everything, to look at single losses."""
    model = build(network)
    config = TrainConfig(ema=None)
    supernet = SupernetConfig.model_validate({"recipe": recipe})
    return SupernetTrainer(model, config, space=space, supernet=supernet, seed=0, folder=tmp_path)


def masks_of(own: SupernetTrainer, data: Batch) -> list[Tensor]:
    """What the network's inputs are multiplied by in one step, [B, I] each."""
    found: list[Tensor] = []
    forward = own.model.network.forward

    def watched(x: Tensor, mask: Tensor | None = None) -> Tensor:
        found.append(torch.ones_like(x) if mask is None else mask.expand_as(x).clone())
        return forward(x, mask)

    own.model.network.forward = watched  # type: ignore[method-assign]
    own._loss(data)
    return found


def chunks_kept(mask: Tensor) -> np.ndarray:
    """[B, F] chunk counts of masks, whose ones must stand at the front of every feature."""
    parts = mask[:, : sum(LARGEST.values()) * WIDTH].view(len(mask), -1, WIDTH)
    assert (parts == parts[:, :, :1]).all()
    assert (mask[:, parts[0].numel() :] == 1).all()
    features = parts[:, :, 0].split(list(LARGEST.values()), 1)
    assert all((own[:, 1:] <= own[:, :-1]).all() for own in features)
    return torch.stack([own.sum(1) for own in features], 1).long().numpy()


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.glob("*"))}


def test_masks_keep_the_first_chunks_and_all_that_is_no_chunk() -> None:
    model = build(chunks={"user": 2, "item": 0, "city": 1, "tags": 3, "words": 0})
    masks = ChunkMasks(model)(torch.tensor([[2, 0, 1, 3, 0], [1, 0, 0, 2, 0], [0, 0, 0, 0, 0]]))
    expected = [[1, 1, 1, 1, 1, 1], [1, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0]]
    assert masks.dtype == torch.float32
    assert masks[:, :24].tolist() == np.repeat(expected, 4, 1).tolist()
    assert masks[:, 24:].tolist() == [[1.0] * 5] * 3


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_learns(store: Store, tmp_path: Path, recipe: str) -> None:
    own, data = trainer(store, tmp_path, recipe, epochs=8)
    result = own.fit(*data)
    losses = [epoch["train/epoch_loss"] for epoch in result.history]
    assert losses[-1] < losses[0] - 0.02
    assert max(epoch["valid/auc"] for epoch in result.history) > 0.62
    everything, nothing = predict_allocations(own.model, data[1], np.array([[4, 1, 2], [0, 0, 0]]))
    assert np.isfinite(everything.probabilities).all()
    assert everything.probabilities.std() > nothing.probabilities.std()


@pytest.mark.parametrize("interaction", ["mlp", "dcn", "fm", "ipnn"])
def test_every_interaction_can_be_a_supernet(store: Store, tmp_path: Path, interaction: str) -> None:
    own, data = trainer(store, tmp_path, network={"interaction": interaction}, epochs=6)
    losses = [epoch["train/epoch_loss"] for epoch in own.fit(*data).history]
    assert losses[-1] < losses[0]


def test_an_epoch_is_judged_by_several_allocations(store: Store, tmp_path: Path) -> None:
    own, data = trainer(store, tmp_path, epochs=2, ema=None)
    assert own._monitored.shape == (1 + MONITORED, 3)
    assert own._monitored[0].tolist() == [4, 1, 2]
    history = own.fit(*data).history
    best = max(history, key=lambda epoch: epoch["valid/auc"])
    reports = [own._report(p) for p in predict_allocations(own.model, data[1], own._monitored)]
    assert np.mean([report["auc"] for report in reports]) == pytest.approx(best["valid/auc"])
    assert len({report["auc"] for report in reports}) > 1


def test_an_epoch_is_not_judged_by_a_model_without_inputs(tmp_path: Path) -> None:
    layout = Layout(id_names=("user", "city"), label_names=("click",))
    features = (SearchFeature("user", (0, 4)), SearchFeature("city", (0, 1)))
    data = batch(layout)
    for seed in range(8):
        own = SupernetTrainer(
            build(layout=layout),
            TrainConfig(ema=None),
            space=SearchSpace(features, needs_a_chunk=True),
            supernet=SupernetConfig(),
            seed=seed,
            folder=tmp_path,
        )
        assert own._monitored.any(1).all()
        assert len(predict_allocations(own.model, [data], own._monitored)) == 1 + MONITORED


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("cut", [2, 7, 15])  # before any checkpoint, within the first epoch, within the second
def test_a_cut_run_resumes_to_the_same_bits(store: Store, tmp_path: Path, recipe: str, cut: int) -> None:
    class Cut(PrintSteps):
        def on_step(self, step: int, values: dict[str, float]) -> None:
            if step == cut:
                raise KeyboardInterrupt

    whole, data = trainer(store, tmp_path / "whole", recipe, log_steps=1, epochs=2)
    expected = whole.fit(*data)
    stopped, data = trainer(store, tmp_path / "cut", recipe, log_steps=1, epochs=2, listener=Cut())
    with pytest.raises(KeyboardInterrupt):
        stopped.fit(*data)
    resumed, data = trainer(store, tmp_path / "cut", recipe, log_steps=1, epochs=2)
    assert resumed.fit(*data, resume=True).history == expected.history
    assert digests(tmp_path / "cut") == digests(tmp_path / "whole")
    for name, t in resumed.model.tensors().items():
        assert torch.equal(t, whole.model.tensors()[name]), name


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"recipe": "uniform"}, "supernet: .*another config"),
        ({"levels": {**LEVELS, "user": (0, 2, 4)}}, "levels: .*another config"),
        ({"seed": 4}, "seed: .*another config"),
    ],
)
def test_resuming_with_another_search_is_refused(
    store: Store, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    first, data = trainer(store, tmp_path, epochs=1)
    first.fit(*data)
    second, data = trainer(store, tmp_path, **{"epochs": 1, **change})
    with pytest.raises(ArtifactError, match=words):
        second.fit(*data, resume=True)


def test_uniform_draws_every_level_as_often_and_independently(tmp_path: Path) -> None:
    torch.manual_seed(0)
    levels = {"user": (0, 1, 4), "item": (0, 2), "city": (1,), "tags": (0, 1, 2, 3), "words": (1, 2)}
    space = SearchSpace(tuple(SearchFeature(name, own) for name, own in levels.items()))
    (mask,) = masks_of(bare(tmp_path, "uniform", space), batch(rows=6000))
    kept = chunks_kept(mask)
    for i, own in enumerate(levels.values()):
        found, seen = np.unique(kept[:, i], return_counts=True)
        assert found.tolist() == list(own)
        np.testing.assert_allclose(seen / len(kept), 1 / len(own), atol=0.025)
    varied = np.delete(kept, 2, 1)
    np.testing.assert_allclose(np.corrcoef(varied.T), np.eye(4), atol=0.05)


def test_mixed_draws_sparse_and_full_allocations_as_often_as_middling_ones(tmp_path: Path) -> None:
    torch.manual_seed(0)
    full, mask = masks_of(bare(tmp_path), batch(rows=6000))
    assert full.all()
    kept = chunks_kept(mask)
    for i, most in enumerate(LARGEST.values()):  # any one feature has every level as often
        share = np.bincount(kept[:, i], minlength=most + 1) / len(kept)
        np.testing.assert_allclose(share, 1 / (most + 1), atol=0.025)
    together = np.bincount(kept.sum(1), minlength=13) / len(kept)
    np.testing.assert_allclose(together, 1 / 13, atol=0.02)


@networks
def test_nested_trains_every_level_everywhere(network: dict[str, Any], tmp_path: Path) -> None:
    own, data = bare(tmp_path, "nested", **network), batch(rows=30)
    x = own.model.inputs_of(data)
    full = own.model.network(x)
    target = own._distilled(data, full)
    expected = weighted_loss(full, data)[0]
    for counts in ([1, 1, 1, 1, 1], [2, 2, 1, 2, 2], [3, 2, 1, 3, 2]):
        mask = own._masks(torch.tensor([counts]))
        expected = expected + weighted_loss(own.model.network(x, mask), target)[0]
    parameters = [p for p in own.model.network.parameters() if p.requires_grad]
    wanted = torch.autograd.grad(expected / 4, parameters, retain_graph=True, allow_unused=True)
    loss, _ = own._nested(x, data)
    torch.testing.assert_close(loss, expected / 4)
    for given, gradient in zip(torch.autograd.grad(loss, parameters, allow_unused=True), wanted, strict=True):
        torch.testing.assert_close(given, gradient, atol=1e-6, rtol=1e-4)


def test_truncated_cuts_one_feature_of_an_example_short(tmp_path: Path) -> None:
    torch.manual_seed(0)
    (mask,) = masks_of(bare(tmp_path, "truncated"), batch(rows=4000))
    kept = chunks_kept(mask)
    cut = kept < np.array(list(LARGEST.values()))
    assert cut.sum(1).max() == 1
    expected = [most / (most + 1) / len(NAMES) for most in LARGEST.values()]
    np.testing.assert_allclose(cut.mean(0), expected, atol=0.025)


def test_the_smaller_models_learn_from_the_full_one(tmp_path: Path) -> None:
    own, data = bare(tmp_path), batch()
    full = torch.randn(20, 2, requires_grad=True)
    target = own._distilled(data, full)
    assert target.labels is not None
    assert data.labels is not None
    torch.testing.assert_close(target.labels, 0.5 * data.labels + 0.5 * torch.sigmoid(full.detach()))
    assert not target.labels.requires_grad


@networks
def test_chunk_lasso_is_the_sum_of_norms_of_tails(network: dict[str, Any]) -> None:
    model = build(network)
    expected, start = 0.0, 0
    for most in LARGEST.values():
        stop = start + most * WIDTH
        for weight in model.network.first_layers().values():
            for chunk in range(most):
                tail = weight[:, start + chunk * WIDTH : stop]
                expected += float(tail.detach().double().square().sum().sqrt())
        start = stop
    assert float(chunk_lasso(model).detach()) == pytest.approx(expected, rel=1e-5)


@networks
def test_the_gradient_of_chunk_lasso_is_finite_where_weights_are_zero(network: dict[str, Any]) -> None:
    model = build(network)
    layers = model.network.first_layers()
    with torch.no_grad():
        for weight in layers.values():
            weight[:, :WIDTH] = 0
            weight[:, 4 * WIDTH :] = 0
    chunk_lasso(model).backward()
    found = [p.grad for p in model.dense_parameters().values() if p.grad is not None]
    assert len(found) == len(layers)
    assert all(bool(torch.isfinite(grad).all()) for grad in found)
    assert all(bool(grad.any()) for grad in found)


def test_lasso_is_added_to_the_loss(tmp_path: Path) -> None:
    data = batch()
    own, plain = bare(tmp_path, "lasso"), bare(tmp_path, "lasso")
    plain.supernet = SupernetConfig(recipe="lasso", lasso=0.0)
    penalty = own.supernet.lasso * float(chunk_lasso(own.model).detach())
    assert penalty > 1e-4
    assert own._loss(data)[1] == pytest.approx(plain._loss(data)[1] + penalty, rel=1e-5)
