"""A training that learns from a trained model, by the command line."""

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


@pytest.fixture
def first(world: Any, recsys: Recsys) -> Path:
    """The folder of a first run."""
    assert recsys("prepare", world.config).code == 0
    outcome = recsys("train", world.config, "--json")
    assert outcome.code == 0, outcome.err
    return Path(outcome.json["folder"])


def weights(outcome: Any) -> bytes:
    assert outcome.code == 0, outcome.err
    return (Path(outcome.json["bundle"]) / "weights.safetensors").read_bytes()


def test_a_student_learns_from_the_teacher_it_was_given(world: Any, recsys: Recsys, first: Path) -> None:
    small = (world.config, "embedding.rows=60", "--json")
    alone = recsys("train", *small)
    taught = recsys("train", *small, f"train.teacher={first}")
    more = recsys("train", *small, f"train.teacher={first}", "train.distill=0.9")
    assert len({weights(run) for run in (alone, taught, more)}) == 3
    assert "learning from" in taught.err
    told = json.loads((Path(taught.json["folder"]) / "run.json").read_text())
    assert told["teacher"] == str((first / "bundle").resolve())


def test_a_cut_run_goes_on_with_its_teacher(world: Any, recsys: Recsys, first: Path) -> None:
    arguments = (world.config, "embedding.rows=60", f"train.teacher={first}", "--json")
    whole = recsys("train", *arguments)
    folder, expected = Path(whole.json["folder"]), weights(whole)
    (folder / "train.json").unlink()
    shutil.rmtree(folder / "bundle")
    steps = sorted((folder / "checkpoints").glob("step-*"))
    steps[-1].unlink()
    assert weights(recsys("train", *arguments, "--resume")) == expected


def test_a_registered_teacher_is_told_by_its_version(in_trained: Any, recsys: Recsys, tmp_path: Path) -> None:
    uri = f"sqlite:///{(in_trained.folder / 'work' / 'mlflow.db').resolve()}"
    common = (in_trained.config, f"tracking.uri={uri}", f"workspace={tmp_path}", "tracking.experiment=taught")
    assert recsys("prepare", *common).code == 0
    outcome = recsys("train", *common, "train.teacher=models:/small@challenger", "--json")
    assert outcome.code == 0, outcome.err
    run = Registry(uri)._client.get_run(outcome.json["mlflow_run_id"])
    assert run.data.tags["recsys.teacher"] == "models:/small/1"


def test_a_teacher_that_cannot_be_begins_no_run(world: Any, recsys: Recsys, first: Path) -> None:
    spec = yaml.safe_load(world.config.read_text())["spec"]
    spec["features"][0] |= {"dtype": "string"}
    other = f"spec={json.dumps(spec)}"
    assert recsys("prepare", world.config, other).code == 0
    for more in ((), ("--dry-run",)):
        refused(recsys("train", world.config, other, f"train.teacher={first}", *more), "train.teacher", "otherwise")
    assert recsys("prepare", world.config).code == 0
    for more in ((), ("--dry-run",)):
        refused(recsys("train", world.config, "train.teacher=no/such", *more), "no/such", "no model bundle")
    assert [path.name for path in first.parent.iterdir()] == [first.name]
