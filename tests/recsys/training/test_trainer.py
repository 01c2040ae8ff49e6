"""What training promises: it learns, repeats bit for bit, resumes bit for bit, and keeps the best epoch."""

from __future__ import annotations

import hashlib
import math
import os
import random
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from features.batch import Batch
from features.errors import ArtifactError, ConfigError, DataError, UndefinedMetricError
from features.loading.loader import Loader
from features.storage.store import Store
from recsys.embeddings.fbgemm_table import FbgemmTable
from recsys.embeddings.formats import RowFormat
from recsys.embeddings.kernel import KernelName, is_installed
from recsys.embeddings.numba_table import NumbaTable
from recsys.embeddings.table import TableOptimizer
from recsys.embeddings.torch_table import TorchTable
from recsys.evaluation.metrics import evaluate
from recsys.models import CTRModel, ModelConfig
from recsys.models.convert import convert
from recsys.tensorfile import read_tensors, write_tensors
from recsys.training import TrainConfig, Trainer, TrainResult, load_best, predict
from recsys.training.trainer import weighted_loss
from tests.recsys.training import training_job

JOB = Path(training_job.__file__)
ROOT = JOB.parents[3]
needs_fbgemm = pytest.mark.skipif(not is_installed("fbgemm_gpu"), reason="fbgemm-gpu is not installed")


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.glob("*"))}


def command(store: Path, folder: Path, *more: str) -> list[str]:
    return [sys.executable, str(JOB), str(store), str(folder), *more]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def undisturbed(store_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], int]:
    """Checkpoint hashes and steps of a run that nobody disturbs, in a process of its own."""
    folder = tmp_path_factory.mktemp("undisturbed")
    out = subprocess.run(
        command(store_folder, folder), env=environment(), check=True, capture_output=True, text=True
    ).stdout
    return digests(folder), out.count("step ")


def test_the_same_config_gives_identical_checkpoints(
    store_folder: Path, tmp_path: Path, undisturbed: tuple[dict[str, str], int]
) -> None:
    training_job.run(store_folder, tmp_path)
    assert digests(tmp_path) == undisturbed[0]
    assert any(name.startswith("step-") for name in undisturbed[0])


