"""Writes encoded rows of the three splits as Arrow shards, and merges, links and describes shards."""

from __future__ import annotations

import dataclasses
import os
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from features.columns import column_types
from features.errors import DataError
from features.files import cannot_write, digest_of
from features.folders import link
from features.frames import SPLIT_COLUMN, stream
from features.layout import Layout
from features.one_pass import OnePass
from features.pipeline import FeaturePipeline
from features.storage.growing import GrowingShard
from features.storage.splits import SPLITS

_THREADS = 2
"""Finish shards."""

Progress = Callable[[int], None]
"""Called with the number of rows read so far."""


Shards = dict[str, list[dict[str, Any]]]
"""Of each split: path (from the folder of the store), rows, bytes and xxh3-128 of every shard, in order."""


def write_shards(
    folder: Path,
    assigned: pl.LazyFrame,
    pipeline: FeaturePipeline,
    shard_rows: int,
    progress: Progress | None = None,
    *,
    fit: bool = False,
) -> Shards:
    """Encodes rows and writes them into `folder`.

    Memory holds some ten thousand rows at a time, whatever `shard_rows` is: shards grow on disk.

    Args:
        folder: Gets a folder a split.
        assigned: Rows, each with its split.
        pipeline: Fitted, or to be fitted.
        shard_rows: Rows a file.
        progress: Told about the rows read.
        fit: Fit the pipeline on the train rows in the same pass. Until its end the disk holds 8 bytes more a row for
            every fitted operator.

    Raises:
        DataError: A value is wrong.
        ArtifactError: It cannot be written.
    """
    types = column_types(pipeline.layout, labels=True)
    one_pass = OnePass(pipeline, assigned) if fit else None
    aside = one_pass.aside if one_pass is not None else []
    keep = [SPLIT_COLUMN]
    encoded = pipeline.transform(assigned, keep=keep) if one_pass is None else one_pass.read(keep)
    fixed = [name for name, kind in types.items() if not pa.types.is_large_list(kind)] + aside
    rows_read = 0
    try:
        with ThreadPoolExecutor(_THREADS) as threads:
            writers = {name: _ShardWriter(folder, name, types, shard_rows, threads, one_pass) for name in SPLITS}
            for piece in stream(encoded):
                rows_read += piece.height
                split = piece.get_column(SPLIT_COLUMN)
                columns = {name: piece.get_column(name).to_numpy().reshape(piece.height, -1) for name in fixed}
                for name, writer in writers.items():
                    rows = np.flatnonzero(split == name)
                    writer.add(piece, columns, rows)
                    if one_pass is not None and name == "train":
                        one_pass.learn(columns, rows)
                if progress is not None:
                    progress(rows_read)
            if one_pass is not None:
                one_pass.fit()
            for writer in writers.values():
                writer.end()
            shards = {name: writer.shards() for name, writer in writers.items()}
    except pl.exceptions.PolarsError as error:
        raise pipeline.explain(assigned, error, labels=True) from error
    except (OSError, pa.ArrowException) as error:
        raise cannot_write(folder, error if isinstance(error, OSError) else OSError(str(error))) from error
    written = sum(entry["rows"] for entries in shards.values() for entry in entries)
    if written != rows_read:
        raise DataError("rows were lost", found=written, expected=rows_read, mend="report this")
    return shards


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


@dataclasses.dataclass(frozen=True)
class Cut:
    """What a shard is made of: rows of others.

    Attributes:
        name: Its path from the folder of the store.
        ranges: Path, first row and the row after the last of each shard that it takes rows from, in order.
    """

    name: str
    ranges: tuple[tuple[Path, int, int], ...]


