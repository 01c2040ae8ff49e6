"""The prepared data becomes a trained model: a run folder with checkpoints and a bundle, tracked in MLflow."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from features.errors import ArtifactError
from features.loader import Loader
from features.store import Store
from pipelines.config import ExperimentConfig
from pipelines.console import Console, bytes_text
from pipelines.prepare import open_store
from pipelines.progress import Listeners, ProgressListener
from pipelines.tracking import MlflowListener, begin
from pipelines.workspace import Run, new_run, runs_of
from recsys.embeddings import plan_embedding
from recsys.models import CTRModel
from recsys.serving.bundle import save_bundle
from recsys.serving.registry import Registry
from recsys.training import Trainer, TrainingListener


def train(config: ExperimentConfig, console: Console, *, resume: bool = False) -> dict[str, Any]:
    """Train a model on the prepared data.

    Args:
        config: The experiment.
        console: Told about progress.
        resume: Go on with the newest run if it was cut; it must have the same config and data.

    Returns:
        run, bundle, best_epoch, valid (metrics), epochs, steps, stopped, examples_per_second, table_bytes, parameters,
        mlflow_run_id.

    Raises:
        ArtifactError: There is no prepared data or it does not fit; or there is nothing to resume.
    """
    store = open_store(config)
    model = build_model(config, store)
    run = _cut_run(config, store) if resume else None
    registry = Registry(config.tracking_uri) if config.tracking.enabled else None
    if run is None:
        run = new_run(config)
        run_id = begin(registry, config, run, store) if registry else None
        state = {"mlflow_run_id": run_id, "config_digest": config.digest(), "store_digest": store.digest}
        run.write("run.json", state)
    run_id = run.read("run.json")["mlflow_run_id"]
    console.note(f"run {run.name}: {_size_text(model)}")

    watch = ProgressListener(console)
    listeners: list[TrainingListener] = [watch]
    with ExitStack() as stack:
        stack.callback(watch.close)
        if registry and run_id:
            stack.enter_context(registry.running(run_id, system_metrics=config.tracking.system_metrics))
            mlflow = MlflowListener(registry, run_id)
            stack.callback(mlflow.flush)
            listeners.append(mlflow)
        trainer = Trainer(model, config.train, seed=config.seed, folder=run.checkpoints, listener=Listeners(listeners))
        loader = Loader(store, "train", config.train.batch_size, shuffle_seed=config.seed)
        valid = Loader(store, "valid", config.train.eval_batch_size)
        result = trainer.fit(loader, valid, resume=resume)
        save_bundle(run.bundle, model=model, pipeline=store.pipeline, metrics=result.best_metrics)
    summary: dict[str, Any] = {
        "run": run.name,
        "folder": str(run.folder),
        "bundle": str(run.bundle),
        "best_epoch": result.best_epoch,
        "valid": result.best_metrics,
        "epochs": len(result.history),
        "steps": result.steps,
        "stopped": result.stopped,
        "examples_per_second": round(result.examples_per_second, 1),
        **sizes(model),
        "mlflow_run_id": run_id,
    }
    run.write("train.json", {**summary, "history": result.history})
    metrics = ", ".join(f"{name} {value:.5f}" for name, value in result.best_metrics.items())
    console.note(
        f"run {run.name}: kept epoch {result.best_epoch} ({metrics}), {result.examples_per_second:,.0f} examples/s"
    )
    return summary


def dry_run(config: ExperimentConfig, console: Console) -> dict[str, Any]:
    """Print regions, rows, bytes and parameters without training.

    Returns:
        plan (a line a feature), table_bytes, rows, lookups, parameters.
    """
    model = build_model(config, open_store(config))
    console.table("embedding plan", model.plan.summary())
    console.note(_size_text(model))
    return {"plan": model.plan.summary(), **sizes(model)}


def build_model(config: ExperimentConfig, store: Store) -> CTRModel:
    """The untrained model of a config on its data."""
    plan = plan_embedding(store.layout, config.embedding, store.id_counts("train"))
    return CTRModel(
        store.layout,
        plan,
        config.model,
        seed=config.seed,
        optimizer=config.train.optimizer_of_table,
        kernel=config.embedding.kernel,
    )


def sizes(model: CTRModel) -> dict[str, int]:
    """What a model takes: table rows and bytes, lookups an example, parameters of the network and of the table."""
    plan = model.plan
    return {
        "table_bytes": plan.table_bytes,
        "table_rows": plan.rows,
        "table_parameters": plan.rows * plan.width,
        "network_parameters": sum(p.numel() for p in model.dense_parameters().values()),
        "lookups": plan.lookups,
        "embedding_width": plan.output_width,
    }


def _size_text(model: CTRModel) -> str:
    size = sizes(model)
    return (
        f"table of {size['table_rows']:,} rows x {model.plan.width} ({bytes_text(size['table_bytes'])}), "
        f"{size['lookups']} lookups an example, network of {size['network_parameters']:,} parameters"
    )


def _cut_run(config: ExperimentConfig, store: Store) -> Run:
    """The newest run, if it can be gone on with."""
    runs = runs_of(config)
    if not runs:
        raise ArtifactError(
            "there is no run to resume", field=str(config.folder / "runs"), mend="train without --resume"
        )
    run = runs[-1]
    state = run.read("run.json")
    for key, name, digest in (
        ("config_digest", "config", config.digest()),
        ("store_digest", "prepared data", store.digest),
    ):
        if state[key] != digest:
            raise ArtifactError(
                f"the {name} is not the one the run was started with",
                field=str(run.folder),
                mend=f"use {run.folder / 'config.yaml'}, or train without --resume",
            )
    return run
