"""`recsys monitor` as it is run: logs that grow, a damaged file, Ctrl-C; and its page as a browser shows it."""

from __future__ import annotations

import datetime
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipelines.console import Console
from pipelines.logs import append
from pipelines.monitor import monitor
from recsys.serving.server.shares import in_share
from tests.integration.test_report_in_browser import CHROMIUM, browser, looked_at  # noqa: F401

START = datetime.datetime(2024, 1, 1)
OVERRIDES = ["window=1h", "max_delay=10m", "lateness=1m"]
ROWS = 400


SHARE = 0.4


def hour(number: int, *, split: bool = False) -> tuple[pl.DataFrame, pl.DataFrame]:
    """An hour of a champion and of a shadow that sees more, and the labels of the clicks; if `split`, a challenger
    answers its share of the requests, dealt as the server does it."""
    rng = np.random.default_rng(number)
    odds = rng.normal(-1, 1.5, ROWS)
    clicked = rng.random(ROWS) < 1 / (1 + np.exp(-odds))
    requests = pl.DataFrame(
        {
            "request_id": [f"{number}-{i}" for i in range(ROWS)],
            "time": [START + datetime.timedelta(hours=number, seconds=9 * i) for i in range(ROWS)],
            "price": rng.gamma(2, 10, ROWS) + (15 if number >= 4 else 0),
        }
    )
    scored = [
        requests.with_columns(
            model=pl.lit("clicks"),
            version=pl.lit(version),
            role=pl.lit(role),
            probability=1 / (1 + np.exp(-odds + error)),
        )
        for role, version, error in (("champion", "3", rng.normal(0, 1, ROWS)), ("shadow", "4", np.zeros(ROWS)))
    ]
    labels = requests.select("request_id", pl.lit(1).alias("label"), pl.col("time") + pl.duration(minutes=5))
    if split:
        went = pl.Series([in_share(request, SHARE, seed=1) for request in requests["request_id"]])
        answered = scored[0].filter(went).with_columns(version=pl.lit("5"), role=pl.lit("challenger"))
        scored = [*(frame.filter(~went) for frame in scored), answered]
    return pl.concat(scored).sort("time", maintain_order=True), labels.filter(pl.Series(clicked))


def grow(world: Path, number: int, *, split: bool = False) -> None:
    for log, rows in zip(("predictions", "labels"), hour(number, split=split), strict=True):
        append(world / log, rows)


def read_until(process: subprocess.Popen[str], words: str) -> list[str]:
    """Lines that the process wrote, up to the one that holds the words."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if words in line:
            return lines
    raise AssertionError(f"it ended without {words!r}: {''.join(lines)}{process.stderr and process.stderr.read()}")


def test_it_follows_growing_logs_through_a_damaged_file_until_it_is_interrupted(tmp_path: Path) -> None:
    for number in range(2):
        grow(tmp_path, number)
    # MLflow puts the store in use into the environment of this process
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    command = [sys.executable, "-m", "pipelines.cli", "monitor", "predictions", "labels", *OVERRIDES]
    process = subprocess.Popen(
        [*command, "--every", "0.1", "--out", "out"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        lines = read_until(process, "2024-01-01 00:00:00 shadow clicks 4: rows 400, auc")
        assert "2024-01-01 00:00:00 champion clicks 3: rows 400" in lines[-2]
        grow(tmp_path, 2)
        read_until(process, "2024-01-01 01:00:00 shadow")
        broken = tmp_path / "labels" / "9.parquet"
        broken.write_bytes(b"PAR1")
        said = read_until(process, "trouble:")
        assert "9.parquet: the file cannot be read" in said[-1]
        broken.unlink()
        read_until(process, "the trouble is over")
        grow(tmp_path, 3)
        # each window and each trouble is told once
        assert len(read_until(process, "2024-01-01 02:00:00 shadow")) == 2
        process.send_signal(signal.SIGINT)
        rest, trouble = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, trouble
    assert rest.splitlines()[-1] == f"stopped; the next call goes on from {Path('out/state')}"
    saved = json.loads((tmp_path / "out" / "monitor.json").read_text())
    assert [row["window"][11:13] for row in saved["windows"]] == ["00", "00", "01", "01", "02", "02"]
    assert not [path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]
    after = read_once(tmp_path, "out")
    whole = read_once(tmp_path, "whole")
    assert after == whole
    assert after["totals"][0]["rows"] == 4 * ROWS


def read_once(world: Path, out: str, *overrides: str) -> dict[str, Any]:
    found = monitor(
        world / "predictions",
        world / "labels",
        Console(quiet=True),
        out=world / out,
        overrides=[*OVERRIDES, *overrides],
        once=True,
        finish=True,
    )
    return {name: value for name, value in found.items() if name not in ("out", "html")}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page after six hours: a shadow, split traffic, and a price that moved."""
    world = tmp_path_factory.mktemp("monitored")
    for number in range(6):
        grow(world, number, split=True)
    found = read_once(world, "out", f"challenger.share={SHARE}")
    assert found["alarms"]
    assert found["anytime"][0]["verdict"] == "better"
    return world / "out" / "monitor.html"


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here (apt-get install chromium)")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
def test_the_page_is_drawn_whole_and_fits(browser: Any, page: Path, tmp_path: Path, width: int, scheme: str) -> None:  # noqa: F811
    text = looked_at(browser, page, tmp_path, f"monitor-{width}-{scheme}", width, scheme, pictures=7)
    assert "Less the champion, at any time" in text
    assert "better" in text
    assert "challenger clicks 5 against clicks 3: no difference can be claimed yet. Label rate less" in text
