"""A trained model meets the test split: exact metrics, pictures, the report, the gates.

The validation split can be looked at too; it has files of its own, and no gates.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from features.errors import ArtifactError, list_names
from features.loader import Loader
from features.store import Store
from pipelines.config import ExperimentConfig, Gate, load_config
from pipelines.console import Console, bytes_text
from pipelines.prepare import dropped_of, open_store
from pipelines.workspace import Run, trained_run, write_bytes
from recsys.evaluation.metrics import evaluate as metrics_of
from recsys.evaluation.plots import Picture, pictures_of
from recsys.evaluation.report import Figure, Section, cell_text, render_report
from recsys.serving.bundle import Bundle, load_bundle
from recsys.serving.registry import Registry
from recsys.training import Predictions, predict

METRICS = ("auc", "logloss", "normalised_entropy", "calibration_ratio", "ece", "gauc")
"""In the order they are shown; each may be undefined."""
GAPS = {"auc": "reference_auc_gap", "logloss": "reference_logloss_gap"}
"""How far the model is from the reference column: positive is worse than it."""


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
        run, split, metrics (of the first task), tasks (metrics of each), reference (metrics of the reference column,
        or None), gates, gates_failed, report, mlflow_run_id, seconds. Gates bound the test split only.

    Raises:
        ArtifactError: There is no trained run, or the prepared data is not what it was trained on.
    """
    store, run = open_store(config), trained_run(config, run_name)
    own = load_config(run.folder / "config.yaml")
    check_same_data(config, own, run, store)
    bundle = load_bundle(run.bundle)
    started = time.perf_counter()
    with console.progress("evaluating", store.rows(split)) as task:
        predictions = predict(bundle.model, Loader(store, split, config.train.eval_batch_size))
        task.update(store.rows(split))
    tasks = task_metrics(predictions, store.layout.label_names)
    metrics, reference = main_metrics(predictions, tasks)
    gates = check_gates(config.gates, metrics) if split == "test" else []
    trained = run.read("train.json")
    pictures = _pictures(predictions, trained)
    result: dict[str, Any] = {
        "run": run.name,
        "split": split,
        "metrics": metrics,
        "tasks": tasks,
        "reference": reference,
        "gates": gates,
        "gates_failed": [gate["metric"] for gate in gates if not gate["met"]],
        "report": str(run.result("report", split, ".html")),
        "mlflow_run_id": trained["mlflow_run_id"],
        "seconds": round(time.perf_counter() - started, 2),
    }
    for picture in pictures:
        write_bytes(run.result("pictures", split) / f"{picture.name}.png", picture.png)
        write_bytes(run.result("pictures", split) / f"{picture.name}.svg", picture.light)
    page = _report(own, store, run, bundle, result, trained, pictures)
    write_bytes(run.result("report", split, ".html"), page.encode())
    run.write(run.result("evaluation", split, ".json").name, result)
    _track(config, run, result)
    _show(console, result)
    return result


