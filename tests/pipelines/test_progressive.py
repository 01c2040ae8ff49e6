"""The progressive job from a config to its page, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from features.errors import ConfigError
from pipelines.config import ExperimentConfig, config_from
from pipelines.console import Console
from pipelines.progressive import progressive
from recsys.serving.registry import Registry


def config(folder: Path, **change: Any) -> ExperimentConfig:
    data = {
        "name": "small",
        "workspace": str(folder),
        "data": {
            "recipe": "synthetic",
            "params": {"rows": 6_000, "days": 6},
            "split": {"kind": "time", "fractions": [0.5, 0.1, 0.4]},
        },
        "embedding": {"rows": 2_000, "width": 4},
        "model": {"hidden": [8]},
        "train": {"batch_size": 500, "threads": 1},
        **change,
    }
    return config_from(data)


def test_windows_of_time_are_predicted_before_they_are_learned(tmp_path: Path) -> None:
    result = progressive(config(tmp_path), Console(quiet=True), every="6h", delay="1h")
    windows = [row["window"] for row in result["differences"]]
    assert windows == sorted(windows)
    assert len(windows) in (10, 11)  # 2.4 days
    assert sum(row["rows"] for row in result["differences"]) == result["rows"]["test"] == 2_400
    # labels take an hour: a window is learned from when the one after the next begins
    learned = [row["learned"] for row in result["differences"]]
    assert learned[3] - learned[2] == result["differences"][1]["rows"]
    saved = json.loads(Path(result["json"]).read_text())
    assert saved["difference"] == result["difference"]
    assert "Learning less frozen" in Path(result["html"]).read_text()
    history = Registry(config(tmp_path).tracking_uri)._client.get_metric_history(
        result["mlflow_run_id"], "learning/logloss"
    )
    expected = [row["logloss"] for row in result["windows"] if row["model"] == "learning"]
    assert [point.value for point in sorted(history, key=lambda point: point.step)] == expected
    assert sorted(path.name for path in (tmp_path / "small" / "progressive").iterdir()) == [
        "progressive.html",
        "progressive.json",
    ]


def test_windows_of_rows(tmp_path: Path) -> None:
    untracked = config(tmp_path, tracking={"enabled": False})
    result = progressive(untracked, Console(quiet=True), rows=1_000, delay="500")
    assert [row["window"] for row in result["differences"]] == [0, 1_000, 2_000]
    # 600 rows of validation, known 500 rows after their end
    assert [row["learned"] for row in result["differences"]] == [0, 600, 1_600]
    assert result["mlflow_run_id"] is None


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"rows": 5, "every": "1d"}, "windows are of time or of rows"),
        ({}, {"rows": 5, "delay": "1h"}, "a delay in rows"),
        ({}, {"every": "1 day"}, "no length of time"),
        ({"train": {"warm_start": "models:/a@b"}}, {}, r"train\.warm_start: progressive validation trains"),
        ({"data": {"recipe": "synthetic", "split": {"kind": "random"}}}, {}, "only a split by time"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path: Path, change, options, message) -> None:
    with pytest.raises(ConfigError, match=message):
        progressive(config(tmp_path, **change), Console(quiet=True), **options)
