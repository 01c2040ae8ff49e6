"""`recsys monitor`: follows a prediction log and a label log, shows what the models are worth, and raises alarms."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from features.errors import ArtifactError, ConfigError, DataError, RecsysError
from features.files import read_json, read_table, write_json, write_table
from features.folders import whole_or_nothing
from features.reading.sources import scan
from features.times import length_of, microseconds_of
from features.validation import validate
from pipelines.config import parse_override
from pipelines.console import Console
from pipelines.logs import LogReader
from pipelines.monitor_page import count_rows, monitor_page, split_line
from pipelines.workspace import write_bytes
from recsys.evaluation.online import LABEL_LOG, Monitor, OnlineConfig, Reference
from recsys.evaluation.online.clock import START
from recsys.evaluation.online.logs import STREAM, read_predictions
from recsys.evaluation.online.monitor import METRICS
from recsys.evaluation.report import cell_text
from recsys.serving.registry import Registry

STATE, RESULT, PAGE = "state", "monitor.json", "monitor.html"
SHOWN_WINDOWS = 12
"""Rows of the live view; the page has them all."""
ANYTIME_TITLE = "logloss less the champion's, over all windows; may be looked at at any time"
SERIES = (*METRICS, "ece", "psi", "rows", "labelled")
"""What MLflow is told of every window."""
ARMS_TITLE = "split traffic: {model} {version} and its champion {champion}, over the windows in which both answered"
_MEND = "begin anew with another --out"


class MonitorJob:
    """A monitor with what it reads and what it writes.

    Args:
        predictions: The prediction log: a folder of Parquet files, or one such file.
        labels: The label log.
        out: Folder of `monitor.json`, `monitor.html` and the state from which the next call goes on.
        config: Lengths and levels.
        reference: A file of predictions and inputs from before the log, to hold the windows against.
        registry: MLflow; None leaves it out.
        experiment: Of the MLflow run.

    Raises:
        DataError: There is no such log, or the reference lacks a column.
        ArtifactError: The state is damaged, or of another config or other logs.
    """

    def __init__(
        self,
        predictions: Path,
        labels: Path,
        out: Path,
        config: OnlineConfig,
        *,
        reference: str | None = None,
        registry: Registry | None = None,
        experiment: str = "monitor",
    ) -> None:
        self.out = out
        self._readers = {"predictions": LogReader(predictions), "labels": LogReader(labels, LABEL_LOG)}
        self.monitor = Monitor(config, None if reference is None else _reference(reference))
        self._registry, self._experiment = registry, experiment
        self.run_id: str | None = None
        self._told = {"windows": 0, "looks": 0}
        self.resumed = (out / STATE / "state.json").is_file()
        if self.resumed:
            self._restore()

    def poll(self) -> int:
        """Reads what is new in the logs; returns how many windows became final.

        The log that is behind is read first, so that little waits for the other one. A file counts whole or not at all:
        after an error in one log the other one is still read to its end.

        Raises:
            DataError: A file is damaged or lacks a column; it is read again the next time.
            ArtifactError: A file has changed since it was read.
        """
        pieces = {name: reader.pieces() for name, reader in self._readers.items()}
        final, trouble = 0, None
        while pieces:
            behind = min(pieces, key=self._newest)
            try:
                piece = next(pieces[behind], None)
                if piece is not None:
                    final += self.monitor.update(**{behind: piece})
                    continue
            except RecsysError as error:
                trouble = error
            del pieces[behind]
        if trouble is not None:
            raise trouble
        return final

    def _newest(self, log: str) -> int:
        newest = self.monitor.join.newest[log]
        return START if newest is None else newest

    def save(self) -> dict[str, Any]:
        """Tells MLflow what is new, and writes the result, the page and the state; returns the result."""
        self._track()
        result = {**self.monitor.result(), "mlflow_run_id": self.run_id}
        values, tables = self.monitor.state()
        values |= {
            "logs": {name: str(reader.path.resolve()) for name, reader in self._readers.items()},
            "read": {name: reader.read for name, reader in self._readers.items()},
            "mlflow_run_id": self.run_id,
            "told": self._told,
        }
        self.out.mkdir(parents=True, exist_ok=True)
        with whole_or_nothing(self.out / STATE) as folder:
            write_json(folder / "state.json", values)
            for name, table in tables.items():
                write_table(folder / f"{name}.arrow", table)
        write_json(self.out / RESULT, result)
        write_bytes(self.out / PAGE, monitor_page(result).encode())
        return result

    def _restore(self) -> None:
        folder = self.out / STATE
        values = read_json(folder / "state.json", mend=_MEND)
        for name, reader in self._readers.items():
            before, now = values["logs"][name], str(reader.path.resolve())
            if before != now:
                raise ArtifactError(
                    f"state of another log of {name}", field=str(folder), found=before, expected=now, mend=_MEND
                )
            reader.read = dict(values["read"][name])
        names = ("waiting", "requests", "labels")
        self.monitor.restore(values, {name: read_table(folder / f"{name}.arrow", mend=_MEND) for name in names})
        self.run_id, self._told = values["mlflow_run_id"], values["told"]

    def _track(self) -> None:
        if self._registry is None:
            return
        if self.run_id is None or not self._registry.has_run(self.run_id):
            config = self.monitor.config.model_dump(mode="json")
            self.run_id = self._registry.start_run(self._experiment, f"monitor {self.out.name}")
            self._registry.log_params(self.run_id, config)
            self._told = dict.fromkeys(self._told, 0)
        watched, length = self.monitor, self.monitor.config.window
        rows = series(watched.windows[self._told["windows"] :], watched.alarms, length)
        rows += look_series(watched.looks[self._told["looks"] :], length)
        if rows:
            self._registry.log_metrics(self.run_id, rows)
        self._told = {"windows": len(watched.windows), "looks": len(watched.looks)}


def monitor(
    predictions: Path,
    labels: Path,
    console: Console,
    *,
    out: Path,
    overrides: Sequence[str] = (),
    once: bool = False,
    finish: bool = False,
    every: float = 10.0,
    reference: str | None = None,
    tracking_uri: str | None = None,
    experiment: str = "monitor",
) -> dict[str, Any]:
    """Follow two logs until stopped, or read once what is there.

    Args:
        predictions: The prediction log.
        labels: The label log.
        console: Shows the windows; live on a terminal.
        out: Folder for the results and the state.
        overrides: `key=value` of `OnlineConfig`.
        once: Read what is there and return.
        finish: The logs are over: with `once`, count the windows that wait for labels too.
        every: Seconds between two looks.
        reference: A file of predictions (`probability`, or one `p_LABEL` as of `recsys score`) and inputs to hold
            the windows against; the first window when left out.
        tracking_uri: MLflow store for the time series; nothing is tracked when left out.
        experiment: MLflow experiment.

    Returns:
        `Monitor.result`, with `mlflow_run_id`, `out` and `html`.

    Raises:
        ConfigError: A key or value is wrong.
        DataError: With `once`: a log is absent or damaged.
        ArtifactError: The state is of other logs or another config, or the results cannot be written.
    """
    if finish and not once:
        raise ConfigError("logs that are over are read once", field="--finish", mend="add --once")
    job = MonitorJob(
        predictions,
        labels,
        out,
        online_config(overrides),
        reference=reference,
        registry=None if tracking_uri is None else Registry(tracking_uri),
        experiment=experiment,
    )
    if job.resumed:
        console.note(f"going on from {out / STATE}")
    if once:
        with console.progress("reading the logs", None):
            job.poll()
        if finish:
            job.monitor.finish()
        result = job.save()
        _show(console, result)
        return _found(job, result)
    return _follow(job, console, every)


def online_config(overrides: Sequence[str]) -> OnlineConfig:
    """The config from `key=value`; `alarms.level=0.001` and the like are of `AlarmConfig`.

    >>> online_config(["window=30m", "alarms.level=0.001"]).alarms.level
    0.001
    """
    values: dict[str, Any] = {}
    for text in overrides:
        key, value = parse_override(text)
        head, _, rest = key.partition(".")
        if rest:
            values[head] = {**values.get(head, {}), rest: value}
        else:
            values[head] = value
    return validate(OnlineConfig, values)


def series(
    windows: Sequence[Mapping[str, Any]], alarms: Sequence[Mapping[str, Any]], length: str
) -> list[tuple[str, float, int]]:
    """What MLflow is told of windows: (ROLE/MODEL/VERSION/METRIC, value, number of the window since 1970)."""
    rows: list[tuple[str, float, int]] = []
    for row in windows:
        here = [alarm for alarm in alarms if all(alarm[name] == row[name] for name in ("window", *STREAM))]
        rows += _points(row, {**{name: row[name] for name in SERIES}, "alarms": len(here)}, length)
    return rows


def look_series(looks: Sequence[Mapping[str, Any]], length: str) -> list[tuple[str, float, int]]:
    """What MLflow is told of differences that may be looked at at any time: mean, low and high, after each window.

    >>> look = {"role": "shadow", "model": "m", "version": "2", "of": "logloss", "mean": -0.1, "low": -0.2, "high": 0.0}
    >>> look_series([{**look, "window": "1970-01-01 02:00:00"}], "1h")[1]
    ('shadow/m/2/logloss_less_champion_low', -0.2, 2)
    """
    rows: list[tuple[str, float, int]] = []
    for look in looks:
        name = f"{look['of']}_less_champion"
        values = {name: look["mean"], f"{name}_low": look["low"], f"{name}_high": look["high"]}
        rows += _points(look, values, length)
    return rows


def _points(row: Mapping[str, Any], values: Mapping[str, Any], length: str) -> list[tuple[str, float, int]]:
    """The values of a window of a model that there are."""
    step = microseconds_of(row["window"]) // length_of(length)
    head = "/".join(re.sub(r"[^\w. -]", "_", str(row[name])) for name in STREAM)
    return [(f"{head}/{name}", value, step) for name, value in values.items() if value is not None]


def _found(job: MonitorJob, result: Mapping[str, Any]) -> dict[str, Any]:
    return {**result, "out": str(job.out), "html": str(job.out / PAGE)}


def _follow(job: MonitorJob, console: Console, every: float) -> dict[str, Any]:
    """Looks at the logs again and again until it is interrupted; then what was saved last is the result."""
    said, told = len(job.monitor.windows), None
    result = job.save()
    try:
        with Live(console=console.rich, auto_refresh=False, transient=True) as live:
            while True:
                trouble = None
                try:
                    job.poll()
                except RecsysError as error:
                    # A file that is damaged must not end the watch: it is told until it is mended.
                    trouble = str(error)
                result = job.save()
                if console.rich.is_terminal:
                    live.update(_view(result, trouble), refresh=True)
                else:
                    for row in result["windows"][said:]:
                        console.note(_line(row))
                    if trouble != told:
                        console.note(f"trouble: {trouble}" if trouble else "the trouble is over")
                said, told = len(result["windows"]), trouble
                time.sleep(every)
    except KeyboardInterrupt:
        # What was read since the last save is read again by the next call.
        console.note(f"stopped; the next call goes on from {job.out / STATE}")
    return _found(job, result)


def _view(result: Mapping[str, Any], trouble: str | None) -> Group:
    parts: list[Any] = [Text(_state_line(result), style="bold")]
    if trouble:
        parts.append(Text(f"trouble: {trouble}", style="bold red"))
    for title, rows in (
        ("in total", _brief(result["totals"])),
        (ANYTIME_TITLE, result["anytime"]),
        *((_arms_title(row), row["arms"]) for row in result["split"]),
        ("windows", _brief(result["windows"][-SHOWN_WINDOWS:])),
        ("alarms", result["alarms"][-SHOWN_WINDOWS:]),
    ):
        if rows:
            table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
            for key, value in rows[0].items():
                table.add_column(key.replace("_", " "), justify="left" if isinstance(value, str) else "right")
            for row in rows:
                table.add_row(*(cell_text(value) for value in row.values()))
            parts.append(table)
    parts += [Text(split_line(row), style="bold") for row in result["split"]]
    return Group(*parts)


def _show(console: Console, result: Mapping[str, Any]) -> None:
    console.note(_state_line(result))
    console.table("in total", _brief(result["totals"]))
    console.table(f"the last of {len(result['windows']):,} windows", _brief(result["windows"][-SHOWN_WINDOWS:]))
    console.table(ANYTIME_TITLE, result["anytime"])
    for row in result["split"]:
        console.table(_arms_title(row), row["arms"])
        console.note(split_line(row))
    console.table(
        "less the champion, window by window; each for one look alone", result["differences"][-SHOWN_WINDOWS:]
    )
    console.table("alarms", result["alarms"][-SHOWN_WINDOWS:])
    console.table("rows of the logs", count_rows(result))


def _arms_title(row: Mapping[str, Any]) -> str:
    return ARMS_TITLE.format_map(row)


def _brief(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    names = ("window", *STREAM, "windows", "rows", "labelled", *METRICS)
    return [{name: row[name] for name in names if name in row} for row in rows]


def _state_line(result: Mapping[str, Any]) -> str:
    waiting = result["waiting"]
    newest = ", ".join(f"{log} up to {moment or 'nothing'}" for log, moment in result["newest"].items())
    return f"{newest}; waiting: {waiting['predictions']:,} predictions, {waiting['labels']:,} labels"


def _line(row: Mapping[str, Any]) -> str:
    values = ", ".join(f"{name} {cell_text(row[name])}" for name in ("rows", *METRICS) if row[name] is not None)
    return f"{row['window']} {' '.join(row[name] for name in STREAM)}: {values}"


def _reference(source: str) -> Reference:
    """Rows from before the log, such as `recsys score` writes: only their predictions and inputs are read."""
    frame = scan(source).collect()
    scores = [name for name in frame.columns if name.startswith("p_")]
    if "probability" not in frame.columns and len(scores) == 1:
        frame = frame.rename({scores[0]: "probability"})
    missing: dict[str, Any] = {"role": "champion", "model": "", "version": "", "request_id": 0}
    filled = frame.with_columns(
        *(pl.lit(value).alias(name) for name, value in missing.items() if name not in frame.columns),
        *([] if "time" in frame.columns else [pl.lit(0).cast(pl.Datetime("us")).alias("time")]),
    )
    rows, _ = read_predictions(filled)
    if not rows.height:
        raise DataError("no row of the reference can be used", field=source, expected="a probability and inputs")
    return Reference.of(rows)
