"""The prepared data becomes a trained model: a run folder with checkpoints and a bundle, tracked in MLflow.

`torchrun --nproc_per_node 2 -m pipelines.train CONFIG` is `recsys train CONFIG` in two processes, of which the first
keeps the run folder, MLflow and the console.
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from features.errors import ArtifactError, UndefinedMetricError
from features.loading.loader import Loader
from features.storage.store import Store
from pipelines.calibrate import calibrate, check_calibration
from pipelines.config import ExperimentConfig
from pipelines.console import Console, bytes_text
from pipelines.diagnostics import diagnose_run
from pipelines.prepare import open_store
from pipelines.progress import Listeners, ProgressListener
from pipelines.teacher import teacher_of
from pipelines.thresholds import check_thresholds, without_what_did_not_pass
from pipelines.tracking import MlflowListener, begin, log_warm_start
from pipelines.warm_start import check_start, find_model, start_from
from pipelines.workspace import Run, check_started_with, new_run, runs_of
from recsys.embeddings import EmbeddingPlan, plan_embedding
from recsys.embeddings.sharded import ShardedTable
from recsys.memory import available_memory, require_memory
from recsys.models import CTRModel
from recsys.processes import Processes, joined, launched, launched_count, leave, restarted
from recsys.search.thresholds import ThresholdTrainer
from recsys.serving.bundle import save_bundle
from recsys.serving.registry import Registry
from recsys.tensorfile import write_tensors
from recsys.training import TrainConfig, Trainer, TrainingListener, load_best
from recsys.training.checkpoints import Checkpoints
from recsys.training.distributed import DistributedTrainer, check_distributed, sharded_model
from recsys.training.footprint import training_memory
from recsys.training.sharded_checkpoints import ShardedCheckpoints
from recsys.training.teacher import Teacher


def train(config: ExperimentConfig, console: Console, *, resume: bool = False) -> dict[str, Any]:
    """Train a model on the prepared data.

    Args:
        config: The experiment.
        console: Told about progress.
        resume: Go on with the newest run if it was cut; it must have the same config and data. A run that came to
            its end is left as it is, and its summary returned.

    Returns:
        run, folder, bundle, best_epoch, valid (metrics), epochs, steps, stopped, skipped_steps, examples_per_second,
        table_bytes, table_rows, table_parameters, network_parameters, lookups, embedding_width, memory_bytes,
        training_bytes (all that the embedding held while it trained, optimizer and moving average included),
        warm_start (see `start_from`; None without one), thresholds (see `without_what_did_not_pass`; None without
        them), calibration (its method, or None), processes, mlflow_run_id. The table's other figures are those of the
        bundle.

    Raises:
        ConfigError: Some settings do not go together; no run is begun.
        UndefinedMetricError: The metric that picks the epoch does not exist on the validation split; likewise.
        ArtifactError: There is no prepared data or it does not fit; or there is nothing to resume.
        ProcessLostError: Under torchrun, another process died.
    """
    store = open_store(config)
    plan = plan_of(config, store)
    size = check_trainable(config, store, plan)
    passed: dict[str, Any] | None = None
    if not launched():  # of a divided table the parts are looked at when they are planned
        require_memory(training_memory(store.layout, plan, config.model, config.train))
    with joined(config.train.distributed.timeout_seconds) as processes:
        _check_alike(processes, config, store)
        run = processes.first(lambda: _run_to_resume(config, store, resume))
        resume = run is not None
        finished = processes.first(lambda: run.read("train.json") if run is not None and run.trained else None)
        if run is not None and finished is not None:
            del finished["history"]
            console.note(f"run {run.name}: was finished already, nothing is trained")
            return finished
        taught_by = processes.first(lambda: _teacher_name(config, run))
        teacher = teacher_of(config, store, taught_by)
        model = _model_for(processes, config, store, plan)
        started = _take_over(processes, config, store, plan, model, run, console) if config.train.warm_start else None
        parts: dict[str, Any] = {"rank": processes.rank, "world_size": processes.count}
        loader = Loader(store, "train", config.train.batch_size, shuffle_seed=config.seed, **parts)
        valid = Loader(store, "valid", config.train.eval_batch_size, **parts)
        run, run_id = processes.first(lambda: _begin(config, store, run, started, taught_by, console))
        _check_shared(processes, run)
        console.note(f"run {run.name}: {_size_text(size, plan)}")
        if taught_by:
            console.note(f"learning from {taught_by}, whose probabilities weigh {config.train.distill:g}")

        watch = ProgressListener(console)
        listeners: list[TrainingListener] = [watch]
        with ExitStack() as stack:
            stack.callback(watch.close)
            registry = Registry(config.tracking_uri) if processes.rank == 0 and run_id else None
            if registry and run_id:
                stack.enter_context(registry.running(run_id, system_metrics=config.tracking.system_metrics))
                mlflow = MlflowListener(registry, run_id)
                stack.callback(mlflow.flush)
                listeners.append(mlflow)
            trainer = _trainer_for(processes, config, model, run, Listeners(listeners), teacher)
            table = model.embedding.table
            if isinstance(table, ShardedTable) and processes.rank == 0:
                console.table(f"table over {processes.count} processes", table.report())
                run.write("sharding.json", {"parts": table.report()})
                if registry and run_id:
                    registry.log_files(run_id, run.folder / "sharding.json")
            result = trainer.fit(loader, valid, resume=resume)
            if processes.rank == 0:
                if processes.connected:
                    model = _whole_model(config, store, plan, run)
                size["training_bytes"] = model.embedding.training_bytes
                if config.thresholds:
                    model, passed = without_what_did_not_pass(model, store, console)
                    size |= table_size(model.plan)
                save_bundle(
                    run.bundle,
                    model=model,
                    pipeline=store.pipeline,
                    metrics=result.best_metrics,
                    calibration=calibrate(config, store, model, console),
                )
                if registry and run_id and config.tracking.diagnostics_rows and plan.lookups:
                    files, scalars = diagnose_run(config, run, model, store, console)
                    values = [(f"table/{name}", value, result.steps) for name, value in scalars.items()]
                    registry.log_metrics(run_id, values)
                    for file in files:
                        registry.log_files(run_id, file)
    summary = {
        "run": run.name,
        "folder": str(run.folder),
        "bundle": str(run.bundle),
        "best_epoch": result.best_epoch,
        "valid": result.best_metrics,
        "epochs": len(result.history),
        "steps": result.steps,
        "stopped": result.stopped,
        "skipped_steps": result.skipped_steps,
        "examples_per_second": round(result.examples_per_second, 1),
        **size,
        "warm_start": started and {key: value for key, value in started.items() if key != "report"},
        "thresholds": passed,
        "calibration": config.calibration,
        "processes": processes.count,
        "mlflow_run_id": run_id,
    }
    if processes.rank == 0:
        run.write("train.json", {**summary, "history": result.history})
    metrics = ", ".join(f"{name} {value:.5f}" for name, value in result.best_metrics.items())
    console.note(
        f"run {run.name}: kept epoch {result.best_epoch} ({metrics}), {result.examples_per_second:,.0f} examples/s"
    )
    return summary


def dry_run(config: ExperimentConfig, console: Console) -> dict[str, Any]:
    """Print regions, rows, bytes and parameters without training; the table is never in memory.

    Returns:
        plan (a line a feature), table_bytes, table_rows, table_parameters, network_parameters, lookups,
        embedding_width, memory_bytes (an estimate of what training takes).

    Raises:
        RecsysError: What `train` would refuse before its first step; but for a table beyond this machine's memory, of
            which the figures are shown.
    """
    store = open_store(config)
    plan = plan_of(config, store)
    size = check_trainable(config, store, plan)
    teacher_of(config, store, _teacher_name(config, None))
    if config.train.warm_start:
        check_start(config, store, model_of(config, store, replace(plan, rows=min(plan.rows, 1))))
    console.table("embedding plan", plan.summary())
    console.note(_size_text(size, plan))
    available = bytes_text(available_memory())
    console.note(f"training takes about {bytes_text(size['memory_bytes'])} of memory; {available} is available")
    return {"plan": plan.summary(), **size}


def plan_of(config: ExperimentConfig, store: Store) -> EmbeddingPlan:
    """Where every feature's rows would lie."""
    return plan_embedding(store.layout, config.embedding, store.id_counts("train"))


