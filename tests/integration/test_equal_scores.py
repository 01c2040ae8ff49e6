"""One row has one probability: trainer, scorer, pyfunc, HTTP in JSON and Arrow, and batch job agree to 1e-6.

A model is trained and calibrated, then registered in a real MLflow store, loaded from it, served by a real process and
asked over a socket.  A tenth of the values are null, and half of the ids were never seen in training.  What needs no
registry and no server is always run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from features.loading.loader import Loader
from features.spec import FeatureSpec
from features.storage.splits import RandomSplit
from features.storage.store import build_store
from features.validation import validate
from pipelines.console import Console
from pipelines.score import score
from recsys.embeddings import EmbeddingConfig, plan_embedding
from recsys.models import CTRModel, ModelConfig
from recsys.serving.bundle import save_bundle
from recsys.serving.calibration import fit_calibration
from recsys.serving.registry import Registry
from recsys.serving.scorer import Scorer
from recsys.training import TrainConfig, Trainer, predict
from tests.integration.test_serve import ARROW, Server, Store, arrow_body

SPEC = {
    "features": [
        {"name": "user", "type": "id", "dtype": "integer"},
        {"name": "item", "type": "id"},
        {"name": "tags", "type": "ids", "pooling": "mean"},
        {"name": "words", "type": "ngrams", "column": "title"},
        {"name": "price", "type": "number", "standardise": True, "missing_flag": True},
        {"name": "age", "type": "bucket", "quantiles": 4},
        {"name": "hour", "type": "time", "column": "at", "part": "hour", "unit": "s"},
        {"name": "picture", "type": "vector", "size": 3},
        {"name": "user_item", "type": "cross", "of": ["user", "item"]},
    ],
    "labels": ["click", "buy"],
}
ROWS, AT_ONCE, URI = 10_000, 500, "models:/clicks@champion"
P = ["p_click", "p_buy"]


def events(rows: int, seed: int, users: int) -> pl.DataFrame:
    """Rows whose labels hang on their values; one value in ten is null."""
    rng = np.random.default_rng(seed)
    user, item = rng.integers(0, users, rows), rng.integers(0, users // 10, rows)
    p = 1 / (1 + np.exp(-2 * np.sin(user) - np.cos(item)))
    frame = pl.DataFrame(
        {
            "user": user,
            "item": [f"i{i}é" for i in item],
            "tags": [[f"t{t}" for t in rng.integers(0, users, n)] for n in rng.integers(0, 4, rows)],
            "title": [f"item {i} of {u}" for i, u in zip(item, user, strict=True)],
            "price": rng.gamma(2.0, 10.0, rows),
            "age": rng.integers(15, 90, rows),
            "at": rng.integers(0, 10**9, rows),
            "picture": rng.normal(size=(rows, 3)).tolist(),
        }
    )
    kept = {name: pl.Series(rng.random(rows) < 0.9) for name in frame.columns}
    nulls = frame.with_columns(pl.when(there).then(pl.col(name)).alias(name) for name, there in kept.items())
    return nulls.with_columns(click=pl.Series(rng.random(rows) < p), buy=pl.Series(rng.random(rows) < p / 3))


@dataclass(frozen=True)
class Trained:
    """A model in the trainer's memory, and its bundle."""

    bundle: Path
    predict: Callable[[pl.DataFrame], np.ndarray]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A model with an isotonic calibration."""
    folder = tmp_path_factory.mktemp("equal")
    spec = validate(FeatureSpec, SPEC)
    data = build_store(events(6000, 0, users=1000).lazy(), spec, RandomSplit(seed=0), folder / "data")
    embedding = EmbeddingConfig.model_validate(
        {"width": 8, "rows": 2000, "chunks": {"features": {"user": 2}}, "exact": {"max_values": 64}}
    )
    plan = plan_embedding(data.layout, embedding, data.id_counts("train"))
    model = CTRModel(data.layout, plan, ModelConfig(interaction="dcnv2", cross_layers=1, hidden=(32, 16)), seed=0)
    trainer = Trainer(model, TrainConfig(epochs=2, threads=1), seed=0, folder=folder / "checkpoints")
    trainer.fit(Loader(data, "train", 256, shuffle_seed=0), Loader(data, "valid", 2048))
    valid = predict(model, Loader(data, "valid", 2048))
    assert valid.logits is not None
    assert valid.labels is not None
    calibration = fit_calibration("isotonic", valid.logits, valid.labels)
    bundle = save_bundle(folder / "bundle", model=model, pipeline=data.pipeline, calibration=calibration)
    return Trained(bundle, lambda frame: predict(model, [data.pipeline.encode_frame(frame)], calibration).probabilities)


@pytest.fixture(scope="module")
def store(trained: Trained) -> Store:
    """A registry that holds the model."""
    uri = f"sqlite:///{trained.bundle.parent / 'mlflow.db'}"
    registry = Registry(uri)
    run = registry.start_run("clicks", "1")
    model = registry.log_model(run, trained.bundle, Scorer.load(trained.bundle).spec)
    registry.register(model, run, "clicks", "champion", {})
    return Store(uri, trained.bundle.parent, {})


@pytest.fixture(scope="module")
def server(store: Store) -> Iterator[Server]:
    """A server in front of it."""
    with Server(store, "--max-rows", str(AT_ONCE)) as started:
        yield started.ready()


def rows_and_truth(trained: Trained, count: int) -> tuple[pl.DataFrame, np.ndarray]:
    frame = events(count, 1, users=2000).drop("click", "buy")
    truth = trained.predict(frame)
    assert truth.shape == (count, 2)
    assert truth.std(0).min() > 0.02
    assert min(frame.null_count().row(0)) > 0.08 * count
    return frame, truth


def check(found: np.ndarray, truth: np.ndarray) -> None:
    np.testing.assert_allclose(found, truth, atol=1e-6, rtol=0)


def batch_job(model: str, frame: pl.DataFrame, folder: Path, uri: str) -> np.ndarray:
    source, out = folder / "rows.parquet", folder / "scores.parquet"
    frame.write_parquet(source)
    score(model, str(source), out, Console(quiet=True), tracking_uri=uri, batch_size=700, workers=2)
    return pl.read_parquet(out).select(P).to_numpy()


@pytest.mark.parametrize("rows", [1000, pytest.param(ROWS, marks=pytest.mark.slow)])
def test_from_a_bundle(trained: Trained, tmp_path: Path, rows: int) -> None:
    frame, truth = rows_and_truth(trained, rows)
    scorer = Scorer.load(trained.bundle)
    check(scorer.score(frame), truth)
    check(scorer.score(frame.to_dicts()), truth)
    check(batch_job(str(trained.bundle), frame, tmp_path, "sqlite:///none.db"), truth)


def by_scorer(frame: pl.DataFrame, store: Store, server: Server, folder: Path) -> np.ndarray:
    return Scorer.load(URI, tracking_uri=store.uri).score(frame.to_dicts())


def by_pyfunc(frame: pl.DataFrame, store: Store, server: Server, folder: Path) -> np.ndarray:
    return np.asarray(Registry(store.uri).load_pyfunc(URI).predict(frame.to_pandas())[P])


def by_json(frame: pl.DataFrame, store: Store, server: Server, folder: Path) -> np.ndarray:
    scores = [server.score(part.to_dicts())["scores"] for part in frame.iter_slices(AT_ONCE)]
    return np.concatenate([np.array([one[name] for name in P]).T for one in scores])


def by_arrow(frame: pl.DataFrame, store: Store, server: Server, folder: Path) -> np.ndarray:
    tables = []
    for part in frame.iter_slices(AT_ONCE):
        answer = server.http.post("/v1/score", content=arrow_body(part.to_arrow()), headers={"Content-Type": ARROW})
        assert answer.status_code == 200, answer.text
        tables.append(pa.ipc.open_stream(answer.content).read_all())
    return pl.DataFrame(pa.concat_tables(tables)).select(P).to_numpy()


def by_batch_job(frame: pl.DataFrame, store: Store, server: Server, folder: Path) -> np.ndarray:
    return batch_job(URI, frame, folder, store.uri)


@pytest.mark.slow
@pytest.mark.parametrize("way", [by_scorer, by_pyfunc, by_json, by_arrow, by_batch_job])
def test_from_the_registry(trained: Trained, store: Store, server: Server, tmp_path: Path, way: Any) -> None:
    frame, truth = rows_and_truth(trained, ROWS)
    check(way(frame, store, server, tmp_path), truth)
