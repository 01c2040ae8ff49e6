"""Tells MLflow about a training: metrics are buffered and sent in batches, since one call costs milliseconds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from features.storage.store import Store
from pipelines.config import ExperimentConfig
from pipelines.workspace import Run
from recsys.serving.registry import Registry

if TYPE_CHECKING:
    from recsys.training import TrainResult

BUFFER = 500
"""Metrics held back before they are sent."""


class MlflowListener:
    """A `TrainingListener` that sends what it is told to a run."""

    def __init__(self, registry: Registry, run_id: str) -> None:
        self._registry, self._run_id = registry, run_id
        self._rows: list[tuple[str, float, int]] = []

    def on_start(self, total_steps: int, total_epochs: int, step: int) -> None:
        """Nothing to tell yet."""

    def on_step(self, step: int, values: dict[str, float]) -> None:
        """Hold the loss and the rate."""
        self._hold(values, step)
        if len(self._rows) >= BUFFER:
            self.flush()

    def on_epoch(self, epoch: int, step: int, values: dict[str, float]) -> None:
        """Send the epoch's metrics; `epoch` is logged beside them so that charts can use either axis."""
        self._hold({**values, "epoch": epoch}, step)
        self.flush()

    def on_end(self, result: TrainResult) -> None:
        """Send the rest and the speed."""
        values = {
            "train/examples_per_second": result.examples_per_second,
            "train/skipped_steps": result.skipped_steps,
            "best_epoch": result.best_epoch,
        }
        self._hold(values, result.steps)
        self.flush()

    def flush(self) -> None:
        """Send what is held."""
        if self._rows:
            self._registry.log_metrics(self._run_id, self._rows)
            self._rows = []

    def _hold(self, values: dict[str, float], step: int) -> None:
        self._rows += [(name, value, step) for name, value in values.items() if math.isfinite(value)]


def begin(registry: Registry, config: ExperimentConfig, run: Run, store: Store, teacher: str | None) -> str:
    """Begin the MLflow run of a training: parameters, resolved config, spec, manifest and its hash, and its teacher.

    Returns:
        The run's id.
    """
    tags = {
        "recsys.run": str(run.folder.resolve()),
        "recsys.config_digest": config.digest(),
        "recsys.spec_digest": config.spec.digest(),
        "recsys.manifest_digest": store.digest,
        **({"recsys.teacher": teacher} if teacher else {}),
    }
    experiment = config.tracking.experiment or config.name
    run_id = registry.start_run(experiment, f"{config.name}-{run.name}", tags)
    registry.log_params(run_id, params_of(config))
    registry.log_files(run_id, run.folder / "config.yaml")
    for name in ("manifest.json", "spec.json"):
        registry.log_files(run_id, config.store_folder / name, "data")
    return run_id


def log_warm_start(registry: Registry, run_id: str, run: Run, started: Mapping[str, Any]) -> None:
    """Tell what a training started from, before its first step."""
    names = ("auc", "logloss", "old_auc", "old_logloss")
    rows = [(f"warm_start/{name}", started[name], 0) for name in names if started[name] is not None]
    rows.append(("warm_start/lookups_kept", started["report"]["lookups_kept"], 0))
    registry.log_metrics(run_id, rows)
    registry.log_files(run_id, run.folder / "warm_start.json")


def params_of(config: ExperimentConfig) -> dict[str, Any]:
    """What MLflow shows as a run's parameters."""
    # The spec is a file of its own; as parameters it would bury the rest.
    return {key: value for key, value in config.to_json().items() if key != "spec"}
