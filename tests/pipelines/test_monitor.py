"""The monitor job: logs that grow, a state to go on from, MLflow, the page, and files that are damaged."""

from __future__ import annotations

import datetime
import io
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from rich.console import Console as RichConsole
from typer.testing import CliRunner

from features.errors import ArtifactError, ConfigError, DataError
from pipelines.cli import app
from pipelines.console import Console
from pipelines.logs import LogReader, append
from pipelines.monitor import MonitorJob, _view, monitor, online_config
from pipelines.monitor_page import split_line
from recsys.serving.registry import Registry

START = datetime.datetime(2024, 1, 1)
OVERRIDES = ["window=1h", "max_delay=10m"]
HOURS, ROWS = 4, 300


def hour(number: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Predictions of an hour, and the labels of its clicks."""
    rng = np.random.default_rng(number)
    probability = rng.beta(2, 5, ROWS)
    time = [START + datetime.timedelta(hours=number, seconds=i * 3_600 / ROWS) for i in range(ROWS)]
    predictions = pl.DataFrame(
        {
            "request_id": [f"{number}-{i}" for i in range(ROWS)],
            "model": "clicks",
            "version": "3",
            "role": "champion",
            "probability": probability,
            "time": time,
        }
    )
    clicked = rng.random(ROWS) < probability
    labels = predictions.select("request_id", pl.lit(1).alias("label"), pl.col("time") + pl.duration(minutes=5))
    return predictions, labels.filter(pl.Series(clicked))


@pytest.fixture
def world(tmp_path: Path) -> Path:
    for number in range(HOURS):
        predictions, labels = hour(number)
        append(tmp_path / "predictions", predictions)
        append(tmp_path / "labels", labels)
    return tmp_path


def once(world: Path, out: str = "out", **options):
    return monitor(
        world / "predictions",
        world / "labels",
        Console(quiet=True),
        out=world / out,
        overrides=OVERRIDES,
        once=True,
        **options,
    )


def test_reads_what_is_new_and_goes_on_from_where_it_was(world):
    first = once(world)
    assert len(first["windows"]) == HOURS - 1
    assert first["waiting"]["predictions"] == ROWS
    predictions, labels = hour(HOURS)
    append(world / "predictions", predictions)
    append(world / "labels", labels)
    second = once(world, finish=True)
    assert second["predictions"]["read"] == (HOURS + 1) * ROWS
    whole = once(world, "another", finish=True)
    for result in (second, whole):
        del result["out"], result["html"]
    assert second == whole
    assert len(whole["windows"]) == HOURS + 1
    assert sorted(path.name for path in (world / "out").iterdir()) == ["monitor.html", "monitor.json", "state"]


def test_the_page_stands_alone_and_shows_models_and_counts(world):
    result = once(world)
    page = Path(result["html"]).read_text()
    assert "champion clicks 3" in page
    assert "orphan" in page
    assert page.count("data:image/svg+xml") >= 8
    assert "http://" not in page.replace("http://www.w3.org", "")
    saved = json.loads((world / "out" / "monitor.json").read_text())
    assert saved["totals"][0]["rows"] == (HOURS - 1) * ROWS


def test_mlflow_has_a_series_of_every_metric_in_one_run_over_several_calls(world):
    uri = f"sqlite:///{world / 'mlflow.db'}"
    run_id = once(world, tracking_uri=uri, experiment="clicks")["mlflow_run_id"]
    for part, log in zip(hour(HOURS), ("predictions", "labels"), strict=True):
        append(world / log, part)
    result = once(world, tracking_uri=uri, experiment="clicks")
    assert result["mlflow_run_id"] == run_id
    history = Registry(uri)._client.get_metric_history(run_id, "champion/clicks/3/auc")
    assert [point.value for point in history] == [row["auc"] for row in result["windows"]]
    steps = [point.step for point in history]
    assert steps == list(range(steps[0], steps[0] + HOURS))


def beside(number: int, *, role: str) -> pl.DataFrame:
    """An hour as `hour` has it, with a shadow of every request, or with a challenger that answers every other one."""
    rows, _ = hour(number)
    other = rows.with_columns(version=pl.lit("4"), role=pl.lit(role))
    if role == "shadow":
        return pl.concat([rows, other]).sort("time", maintain_order=True)
    return pl.concat([rows[::2], other[1::2]]).sort("time", maintain_order=True)


@pytest.mark.parametrize(
    ("role", "of", "hours"), [("shadow", "logloss", [0, 1, 2, 3]), ("challenger", "label_rate", [1, 2])]
)
def test_mlflow_has_a_series_of_every_difference_with_its_interval(tmp_path, role, of, hours):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    for numbers in ((0, 1), (2, 3, 4)):
        for number in numbers:
            append(tmp_path / "predictions", beside(number, role=role))
            append(tmp_path / "labels", hour(number)[1])
        result = monitor(
            tmp_path / "predictions",
            tmp_path / "labels",
            Console(quiet=True),
            out=tmp_path / "out",
            overrides=[*OVERRIDES, "challenger.share=0.5"],
            once=True,
            tracking_uri=uri,
        )
    client, first = Registry(uri)._client, int(START.replace(tzinfo=datetime.UTC).timestamp()) // 3_600
    for suffix, end in (("", "mean"), ("_low", "low"), ("_high", "high")):
        name = f"{role}/clicks/4/{of}_less_champion{suffix}"
        history = client.get_metric_history(result["mlflow_run_id"], name)
        assert [(point.step - first, point.value) for point in history] == [
            (number, look[end]) for number, look in zip(hours, result["looks"], strict=True)
        ]


def test_split_traffic_is_shown_with_what_can_be_said_of_it(tmp_path):
    for number in range(5):
        append(tmp_path / "predictions", beside(number, role="challenger"))
        append(tmp_path / "labels", hour(number)[1])
    logs = tmp_path / "predictions", tmp_path / "labels"
    shown = []
    for share in ("0.5", "0.3", "null"):
        overrides = [*OVERRIDES, f"challenger.share={share}"]
        result = monitor(*logs, Console(quiet=True), out=tmp_path / share, overrides=overrides, once=True)
        text = io.StringIO()
        RichConsole(file=text, width=240).print(_view(result, None))
        page = Path(result["html"]).read_text()
        assert "Split traffic, at any time" in page
        assert "split traffic: clicks 4 and its champion clicks 3" in text.getvalue()
        (row,) = json.loads((tmp_path / share / "monitor.json").read_text())["split"]
        assert [arm["requests"] for arm in row["arms"]] == [2 * ROWS, 2 * ROWS]
        assert split_line(row) in text.getvalue().replace("\n", " ")
        assert row["said"].replace("'", "&#x27;") in page
        shown.append(row["said"])
    assert shown[0] == "no difference can be claimed yet"
    assert shown[1].startswith("the challenger answered 50.00% of the requests and not 30.00% as declared")
    assert "give challenger.share" in shown[2]


def test_a_damaged_file_is_an_error_and_nothing_is_lost_once_it_is_mended(world):
    whole = once(world, "whole", finish=True)
    files = LogReader(world / "labels").files()
    damaged = list(files.values())[1]
    content = damaged.read_bytes()
    damaged.write_bytes(content[: len(content) // 2])
    job = MonitorJob(world / "predictions", world / "labels", world / "out", online_config(OVERRIDES))
    with pytest.raises(DataError, match=f"{damaged.name}: the file cannot be read"):
        job.poll()
    job.save()
    damaged.write_bytes(content)
    result = once(world, finish=True)
    assert result["labels"] == whole["labels"]
    assert result["windows"] == whole["windows"]


def test_a_file_that_changed_after_it_was_read_is_refused(world):
    once(world)
    path = next(iter(LogReader(world / "labels").files().values()))
    hour(9)[1].write_parquet(path)
    with pytest.raises(ArtifactError, match="file has changed since it was read"):
        once(world)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"overrides": ["window=2h"]}, ArtifactError, "window: state of another config"),
        ({"labels": "predictions"}, ArtifactError, "state of another log of labels"),
        ({"labels": "nowhere"}, DataError, "no such log"),
        ({"overrides": ["windows=2h"]}, ConfigError, "did you mean 'window'"),
        ({"once": False, "finish": True}, ConfigError, "--finish"),
    ],
)
def test_what_does_not_go_together_is_refused(world, change, error, message):
    once(world)
    given = {"predictions": "predictions", "labels": "labels", "overrides": OVERRIDES, "once": True, **change}
    paths = [world / given.pop(name) for name in ("predictions", "labels")]
    with pytest.raises(error, match=message):
        monitor(*paths, Console(quiet=True), out=world / "out", **given)


def test_a_reference_of_scores_is_what_the_first_window_is_held_against(world):
    rng = np.random.default_rng(0)
    pl.DataFrame({"p_click": rng.beta(5, 2, 5_000)}).write_parquet(world / "scores.parquet")
    result = once(world, reference=str(world / "scores.parquet"))
    assert [(alarm["window"], alarm["signal"]) for alarm in result["alarms"]] == [("2024-01-01 00:00:00", "prediction")]


def test_the_verb_ends_with_one_json_object(world):
    arguments = ["monitor", str(world / "predictions"), str(world / "labels"), *OVERRIDES, "--once", "--json"]
    outcome = CliRunner().invoke(app, [*arguments, "--out", str(world / "out")])
    assert outcome.exit_code == 0
    assert json.loads(outcome.stdout.splitlines()[-1])["totals"][0]["role"] == "champion"
    outcome = CliRunner().invoke(app, ["monitor", str(world / "nowhere"), str(world / "labels"), "--once"])
    assert outcome.exit_code == 2


def test_the_live_view_shows_totals_windows_and_trouble(world):
    text = io.StringIO()
    RichConsole(file=text, width=200).print(_view(once(world), "labels/9.parquet: the file cannot be read"))
    shown = text.getvalue()
    assert "waiting: 300 predictions, 0 labels" in shown
    assert shown.count("champion") == 1 + HOURS - 1
    assert "trouble: labels/9.parquet" in shown


def test_a_log_that_is_a_file_takes_no_rows(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("")
    with pytest.raises(ArtifactError, match="cannot be written"):
        append(tmp_path / "log", pl.DataFrame({"request_id": [1]}))
