"""`recsys evaluate` on a run and on any model with any labelled rows: what it writes, what it says, what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from recsys.evaluation.metrics import evaluate
from recsys.serving.registry import Registry
from recsys.serving.scorer import Scorer
from tests.integration.conftest import events

Recsys = Callable[..., Any]


def run_of(world: Any) -> Path:
    return Path(world.folder) / "work" / "small" / "runs" / "0001"


def numbers(page: str) -> str:
    """The page without its pictures."""
    return page.partition("<style>")[2].partition("</style>")[2]


@pytest.fixture(scope="module")
def evaluated(trained: Any) -> tuple[dict[str, Any], str]:
    """What `recsys run` wrote of the test split."""
    folder = run_of(trained[0])
    return json.loads((folder / "evaluation.json").read_text()), (folder / "report.html").read_text()


def test_the_report_of_a_run_has_all_its_parts(evaluated: Any) -> None:
    found, page = evaluated
    for title in (
        "Metrics",
        "Slices by harm",
        "Calibration by slice",
        "Feature importance",
        "Cost",
        "Embedding plan",
        "Epochs",
        "Lineage",
        "Limits",
        "Model card",
    ):
        assert f"<h2>{title}</h2>" in page
    assert page.count("<picture>") == 7
    assert {one["feature"] for one in found["importance"]["features"]} == {
        "user", "item", "city", "tags", "price", "hour", "user_city",
    }  # fmt: skip
    assert found["importance"]["rows"] == found["metrics"]["rows"]
    low, value, high = (found["intervals"]["auc"][end] for end in ("low", "value", "high"))
    assert value == pytest.approx(found["metrics"]["auc"])
    assert low < value < high
    assert set(found["intervals"]) == {
        "auc",
        "logloss",
        "normalised_entropy",
        "calibration_ratio",
        "ece",
        "brier",
        "gauc",
    }


def test_the_json_holds_what_the_page_shows(evaluated: Any) -> None:
    found, page = evaluated
    shown = numbers(page)
    for one in found["slices"]["found"][:30]:
        assert f">{one['name'].replace('&', '&amp;')}<" in shown
        assert f">{one['logloss']:.4f}<" in shown
    for one in found["importance"]["features"]:
        assert f">{one['logloss']['value']:.5f}<" in shown
    for limit in found["card"]["limits"]:
        assert limit in shown
    for name in ("auc", "logloss", "calibration_ratio"):
        assert f"{found['metrics'][name]:.5g}" in shown
        assert f"{found['intervals'][name]['low']:.5g}" in shown
    assert set(found["curves"]) == {"model", "reference"}
    assert set(found["curves"]["model"]) == {"roc", "precision_recall", "reliability", "scores"}


def test_mlflow_knows_the_intervals(trained: Any) -> None:
    world, outcome = trained
    client = Registry(f"sqlite:///{world.folder / 'work' / 'mlflow.db'}")._client
    metrics = client.get_run(outcome.json["train"]["mlflow_run_id"]).data.metrics
    assert metrics["test/auc_low"] < metrics["test/auc"] < metrics["test/auc_high"]


def test_a_run_alone_is_evaluated_as_its_config_is(in_trained: Any, recsys: Recsys) -> None:
    by_config = recsys("evaluate", in_trained.config, "--json").json
    by_run = recsys("evaluate", run_of(in_trained), "--json").json
    assert by_run["metrics"] == by_config["metrics"]
    assert by_run["report"].endswith("runs/0001/report.html")
    assert recsys("evaluate", run_of(in_trained), "--out", "x").code == 2
    assert recsys("evaluate", in_trained.config, "--out", "x").code == 2
    assert recsys("evaluate", run_of(in_trained), "--run", "0001").code == 2


def test_a_registered_model_on_raw_rows(in_trained: Any, recsys: Recsys, tmp_path: Path) -> None:
    file = tmp_path / "more.parquet"
    frame = events(900, seed=5)
    frame.write_parquet(file)
    outcome = recsys("evaluate", "models:/small@challenger", file, "--out", tmp_path / "out", "--json")
    assert outcome.code == 0, outcome.err
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    p = Scorer.load(run_of(in_trained) / "bundle").score(frame)[:, 0]
    expected = evaluate(frame["click"].to_numpy(), p)
    assert outcome.json["metrics"]["auc"] == found["metrics"]["auc"] == pytest.approx(expected["auc"])
    assert outcome.json["metrics"]["rows"] == 900
    assert (tmp_path / "out" / "pictures" / "calibration-by-slice.png").is_file()
    assert "city = c1" in {one["name"] for one in found["slices"]["found"]}
    assert not any(one["by"] == "training frequency" for one in found["slices"]["found"])
    assert any("came without its run" in limit for limit in found["card"]["limits"])
    # its MLflow run has it
    client = Registry(f"sqlite:///{in_trained.folder / 'work' / 'mlflow.db'}")._client
    run_id = outcome.json["mlflow_run_id"]
    assert client.get_run(run_id).data.metrics["evaluation-more/auc"] == pytest.approx(expected["auc"])
    assert "evaluation-more/report.html" in {file.path for file in client.list_artifacts(run_id, "evaluation-more")}


def test_a_bundle_in_a_run_knows_its_training(in_trained: Any, recsys: Recsys, tmp_path: Path) -> None:
    outcome = recsys(
        "evaluate", run_of(in_trained) / "bundle", in_trained.store, "--split", "valid", "--out", tmp_path, "--json"
    )
    assert outcome.code == 0, outcome.err
    found = json.loads((tmp_path / "evaluation.json").read_text())
    facts = {fact["what"]: fact["value"] for fact in found["card"]["facts"]}
    assert facts["trained on"].startswith(str(in_trained.events))
    assert "2,100 rows" in facts["trained on"]
    assert found["gates"] == []
    by_config = recsys("evaluate", in_trained.config, "--split", "valid", "--json").json
    assert found["metrics"]["auc"] == by_config["metrics"]["auc"]


def test_where_the_report_goes_by_default(in_trained: Any, recsys: Recsys) -> None:
    before = (run_of(in_trained) / "evaluation.json").read_bytes()
    outcome = recsys("evaluate", run_of(in_trained), in_trained.events, "--json")
    assert outcome.code == 0, outcome.err
    assert Path(outcome.json["report"]) == run_of(in_trained) / "evaluation-events" / "report.html"
    assert (run_of(in_trained) / "evaluation.json").read_bytes() == before
    # slices have the names of the raw values
    found = json.loads(Path(outcome.json["evaluation"]).read_text())
    names = {one["name"] for one in found["slices"]["found"]}
    assert {"city = c0", "city = missing", "tags = t0", "price = missing", "hour = 3", "user_city: head"} <= names
    assert not any("#" in name for name in names)


def test_rows_of_one_class_are_judged_as_far_as_they_can_be(in_trained: Any, recsys: Recsys, tmp_path: Path) -> None:
    file = tmp_path / "clicks.parquet"
    events(400).filter(pl.col("click") == 0).write_parquet(file)
    outcome = recsys("evaluate", run_of(in_trained), file, "--out", tmp_path, "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["metrics"]["auc"] is None
    assert "auc of click is undefined: none of" in outcome.err
    page = (tmp_path / "report.html").read_text()
    assert "auc could not be judged" in page
    assert "nan" not in numbers(page).lower().split()


def test_what_cannot_be_evaluated_is_refused_in_one_line(in_trained: Any, recsys: Recsys, tmp_path: Path) -> None:
    bundle, run = run_of(in_trained) / "bundle", run_of(in_trained)
    unlabelled, lacking, empty = (tmp_path / f"{name}.parquet" for name in ("unlabelled", "lacking", "empty"))
    events(300).drop("click").write_parquet(unlabelled)
    events(300).drop("item").write_parquet(lacking)
    events(300)[:0].write_parquet(empty)
    for arguments, words in (
        ([bundle], ["labelled rows", "name a folder"]),
        ([run, unlabelled], ["click", "missing"]),
        ([run, lacking], ["item", "missing"]),
        ([run, empty], ["no labelled rows"]),
        ([run, tmp_path / "nowhere.parquet"], ["nowhere.parquet"]),
        ([run, unlabelled, lacking], ["one source"]),
        ([tmp_path], ["no model bundle"]),
        (["models:/smal@challenger", unlabelled], ["did you mean 'small'"]),
    ):
        outcome = recsys("evaluate", *arguments)
        assert outcome.code == 2, outcome.out
        assert all(word in outcome.err for word in words), outcome.err
        assert outcome.err.count("\n") == 1
    assert not (tmp_path / "evaluation-empty").exists()


def test_scores_that_are_no_numbers_are_refused(in_trained: Any, recsys: Recsys, tmp_path: Path) -> None:
    from recsys.serving.bundle import load_bundle, save_bundle

    bundle = load_bundle(run_of(in_trained) / "bundle")
    for parameter in bundle.model.dense_parameters().values():
        parameter.data.fill_(np.nan)
    save_bundle(tmp_path / "broken", model=bundle.model, pipeline=bundle.pipeline)
    outcome = recsys("evaluate", tmp_path / "broken", in_trained.events)
    assert outcome.code == 2
    assert "scores are not finite" in outcome.err
    assert torch.isnan(next(iter(bundle.model.dense_parameters().values()))).all()
