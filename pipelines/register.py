"""A trained run becomes a registered version of a model, and the challenger alias points at it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from features.errors import ArtifactError, ConfigError
from pipelines.config import ExperimentConfig
from pipelines.console import Console
from pipelines.workspace import Run, trained_run
from recsys.models.convert import check_served_format
from recsys.serving.bundle import Bundle, load_bundle
from recsys.serving.registry import Registry


def register(
    config: ExperimentConfig, console: Console, *, run_name: str | None = None, format: str | None = None
) -> dict[str, Any]:
    """Register a run's bundle as an MLflow model.

    Args:
        config: Names the model, the alias and the store.
        console: Told the version.
        run_name: Which run; the newest trained one by default.
        format: Register what `recsys convert RUN --format FORMAT` made of the run.

    Returns:
        name, version, alias, uri, run, mlflow_run_id, tracking_uri. Of a run that missed a gate only run and
        gates_failed: it is not registered.

    Raises:
        ConfigError: There is no such format, or the run was trained with tracking off.
        ArtifactError: There is no trained run, it was not converted to the format, its gates were not checked yet, or
            the registry cannot be used.
    """
    run = trained_run(config, run_name)
    folder = run.bundle if format is None else _converted(run, format)
    bundle = load_bundle(folder)
    failed = _gates_failed(config, run) if format is None else _gates_failed_by(config, bundle)
    if failed:
        which = run.name if format is None else f"{run.name} in {format}"
        console.note(f"not registered: run {which} failed a gate ({', '.join(failed)})")
        return {"run": run.name, "gates_failed": failed}
    state = run.read("run.json")
    run_id = state["mlflow_run_id"]
    if run_id is None:
        raise ConfigError(
            "the run was trained without MLflow, so it cannot be registered",
            field="tracking.enabled",
            found=False,
            mend="train with tracking.enabled=true",
        )
    registry = Registry(config.tracking_uri)
    model_uri = registry.log_model(run_id, folder, bundle.pipeline.spec)
    tags = {"recsys.config_digest": state["config_digest"], "recsys.manifest_digest": state["store_digest"]}
    tags["recsys.format"] = bundle.model.plan.format_name
    version = registry.register(model_uri, run_id, config.registered_model, config.tracking.alias, tags)
    uri = f"models:/{version.name}@{config.tracking.alias}"
    console.note(f"registered: {version.name} version {version.version}, {uri}")
    return {
        "name": version.name,
        "version": version.version,
        "alias": config.tracking.alias,
        "uri": uri,
        "run": run.name,
        "mlflow_run_id": run_id,
        "tracking_uri": config.tracking_uri,
    }


def _converted(run: Run, format: str) -> Path:
    check_served_format(format)
    folder = run.converted(format)
    if not folder.is_dir():
        raise ArtifactError(
            "the run was not converted to this format",
            field=str(folder),
            found="no such folder",
            mend=f"run `recsys convert {run.folder} --format {format}`",
        )
    return folder


def _gates_failed_by(config: ExperimentConfig, converted: Bundle) -> list[str]:
    """The gates that a converted bundle missed on the test split."""
    found = converted.description["metrics"]
    if found["gates"] is None and config.gates:
        raise ArtifactError(
            "the gates were not checked on the converted model, which was measured on other data than its run's",
            field=f"bundle-{found['to']}",
            found=found["measured_on"],
            mend="move it away, and run `recsys convert` without DATA",
        )
    return list(found["gates_failed"])


def _gates_failed(config: ExperimentConfig, run: Run) -> list[str]:
    """The gates that the run's evaluation on the test split missed."""
    if (run.folder / "evaluation.json").is_file():
        return list(run.read("evaluation.json")["gates_failed"])
    if config.gates:
        raise ArtifactError(
            "the gates were not checked on this run", field=f"run {run.name}", mend="run `recsys evaluate` first"
        )
    return []
