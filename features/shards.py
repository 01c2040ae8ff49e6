"""Writes encoded rows of the three splits as Arrow shards, and merges, links and describes shards."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from features.columns import column_types, record_batch
from features.files import cannot_write, md5_of
from features.folders import link
from features.frames import SPLIT_COLUMN, iterate
from features.layout import Layout
from features.pipeline import FeaturePipeline
from features.splits import SPLITS

_READ_ROWS = 65_536
_ROOM = 1 << 20

Progress = Callable[[int], None]
"""Called with the number of rows read so far."""


Shards = dict[str, list[dict[str, Any]]]
"""Of each split: path (from the folder of the store), rows, bytes and md5 of every shard, in order."""


def write_shards(
    folder: Path,
    assigned: pl.LazyFrame,
    pipeline: FeaturePipeline,
    shard_rows: int,
    progress: Progress | None = None,
) -> Shards:
    """Encodes rows and writes them into `folder`; holds up to `shard_rows` encoded rows a split in memory.

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
    return {name: writer.shards for name, writer in writers.items()}


def describe(folder: Path, shards: Shards, layout: Layout) -> dict[str, Any]:
    """Returns what a manifest says of shards: rows, shards, label means and, with a time, the time range, by split."""
    means: dict[str, dict[str, float]] = {}
    ranges: dict[str, list[int]] = {}
    for split, entries in shards.items():
        sums = np.zeros(len(layout.label_names))
        for entry in entries:
            batch = read_shard(folder / entry["path"])
            sums += batch.column("labels").flatten().to_numpy().reshape(batch.num_rows, -1).sum(0, dtype=np.float64)
            if layout.has_time:
                times = batch.column("time").to_numpy()
                low, high = ranges.get(split, [int(times[0])] * 2)
                ranges[split] = [min(low, int(times.min())), max(high, int(times.max()))]
        if entries:
            rows = sum(entry["rows"] for entry in entries)
            means[split] = dict(zip(layout.label_names, (sums / rows).tolist(), strict=True))
    rows_of = {split: sum(entry["rows"] for entry in entries) for split, entries in shards.items()}
    manifest = {"rows": rows_of, "shards": shards, "label_means": means}
    return manifest | ({"time_range": ranges} if layout.has_time else {})


def read_shard(path: Path) -> pa.RecordBatch:
    """Maps a shard into memory."""
    with pa.memory_map(str(path)) as file:
        return pa.ipc.open_file(file).get_batch(0)


def link_shards(source: Path, shards: Shards, folder: Path, into: Shards) -> None:
    """Adds shards to a folder under the next free names, without a copy where the file system can.

    Args:
        source: The folder they are in.
        shards: They.
        folder: Where they go.
        into: The shards that are there; the new ones are appended.
    """
    for split, entries in shards.items():
        for entry in entries:
            name = _name(split, len(into[split]))
            link(source / entry["path"], folder / name)
            into[split].append({**entry, "path": name})


def compact(folder: Path, shards: Shards, shard_rows: int) -> Shards:
    """Merges neighbouring shards that together have at most `shard_rows` rows; the order of the rows stays."""
    merged: Shards = {}
    for split, entries in shards.items():
        groups: list[list[dict[str, Any]]] = []
        for entry in entries:
            if groups and sum(part["rows"] for part in groups[-1]) + entry["rows"] <= shard_rows:
                groups[-1].append(entry)
            else:
                groups.append([entry])
        merged[split] = []
        for group in groups:
            name = _name(split, len(merged[split]))
            if len(group) > 1:
                table = pa.Table.from_batches([read_shard(folder / entry["path"]) for entry in group])
                # Written beside and renamed: the name may be that of a shard of this very group.
                entry = write_shard(folder, f"{split}/merged.arrow", table.combine_chunks().to_batches()[0])
                for part in group:
                    (folder / part["path"]).unlink()
                os.replace(folder / entry["path"], folder / name)
                merged[split].append({**entry, "path": name})
            else:
                os.replace(folder / group[0]["path"], folder / name)
                merged[split].append({**group[0], "path": name})
    return merged


