"""Writes the vectors of a model's values or items to a file, for use outside of the model."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from features.errors import ConfigError
from pipelines.console import Console
from pipelines.vectors import ARROW_ENDINGS, ENDINGS, REGION, SEEN, UNSEEN, Wanted, vectors_of
from pipelines.workspace import written_aside


def export(
    model: str, out: Path, console: Console, *, tracking_uri: str, data: str | None = None, wanted: Wanted
) -> dict[str, Any]:
    """Write a vector for each value of a feature, or for each item.

    Args:
        model: `models:/NAME@ALIAS` or `models:/NAME/VERSION`, or the folder of a run or of a bundle.
        out: The file to write: .parquet, or .arrow, .feather or .ipc.
        console: Told what was written.
        tracking_uri: Store of the registry.
        data: File or glob of rows that hold the values or items; a run has its own.
        wanted: Which vectors.

    Returns:
        out, rows, what travels in the file's metadata, regions (rows by region; of values), unseen (rows that training
        never saw, as far as that is known), unknown (rows of which it is not; of values), seconds.

    Raises:
        ConfigError: The file's ending is unknown, or see `vectors_of`.
        ArtifactError: There is no such model, or the file cannot be written.
        DataError: See `vectors_of`.
    """
    started = time.perf_counter()
    if out.suffix not in ENDINGS:
        raise ConfigError("unknown ending", field=str(out), expected=f"one of {', '.join(ENDINGS)}")
    vectors = vectors_of(model, data, wanted, tracking_uri=tracking_uri)
    regions: Counter[str] = Counter()
    unseen = unknown = 0
    with (
        written_aside(out) as aside,
        _writer(aside, out.suffix, vectors.schema) as writer,
        console.progress("exporting", vectors.rows) as task,
    ):
        done = 0
        for batch in vectors.batches():
            writer.write_batch(batch)
            if wanted.feature is not None:
                regions.update(batch.column(REGION).to_pylist())
                unseen += batch.column(SEEN).to_pylist().count(False)
                unknown += batch.column(SEEN).null_count
            else:
                unseen += sum(map(bool, batch.column(UNSEEN).to_pylist()))
            done += len(batch)
            task.update(done)
    result = {"out": str(out), "rows": vectors.rows, **vectors.about, "unseen": unseen}
    if wanted.feature is not None:
        result |= {"regions": dict(sorted(regions.items())), "unknown": unknown}
    _show(console, result)
    return result | {"seconds": round(time.perf_counter() - started, 3)}


def _writer(path: Path, ending: str, schema: pa.Schema) -> Any:
    return pa.ipc.new_file(path, schema) if ending in ARROW_ENDINGS else pq.ParquetWriter(path, schema)


def _show(console: Console, result: dict[str, Any]) -> None:
    what = f"values of {result['feature']}" if "feature" in result else f"items of {', '.join(result['item'])}"
    console.note(f"{result['rows']:,} {what}, {result['width']} numbers each in {result['dtype']}: {result['out']}")
    if "regions" in result:
        console.note(
            "rows of the table: " + ", ".join(f"{name} {count:,}" for name, count in result["regions"].items())
        )
    if result["unseen"]:
        console.note(f"{result['unseen']:,} were not in training: their vectors are those of rows shared with others")
    if result.get("unknown"):
        console.note(f"whether training saw it is not known of {result['unknown']:,}: hashed ids are in no vocabulary")