def _begin(
    config: ExperimentConfig,
    store: Store,
    run: Run | None,
    started: dict[str, Any] | None,
    teacher: str | None,
    console: Console,
) -> tuple[Run, str | None]:
    """The run folder, made unless it is gone on with, and the MLflow run if there is tracking."""
    registry = Registry(config.tracking_uri) if config.tracking.enabled else None
    if run is None:
        run, run_id = new_run(config), None
    else:
        run_id = run.read("run.json")["mlflow_run_id"]
    begun = registry is not None and (run_id is None or not registry.has_run(run_id))
    if registry and begun:
        if run_id is not None:
            console.note(f"MLflow knows no run {run_id}: a new one is begun, without the steps before the cut")
        run_id = begin(registry, config, run, store, teacher)
    digests = {"config_digest": config.digest(), "store_digest": store.digest}
    run.write("run.json", {"mlflow_run_id": run_id, **digests, "teacher": teacher})
    if started is not None:
        run.write("warm_start.json", started)
        if registry and begun and run_id:
            log_warm_start(registry, run_id, run, started)
    return run, run_id if registry else None


def model_of(config: ExperimentConfig, store: Store, plan: EmbeddingPlan) -> CTRModel:
    return CTRModel(
        store.layout,
        plan,
        config.model,
        seed=config.seed,
        optimizer=config.train.optimizer_of_table,
        kernel=config.embedding.kernel,
    )


