"""All that an evaluation measures of a model on labelled rows, as plain JSON: what a report shows, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import polars as pl

from features.batch import Batch
from features.errors import DataError, RecsysError
from features.frames import first_line
from features.pipeline import FeaturePipeline
from features.reading.joins import SideTables
from features.value_names import ValueNames, value_names
from pipelines.calibrate import calibration_effect
from pipelines.config import ExperimentConfig
from pipelines.console import Console
from pipelines.prepare import events_of
from recsys.embeddings.plan import IdCounts
from recsys.evaluation.cost import cost_of
from recsys.evaluation.curves import curves_of
from recsys.evaluation.divisions import divisions_of
from recsys.evaluation.feature_importance import DRAWS, ROWS, feature_importance
from recsys.evaluation.metrics import evaluate as metrics_of
from recsys.evaluation.metrics import evaluate_intervals
from recsys.evaluation.row_sample import RowSample
from recsys.evaluation.slices import miscalibrated, slice_metrics
from recsys.models import CTRModel
from recsys.serving.calibration import Calibration
from recsys.training import Predictions, predict

SLICE_ROWS = 500_000
"""Slices are made of so many rows at most."""
NAME_ROWS = 100_000
"""Raw rows that are looked through for the names of values."""
GAPS = {"auc": "reference_auc_gap", "logloss": "reference_logloss_gap"}
"""How far the model is from the reference column: positive is worse than it."""


def measure(
    model: CTRModel,
    batches: Iterable[Batch],
    console: Console,
    *,
    field: str,
    total: int | None = None,
    counts: IdCounts | None = None,
    names: ValueNames | None = None,
    calibration: Calibration | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Scores rows and measures everything.

    Args:
        model: In evaluation mode.
        batches: With labels.
        console: Told about progress.
        field: What an error calls the rows.
        total: How many rows there are, if that is known.
        counts: Distinct training values of each feature and how often each was seen.
        names: What people call values.
        calibration: The model's; everything but importance and cost is of calibrated probabilities.
        seed: Of samples and shuffles.

    Returns:
        metrics (of the first task, with its gaps to the reference), intervals (of them, by name), tasks (metrics of
        each), reference (metrics of the reference column, or None), calibration (see `calibration_effect`), curves (of
        model and reference), days (first and last, or None), slices, miscalibrated (places of the slices that are most
        surely off), importance, unseen (share of the rows whose value was not in training, by feature; empty without
        counts), cost.

    Raises:
        DataError: There are no rows or no labels, a score is not finite, or a label is not binary.
    """
    sample = RowSample(SLICE_ROWS, seed)
    with console.progress("evaluating", total) as task:
        predictions = predict(model, sample.watch(batches), calibration)
        task.update(sample.seen)
    if predictions.labels is None or not sample.seen:
        raise DataError("there are no labelled rows to evaluate on", field=field, found=f"{sample.seen:,} rows")
    tasks = task_metrics(predictions, model.layout.label_names)
    metrics, reference = main_metrics(predictions, tasks)
    labels, scores, weight = predictions.labels[:, 0], predictions.probabilities[:, 0], predictions.weight
    intervals = evaluate_intervals(labels, scores, weight, predictions.group)
    curves = {"model": curves_of(labels, scores, weight)}
    if predictions.reference is not None:
        curves["reference"] = curves_of(labels, predictions.reference, weight)
    batch, places = sample.batch, sample.places
    divisions = divisions_of(model.layout, batch, counts=counts, names=names)
    slices = slice_metrics(labels[places], scores[places], divisions, None if weight is None else weight[places])
    with console.progress("importance", None):
        chosen = RowSample(ROWS, seed)
        for _ in chosen.watch([batch]):
            pass
        importance = feature_importance(model, chosen.batch, seed=seed) if len(chosen.batch) > 1 else []
    order = {id(one): place for place, one in enumerate(slices.found)}
    return {
        "metrics": metrics,
        "intervals": {name: interval.to_json() for name, interval in intervals.items()},
        "tasks": tasks,
        "reference": reference,
        "calibration": calibration_effect(predictions, calibration, model.layout.label_names),
        "curves": curves,
        "days": None if batch.time is None else _days(batch.time.numpy()),
        "slices": slices.to_json(),
        "miscalibrated": [order[id(one)] for one in miscalibrated(slices)],
        "importance": {
            "rows": len(chosen.batch),
            "draws": DRAWS,
            "seed": seed,
            "features": [one.to_json() for one in importance],
        },
        "unseen": _unseen(model, batch, counts or {}),
        "cost": cost_of(model, batch).to_json(),
    }


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


def names_from(pipeline: FeaturePipeline, frame: Callable[[], pl.LazyFrame]) -> tuple[ValueNames, str | None]:
    """Names of values from the first raw rows; without them, those that are known by themselves, and why.

    Args:
        pipeline: That of the model.
        frame: Opens the raw rows.
    """
    try:
        return value_names(pipeline, frame().head(NAME_ROWS).collect()), None
    except (RecsysError, pl.exceptions.PolarsError, OSError) as error:
        why = f"values stand by their fingerprints, as the raw rows cannot be read: {first_line(error).rstrip('.')}"
        return value_names(pipeline), why


def raw_events(config: ExperimentConfig) -> pl.LazyFrame:
    """The raw events of an experiment, with the columns of its side tables."""
    data, spec = config.data, config.spec
    sides = SideTables(data.join, time=spec.time, time_unit=spec.time_unit, storage_options=data.resolved_options)
    return events_of(data, sides)


def _gaps(metrics: Mapping[str, Any], reference: Mapping[str, Any]) -> dict[str, float | None]:
    gaps: dict[str, float | None] = {}
    for name, gap in GAPS.items():
        ours, theirs = metrics[name], reference[name]
        sign = 1 if name == "auc" else -1
        gaps[gap] = None if ours is None or theirs is None else sign * (theirs - ours)
    return gaps


def _days(times: np.ndarray) -> list[str]:
    return [str(np.datetime64(int(time), "us").astype("datetime64[D]")) for time in (times.min(), times.max())]


def _unseen(model: CTRModel, batch: Batch, counts: IdCounts) -> dict[str, float]:
    return {
        name: float((~np.isin(batch.ids[:, place].numpy(), counts[name][0])).mean())
        for place, name in enumerate(model.layout.id_names)
        if name in counts
    }
