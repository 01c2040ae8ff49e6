"""`recsys compare`: the same rows for all models, what may be claimed, slices with names, a page, MLflow."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from features.errors import DataError
from pipelines.compare import _check_same
from recsys.evaluation.metrics import auc
from recsys.serving.registry import Registry
from recsys.serving.scorer import Scorer
from recsys.training import Predictions
from tests.integration.conftest import inside
from tests.integration.conftest import recsys as command

Recsys = Callable[..., Any]
RUN = Path("work/small/runs/0001")


@pytest.fixture(scope="module")
def weak(trained: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained model with its rows in 2 bits, beside the world."""
    out = tmp_path_factory.mktemp("weak") / "weak"
    with inside(trained[0].folder):
        converted = command("convert", RUN, "--format", "int2", "--out", out)
    assert converted.code == 0, converted.err
    return out


def test_raw_rows_give_differences_slices_with_names_and_a_page(
    in_trained: Any, weak: Path, recsys: Recsys, tmp_path: Path
) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    Registry(uri)
    outcome = recsys(
        "compare", RUN, weak, in_trained.events, "--html", tmp_path / "page.html", "--min-rows", "50",
        "--resamples", "100", "--effect", "0.001", "--tracking-uri", uri, "--json",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    result = outcome.json
    rows = pl.read_parquet(in_trained.events)
    labels = rows["click"].to_numpy()
    for name, folder in (("0001", RUN / "bundle"), ("weak", weak)):
        assert result["models"][name]["auc"] == pytest.approx(auc(labels, Scorer.load(folder).score(rows)[:, 0]))
    assert (result["rows"], result["by"], result["units"], result["label"]) == (3000, "group", 60, "click")
    by_metric = {d["metric"]: d for d in result["differences"]}
    assert set(by_metric) == {"auc", "logloss", "normalised_entropy", "miscalibration", "gauc"}
    change = result["models"]["0001"]["logloss"] - result["models"]["weak"]["logloss"]
    assert by_metric["logloss"]["difference"] == change
    assert by_metric["logloss"]["low"] < change < by_metric["logloss"]["high"]
    assert [entry["metric"] for entry in result["rows_needed"]] == list(by_metric)
    names = {entry["name"] for entry in result["slices"]}
    assert {"item = item-3", "city = c1", "city = missing", "hour = 7", "tags = t3", "price: range 2 of 5"} <= names
    listed = next(entry for entry in result["slices"] if entry["name"] == "tags = t3")
    assert listed["rows"] == rows["tags"].list.contains("t3").sum()
    assert result["slices_left_out"]["few rows"] > 0
    assert result["verdicts"][0] in outcome.err
    page = (tmp_path / "page.html").read_text()
    assert page.count("<svg") == 0
    assert page.count("data:image/svg+xml") == 8
    assert "item = item-" in page
    assert "What may be claimed" in page
    client = Registry(uri)._client
    run = client.get_run(result["mlflow_run_id"])
    assert run.data.metrics["logloss/0001 minus weak/difference"] == by_metric["logloss"]["difference"]
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {"comparison.html", "comparison.json"}


def test_three_models_on_prepared_data_and_nothing_is_logged_without_a_store(
    in_trained: Any, weak: Path, recsys: Recsys, tmp_path: Path
) -> None:
    arguments = ("compare", RUN / "bundle", weak, "models:/small@challenger", in_trained.store)
    apart = recsys(*arguments, "--workspace", tmp_path, "--json")
    assert apart.code == 2  # the registry is elsewhere
    outcome = recsys(
        "compare", RUN / "bundle", weak, RUN, in_trained.store,
        "--workspace", tmp_path, "--by", "row", "--min-rows", "40", "--json",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    result = outcome.json
    assert result["mlflow_run_id"] is None
    assert list(result["models"]) == ["bundle", "weak", "0001"]
    assert (result["by"], result["data"].startswith("test split of")) == ("row", True)
    same = [d for d in result["differences"] if (d["a"], d["b"]) == ("bundle", "0001")]
    assert {d["metric"] for d in same} == {"auc", "logloss", "normalised_entropy", "miscalibration"}
    assert all(d["difference"] == 0 and d["better"] is None for d in same)
    assert "bundle and 0001: equal in every metric" in result["verdicts"]
    assert list(tmp_path.iterdir()) == []


def test_plain_output_says_what_cannot_be_claimed(in_trained: Any, recsys: Recsys, tmp_path: Path) -> None:
    outcome = recsys("compare", RUN, RUN / "bundle", in_trained.store, "--workspace", tmp_path, "--resamples", "20")
    assert outcome.code == 0, outcome.err
    assert "0001 and bundle: equal in every metric" in outcome.out
    assert "left out:" in outcome.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((RUN, "DATA"), "needs two models and rows"),
        ((RUN, RUN, "DATA"), "a model is named twice"),
        ((RUN, "nowhere", "DATA"), "nowhere: is no model bundle"),
        ((RUN, RUN / "bundle", "nowhere.parquet"), "nowhere.parquet"),
        ((RUN, "models:/smal@x", "DATA"), "did you mean 'small'?"),
        ((RUN, RUN / "bundle", "DATA", "--split", "tset"), "tset"),
    ],
)
def test_what_cannot_be_compared(in_trained: Any, recsys: Recsys, arguments: tuple[Any, ...], words: str) -> None:
    outcome = recsys("compare", *(in_trained.store if a == "DATA" else a for a in arguments))
    assert outcome.code == 2
    assert words in outcome.err


def test_by_and_effect_are_checked(in_trained: Any, recsys: Recsys) -> None:
    for option in (("--by", "user"), ("--effect", "0")):
        assert recsys("compare", RUN, RUN / "bundle", in_trained.store, *option).code == 2


def predictions(rows: int = 4, **changes: Any) -> Predictions:
    values: dict[str, Any] = {
        "probabilities": np.full((rows, 1), 0.5),
        "labels": np.ones((rows, 1), dtype=np.float32),
        "weight": None,
        "group": np.arange(rows),
        "reference": None,
    }
    return Predictions(**(values | changes))


@pytest.mark.parametrize(
    ("other", "label", "by", "words"),
    [
        (predictions(5), "click", None, "b: the models see other rows. Found: 5 rows. Expected: 4, as a has"),
        (predictions(labels=np.zeros((4, 1))), "click", None, "see other labels. Found: 4 that differ"),
        (predictions(), "buy", None, "predict other labels. Found: buy. Expected: click, as a has"),
        (predictions(weight=np.ones(4)), "click", None, "weigh the rows otherwise"),
        (predictions(group=np.zeros(4)), "click", None, "Mend: compare with --by row"),
        (predictions(group=None), "click", "row", None),
    ],
)
def test_models_must_see_the_same(other: Predictions, label: str, by: str | None, words: str | None) -> None:
    def check() -> None:
        _check_same(("a", predictions()), ("b", other), "click", label, by)

    if words is None:
        check()
        return
    with pytest.raises(DataError) as error:
        check()
    assert words in str(error.value)


def test_the_result_is_plain_json(in_trained: Any, recsys: Recsys, tmp_path: Path) -> None:
    outcome = recsys("compare", RUN, RUN / "bundle", in_trained.store, "--workspace", tmp_path, "--json")
    assert json.loads(outcome.out)["level"] == 0.05
