"""Rows that no figure may be made of quietly: by the commands that evaluate, with files as they lie on disks."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipelines.logs import append

Recsys = Callable[..., Any]
RUN = Path("work/small/runs/0001")
START = datetime.datetime(2024, 1, 1)


def evaluated(recsys: Recsys, world: Any, rows: pl.DataFrame, folder: Path) -> Any:
    rows.write_parquet(folder / "rows.parquet")
    return recsys("evaluate", RUN, folder / "rows.parquet", "--out", folder / "report", "--json")


@pytest.mark.parametrize("click", [0, 1])
def test_rows_of_one_class_have_what_exists_and_say_why_the_rest_does_not(
    in_trained: Any, recsys: Recsys, tmp_path: Path, click: int
) -> None:
    rows = pl.read_parquet(in_trained.events).head(300).with_columns(click=pl.lit(click))
    outcome = evaluated(recsys, in_trained, rows, tmp_path)
    assert outcome.code == 0, outcome.err
    metrics = outcome.json["metrics"]
    missing = {"auc", "normalised_entropy", "gauc"} | ({"pr_auc", "calibration_ratio"} if click == 0 else set())
    assert set(metrics["undefined"]) == missing
    assert all(metrics[name] is None for name in missing)
    assert missing.isdisjoint(outcome.json["intervals"])
    assert metrics["logloss"] > 0
    assert "auc of click is undefined: none of 300 rows is" in outcome.err


def test_rows_that_are_all_the_same_have_an_auc_of_one_half(in_trained: Any, recsys: Recsys, tmp_path: Path) -> None:
    row = pl.read_parquet(in_trained.events).head(1)
    rows = pl.concat([row] * 400).with_columns(click=pl.Series(np.arange(400) % 2))
    outcome = evaluated(recsys, in_trained, rows, tmp_path)
    assert outcome.code == 0, outcome.err
    found = outcome.json
    assert found["metrics"]["auc"] == found["metrics"]["gauc"] == 0.5
    # one user alone: nothing is known of how users differ
    assert set(found["intervals"]) == {"ece"}
    assert found["metrics"]["ece"] == pytest.approx(abs(found["metrics"]["calibration_ratio"] - 1) / 2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"click": pl.lit(2)}, ("click",)),
        ({"click": pl.lit(None, dtype=pl.Int64)}, ("click",)),
        ({"p_true": pl.lit(1.5)}, ("p_true", "0 to 1")),
        ({"p_true": pl.lit(float("nan"))}, ("p_true",)),
    ],
)
def test_labels_and_references_that_are_none_are_refused(
    in_trained: Any, recsys: Recsys, tmp_path: Path, change: dict[str, pl.Expr], words: tuple[str, ...]
) -> None:
    some = pl.int_range(pl.len()) % 50 == 7
    rows = pl.read_parquet(in_trained.events).head(300)
    rows = rows.with_columns(
        pl.when(some).then(value).otherwise(pl.col(name)).alias(name) for name, value in change.items()
    )
    outcome = evaluated(recsys, in_trained, rows, tmp_path)
    assert outcome.code == 2
    assert all(word in outcome.err for word in words), outcome.err
    assert "Traceback" not in outcome.err
    assert not (tmp_path / "report").exists()
    compared = recsys("compare", RUN, RUN / "bundle", tmp_path / "rows.parquet", "--workspace", tmp_path)
    assert compared.code == 2
    assert words[0] in compared.err


def test_models_are_not_compared_on_data_that_one_of_them_does_not_know(
    in_trained: Any, recsys: Recsys, tmp_path: Path
) -> None:
    rows = pl.read_parquet(in_trained.events).drop("item")
    rows.write_parquet(tmp_path / "rows.parquet")
    outcome = recsys("compare", RUN, RUN / "bundle", tmp_path / "rows.parquet", "--workspace", tmp_path)
    assert outcome.code == 2
    assert "item" in outcome.err


def logs(folder: Path, predictions: pl.DataFrame, labels: pl.DataFrame) -> list[Any]:
    append(folder / "predictions", predictions)
    append(folder / "labels", labels)
    return [
        "monitor", folder / "predictions", folder / "labels", "window=1h", "max_delay=10m", "lateness=2m",
        "--once", "--finish", "--out", folder / "out", "--json",
    ]  # fmt: skip


def requests(count: int = 600) -> pl.DataFrame:
    """Ten minutes of a champion's predictions, a second apart."""
    return pl.DataFrame(
        {
            "request_id": [f"r{i}" for i in range(count)],
            "model": "clicks",
            "version": "1",
            "role": "champion",
            "probability": np.random.default_rng(0).beta(2, 5, count),
            "time": [START + datetime.timedelta(seconds=i) for i in range(count)],
        }
    )


