"""`recsys search` end to end: what it writes, what it refuses, and that a search that was cut goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import yaml

from features.loading.loader import Loader
from features.storage.store import Store
from pipelines.config import load_config
from pipelines.search import STARTS, _starts
from pipelines.workspace import new_search
from recsys.evaluation.metrics import auc
from recsys.models import CTRModel
from recsys.search.fitness import Fitness, judge
from recsys.search.front import search_front
from recsys.search.importance import chunk_norms
from recsys.serving.bundle import load_bundle
from recsys.serving.registry import import_mlflow
from recsys.training import predict

QUICK = ("search.generations=4", "search.population=6", "search.sample_rows=200", "search.levels=[0,1,2]")
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "MLFLOW_DISABLE_TELEMETRY": "true"}
ROWS = 500
"""Of the table in the experiment's config."""
FEATURES = {"user", "item", "city", "hour", "user_city", "tags"}


@pytest.fixture
def prepared(world: Any, recsys: Callable[..., Any]) -> Any:
    assert recsys("prepare", world.config).code == 0
    return world


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def searched(world: Any, recsys: Callable[..., Any], *arguments: str) -> dict[str, Any]:
    outcome = recsys("search", world.config, *QUICK, *arguments, "--json")
    assert outcome.code == 0, outcome.err
    return outcome.json


def test_a_budget_gives_an_allocation_that_training_takes(prepared: Any, recsys: Callable[..., Any]) -> None:
    result = searched(prepared, recsys, "search.max_lookups=5")
    assert result["lookups"] <= 5
    assert result["candidates"] > 6
    assert 0.4 < result["fitness"] < 1
    file = Path(result["allocation"])
    chunks = json.loads(file.read_text())["chunks"]
    assert chunks == result["chunks"]
    assert set(chunks) == FEATURES
    trained = recsys("train", prepared.config, f"allocation={file}", "--json")
    assert trained.code == 0, trained.err
    bundle = load_bundle(Path(trained.json["bundle"]))
    assert {f.name: f.chunks for f in bundle.model.plan.features} == chunks
    assert not prepared.leftovers()


def test_without_a_budget_there_is_a_front_and_the_cheapest_good_one_is_chosen(
    prepared: Any, recsys: Callable[..., Any]
) -> None:
    result = searched(prepared, recsys, "search.tolerance=0.01")
    front = result["front"]
    lookups, quality = [row["lookups"] for row in front], [row["auc"] for row in front]
    assert lookups == sorted(lookups)
    assert quality == sorted(quality)
    assert result["lookups"] == next(row["lookups"] for row in front if row["auc"] >= quality[-1] - 0.01)
    folder = Path(result["folder"])
    assert (folder / "front.svg").is_file()
    candidates = json.loads((folder / "candidates.json").read_text())["candidates"]
    assert len(candidates) == result["candidates"]
    assert set(candidates[0]) > FEATURES
    lines = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
    judged = [value for line in lines for _, value in line.get("candidates", ())]
    assert [row["sample_fitness"] for row in candidates] == judged
    assert {row["auc"] for row in front} <= {row["fitness"] for row in candidates}


