"""A shard that grows on disk, so that memory holds a piece of it at a time, whatever its size.

An Arrow file has its columns one after the other, and rows come one after the other. The first column grows in the
shard's own file, behind room for the header, and every other one in a file beside it, to be moved in at the end.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import polars as pl
import pyarrow as pa
import xxhash

from features.columns import record_batch

_BLOCK = 1 << 20
_ROWS = 16_384
"""Rows that are changed together."""


class GrowingShard:
    """A shard to which rows are appended.

    Args:
        folder: The folder of the store.
        name: The path of the shard from there.
        types: Encoded columns and their Arrow types.
        aside: Columns of a fixed width that are kept until `change`, and never become part of the shard.
    """

    def __init__(self, folder: Path, name: str, types: Mapping[str, pa.DataType], aside: Sequence[str] = ()) -> None:
        self.rows = 0
        self._name, self._path, self._types = name, folder / name, types
        self._values = {column: 0 for column, kind in types.items() if pa.types.is_large_list(kind)}
        self._kinds: dict[str, tuple[np.dtype[Any], int]] = {}
        # In the order of the file: lists have their offsets before their values.
        streams = [
            stream
            for column in (*types, *aside)
            for stream in ((_offsets(column), column) if column in self._values else (column,))
        ]
        self._first, self._header = streams[0], _header_size(types)
        self._paths = {stream: self._path.with_name(f".{self._path.name}.{at}") for at, stream in enumerate(streams)}
        self._paths[self._first] = self._path
        self._files: dict[str, BinaryIO] = {stream: path.open("wb") for stream, path in self._paths.items()}
        self._files[self._first].seek(self._header)
        for column in self._values:
            self._files[_offsets(column)].write(bytes(8))  # the first is 0

    def append(self, piece: pl.DataFrame, fixed: Mapping[str, np.ndarray], rows: np.ndarray) -> None:
        """Appends some rows of an encoded piece.

        Args:
            piece: Encoded rows.
            fixed: Its columns of a fixed width, those aside too: [rows of the piece, width].
            rows: The numbers of the rows in the piece, rising.
        """
        for column, values in fixed.items():
            self._kinds[column] = (values.dtype, values.shape[1])
            self._files[column].write(values.take(rows, axis=0, mode="clip").data)
        if self._values:
            kinds = {column: self._types[column] for column in self._values}
            wanted = np.zeros(piece.height, dtype=bool)
            wanted[rows] = True
            lists = record_batch(piece.select(list(kinds)).filter(wanted), kinds)
            for column, before in self._values.items():
                ends, values = lists.column(column).offsets.to_numpy()[1:], lists.column(column).values.to_numpy()
                self._files[_offsets(column)].write((ends + before).data)
                self._files[column].write(values.data)
                self._values[column] = before + len(values)
        self.rows += len(rows)

    def close(self) -> None:
        """Closes the files, so that any number of shards may wait: no row comes any more."""
        for file in self._files.values():
            file.close()

    def change(self, columns: Sequence[str], change: Callable[[dict[str, np.ndarray]], None]) -> None:
        """Gives columns of a fixed width, some rows at a time, to a function that changes them in place."""
        self.close()
        with ExitStack() as stack:
            files = {column: stack.enter_context(self._paths[column].open("r+b")) for column in columns}
            for start in range(0, self.rows, _ROWS):
                rows = min(_ROWS, self.rows - start)
                arrays = {
                    column: np.empty((rows, self._kinds[column][1]), self._kinds[column][0]) for column in columns
                }
                for column, array in arrays.items():
                    files[column].seek(self._place(column, start))
                    files[column].readinto(array.data.cast("B"))
                change(arrays)
                for column, array in arrays.items():
                    if column in self._types:
                        files[column].seek(self._place(column, start))
                        files[column].write(array.data)

    def finish(self) -> dict[str, Any]:
        """Makes the file whole; returns its entry in the manifest."""
        self.close()
        batch, addresses = _described(self._types, self.rows, self._values)
        with ExitStack() as stack:
            file = stack.enter_context(self._path.open("r+b"))
            sources = {
                address: file if stream == self._first else stack.enter_context(self._paths[stream].open("rb"))
                for stream, address in addresses.items()
                if address
            }
            sink = _Sink(file, sources)
            with pa.ipc.new_file(pa.PythonFile(sink, mode="w"), batch.schema) as writer:
                writer.write_batch(batch)
            size = file.tell()
        for path in self._paths.values():
            if path != self._path:
                path.unlink()
        return {"path": self._name, "rows": self.rows, "bytes": size, "xxh3": str(sink.digest.hexdigest())}

    def _place(self, column: str, row: int) -> int:
        kind, width = self._kinds[column]
        return row * width * kind.itemsize + (self._header if column == self._first else 0)


class _Sink(io.RawIOBase):
    """Takes what Arrow writes; in place of a column's values, which were never there, it puts those of its file."""

    def __init__(self, file: BinaryIO, sources: Mapping[int, BinaryIO]) -> None:
        self.file, self.sources = file, sources
        self.digest = xxhash.xxh3_128()
        self._block = memoryview(bytearray(_BLOCK))

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if isinstance(data, pa.Buffer):
            self._move(self.sources[data.address], data.size)
            return int(data.size)
        self.digest.update(data)
        return self.file.write(data)

    def _move(self, source: BinaryIO, size: int) -> None:
        while size:
            block = self._block[: source.readinto(self._block[: min(size, _BLOCK)])]  # type: ignore[attr-defined]
            if not block:
                raise OSError("a column is shorter than its rows")
            self.digest.update(block)
            if source is not self.file:  # it is there already
                self.file.write(block)
            size -= len(block)


