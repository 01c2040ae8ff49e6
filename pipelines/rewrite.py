"""What jobs share that write a trained model anew: where it comes from and goes to; old and new on the same rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from features.errors import ArtifactError, ConfigError
from pipelines.config import load_config
from pipelines.console import Console
from pipelines.evaluate import check_gates, main_metrics, show_gates, task_metrics
from pipelines.models import OpenedModel, open_model
from pipelines.workspace import Run, run_at
from recsys.evaluation.report import cell_text
from recsys.models import CTRModel
from recsys.serving.registry import is_model_uri
from recsys.training import predict

METRICS = ("auc", "logloss", "calibration_ratio")


@dataclass(frozen=True)
class Original(OpenedModel):
    """The model that is to be written anew."""

    place: Path
    """Where the new bundle goes; nothing is there."""


def open_original(model: str, tracking_uri: str, suffix: str, out: Path | None) -> Original:
    """Finds and loads a trained model.

    Args:
        model: `models:/NAME@ALIAS` or `models:/NAME/VERSION`, or the folder of a run or of a bundle.
        tracking_uri: Store of the registry.
        suffix: Ends the name of the new bundle's folder.
        out: The new bundle's folder. By default `bundle-SUFFIX` of the run, `FOLDER-SUFFIX` beside a bundle,
            `NAME-SUFFIX` here for a registered model.

    Raises:
        ArtifactError: There is no such model, or the new folder exists.
        ConfigError: The model has no table.
    """
    run = None if is_model_uri(model) else run_at(model)
    place = out or _default_place(model, suffix, run)
    if place.exists():
        raise ArtifactError(
            "is there already, and is not replaced", field=str(place), mend="move it away, or choose another --out"
        )
    opened = open_model(model, tracking_uri)
    if not opened.bundle.model.plan.rows:
        raise ConfigError(
            "the model has no table, so that there is nothing to prune or convert",
            field="model",
            found=f"{opened.name}, in which no feature has chunks",
            expected="a model that reads rows",
            mend="use it as it is, or train one with embedding.chunks",
        )
    return Original(opened.name, opened.folder, opened.bundle, opened.run, place)


def compare(original: Original, new: CTRModel, data: str | None, console: Console) -> dict[str, Any]:
    """Measures the original and what was made of it on the same rows, none of them trained on, with one calibration.

    Returns:
        measured_on, metrics and old_metrics (of the first task), change (of each metric), max_change (the largest of a
        probability; all of these None without data), gates and gates_failed (of the run's config, on its test split;
        gates None when they were not checked).
    """
    result: dict[str, Any] = {
        **dict.fromkeys(("measured_on", "metrics", "old_metrics", "change", "max_change", "gates")),
        "gates_failed": [],
    }
    rows = original.rows(data, "test")
    if rows is None:
        return result
    result["measured_on"] = rows.text
    with console.progress("measuring", None) as task:
        before = predict(original.bundle.model, rows.read(), original.bundle.calibration)
        task.update(len(before.probabilities))
        after = predict(new, rows.read(), original.bundle.calibration)
    names = original.bundle.pipeline.layout.label_names
    old, now = (main_metrics(p, task_metrics(p, names))[0] for p in (before, after))
    result["old_metrics"], result["metrics"] = old, now
    result["change"] = {k: _difference(now[k], old[k]) for k in METRICS}
    result["max_change"] = float(np.abs(after.probabilities - before.probabilities).max(initial=0))
    if original.run is not None and data is None:
        result["gates"] = check_gates(load_config(original.run.folder / "config.yaml").gates, now)
        result["gates_failed"] = [gate["metric"] for gate in result["gates"] if not gate["met"]]
    return result


def show_comparison(console: Console, result: dict[str, Any], old: str, new: str, cost_of: str) -> None:
    """Shows what `compare` gave.

    Args:
        console: Shows it.
        result: Of `compare`.
        old: Heads the column of the original.
        new: Heads the other one.
        cost_of: What was done, for people.
    """
    if result["metrics"] is None:
        console.note(f"name DATA to measure what {cost_of} costs: prepared data, or raw rows with labels")
    else:
        lines = [
            {
                "metric": name,
                old: result["old_metrics"][name],
                new: result["metrics"][name],
                "change": result["change"][name],
            }
            for name in METRICS
        ]
        console.note(f"measured on: {result['measured_on']}")
        console.table(f"{result['metrics']['rows']:,} rows", lines)
        for name, reason in result["metrics"]["undefined"].items():
            console.note(f"{name} is undefined: {reason}")
        console.note(f"the largest change of a probability is {cell_text(result['max_change'])}")
    show_gates(console, result["gates"] or [])


def _default_place(model: str, suffix: str, run: Run | None) -> Path:
    if run is not None:
        return run.converted(suffix)
    if is_model_uri(model):
        name = model.removeprefix("models:/").partition("@")[0].partition("/")[0]
        return Path(f"{name}-{suffix}")
    folder = Path(model).resolve()
    return folder.with_name(f"{folder.name}-{suffix}")


def _difference(new: float | None, old: float | None) -> float | None:
    return None if new is None or old is None else new - old
