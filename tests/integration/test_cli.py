"""The command line end to end, with a real MLflow store and registry."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from features.errors import ArtifactError
from recsys.serving.registry import Registry
from recsys.serving.scorer import Scorer

# The code under test, also where the package is not installed.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
VERBS = (
    "prepare",
    "train",
    "evaluate",
    "register",
    "score",
    "export",
    "neighbours",
    "serve",
    "convert",
    "prune",
    "off-policy",
    "compare",
    "promote",
    "rollback",
    "history",
    "run",
    "inspect",
    "demo",
    "data",
)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def store_uri(world: Any) -> str:
    return f"sqlite:///{world.folder / 'work' / 'mlflow.db'}"


def test_run_says_what_each_step_came_to(trained: Any) -> None:
    world, outcome = trained
    result = outcome.json
    assert result["prepare"]["reused"] is False
    assert sum(result["prepare"]["rows"].values()) == 3000
    assert result["train"]["best_epoch"] in (1, 2)
    metrics = result["evaluate"]["metrics"]
    assert 0.5 < metrics["auc"] < 1
    assert metrics["reference_auc_gap"] == pytest.approx(result["evaluate"]["reference"]["auc"] - metrics["auc"])
    assert result["register"]["uri"] == "models:/small@challenger"
    assert "1/4 prepare" in outcome.err
    assert world.leftovers() == []


def test_run_folder_repeats_itself(trained: Any) -> None:
    world, outcome = trained
    folder = world.folder / outcome.json["train"]["folder"]
    resolved = yaml.safe_load((folder / "config.yaml").read_text())
    assert resolved["train"]["patience"] is None
    assert resolved["spec"]["features"][0]["column"] == "user"
    assert {path.name for path in (folder / "pictures").iterdir()} >= {"roc.png", "reliability.svg", "learning.png"}
    page = (folder / "report.html").read_text()
    assert "user_city" in page
    assert outcome.json["prepare"]["digest"] in page


def test_mlflow_run_holds_the_whole_story(trained: Any) -> None:
    world, outcome = trained
    client = Registry(store_uri(world))._client
    run_id = outcome.json["train"]["mlflow_run_id"]
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["train.batch_size"] == "256"
    assert run.data.params["embedding.rows"] == "500"
    assert run.data.tags["recsys.manifest_digest"] == outcome.json["prepare"]["digest"]
    assert run.data.metrics["test/auc"] == pytest.approx(outcome.json["evaluate"]["metrics"]["auc"])
    assert len(client.get_metric_history(run_id, "valid/auc")) == outcome.json["train"]["epochs"]
    assert len(client.get_metric_history(run_id, "train/loss")) > 2
    files = {file.path for folder in (None, "data", "pictures") for file in client.list_artifacts(run_id, folder)}
    assert files >= {"config.yaml", "report.html", "data/manifest.json", "data/spec.json", "pictures/roc.png"}


def test_registered_version_names_its_origin(trained: Any) -> None:
    world, outcome = trained
    registry = Registry(store_uri(world))
    version = registry.resolve("models:/small@challenger")
    assert version.version == outcome.json["register"]["version"] == 1
    assert version.run_id == outcome.json["train"]["mlflow_run_id"]
    assert registry.resolve("models:/small/1").aliases == ("challenger",)


def test_prepare_again_uses_what_is_there(in_trained: Any, recsys: Callable[..., Any]) -> None:
    before = sha256(in_trained.store / "manifest.json")
    outcome = recsys("prepare", in_trained.config)
    assert outcome.code == 0
    assert "used again" in outcome.out
    assert sha256(in_trained.store / "manifest.json") == before


def test_prepare_again_when_the_source_changed(world: Any, recsys: Callable[..., Any]) -> None:
    assert recsys("prepare", world.config, "--json").json["reused"] is False
    world.write(pl.read_parquet(world.events).head(2000))
    stale = recsys("train", world.config)
    assert stale.code == 2
    assert "recsys prepare" in stale.err
    again = recsys("prepare", world.config, "--json")
    assert again.json["reused"] is False
    assert sum(again.json["rows"].values()) == 2000


def test_dry_run_trains_nothing(in_trained: Any, recsys: Callable[..., Any]) -> None:
    runs = sorted((in_trained.folder / "work" / "small" / "runs").iterdir())
    # half a terabyte: more than could be allocated
    outcome = recsys(
        "train", in_trained.config, "--dry-run", "embedding.rows=2000000000", "embedding.width=64", "--json"
    )
    assert outcome.code == 0, outcome.err
    assert outcome.json["table_rows"] >= 2_000_000_000
    assert {line["feature"] for line in outcome.json["plan"]} == {"user", "item", "city", "tags", "hour", "user_city"}
    assert outcome.json["network_parameters"] > 0
    assert "shared" in outcome.err
    assert sorted((in_trained.folder / "work" / "small" / "runs").iterdir()) == runs


def test_same_config_gives_the_same_weights_and_resume_of_a_whole_run_changes_nothing(
    world: Any, recsys: Callable[..., Any]
) -> None:
    recsys("prepare", world.config)
    first, second = (recsys("train", world.config, "--json").json for _ in range(2))
    assert first["run"] != second["run"]
    weights = [sha256(Path(run["bundle"]) / "weights.safetensors") for run in (first, second)]
    assert weights[0] == weights[1]
    outcome = recsys("train", world.config, "--resume", "--json")
    resumed = outcome.json
    assert resumed == second
    assert "finished already" in outcome.err
    assert sha256(Path(resumed["bundle"]) / "weights.safetensors") == weights[1]


def test_resume_refuses_another_config(world: Any, recsys: Callable[..., Any]) -> None:
    assert (
        "no run to resume" in recsys("train", world.config, "--resume").err or recsys("prepare", world.config).code == 0
    )
    recsys("train", world.config)
    outcome = recsys("train", world.config, "--resume", "train.epochs=3")
    assert outcome.code == 2
    assert "config is not the one" in outcome.err


def test_score_by_registry_and_by_folder_agree_with_the_process(
    in_trained: Any, recsys: Callable[..., Any], tmp_path: Path
) -> None:
    rows = pl.read_parquet(in_trained.events).head(500).drop("click", "p_true")
    rows.write_parquet(tmp_path / "new.parquet")
    by_registry, by_folder = tmp_path / "a.parquet", tmp_path / "b.parquet"
    bundle = in_trained.folder / "work" / "small" / "runs" / "0001" / "bundle"
    keep = ("--keep", "item,user", "--batch-size", "150")
    outcome = recsys("score", "models:/small@challenger", tmp_path / "new.parquet", by_registry, *keep, "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["rows"] == 500
    assert recsys("score", bundle, tmp_path / "new.parquet", by_folder).code == 0
    scores = pl.read_parquet(by_registry)
    assert scores.columns == ["item", "user", "p_click"]
    assert scores["item"].to_list() == rows["item"].to_list()
    np.testing.assert_allclose(scores["p_click"], pl.read_parquet(by_folder)["p_click"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(scores["p_click"], Scorer.load(bundle).score(rows)[:, 0], rtol=0, atol=1e-6)


def test_pyfunc_scores_pandas_rows_with_nulls_like_the_process(in_trained: Any) -> None:
    rows = pl.read_parquet(in_trained.events).head(200).drop("click", "p_true")
    assert rows["city"].null_count() > 0
    rows = rows.with_columns(user=pl.when(pl.int_range(200) % 7 == 0).then(None).otherwise("user"))
    model = Registry(store_uri(in_trained)).load_pyfunc("models:/small@challenger")
    bundle = in_trained.folder / "work" / "small" / "runs" / "0001" / "bundle"
    expected = Scorer.load(bundle).score(rows)[:, 0]
    np.testing.assert_allclose(model.predict(rows.to_pandas())["p_click"], expected, rtol=0, atol=1e-6)


def test_a_failed_gate_exits_1_and_is_not_registered(in_trained: Any, recsys: Callable[..., Any]) -> None:
    outcome = recsys("evaluate", in_trained.config, "gates.auc.min=0.9999", "--json")
    assert outcome.code == 1
    assert outcome.json["gates_failed"] == ["auc"]
    assert "FAILED" in outcome.err


def test_a_run_that_missed_a_gate_is_not_registered(world: Any, recsys: Callable[..., Any]) -> None:
    world.write(gates={"auc": {"min": 0.9999}})
    for verb in ("prepare", "train"):
        assert recsys(verb, world.config).code == 0
    unchecked = recsys("register", world.config)
    assert unchecked.code == 2
    assert "recsys evaluate" in unchecked.err
    assert recsys("evaluate", world.config).code == 1
    outcome = recsys("register", world.config, "--json")
    assert outcome.code == 1
    assert outcome.json == {"run": "0001", "gates_failed": ["auc"]}
    assert "not registered: run 0001 failed a gate (auc)" in outcome.err
    with pytest.raises(ArtifactError, match="no such registered model"):
        Registry(store_uri(world)).resolve("models:/small@challenger")


def test_the_validation_split_leaves_the_test_result_alone(world: Any, recsys: Callable[..., Any]) -> None:
    world.write()
    run_id = recsys("run", world.config, "--json").json["train"]["mlflow_run_id"]
    client = Registry(store_uri(world))._client
    curve = client.get_metric_history(run_id, "valid/auc")
    folder = world.folder / "work" / "small" / "runs" / "0001"
    names = ("evaluation.json", "report.html", "pictures/roc.png")
    before = [sha256(folder / name) for name in names]
    outcome = recsys("evaluate", world.config, "--split", "valid", "gates.auc.min=0.9999", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["gates"] == []
    assert [sha256(folder / name) for name in names] == before
    assert json.loads((folder / "evaluation-valid.json").read_text())["split"] == "valid"
    assert outcome.json["report"].endswith("report-valid.html")
    assert (folder / "pictures-valid" / "roc.png").is_file()
    assert client.get_metric_history(run_id, "valid/auc") == curve
    assert client.get_run(run_id).data.metrics["valid-final/auc"] == outcome.json["metrics"]["auc"]


def test_the_signature_is_of_the_spec_it_was_trained_with(world: Any, recsys: Callable[..., Any]) -> None:
    world.write()
    for verb in ("prepare", "train"):
        assert recsys(verb, world.config).code == 0
    assert recsys("register", world.config, "spec.features.0.column=someone").code == 0
    columns = Registry(store_uri(world)).load_pyfunc("models:/small@challenger").metadata.get_input_schema()
    assert "user" in columns.input_names()
    assert "someone" not in columns.input_names()


def test_resume_without_the_mlflow_store_begins_a_new_mlflow_run(world: Any, recsys: Callable[..., Any]) -> None:
    world.write()
    assert recsys("prepare", world.config).code == 0
    first = recsys("train", world.config, "--json").json
    # as if it was cut after the last epoch
    (world.folder / first["folder"] / "train.json").unlink()
    elsewhere = f"sqlite:///{world.folder / 'new.db'}"
    outcome = recsys("train", world.config, "--resume", f"tracking.uri={elsewhere}", "--json")
    assert outcome.code == 0, outcome.err
    assert "a new one is begun" in outcome.err
    assert outcome.json["run"] == first["run"]
    assert outcome.json["mlflow_run_id"] != first["mlflow_run_id"]
    assert Registry(elsewhere).has_run(outcome.json["mlflow_run_id"])
    assert recsys("register", world.config, f"tracking.uri={elsewhere}").code == 0


def test_run_with_a_failed_gate_does_not_register(world: Any, recsys: Callable[..., Any]) -> None:
    outcome = recsys("run", world.config, "gates.logloss.max=0.01", "--json")
    assert outcome.code == 1
    assert outcome.json["register"] is None
    assert "not registered" in outcome.err


def test_one_class_test_split_says_so_and_shows_no_nan(world: Any, recsys: Callable[..., Any]) -> None:
    frame = pl.read_parquet(world.events)
    part = np.where(np.arange(len(frame)) < 2000, "train", np.where(np.arange(len(frame)) < 2500, "valid", "test"))
    frame = frame.with_columns(part=pl.Series(part)).with_columns(
        click=pl.when(pl.col("part") == "test").then(0).otherwise("click")
    )
    split = {"kind": "column", "column": "part", "values": {s: [s] for s in ("train", "valid", "test")}}
    world.write(frame, data={"source": str(world.events), "split": split}, tracking={"enabled": False})
    outcome = recsys("run", world.config, "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["evaluate"]["metrics"]["auc"] is None
    assert "auc of click is undefined" in outcome.err
    assert "NaN" not in outcome.out
    page = Path(outcome.json["evaluate"]["report"]).read_text()
    assert "auc of click is undefined" in page


def test_inspect_shows_data_runs_and_bundle(in_trained: Any, recsys: Callable[..., Any]) -> None:
    shown = recsys("inspect", in_trained.config, "--json")
    assert shown.code == 0, shown.err
    assert {line["feature"]: line["values"] for line in shown.json["features"]}["user"] == 60
    assert shown.json["runs"][0]["trained"] is True
    assert {line["feature"] for line in shown.json["plan"]} == {"user", "item", "city", "tags", "hour", "user_city"}
    bundle = recsys("inspect", in_trained.folder / "work" / "small" / "runs" / "0001" / "bundle", "--json").json
    assert bundle["inputs"]["tags"] == "string[]"
    assert bundle["outputs"] == ["p_click"]
    assert bundle["diagnostics"] is None


def test_training_logs_the_diagnostics_of_its_table(trained: Any) -> None:
    world, outcome = trained
    run = world.folder / outcome.json["train"]["folder"]
    found = json.loads((run / "diagnostics.json").read_text())
    assert found["sample"].startswith("all ")
    assert {f["feature"] for f in found["features"]} == {"user", "item", "city", "tags", "hour", "user_city"}
    assert found["updates"]["never"].keys() == {"shared", "exact"}
    client = Registry(store_uri(world))._client
    run_id = outcome.json["train"]["mlflow_run_id"]
    metrics = client.get_run(run_id).data.metrics
    assert metrics["table/bytes"] == outcome.json["train"]["table_bytes"]
    assert {"table/intra", "table/confused", "table/ids_a_row", "table/row_norm"} <= set(metrics)
    assert {"diagnostics.json", "diagnostics.html"} <= {file.path for file in client.list_artifacts(run_id)}


def test_inspect_a_run_sees_what_its_training_saw(in_trained: Any, recsys: Callable[..., Any], tmp_path: Path) -> None:
    run = in_trained.folder / "work" / "small" / "runs" / "0001"
    page = tmp_path / "table.html"
    outcome = recsys("inspect", run, "--html", page, "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["diagnostics"] == json.loads((run / "diagnostics.json").read_text())
    # the title of the page names the run likewise
    assert page.read_bytes() == (run / "diagnostics.html").read_bytes()
    assert "collisions in percent" in outcome.err


def test_inspect_a_model_through_raw_rows_and_through_prepared_ones(
    in_trained: Any, recsys: Callable[..., Any], tmp_path: Path
) -> None:
    rows = tmp_path / "new.parquet"
    pl.read_parquet(in_trained.events).drop("click", "p_true").write_parquet(rows)
    raw = recsys("inspect", "models:/small@challenger", rows, "--rows", "1000", "--json")
    assert raw.code == 0, raw.err
    assert raw.json["diagnostics"]["sample"] == f"the first 1,000 rows of {rows}"
    bundle = in_trained.folder / "work" / "small" / "runs" / "0001" / "bundle"
    store = recsys("inspect", bundle, in_trained.store, "--split", "valid", "--rows", "100", "--json")
    assert store.code == 0, store.err
    assert "rows of the valid split" in store.json["diagnostics"]["sample"]


def test_inspect_a_config_tells_of_a_table_that_is_not_trained(
    in_trained: Any, recsys: Callable[..., Any], tmp_path: Path
) -> None:
    """Half a terabyte: more than could be allocated."""
    page = tmp_path / "table.html"
    sizes = ("embedding.rows=2000000000", "embedding.width=64", "embedding.exact.max_values=0")
    outcome = recsys("inspect", in_trained.config, *sizes, "--html", page, "--json")
    assert outcome.code == 0, outcome.err
    found = outcome.json["diagnostics"]
    assert found["load"]["rows"] == 2_000_000_000
    assert (found["norms"], found["overlaps"]) == (None, [])
    assert "small: inside the table" in page.read_text()


def test_training_without_diagnostics(world: Any, recsys: Callable[..., Any]) -> None:
    world.write(tracking={"system_metrics": False, "diagnostics_rows": 0})
    assert recsys("prepare", world.config).code == 0
    outcome = recsys("train", world.config, "--json")
    assert outcome.code == 0, outcome.err
    run = Path(outcome.json["folder"])
    assert not (run / "diagnostics.html").exists()
    assert recsys("prepare", world.config, "data.split.fractions=[0.5, 0.3, 0.2]").code == 0
    other = recsys("inspect", run, "--json")
    assert (other.code, other.json["diagnostics"]) == (0, None)
    assert "is not what the run was trained on" in other.err


def test_convert_writes_a_smaller_bundle_and_tells_its_cost(
    in_trained: Any, recsys: Callable[..., Any], tmp_path: Path
) -> None:
    run, out = in_trained.folder / "work" / "small" / "runs" / "0001", tmp_path / "small"
    before = sha256(run / "bundle" / "weights.safetensors")
    outcome = recsys("convert", run, "--format", "int8", "--out", out, "--json")
    assert outcome.code == 0, outcome.err
    result = outcome.json
    assert result["bundle"] == str(out)
    assert (result["from"], result["to"]) == ("fp32", "int8")
    rows = Scorer.load(out).bundle.model.plan.rows
    assert result["old_table_bytes"] - result["table_bytes"] == rows * (4 * 4 - (4 + 2))
    evaluated = recsys("evaluate", in_trained.config, "--json").json["metrics"]
    assert result["old_metrics"]["auc"] == pytest.approx(evaluated["auc"], abs=1e-9)
    assert result["change"]["logloss"] == result["metrics"]["logloss"] - result["old_metrics"]["logloss"]
    assert 0 < result["max_change"] < 0.02
    assert 0 < result["rounding_error"] < 0.02
    # what was measured is what the new bundle says
    rows = pl.read_parquet(in_trained.events).drop("click", "p_true")
    new, old = Scorer.load(out), Scorer.load(run / "bundle")
    assert new.bundle.model.plan.format == "int8"
    assert 0 < np.abs(new.score(rows) - old.score(rows)).max() < 0.02
    assert new.bundle.description["metrics"]["metrics"] == result["metrics"]
    assert sha256(run / "bundle" / "weights.safetensors") == before


def test_convert_a_registered_model_with_and_without_raw_rows(
    in_trained: Any, recsys: Callable[..., Any], tmp_path: Path
) -> None:
    measured = recsys(
        "convert",
        "models:/small@challenger",
        in_trained.events,
        "--format",
        "bf16",
        "--out",
        tmp_path / "a",
        "--json",
    )
    assert measured.code == 0, measured.err
    assert measured.json["metrics"]["rows"] == 3000
    assert measured.json["gates"] is None
    alone = recsys("convert", tmp_path / "a", "--format", "int4", "--json")
    assert alone.code == 0, alone.err
    assert alone.json["bundle"] == str(tmp_path / "a-int4")
    assert alone.json["metrics"] is alone.json["change"] is None
    assert "name DATA" in alone.err


def test_convert_to_rows_that_share_a_step(in_trained: Any, recsys: Callable[..., Any], tmp_path: Path) -> None:
    run, out = in_trained.folder / "work" / "small" / "runs" / "0001", tmp_path / "small"
    outcome = recsys("convert", run, "--format", "int8-table", "--out", out, "--json")
    assert outcome.code == 0, outcome.err
    result = outcome.json
    plan = Scorer.load(out).bundle.model.plan
    assert (result["to"], result["step"]) == ("int8-table", plan.step)
    assert result["old_table_bytes"] - result["table_bytes"] == plan.rows * (4 * 4 - 4)
    assert f"all rows share the step {plan.step:.6g}" in outcome.err
    assert 0 < result["rounding_error"] < 0.05
    shown = recsys("inspect", out, "--json")
    assert shown.code == 0, shown.err
    assert shown.json["format"] == "int8-table"
    assert f"{plan.rows:,} rows x 4 in int8-table" in shown.err
    again = recsys("convert", out, "--format", "int4", "--json")
    assert again.code == 0, again.err
    assert (again.json["from"], again.json["to"], again.json["step"]) == ("int8-table", "int4", None)
    assert again.json["bundle"] == str(tmp_path / "small-int4")


def test_training_in_rows_that_share_a_step_is_refused(in_trained: Any, recsys: Callable[..., Any]) -> None:
    outcome = recsys("train", in_trained.config, "embedding.format=int8-table", "--json")
    assert outcome.code == 2
    assert "embedding.format" in outcome.err
    assert "a format that can be trained, such as int8; `recsys convert` makes int8-table of the model" in outcome.err


def test_convert_refuses_and_leaves_nothing(in_trained: Any, recsys: Callable[..., Any], tmp_path: Path) -> None:
    run = in_trained.folder / "work" / "small" / "runs" / "0001"
    (tmp_path / "there").mkdir()
    (tmp_path / "file").write_text("in the way")
    pl.read_parquet(in_trained.events).drop("click").write_parquet(tmp_path / "unlabelled.parquet")
    out = ("--out", tmp_path / "new")
    for arguments, words in (
        ((run, "--format", "fp32", *out), "in this format already"),
        ((run, "--format", "int-8", *out), "did you mean 'int8'?"),
        ((run, "--format", "int8", "--out", tmp_path / "there"), "there already"),
        ((run, "--format", "int8", "--out", tmp_path / "file" / "new"), "could not be written"),
        ((run, tmp_path / "unlabelled.parquet", "--format", "int8", *out), "click"),
        ((run, tmp_path / "nowhere.parquet", "--format", "int8", *out), "nowhere.parquet"),
        ((tmp_path, "--format", "int8", *out), "is no model bundle"),
        (("models:/smal@challenger", "--format", "int8", *out), "did you mean 'small'?"),
    ):
        outcome = recsys("convert", *arguments, "--json")
        assert outcome.code == 2, outcome.out
        assert words in outcome.err
        assert outcome.json["error"]["message"] in outcome.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "there", "unlabelled.parquet"]
    assert in_trained.leftovers() == []


def test_a_converted_run_is_registered_if_it_keeps_its_gates(world: Any, recsys: Callable[..., Any]) -> None:
    world.write(gates={"logloss": {"max": 0.9}, "reference_auc_gap": {"max": 0.5}})
    done = recsys("run", world.config, "--json")
    assert done.code == 0, done.err
    run = done.json["train"]["folder"]
    missing = recsys("register", world.config, "--format", "int4")
    assert missing.code == 2
    assert f"recsys convert {run} --format int4" in missing.err
    unknown = recsys("register", world.config, "--format", "pruned")
    assert unknown.code == 2
    assert "there is no such row format" in unknown.err
    converted = recsys("convert", run, "--format", "int4", "--json")
    assert converted.code == 0, converted.err
    assert [gate["met"] for gate in converted.json["gates"]] == [True, True]
    outcome = recsys("register", world.config, "--format", "int4", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["version"] == 2
    rows = pl.read_parquet(world.events).head(50)
    registered = Scorer.load(Registry(store_uri(world)).bundle_of("models:/small@challenger"))
    assert registered.bundle.model.plan.format == "int4"
    np.testing.assert_array_equal(registered.score(rows), Scorer.load(converted.json["bundle"]).score(rows))
    # measured on other rows, it has not kept its gates
    elsewhere = recsys("convert", run, world.events, "--format", "int8")
    assert elsewhere.code == 0, elsewhere.err
    unchecked = recsys("register", world.config, "--format", "int8")
    assert unchecked.code == 2
    assert "gates were not checked" in unchecked.err


def test_a_conversion_that_misses_a_gate_is_not_registered(world: Any, recsys: Callable[..., Any]) -> None:
    for verb in ("prepare", "train"):
        assert recsys(verb, world.config, "gates.auc.min=0.9999").code == 0
    run = world.folder / "work" / "small" / "runs" / "0001"
    converted = recsys("convert", run, "--format", "int2", "--json")
    assert converted.code == 1
    assert converted.json["gates_failed"] == ["auc"]
    assert "FAILED" in converted.err
    outcome = recsys("register", world.config, "--format", "int2")
    assert outcome.code == 1
    assert "not registered: run 0001 in int2 failed a gate (auc)" in outcome.out


def test_prune_writes_a_smaller_bundle_and_tells_its_cost(
    in_trained: Any, recsys: Callable[..., Any], tmp_path: Path
) -> None:
    run, out = in_trained.folder / "work" / "small" / "runs" / "0001", tmp_path / "small"
    before = sha256(run / "bundle" / "weights.safetensors")
    outcome = recsys("prune", run, "--keep", "0.5", "--out", out, "--json")
    assert outcome.code == 0, outcome.err
    result = outcome.json
    assert (result["by"], result["keep"], result["bundle"]) == ("gradient", 0.5, str(out))
    assert "train split" in result["ranked_on"]
    assert "test split" in result["measured_on"]
    evaluated = recsys("evaluate", in_trained.config, "--json").json["metrics"]
    assert result["old_metrics"]["auc"] == pytest.approx(evaluated["auc"], abs=1e-9)
    assert result["change"]["logloss"] == result["metrics"]["logloss"] - result["old_metrics"]["logloss"]
    old, new = Scorer.load(run / "bundle"), Scorer.load(out)
    plan = new.bundle.model.plan
    assert result["table_bytes"] == plan.table_bytes < 0.6 * result["old_table_bytes"]
    assert result["rows"] == plan.rows == pytest.approx(0.5 * result["old_rows"], abs=2)
    assert 0 < result["index_bytes"] < 0.02 * result["table_bytes"]
    lines = {line["feature"]: line for line in result["features"]}
    assert set(lines) == {"user", "item", "city", "tags", "hour", "user_city"}
    assert lines["user_city"]["of"] == "rows"
    assert lines["city"]["kept"] == next(f for f in plan.features if f.name == "city").values
    assert "rows kept by gradient" in outcome.err
    # what was measured is what the new bundle says, row by row as in a frame
    rows = pl.read_parquet(in_trained.events).drop("click", "p_true")
    assert 0 < np.abs(new.score(rows) - old.score(rows)).max() < 0.5
    np.testing.assert_allclose(new.score(rows[:1].to_dicts()), new.score(rows)[:1], rtol=1e-5)
    assert new.bundle.description["metrics"]["metrics"] == result["metrics"]
    assert sha256(run / "bundle" / "weights.safetensors") == before
    # and the other verbs take it
    scored = recsys("score", out, in_trained.events, tmp_path / "scores.parquet", "--json")
    assert scored.code == 0, scored.err
    inspected = recsys("inspect", out, in_trained.events, "--json")
    assert inspected.code == 0, inspected.err
    assert inspected.json["table_bytes"] == plan.table_bytes
    converted = recsys("convert", out, "--format", "int8", "--json")
    assert converted.code == 0, converted.err
    assert converted.json["table_bytes"] < plan.table_bytes
    again = recsys("prune", out, in_trained.events, "--keep", "0.5", "--json")
    assert again.code == 2
    assert "pruned already" in again.err


def test_prune_a_registered_model_with_and_without_raw_rows(
    in_trained: Any, recsys: Callable[..., Any], tmp_path: Path
) -> None:
    common = ("--keep", "0.7", "--json")
    measured = recsys("prune", "models:/small@challenger", in_trained.events, "--out", tmp_path / "a", *common)
    assert measured.code == 0, measured.err
    assert measured.json["metrics"]["rows"] == 3000
    assert measured.json["gates"] is None
    assert measured.json["ranked_on"] == measured.json["measured_on"]
    assert "measured on the same rows" in measured.err
    alone = recsys("prune", "models:/small@challenger", "--by", "magnitude", "--out", tmp_path / "b", *common)
    assert alone.code == 0, alone.err
    assert alone.json["metrics"] is alone.json["ranked_on"] is None
    assert "name DATA" in alone.err


def test_prune_refuses_and_leaves_nothing(in_trained: Any, recsys: Callable[..., Any], tmp_path: Path) -> None:
    run = in_trained.folder / "work" / "small" / "runs" / "0001"
    (tmp_path / "there").mkdir()
    pl.read_parquet(in_trained.events).drop("click").write_parquet(tmp_path / "unlabelled.parquet")
    out = ("--out", tmp_path / "new")
    for arguments, words in (
        ((run, "--keep", "0", *out), "above 0, at most 1"),
        ((run, "--keep", "1.2", *out), "above 0, at most 1"),
        ((run, "--keep", "0.5", "--by", "gradien", *out), "did you mean 'gradient'?"),
        ((run, "--keep", "0.5", "--out", tmp_path / "there"), "there already"),
        ((run / "bundle", "--keep", "0.5", *out), "the gradient needs data"),
        ((run, tmp_path / "unlabelled.parquet", "--keep", "0.5", *out), "click"),
        ((tmp_path, "--keep", "0.5", *out), "is no model bundle"),
        (("models:/smal@challenger", "--keep", "0.5", *out), "did you mean 'small'?"),
    ):
        outcome = recsys("prune", *arguments, "--json")
        assert outcome.code == 2, outcome.out
        assert words in outcome.err
        assert outcome.json["error"]["message"] in outcome.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there", "unlabelled.parquet"]
    assert in_trained.leftovers() == []


def test_data_lists_and_writes(recsys: Callable[..., Any], tmp_path: Path) -> None:
    names = [recipe["name"] for recipe in recsys("data", "--json").json["recipes"]]
    assert {"synthetic", "criteo", "frappe", "movielens_1m", "open_bandit"} <= set(names)
    written = recsys("data", "synthetic", "rows=500", "seed=3", "--out", tmp_path / "e.parquet", "--json")
    assert written.code == 0, written.err
    frame = pl.read_parquet(tmp_path / "e.parquet")
    assert len(frame) == written.json["rows"] == 500
    assert {"click", "p_true"} <= set(frame.columns)


def test_every_verb_has_help_and_help_is_light() -> None:
    code = (
        "import sys, pipelines.cli as cli\n"
        "for verb in sys.argv[1:]:\n"
        "    try: cli.app([verb, '--help'])\n"
        "    except SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'mlflow', 'polars'} & set(sys.modules)\n"
    )
    shown = subprocess.run([sys.executable, "-c", code, *VERBS], capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count("Usage") == len(VERBS)


def test_plain_output_of_the_installed_entry_point(in_trained: Any) -> None:
    command = [sys.executable, "-m", "pipelines.cli", "inspect", str(in_trained.config), "--json"]
    shown = subprocess.run(command, capture_output=True, text=True, check=False, cwd=in_trained.folder, env=ENVIRONMENT)
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout)["rows"]["train"] > 0
    assert "\x1b[" not in shown.stderr
