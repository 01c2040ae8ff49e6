"""`recsys off-policy`: a policy is judged on a log whose truth is known, and what is wrong with a log is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from recsys.evaluation.off_policy import epsilon_greedy_slate, logits, softmax
from recsys.serving.registry import Registry
from recsys.serving.scorer import Scorer
from tests.integration.conftest import World, events

ITEMS = 40
COLUMNS = ("--action", "item", "--propensity", "chance")


def logged(rows: int = 2000, seed: int = 1) -> pl.DataFrame:
    """Events in which each item was as likely as another, shown at one of three positions that change nothing."""
    rng = np.random.default_rng(seed)
    return events(rows, seed).with_columns(chance=pl.lit(1 / ITEMS), position=pl.Series(rng.integers(1, 4, rows)))


def true_clicks(log: pl.DataFrame, items: list[str]) -> np.ndarray:
    """[N, K]: the chance of a click on every item, from that on the one that was shown."""

    def effect(names: list[str]) -> np.ndarray:
        return np.cos(np.array([int(name.removeprefix("item-")) for name in names]) * 2.3) * 1.5

    shown = logits(log["p_true"].to_numpy()) - effect(log["item"].to_list())
    return 1 / (1 + np.exp(-(shown[:, None] + effect(items)[None, :])))


def model_clicks(folder: Path, log: pl.DataFrame, items: list[str]) -> np.ndarray:
    """[N, K]: what the model says, item by item."""
    scorer = Scorer.load(folder)
    return np.stack([scorer.score(log.with_columns(item=pl.lit(item)))[:, 0] for item in items], axis=1)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    logged().write_parquet(tmp_path / "log.parquet")
    return tmp_path / "log.parquet"


def lines(estimates: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {line["estimator"]: line for line in estimates}


def test_the_truth_is_in_the_intervals(
    recsys: Callable[..., Any], in_trained: World, log: Path, tmp_path: Path
) -> None:
    run = in_trained.folder / "work" / "small" / "runs" / "0001"
    outcome = recsys(
        *("off-policy", run, log, *COLUMNS, "--temperature", "0.5", "--out", tmp_path / "out.json", "--json")
    )
    assert outcome.code == 0, outcome.err
    result = outcome.json
    frame = pl.read_parquet(log)
    items = sorted(frame["item"].unique())
    guesses = model_clicks(run / "bundle", frame, items)
    policy = softmax(logits(guesses), 0.5)
    truth = (policy * true_clicks(frame, items)).sum(1).mean()
    found = lines(result["estimates"])
    assert found["dm"]["value"] == pytest.approx((policy * guesses).sum(1).mean(), abs=1e-6)
    assert found["logged"]["value"] == pytest.approx(frame["click"].mean())
    shown = policy[np.arange(len(frame)), [items.index(item) for item in frame["item"]]]
    assert found["ips"]["value"] == pytest.approx((shown * ITEMS * frame["click"].to_numpy()).mean(), abs=1e-6)
    for name in ("ips", "snips", "dr", "switch-dr"):
        assert found[name]["interval"]["low"] < truth < found[name]["interval"]["high"], name
    # The model learned something of the items: its policy is better than showing all alike.
    assert truth > frame["p_true"].mean() + 0.02
    assert found["snips"]["gain_interval"]["low"] > 0
    assert result["actions"] == ITEMS
    assert result["candidate_columns"] == ["item"]
    assert any("the reward model is the model as it is" in text for text in result["warnings"])
    assert json.loads((tmp_path / "out.json").read_text()) == result
    assert "effective sample size" in outcome.err
    assert in_trained.leftovers() == []


def test_slates_of_three(recsys: Callable[..., Any], in_trained: World, log: Path, tmp_path: Path) -> None:
    run = in_trained.folder / "work" / "small" / "runs" / "0001"
    outcome = recsys(
        *("off-policy", run, log, *COLUMNS, "--slate", "--policy", "epsilon-greedy", "--epsilon", "0.3"),
        *("--out", tmp_path / "out.json", "--json"),
    )
    assert outcome.code == 0, outcome.err
    result = outcome.json
    assert result["positions"] == [1, 2, 3]
    frame = pl.read_parquet(log)
    items = sorted(frame["item"].unique())
    slate = epsilon_greedy_slate(logits(model_clicks(run / "bundle", frame, items)), 0.3, 3)
    shown = slate[np.arange(len(frame)), [items.index(item) for item in frame["item"]], frame["position"] - 1]
    brought = shown * ITEMS * frame["click"].to_numpy()
    by_position = [brought[frame["position"].to_numpy() == place].mean() for place in (1, 2, 3)]
    found = lines(result["slate"])["ips"]
    assert found["value"] == pytest.approx(sum(by_position), abs=1e-6)
    assert [lines(one)["ips"]["value"] for one in result["by_position"]] == pytest.approx(by_position, abs=1e-6)
    truth = (slate * true_clicks(frame, items)[:, :, None]).sum(1).mean(0).sum()
    assert found["interval"]["low"] < truth < found["interval"]["high"]


def test_cross_fitting_judges_rows_that_the_reward_model_has_not_seen(
    recsys: Callable[..., Any], in_trained: World, log: Path, tmp_path: Path
) -> None:
    run = in_trained.folder / "work" / "small" / "runs" / "0001"
    call = ("off-policy", run, log, *COLUMNS, "--position", "", "--out", tmp_path / "out.json", "--json")
    plain, fitted = recsys(*call), recsys(*call, "--folds", "2")
    assert fitted.code == 0, fitted.err
    before, after = lines(plain.json["estimates"]), lines(fitted.json["estimates"])
    # The policy stays that of the model; what it is expected to earn is said by others.
    assert after["ips"] == before["ips"]
    assert after["dm"]["value"] != pytest.approx(before["dm"]["value"], abs=1e-4)
    assert fitted.json["folds"] == 2
    assert not any("as it is" in text for text in fitted.json["warnings"])
    assert plain.json["positions"] == []
    refused = recsys("off-policy", run / "bundle", log, *COLUMNS, "--folds", "2")
    assert refused.code == 2
    assert "--folds: cross-fitting trains the reward model anew, which needs the config of its run" in refused.err


def test_columns_that_follow_the_action_move_with_it(
    recsys: Callable[..., Any], in_trained: World, log: Path, tmp_path: Path
) -> None:
    # `city` becomes a property of the item.
    frame = logged().with_columns(city=pl.format("c{}", pl.col("item").str.slice(5).cast(pl.Int64) % 5))
    frame.write_parquet(log)
    run = in_trained.folder / "work" / "small" / "runs" / "0001"
    call = ("off-policy", run, log, *COLUMNS, "--out", tmp_path / "out.json", "--json")
    found = recsys(*call)
    assert found.code == 0, found.err
    assert found.json["candidate_columns"] == ["item", "city"]
    frame.select("item", "city").unique().write_csv(tmp_path / "items.csv")
    named = recsys(*call, "--candidates", tmp_path / "items.csv")
    assert named.code == 0, named.err
    assert named.json["estimates"] == found.json["estimates"]
    pl.read_csv(tmp_path / "items.csv").with_columns(city=pl.lit("c1")).write_csv(tmp_path / "other.csv")
    other = recsys(*call, "--candidates", tmp_path / "other.csv")
    assert lines(other.json["estimates"])["dm"] != lines(found.json["estimates"])["dm"]


def test_the_registry_and_its_run(recsys: Callable[..., Any], in_trained: World, log: Path, tmp_path: Path) -> None:
    outcome = recsys(
        *("off-policy", "models:/small@challenger", log, *COLUMNS, "--track"),
        *("--out", tmp_path / "off_policy.json", "--json"),
    )
    assert outcome.code == 0, outcome.err
    registry = Registry(f"sqlite:///{in_trained.folder / 'work' / 'mlflow.db'}")
    run = registry._client.get_run(outcome.json["mlflow_run_id"])
    assert run.data.metrics["off-policy/ips"] == lines(outcome.json["estimates"])["ips"]["value"]
    assert "off_policy.json" in [file.path for file in registry._client.list_artifacts(run.info.run_id)]


def test_bad_logs_are_refused_or_counted(
    recsys: Callable[..., Any], in_trained: World, log: Path, tmp_path: Path
) -> None:
    run = in_trained.folder / "work" / "small" / "runs" / "0001"
    good, out = logged(500), ("--out", tmp_path / "out.json")
    row = pl.int_range(pl.len())
    bad = good.with_columns(
        chance=pl.when(row == 3).then(0.0).when(row == 4).then(1.5).when(row == 5).then(None).otherwise("chance"),
        click=pl.when(row == 6).then(None).otherwise("click"),
        item=pl.when(row == 7).then(None).otherwise("item"),
    )
    for frame, arguments, words in (
        (bad, (), "chance: propensity is missing in 1 of 500 rows (and 4 more kinds of bad rows)"),
        (good.with_columns(chance=pl.lit(0.0)), ("--skip-bad",), "propensity is not above 0 in 500 of 500 rows"),
        (good.with_columns(click=pl.lit(3)), (), "click: reward is out of range in 500 of 500 rows. Found: 3.0"),
        (good.drop("chance"), (), "chance"),
        (good.drop("user"), (), "user: column is missing"),
        (good.head(0), (), "there is no row"),
        (good, ("--position", "place"), "place"),
        (good, ("--group", "city"), "city: rows have no group"),
        (good, ("--clip", "0"), "clip: a weight is above 0"),
        (good, ("--temperature", "0"), "temperature: the temperature is not above 0"),
        (good.with_columns(item=pl.lit("item-1")), (), "one action leaves nothing to choose"),
    ):
        frame.write_parquet(log)
        outcome = recsys("off-policy", run, log, *COLUMNS, *out, *arguments)
        assert outcome.code == 2, (words, outcome.out)
        assert words in outcome.err
    good.write_parquet(log)
    for arguments, words in (
        ((run / "bundle", log, "--track"), "--track: the model has no MLflow run to log to"),
        (("models:/smal@challenger", log), "did you mean 'small'?"),
        ((tmp_path, log), "is no model bundle"),
    ):
        outcome = recsys("off-policy", *arguments, *COLUMNS, *out)
        assert outcome.code == 2, outcome.out
        assert words in outcome.err
    assert not (tmp_path / "out.json").exists()
    bad.write_parquet(log)
    outcome = recsys("off-policy", run, log, *COLUMNS, *out, "--skip-bad", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["rows"] == 495
    assert outcome.json["excluded"] == {
        "propensity is missing": 1,
        "propensity is not above 0": 1,
        "propensity is above 1": 1,
        "reward is missing": 1,
        "action is out of range": 1,
    }
    assert any("5 rows were left out" in text for text in outcome.json["warnings"])