def drop_older(folder: Path, shards: Shards, before: int) -> tuple[Shards, int]:
    """Leaves out the shards whose rows are all older than `before` (microseconds); returns also how many rows."""
    kept: Shards = {name: [] for name in shards}
    rows = 0
    for split, entries in shards.items():
        for entry in entries:
            if int(read_shard(folder / entry["path"]).column("time").to_numpy().max()) < before:
                (folder / entry["path"]).unlink()
                rows += entry["rows"]
            else:
                name = _name(split, len(kept[split]))
                os.replace(folder / entry["path"], folder / name)
                kept[split].append({**entry, "path": name})
    return kept, rows


def write_shard(folder: Path, name: str, batch: pa.RecordBatch) -> dict[str, Any]:
    """Writes one record batch as the shard `name` under `folder`; returns its entry in the manifest."""
    path = folder / name
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)
    return {"path": name, "rows": batch.num_rows, "bytes": path.stat().st_size, "md5": md5_of(path)}


def _name(split: str, number: int) -> str:
    return f"{split}/part-{number:05d}.arrow"


class _ShardWriter:
    """Gathers the rows of one split and writes a file whenever there are enough.

    Columns of a fixed width go into memory that is taken once, for a whole shard: with a list of pieces, shards
    would be there twice while they are joined.
    """

    def __init__(self, folder: Path, split: str, types: dict[str, pa.DataType], shard_rows: int) -> None:
        self.folder, self.split, self.types, self.shard_rows = folder, split, types, shard_rows
        self.height = 0
        self.shards: list[dict[str, Any]] = []
        self.fixed: dict[str, np.ndarray] = {}
        self.ragged: dict[str, list[pa.Array]] = {}
        for name, kind in types.items():
            if pa.types.is_large_list(kind):
                self.ragged[name] = []
            else:
                width, plain = (kind.list_size, kind.value_type) if pa.types.is_fixed_size_list(kind) else (1, kind)
                self.fixed[name] = np.empty((min(shard_rows, _ROOM), width), dtype=plain.to_pandas_dtype())
        (folder / split).mkdir(parents=True)

    def add(self, frame: pl.DataFrame) -> None:
        while frame.height:
            here = frame.head(self.shard_rows - self.height)
            frame = frame.slice(here.height)
            self._make_room(self.height + here.height)
            batch = record_batch(here, self.types)
            for name, buffer in self.fixed.items():
                array = batch.column(name)
                values = array.flatten() if pa.types.is_fixed_size_list(array.type) else array
                rows = buffer[self.height : self.height + here.height]
                rows[:] = values.to_numpy().reshape(rows.shape)
            for name, arrays in self.ragged.items():
                arrays.append(batch.column(name))
            self.height += here.height
            if self.height == self.shard_rows:
                self.flush()

    def _make_room(self, rows: int) -> None:
        for name, buffer in self.fixed.items():
            if rows > len(buffer):
                larger = np.empty((min(max(rows, 2 * len(buffer)), self.shard_rows), buffer.shape[1]), buffer.dtype)
                larger[: self.height] = buffer[: self.height]
                self.fixed[name] = larger

    def flush(self) -> None:
        if not self.height:
            return
        arrays = []
        for name, kind in self.types.items():
            if name in self.ragged:
                arrays.append(pa.concat_arrays(self.ragged[name]))
                self.ragged[name] = []
                continue
            values = pa.array(self.fixed[name][: self.height].reshape(-1))
            fixed = pa.types.is_fixed_size_list(kind)
            arrays.append(pa.FixedSizeListArray.from_arrays(values, type=kind) if fixed else values)
        schema = pa.schema([pa.field(name, kind, nullable=False) for name, kind in self.types.items()])
        batch = pa.RecordBatch.from_arrays(arrays, schema=schema)
        self.shards.append(write_shard(self.folder, _name(self.split, len(self.shards)), batch))
        self.height = 0
