"""Progressive validation: predict first, learn when the labels have come, and what that is worth under drift."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from features.batch import Batch
from features.loading.loader import Loader
from features.spec import FeatureSpec
from features.storage.splits import TimeSplit
from features.storage.store import Store, build_store
from features.validation import validate
from recsys.embeddings import EmbeddingConfig, plan_embedding
from recsys.evaluation.metrics import evaluate
from recsys.evaluation.online.progressive import Chunk, ProgressiveValidation
from recsys.models import CTRModel, ModelConfig
from recsys.training import TrainConfig, Trainer, load_best, predict

ROWS = 6_000
TRAIN = TrainConfig(batch_size=100, epochs=2, table_learning_rate=0.1, threads=1)


def events() -> pl.DataFrame:
    """What a user clicks is turned round after two thirds of the rows."""
    rng = np.random.default_rng(0)
    user = rng.integers(0, 20, ROWS)
    taste = np.where(np.arange(ROWS) < ROWS * 2 // 3, 1.0, -1.0) * np.sin(user * 1.7) * 2
    click = (rng.random(ROWS) < 1 / (1 + np.exp(-taste))).astype(np.int64)
    return pl.DataFrame({"user": user, "row": np.arange(ROWS), "click": click})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    spec = validate(
        FeatureSpec, {"features": [{"type": "id", "name": "user", "dtype": "integer"}], "labels": ["click"]}
    )
    split = TimeSplit(fractions=(0.4, 0.1, 0.5), columns=["row"])
    return build_store(events().lazy(), spec, split, tmp_path_factory.mktemp("progressive") / "store")


def model_of(store: Store) -> CTRModel:
    plan = plan_embedding(store.layout, EmbeddingConfig(rows=200, width=4), store.id_counts())
    return CTRModel(store.layout, plan, ModelConfig(hidden=(8,)), seed=0, optimizer=TRAIN.optimizer_of_table)


def trained(store: Store, folder: Path) -> tuple[Trainer, CTRModel]:
    trainer = Trainer(model_of(store), TRAIN, seed=0, folder=folder)
    trainer.fit(Loader(store, "train", 100, shuffle_seed=0), Loader(store, "valid", 1_000))
    frozen = model_of(store)
    load_best(frozen, folder)
    return trainer, frozen


def chunks(store: Store, rows: int = 300) -> Iterator[Chunk]:
    for place, batch in enumerate(Loader(store, "test", rows)):
        yield Chunk(place * rows, place * rows, place * rows + len(batch), batch)


def test_learning_wins_after_the_drift_which_is_told_within_two_windows(store: Store, tmp_path: Path) -> None:
    run = ProgressiveValidation(*trained(store, tmp_path), delay=0, batch_size=100)
    rows = list(run.run(chunks(store)))
    turned = ROWS * 2 // 3 - ROWS // 2
    after = [row for row in rows if row["window"] >= turned + 600]
    assert all(row["logloss_high"] < 0 for row in after)
    assert run.difference()["logloss_high"] < 0
    frozen = [alarm["window"] for alarm in run.alarms if alarm["model"] == "frozen"]
    assert turned - 300 < min(frozen) <= turned + 300


def test_totals_are_those_of_all_rows_and_the_frozen_model_stays(store: Store, tmp_path: Path) -> None:
    trainer, frozen = trained(store, tmp_path)
    # in the same batches: another size of them shows in the last bits, and so in ties
    before = predict(frozen, Loader(store, "test", 100))
    run = ProgressiveValidation(trainer, frozen, delay=0, batch_size=100)
    list(run.run(chunks(store)))
    expected = evaluate(before.labels, before.probabilities)
    (total,) = (row for row in run.totals() if row["model"] == "frozen")
    assert total["auc"] == pytest.approx(expected["auc"])
    assert total["rows"] == ROWS // 2
    np.testing.assert_array_equal(predict(frozen, Loader(store, "test", 100)).probabilities, before.probabilities)


class Recorder:
    """Learns nothing, and remembers when it was asked to."""

    def __init__(self, model: CTRModel) -> None:
        self.model, self.learned = model, 0

    def learn(self, batches: Iterable[Batch]) -> int:
        rows = sum(len(batch) for batch in batches)
        self.learned += rows
        return rows

    def averaged(self) -> AbstractContextManager[None]:
        return nullcontext()


@pytest.mark.parametrize("delay", [0, 299, 300, 301, 900])
def test_nothing_is_learned_before_its_label_has_come(store: Store, delay: int) -> None:
    model = model_of(store)
    run = ProgressiveValidation(Recorder(model), model, delay=delay, batch_size=100)
    for row in run.run(chunks(store)):
        whole_chunks_known = max(0, (row["window"] - delay) // 300)
        assert row["learned"] == 300 * whole_chunks_known
        assert (row["logloss"], row["logloss_low"], row["logloss_high"]) == (0, 0, 0)


def test_learning_goes_on_from_the_best_epoch_with_averaged_weights(store: Store, tmp_path: Path) -> None:
    config = TRAIN.model_copy(update={"ema": 0.9})
    trainer = Trainer(model_of(store), config, seed=0, folder=tmp_path)
    trainer.fit(Loader(store, "train", 100, shuffle_seed=0), Loader(store, "valid", 1_000))
    frozen = model_of(store)
    load_best(frozen, tmp_path)
    rows = next(iter(Loader(store, "test", 300)))
    with trainer.averaged():
        np.testing.assert_array_equal(
            predict(trainer.model, [rows]).probabilities, predict(frozen, [rows]).probabilities
        )
    # after one step the average is that step's weights
    assert trainer.learn([rows]) == 300
    own = predict(trainer.model, [rows]).probabilities
    with trainer.averaged():
        np.testing.assert_allclose(predict(trainer.model, [rows]).probabilities, own, atol=1e-6)
    trainer.learn([rows] * 3)
    own = predict(trainer.model, [rows]).probabilities
    with trainer.averaged():
        assert np.abs(predict(trainer.model, [rows]).probabilities - own).max() > 1e-4
