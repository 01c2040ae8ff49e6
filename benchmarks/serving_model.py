"""The model of the Criteo form that the parts of the serving benchmark score with, as bundles and in a registry."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from features.batch import Batch
from features.pipeline import FeaturePipeline
from features.recipes import RECIPES
from features.recipes.criteo import CATEGORIES, INTEGERS
from features.spec import FeatureSpec
from features.validation import validate
from recsys.embeddings import EmbeddingConfig, plan_embedding
from recsys.models import CTRModel, ModelConfig
from recsys.models.convert import convert
from recsys.serving.bundle import save_bundle
from recsys.serving.calibration import fit_calibration, sigmoid
from recsys.serving.registry import Registry
from recsys.serving.scorer import Scorer
from recsys.training import predict

ROWS, FITTED_ON, ASKED = 1_000_000, 100_000, 20_000
BODIES = {1: 500, 100: 50}
"""Rows of a body -> how many different bodies are sent."""


@dataclass(frozen=True)
class Fitted:
    """What the models of all versions share."""

    pipeline: FeaturePipeline
    encoded: Batch
    counts: dict[str, Any]


def fit() -> Fitted:
    """The feature pipeline, fitted to the Criteo sample."""
    recipe = RECIPES["criteo"]
    events = recipe.load(None).head(FITTED_ON).collect()
    pipeline = FeaturePipeline(validate(FeatureSpec, recipe.spec_hint)).fit(events)
    encoded = pipeline.encode_frame(events)
    counts = {
        name: np.unique(encoded.ids[:, place].numpy(), return_counts=True)
        for place, name in enumerate(pipeline.layout.id_names)
    }
    return Fitted(pipeline, encoded, counts)


def write_bundles(fitted: Fitted, folder: Path, formats: Sequence[str], seed: int = 0) -> dict[str, Path]:
    """A model with random weights in some row formats."""
    pipeline = fitted.pipeline
    plan = plan_embedding(pipeline.layout, EmbeddingConfig(rows=ROWS, width=16, init_scale=1.0), fitted.counts)
    network = ModelConfig(interaction="dcnv2", cross_layers=2, hidden=(256, 128))
    model = CTRModel(pipeline.layout, plan, network, kernel="torch", seed=seed).eval()
    logits = predict(model, [fitted.encoded]).logits
    assert logits is not None
    clicks = np.random.default_rng(0).random(logits.shape) < sigmoid(0.5 * logits)
    calibration = fit_calibration("isotonic", logits, clicks)
    bundles = {}
    for name in formats:
        own = model if name == "fp32" else convert(model, name)
        bundles[name] = save_bundle(folder / name, model=own, pipeline=pipeline, calibration=calibration)
    return bundles


def asked_rows() -> list[dict[str, Any]]:
    """Raw rows that no pipeline was fitted to."""
    events = RECIPES["criteo"].load(None).tail(ASKED).select(pl.col(*INTEGERS, *CATEGORIES)).collect()
    return events.rows(named=True)


@dataclass(frozen=True)
class Registered:
    """A registry with versions 1 and 2 of a model, and 3, whose bundle was changed afterwards; and bodies to send.

    Attributes:
        store: URI of the registry.
        json: Rows of a body -> file for `benchmarks.scripts.send_requests`.
        mlflow: The same for MLflow's server.
    """

    store: str
    json: dict[int, Path]
    mlflow: dict[int, Path]


def register(folder: Path) -> Registered:
    """Registers three versions of the model; 1 is the champion."""
    fitted = fit()
    store = f"sqlite:///{folder / 'mlflow.db'}"
    registry = Registry(store)
    scorers: dict[str, Scorer] = {}
    for number in (1, 2, 3):
        bundle = write_bundles(fitted, folder / f"version{number}", ["fp32"], seed=number)["fp32"]
        run = registry.start_run("criteo", str(number))
        scorers[str(number)] = Scorer.load(bundle)
        uri = registry.log_model(run, bundle, fitted.pipeline.spec)
        registry.register(uri, run, "criteo", "champion" if number == 1 else "challenger", {})
    weights = registry.bundle_of("models:/criteo/3") / "weights.safetensors"
    with weights.open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    rows = asked_rows()
    ours, theirs = {}, {}
    for size, count in BODIES.items():
        groups = [rows[start : start + size] for start in range(0, size * count, size)]
        expected = {version: [scorers[version].score(group).tolist() for group in groups] for version in ("1", "2")}
        bodies = [json.dumps({"rows": group}) for group in groups]
        ours[size] = _write(folder / f"json-{size}.json", bodies, expected)
        bodies = [
            json.dumps({"dataframe_split": {"columns": list(group[0]), "data": [list(row.values()) for row in group]}})
            for group in groups
        ]
        theirs[size] = _write(folder / f"mlflow-{size}.json", bodies, expected)
    return Registered(store, ours, theirs)


def _write(path: Path, bodies: list[str], expected: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"bodies": bodies, "expected": expected}), encoding="utf-8")
    return path
