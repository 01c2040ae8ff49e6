"""Two small models of one spec, as a worker holds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from features.pipeline import FeaturePipeline
from features.spec import FeatureSpec
from features.validation import validate
from recsys.embeddings import EmbeddingConfig, plan_embedding
from recsys.models import CTRModel, ModelConfig
from recsys.serving.bundle import save_bundle
from recsys.serving.server.announcement import Announcement
from recsys.serving.server.served import ServedModel

SPEC: dict[str, Any] = {
    "features": [
        {"name": "user", "type": "id", "dtype": "integer"},
        {"name": "item", "type": "id"},
        {"name": "tags", "type": "ids"},
        {"name": "price", "type": "number"},
    ],
    "labels": ["click"],
}
FRAME = pl.DataFrame({"user": [1, 2], "item": ["a", "b"], "tags": [["x"], ["y", "z"]], "price": [1.5, 2.5]})


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[ServedModel, ServedModel]:
    """Versions 1 and 2."""
    folder = tmp_path_factory.mktemp("models")
    return make(folder / "one", 1), make(folder / "two", 2)


@pytest.fixture(scope="session")
def model(models: tuple[ServedModel, ServedModel]) -> ServedModel:
    return models[0]


def make(folder: Path, seed: int, spec: dict[str, Any] = SPEC, *, broken_row: int | None = None) -> ServedModel:
    """A model; the weights of one row of its table are no numbers if that is asked for."""
    pipeline = FeaturePipeline(validate(FeatureSpec, spec)).fit(FRAME)
    ids = pipeline.encode_frame(FRAME).ids.numpy()
    counts = {name: (ids[:, place], ids[:, place] * 0 + 1) for place, name in enumerate(pipeline.layout.id_names)}
    config = EmbeddingConfig.model_validate({"width": 4, "rows": 20, "init_scale": 1.0})
    plan = plan_embedding(pipeline.layout, config, counts)
    network = CTRModel(pipeline.layout, plan, ModelConfig.model_validate({"hidden": (8,)}), seed=seed).eval()
    if broken_row is not None:
        network.embedding.table.stored()[broken_row] = float("nan")
    save_bundle(folder, model=network, pipeline=pipeline)
    return ServedModel.load(Announcement("clicks", str(seed), "champion", None, str(folder), 0.0))
