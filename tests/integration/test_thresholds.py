"""A training with thresholds, by the command line: what did not pass is not in the bundle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recsys.serving.bundle import load_bundle
from tests.integration.test_bad_input import refused

Recsys = Callable[..., Any]
SHARP = ("embedding.exact.max_values=1000", "thresholds.rate=50", "thresholds.pressure=0.05")
"""So strong that within a small training some values do not pass."""


@pytest.fixture
def prepared(world: Any, recsys: Recsys) -> Any:
    assert recsys("prepare", world.config).code == 0
    return world


def test_the_bundle_lacks_what_did_not_pass(prepared: Any, recsys: Recsys) -> None:
    outcome = recsys("train", prepared.config, *SHARP, "--json")
    assert outcome.code == 0, outcome.err
    told = outcome.json["thresholds"]
    kept, before = (sum(line[key] for line in told["features"]) for key in ("kept", "values"))
    assert 0 < kept < before
    model = load_bundle(Path(outcome.json["bundle"])).model
    assert model.plan.table_bytes == outcome.json["table_bytes"] < told["old_table_bytes"]
    assert recsys("evaluate", prepared.config, *SHARP).code == 0


def test_a_cut_run_goes_on_with_its_thresholds(prepared: Any, recsys: Recsys) -> None:
    whole = recsys("train", prepared.config, *SHARP, "--json")
    folder = Path(whole.json["folder"])
    expected = (folder / "bundle" / "weights.safetensors").read_bytes()
    (folder / "train.json").unlink()
    shutil.rmtree(folder / "bundle")
    sorted((folder / "checkpoints").glob("step-*"))[-1].unlink()
    again = recsys("train", prepared.config, *SHARP, "--resume", "--json")
    assert again.code == 0, again.err
    assert (folder / "bundle" / "weights.safetensors").read_bytes() == expected
    assert json.dumps(again.json["thresholds"]) == json.dumps(whole.json["thresholds"])


def test_a_model_without_a_table_has_nothing_to_lose(prepared: Any, recsys: Recsys) -> None:
    alone = (prepared.config, "embedding.chunks.default=0", "train.epochs=1")
    refused(recsys("train", *alone, *SHARP), "thresholds", "there is no table")
    assert not (prepared.folder / "work" / "small" / "runs").exists()
    run = Path(recsys("train", *alone, "--json").json["folder"])
    before = sorted(run.iterdir())
    for command in (("prune", run, "--keep", "0.5"), ("convert", run, "--format", "int8")):
        refused(recsys(*command), "model", "the model has no table")
    assert sorted(run.iterdir()) == before


def test_a_search_judges_what_passed(prepared: Any, recsys: Recsys) -> None:
    search = (*SHARP, "search.levels=[0,1,2]", "search.generations=3", "search.max_lookups=5", "search.sample_rows=300")
    outcome = recsys("search", prepared.config, *search, "--json")
    assert outcome.code == 0, outcome.err
    assert "values that passed their feature's threshold" in outcome.err
    folder = Path(outcome.json["folder"])
    assert load_bundle(folder / "supernet").model.plan.pruned is not None
    journal = (folder / "evaluations.jsonl").read_bytes()
    (folder / "result.json").unlink()
    (folder / "evaluations.jsonl").unlink()
    again = recsys("search", prepared.config, *search, "--resume", "--json")
    assert (again.json["chunks"], again.json["fitness"]) == (outcome.json["chunks"], outcome.json["fitness"])
    assert (folder / "evaluations.jsonl").read_bytes() == journal
    trained = recsys("train", prepared.config, *SHARP, f"allocation={outcome.json['allocation']}", "--json")
    assert sum(line["kept"] for line in trained.json["thresholds"]["features"]) > 0


def test_a_search_for_thresholds_leaves_them_a_table(prepared: Any, recsys: Recsys) -> None:
    """A budget that is too small for any chunk is too small for them."""
    budget = ("search.method=statistics", "search.levels=[0,1]", "search.max_lookups=0.5")
    refused(recsys("search", prepared.config, *SHARP, *budget), "search.max_lookups", "1 or more")


def test_thresholds_and_hot_rows_do_not_go_together(prepared: Any, recsys: Recsys) -> None:
    outcome = recsys("train", prepared.config, "thresholds.rate=1", "embedding.hot.slots=10", "--dry-run")
    refused(outcome, "embedding.hot", "thresholds know no hot region")
