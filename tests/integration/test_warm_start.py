"""A trained model is taken over by the command line: into more rows, other features, and after a cut."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from recsys.serving.registry import Registry
from tests.integration.test_bad_input import refused

Recsys = Callable[..., Any]
SMALL = ("embedding.exact.max_values=30",)
"""User and the cross are hashed."""


@pytest.fixture
def first(world: Any, recsys: Recsys) -> Path:
    """The folder of a first run."""
    assert recsys("prepare", world.config).code == 0
    outcome = recsys("train", world.config, *SMALL, "--json")
    assert outcome.code == 0, outcome.err
    return Path(outcome.json["folder"])


def features(world: Any, change: Callable[[list[dict[str, Any]]], None]) -> str:
    """An override of the spec with its features changed."""
    spec = yaml.safe_load(world.config.read_text())["spec"]
    change(spec["features"])
    return f"spec={json.dumps(spec)}"


def warm_start_of(outcome: Any) -> dict[str, Any]:
    """What the run says of its start, and the changes by feature."""
    assert outcome.code == 0, outcome.err
    told = json.loads((Path(outcome.json["folder"]) / "warm_start.json").read_text())
    assert outcome.json["warm_start"] == {key: value for key, value in told.items() if key != "report"}
    return {**told, "changes": {f["feature"]: f["change"] for f in told["report"]["features"]}}


@pytest.mark.parametrize("place", ["run", "bundle"])
def test_twice_the_rows_start_where_the_old_model_ended(world: Any, recsys: Recsys, first: Path, place: str) -> None:
    trained = first if place == "run" else first / "bundle"
    outcome = recsys("train", world.config, *SMALL, "embedding.rows=1000", f"train.warm_start={trained}", "--json")
    told = warm_start_of(outcome)
    assert told["model"] == str((first / "bundle").resolve())
    assert told["auc"] == told["old_auc"] == json.loads((first / "train.json").read_text())["valid"]["auc"]
    assert told["report"]["lookups_kept"] == 1
    assert outcome.json["table_rows"] > 1000
    assert "valid auc right after" in outcome.err
    assert "user_city" in outcome.err


def test_features_come_and_go(world: Any, recsys: Recsys, first: Path) -> None:
    weekday = {"type": "time", "name": "weekday", "column": "at", "part": "weekday", "unit": "s"}

    def change(features: list[dict[str, Any]]) -> None:
        del features[2], features[-1]  # city, and the cross that needs it
        features.append(weekday)

    spec = features(world, change)
    assert recsys("prepare", world.config, spec).code == 0
    outcome = recsys("train", world.config, spec, *SMALL, f"train.warm_start={first}", "--json")
    told = warm_start_of(outcome)
    assert told["changes"] == {
        "user": "kept",
        "item": "kept",
        "hour": "kept",
        "weekday": "new",
        "tags": "kept",
        "price": "kept",
        "city": "dropped",
        "user_city": "dropped",
    }
    assert told["old_auc"] is None
    assert told["auc"] > 0.5
    assert "lacks city, user_city" in outcome.err
    # and back: what is new leaves the prediction as it was
    second = outcome.json["folder"]
    spec = features(world, lambda every: every.append(weekday))
    assert recsys("prepare", world.config, spec).code == 0
    told = warm_start_of(recsys("train", world.config, spec, *SMALL, f"train.warm_start={second}", "--json"))
    assert told["changes"]["city"] == told["changes"]["user_city"] == "new"
    assert told["auc"] == pytest.approx(told["old_auc"], abs=1e-6)
    assert told["logloss"] == pytest.approx(told["old_logloss"], abs=1e-6)


def test_a_feature_that_means_something_else_is_reset(world: Any, recsys: Recsys, first: Path) -> None:
    def change(features: list[dict[str, Any]]) -> None:
        features[2] |= {"column": "item"}  # only read from elsewhere
        features[4] |= {"standardise": False}
        features[0] |= {"dtype": "string"}

    spec = features(world, change)
    assert recsys("prepare", world.config, spec).code == 0
    outcome = recsys("train", world.config, spec, *SMALL, f"train.warm_start={first}", "train.reset=[hour]", "--json")
    told = warm_start_of(outcome)
    assert told["changed"] == ["user", "price", "user_city"]
    reset = {name for name, change in told["changes"].items() if change == "reset"}
    assert reset == {"user", "price", "user_city", "hour"}
    assert "describes them otherwise" in outcome.err


def test_a_registered_model_is_taken_over_by_its_version(in_trained: Any, recsys: Recsys, tmp_path: Path) -> None:
    config = in_trained.config
    uri = f"sqlite:///{(in_trained.folder / 'work' / 'mlflow.db').resolve()}"
    common = (config, "train.warm_start=models:/small@challenger", f"tracking.uri={uri}", f"workspace={tmp_path}")
    assert recsys("prepare", *common).code == 0
    outcome = recsys("train", *common, "tracking.experiment=warm", "--json")
    told = warm_start_of(outcome)
    assert told["model"] == "models:/small/1"
    assert told["auc"] == told["old_auc"]
    run_id = outcome.json["mlflow_run_id"]
    run = Registry(uri)._client.get_run(run_id)
    assert run.data.metrics["warm_start/auc"] == told["auc"]
    assert run.data.metrics["warm_start/old_auc"] == told["auc"]
    assert run.data.metrics["warm_start/lookups_kept"] == 1
    assert "warm_start.json" in {file.path for file in Registry(uri)._client.list_artifacts(run_id)}


def test_a_run_that_was_cut_goes_on_from_what_it_began_with(world: Any, recsys: Recsys, first: Path) -> None:
    arguments = (world.config, *SMALL, "embedding.rows=700", f"train.warm_start={first}", "--json")
    whole = recsys("train", *arguments).json
    folder = Path(whole["folder"])
    weights = (folder / "bundle" / "weights.safetensors").read_bytes()

    def cut(*kept: str) -> None:
        (folder / "train.json").unlink()
        shutil.rmtree(folder / "bundle")
        for path in (folder / "checkpoints").iterdir():
            if path.name not in kept:
                path.unlink()

    cut()  # before the first checkpoint
    again = recsys("train", *arguments, "--resume").json
    assert again["warm_start"] == whole["warm_start"]
    assert (folder / "bundle" / "weights.safetensors").read_bytes() == weights
    steps = sorted(path.name for path in (folder / "checkpoints").glob("step-*"))
    cut(steps[0], "best.safetensors")  # after the first epoch; by now the old model is gone
    shutil.rmtree(first)
    again = recsys("train", *arguments, "--resume").json
    assert again["warm_start"] == whole["warm_start"]
    assert (folder / "bundle" / "weights.safetensors").read_bytes() == weights


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("embedding.width=8",), ("embedding.width", "Found: 8", "set embedding.width to 4")),
        (("model.hidden=[32]",), ("model.hidden", "(32,)", "(16,)")),
        (("train.reset=[cty]",), ("train.reset", "cty", "did you mean 'city'")),
        (("train.warm_start=no/such",), ("no/such", "no model bundle")),
        (("train.warm_start=models:/no@such",), ("mlflow.db",)),
        (("train.warm_start=null", "train.reset=[city]"), ("train.reset", "taken over")),
    ],
)
def test_a_start_that_cannot_be_begins_no_run(
    world: Any, recsys: Recsys, first: Path, overrides: tuple[str, ...], words: tuple[str, ...]
) -> None:
    for more in ((), ("--dry-run",)):
        arguments = (world.config, *SMALL, f"train.warm_start={first}", *overrides, *more)
        refused(recsys("train", *arguments), *words)
    assert [path.name for path in first.parent.iterdir()] == [first.name]


def test_a_dry_run_looks_at_the_trained_model(world: Any, recsys: Recsys, first: Path) -> None:
    assert recsys("train", world.config, f"train.warm_start={first}", "embedding.rows=900", "--dry-run").code == 0
