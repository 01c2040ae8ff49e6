"""A trained model meets the test split: exact metrics, pictures, the report, the gates.

The validation split can be looked at too; it has files of its own, and no gates.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from features.errors import ArtifactError, list_names
from features.files import write_json
from features.loading.loader import Loader
from features.storage.store import Store
from pipelines.config import ExperimentConfig, Gate, load_config
from pipelines.console import Console
from pipelines.evaluation_page import evaluation_page, show
from pipelines.measure import main_metrics, measure, names_from, raw_events, task_metrics
from pipelines.model_card import model_card
from pipelines.prepare import dropped_of, open_store
from pipelines.workspace import Run, trained_run, write_bytes
from recsys.evaluation.evaluation_plots import calibration_picture, importance_picture
from recsys.evaluation.plots import Picture, curve_pictures, learning_picture
from recsys.evaluation.report import Section, cell_text
from recsys.serving.bundle import Bundle, load_bundle
from recsys.serving.registry import Registry

__all__ = ["check_gates", "check_same_data", "evaluate", "evaluate_run", "main_metrics", "show_gates", "task_metrics"]

PAGE_ONLY = ("curves", "slices", "miscalibrated", "importance", "plan", "history", "lineage", "card", "unseen")
"""What the JSON file holds and the result of the job does not: it is long."""


def evaluate(
    config: ExperimentConfig, console: Console, *, run_name: str | None = None, split: str = "test"
) -> dict[str, Any]:
    """Evaluate a run's bundle on a split.

    Args:
        config: The experiment. Its gates count; the run keeps the config it was trained with.
        console: Shows the metrics.
        run_name: Which run; the newest trained one by default.
        split: test, or valid.

    Returns:
        run, split, metrics (of the first task), intervals, tasks (metrics of each), reference (metrics of the reference
        column, or None), calibration (see `calibration_effect`), days, cost, gates, gates_failed, report, evaluation
        (the JSON file, with all that the report shows), mlflow_run_id, seconds. Gates bound the test split only.

    Raises:
        ArtifactError: There is no trained run, or the prepared data is not what it was trained on.
    """
    return evaluate_run(config, open_store(config), trained_run(config, run_name), console, split=split)


def evaluate_run(
    config: ExperimentConfig, store: Store, run: Run, console: Console, *, split: str = "test"
) -> dict[str, Any]:
    """Evaluate a run on a split of its own data; see `evaluate`."""
    started = time.perf_counter()
    own = load_config(run.folder / "config.yaml")
    check_same_data(config, own, run, store)
    bundle = load_bundle(run.bundle)
    names, note = names_from(bundle.pipeline, lambda: raw_events(own))
    found = measure(
        bundle.model,
        Loader(store, split, config.train.eval_batch_size),
        console,
        field=f"{split} split",
        total=store.rows(split),
        counts=store.id_counts("train"),
        names=names,
        calibration=bundle.calibration,
    )
    gates = check_gates(config.gates, found["metrics"]) if split == "test" else []
    trained = run.read("train.json")
    origin = own.data.recipe or own.data.source
    result: dict[str, Any] = {
        "run": run.name,
        "split": split,
        **found,
        "gates": gates,
        "gates_failed": [gate["metric"] for gate in gates if not gate["met"]],
        "plan": bundle.model.plan.summary(),
        "history": trained["history"],
        "best_epoch": trained["best_epoch"],
        "lineage": _lineage(own, store, run, bundle),
        "card": model_card(
            bundle,
            found,
            name=f"{own.name}, run {run.name}",
            tested_on=f"{split} split of the same data",
            origin=origin,
            store=store,
            trained=trained,
            limits=[] if note is None else [f"In slices, {note}."],
        ),
        "report": str(run.result("report", split, ".html")),
        "evaluation": str(run.result("evaluation", split, ".json")),
        "mlflow_run_id": trained["mlflow_run_id"],
    }
    page = write_pictures(run.result("pictures", split), result)
    epochs = Section("Epochs", f"Validation kept epoch {trained['best_epoch']}.", result["history"], page["learning"])
    lead = (
        f"Run {run.name}: {bundle.model.config.interaction} over a {bundle.model.plan.kind} table, "
        f"{trained['network_parameters']:,} network parameters, {trained['lookups']} lookups an example."
    )
    html = evaluation_page(
        result,
        title=own.name,
        lead=lead,
        text=f"{split} split",
        pictures=page,
        more=[epochs, Section("Lineage", "What this result was made from.", result["lineage"])],
    )
    write_bytes(Path(result["report"]), html.encode())
    result["seconds"] = round(time.perf_counter() - started, 2)
    write_json(Path(result["evaluation"]), result)
    head = split if split == "test" else f"{split}-final"  # `valid/...` are the training's own curves
    track(config.tracking_uri, result, head, None, run.result("pictures", split))
    show(result, f"{split} split", console)
    show_gates(console, gates)
    console.note(f"report: {result['report']}")
    return {key: value for key, value in result.items() if key not in PAGE_ONLY}


def write_pictures(folder: Path, result: Mapping[str, Any]) -> dict[str, list[Picture]]:
    """Draws all pictures of an evaluation and writes them as PNG and SVG; returns them by part of the page."""
    slices = result["slices"]["found"]
    off = [slices[place] for place in result["miscalibrated"]]
    importance = result["importance"]["features"]
    history = result.get("history")
    drawn = {
        "curves": curve_pictures(result["curves"]),
        "learning": [learning_picture(history, result["best_epoch"])] if history else [],
        "slices": [calibration_picture(off)] if off else [],
        "importance": [importance_picture(importance)] if importance else [],
    }
    for picture in (picture for part in drawn.values() for picture in part):
        write_bytes(folder / f"{picture.name}.png", picture.png)
        write_bytes(folder / f"{picture.name}.svg", picture.light)
    return drawn


def track(uri: str, result: Mapping[str, Any], head: str, folder: str | None, pictures: Path) -> None:
    """Tells MLflow what was measured, if the model has a run there.

    Args:
        uri: The store.
        result: With `mlflow_run_id`, `report` and `evaluation`.
        head: Begins the names of the metrics.
        folder: Where the files go among the run's; at the top when left out.
        pictures: Their folder.
    """
    run_id = result["mlflow_run_id"]
    if run_id is None:
        return
    registry = Registry(uri)
    rows: list[tuple[str, float, int]] = []
    for i, (label, metrics) in enumerate(result["tasks"].items()):
        values = dict(result["metrics"] if i == 0 else metrics)
        if i == 0:
            found = result["intervals"].items()
            values |= {f"{name}_{end}": interval[end] for name, interval in found for end in _ENDS}
        prefix = head if i == 0 else f"{head}/{label}"
        rows += [(f"{prefix}/{name}", value, 0) for name, value in values.items() if isinstance(value, int | float)]
    registry.log_metrics(run_id, rows)
    registry.log_files(run_id, pictures, f"{folder}/pictures" if folder else pictures.name)
    for file in ("report", "evaluation"):
        registry.log_files(run_id, Path(result[file]), folder)


_ENDS = ("low", "high")


def check_gates(gates: Mapping[str, Gate], metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Hold metrics against bounds; an undefined metric meets none.

    >>> check_gates({"auc": Gate(min=0.7)}, {"auc": None})
    [{'metric': 'auc', 'value': None, 'min': 0.7, 'max': None, 'met': False}]
    """
    results = []
    for name, gate in gates.items():
        value = metrics.get(name)
        met = value is not None and (gate.min is None or value >= gate.min) and (gate.max is None or value <= gate.max)
        results.append({"metric": name, "value": value, "min": gate.min, "max": gate.max, "met": met})
    return results


