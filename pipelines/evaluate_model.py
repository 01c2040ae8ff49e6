"""Any trained model meets any labelled rows: the same report as of a run on its test split, without gates."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from features.errors import ConfigError, RecsysError
from features.files import write_json
from features.pipeline import FeaturePipeline
from features.reading.sources import scan
from features.storage.store import Store
from features.value_names import ValueNames
from pipelines.config import load_config
from pipelines.console import Console
from pipelines.evaluate import PAGE_ONLY, evaluate_run, track, write_pictures
from pipelines.evaluation_page import evaluation_page, show
from pipelines.measure import measure, names_from, raw_events
from pipelines.model_card import model_card
from pipelines.models import OpenedModel, check_one_source, open_model
from pipelines.prepare import open_store
from pipelines.workspace import Run, run_at, write_bytes
from recsys.evaluation.report import Section
from recsys.serving.registry import Registry, is_model_uri


def evaluate_model(
    target: str,
    data: Sequence[str],
    console: Console,
    *,
    tracking_uri: str,
    out: Path | None = None,
    split: str = "test",
) -> dict[str, Any]:
    """Evaluate a model on labelled rows.

    Args:
        target: `models:/NAME@ALIAS` or `models:/NAME/VERSION`, or the folder of a run or of a bundle.
        data: At most one: a folder of prepared data, or a file or glob of raw rows with labels. A run has its own.
        console: Shows the metrics.
        tracking_uri: Store of the registry; a run that it knows gets the report and the metrics.
        out: Folder of report.html, evaluation.json and pictures. By default `evaluation-DATA` in a run,
            `FOLDER-evaluation-DATA` beside a bundle, `NAME-evaluation-DATA` here for a registered model.
        split: Of prepared data: test or valid.

    Returns:
        model, data, metrics, intervals, tasks, reference, days, cost, gates (empty) and gates_failed (empty), report,
        evaluation, mlflow_run_id (None if the store knows no run of the model), seconds. Of a run without DATA, what
        `pipelines.evaluate.evaluate` returns.

    Raises:
        ConfigError: More than one source of data is named, or none and the model has none of its own.
        ArtifactError: There is no such model, or its data was prepared with another spec.
        DataError: The data is absent, damaged or empty, lacks a column or the label, or a score is not finite.
    """
    started = time.perf_counter()
    check_one_source(target, data)
    opened = open_model(target, tracking_uri)
    if not data:
        return _of_own_data(opened, console, out, split)
    source = data[0]
    rows = opened.rows(source, split)
    assert rows is not None  # data is given
    bundle = opened.bundle
    training = _training_of(opened, source)
    names, note = value_names_of(bundle.pipeline, source, training.run)
    limits = [] if note is None else [f"In slices, {note}."]
    found = measure(
        bundle.model,
        rows.read(),
        console,
        field=source,
        counts=None if training.store is None else training.store.id_counts("train"),
        names=names,
        calibration=bundle.calibration,
    )
    folder = out or _default_folder(opened, source, split)
    run_id = _mlflow_run(opened, training, tracking_uri)
    shown_name = target if training.run is None else _run_name(training.run)
    result: dict[str, Any] = {
        "model": target,
        "data": rows.text,
        **found,
        "gates": [],
        "gates_failed": [],
        "plan": bundle.model.plan.summary(),
        "lineage": _lineage(opened, training, rows.text, run_id),
        "card": model_card(
            bundle,
            found,
            name=shown_name,
            tested_on=rows.text,
            origin=training.origin,
            store=training.store if training.run is not None else None,
            trained=None if training.run is None else training.run.read("train.json"),
            limits=[*training.notes, *limits],
        ),
        "report": str(folder / "report.html"),
        "evaluation": str(folder / "evaluation.json"),
        "mlflow_run_id": run_id,
    }
    pictures = write_pictures(folder / "pictures", result)
    html = evaluation_page(
        result,
        title=f"{shown_name} on {_stem(source, split)}",
        lead=f"{target}: {bundle.model.config.interaction} over a {bundle.model.plan.kind} table, on {rows.text}.",
        text=rows.text,
        pictures=pictures,
        more=[Section("Lineage", "What this result was made from.", result["lineage"])],
    )
    write_bytes(Path(result["report"]), html.encode())
    result["seconds"] = round(time.perf_counter() - started, 2)
    write_json(Path(result["evaluation"]), result)
    place = f"evaluation-{_stem(source, split)}"
    track(tracking_uri, result, place, place, folder / "pictures")
    show(result, rows.text, console)
    console.note(f"report: {result['report']}")
    return {key: value for key, value in result.items() if key not in PAGE_ONLY}


@dataclass(frozen=True)
class _Training:
    """What is known of a model's training."""

    run: Run | None
    store: Store | None
    """Whose train split tells how often values were seen."""
    origin: str | None
    notes: tuple[str, ...] = ()


