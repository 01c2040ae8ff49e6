"""Writes encoded rows of the three splits as Arrow shards, and adds up what is known of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from features.columns import column_types, record_batch
from features.files import cannot_write, md5_of
from features.frames import SPLIT_COLUMN, iterate
from features.layout import Layout
from features.pipeline import FeaturePipeline
from features.splits import SPLITS

_READ_ROWS = 65_536

Progress = Callable[[int], None]
"""Called with the number of rows read so far."""


@dataclasses.dataclass
class Written:
    """Shards of some rows, by split, and what the manifest says of them.

    Attributes:
        shards: path (from the folder they were written into), rows, bytes and md5 of each.
        label_sums: [T] float64; no entry for a split without rows.
        time_range: First and last time; no entry for a split without rows or a spec without time.
    """

    shards: dict[str, list[dict[str, Any]]]
    label_sums: dict[str, list[float]]
    time_range: dict[str, list[int]]

    @property
    def rows(self) -> dict[str, int]:
        """Rows of each split."""
        return {name: sum(shard["rows"] for shard in self.shards[name]) for name in SPLITS}

    @staticmethod
    def sum(parts: Iterable[Written]) -> Written:
        """Returns what several say together; shards stand in the order of the parts."""
        total = Written({name: [] for name in SPLITS}, {}, {})
        for part in parts:
            for name in SPLITS:
                total.shards[name] += part.shards[name]
            for name, sums in part.label_sums.items():
                before = total.label_sums.get(name, [0.0] * len(sums))
                total.label_sums[name] = [a + b for a, b in zip(before, sums, strict=True)]
            for name, (first, last) in part.time_range.items():
                low, high = total.time_range.get(name, [first, last])
                total.time_range[name] = [min(low, first), max(high, last)]
        return total

    def manifest(self, layout: Layout) -> dict[str, Any]:
        """Returns rows, shards, label means and, with a time, the time range, each by split."""
        rows = self.rows
        manifest: dict[str, Any] = {
            "rows": rows,
            "shards": self.shards,
            "label_means": {
                name: {label: value / rows[name] for label, value in zip(layout.label_names, sums, strict=True)}
                for name, sums in self.label_sums.items()
            },
        }
        return manifest | ({"time_range": self.time_range} if layout.has_time else {})


def write_shards(
    folder: Path,
    assigned: pl.LazyFrame,
    pipeline: FeaturePipeline,
    shard_rows: int,
    progress: Progress | None = None,
) -> Written:
    """Encodes and writes rows into `folder`, which holds up to `shard_rows` encoded rows a split in memory.

    Args:
        folder: Gets a folder a split.
        assigned: Rows, each with its split.
        pipeline: Fitted.
        shard_rows: Rows a file.
        progress: Told about the rows read.

    Raises:
        DataError: A value is wrong.
        ArtifactError: It cannot be written.
    """
    types = column_types(pipeline.layout, labels=True)
    encoded = pipeline.transform(assigned, keep=[SPLIT_COLUMN])
    rows_read = 0
    try:
        writers = {name: _ShardWriter(folder, name, types, shard_rows) for name in SPLITS}
        for piece in iterate(encoded, _READ_ROWS):
            rows_read += piece.height
            for name, writer in writers.items():
                writer.add(piece.filter(pl.col(SPLIT_COLUMN) == name).drop(SPLIT_COLUMN))
            if progress is not None:
                progress(rows_read)
        for writer in writers.values():
            writer.flush()
    except pl.exceptions.PolarsError as error:
        raise pipeline.explain(assigned, error, labels=True) from error
    except (OSError, pa.ArrowException) as error:
        raise cannot_write(folder, error if isinstance(error, OSError) else OSError(str(error))) from error
    return Written(
        {name: writer.shards for name, writer in writers.items()},
        {name: writer.label_sums.tolist() for name, writer in writers.items() if writer.label_sums is not None},
        {name: [min(writer.times), max(writer.times)] for name, writer in writers.items() if writer.times},
    )


def write_shard(folder: Path, name: str, batch: pa.RecordBatch) -> dict[str, Any]:
    """Writes one record batch as the shard `name` under `folder`; returns its entry in the manifest."""
    path = folder / name
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)
    return {"path": name, "rows": batch.num_rows, "bytes": path.stat().st_size, "md5": md5_of(path)}


class _ShardWriter:
    """Gathers the rows of one split and writes a file whenever there are enough."""

    def __init__(self, folder: Path, split: str, types: dict[str, pa.DataType], shard_rows: int) -> None:
        self.folder, self.split, self.types, self.shard_rows = folder, split, types, shard_rows
        self.waiting: list[pl.DataFrame] = []
        self.height = 0
        self.shards: list[dict[str, Any]] = []
        self.label_sums: np.ndarray | None = None
        self.times: list[int] = []
        (folder / split).mkdir(parents=True)

    def add(self, frame: pl.DataFrame) -> None:
        while self.height + frame.height >= self.shard_rows:
            take = self.shard_rows - self.height
            self.waiting.append(frame.head(take))
            frame = frame.slice(take)
            self.flush()
        if frame.height:
            self.waiting.append(frame)
            self.height += frame.height

    def flush(self) -> None:
        if not self.waiting:
            return
        batch = record_batch(pl.concat(self.waiting), self.types)
        self.waiting, self.height = [], 0
        self.shards.append(write_shard(self.folder, f"{self.split}/part-{len(self.shards):05d}.arrow", batch))
        labels = batch.column("labels").flatten().to_numpy().reshape(batch.num_rows, -1).sum(axis=0, dtype=np.float64)
        self.label_sums = labels if self.label_sums is None else self.label_sums + labels
        if "time" in self.types:
            times = batch.column("time").to_numpy()
            self.times += [int(times.min()), int(times.max())]