class _Places(io.RawIOBase):
    """Takes what Arrow writes, and keeps nothing but where the first values begin."""

    def __init__(self) -> None:
        self.first: int | None = None
        self._place = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if isinstance(data, pa.Buffer) and self.first is None:
            self.first = self._place
        size = data.size if isinstance(data, pa.Buffer) else len(data)
        self._place += size
        return int(size)


def _header_size(types: Mapping[str, pa.DataType]) -> int:
    """The place of the first value, which is the same for any number of rows but none."""
    batch, _ = _described(types, 1, {column: 1 for column, kind in types.items() if pa.types.is_large_list(kind)})
    places = _Places()
    with pa.ipc.new_file(pa.PythonFile(places, mode="w"), batch.schema) as writer:
        writer.write_batch(batch)
    assert places.first is not None
    return places.first


def _described(
    types: Mapping[str, pa.DataType], rows: int, values: Mapping[str, int]
) -> tuple[pa.RecordBatch, dict[str, int]]:
    """A record batch of these sizes, in memory that is never touched, and the address of each stream's values."""
    arrays, addresses = [], {}
    for column, kind in types.items():
        if column in values:
            offsets = np.zeros(rows + 1, np.int64)
            offsets[-1] = values[column]  # Arrow looks at it for the number of values
            plain = np.zeros(values[column], np.int64)
            arrays.append(pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(plain), type=kind))
            addresses[_offsets(column)] = offsets.ctypes.data
        else:
            is_list = pa.types.is_fixed_size_list(kind)
            width, value = (kind.list_size, kind.value_type) if is_list else (1, kind)
            plain = np.zeros(rows * width, value.to_pandas_dtype())
            array = pa.array(plain)
            arrays.append(pa.FixedSizeListArray.from_arrays(array, type=kind) if is_list else array)
        addresses[column] = plain.ctypes.data if len(plain) else 0
    schema = pa.schema([pa.field(column, kind, nullable=False) for column, kind in types.items()])
    return pa.RecordBatch.from_arrays(arrays, schema=schema), addresses


def _offsets(column: str) -> str:
    return f"{column} offsets"