def test_a_front_begins_with_what_was_found_for_it(
    prepared: Any, recsys: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With more uniform allocations than a generation holds, too."""
    found: list[Any] = []
    given: list[Any] = []

    def starts(*arguments: Any) -> list[Any]:
        found.extend(_starts(*arguments))
        return list(found)

    def front(*arguments: Any, first: list[Any], **more: Any) -> Any:
        given.extend(first)
        return search_front(*arguments, first=first, **more)

    monkeypatch.setattr("pipelines.search._starts", starts)
    monkeypatch.setattr("pipelines.search.search_front", front)
    searched(prepared, recsys, "search.levels=[0,1,2,3,4,5,6,7]")
    assert len(found) == STARTS
    assert [own.tolist() for own in given[:STARTS]] == [own.tolist() for own in found]
    assert len(given) == STARTS + 7


def test_with_objectives_there_is_a_front_within_the_budget(prepared: Any, recsys: Callable[..., Any]) -> None:
    arguments = ("search.max_lookups=6", "search.objectives=[table_bytes,lookups]", "search.tolerance=0.02")
    result = searched(prepared, recsys, *arguments)
    front = result["front"]
    assert len(front) > 1
    candidates = json.loads((Path(result["folder"]) / "candidates.json").read_text())["candidates"]
    assert 5 <= max(row["lookups"] for row in candidates) <= 6
    enough = [row["table_bytes"] for row in front if row["auc"] >= max(row["auc"] for row in front) - 0.02]
    assert result["table_bytes"] == min(enough)


def test_logloss_is_shown_as_it_is(prepared: Any, recsys: Callable[..., Any]) -> None:
    outcome = recsys("search", prepared.config, *QUICK, "search.metric=logloss", "search.max_lookups=4")
    assert outcome.code == 0, outcome.err
    assert ", logloss 0." in outcome.out


def test_the_same_search_twice_gives_the_same_allocation(prepared: Any, recsys: Callable[..., Any]) -> None:
    one, two = (searched(prepared, recsys, "search.max_lookups=6") for _ in range(2))
    assert one["search"] != two["search"]
    assert (one["chunks"], one["fitness"]) == (two["chunks"], two["fitness"])
    lines = [(Path(result["folder"]) / "evaluations.jsonl").read_text() for result in (one, two)]
    assert lines[0] == lines[1]


@pytest.mark.parametrize("method", ["statistics", "magnitude"])
def test_allocations_without_a_supernet_keep_the_budget(prepared: Any, recsys: Callable[..., Any], method: str) -> None:
    own = (f"search.method={method}", "search.max_lookups=6", "search.features={user: [2], item: [1, 2]}")
    result = searched(prepared, recsys, *own)
    assert 5 <= result["lookups"] <= 6
    assert result["fitness"] is None
    assert set(result["chunks"]) == FEATURES
    assert result["chunks"]["user"] == 2
    assert result["chunks"]["item"] >= 1


def test_statistics_come_from_a_model_that_reads_every_feature(
    prepared: Any, recsys: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: dict[str, int] = {}

    def watched(model: CTRModel, batches: Any) -> list[np.ndarray]:
        read.update({f.name: f.chunks for f in model.plan.features})
        return chunk_norms(model, batches)

    monkeypatch.setattr("pipelines.search.chunk_norms", watched)
    levels = ("search.levels=[0,2,4]", "search.features={tags: [0, 1]}")
    result = searched(prepared, recsys, "search.method=statistics", "search.max_lookups=11", *levels)
    assert read == {**dict.fromkeys(FEATURES, 2), "tags": 1}
    assert 9 <= result["lookups"] <= 11


def test_hot_slots_have_a_feature_in_whatever_is_found(prepared: Any, recsys: Callable[..., Any]) -> None:
    """Of all features only users by city have too many values to be exact; alone they are the budget."""
    table = ("embedding.hot.slots=16", "embedding.exact.max_values=100")
    result = searched(prepared, recsys, *table, "search.max_lookups=1")
    assert {name: count for name, count in result["chunks"].items() if count} == {"user_city": 1}
    trained = recsys("train", prepared.config, *table, f"allocation={result['allocation']}", "--dry-run", "--json")
    assert trained.code == 0, trained.err
    assert trained.json["table_bytes"] == result["table_bytes"]


def test_the_published_loop_saves_what_it_would_have_saved(prepared: Any, recsys: Callable[..., Any]) -> None:
    result = searched(prepared, recsys, "search.evolution=published", "search.generations=3")
    assert result["candidates"] == 3 * 20
    assert len(result["front"]) == 1
    refused = recsys("search", prepared.config, "search.evolution=published", "search.max_lookups=5")
    assert refused.code == 2
    assert "the published loop knows no budget" in refused.err


def test_retraining_starts_from_the_supernet_or_from_its_first_weights(
    prepared: Any, recsys: Callable[..., Any]
) -> None:
    result = searched(prepared, recsys, "search.max_lookups=5")
    supernet = load_bundle(Path(result["folder"]) / "supernet")
    plan = supernet.model.plan
    valid = predict(supernet.model, Loader(Store.open(prepared.store), "valid", 512))
    assert supernet.description["metrics"]["auc"] == pytest.approx(auc(valid.labels[:, 0], valid.probabilities[:, 0]))
    (rows,) = {f.span for f in plan.features if f.region == "shared"}
    assert rows == ROWS * round(plan.lookups / 5) > ROWS  # as much more room as it has more lookups
    for start in ("supernet", "initial"):
        trained = recsys(
            "train",
            prepared.config,
            f"allocation={result['allocation']}",
            f"train.warm_start={Path(result['folder']) / start}",
            "--json",
        )
        assert trained.code == 0, trained.err
        assert trained.json["warm_start"]["model"].endswith(start)


def test_run_searches_first_if_the_config_has_a_search_section(world: Any, recsys: Callable[..., Any]) -> None:
    outcome = recsys("run", world.config, *QUICK, "search.max_lookups=5", "--json")
    assert outcome.code == 0, outcome.err
    result = outcome.json
    assert result["train"]["lookups"] == sum(result["search"]["chunks"].values())
    kept = yaml.safe_load((Path(result["train"]["folder"]) / "config.yaml").read_text())
    assert kept["embedding"]["chunks"]["features"] == result["search"]["chunks"]


def test_a_run_that_was_cut_before_its_training_goes_on(
    world: Any, recsys: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.run.evaluate", lambda *_, **__: {"gates_failed": []})
    alone = recsys("run", world.config, "train.epochs=1", "--resume", "--json")
    assert alone.code == 0, alone.err
    assert (alone.json["train"]["run"], alone.json["search"]) == ("0001", None)
    again = recsys("run", world.config, "train.epochs=1", "--resume", "--json")
    assert again.json["train"]["run"] == "0001"
    quick = (*QUICK, "train.epochs=1", "search.max_lookups=5", "search.method=statistics")
    cut = recsys("search", world.config, *quick, "--json")
    (Path(cut.json["folder"]) / "result.json").unlink()
    outcome = recsys("run", world.config, *quick, "--resume", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["search"]["search"] == cut.json["search"]
    assert outcome.json["train"]["run"] == "0002"
    assert outcome.json["train"]["lookups"] == sum(outcome.json["search"]["chunks"].values())


def test_mlflow_holds_the_search_its_table_and_its_child_however_often_it_was_cut(
    world: Any, recsys: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut in its training, then once the allocation was written and MLflow had not been told."""
    world.write()
    assert recsys("prepare", world.config).code == 0
    arguments = (world.config, *QUICK, "search.max_lookups=5", "--json")
    folder = world.folder / "work" / "small" / "searches" / "0001"
    for resume, place in (([], "pipelines.search.Trainer._end_epoch"), (["--resume"], "pipelines.search._Job._log")):
        with monkeypatch.context() as patched:
            patched.setattr(place, interrupt)
            assert recsys("search", *arguments, *resume).code == 130
        assert not (folder / "result.json").exists()
    result = recsys("search", *arguments, "--resume").json
    assert (folder / "result.json").is_file()
    uri = f"sqlite:///{(world.folder / 'work' / 'mlflow.db').resolve()}"
    client = import_mlflow().MlflowClient(tracking_uri=uri)
    run = client.get_run(result["mlflow_run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["search.max_lookups"] == "5.0"
    assert run.data.metrics["search/fitness"] == pytest.approx(result["fitness"])
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"candidates.json", "front.json", "front.svg", "allocation.json", "config.yaml"} <= files
    (child,) = (own for own in client.search_runs([run.info.experiment_id]) if own.info.run_id != run.info.run_id)
    assert child.data.tags["mlflow.parentRunId"] == run.info.run_id
    assert child.info.status == "FINISHED"
    assert "valid/auc" in child.data.metrics


def test_a_search_that_is_killed_goes_on_where_it_was(prepared: Any, recsys: Callable[..., Any]) -> None:
    whole = searched(prepared, recsys, "search.max_lookups=6", "search.generations=30")
    lines = (Path(whole["folder"]) / "evaluations.jsonl").read_text().splitlines()
    command = [sys.executable, "-m", "pipelines.cli", "search", str(prepared.config), *QUICK]
    command += ["search.max_lookups=6", "search.generations=30", "--json"]
    folder = prepared.folder / "work" / "small" / "searches" / "0002"
    evaluations = folder / "evaluations.jsonl"
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while process.poll() is None and (not evaluations.is_file() or evaluations.read_bytes().count(b"\n") < 3):
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    before = evaluations.read_bytes()
    with evaluations.open("ab") as file:
        file.write(b'{"candidates": [[[0, 1')  # as if it had been cut in the middle of a line
    resumed = recsys(
        "search", prepared.config, *QUICK, "search.max_lookups=6", "search.generations=30", "--resume", "--json"
    )
    assert resumed.code == 0, resumed.err
    assert Path(resumed.json["folder"]).name == "0002"
    after = evaluations.read_bytes()
    assert after.startswith(before[: before.rindex(b"\n") + 1])
    assert after.decode().splitlines() == lines
    assert resumed.json["chunks"] == whole["chunks"]
    assert "valid/auc" not in resumed.err  # the supernet was not trained again
    again = recsys("search", prepared.config, *QUICK, "search.max_lookups=6", "search.generations=30", "--resume")
    assert "was finished already" in again.out


def test_the_row_format_is_chosen_too(
    prepared: Any, recsys: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (*QUICK, "search.formats=[fp32,int8,int2]", "search.max_lookups=6", "search.tolerance=0.01")
    outcome = recsys("search", prepared.config, *arguments, "--json")
    assert outcome.code == 0, outcome.err
    result = outcome.json
    folder = Path(result["folder"])
    candidates = json.loads((folder / "candidates.json").read_text())["candidates"]
    finalists = [row for row in candidates if row["fitness"] is not None]
    assert {row["format"] for row in finalists} == {"fp32", "int8", "int2"}
    ones = {row["format"]: row["table_bytes"] for row in candidates if all(row[name] == 1 for name in FEATURES)}
    assert ones["int2"] < ones["int8"] < ones["fp32"]
    best = max(row["fitness"] for row in finalists)
    enough = [row for row in finalists if row["fitness"] >= best - 0.01]
    assert result["table_bytes"] == min(row["table_bytes"] for row in enough)
    assert result["format"] in {row["format"] for row in enough}
    assert json.loads(Path(result["allocation"]).read_text())["format"] == result["format"]
    trained = recsys("train", prepared.config, f"allocation={result['allocation']}", "--json")
    assert trained.code == 0, trained.err
    assert load_bundle(Path(trained.json["bundle"])).model.plan.format == result["format"]
    assert trained.json["table_bytes"] == pytest.approx(result["table_bytes"], rel=0.02)
    journal = (folder / "evaluations.jsonl").read_bytes()
    judged: list[int] = []
    monkeypatch.setattr("pipelines.search.judge", lambda *of: judged.append(len(of[3])) or judge(*of))
    for size, times in ((len(journal) // 2, 2), (len(journal), 0)):  # cut in the second format, and after the last
        judged.clear()
        (folder / "result.json").unlink()
        (folder / "evaluations.jsonl").write_bytes(journal[:size])
        again = recsys("search", prepared.config, *arguments, "--json", "--resume")
        assert again.json["chunks"] == result["chunks"]
        assert len(judged) == times
        assert (folder / "evaluations.jsonl").read_bytes() == journal


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["search.max_lookups=0.5", "search.levels=[1,2]"], "search.max_lookups: no allocation is within the budget"),
        (["search.levels=[2,1]"], "search.levels: not ascending"),
        (["search.features={usr: [0, 1]}"], "did you mean 'user'?"),
        (["search.levels=[1]"], "one allocation to choose from"),
        (["search.method=statistics"], "this method needs a budget"),
        (["search.metric=accuracy"], "search.metric"),
        (["search.formats=[int8]", "search.method=magnitude"], "search.formats: only a supernet's"),
        (["search.supernet.rows=2000000000"], "search.supernet.rows: it would not fit into memory"),
        (["search.formats=[int8,int8]"], "search.formats: one of the formats is named twice"),
        (["search.objectives=[]"], "search.objectives: a front needs something"),
        (["search.objectives=[lookups,lookups]"], "search.objectives: one of the objectives is named twice"),
        (["search.objectives=[lookups]", "search.method=statistics"], "search.objectives: only a supernet's"),
        (["search.objectives=[lookups]", "search.evolution=published"], "search.objectives: only a supernet's"),
    ],
)
def test_a_search_that_cannot_be_is_refused_before_it_begins(
    prepared: Any, recsys: Callable[..., Any], arguments: list[str], said: str
) -> None:
    outcome = recsys("search", prepared.config, *arguments)
    assert outcome.code == 2
    assert said in outcome.err
    assert not (prepared.folder / "work" / "small" / "searches").exists()


def test_the_published_loop_may_not_drop_every_input(world: Any, recsys: Callable[..., Any]) -> None:
    spec = yaml.safe_load(world.config.read_text())["spec"]
    spec["features"] = [feature for feature in spec["features"] if feature["type"] != "number"]
    common = (world.config, f"spec={json.dumps(spec)}")
    assert recsys("prepare", *common).code == 0
    outcome = recsys("search", *common, *QUICK, "search.evolution=published")
    assert outcome.code == 2
    assert "search.levels: the published loop repairs nothing" in outcome.err
    features = "search.features={user: [1, 2]}"
    assert recsys("search", *common, *QUICK, "search.evolution=published", features).code == 0


def test_an_infeasible_budget_names_the_smallest_that_works(prepared: Any, recsys: Callable[..., Any]) -> None:
    outcome = recsys("search", prepared.config, "search.levels=[1,2]", "search.max_lookups=2")
    assert "Expected: " in outcome.err
    least = float(outcome.err.split("Expected: ")[1].split(" or more")[0])
    assert recsys("search", prepared.config, *QUICK, "search.levels=[1,2]", f"search.max_lookups={least}").code == 0


def test_resuming_another_search_is_refused(prepared: Any, recsys: Callable[..., Any]) -> None:
    nothing = recsys("search", prepared.config, *QUICK, "--resume")
    assert "there is no search to resume" in nothing.err
    searched(prepared, recsys, "search.max_lookups=5")
    for change, what in (("search.max_lookups=6", "search section"), ("seed=1", "config")):
        outcome = recsys("search", prepared.config, *QUICK, "search.max_lookups=5", change, "--resume")
        assert outcome.code == 2
        assert f"the {what} is not the one the search was started with" in outcome.err


def test_a_search_that_was_cut_before_it_had_begun_is_begun(prepared: Any, recsys: Callable[..., Any]) -> None:
    """Its folder is there, with the config of then or none."""
    for other in (["search.max_lookups=5", "seed=5"], None):
        folder = new_search(load_config(prepared.config, [*QUICK, *(other or [])])).folder
        if other is None:
            (folder / "config.yaml").unlink()
        result = searched(prepared, recsys, "search.method=statistics", "search.max_lookups=4", "seed=2", "--resume")
        assert Path(result["folder"]).name == folder.name
        kept = yaml.safe_load((folder / "config.yaml").read_text())
        assert (kept["search"]["max_lookups"], kept["seed"]) == (4, 2)


def test_a_search_that_is_gone_on_with_has_the_threads_of_its_training(
    prepared: Any, recsys: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("search.max_lookups=4", "train.threads=1")
    result = searched(prepared, recsys, *arguments)
    (Path(result["folder"]) / "result.json").unlink()
    (Path(result["folder"]) / "evaluations.jsonl").unlink()
    threads: list[int] = []
    whole = Fitness.__call__

    def watched(own: Fitness, genes: np.ndarray) -> np.ndarray:
        threads.append(torch.get_num_threads())
        return whole(own, genes)

    monkeypatch.setattr(Fitness, "__call__", watched)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        again = searched(prepared, recsys, *arguments, "--resume")
    finally:
        torch.set_num_threads(before)
    assert set(threads) == {1}
    assert again["chunks"] == result["chunks"]


def test_a_validation_split_of_one_class_is_refused(world: Any, recsys: Callable[..., Any]) -> None:
    part = pl.int_range(pl.len()) % 4
    frame = pl.read_parquet(world.events).with_columns(
        click=pl.when(part == 2).then(0).otherwise(pl.col("click")),
        part=pl.when(part == 2).then(pl.lit("valid")).when(part == 3).then(pl.lit("test")).otherwise(pl.lit("train")),
    )
    split = {"kind": "column", "column": "part", "values": {name: [name] for name in ("train", "valid", "test")}}
    world.write(frame, data={"source": str(world.events), "split": split})
    assert recsys("prepare", world.config).code == 0
    outcome = recsys("search", world.config, *QUICK, "search.max_lookups=5")
    assert outcome.code == 2
    assert "one class" in outcome.err


def test_a_sample_of_one_class_is_refused_before_anything_is_trained(
    prepared: Any, recsys: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.search.drawn_places", lambda *_: np.flatnonzero(labels == 0)[:50])
    labels = Store.open(prepared.store).read("valid").labels[:, 0].numpy()  # type: ignore[index]
    outcome = recsys("search", prepared.config, *QUICK, "search.max_lookups=5")
    assert outcome.code == 2
    assert "search.sample_rows: no allocation can be judged" in outcome.err
    assert "0 of 50 validation rows are positive" in outcome.err
    assert not (prepared.folder / "work" / "small" / "searches").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"allocation_version": 1, "chunks": {"usr": 1}}', "did you mean 'user'?"),
        ('{"allocation_version": 1, "chunks": {"user": 1}}', "leaves features out"),
        ('{"allocation_version": 1, "chunks": {"user": 1.5}}', "not a number of chunks"),
        ('{"allocation_version": 9, "chunks": {}}', "of another version"),
        ('{"user": 1}', "no allocation"),
        *(
            (json.dumps({"allocation_version": 1, "chunks": dict.fromkeys(FEATURES, 1), "format": format}), said)
            for format, said in (
                ("int9", "mine.json: format: there is no such row format"),
                (5, "mine.json: format: there is no such row format. Found: 5."),
                (["int8"], "mine.json: format: there is no such row format"),
                ("", "mine.json: format: there is no such row format"),
            )
        ),
        ("{", "cannot be read"),
        (None, "file is missing"),
    ],
)
def test_a_wrong_allocation_is_refused(
    prepared: Any, recsys: Callable[..., Any], tmp_path: Path, content: str | None, said: str
) -> None:
    file = tmp_path / "mine.json"
    if content is not None:
        file.write_text(content)
    outcome = recsys("train", prepared.config, f"allocation={file}")
    assert outcome.code == 2
    assert said in outcome.err
    assert not (prepared.folder / "work" / "small" / "runs").exists()
