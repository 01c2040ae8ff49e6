"""A calibrated model, by the command line: fitted after training, and the same wherever the model is used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from features.loading.loader import Loader
from features.storage.store import Store
from recsys.evaluation.metrics import logloss
from recsys.serving.bundle import load_bundle
from recsys.serving.calibration import fit_calibration
from recsys.serving.scorer import Scorer
from recsys.training import predict
from tests.integration.test_bad_input import refused

Recsys = Callable[..., Any]


@pytest.mark.parametrize("method", ["isotonic", pytest.param("platt", marks=pytest.mark.slow)])
def test_what_is_tested_is_what_is_served(world: Any, recsys: Recsys, method: str) -> None:
    # an epoch too many on few rows: the model is far too sure
    overfit = ("train.epochs=8", "train.learning_rate=0.05", "train.monitor=auc", f"calibration={method}")
    assert recsys("prepare", world.config).code == 0
    trained = recsys("train", world.config, *overfit, "--json")
    assert trained.code == 0, trained.err
    assert trained.json["calibration"] == method

    store, folder = Store.open(world.store), Path(trained.json["bundle"])
    bundle = load_bundle(folder)
    assert bundle.calibration is not None
    valid = predict(bundle.model, Loader(store, "valid", 1024))
    assert valid.logits is not None
    assert valid.labels is not None
    assert bundle.calibration == fit_calibration(bundle.calibration.method, valid.logits, valid.labels)

    evaluated = recsys("evaluate", world.config, "--json")
    assert evaluated.code == 0, evaluated.err
    effect, metrics = evaluated.json["calibration"], evaluated.json["metrics"]
    assert effect["method"] == method
    assert effect["tasks"]["click"]["logloss"]["after"] == metrics["logloss"]
    assert "calibration of click" in evaluated.err

    test = predict(bundle.model, Loader(store, "test", 1024))
    after = bundle.calibration(test.logits)
    for when, p in (("before", test.probabilities), ("after", after)):
        told = effect["tasks"]["click"]["logloss"][when]
        assert told == pytest.approx(logloss(test.labels[:, 0], p[:, 0]), abs=1e-9)
    rows = pl.read_parquet(world.events).head(200)
    scored = world.folder / "scored.parquet"
    assert recsys("score", folder, world.events, scored).code == 0
    expected = predict(bundle.model, [bundle.pipeline.encode_frame(rows)], bundle.calibration).probabilities[:, 0]
    np.testing.assert_allclose(pl.read_parquet(scored)["p_click"][:200], expected, rtol=0, atol=1e-6)

    converted = recsys("convert", trained.json["folder"], "--format", "int8", "--json")
    assert converted.code == 0, converted.err
    assert load_bundle(Path(converted.json["bundle"])).calibration == bundle.calibration
    assert converted.json["old_metrics"]["logloss"] == pytest.approx(metrics["logloss"], abs=1e-9)
    assert Scorer.load(converted.json["bundle"]).score(rows).shape == (200, 1)


def test_a_model_without_calibration_says_nothing_of_it(world: Any, recsys: Recsys) -> None:
    for verb in ("prepare", "train"):
        assert recsys(verb, world.config).code == 0
    evaluated = recsys("evaluate", world.config, "--json")
    assert evaluated.json["calibration"] is None
    assert json.loads(evaluated.out.strip().splitlines()[-1])["gates_failed"] == []


def test_an_unknown_method_is_refused(world: Any, recsys: Recsys) -> None:
    refused(recsys("train", world.config, "calibration=isotonik"), "calibration")


def test_one_class_is_refused_before_training(world: Any, recsys: Recsys) -> None:
    frame = pl.read_parquet(world.events)
    first = pl.int_range(pl.len()) < 2400
    frame = frame.with_columns(pl.when(first).then(pl.col("click")).otherwise(0).alias("click"))
    split = {"kind": "time", "columns": ["at"], "fractions": [0.8, 0.1, 0.1]}
    world.write(frame, data={"source": str(world.events), "split": split})
    assert recsys("prepare", world.config).code == 0
    outcome = recsys("train", world.config, "calibration=platt", "train.monitor=logloss", "--dry-run")
    refused(outcome, "calibration", "every click is 0")