def _take_over(
    processes: Processes,
    config: ExperimentConfig,
    store: Store,
    plan: EmbeddingPlan,
    model: CTRModel,
    run: Run | None,
    console: Console,
) -> dict[str, Any]:
    """Starts the model from a trained one; if its table is divided, by way of a whole one in the first process."""
    if not processes.connected:
        return _started_from(config, store, model, run, console)
    aside = config.folder / f".warm_start.{processes.first(os.getpid)}.tmp"

    def take_over() -> dict[str, Any]:
        whole = model_of(config, store, plan)
        started = _started_from(config, store, whole, run, console)
        write_tensors(aside, whole.tensors(), {})
        return started

    started = processes.first(take_over)
    ShardedCheckpoints(aside.parent, processes).restore(aside, model.tensors())
    processes.each(None)  # all have read it
    processes.first(aside.unlink)
    return started


def _started_from(
    config: ExperimentConfig, store: Store, model: CTRModel, run: Run | None, console: Console
) -> dict[str, Any]:
    """Starts the model from a trained one; of a run that was cut, as it was told when it began."""
    told = run.read("warm_start.json") if run is not None and run.has("warm_start.json") else None
    if told is not None and run is not None and Checkpoints(run.checkpoints).newest():
        return told  # the checkpoint holds what came of it
    assert config.train.warm_start is not None
    trained = told["model"] if told else find_model(config, config.train.warm_start)
    return start_from(config, store, model, trained, console)


def _teacher_name(config: ExperimentConfig, run: Run | None) -> str | None:
    """What the model learns from; of a run that was cut, as it was named when it began."""
    if config.train.teacher is None:
        return None
    told = run.read("run.json")["teacher"] if run is not None and run.has("run.json") else None
    return told or find_model(config, config.train.teacher)


def _model_for(processes: Processes, config: ExperimentConfig, store: Store, plan: EmbeddingPlan) -> CTRModel:
    if not processes.connected:
        return model_of(config, store, plan)
    return sharded_model(store.layout, plan, config.model, seed=config.seed, train=config.train, processes=processes)


def _whole_model(config: ExperimentConfig, store: Store, plan: EmbeddingPlan, run: Run) -> CTRModel:
    """The best weights of several processes in this one, with what the table's optimizer remembers."""
    model, checkpoints = model_of(config, store, plan), Checkpoints(run.checkpoints)
    load_best(model, run.checkpoints)
    last = checkpoints.newest()
    if last is not None:
        state = model.embedding.table.optimizer_state()
        checkpoints.restore(last, {f"table_optimizer.{name}": t for name, t in state.items()})
    return model


def _trainer_for(
    processes: Processes,
    config: ExperimentConfig,
    model: CTRModel,
    run: Run,
    listener: TrainingListener,
    teacher: Teacher | None,
) -> Trainer:
    common: dict[str, Any] = {
        "seed": config.seed,
        "folder": run.checkpoints,
        "listener": listener,
        "teacher": teacher,
    }
    if not processes.connected:
        return local_trainer(config, model, **common)
    return DistributedTrainer(model, config.train, processes=processes, **common)


def local_trainer(config: ExperimentConfig, model: CTRModel, **common: Any) -> Trainer:
    """The trainer of one process; thresholds know no other."""
    if config.thresholds:
        return ThresholdTrainer(model, config.train, thresholds=config.thresholds, **common)
    return Trainer(model, config.train, **common)


