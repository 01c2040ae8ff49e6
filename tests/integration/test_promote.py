"""`recsys promote`, `rollback` and `history` with a real registry: what moves the champion, and what does not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from features.errors import ArtifactError
from pipelines.config import PromoteConfig
from pipelines.console import Console, Task
from pipelines.promote import check_against, promote
from recsys.evaluation.compare import Comparison, PairDifference
from recsys.evaluation.paired_slices import SliceComparison, SliceDifference
from recsys.serving.registry import Registry
from tests.integration.conftest import World, config, inside
from tests.integration.conftest import recsys as command

Recsys = Callable[..., Any]
CONDITIONS: dict[str, Any] = {
    "better": ["normalised_entropy"],
    "not_worse": {"auc": 0.01},
    "slices": {"max_worse": 0.05, "min_rows": 30},
    "bounds": {"calibration_ratio": {"min": 0.2, "max": 5}, "auc": {"min": 0.3}},
    "max_table_bytes": 10_000_000,
    "max_latency_ms": 5000,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Version 1 is trained, version 2 hardly; there is no champion at first."""
    world = World(tmp_path_factory.mktemp("promote"))
    world.write(promote=CONDITIONS)
    with inside(world.folder):
        assert command("run", world.config).code == 0
        assert command("train", world.config, "train.epochs=1", "train.learning_rate=1e-5").code == 0
        registered = command("register", world.config)
    assert registered.code == 0, registered.err
    return world


