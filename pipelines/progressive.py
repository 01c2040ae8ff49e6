"""`recsys progressive`: what learning day by day is worth, against a model that stays as it was trained."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from features.errors import ConfigError
from features.files import cannot_write, write_json
from features.loading.loader import Loader
from features.loading.time_loader import TimeLoader
from features.storage.store import Store
from features.times import length_of
from pipelines.config import ExperimentConfig
from pipelines.console import Console
from pipelines.monitor import SERIES
from pipelines.prepare import open_store, prepare
from pipelines.progress import ProgressListener
from pipelines.tracking import params_of
from pipelines.train import check_trainable, model_of, plan_of
from pipelines.workspace import write_bytes
from recsys.evaluation.online import AlarmConfig
from recsys.evaluation.online.plots import window_pictures
from recsys.evaluation.online.progressive import LEARNING, Chunk, ProgressiveValidation
from recsys.evaluation.report import Figure, Section, cell_text, render_report
from recsys.models import CTRModel
from recsys.serving.registry import Registry
from recsys.training import Trainer, load_best

RESULT, PAGE = "progressive.json", "progressive.html"
DEFAULT_EVERY, DEFAULT_CHUNKS = "1d", 20
DIFFERENCES = ("auc", "auc_low", "auc_high", "logloss", "logloss_low", "logloss_high")


def progressive(
    config: ExperimentConfig,
    console: Console,
    *,
    every: str | None = None,
    rows: int | None = None,
    delay: str = "0",
    alarms: AlarmConfig | None = None,
) -> dict[str, Any]:
    """Train on the train split, then go through the test split in the order of time: predict, then learn.

    The validation split picks the epoch of the first training; the learning model learns from it too, before the test.

    Args:
        config: The experiment, whose split is by time.
        console: Told about progress.
        every: Length of a window; a day when left out, where the spec has a time.
        rows: Rows of a window, in the order of the prepared data; a twentieth of the test when left out, where the spec
            has no time.
        delay: How long labels take: a length of time, or with windows of rows a number of rows.
        alarms: When drift is an alarm.

    Returns:
        totals, difference, windows, differences, alarms (see `ProgressiveValidation`), rows a split, mlflow_run_id,
        json, html.

    Raises:
        ConfigError: The settings do not go together.
        RecsysError: As `prepare` and `train` raise it.
    """
    _check(config, every, rows)
    by_rows = rows is not None or (every is None and config.spec.time is None)
    lag = _delay_of(delay, by_rows)
    prepare(config, console)
    store = open_store(config)
    if by_rows and rows is None:
        rows = max(1, -(-store.rows("test") // DEFAULT_CHUNKS))
    chunks = _by_time(store, every or DEFAULT_EVERY) if rows is None else _by_rows(store, rows)
    plan = plan_of(config, store)
    check_trainable(config, store, plan)
    folder = config.folder / "progressive"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".work.", dir=folder))
    except OSError as error:
        raise cannot_write(folder, error) from error
    try:
        trainer, frozen = _first_training(config, store, work, console)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    run = ProgressiveValidation(trainer, frozen, delay=lag, batch_size=config.train.batch_size, alarms=alarms)
    with console.progress("progressive validation", store.rows("test")) as task:
        done = 0
        for row in run.run(chunks):
            done += row["rows"]
            task.update(done, f"logloss {cell_text(row['logloss'])} to the frozen model's")
    result: dict[str, Any] = {
        "name": config.name,
        "window": f"{rows} rows" if rows is not None else every or DEFAULT_EVERY,
        "delay": delay,
        "rows": {split: store.rows(split) for split in ("train", "valid", "test")},
        "totals": run.totals(),
        "difference": run.difference(),
        "windows": run.windows,
        "differences": run.differences,
        "alarms": run.alarms,
    }
    page = progressive_page(result)
    write_json(folder / RESULT, result)
    write_bytes(folder / PAGE, page.encode())
    result["mlflow_run_id"] = _track(config, result, folder)
    _show(console, result)
    return {**result, "json": str(folder / RESULT), "html": str(folder / PAGE)}


def progressive_page(result: Mapping[str, Any]) -> str:
    """The result as one HTML page that needs nothing else."""
    learning, frozen = result["totals"]
    difference = result["difference"]
    lead = (
        f"{result['rows']['train']:,} rows to begin with, then {result['rows']['test']:,} rows in windows of "
        f"{result['window']}, each predicted before it is learned from; labels take {result['delay']}."
    )
    headline = [
        Figure("logloss, learning", cell_text(learning["logloss"]), f"frozen {cell_text(frozen['logloss'])}"),
        Figure("difference", cell_text(difference["logloss"]), _interval(difference, "logloss")),
        Figure("AUC, learning", cell_text(learning["auc"]), f"frozen {cell_text(frozen['auc'])}"),
        Figure("difference", cell_text(difference["auc"]), _interval(difference, "auc")),
        Figure("alarms", str(len(result["alarms"]))),
    ]
    sections = [
        Section("Over all windows", "Exact, from all rows.", result["totals"]),
        Section("Over time", "", (), window_pictures(result["windows"], result["alarms"])),
        Section("Alarms", "" if result["alarms"] else "There was none.", result["alarms"]),
        Section(
            "Learning less frozen",
            "With 95 % intervals over the rows of a window. A logloss below 0: the learning model is the better one.",
            result["differences"],
        ),
        Section("Windows", "", result["windows"]),
    ]
    return render_report(
        title=f"{result['name']}: progressive validation", lead=lead, headline=headline, sections=sections
    )


def _check(config: ExperimentConfig, every: str | None, rows: int | None) -> None:
    if every is not None and rows is not None:
        raise ConfigError("windows are of time or of rows", field="--rows", mend="give --every or --rows")
    if every is not None:
        length_of(every, field="--every")
    if config.data.split.kind != "time":
        raise ConfigError(
            "only a split by time has a future to be tested on",
            field="data.split.kind",
            found=config.data.split.kind,
            expected="time",
        )
    for key in ("warm_start", "teacher"):
        if getattr(config.train, key) is not None:
            raise ConfigError(
                "progressive validation trains its first model from scratch",
                field=f"train.{key}",
                mend="leave it out",
            )


def _delay_of(delay: str, by_rows: bool) -> int:
    if not by_rows:
        return length_of("0s" if delay == "0" else delay, field="--delay")
    if not delay.isdigit():
        raise ConfigError("windows of rows have a delay in rows", field="--delay", found=delay, expected="a number")
    return int(delay)


def _by_time(store: Store, every: str) -> Iterator[Chunk]:
    length = length_of(every, field="--every")
    for split in ("valid", "test"):
        loader = TimeLoader(store, split, every, max(store.rows(split), 1))
        for start, batches in loader:
            begin = int(start.astype("datetime64[us]").astype(np.int64))
            for batch in batches:
                name = str(start.astype("datetime64[s]")).replace("T", " ")
                yield Chunk(name, begin, begin + length, batch, tested=split == "test")


def _by_rows(store: Store, rows: int) -> Iterator[Chunk]:
    start = -store.rows("valid")
    for split in ("valid", "test"):
        for batch in Loader(store, split, rows):
            yield Chunk(start, start, start + len(batch), batch, tested=split == "test")
            start += len(batch)


def _first_training(config: ExperimentConfig, store: Store, work: Path, console: Console) -> tuple[Trainer, CTRModel]:
    """The trainer of the model that is to learn on, and the same model again."""
    plan = plan_of(config, store)
    watch = ProgressListener(console)
    trainer = Trainer(model_of(config, store, plan), config.train, seed=config.seed, folder=work, listener=watch)
    try:
        trainer.fit(
            Loader(store, "train", config.train.batch_size, shuffle_seed=config.seed),
            Loader(store, "valid", config.train.eval_batch_size),
        )
    finally:
        watch.close()
    frozen = model_of(config, store, plan)
    load_best(frozen, work)
    return trainer, frozen


def _track(config: ExperimentConfig, result: Mapping[str, Any], folder: Path) -> str | None:
    """Tells MLflow; a step is a window."""
    if not config.tracking.enabled:
        return None
    registry = Registry(config.tracking_uri)
    run_id = registry.start_run(config.tracking.experiment or config.name, f"{config.name}-progressive")
    with registry.running(run_id):
        registry.log_params(run_id, {**params_of(config), "window": result["window"], "delay": result["delay"]})
        steps = {window: step for step, window in enumerate(dict.fromkeys(row["window"] for row in result["windows"]))}
        rows: list[tuple[str, float, int]] = []
        for head, names, table in (("", SERIES, result["windows"]), ("difference", DIFFERENCES, result["differences"])):
            for row in table:
                prefix = head or row["model"]
                found = {name: row.get(name) for name in names}
                rows += [(f"{prefix}/{name}", v, steps[row["window"]]) for name, v in found.items() if v is not None]
        total = {name: value for name, value in result["difference"].items() if value is not None}
        rows += [(f"total/difference/{name}", value, 0) for name, value in total.items()]
        registry.log_metrics(run_id, rows)
        for name in (RESULT, PAGE):
            registry.log_files(run_id, folder / name)
    return run_id


def _show(console: Console, result: Mapping[str, Any]) -> None:
    console.table("over all windows", result["totals"])
    console.table(f"{LEARNING} less frozen, by window", result["differences"][-12:])
    for name in ("logloss", "auc"):
        difference = result["difference"]
        console.note(f"{LEARNING} less frozen, {name}: {cell_text(difference[name])}, {_interval(difference, name)}")
    console.table("alarms", result["alarms"])


def _interval(difference: Mapping[str, Any], name: str) -> str:
    low, high = difference[f"{name}_low"], difference[f"{name}_high"]
    if low is None or high is None:
        return "no interval"
    verdict = "" if low > 0 or high < 0 else ": no difference can be claimed"
    return f"95 % interval {cell_text(low)} to {cell_text(high)}{verdict}"