def _check_alike(processes: Processes, config: ExperimentConfig, store: Store) -> None:
    """All processes have read the same config and data, wherever they run."""
    division = config.train.distributed.model_dump_json()  # which is not of the digest
    for name, digest in (("config", config.digest() + division), ("prepared data", store.digest)):
        digests = processes.each(digest)
        other = next((rank for rank, theirs in enumerate(digests) if theirs != digests[0]), None)
        if other is not None:
            raise ArtifactError(
                f"the processes have not the same {name}",
                field=f"process {other}",
                found=digests[other],
                expected=f"{digests[0]}, as process 0",
                mend="start them with the same command, on storage that all machines share",
            )


def _check_shared(processes: Processes, run: Run) -> None:
    """All processes see the folder they are to write their checkpoints to."""
    blind = [rank for rank, seen in enumerate(processes.each(run.folder.is_dir())) if not seen]
    if blind:
        raise ArtifactError(
            "the run's folder is not on storage that all processes share",
            field=str(run.folder.resolve()),
            found=f"not seen by process {', '.join(map(str, blind))}",
            mend="set workspace to a folder that all machines share",
        )


def check_trainable(config: ExperimentConfig, store: Store, plan: EmbeddingPlan) -> dict[str, int]:
    """Refuses what could not be trained, before a table is made or a run begun.

    Returns:
        What the model takes: table rows and bytes, lookups an example, parameters of the network and of the table, and
        about how much memory training takes.
    """
    if launched():
        check_distributed(config.train, config.embedding, plan, launched_count())
    if config.thresholds:
        check_thresholds(plan, launched_count())
    check_calibration(config, store)
    # The network and the checks of the trainer are the same whatever the number of rows.
    small = replace(plan, rows=min(plan.rows, 1))
    require_memory(training_memory(store.layout, small, config.model, _of_one_process(config.train)))
    outline = model_of(config, store, small)
    local_trainer(config, outline, seed=config.seed, folder=config.folder)
    label, mean = next(iter(store.manifest["label_means"]["valid"].items()))
    if config.train.monitor == "auc" and mean in (0, 1):
        raise UndefinedMetricError(
            "auc is undefined on the validation split",
            field="train.monitor",
            found=f"every {label} is {mean:.0f}",
            mend="split the data so that validation holds both classes, or set train.monitor to logloss",
        )
    return {
        **table_size(plan),
        "network_parameters": sum(p.numel() for p in outline.dense_parameters().values()),
        "lookups": plan.lookups,
        "embedding_width": plan.output_width,
        "memory_bytes": sum(part.bytes for part in training_memory(store.layout, plan, config.model, config.train)),
    }


def table_size(plan: EmbeddingPlan) -> dict[str, int]:
    """What the table of a plan takes."""
    return {
        "table_bytes": plan.table_bytes,
        "table_rows": plan.rows,
        "table_parameters": plan.rows * plan.width,
    }


def _of_one_process(train: TrainConfig) -> TrainConfig:
    """The training as one of the processes meets it: with its part of every batch."""
    count = launched_count()
    sizes = {name: -(-getattr(train, name) // count) for name in ("batch_size", "eval_batch_size")}
    return train.model_copy(update=sizes)


def _size_text(size: dict[str, int], plan: EmbeddingPlan) -> str:
    return (
        f"table of {size['table_rows']:,} rows x {plan.width} ({bytes_text(size['table_bytes'])}), "
        f"{size['lookups']} lookups an example, network of {size['network_parameters']:,} parameters"
    )


def _run_to_resume(config: ExperimentConfig, store: Store, resume: bool) -> Run | None:
    """The run to go on with: if it is asked for, or if torchrun starts the processes again after one was lost."""
    runs = runs_of(config)
    if resume or (restarted() and runs and not runs[-1].trained):
        return _newest_run(config, store)
    return None


def _newest_run(config: ExperimentConfig, store: Store) -> Run:
    """The newest run, if it has this config and this data."""
    runs = runs_of(config)
    if not runs:
        raise ArtifactError(
            "there is no run to resume", field=str(config.folder / "runs"), mend="train without --resume"
        )
    run = runs[-1]
    digests = {"config_digest": ("config", config.digest()), "store_digest": ("prepared data", store.digest)}
    check_started_with(run, run.read("run.json"), digests, "run", "train")
    return run


if __name__ == "__main__":
    from pipelines.cli import main

    try:
        main(["train", *sys.argv[1:]])
    except SystemExit as end:
        if launched() and not end.code:
            leave(0)
        raise