@pytest.mark.parametrize("draw", range(3))
def test_a_killed_run_resumes_to_identical_checkpoints(
    store_folder: Path, tmp_path: Path, undisturbed: tuple[dict[str, str], int], draw: int
) -> None:
    expected, steps = undisturbed
    third = steps // 3
    target = random.SystemRandom().randint(draw * third + 1, (draw + 1) * third)
    process = subprocess.Popen(command(store_folder, tmp_path), env=environment(), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == f"step {target}":
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    assert process.returncode == -signal.SIGKILL
    subprocess.run(command(store_folder, tmp_path, "resume"), env=environment(), check=True, capture_output=True)
    assert digests(tmp_path) == expected, f"killed at step {target} of {steps}"


def test_a_full_disk_is_one_clear_error_and_leaves_the_old_checkpoints(store_folder: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands in for the end of the disk: the write fails in the same place."""
    training_job.run(store_folder, tmp_path)
    finished = digests(tmp_path)
    newest = sorted(tmp_path.glob("step-*"))[-1]
    size = newest.stat().st_size
    newest.unlink()  # as if killed before the last checkpoint; the resumed run has to write it again
    before = digests(tmp_path)

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))

    failed = subprocess.run(
        command(store_folder, tmp_path, "resume"),
        env=environment(),
        preexec_fn=limit,
        capture_output=True,
        text=True,
        check=False,
    )
    assert failed.returncode == 2, failed.stderr
    assert "could not be written" in failed.stderr
    assert "bytes to write" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert digests(tmp_path) == before
    training_job.run(store_folder, tmp_path, resume=True)
    assert digests(tmp_path) == finished


def test_training_learns_and_keeps_the_best_epoch(store_folder: Path, tmp_path: Path) -> None:
    store = Store.open(store_folder)
    settings = {"epochs": 60, "patience": 3, "ema": None, "table_learning_rate": 0.05, "schedule": "constant"}
    model, config = training_job.build(store, **settings)
    train, valid = training_job.loaders(store, config)
    result = Trainer(model, config, seed=3, folder=tmp_path).fit(train, valid)
    aucs = [epoch["valid/auc"] for epoch in result.history]
    assert max(aucs) > 0.7
    assert result.best_epoch == int(np.argmax(aucs)) + 1
    assert result.best_metrics["auc"] == max(aucs)
    assert result.stopped == "patience"
    assert len(aucs) == result.best_epoch + 3
    # the model now holds the best weights, and so does the file
    scored = predict(model, valid)
    assert scored.labels is not None
    assert evaluate(scored.labels, scored.probabilities, scored.weight)["auc"] == max(aucs)
    other, _ = training_job.build(store)
    assert load_best(other, tmp_path)["epoch"] == result.best_epoch
    assert torch.equal(other.tensors()["table"], model.tensors()["table"])


@pytest.mark.parametrize("optimizer", ["sgd", "rowwise_adagrad", "adam"])
def test_every_table_optimizer_learns(store_folder: Path, tmp_path: Path, optimizer: str) -> None:
    rate = {"sgd": 5.0, "rowwise_adagrad": 0.05, "adam": 0.02}[optimizer]
    settings = {"epochs": 8, "ema": None, "clip_norm": None, "table_learning_rate": rate}
    result = training_job.run(store_folder, tmp_path, table_optimizer=optimizer, **settings)
    assert result.best_metrics["auc"] > 0.68


@needs_fbgemm
def test_all_kernels_train_to_the_same_model(store_folder: Path, tmp_path: Path) -> None:
    store = Store.open(store_folder)
    predictions = []
    kernels: dict[KernelName, type] = {"torch": TorchTable, "fbgemm": FbgemmTable, "auto": NumbaTable}
    for kernel, table in kernels.items():
        model, config = training_job.build(
            store, table_optimizer="rowwise_adagrad", table_l2=0.0, clip_norm=None, ema=None, epochs=1
        )
        model = CTRModel(
            store.layout, model.plan, ModelConfig(hidden=(16,)), seed=1, optimizer=TableOptimizer(), kernel=kernel
        )
        assert type(model.embedding.table) is table
        train, valid = training_job.loaders(store, config)
        Trainer(model, config, seed=3, folder=tmp_path / kernel).fit(train, valid)
        predictions.append(predict(model, valid).probabilities)
    np.testing.assert_allclose(predictions[0], predictions[1], atol=1e-4)
    np.testing.assert_allclose(predictions[0], predictions[2], atol=1e-4)


def test_averaged_weights_are_what_is_evaluated_and_kept(store_folder: Path, tmp_path: Path) -> None:
    """Against an average taken by hand over the whole model at every step."""
    store = Store.open(store_folder)
    model, config = training_job.build(store, epochs=1, clip_norm=None, ema=0.9)
    train, valid = training_job.loaders(store, config)
    trainer = Trainer(model, config, seed=3, folder=tmp_path)
    expected = {name: torch.zeros_like(t) for name, t in model.tensors().items() if t.is_floating_point()}
    step = trainer._step

    def watched(batch, factor):  # type: ignore[no-untyped-def]
        out = step(batch, factor)
        for name, t in model.tensors().items():
            if name in expected:
                expected[name].lerp_(t, 0.1)
        return out

    trainer._step = watched  # type: ignore[method-assign]
    trainer.fit(train, valid)
    for name, t in expected.items():
        torch.testing.assert_close(model.tensors()[name], t / (1 - 0.9 ** len(train)), atol=2e-6, rtol=1e-4)


def test_the_gradient_is_clipped_over_network_and_table_together(store_folder: Path, tmp_path: Path) -> None:
    store = Store.open(store_folder)
    model, config = training_job.build(store, clip_norm=1e-3)
    trainer = Trainer(model, config, seed=3, folder=tmp_path)
    train, _ = training_job.loaders(store, config)
    batch = next(iter(train))
    model.train()
    loss, _ = weighted_loss(model.logits(batch), batch)
    loss.backward()
    table = model.embedding.table
    assert isinstance(table, TorchTable)
    scale = trainer._clip(trainer._gradient_norm())
    touched = table.gradients()
    assert touched is not None
    network = sum(float(p.grad.square().sum()) for p in model.dense_parameters().values() if p.grad is not None)
    assert math.sqrt(network + float((touched[1] * scale).square().sum())) == pytest.approx(1e-3, rel=1e-4)


def test_weights_count(store_folder: Path) -> None:
    """A row of weight 2 is two rows of weight 1."""
    store = Store.open(store_folder)
    model, config = training_job.build(store)
    batch = next(iter(training_job.loaders(store, config)[0]))
    assert batch.weight is not None
    twice = [i for i, w in enumerate(batch.weight.tolist()) for _ in range(int(w))]
    repeated = batch.rows(twice)
    repeated.weight = None
    logits = model.eval().logits(batch)
    loss, total = weighted_loss(logits, batch)
    assert total == len(twice)
    torch.testing.assert_close(loss, weighted_loss(model.logits(repeated), repeated)[0])


@pytest.mark.parametrize("master", [False, True])
@pytest.mark.parametrize("format", ["int8", "int4", "int2"])
def test_the_low_bit_model_at_the_end_is_the_one_that_was_validated(
    store_folder: Path, tmp_path: Path, master: bool, format: str
) -> None:
    store = Store.open(store_folder)
    model, config = training_job.build(store, embedding={"format": format}, table_master=master, ema=0.9)
    train, valid = training_job.loaders(store, config)
    best = Trainer(model, config, seed=3, folder=tmp_path).fit(train, valid).best_metrics
    again = predict(model, valid)
    assert again.labels is not None
    report = evaluate(again.labels, again.probabilities, again.weight)
    assert {name: report[name] for name in best} == best


@pytest.mark.parametrize("master", [False, True])
@pytest.mark.parametrize("ema", [None, 0.9])
def test_a_low_bit_table_resumes_to_the_same_bits(
    store_folder: Path, tmp_path: Path, master: bool, ema: float | None
) -> None:
    """Cut within an epoch: the rows in training, and with a master copy the fp32 rows behind them."""
    store = Store.open(store_folder)

    class Cut(training_job.PrintSteps):
        def on_step(self, step: int, values: dict[str, float]) -> None:
            if step == 17:
                raise KeyboardInterrupt

    def trainer(folder: str, listener: training_job.PrintSteps | None = None) -> tuple[Trainer, tuple[Loader, Loader]]:
        embedding = {"format": "int4", "rows": 297}
        model, config = training_job.build(store, embedding=embedding, table_master=master, ema=ema)
        out = Trainer(model, config, seed=3, folder=tmp_path / folder, listener=listener)
        return out, training_job.loaders(store, config)

    whole, data = trainer("whole")
    expected = whole.fit(*data)
    cut, data = trainer("cut", Cut())
    with pytest.raises(KeyboardInterrupt):
        cut.fit(*data)
    newest = read_tensors(sorted((tmp_path / "cut").glob("step-*"))[-1])[0]
    assert ("table_optimizer.master" in newest, "model.table" in newest) == (master, not master)
    resumed, data = trainer("cut")
    assert resumed.fit(*data, resume=True).history == expected.history
    assert digests(tmp_path / "cut") == digests(tmp_path / "whole")
    for name, t in resumed.model.tensors().items():
        assert torch.equal(t, whole.model.tensors()[name]), name
    # what is kept of the best epoch is the table as it will be served
    best = read_tensors(expected.checkpoint)[0]["table"]
    assert best.dtype == torch.uint8
    assert torch.equal(best, resumed.model.tensors()["table"])


def test_resuming_under_another_config_is_refused(store_folder: Path, tmp_path: Path) -> None:
    training_job.run(store_folder, tmp_path, epochs=1)
    with pytest.raises(ArtifactError, match="another config"):
        training_job.run(store_folder, tmp_path, resume=True, epochs=2)


@pytest.mark.parametrize(
    ("embedding", "words"),
    [
        ({"hash_seed": 7}, "found: hash_seed 0. expected: hash_seed 7"),
        ({"rows": 301}, "rows 35[0-9].*expected: rows 35[0-9].*user:.* span 301"),
        ({"chunks": {"default": 2, "features": {"user": 1, "tags": 3}}}, "user: chunks 2.*expected.*user: chunks 1"),
    ],
)
def test_a_checkpoint_of_another_plan_is_refused(
    store_folder: Path, tmp_path: Path, embedding: dict[str, object], words: str
) -> None:
    """The first and the last plan have tensors of the same shapes."""
    training_job.run(store_folder, tmp_path, epochs=1)
    store = Store.open(store_folder)
    model, config = training_job.build(store, embedding={"hot": training_job.HOT, **embedding}, epochs=1)
    before = {name: t.clone() for name, t in model.tensors().items()}
    trainer = Trainer(model, config, seed=3, folder=tmp_path)
    pattern = f"(?i)another plan of the table.*{words}"
    with pytest.raises(ArtifactError, match=pattern):
        trainer.fit(*training_job.loaders(store, config), resume=True)
    with pytest.raises(ArtifactError, match=pattern):
        load_best(model, tmp_path)
    assert all(torch.equal(t, before[name]) for name, t in model.tensors().items())


def test_a_checkpoint_of_other_exact_values_is_refused(store_folder: Path, tmp_path: Path) -> None:
    training_job.run(store_folder, tmp_path, epochs=1)
    model, _ = training_job.build(Store.open(store_folder), embedding={"hot": training_job.HOT})
    model.embedding.exact_keys[0] -= 1
    with pytest.raises(ArtifactError, match="other values"):
        load_best(model, tmp_path)


def test_a_damaged_checkpoint_is_named(store_folder: Path, tmp_path: Path) -> None:
    training_job.run(store_folder, tmp_path, epochs=1)
    newest = sorted(tmp_path.glob("step-*"))[-1]
    newest.write_bytes(newest.read_bytes()[:100])
    with pytest.raises(ArtifactError, match=f"{newest.name}.*missing or damaged"):
        training_job.run(store_folder, tmp_path, resume=True, epochs=1)


class Poisoned(Loader):
    """Some batches hold a number that is none."""

    bad: tuple[int, ...] = ()

    def __iter__(self) -> Iterator[Batch]:
        for i, batch in enumerate(super().__iter__()):
            if i in self.bad:
                batch.dense = torch.full_like(batch.dense, math.nan)
            yield batch


def poisoned(store: Store, config: TrainConfig, *bad: int) -> Poisoned:
    loader = Poisoned(store, "train", config.batch_size, shuffle_seed=5)
    loader.bad = bad
    return loader


def state_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    """A copy of everything but the random state, which every step moves on."""
    return {name: t.clone() for name, t in trainer._tensors().items() if name != "random_state"}


def spoil(model: CTRModel, where: str) -> None:
    """Makes the gradient of one part infinite from now on, while the loss stays finite."""
    if where == "network":
        model.network.head.weight.register_hook(lambda gradient: gradient * math.inf)
    else:
        model.embedding.register_forward_hook(lambda module, given, out: _Infinite.apply(out))


class _Infinite(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * math.inf


@pytest.mark.parametrize("kernel", ["torch", "auto", pytest.param("fbgemm", marks=needs_fbgemm)])
@pytest.mark.parametrize("where", ["network", "table"])
def test_a_gradient_that_is_not_finite_changes_nothing(
    store_folder: Path, tmp_path: Path, kernel: str, where: str
) -> None:
    store = Store.open(store_folder)
    few = {"clip_norm": None, "ema": None, "table_l2": 0.0, "table_optimizer": "rowwise_adagrad"}
    settings = few if kernel == "fbgemm" else {"embedding": {"hot": training_job.HOT}}
    model, config = training_job.build(store, kernel=kernel, **settings)
    trainer = Trainer(model, config, seed=3, folder=tmp_path)
    batches = iter(training_job.loaders(store, config)[0])
    model.train()
    trainer._step(next(batches), 1.0)
    before = state_of(trainer)
    spoil(model, where)
    assert trainer._step(next(batches), 1.0)[:2] == (0.0, 0.0)
    assert all(torch.equal(t, before[name]) for name, t in state_of(trainer).items())
    assert not getattr(model.embedding, "_watched", None)
    assert float(model.embedding.table.gradient_norm(coalesced=False)) == 0


def test_steps_that_are_not_finite_are_skipped_and_counted(store_folder: Path, tmp_path: Path) -> None:
    store = Store.open(store_folder)
    model, config = training_job.build(store, epochs=2, max_skipped_steps=2)
    told: list[dict[str, float]] = []

    class Watch(training_job.PrintSteps):
        def on_step(self, step: int, values: dict[str, float]) -> None:
            told.append(values)

    trainer = Trainer(model, config, seed=3, folder=tmp_path, listener=Watch())
    result = trainer.fit(poisoned(store, config, 1, 3), training_job.loaders(store, config)[1])
    assert result.skipped_steps == 4  # never two in a row
    assert [values["train/skipped_steps"] for values in told[:5]] == [0, 1, 1, 2, 2]
    assert math.isnan(told[1]["train/loss"])
    assert all(math.isfinite(epoch["train/epoch_loss"]) for epoch in result.history)
    assert read_tensors(sorted(tmp_path.glob("step-*"))[-1])[1]["progress"]["skipped"] == 4


def test_too_many_steps_in_a_row_that_are_not_finite_stop_the_run(store_folder: Path, tmp_path: Path) -> None:
    store = Store.open(store_folder)
    model, config = training_job.build(store, max_skipped_steps=3)
    trainer = Trainer(model, config, seed=3, folder=tmp_path)
    with pytest.raises(DataError, match=r"not finite for 3 steps in a row.*loss nan.*at step 11, 4 steps skipped"):
        trainer.fit(poisoned(store, config, 1, 8, 9, 10), training_job.loaders(store, config)[1])
    tensors, state = read_tensors(sorted(tmp_path.glob("step-*"))[-1])
    assert state["progress"]["step"] == 7
    assert all(bool(t.isfinite().all()) for t in tensors.values())


def test_training_that_explodes_is_stopped(store_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not finite for 10 steps in a row"):
        training_job.run(
            store_folder, tmp_path, clip_norm=None, table_optimizer="sgd", table_learning_rate=1e30, ema=None
        )


def test_a_streak_of_skipped_steps_drives_out_no_sound_checkpoint(store_folder: Path, tmp_path: Path) -> None:
    store = Store.open(store_folder)
    model, config = training_job.build(store, checkpoint_steps=2, max_skipped_steps=9)
    trainer = Trainer(model, config, seed=3, folder=tmp_path)
    with pytest.raises(DataError, match="not finite for 9 steps in a row"):
        trainer.fit(poisoned(store, config, *range(6, 20)), training_job.loaders(store, config)[1])
    left = [read_tensors(path)[1]["progress"] for path in sorted(tmp_path.glob("step-*"))]
    assert [(p["step"], p["skipped"]) for p in left] == [(4, 0), (6, 0)]


def test_a_table_made_for_another_optimizer_is_refused(store_folder: Path, tmp_path: Path) -> None:
    store = Store.open(store_folder)
    model, _ = training_job.build(store, table_optimizer="sgd")
    _, config = training_job.build(store, table_optimizer="adam")
    with pytest.raises(ConfigError, match="another optimizer"):
        Trainer(model, config, seed=3, folder=tmp_path)


def test_rows_that_share_a_step_are_refused_before_any_work(store_folder: Path, tmp_path: Path) -> None:
    model, config = training_job.build(Store.open(store_folder))
    with pytest.raises(ConfigError, match=r"is for serving.*int8-table, a step of .* for all rows.*train.warm_start"):
        Trainer(convert(model, "int8-table"), config, seed=3, folder=tmp_path)
    assert not list(tmp_path.iterdir())


class AtEpochs:
    """Keeps what a function gives at the end of every epoch."""

    def __init__(self, look: Callable[[], Any]) -> None:
        self.look = look
        self.seen: list[Any] = []

    def on_start(self, total_steps: int, total_epochs: int, step: int) -> None:
        pass

    def on_step(self, step: int, values: dict[str, float]) -> None:
        pass

    def on_epoch(self, epoch: int, step: int, values: dict[str, float]) -> None:
        self.seen.append(self.look())

    def on_end(self, result: TrainResult) -> None:
        pass


def test_a_fitted_model_has_the_hot_region_of_its_best_epoch(store_folder: Path, tmp_path: Path) -> None:
    store = Store.open(store_folder)
    rate = {"learning_rate": 0.1, "table_learning_rate": 0.1, "schedule": "constant", "clip_norm": None}
    model, config = training_job.build(store, embedding={"hot": training_job.HOT}, epochs=5, **rate)

    def region() -> dict[str, Tensor]:
        hot = model.embedding.hot
        assert hot is not None
        return {name: t.clone() for name, t in {**hot.state(), "keys": model.embedding.hot_keys}.items()}

    epochs = AtEpochs(region)
    result = Trainer(model, config, seed=3, folder=tmp_path, listener=epochs).fit(*training_job.loaders(store, config))
    assert result.best_epoch < 5
    best, last = epochs.seen[result.best_epoch - 1], epochs.seen[-1]
    assert all(torch.equal(t, best[name]) for name, t in region().items())
    assert not torch.equal(best["keys"], last["keys"])


def test_after_a_fit_the_table_tells_when_its_rows_moved(store_folder: Path, tmp_path: Path) -> None:
    store = Store.open(store_folder)
    model, config = training_job.build(store, epochs=2, ema=0.9)
    trainer = Trainer(model, config, seed=3, folder=tmp_path)
    train, valid = training_job.loaders(store, config)
    result = trainer.fit(train, valid)
    average = model.embedding.table.average
    assert average is not None
    assert int(average.steps) == int(average.last.max()) == result.steps
    with trainer.averaged():  # the best weights are averages already
        assert torch.equal(model.embedding.table.stored(), read_tensors(tmp_path / "best.safetensors")[0]["table"])
    train.set_epoch(0)
    trainer.learn(batch for _, batch in zip(range(3), train, strict=False))
    assert model.embedding.table.average is not average
    assert int(model.embedding.table.average.steps) == 3


def test_a_trainer_fits_once(store_folder: Path, tmp_path: Path) -> None:
    store = Store.open(store_folder)
    model, config = training_job.build(store, epochs=1)
    trainer = Trainer(model, config, seed=3, folder=tmp_path)
    trainer.fit(*training_job.loaders(store, config))
    with pytest.raises(ValueError, match="fits once"):
        trainer.fit(*training_job.loaders(store, config))
    assert (tmp_path / "best.safetensors").exists()


def test_a_validation_split_of_one_class_is_said(store_folder: Path, tmp_path: Path) -> None:
    store = Store.open(store_folder)
    model, config = training_job.build(store)
    train, _ = training_job.loaders(store, config)

    class OneClass(Loader):
        def __iter__(self):  # type: ignore[no-untyped-def]
            for batch in super().__iter__():
                yield batch.rows((batch.labels[:, 0] == 0).nonzero().flatten())

    one_class = OneClass(store, "valid", config.eval_batch_size)
    with pytest.raises(UndefinedMetricError, match=r"auc is undefined on the validation split.*is positive"):
        Trainer(model, config, seed=3, folder=tmp_path).fit(train, one_class)
    model, config = training_job.build(store, monitor="logloss", epochs=1)
    result = Trainer(model, config, seed=3, folder=tmp_path).fit(train, one_class)
    assert "auc" not in result.best_metrics


@needs_fbgemm
def test_fbgemm_refuses_what_it_cannot_do(store_folder: Path, tmp_path: Path) -> None:
    store = Store.open(store_folder)
    plan = training_job.build(store)[0].plan
    model = CTRModel(store.layout, plan, ModelConfig(), optimizer=TableOptimizer(), kernel="fbgemm")
    for settings, text in (({"ema": None}, "cannot be clipped"), ({"clip_norm": None}, "keeps no moving average")):
        config = training_job.build(store, **settings)[1]
        with pytest.raises(ConfigError, match=text):
            Trainer(model, config, seed=0, folder=tmp_path)


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ArtifactError, match="could not be written"):
        write_tensors(tmp_path / "file" / "x.safetensors", {}, {})


def test_checkpoints_hold_no_more_than_what_training_needs(store_folder: Path, tmp_path: Path) -> None:
    training_job.run(store_folder, tmp_path, epochs=1)
    assert len(list(tmp_path.glob("step-*.safetensors"))) == 2
    tensors, state = read_tensors(sorted(tmp_path.glob("step-*"))[-1])
    assert {name.split(".")[0] for name in tensors} == {
        "model",
        "table_optimizer",
        "hot",
        "optimizer",
        "average",
        "random_state",
    }
    assert state["progress"]["epoch"] == 1


def test_a_larger_eps_makes_the_first_step_of_a_row_smaller() -> None:
    steps = []
    for eps in (1e-8, 1e-2):
        optimizer = TrainConfig(table_eps=eps).optimizer_of_table
        table = TorchTable(1, RowFormat("fp32", 4), optimizer).train()
        table(torch.zeros(1, dtype=torch.int32)).sum().mul(1e-2).backward()
        table.step(0.1)
        steps.append(table.values()[0, 0].item())
    assert steps == pytest.approx([-0.1, -0.05])
