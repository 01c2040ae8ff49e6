"""Thresholds prune what carries no information, frequent or rare, and what is left is what was trained."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from features.errors import ArtifactError, ConfigError
from features.fingerprint import fingerprint
from features.loading.loader import Loader
from features.spec import FeatureSpec
from features.storage.splits import RandomSplit
from features.storage.store import Store, build_store
from features.validation import validate
from recsys.embeddings import EmbeddingConfig, plan_embedding
from recsys.models import CTRModel, ModelConfig
from recsys.search.config import SupernetConfig, ThresholdConfig
from recsys.search.fitness import predict_allocations
from recsys.search.space import SearchFeature, SearchSpace
from recsys.search.threshold_supernet import ThresholdSupernetTrainer
from recsys.search.thresholds import ThresholdGate, ThresholdTrainer, compact_by_thresholds
from recsys.tensorfile import read_tensors
from recsys.training import TrainConfig, predict

VALUES = 200
SPEC = {
    "features": [
        {"name": "mixed", "type": "id", "dtype": "integer"},
        {"name": "noise", "type": "id", "dtype": "integer"},
        {"name": "signal", "type": "id", "dtype": "integer"},
        {"name": "tags", "type": "ids", "dtype": "integer", "pooling": "mean"},
    ],
    "labels": ["click"],
}


def events(rows: int, seed: int = 0) -> pl.DataFrame:
    """Three fields with the same frequencies: all values tell something, none, or every second."""
    rng = np.random.default_rng(seed)
    p = 1 / np.arange(1, VALUES + 1)
    ids = {name: rng.choice(VALUES, rows, p=p / p.sum()) for name in ("mixed", "noise", "signal")}
    sign = np.where(rng.random((2, VALUES)) < 0.5, -1.5, 1.5)
    logit = sign[0][ids["signal"]] + np.where(np.arange(VALUES) % 2 == 0, sign[1], 0)[ids["mixed"]]
    tags = [rng.integers(0, 5, n).tolist() for n in rng.integers(0, 3, rows)]
    click = (rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(int)
    return pl.DataFrame({**ids, "tags": tags, "click": click})


def make_store(folder: Path, rows: int) -> Store:
    spec = validate(FeatureSpec, SPEC)
    build_store(events(rows).lazy(), spec, RandomSplit(fractions=(0.8, 0.1, 0.1), seed=1), folder)
    return Store.open(folder, spec=spec)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("thresholds") / "store", 4000)


def trainer_of(
    store: Store,
    folder: Path,
    embedding: dict[str, Any] | None = None,
    thresholds: dict[str, Any] | None = None,
    supernet: bool = False,
    **more: Any,
) -> ThresholdTrainer:
    settings = {"kind": "collisionless", "width": 4, "init_scale": 0.01, **(embedding or {})}
    plan = plan_embedding(store.layout, EmbeddingConfig.model_validate(settings), store.id_counts("train"))
    defaults = {
        "batch_size": 256,
        "learning_rate": 0.003,
        "table_optimizer": "adam",
        "table_learning_rate": 0.001,
        "table_l2": 0.001,
        "threads": 1,
    }
    config = TrainConfig.model_validate({**defaults, **more})
    network = ModelConfig(interaction="mlp", hidden=(16,))
    model = CTRModel(store.layout, plan, network, seed=1, optimizer=config.optimizer_of_table, kernel="torch")
    common: dict[str, Any] = {"thresholds": ThresholdConfig.model_validate(thresholds or {}), "folder": folder}
    if not supernet:
        return ThresholdTrainer(model, config, seed=0, **common)
    space = SearchSpace(
        tuple(SearchFeature(f.name, tuple(range(f.chunks + 1))) for f in plan.features), needs_a_chunk=True
    )
    return ThresholdSupernetTrainer(model, config, space=space, supernet=SupernetConfig(), seed=0, **common)


def fit(trainer: ThresholdTrainer, store: Store, resume: bool = False) -> Any:
    valid = Loader(store, "valid", 4096)
    return trainer.fit(Loader(store, "train", 256, shuffle_seed=0), valid, resume=resume)


def test_the_straight_through_step_by_hand() -> None:
    gate = ThresholdGate(2)
    vectors = torch.tensor([[3.0, 4.0], [0.3, 0.4]], requires_grad=True)
    gate(0, torch.full((1, 2), 5 / 2**0.5))  # the root mean square is that of the first vector
    gate.eval()
    with torch.no_grad():
        gate.thresholds[0] = 0.5
    out = gate(0, vectors)
    assert out.tolist() == [[3.0, 4.0], [0.0, 0.0]]
    (out * torch.tensor([[1.0, 0.0], [0.0, 1.0]])).sum().backward()
    # s is 1 and .1, so x is .5 and -.4: derivatives .4 and .4; g . e is 3 and .4
    torch.testing.assert_close(gate.thresholds.grad, torch.tensor([-(3 * 0.4 + 0.4 * 0.4), 0.0]))
    expected = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    expected[0] += 3 * 0.4 * torch.tensor([0.6, 0.8]) / 5
    expected[1] += 0.4 * 0.4 * torch.tensor([0.6, 0.8]) / 5
    torch.testing.assert_close(vectors.grad, expected)


def test_what_is_read_has_no_unit() -> None:
    for scale in (1e-3, 1.0, 50.0):
        gate = ThresholdGate(1)
        for chunks in (1, 4):
            vectors = scale * torch.tensor([[2.0] * chunks, [1.0] * chunks])
            gate(0, vectors)
        torch.testing.assert_close(gate.importance(vectors), torch.tensor([2.0, 1.0]) / 2.5**0.5)


@pytest.mark.parametrize("supernet", [False, True])
def test_a_cut_run_resumes_to_the_same_bits(store: Store, tmp_path: Path, supernet: bool) -> None:
    more = {"epochs": 2, "checkpoint_steps": 5, "ema": 0.9, "supernet": supernet}
    whole = trainer_of(store, tmp_path / "whole", thresholds={"pressure": 0.05}, **more)
    fit(whole, store)
    part = trainer_of(store, tmp_path / "cut", thresholds={"pressure": 0.05}, **more)
    steps = 0

    class Cut(Exception):
        pass

    step = part._step

    def counted(*arguments: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 18:
            raise Cut
        return step(*arguments)

    part._step = counted  # type: ignore[method-assign]
    with pytest.raises(Cut):
        fit(part, store)
    with pytest.raises(ArtifactError, match="another config"):
        fit(trainer_of(store, tmp_path / "cut", **more), store, resume=True)
    again = trainer_of(store, tmp_path / "cut", thresholds={"pressure": 0.05}, **more)
    fit(again, store, resume=True)
    assert digests(tmp_path / "cut") == digests(tmp_path / "whole")
    assert torch.equal(again.gate.thresholds, whole.gate.thresholds)
    assert float(whole.gate.thresholds.detach().abs().min()) > 0


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.glob("*.safetensors"))}


def test_a_supernet_reads_values_that_passed_at_any_width(store: Store, tmp_path: Path) -> None:
    trainer = trainer_of(store, tmp_path, {"chunks": {"default": 2}}, {"pressure": 0.2, "rate": 0.5}, supernet=True)
    fit(trainer, store)
    square = trainer.gate.square.clone()
    trainer.model.train()
    trainer._metrics(Loader(store, "valid", 200))
    assert trainer.model.training
    assert torch.equal(trainer.gate.square, square)
    trainer.model.eval()
    small, report = compact_by_thresholds(trainer.model, store.id_counts("train"))
    assert any(0 < line.kept < line.before for line in report.features)
    chunks = np.array([[2, 2, 2, 2], [1, 0, 2, 1]])
    masked, served = (
        predict_allocations(model, Loader(store, "train", 1024), chunks) for model in (trainer.model, small)
    )
    for one, other in zip(masked, served, strict=True):
        assert np.array_equal(one.probabilities, other.probabilities)
    gate, trainer.model.embedding.gate = trainer.model.embedding.gate, None
    (full,) = predict_allocations(trainer.model, Loader(store, "train", 1024), chunks[:1])
    trainer.model.embedding.gate = gate
    assert not np.array_equal(full.probabilities, masked[0].probabilities)


def test_the_best_epoch_keeps_its_thresholds(store: Store, tmp_path: Path) -> None:
    trainer = trainer_of(store, tmp_path, epochs=3, learning_rate=0.05, table_learning_rate=0.05)
    result = fit(trainer, store)
    kept = read_tensors(result.checkpoint, "gate.")[0]
    assert torch.equal(kept["gate.thresholds"], trainer.gate.thresholds.detach())
    again = predict(trainer.model, Loader(store, "valid", 4096))
    assert trainer._report(again)["auc"] == pytest.approx(result.best_metrics["auc"], abs=1e-12)


def test_a_skipped_step_moves_no_threshold(store: Store, tmp_path: Path) -> None:
    trainer = trainer_of(store, tmp_path)
    batch = next(iter(Loader(store, "train", 64)))
    trainer.model.train()
    trainer._step(batch, 1.0)
    before = trainer.gate.thresholds.detach().clone()
    with torch.no_grad():
        trainer.model.network.head.bias.fill_(float("nan"))
    trainer._step(batch, 1.0)
    assert trainer._progress.skipped == 1
    assert torch.equal(trainer.gate.thresholds.detach(), before)
    assert trainer.gate.thresholds.grad is None


@pytest.mark.parametrize("embedding", [{}, {"kind": "multiplexed", "exact": {"max_values": 500}, "rows": 50}], ids=str)
def test_the_compact_model_predicts_as_the_masked_one(store: Store, tmp_path: Path, embedding: dict[str, Any]) -> None:
    trainer = trainer_of(store, tmp_path, {**embedding, "chunks": {"default": 2}}, {"pressure": 0.2, "rate": 0.5})
    fit(trainer, store)
    small, report = compact_by_thresholds(trainer.model, store.id_counts("train"))
    kept = {line.feature: line for line in report.features}
    assert 0 < kept["signal"].kept < kept["signal"].before
    assert small.plan.table_bytes < trainer.model.plan.table_bytes
    counts = store.id_counts("train")
    with torch.no_grad():
        trainer.model.eval()
        for batch in Loader(store, "train", 1024):
            assert torch.equal(small.logits(batch), trainer.model.logits(batch))
    for f in small.plan.features:
        assert f.values == kept[f.name].kept <= len(counts[f.name][0])


def test_a_hashed_row_goes_when_no_value_that_passed_reads_it(store: Store, tmp_path: Path) -> None:
    trainer = trainer_of(store, tmp_path, {"kind": "hashed", "rows": 900, "exact": {"max_values": 0}})
    fit(trainer, store)
    with torch.no_grad():
        trainer.gate.thresholds.copy_(torch.tensor([0.5, 1e6, -1.0, -1.0]))
    small, report = compact_by_thresholds(trainer.model, store.id_counts("train"))
    kept = {line.feature: line for line in report.features}
    assert kept["signal"].share == kept["tags"].share == 1
    assert 0 < kept["mixed"].share < 1
    assert report.pruned_features == ["noise"]
    assert report.thresholds["mixed"] == 0.5
    rows = {line["feature"]: line["rows"] for line in small.plan.summary()}
    assert rows["noise"] == 0
    assert 0 < rows["mixed"] <= kept["mixed"].kept
    ids = torch.tensor([fingerprint(str(v)) for v in range(VALUES)])
    assert (small.embedding.table.values(small.embedding.rows_of("noise", ids).flatten()) == 0).all()


def test_hot_rows_are_refused(store: Store, tmp_path: Path) -> None:
    hot = {"kind": "multiplexed", "exact": {"max_values": 0}, "hot": {"features": {"signal": 8}}}
    with pytest.raises(ConfigError, match="no hot region"):
        trainer_of(store, tmp_path, hot)


def test_thresholds_prune_what_tells_nothing_and_not_what_is_rare(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", 120_000)
    trainer = trainer_of(store, tmp_path / "run", {"width": 8}, {"pressure": 0.003})
    fit(trainer, store)
    _, report = compact_by_thresholds(trainer.model, store.id_counts("train"))
    share = {line.feature: line.share for line in report.features}
    assert share["signal"] > 0.85
    assert share["noise"] < 0.3
    # within one field, whose values differ in what they tell and not in how frequent they are
    ids = torch.tensor([fingerprint(str(v)) for v in range(VALUES)])
    vectors = trainer.model.embedding.table.values(trainer.model.embedding.rows_of("mixed", ids).flatten())
    passed = (trainer.gate.importance(vectors) > trainer.gate.thresholds[0]).numpy()
    tells, frequent = np.arange(VALUES) % 2 == 0, np.arange(VALUES) < 20
    assert passed[tells & ~frequent].mean() > 0.85  # the rare ones that tell something
    assert passed[~tells & frequent].mean() < 0.5  # the frequent ones that do not
    assert passed[~tells].mean() < 0.2
    # the thresholds did it: without them every value has its rows
    assert (trainer.gate.importance(vectors) > 0).all()