@pytest.fixture
def world(made: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """That world without a champion."""
    monkeypatch.chdir(made.folder)
    yield made
    client = registry_of(made)._client
    if "champion" in client.get_registered_model("small").aliases:
        client.delete_registered_model_alias("small", "champion")


def registry_of(world: World) -> Registry:
    return Registry(f"sqlite:///{world.folder / 'work' / 'mlflow.db'}")


def champion(world: World) -> int | None:
    found = registry_of(world).alias_of("small", "champion")
    return found and found.version


def conditions(world: World, file: str = "conditions.yaml", **changes: Any) -> Path:
    """A config with other conditions."""
    path = world.folder / file
    path.write_text(yaml.safe_dump(config(world.events, promote=changes or None)))
    return path


def test_the_first_champion_needs_the_absolute_conditions_alone(world: World, recsys: Recsys) -> None:
    outcome = recsys("promote", "small", "--version", "1", "--json")
    assert outcome.code == 0, outcome.err
    result = outcome.json
    assert (result["promoted"], result["champion"], champion(world)) == (True, None, 1)
    assert sorted(row["condition"] for row in result["conditions"]) == [
        "auc within bounds", "calibration_ratio within bounds", "latency_ms within budget", "table_bytes within budget",
    ]  # fmt: skip
    assert all(row["met"] for row in result["conditions"])
    assert result["data"].startswith("test split of")


def test_a_worse_version_is_refused_and_moves_nothing(world: World, recsys: Recsys) -> None:
    assert recsys("promote", "small", "--version", "1").code == 0
    outcome = recsys("promote", "small", "--json")  # the challenger is version 2
    assert outcome.code == 1, outcome.err
    result = outcome.json
    assert (result["version"], result["champion"], result["promoted"]) == (2, 1, False)
    assert {"normalised_entropy better", "auc not worse", "no slice worse"} <= set(result["gates_failed"])
    assert champion(world) == 1
    registry = registry_of(world)
    version = registry.resolve("models:/small/2")
    assert version.tags["recsys.promotion.decision"] == "refused"
    assert "normalised_entropy better" in version.tags["recsys.promotion.failed"]
    evidence = json.loads(registry.file_of(version.run_id, result["evidence"]).read_text())
    assert evidence["comparison"]["differences"][0]["a"] == "small/2"
    assert evidence["declared"]["not_worse"] == {"auc": 0.01}
    page = registry.file_of(version.run_id, result["evidence"].replace(".json", ".html")).read_text()
    assert "Comparison of small/2 and small/1" in page
    assert "not promoted: " in outcome.err


def test_promote_roll_back_and_look_back(world: World, recsys: Recsys) -> None:
    before = len(recsys("history", "small", "--json").json["decisions"])
    assert recsys("promote", "small", "--version", "1").code == 0
    lax = conditions(world, bounds={"auc": {"min": 0.1}})
    moved = recsys("promote", "small", "--config", lax, "--data", world.events, "--json")
    assert moved.code == 0, moved.err
    assert moved.json["rows"] == 3000
    assert champion(world) == 2
    back = recsys("rollback", "small", "--json")
    assert back.code == 0, back.err
    assert (back.json["version"], back.json["from_version"], champion(world)) == (1, 2, 1)
    again = recsys("rollback", "small")
    assert again.code == 2
    assert "no champion to go back to. Found: version 1, which followed none" in again.err
    found = recsys("history", "small", "--json").json
    assert found["champion"] == 1
    assert [row["aliases"] for row in found["versions"]] == ["champion", "challenger"]
    assert [row["last_decision"] for row in found["versions"]] == ["promoted", "rolled back"]
    new = found["decisions"][before:]
    assert [(d["version"], d["decision"]) for d in new] == [(1, "promoted"), (2, "promoted"), (2, "rolled back")]
    assert "rolled back" in recsys("history", "small").out


def test_a_better_version_takes_the_place(world: World, recsys: Recsys) -> None:
    lax = conditions(world, bounds={"auc": {"min": 0.1}})
    assert recsys("promote", "small", "--version", "2", "--config", lax).code == 0
    outcome = recsys("promote", "small", "--version", "1", "--json")
    assert outcome.code == 0, outcome.err
    assert (outcome.json["champion"], champion(world)) == (2, 1)
    assert all(row["met"] for row in outcome.json["conditions"])
    assert len(outcome.json["conditions"]) == 7


class Meanwhile(Console):
    """While this promotion scores, someone else makes another version the champion."""

    def __init__(self, world: World) -> None:
        super().__init__(quiet=True)
        self._world = world

    @contextmanager
    def progress(self, description: str, total: int | None) -> Iterator[Task]:
        registry = registry_of(self._world)
        registry.set_alias(registry.resolve("models:/small/2"), "champion")
        with super().progress(description, total) as task:
            yield task


def test_a_champion_that_came_meanwhile_stays(world: World) -> None:
    with pytest.raises(ArtifactError, match=r"another champion came.*Found: version 2\. Expected: none"):
        promote("small", Meanwhile(world), tracking_uri=registry_of(world).uri, version=1)
    assert champion(world) == 2


def test_what_is_wrong_is_said_and_moves_nothing(world: World, recsys: Recsys) -> None:
    relative = conditions(world, "relative.yaml", better=["auc"])
    none = conditions(world, "none.yaml")
    for arguments, words in (
        (("nothing",), "no such registered model"),
        (("small", "--version", "9"), "no such version or alias"),
        (("small", "--alias", "chalenger"), "no such version or alias"),
        (("small", "--config", relative), "no champion yet, and all conditions compare with it"),
        (("small", "--config", none), "no conditions are declared"),
        (("small", "--data", "nowhere.parquet"), "nowhere.parquet"),
    ):
        outcome = recsys("promote", *arguments, "--json")
        assert outcome.code == 2, outcome.out
        assert words in outcome.err
    assert champion(world) is None
    assert recsys("promote", "small", "--version", "1").code == 0
    again = recsys("promote", "small", "--version", "1")
    assert again.code == 2
    assert "is the champion already" in again.err
    assert recsys("rollback", "nothing").code == recsys("history", "nothing").code == 2


def test_conditions_that_there_are_not(world: World, recsys: Recsys) -> None:
    for changes, words in (
        ({"beter": ["auc"]}, "did you mean 'better'?"),
        ({"better": ["acu"]}, "promote.better.acu: no such metric"),
        ({"bounds": {"reference_auc_gap": {"max": 0}}}, "promote.bounds.reference_auc_gap: no such metric"),
        ({"not_worse": {"auc": -1}}, "promote.not_worse.auc"),
        ({"better": []}, "name at least one condition"),
    ):
        outcome = recsys("promote", "small", "--config", conditions(world, **changes))
        assert outcome.code == 2
        assert words in outcome.err
    assert champion(world) is None


def test_data_that_came_since_is_refused(made: World, recsys: Recsys, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of another test split may be among those the version was trained on."""
    monkeypatch.chdir(made.folder)
    store = made.store
    aside = store.with_name("aside")
    store.rename(aside)
    try:
        assert recsys("prepare", made.config, "data.split.seed=1").code == 0
        outcome = recsys("promote", "small", "--version", "1")
        assert outcome.code == 2
        assert "not what the version was trained on" in outcome.err
    finally:
        shutil.rmtree(store)
        aside.rename(store)


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.0, 0.02, 0.2])
def test_a_killed_promotion_leaves_one_champion(world: World, recsys: Recsys, delay: float) -> None:
    """Killed when its evidence appears, or a little later."""
    assert recsys("promote", "small", "--version", "1").code == 0
    lax = conditions(world, bounds={"auc": {"min": 0.1}})
    evidence = world.folder / "work" / "artifacts"
    before = set(evidence.rglob("promotions/small-2/*.json"))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    environment.pop("MLFLOW_TRACKING_URI", None)
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", "promote", "small", "--config", str(lax)], env=environment
    )
    while process.poll() is None and not set(evidence.rglob("promotions/small-2/*.json")) - before:
        time.sleep(0.002)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert champion(world) in (1, 2)
    assert recsys("history", "small").code == 0
    if champion(world) == 2:
        assert recsys("rollback", "small").code == 0
        assert champion(world) == 1
    else:
        assert recsys("promote", "small", "--config", lax).code == 0
        assert champion(world) == 2


def difference(metric: str, value: float, half: float) -> PairDifference:
    return PairDifference(
        metric, "new", "old", value, value - half, value + half, half / 1.96, 0.5, 0.5, None, 0.01, "bootstrap"
    )


def test_conditions_against_the_champion_one_by_one() -> None:
    rules = PromoteConfig.model_validate(
        {
            "better": ["auc", "logloss", "gauc"],
            "not_worse": {"auc": 0.01, "logloss": 0.01},
            "slices": {"max_worse": 0.1},
        }
    )

    def met(auc: float, loss: float, slice_low: float) -> list[bool]:
        differences = (difference("auc", auc, 0.02), difference("logloss", loss, 0.02))
        comparison = Comparison(10, 10, "row", 0.05, {"new": {}, "old": {}}, differences, {})
        entry = SliceDifference(
            "value", "city", "Rome", 2000, 0.1, "new", "old", 0.5, 0.3, 0.2, slice_low, 0.4, 0.5, None
        )
        rows = check_against(rules, comparison, SliceComparison((entry,), {}), "new", "old")
        return [row["met"] for row in rows]

    # a metric that does not exist (gauc) is never better
    assert met(auc=0.03, loss=-0.03, slice_low=-0.1) == [True, True, False, True, True, True]
    assert met(auc=0.015, loss=-0.015, slice_low=0.01) == [False, False, False, True, True, False]
    assert met(auc=0.005, loss=0.005, slice_low=0.01) == [False, False, False, False, False, False]
    assert met(auc=-0.03, loss=0.03, slice_low=-0.1) == [False, False, False, False, False, True]
