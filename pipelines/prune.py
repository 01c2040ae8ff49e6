"""A trained model loses the rows that matter least: a smaller bundle, and what that costs on rows it was not trained
on."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from features.errors import ConfigError, list_names
from pipelines.console import Console, bytes_text
from pipelines.rewrite import Original, compare, open_original, show_comparison
from recsys.models.compact import check_not_pruned, compact
from recsys.search.pruning import (
    ImportanceName,
    check_importance,
    check_keep,
    choose,
    features_kept,
    gradient,
    magnitude,
)
from recsys.serving.bundle import save_bundle


def prune_bundle(
    model: str,
    keep: float,
    by: str,
    console: Console,
    *,
    tracking_uri: str,
    data: str | None = None,
    out: Path | None = None,
) -> dict[str, Any]:
    """Write a model's bundle anew with a share of its rows, and measure both on the same rows.

    Args:
        model: `models:/NAME@ALIAS` or `models:/NAME/VERSION`, or the folder of a run or of a bundle.
        keep: Share of the rows to keep, above 0; hot rows stay and do not count.
        by: magnitude or gradient: by what rows are ranked.
        console: Shows the figures.
        tracking_uri: Store of the registry.
        data: A folder of prepared data, whose train split ranks the rows and whose test split measures, or a file or
            glob of raw rows with labels, which does both. A run has its own.
        out: The new bundle's folder. By default `bundle-pruned` of the run, `FOLDER-pruned` beside a bundle,
            `NAME-pruned` here for a registered model.

    Returns:
        model, bundle, keep, by, ranked_on (None for magnitude), table_bytes and old_table_bytes, index_bytes (of what
        leads to the rows left; counted in table_bytes), rows and old_rows, features (a line each), pruned_features
        (those of which nothing is left), what `compare` gives, seconds.

    Raises:
        ConfigError: The share is not in (0, 1], there is no such importance, the model was pruned before or has no
            table, or there is no data to take a gradient on.
        ArtifactError: There is no such model; its data is not what it was trained on; the folder exists, or cannot be
            written.
        DataError: The data is absent or damaged, or lacks a column.
    """
    started = time.perf_counter()
    check_keep(keep)
    name = check_importance(by)
    original = open_original(model, tracking_uri, "pruned", out)
    old = original.bundle.model
    check_not_pruned(old.plan)
    importance, text = _importance(original, name, data, console)
    kept = choose(old.plan, importance, keep)
    new = compact(old, kept)
    features = features_kept(old.plan, kept)
    result: dict[str, Any] = {
        "keep": keep,
        "by": name,
        "ranked_on": text,
        "table_bytes": new.plan.table_bytes,
        "old_table_bytes": old.plan.table_bytes,
        "index_bytes": new.plan.pruned.index_bytes if new.plan.pruned else 0,
        "rows": new.plan.rows,
        "old_rows": old.plan.rows,
        "features": [{**asdict(f), "share": f.share} for f in features],
        "pruned_features": [f.feature for f in features if not f.kept and f.before],
        **compare(original, new, data, console),
    }
    save_bundle(
        original.place,
        model=new,
        pipeline=original.bundle.pipeline,
        metrics=result,
        calibration=original.bundle.calibration,
    )
    result |= {"model": model, "bundle": str(original.place), "seconds": round(time.perf_counter() - started, 2)}
    _show(console, result)
    return result


def _importance(
    original: Original, name: ImportanceName, data: str | None, console: Console
) -> tuple[Tensor, str | None]:
    """The importance of every row, and the rows of data it was taken on, for people."""
    if name == "magnitude":
        return magnitude(original.bundle.model), None
    rows = original.rows(data, "train")
    if rows is None:
        raise ConfigError(
            "the gradient needs data",
            field="by",
            found=f"gradient, and {original.name} alone",
            mend="name DATA (prepared data, or raw rows with labels), or take magnitude",
        )
    with console.progress("ranking", None):
        return gradient(original.bundle.model, rows.read()), rows.text


def _show(console: Console, result: dict[str, Any]) -> None:
    old, new = result["old_table_bytes"], result["table_bytes"]
    console.note(
        f"table: {bytes_text(old)} before, {bytes_text(new)} after ({bytes_text(result['index_bytes'])} of them lead "
        f"to the rows that are left), {new / old:.3f}x"
    )
    console.table(
        f"{result['rows']:,} of {result['old_rows']:,} rows kept by {result['by']}",
        [{k: line[k] for k in ("feature", "region", "of", "before", "kept", "share")} for line in result["features"]],
    )
    if result["ranked_on"]:
        same = " (and measured on the same rows)" if result["ranked_on"] == result["measured_on"] else ""
        console.note(f"ranked on: {result['ranked_on']}{same}")
    if result["pruned_features"]:
        names = result["pruned_features"]
        console.note(f"nothing is left of {list_names(names)}: a model without them has embedding.chunks.features 0")
    show_comparison(console, result, "before", "after", "pruning")
    console.note(f"bundle: {result['bundle']}")
