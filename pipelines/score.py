"""A registered model or a bundle scores a file of new rows: a Parquet file with one probability a task."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from features.errors import ArtifactError, ConfigError, DataError, list_names
from features.frames import first_line, iterate
from features.reading.sources import scan
from pipelines.console import Console
from recsys.serving.registry import Registry, is_model_uri
from recsys.serving.scorer import Scorer
from recsys.serving.signature import output_names


def score(
    model: str,
    source: str,
    out: Path,
    console: Console,
    *,
    tracking_uri: str,
    batch_size: int = 65_536,
    keep: Sequence[str] = (),
) -> dict[str, Any]:
    """Score every row of a file, in order.

    Args:
        model: `models:/NAME@ALIAS`, `models:/NAME/VERSION`, or a bundle's folder.
        source: File or glob of raw rows; labels need not be there.
        out: The Parquet file to write: the columns kept, then `p_LABEL` for each task.
        console: Told about progress.
        tracking_uri: Store of the registry.
        batch_size: Rows scored at a time; memory follows it, not the file.
        keep: Columns of the source carried along.

    Returns:
        rows, out, columns, model, mean (of each task), seconds, rows_per_second.

    Raises:
        ConfigError: A column is to be kept twice, or has the name of an output.
        ArtifactError: No such store or model, or the file cannot be written.
        DataError: The source is damaged, empty, or lacks a column.
    """
    folder = Registry(tracking_uri, create=False).bundle_of(model) if is_model_uri(model) else Path(model)
    scorer = Scorer.load(folder)
    frame = scan(source)
    names = output_names(scorer.spec)
    _check_kept(frame, keep, names)
    started = time.perf_counter()
    rows, sums = 0, np.zeros(len(names))
    aside = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    writer: pq.ParquetWriter | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with console.progress("scoring", None) as task:
            for part in pieces(frame, batch_size, source):
                probabilities = scorer.score(part)
                scores = pl.DataFrame({name: probabilities[:, i] for i, name in enumerate(names)})
                table = (
                    pl.concat([part.select(keep), scores], how="horizontal").to_arrow() if keep else scores.to_arrow()
                )
                writer = writer or pq.ParquetWriter(aside, table.schema)
                writer.write_table(table)
                rows += len(part)
                sums += probabilities.sum(0)
                task.update(rows)
        if writer is None:
            raise DataError("no rows to score", field=source)
        writer.close()
        os.replace(aside, out)
    except (OSError, pa.ArrowInvalid) as error:
        raise ArtifactError(
            "cannot write the scores", field=str(out), found=str(error), mend="free some disk or choose another place"
        ) from error
    finally:
        aside.unlink(missing_ok=True)
    seconds = time.perf_counter() - started
    console.note(f"scored {rows:,} rows in {seconds:.1f} s: {out}")
    return {
        "rows": rows,
        "out": str(out),
        "columns": [*keep, *names],
        "model": model,
        "mean": {name: float(total / rows) for name, total in zip(names, sums, strict=True)},
        "seconds": round(seconds, 3),
        "rows_per_second": round(rows / seconds),
    }


def pieces(frame: pl.LazyFrame, rows: int, source: str) -> Iterator[pl.DataFrame]:
    """The rows in order; a file whose end reads well may still be damaged inside."""
    try:
        yield from iterate(frame, rows)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(
            "the file cannot be read to its end",
            field=source,
            found=first_line(error),
            mend="copy or write the file anew",
        ) from error


def _check_kept(frame: pl.LazyFrame, keep: Sequence[str], outputs: Sequence[str]) -> None:
    have = frame.collect_schema().names()
    for i, column in enumerate(keep):
        if column not in have:
            raise DataError("no such column to keep", field=column, expected=f"one of {list_names(have)}")
        if column in keep[:i]:
            raise ConfigError("column is to be kept twice", field=column, mend="name it once in --keep")
        if column in outputs:
            raise ConfigError(
                "column to keep has the name of an output",
                field=column,
                mend="leave it out of --keep, or rename it in the source",
            )
