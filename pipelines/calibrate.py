"""After training: a calibration fitted on the validation split; and what it does to the probabilities of other rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from features.errors import UndefinedMetricError
from features.loading.loader import Loader
from features.storage.store import Store
from pipelines.config import ExperimentConfig
from pipelines.console import Console
from recsys.evaluation.metrics import evaluate as metrics_of
from recsys.models import CTRModel
from recsys.serving.calibration import Calibration, fit_calibration, sigmoid
from recsys.training import Predictions, predict

METRICS = ("logloss", "ece", "calibration_ratio", "auc")


def check_calibration(config: ExperimentConfig, store: Store) -> None:
    """Refuses a calibration that could not be fitted, before anything is trained.

    Raises:
        UndefinedMetricError: A label has one class only on the validation split.
    """
    for label, mean in store.manifest["label_means"]["valid"].items():
        if config.calibration and mean in (0, 1):
            raise UndefinedMetricError(
                "a calibration cannot be fitted on the validation split",
                field="calibration",
                found=f"every {label} is {mean:.0f}",
                mend="split the data so that validation holds both classes, or set calibration to null",
            )


def calibrate(config: ExperimentConfig, store: Store, model: CTRModel, console: Console) -> Calibration | None:
    """The calibration that the config asks for, fitted on the validation split; None if it asks for none."""
    if config.calibration is None:
        return None
    valid = predict(model, Loader(store, "valid", config.train.eval_batch_size))
    assert valid.logits is not None
    assert valid.labels is not None
    found = fit_calibration(config.calibration, valid.logits, valid.labels, valid.weight, store.layout.label_names)
    console.note(f"calibration: {config.calibration}, fitted on {len(valid.labels):,} rows of the validation split")
    return found


def calibration_effect(
    predictions: Predictions, calibration: Calibration | None, names: tuple[str, ...]
) -> dict[str, Any] | None:
    """Metrics without the calibration and with it.

    Args:
        predictions: With labels [N, T], of a calibrated model.
        calibration: The model's.
        names: T labels.

    Returns:
        method, and tasks: label -> metric -> {before, after}; None without a calibration. An undefined metric is None.
    """
    if calibration is None:
        return None
    assert predictions.logits is not None
    assert predictions.labels is not None
    before = sigmoid(predictions.logits)
    tasks: dict[str, Any] = {}
    for i, name in enumerate(names):
        old, new = (
            metrics_of(predictions.labels[:, i], p[:, i], predictions.weight)
            for p in (before, predictions.probabilities)
        )
        tasks[name] = {metric: {"before": old[metric], "after": new[metric]} for metric in METRICS}
    return {"method": calibration.method, "tasks": tasks}


def show_effect(console: Console, effect: Mapping[str, Any] | None) -> None:
    """Shows what `calibration_effect` gave."""
    for label, metrics in effect["tasks"].items() if effect else ():
        rows = [{"metric": name, **values} for name, values in metrics.items()]
        console.table(f"{effect['method']} calibration of {label}" if effect else "", rows)