def task_metrics(predictions: Predictions, names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Metrics of every task.

    Args:
        predictions: With labels [N, T].
        names: T labels.

    Returns:
        By label. An undefined metric is None, and `undefined` says why.
    """
    assert predictions.labels is not None
    return {
        name: metrics_of(
            predictions.labels[:, i], predictions.probabilities[:, i], predictions.weight, predictions.group
        )
        for i, name in enumerate(names)
    }


def main_metrics(
    predictions: Predictions, tasks: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The metrics that gates bound, and those of the reference column.

    Args:
        predictions: With labels.
        tasks: Metrics of every task.

    Returns:
        The first task's metrics, with its gaps to the reference if there is one; the reference's, or None.
    """
    metrics = dict(next(iter(tasks.values())))
    if predictions.reference is None or predictions.labels is None:
        return metrics, None
    reference = metrics_of(predictions.labels[:, 0], predictions.reference, predictions.weight, predictions.group)
    return metrics | _gaps(metrics, reference), reference


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


def _gaps(metrics: Mapping[str, Any], reference: Mapping[str, Any]) -> dict[str, float | None]:
    gaps: dict[str, float | None] = {}
    for name, gap in GAPS.items():
        ours, theirs = metrics[name], reference[name]
        sign = 1 if name == "auc" else -1
        gaps[gap] = None if ours is None or theirs is None else sign * (theirs - ours)
    return gaps


def _show(console: Console, result: Mapping[str, Any]) -> None:
    reference = result["reference"]
    for label, metrics in result["tasks"].items():
        rows = []
        for name in (name for name in METRICS if name in metrics):
            row = {"metric": name, "value": metrics[name]}
            if reference is not None and label == next(iter(result["tasks"])):
                row["reference"] = reference.get(name)
            rows.append(row)
        console.table(f"{result['split']} split, {metrics['rows']:,} rows: {label}", rows)
        for name, reason in metrics["undefined"].items():
            console.note(f"{name} of {label} is undefined: {reason}")
    show_gates(console, result["gates"])
    console.note(f"report: {result['report']}")


def _track(config: ExperimentConfig, run: Run, result: Mapping[str, Any]) -> None:
    run_id = result["mlflow_run_id"]
    if run_id is None:
        return
    registry = Registry(config.tracking_uri)
    split = result["split"]
    rows: list[tuple[str, float, int]] = []
    for i, (label, metrics) in enumerate(result["tasks"].items()):
        values = result["metrics"] if i == 0 else metrics
        # `valid/...` are the training's own curves, which a point at step 0 would spoil
        head = split if split == "test" else f"{split}-final"
        prefix = head if i == 0 else f"{head}/{label}"
        rows += [(f"{prefix}/{name}", value, 0) for name, value in values.items() if isinstance(value, int | float)]
    registry.log_metrics(run_id, rows)
    pictures = run.result("pictures", split)
    registry.log_files(run_id, pictures, pictures.name)
    for stem, ending in (("report", ".html"), ("evaluation", ".json")):
        registry.log_files(run_id, run.result(stem, split, ending))


def _pictures(predictions: Predictions, trained: Mapping[str, Any]) -> list[Picture]:
    assert predictions.labels is not None
    labels = predictions.labels[:, 0]
    scores: dict[str, np.ndarray] = {"model": predictions.probabilities[:, 0]}
    if predictions.reference is not None:
        scores["reference"] = predictions.reference
    return pictures_of(
        labels, scores, weight=predictions.weight, history=trained["history"], best_epoch=trained["best_epoch"]
    )


def _report(
    own: ExperimentConfig,
    store: Store,
    run: Run,
    bundle: Bundle,
    result: Mapping[str, Any],
    trained: Mapping[str, Any],
    pictures: list[Picture],
) -> str:
    metrics, reference = result["metrics"], result["reference"]

    def beside(name: str) -> str:
        return "" if reference is None else f"reference {cell_text(reference[name])}"

    headline = [
        Figure("AUC", cell_text(metrics["auc"]), metrics["undefined"].get("auc") or beside("auc")),
        Figure("logloss", cell_text(metrics["logloss"]), beside("logloss")),
        Figure("calibration", cell_text(metrics["calibration_ratio"]), "expected over observed"),
        Figure("table", bytes_text(trained["table_bytes"]), f"{trained['table_rows']:,} rows"),
        Figure("training", f"{trained['examples_per_second']:,.0f}/s", f"{trained['epochs']} epochs"),
    ]
    rows: list[dict[str, Any]] = []
    for label, values in result["tasks"].items():
        row = {"task": label, "rows": values["rows"], "base_rate": values["base_rate"]}
        rows.append(row | {name: values[name] for name in METRICS if name in values})
    if reference is not None:
        row = {"task": f"{next(iter(result['tasks']))} (reference)", "rows": reference["rows"]}
        row["base_rate"] = reference["base_rate"]
        rows.append(row | {name: reference[name] for name in METRICS if name in reference})
    undefined = [
        f"{name} of {label} is undefined: {reason}."
        for label, values in result["tasks"].items()
        for name, reason in values["undefined"].items()
    ]
    lineage: list[dict[str, Any]] = [
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
        {"what": "MLflow run", "value": result["mlflow_run_id"] or "not tracked"},
        {"what": "bundle", "value": str(run.bundle)},
    ]
    sections: list[Section] = [
        Section(f"Metrics on the {result['split']} split", " ".join(undefined), rows, pictures),
        Section(
            "Embedding plan",
            "Where each feature's rows lie. Rows of the shared region serve all its features, so they count for none.",
            bundle.model.plan.summary(),
        ),
        Section("Epochs", f"Validation kept epoch {trained['best_epoch']}.", trained["history"]),
        Section("Lineage", "What this result was made from.", lineage),
    ]
    if result["gates"]:
        sections.insert(1, Section("Gates", "Bounds this model must keep.", result["gates"]))
    lead = (
        f"Run {run.name}: {bundle.model.config.interaction} over a {bundle.model.plan.kind} table, "
        f"{trained['network_parameters']:,} network parameters, {trained['lookups']} lookups an example."
    )
    return render_report(title=own.name, lead=lead, headline=headline, sections=sections)
