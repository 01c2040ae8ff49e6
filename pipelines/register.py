"""A trained run becomes a registered version of a model, and the challenger alias points at it."""

from __future__ import annotations

from typing import Any

from features.errors import ArtifactError, ConfigError
from pipelines.config import ExperimentConfig
from pipelines.console import Console
from pipelines.workspace import Run, trained_run
from recsys.serving.bundle import load_bundle
from recsys.serving.registry import Registry


def register(config: ExperimentConfig, console: Console, *, run_name: str | None = None) -> dict[str, Any]:
    """Register a run's bundle as an MLflow model.

    Args:
        config: Names the model, the alias and the store.
        console: Told the version.
        run_name: Which run; the newest trained one by default.

    Returns:
        name, version, alias, uri, run, mlflow_run_id, tracking_uri. Of a run that missed a gate only run and
        gates_failed: it is not registered.

    Raises:
        ConfigError: The run was trained with tracking off.
        ArtifactError: There is no trained run, its gates were not checked yet, or the registry cannot be used.
    """
    run = trained_run(config, run_name)
    failed = _gates_failed(config, run)
    if failed:
        console.note(f"not registered: run {run.name} failed a gate ({', '.join(failed)})")
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
    model_uri = registry.log_model(run_id, run.bundle, load_bundle(run.bundle).pipeline.spec)
    tags = {"recsys.config_digest": state["config_digest"], "recsys.manifest_digest": state["store_digest"]}
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


def _gates_failed(config: ExperimentConfig, run: Run) -> list[str]:
    """The gates that the run's evaluation on the test split missed."""
    if (run.folder / "evaluation.json").is_file():
        return list(run.read("evaluation.json")["gates_failed"])
    if config.gates:
        raise ArtifactError(
            "the gates were not checked on this run", field=f"run {run.name}", mend="run `recsys evaluate` first"
        )
    return []
