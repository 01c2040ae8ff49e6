"""Shows what is on disk for an experiment: the data, its values a feature, the runs; or one bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipelines.config import ExperimentConfig
from pipelines.console import Console, bytes_text
from pipelines.prepare import dropped_of, open_store
from pipelines.workspace import runs_of


def inspect(config: ExperimentConfig, console: Console) -> dict[str, Any]:
    """Show an experiment's prepared data and runs.

    Returns:
        store, digest, rows, label_means, dropped, features (distinct training values and the share of the most
        frequent), runs.
    """
    store = open_store(config)
    rows = {split: store.rows(split) for split in ("train", "valid", "test")}
    console.table("prepared data", [{"split": split, "rows": count} for split, count in rows.items()])
    features = []
    for name, (fingerprints, counts) in store.id_counts("train").items():
        top = float(counts.max() / counts.sum()) if len(counts) else None
        once = float((counts == 1).mean()) if len(counts) else None
        features.append({"feature": name, "values": len(fingerprints), "most_frequent": top, "seen_once": once})
    console.table("categorical features, training split", features)
    runs = [_describe(run) for run in runs_of(config)]
    console.table("runs", runs)
    return {
        "store": str(config.store_folder),
        "digest": store.digest,
        "rows": rows,
        "label_means": store.manifest["label_means"],
        "dropped": dropped_of(store),
        "features": features,
        "runs": runs,
    }


def inspect_bundle(folder: Path, console: Console) -> dict[str, Any]:
    """Show a bundle: its plan, its size, its columns.

    Returns:
        bundle, table_bytes, plan (a line a feature), inputs (type of each column), outputs, metrics (of validation).
    """
    from recsys.serving.bundle import load_bundle
    from recsys.serving.signature import column_types, output_names

    bundle = load_bundle(folder)
    plan, spec = bundle.model.plan, bundle.pipeline.spec
    console.table("embedding plan", plan.summary())
    columns = column_types(spec)
    console.table("input columns", [{"column": name, "type": kind} for name, kind in columns.items()])
    console.note(f"table {bytes_text(plan.table_bytes)}, outputs {', '.join(output_names(spec))}")
    return {
        "bundle": str(folder),
        "table_bytes": plan.table_bytes,
        "plan": plan.summary(),
        "inputs": columns,
        "outputs": output_names(spec),
        "metrics": bundle.description["metrics"],
    }


def _describe(run: Any) -> dict[str, Any]:
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
