"""bf16 products while training: close to fp32, as good on the validation split, and the same bits after a resume."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from features.errors import ConfigError
from features.storage.store import Store
from recsys.models.ctr import CTRModel
from recsys.training import Trainer
from recsys.training.trainer import weighted_loss
from tests.recsys.training import training_job


@pytest.fixture
def supported(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch emulates bf16 where the CPU lacks it, so that only the check stands in the way of these tests."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})


def step(model: CTRModel, store_folder: Path, *, autocast: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and gradients of the first batch; dropout draws the same."""
    store = Store.open(store_folder)
    batch = next(iter(training_job.loaders(store, training_job.build(store)[1])[0]))
    model.network.autocast = autocast
    model.zero_grad()
    torch.manual_seed(0)
    loss, _ = weighted_loss(model.train().logits(batch), batch)
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.dense_parameters().items() if p.grad is not None}
    touched = model.embedding.table.gradients()  # type: ignore[operator]
    gradients["table"] = touched[1].clone()
    model.embedding.discard()
    return loss.detach(), gradients


@pytest.mark.parametrize("interaction", ["dcnv2", "fm", "ipnn"])
def test_loss_and_gradients_are_close_to_those_of_fp32(
    store_folder: Path, interaction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(training_job.MODEL, "interaction", interaction)
    model, _ = training_job.build(Store.open(store_folder), embedding={"init_scale": 0.5})
    exact, expected = step(model, store_folder, autocast=False)
    loss, gradients = step(model, store_folder, autocast=True)
    assert loss.dtype == torch.float32
    assert 0 < abs(float(loss - exact)) < 2e-3
    for name, gradient in gradients.items():
        assert gradient.dtype == torch.float32
        assert float((gradient - expected[name]).norm() / expected[name].norm()) < 0.05, name


def test_evaluation_stays_in_fp32(store_folder: Path) -> None:
    store = Store.open(store_folder)
    model, config = training_job.build(store)
    batch = next(iter(training_job.loaders(store, config)[1]))
    expected = model.eval().logits(batch)
    model.network.autocast = True
    assert torch.equal(model.logits(batch), expected)


@pytest.mark.usefixtures("supported")
def test_training_is_as_good_and_resumes_to_the_same_bits(store_folder: Path, tmp_path: Path) -> None:
    settings = {"epochs": 8, "ema": None, "table_learning_rate": 0.02}
    plain = training_job.run(store_folder, tmp_path / "plain", **settings)
    fast = training_job.run(store_folder, tmp_path / "fast", autocast=True, **settings)
    assert fast.history != plain.history
    assert abs(fast.best_metrics["auc"] - plain.best_metrics["auc"]) < 0.01
    # cut before the last checkpoint was written
    whole = {path.name: path.read_bytes() for path in (tmp_path / "fast").iterdir()}
    shutil.copytree(tmp_path / "fast", tmp_path / "cut")
    max((tmp_path / "cut").glob("step-*")).unlink()
    training_job.run(store_folder, tmp_path / "cut", resume=True, autocast=True, **settings)
    assert {name: (tmp_path / "cut" / name).read_bytes() for name in whole} == whole


def test_a_cpu_without_bf16_is_refused(store_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True, "cpu_name": "Old"})
    model, config = training_job.build(Store.open(store_folder), autocast=True)
    with pytest.raises(ConfigError, match=r"train\.autocast: this CPU has no units.*Found: Old.*AMX"):
        Trainer(model, config, seed=0, folder=tmp_path)
