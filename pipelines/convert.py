"""A trained model gets another row format: a smaller bundle, and what that costs on rows it was not trained on."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from pipelines.console import Console, bytes_text
from pipelines.rewrite import compare, open_original, show_comparison
from recsys.models.convert import check_served_format, convert, rounding_error
from recsys.serving.bundle import save_bundle


def convert_bundle(
    model: str, format: str, console: Console, *, tracking_uri: str, data: str | None = None, out: Path | None = None
) -> dict[str, Any]:
    """Write a model's bundle anew with its rows in another format, and measure both on the same rows.

    Args:
        model: `models:/NAME@ALIAS` or `models:/NAME/VERSION`, or the folder of a run or of a bundle.
        format: fp32, bf16, fp16, int8, int4, int2, or int8-table, where all rows share one step.
        console: Shows the figures.
        tracking_uri: Store of the registry.
        data: A folder of prepared data, of which the test split is used, or a file or glob of raw rows with labels. A
            run has its own.
        out: The new bundle's folder. By default `bundle-FORMAT` of the run, `FOLDER-FORMAT` beside a bundle,
            `NAME-FORMAT` here for a registered model.

    Returns:
        model, bundle, from, to, table_bytes and old_table_bytes, rounding_error (of the rows, relative), step (that all
        rows share; else None), what `compare` gives, seconds.

    Raises:
        ConfigError: There is no such format, or the model has it already, or no table.
        ArtifactError: There is no such model; its data is not what it was trained on; the folder exists, or cannot be
            written.
        DataError: The data is absent or damaged, or lacks a column.
    """
    started = time.perf_counter()
    check_served_format(format)
    original = open_original(model, tracking_uri, format, out)
    bundle = original.bundle
    converted = convert(bundle.model, format)
    plan = converted.plan
    result: dict[str, Any] = {
        "from": bundle.model.plan.format_name,
        "to": format,
        "table_bytes": plan.table_bytes,
        "old_table_bytes": bundle.model.plan.table_bytes,
        "rounding_error": rounding_error(bundle.model, converted),
        "step": plan.step,
        **compare(original, converted, data, console),
    }
    save_bundle(
        original.place,
        model=converted,
        pipeline=bundle.pipeline,
        metrics=result,
        calibration=bundle.calibration,
    )
    result |= {"model": model, "bundle": str(original.place), "seconds": round(time.perf_counter() - started, 2)}
    _show(console, result)
    return result


def _show(console: Console, result: dict[str, Any]) -> None:
    old, new = result["old_table_bytes"], result["table_bytes"]
    console.note(f"table: {bytes_text(old)} in {result['from']}, {bytes_text(new)} in {result['to']}, {new / old:.3f}x")
    console.note(f"rows differ by {result['rounding_error']:.2%} of their norm")
    if result["step"] is not None:
        console.note(f"all rows share the step {result['step']:.6g}; no value is off by more than half of it")
    show_comparison(console, result, result["from"], result["to"], "the conversion")
    console.note(f"bundle: {result['bundle']}")
