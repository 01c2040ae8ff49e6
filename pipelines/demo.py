"""The demonstration: a known truth is generated, learned, registered, reloaded and asked about new rows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from features.errors import ArtifactError, ConfigError
from pipelines.config import ExperimentConfig, load_config
from pipelines.console import Console, bytes_text
from pipelines.prepare import events_of
from pipelines.run import run
from recsys.evaluation.report import cell_text
from recsys.serving.registry import Registry
from recsys.serving.scorer import Scorer
from recsys.serving.signature import output_names

CONFIG = Path("configs/synthetic.yaml")
ROWS = 5
"""New rows the reloaded model scores."""
TOLERANCE = 1e-6
"""Largest difference between two ways to the same probability."""


def demo_config(overrides: Sequence[str] = ()) -> ExperimentConfig:
    """The demonstration's config, which lies in the repository.

    Raises:
        ConfigError: This is another folder.
    """
    if not CONFIG.is_file():
        raise ConfigError(
            "the demonstration's config is not here",
            field=str(CONFIG),
            found=f"the folder {Path.cwd()}",
            mend="go to the root of the repository, or `recsys run` a config of your own",
        )
    return load_config(CONFIG, overrides)


def demo(config: ExperimentConfig, console: Console) -> dict[str, Any]:
    """Run an experiment on synthetic events, then score new rows with the model from the registry.

    Args:
        config: A config whose spec names a reference column: the generator's click probability.
        console: Shows the way and ends with a table.

    Returns:
        What `run` returned, and `new_rows`, `table` (figure by figure), `seconds`.

    Raises:
        ArtifactError: The registry's model and the bundle disagree.
    """
    started = time.perf_counter()
    result = run(config, console)
    evaluated, trained, registered = result["evaluate"], result["train"], result["register"]
    new_rows = None
    if registered is not None:
        console.title("new rows through the registry")
        new_rows = _score_new_rows(config, registered["uri"], Path(trained["bundle"]), console)
    seconds = time.perf_counter() - started
    table = _rows(evaluated["metrics"], evaluated["reference"] or {})
    console.table("demo", table)
    console.table(
        "and",
        [
            {"what": "table bytes", "value": f"{bytes_text(trained['table_bytes'])} ({trained['table_bytes']:,})"},
            {"what": "training speed", "value": f"{trained['examples_per_second']:,.0f} examples/s"},
            {"what": "report", "value": evaluated["report"]},
            {"what": "MLflow run", "value": f"{trained['mlflow_run_id']} in {config.tracking_uri}"},
            {"what": "registered model", "value": registered["uri"] if registered else "none: a gate failed"},
            {"what": "time", "value": f"{seconds:.0f} s"},
        ],
    )
    return {**result, "new_rows": new_rows, "table": table, "seconds": round(seconds, 1)}


def _rows(metrics: dict[str, Any], reference: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for name, gap in (("auc", "reference_auc_gap"), ("logloss", "reference_logloss_gap")):
        row = {"metric": f"test {name}", "model": metrics[name], "best reachable": reference.get(name)}
        rows.append({**row, "gap": metrics.get(gap)})
    return rows


def _score_new_rows(config: ExperimentConfig, uri: str, bundle: Path, console: Console) -> dict[str, Any]:
    """Score rows of another seed through mlflow.pyfunc and in process, and hold them against one another."""
    params = {**config.data.params, "seed": int(config.data.params.get("seed", 0)) + 1}
    events = events_of(config.data.model_copy(update={"params": params})).head(ROWS).collect()
    columns = config.spec.feature_columns
    rows = events.select(columns)
    probabilities = Registry(config.tracking_uri).load_pyfunc(uri).predict(rows.to_pandas())
    in_process = Scorer.load(bundle).score(rows)
    name = output_names(config.spec)[0]
    registry_values = probabilities[name].to_numpy()
    difference = float(np.abs(registry_values - in_process[:, 0]).max())
    shown = [
        {**{column: _short(row[column]) for column in columns[:3]}, "registry": float(p), "in process": float(q)}
        for row, p, q in zip(rows.iter_rows(named=True), registry_values, in_process[:, 0], strict=True)
    ]
    console.table(f"{uri}, rows it has never seen", shown)
    if difference > TOLERANCE:
        raise ArtifactError(
            "the registered model and the bundle disagree", field=uri, found=difference, expected=f"at most {TOLERANCE}"
        )
    return {"rows": len(rows), "largest_difference": difference, "probabilities": registry_values.tolist()}


def _short(value: Any) -> str:
    return cell_text(list(value) if isinstance(value, pl.Series) else value)[:24]