def _of_own_data(opened: OpenedModel, console: Console, out: Path | None, split: str) -> dict[str, Any]:
    if opened.run is None:
        raise ConfigError(
            "an evaluation needs labelled rows",
            field=opened.name,
            found="no data",
            mend="name a folder of prepared data, or a file of raw rows with labels, after it",
        )
    if out is not None:
        raise ConfigError(
            "a run on its own data keeps its report in its folder", field="--out", found=str(out), mend="leave it out"
        )
    config = load_config(opened.run.folder / "config.yaml")
    return evaluate_run(config, open_store(config), opened.run, console, split=split)


def _training_of(opened: OpenedModel, source: str) -> _Training:
    """The run it came from, where that is known, and how often training saw values."""
    run = opened.run or _run_above(opened.folder)
    given = Store.open(Path(source), spec=opened.bundle.pipeline.spec) if Path(source).is_dir() else None
    if run is not None:
        config = load_config(run.folder / "config.yaml")
        origin = config.data.recipe or config.data.source
        trained_on = run.read("run.json")["store_digest"]
        notes = []
        if given is not None and given.digest != trained_on:
            notes.append("The prepared data is not that of the run: rows it was trained on may be among these.")
        try:
            store = Store.open(config.store_folder, spec=opened.bundle.pipeline.spec)
            if store.digest == trained_on:
                return _Training(run, store, origin, tuple(notes))
            why = "it was prepared anew since"
        except RecsysError as error:
            why = str(error)
        notes.append(f"How often training saw a value is not known, as its data cannot be used: {why.rstrip('.')}.")
        return _Training(run, None, origin, tuple(notes))
    if given is not None:
        note = (
            f"How often training saw a value is told by the train split of {given.folder}, which need not be its own."
        )
        return _Training(None, given, None, (note,))
    note = "How often training saw a value is not known: the model came without its run."
    return _Training(None, None, None, (note,))


def _run_above(bundle: Path) -> Run | None:
    """The run in whose folder a bundle lies."""
    try:
        return run_at(str(bundle.resolve().parent))
    except RecsysError:  # not finished
        return None


def value_names_of(pipeline: FeaturePipeline, source: str, run: Run | None) -> tuple[ValueNames, str | None]:
    """Names of values from raw rows: those that are looked at, or for prepared data those of the model's run.

    Args:
        pipeline: That of the model.
        source: A folder of prepared data, or a file or glob of raw rows.
        run: Of the model, where it is known.

    Returns:
        As `names_from` has it.
    """
    if not Path(source).is_dir():
        return names_from(pipeline, lambda: scan(source))
    if run is not None:
        config = load_config(run.folder / "config.yaml")
        return names_from(pipeline, lambda: raw_events(config))
    return names_from(pipeline, _nowhere)


def _nowhere() -> Any:
    raise ConfigError("prepared data holds no raw values", mend="give raw rows, or the run of the model")


def _default_folder(opened: OpenedModel, source: str, split: str) -> Path:
    suffix = f"evaluation-{_stem(source, split)}"
    if opened.run is not None:
        return opened.run.folder / suffix
    if is_model_uri(opened.name):
        return Path(f"{opened.name.removeprefix('models:/').partition('@')[0].partition('/')[0]}-{suffix}")
    folder = opened.folder.resolve()
    return folder.with_name(f"{folder.name}-{suffix}")


def _stem(source: str, split: str) -> str:
    """A name for some rows that is good for a folder and for MLflow.

    >>> _stem("logs/day-*.csv.gz", "test")
    'day-.csv'
    """
    path = Path(source)
    name = f"{path.resolve().name}-{split}" if path.is_dir() else path.stem
    return re.sub(r"[^A-Za-z0-9_.-]+", "", name) or "rows"


def _mlflow_run(opened: OpenedModel, training: _Training, tracking_uri: str) -> str | None:
    """The MLflow run of the model, if the store at hand knows it."""
    if is_model_uri(opened.name):
        run_id: str | None = Registry(tracking_uri, create=False).resolve(opened.name).run_id
    else:
        run_id = training.run.read("run.json")["mlflow_run_id"] if training.run is not None else None
    if run_id is None:
        return None
    try:
        return run_id if Registry(tracking_uri, create=False).has_run(run_id) else None
    except RecsysError:
        return None


def _run_name(run: Run) -> str:
    return f"{run.folder.resolve().parent.parent.name}, run {run.name}"


def _lineage(opened: OpenedModel, training: _Training, text: str, run_id: str | None) -> list[dict[str, Any]]:
    store = training.store if training.run is not None else None
    return [
        {"what": "bundle", "value": str(opened.folder)},
        {"what": "weights (sha256)", "value": opened.bundle.description["files"]["weights.safetensors"]},
        {"what": "spec", "value": opened.bundle.pipeline.spec.digest()},
        {"what": "run", "value": "not known" if training.run is None else str(training.run.folder)},
        {"what": "trained on", "value": "not known" if store is None else f"{store.folder}, manifest {store.digest}"},
        {"what": "rows of this report", "value": text},
        {"what": "MLflow run", "value": run_id or "not tracked"},
    ]