def plan_cuts(pieces: Sequence[tuple[Path, Shards]], shard_rows: int) -> dict[str, list[Cut]]:
    """Says how the shards of pieces become shards of `shard_rows` rows, the last one of a split of the rest.

    The result is what `write_shards` makes of the rows of all pieces at once.

    Args:
        pieces: The folder and the shards of each, in the order of the rows.
        shard_rows: Rows a shard.

    Example:
        >>> entries = {"train": [{"path": "part", "rows": 3}], "valid": [], "test": []}
        >>> pieces = [(Path("a"), entries), (Path("b"), entries)]
        >>> for cut in plan_cuts(pieces, 4)["train"]:
        ...     print(cut.name, [(path.as_posix(), start, stop) for path, start, stop in cut.ranges])
        train/part-00000.arrow [('a/part', 0, 3), ('b/part', 0, 1)]
        train/part-00001.arrow [('b/part', 1, 3)]
    """
    cuts: dict[str, list[Cut]] = {}
    for split in SPLITS:
        shards: list[list[tuple[Path, int, int]]] = []
        room = 0
        for folder, entries in ((folder, shards_of[split]) for folder, shards_of in pieces):
            for entry in entries:
                start = 0
                while start < entry["rows"]:
                    if not room:
                        shards.append([])
                        room = shard_rows
                    stop = min(entry["rows"], start + room)
                    shards[-1].append((folder / entry["path"], start, stop))
                    room -= stop - start
                    start = stop
        cuts[split] = [Cut(_name(split, number), tuple(ranges)) for number, ranges in enumerate(shards)]
    return cuts


def write_cut(cut: Cut, folder: Path) -> dict[str, Any]:
    """Writes a shard of other shards' rows under `folder`, whole or not at all; returns its entry in the manifest.

    Raises:
        ArtifactError: It cannot be written.
    """
    parts = [read_shard(path).slice(start, stop - start) for path, start, stop in cut.ranges]
    batch = pa.Table.from_batches(parts).combine_chunks().to_batches()[0]
    partial = f"{cut.name}.{uuid.uuid4().hex}.partial"
    try:
        entry = write_shard(folder, partial, batch)
        os.replace(folder / partial, folder / cut.name)
    except (OSError, pa.ArrowException) as error:
        (folder / partial).unlink(missing_ok=True)
        raise cannot_write(folder / cut.name, error if isinstance(error, OSError) else OSError(str(error))) from error
    return {**entry, "path": cut.name}


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
    return {"path": name, "rows": batch.num_rows, "bytes": path.stat().st_size, "xxh3": digest_of(path)}


def _name(split: str, number: int) -> str:
    return f"{split}/part-{number:05d}.arrow"


class _ShardWriter:
    """Gathers the rows of one split, and hands shards that are full to threads that finish them."""

    def __init__(
        self,
        folder: Path,
        split: str,
        types: dict[str, pa.DataType],
        shard_rows: int,
        threads: ThreadPoolExecutor,
        one_pass: OnePass | None,
    ) -> None:
        self._folder, self._split, self._types = folder, split, types
        self._shard_rows, self._threads, self._one_pass = shard_rows, threads, one_pass
        self._growing: GrowingShard | None = None
        self._waiting: list[GrowingShard] = []
        self._finished: list[Future[dict[str, Any]]] = []
        self._count = 0
        (folder / split).mkdir(parents=True)

    def add(self, piece: pl.DataFrame, fixed: dict[str, np.ndarray], rows: np.ndarray) -> None:
        """Adds the rows with these numbers of an encoded piece."""
        while len(rows):
            if self._growing is None:
                aside = [] if self._one_pass is None else self._one_pass.aside
                self._growing = GrowingShard(self._folder, _name(self._split, self._count), self._types, aside)
                self._count += 1
            here, rows = np.split(rows, [self._shard_rows - self._growing.rows])
            self._growing.append(piece, fixed, here)
            if self._growing.rows == self._shard_rows:
                self._close()

    def end(self) -> None:
        """Finishes what is left, and all shards if the pipeline has just been fitted."""
        self._close()
        self._finished += [self._threads.submit(self._finish, shard) for shard in self._waiting]

    def shards(self) -> list[dict[str, Any]]:
        """What the manifest says of them, once all are written."""
        return [shard.result() for shard in self._finished]

    def _close(self) -> None:
        if self._growing is None:
            return
        self._growing.close()
        if self._one_pass is None:
            self._finished.append(self._threads.submit(self._finish, self._growing))
        else:
            self._waiting.append(self._growing)
        self._growing = None

    def _finish(self, shard: GrowingShard) -> dict[str, Any]:
        if self._one_pass is not None and self._one_pass.changed:
            shard.change(self._one_pass.changed, self._one_pass.complete)
        return shard.finish()
