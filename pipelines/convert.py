"""A trained model gets another row format: a smaller bundle, and what that costs on rows it was not trained on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from features.batch import Batch
from features.errors import ArtifactError
from features.loader import Loader
from features.pipeline import FeaturePipeline
from features.sources import scan
from features.store import Store
from pipelines.config import load_config
from pipelines.console import Console, bytes_text
from pipelines.evaluate import check_gates, check_same_data, main_metrics, show_gates, task_metrics
from pipelines.score import pieces
from pipelines.workspace import Run, run_at
from recsys.evaluation.report import cell_text
from recsys.models.convert import check_format, convert, rounding_error
from recsys.serving.bundle import load_bundle, save_bundle
from recsys.serving.registry import Registry, is_model_uri
from recsys.training import predict

METRICS = ("auc", "logloss", "calibration_ratio")
_BATCH = 16_384

Rows = Callable[[], Iterable[Batch]]
"""The rows to measure on, with labels; they are read twice."""


def convert_bundle(
    model: str, format: str, console: Console, *, tracking_uri: str, data: str | None = None, out: Path | None = None
) -> dict[str, Any]:
    """Write a model's bundle anew with its rows in another format, and measure both on the same rows.

    Args:
        model: `models:/NAME@ALIAS` or `models:/NAME/VERSION`, or the folder of a run or of a bundle.
        format: fp32, bf16, fp16, int8, int4 or int2.
        console: Shows the figures.
        tracking_uri: Store of the registry.
        data: A folder of prepared data, of which the test split is used, or a file or glob of raw rows with labels. A
            run has its own.
        out: The new bundle's folder. By default `bundle-FORMAT` of the run, `FOLDER-FORMAT` beside a bundle,
            `NAME-FORMAT` here for a registered model.

    Returns:
        model, bundle, from, to, table_bytes and old_table_bytes, rounding_error (of the rows, relative), measured_on,
        metrics and old_metrics (of the first task), change (of each metric; all of these None without data),
        max_change (the largest of a probability), gates and gates_failed (of the run's config, on its test split; gates
        None when they were not checked), seconds.

    Raises:
        ConfigError: There is no such format, or the model has it already.
        ArtifactError: There is no such model; its data is not what it was trained on; the folder exists, or cannot be
            written.
        DataError: The data is absent or damaged, or lacks a column.
    """
    started = time.perf_counter()
    name = check_format(format)
    run = None if is_model_uri(model) else run_at(model)
    place = out or _default_place(model, name, run)
    _check_free(place)
    folder = run.bundle if run else Path(model)
    if is_model_uri(model):
        folder = Registry(tracking_uri, create=False).bundle_of(model)
    bundle = load_bundle(folder)
    converted = convert(bundle.model, name)
    own = run if data is None else None
    rows, text = _rows(bundle.pipeline, data, own)
    result: dict[str, Any] = {
        "from": bundle.model.plan.format,
        "to": name,
        "table_bytes": converted.plan.table_bytes,
        "old_table_bytes": bundle.model.plan.table_bytes,
        "rounding_error": rounding_error(bundle.model, converted),
        "measured_on": text,
        **dict.fromkeys(("metrics", "old_metrics", "change", "max_change", "gates")),
        "gates_failed": [],
    }
    if rows is not None:
        with console.progress("measuring", None) as task:
            before = predict(bundle.model, rows())
            task.update(len(before.probabilities))
            after = predict(converted, rows())
        names = bundle.pipeline.layout.label_names
        old, new = (main_metrics(p, task_metrics(p, names))[0] for p in (before, after))
        result["old_metrics"], result["metrics"] = old, new
        result["change"] = {k: _difference(new[k], old[k]) for k in METRICS}
        result["max_change"] = float(np.abs(after.probabilities - before.probabilities).max(initial=0))
        if own is not None:
            result["gates"] = check_gates(load_config(own.folder / "config.yaml").gates, new)
            result["gates_failed"] = [gate["metric"] for gate in result["gates"] if not gate["met"]]
    save_bundle(place, model=converted, pipeline=bundle.pipeline, metrics=result)
    result |= {"model": model, "bundle": str(place), "seconds": round(time.perf_counter() - started, 2)}
    _show(console, result)
    return result


def _default_place(model: str, format: str, run: Run | None) -> Path:
    if run is not None:
        return run.converted(format)
    if is_model_uri(model):
        name = model.removeprefix("models:/").partition("@")[0].partition("/")[0]
        return Path(f"{name}-{format}")
    folder = Path(model).resolve()
    return folder.with_name(f"{folder.name}-{format}")


def _check_free(place: Path) -> None:
    if place.exists():
        raise ArtifactError(
            "is there already, and is not replaced", field=str(place), mend="move it away, or choose another --out"
        )


def _rows(pipeline: FeaturePipeline, data: str | None, run: Run | None) -> tuple[Rows | None, str | None]:
    """The rows to measure on, and what they are for people; None without data."""
    if data is not None and not Path(data).is_dir():
        frame = scan(data)

        def raw() -> Iterator[Batch]:
            for piece in pieces(frame, _BATCH, data):
                yield pipeline.encode_frame(piece, labels=True)

        return raw, data
    if data is not None:
        store = Store.open(Path(data), spec=pipeline.spec)
    elif run is not None:
        config = load_config(run.folder / "config.yaml")
        store = Store.open(config.store_folder, spec=pipeline.spec)
        check_same_data(config, config, run, store)
    else:
        return None, None
    return lambda: Loader(store, "test", _BATCH), f"test split of {store.folder}"


def _difference(new: float | None, old: float | None) -> float | None:
    return None if new is None or old is None else new - old


def _show(console: Console, result: dict[str, Any]) -> None:
    old, new = result["old_table_bytes"], result["table_bytes"]
    console.note(f"table: {bytes_text(old)} in {result['from']}, {bytes_text(new)} in {result['to']}, {new / old:.3f}x")
    console.note(f"rows differ by {result['rounding_error']:.2%} of their norm")
    if result["metrics"] is None:
        console.note("name DATA to measure what the conversion costs: prepared data, or raw rows with labels")
    else:
        lines = [
            {
                "metric": name,
                result["from"]: result["old_metrics"][name],
                result["to"]: result["metrics"][name],
                "change": result["change"][name],
            }
            for name in METRICS
        ]
        console.note(f"measured on: {result['measured_on']}")
        console.table(f"{result['metrics']['rows']:,} rows", lines)
        for name, reason in result["metrics"]["undefined"].items():
            console.note(f"{name} is undefined: {reason}")
        console.note(f"the largest change of a probability is {cell_text(result['max_change'])}")
    show_gates(console, result["gates"] or [])
    console.note(f"bundle: {result['bundle']}")