def show_gates(console: Console, gates: Sequence[Mapping[str, Any]]) -> None:
    """One line a gate that was checked."""
    for gate in gates:
        bounds = " and ".join(f"{word} {gate[word]:g}" for word in ("min", "max") if gate[word] is not None)
        state = "met" if gate["met"] else "FAILED"
        console.note(f"gate {gate['metric']} ({bounds}): {cell_text(gate['value'])}, {state}")


def check_same_data(config: ExperimentConfig, own: ExperimentConfig, run: Run, store: Store) -> None:
    """Refuses other data than the run's: in another order its columns mean something else, and rows of another test
    split may be among those it was trained on."""
    trained_on = run.read("run.json")["store_digest"]
    if trained_on == store.digest:
        return
    parts = {
        "data": (own.data.model_dump(exclude={"split"}), config.data.model_dump(exclude={"split"})),
        "data.split": (own.data.split, config.data.split),
        "spec": (own.spec, config.spec),
    }
    differs = [name for name, (theirs, ours) in parts.items() if theirs != ours]
    raise ArtifactError(
        "the prepared data is not what the run was trained on",
        field=f"run {run.name}",
        found=f"prepared data {store.digest[:12]}, differs in {list_names(differs or ['the raw files'])}",
        expected=f"{trained_on[:12]}, which it was trained on",
        mend=f"run `recsys prepare {run.folder / 'config.yaml'}`, or train again",
    )


def _lineage(own: ExperimentConfig, store: Store, run: Run, bundle: Bundle) -> list[dict[str, Any]]:
    return [
        {"what": "recipe or source", "value": own.data.recipe or own.data.source},
        {"what": "prepared data", "value": str(store.folder)},
        {"what": "rows", "value": ", ".join(f"{s} {store.rows(s):,}" for s in ("train", "valid", "test"))},
        {
            "what": "rows dropped",
            "value": ", ".join(f"{k} {v:,}" for k, v in dropped_of(store).items()) or "none",
        },
        {"what": "manifest", "value": store.digest},
        {"what": "spec", "value": bundle.pipeline.spec.digest()},
        {"what": "config", "value": run.read("run.json")["config_digest"]},
        {"what": "fingerprint version", "value": store.manifest["fingerprint_version"]},
        {"what": "MLflow run", "value": run.read("train.json")["mlflow_run_id"] or "not tracked"},
        {"what": "bundle", "value": str(run.bundle)},
    ]