def clicks(of: pl.DataFrame, after: float = 60.0) -> pl.DataFrame:
    """A label of 1 for every third request."""
    delay = datetime.timedelta(seconds=after)
    return of[::3].select("request_id", pl.lit(1.0).alias("label"), pl.col("time") + delay)


def test_a_log_with_every_fault_counts_each_and_measures_the_rest(recsys: Recsys, tmp_path: Path) -> None:
    good = requests()
    wrong = [1, 31, 61, 91]
    scores = dict(zip(wrong, (float("nan"), -0.1, 1.5, None), strict=True))
    place = pl.int_range(pl.len())
    faulty = good.with_columns(
        probability=place.replace_strict(scores, default=None, return_dtype=pl.Float64).fill_null(
            pl.when(place == 91).then(None).otherwise(pl.col("probability"))
        ),
        time=pl.when(place == 121).then(pl.col("time") + pl.duration(days=40)).otherwise(pl.col("time")),
    )
    twice = good[150:160]
    early = clicks(good[::100], after=-90)
    strange = good[9:10].select("request_id", pl.lit(float("nan")).alias("label"), "time")
    again = clicks(good)[10:15].with_columns(label=pl.lit(0.0))
    unknown = pl.DataFrame({"request_id": ["x"], "label": [1.0], "time": [START + datetime.timedelta(minutes=5)]})
    right = clicks(good).filter(~pl.col("request_id").is_in(early["request_id"].implode()))
    labels = pl.concat([early, right, again, strange, unknown]).sort("time", maintain_order=True)
    outcome = recsys(*logs(tmp_path, pl.concat([faulty, twice]).sort("time", maintain_order=True), labels))
    assert outcome.code == 0, outcome.err
    found = outcome.json
    assert found["predictions"] == {
        "read": 610,
        "accepted": 595,
        "late": 0,
        "jumped": 1,
        "duplicate": 10,
        "probability not between 0 and 1": 4,
    }
    assert (found["labels"]["duplicate"], found["labels"]["contradicting"]) == (5, 5)
    assert (found["labels"]["early"], found["labels"]["label neither 0 nor 1"]) == (2, 1)
    assert found["labels"]["orphan"] == 1
    counted = sum(count for name, count in found["labels"].items() if name not in ("read", "contradicting"))
    assert counted == found["labels"]["read"]
    (total,) = found["totals"]
    assert total["rows"] == 595
    page = (tmp_path / "out" / "monitor.html").read_text()
    assert "probability not between 0 and 1" in page
    assert "jumped" in page


@pytest.mark.parametrize("probability", [0.2, None])
def test_windows_without_a_click_or_of_one_score_are_measured_as_far_as_they_can_be(
    recsys: Recsys, tmp_path: Path, probability: float | None
) -> None:
    predictions = requests()
    if probability is None:  # no clicks
        labels = clicks(predictions).with_columns(label=pl.lit(0.0))
    else:
        predictions, labels = predictions.with_columns(probability=probability), clicks(predictions)
    outcome = recsys(*logs(tmp_path, predictions, labels))
    assert outcome.code == 0, outcome.err
    (row,) = outcome.json["windows"]
    assert row["auc"] == (None if probability is None else 0.5)
    assert (row["calibration_ratio"] is None) == (probability is None)
    assert row["logloss"] > 0
    saved = json.loads((tmp_path / "out" / "monitor.json").read_text(), parse_constant=pytest.fail)
    assert saved["windows"][0] == row


def test_a_log_without_a_column_or_with_a_time_of_text_is_refused(recsys: Recsys, tmp_path: Path) -> None:
    good = requests(60)
    cases = (
        (good.drop("probability"), "probability"),
        (good.with_columns(pl.col("time").cast(pl.String)), "the time of the prediction log is no time"),
        (good.with_columns(request_id=pl.lit(0.5)), "request_id"),
    )
    for number, (predictions, words) in enumerate(cases):
        outcome = recsys(*logs(tmp_path / str(number), predictions, clicks(good)))
        assert outcome.code == 2
        assert words in outcome.err
        assert not (tmp_path / str(number) / "out").exists()
