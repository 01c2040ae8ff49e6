"""What online evaluation sees, and what learning day by day is worth.

Alarms: prediction and label logs of the recipe `synthetic`, replayed through the monitor (clicks come up to half an
hour later, windows of a day). In 20 stationary replays nothing changes; in the others clicks, predictions or an input
change after the sixth of ten days. Progressive: on the Criteo sample in file order and on `synthetic` whose publishers
and ads are replaced over time, a model trained on the first part is held against the same model that goes on learning.
"""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.harness import ROOT, Bar, Outcome, Settings, main
from features.recipes import RECIPES
from pipelines.config import load_config
from pipelines.console import Console
from pipelines.progressive import progressive
from recsys.evaluation.online import Monitor, OnlineConfig

PARTS = ("alarms", "progressive")
START = datetime.datetime(2024, 1, 1)
"""The recipe's first day."""
DAYS, DRIFT_DAY, REPLAYS = 10, 6, 20
ROWS = 60_000
CONFIG = OnlineConfig(window="1d", max_delay="30m")
INPUTS = ("country", "device", "price", "age")
PLANTED: dict[str, Callable[[pl.DataFrame, np.ndarray, np.random.Generator], pl.DataFrame]] = {
    "calibration": lambda log, late, rng: log.with_columns(
        click=pl.when(pl.Series(late))
        .then(pl.Series(rng.random(len(log)) < 1.2 * log["p_true"].to_numpy()))
        .otherwise("click")
    ),
    "prediction": lambda log, late, rng: log.with_columns(
        probability=pl.when(pl.Series(late)).then(pl.col("probability") * 0.8).otherwise("probability")
    ),
    "input:price": lambda log, late, rng: log.with_columns(
        price=pl.when(pl.Series(late)).then(pl.col("price") * 1.5).otherwise("price")
    ),
    "input:device": lambda log, late, rng: log.with_columns(
        device=pl.when(pl.Series(late & (rng.random(len(log)) < 0.3))).then(pl.lit("new")).otherwise("device")
    ),
}
"""Signal that must tell it -> what changes in the rows after the sixth day."""
CRITEO = (
    "data.split={kind: time, columns: [row], fractions: [0.5, 0.1, 0.4]}",
    "train.epochs=1",
    "train.patience=null",
)
SYNTHETIC = (
    "data.params={rows: 400000, days: 20, drift: 0.05}",
    "data.split={kind: time, fractions: [0.45, 0.05, 0.5]}",
    "train.epochs=3",
    "gates={}",
)


def replay(seed: int, planted: str | None = None, rows: int = ROWS) -> list[dict[str, Any]]:
    """The alarms of a replay."""
    events = RECIPES["synthetic"].load(None, rows=rows, days=DAYS, seed=seed, drift=0.0).collect()
    rng = np.random.default_rng(seed)
    late = (events["timestamp"] >= START + datetime.timedelta(days=DRIFT_DAY)).to_numpy()
    log = events.with_columns(
        pl.col("click").cast(pl.Boolean), pl.col("p_true").alias("probability"), pl.col("price").cast(pl.Float64)
    )
    if planted is not None:
        log = PLANTED[planted](log, late, rng)
    log = log.with_row_index("request_id").with_columns(
        pl.col("request_id").cast(pl.Int64),
        model=pl.lit("synthetic"),
        version=pl.lit("1"),
        role=pl.lit("champion"),
        time="timestamp",
        clicked=pl.col("timestamp") + pl.Series(rng.integers(0, 1_800_000_000, rows)).cast(pl.Duration("us")),
    )
    labels = log.filter("click").select("request_id", label=pl.lit(1), time="clicked").sort("time")
    monitor = Monitor(CONFIG)
    monitor.update(log.select("request_id", "model", "version", "role", "probability", "time", *INPUTS), labels)
    monitor.finish()
    return monitor.alarms


def measure_alarms(settings: Settings) -> tuple[list[Bar], dict[str, Any]]:
    """False alarms of stationary replays; windows until a planted change is told."""
    replays, rows = (4, 20_000) if settings.quick else (REPLAYS, ROWS)
    false = {seed: replay(seed, rows=rows) for seed in range(replays)}
    settings.log(f"{replays} stationary replays: {sum(map(len, false.values()))} alarms")
    windows: dict[str, list[int | None]] = {}
    for planted in PLANTED:
        for seed in range(2 if settings.quick else 5):
            days = [_day(alarm) for alarm in replay(seed, planted, rows) if alarm["signal"] == planted]
            windows.setdefault(planted, []).append(min(days) - DRIFT_DAY + 1 if days else None)
        settings.log(f"planted {planted}: told in window {windows[planted]} after the change")
    slowest = {
        name: None if None in found else max(n for n in found if n is not None) for name, found in windows.items()
    }
    bars = [Bar(f"alarms in {replays} stationary replays of {DAYS} windows", sum(map(len, false.values())), "<=", 0)]
    bars += [Bar(f"windows until the drift of {name} is told, slowest", n, "<=", 2) for name, n in slowest.items()]
    figures = {"level": CONFIG.alarms.level, "rows_a_window": rows // DAYS, "windows_until_told": windows}
    return bars, {"alarms": {**figures, "false": [alarm for found in false.values() for alarm in found]}}


def _day(alarm: dict[str, Any]) -> int:
    return (datetime.datetime.fromisoformat(alarm["window"]) - START).days


def measure_progressive(settings: Settings) -> tuple[list[Bar], dict[str, Any]]:
    """Learning less frozen, over all windows and in the last one."""
    figures, bars = {}, []
    quick = ("data.params={rows: 60000, days: 20, drift: 0.05}",) if settings.quick else ()
    parts: dict[str, tuple[Path, tuple[str, ...], dict[str, Any]]] = {
        "criteo": (ROOT / "configs" / "criteo.yaml", CRITEO, {"rows": 5_000, "delay": "1000"}),
        "synthetic": (ROOT / "configs" / "synthetic.yaml", (*SYNTHETIC, *quick), {"every": "1d", "delay": "1h"}),
    }
    for name, (path, overrides, options) in parts.items():
        with tempfile.TemporaryDirectory() as work:
            common = (f"workspace={work}", "tracking.enabled=false")
            result = progressive(load_config(path, [*overrides, *common]), Console(quiet=True), **options)
        difference = result["difference"]
        figures[name] = {
            "difference": difference,
            "totals": result["totals"],
            "last": result["differences"][-1],
            "windows": len(result["differences"]),
            "alarms": result["alarms"],
        }
        settings.log(f"{name}: learning less frozen {difference}")
        bars.append(
            Bar(f"{name}: logloss, learning less frozen, upper end of 95 %", difference["logloss_high"], "<", 0)
        )
    return bars, {"progressive": figures}


def measure(settings: Settings) -> Outcome:
    """False alarms, detection of planted drift, and learning day by day against a frozen model."""
    bars: list[Bar] = []
    figures: dict[str, Any] = {}
    for part, made in (("alarms", measure_alarms), ("progressive", measure_progressive)):
        if not settings.parts or part in settings.parts:
            more, found = made(settings)
            bars += more
            figures |= found
    return Outcome(bars, figures)


if __name__ == "__main__":
    raise SystemExit(main("online", measure, parts=PARTS))
