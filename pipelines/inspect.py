"""Shows what is on disk for an experiment (data, plan, runs), or what a model holds and how it uses its table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from features.errors import ArtifactError, ConfigError
from pipelines.config import ExperimentConfig, load_config
from pipelines.console import Console, bytes_text
from pipelines.diagnostics import ROWS, Sample, data_sample, run_state, split_sample
from pipelines.models import OpenedModel, check_one_source, open_model
from pipelines.prepare import dropped_of, open_store
from pipelines.table_page import show, table_page
from pipelines.workspace import Run, runs_of, write_bytes
from recsys.embeddings.diagnostics import Diagnostics, diagnose
from recsys.embeddings.plan import EmbeddingPlan, plan_embedding
from recsys.models import CTRModel
from recsys.serving.signature import column_types, output_names


def inspect(config: ExperimentConfig, console: Console, *, html: Path | None = None) -> dict[str, Any]:
    """Show an experiment's prepared data, how its table would be used, and its runs.

    Args:
        config: The experiment.
        console: Shows the tables.
        html: Where to write the page about the table.

    Returns:
        store, digest, rows, label_means, dropped, features (distinct training values and the share of the most
        frequent), table_bytes, plan (a line a feature), diagnostics (what follows from addresses, over all training
        rows), html, runs.
    """
    store = open_store(config)
    rows = {split: store.rows(split) for split in ("train", "valid", "test")}
    console.table("prepared data", [{"split": split, "rows": count} for split, count in rows.items()])
    features = []
    counts = store.id_counts("train")
    for name, (fingerprints, seen) in counts.items():
        top = float(seen.max() / seen.sum()) if len(seen) else None
        once = float((seen == 1).mean()) if len(seen) else None
        features.append({"feature": name, "values": len(fingerprints), "most_frequent": top, "seen_once": once})
    console.table("categorical features, training split", features)
    plan = plan_embedding(store.layout, config.embedding, counts)
    # addresses need no table: one of a row will do, whatever the plan asks for
    outline = CTRModel(store.layout, replace(plan, rows=min(plan.rows, 1)), config.model)
    found = diagnose(outline, counts, plan=plan)
    _show_plan(plan, console)
    shown = _show_diagnostics(config.name, plan, found, Sample.whole(counts, rows["train"], "train"), console, html)
    runs = [_describe(run) for run in runs_of(config)]
    console.table("runs", runs)
    return {
        "store": str(config.store_folder),
        "digest": store.digest,
        "rows": rows,
        "label_means": store.manifest["label_means"],
        "dropped": dropped_of(store),
        "features": features,
        "table_bytes": plan.table_bytes,
        "plan": plan.summary(),
        **shown,
        "runs": runs,
    }


def inspect_model(
    target: str,
    data: Sequence[str],
    console: Console,
    *,
    tracking_uri: str,
    html: Path | None = None,
    rows: int = ROWS,
    split: str = "train",
    config: Path | None = None,
) -> dict[str, Any]:
    """Show what a model holds and, with data, how it uses its table.

    Args:
        target: `models:/NAME@ALIAS` or `models:/NAME/VERSION`, or the folder of a bundle or of a run.
        data: At most one: a folder of prepared data, or a file or glob of raw rows. A run has its own.
        console: Shows the tables.
        tracking_uri: Store of the registry.
        html: Where to write the page about the table.
        rows: Sample at most so many rows.
        split: Of prepared data.
        config: An experiment whose side tables raw rows get; those of a run when left out.

    Returns:
        bundle, format, table_bytes, plan (a line a feature), inputs (type of each column), outputs, metrics (of
        validation), diagnostics and html (None without data).

    Raises:
        ConfigError: More than one source of data is named, or a page is asked for and there is no data.
        ArtifactError: There is no such model, or its data was prepared with another spec.
        DataError: The data is absent or damaged, or lacks a column.
    """
    check_one_source(target, data)
    opened = open_model(target, tracking_uri)
    run, bundle = opened.run, opened.bundle
    plan, spec = bundle.model.plan, bundle.pipeline.spec
    sample = None
    if data:
        joined = opened.data if config is None else load_config(config).data
        sample = data_sample(bundle.pipeline, data[0], split, rows, joined)
    elif run:
        sample = _own_sample(opened, split, rows, console, html is not None)
    elif html is not None:
        raise ConfigError(
            "a page about the table needs data to look at it through",
            field="--html",
            found=f"{target} alone",
            mend="name a folder of prepared data, or a file of raw rows, after it",
        )
    _show_plan(plan, console)
    columns = column_types(spec)
    console.table("input columns", [{"column": name, "type": kind} for name, kind in columns.items()])
    console.note(f"outputs {', '.join(output_names(spec))}")
    shown: dict[str, Any] = {"diagnostics": None, "html": None}
    if sample is not None:
        found = diagnose(bundle.model, sample.counts, state=run_state(run) if run else None)
        name = f"{run.folder.resolve().parent.parent.name}, run {run.name}" if run else target
        shown = _show_diagnostics(name, plan, found, sample, console, html)
    return {
        "bundle": str(opened.folder),
        "format": plan.format_name,
        "table_bytes": plan.table_bytes,
        "plan": plan.summary(),
        "inputs": columns,
        "outputs": output_names(spec),
        "metrics": bundle.description["metrics"],
        **shown,
    }


def _own_sample(opened: OpenedModel, split: str, rows: int, console: Console, required: bool) -> Sample | None:
    """The prepared data of a run; None if it cannot be used and is not required."""
    try:
        store = opened.store()
        assert store is not None  # it is a run's
        return split_sample(store, split, rows)
    except ArtifactError as error:
        if required:
            raise
        console.note(f"the run's data cannot be used, so its table is not looked into: {error}")
        return None


def _show_plan(plan: EmbeddingPlan, console: Console) -> None:
    console.table("embedding plan", plan.summary())
    size = f"{plan.rows:,} rows x {plan.width} in {plan.format_name}, {bytes_text(plan.table_bytes)} with its index"
    console.note(f"table of {size}")
    if plan.step is not None:
        console.note(f"all rows share the step {plan.step:.6g}")


def _show_diagnostics(
    name: str, plan: EmbeddingPlan, found: Diagnostics, sample: Sample, console: Console, html: Path | None
) -> dict[str, Any]:
    show(found, sample.text, console)
    if html is not None:
        write_bytes(html, table_page(name, found, sample.text, plan.summary()).encode())
        console.note(f"page: {html}")
    return {
        "diagnostics": {"sample": sample.text, **found.to_json()},
        "html": None if html is None else str(html),
    }


def _describe(run: Run) -> dict[str, Any]:
    trained = run.read("train.json") if run.trained else {}
    evaluated = run.read("evaluation.json") if (run.folder / "evaluation.json").is_file() else {"metrics": {}}
    return {
        "run": run.name,
        "trained": run.trained,
        "epochs": trained.get("epochs"),
        "valid_auc": trained.get("valid", {}).get("auc"),
        "test_auc": evaluated["metrics"].get("auc"),
        "test_logloss": evaluated["metrics"].get("logloss"),
        "table_bytes": trained.get("table_bytes"),
    }
