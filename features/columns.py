"""Encoded rows as columns: from a Polars frame to Arrow to tensors, and any rows of them as a Batch."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import torch

from features.batch import Batch, gather_ragged
from features.layout import Layout

BAG_PREFIX = "bag:"
"""The column of bag feature x is "bag:x"."""


def column_types(layout: Layout, *, labels: bool) -> dict[str, pa.DataType]:
    """Returns the encoded columns of a layout and their Arrow types; a column of width 0 is left out.

    Args:
        layout: What a row holds.
        labels: Whether labels, weight, group, time and reference are there too.
    """
    wide: dict[str, tuple[pa.DataType, int]] = {
        "ids": (pa.int64(), len(layout.id_names)),
        "dense": (pa.float32(), len(layout.dense_names)),
        "vectors": (pa.float32(), layout.vector_width),
    }
    types = {name: pa.list_(kind, width) for name, (kind, width) in wide.items() if width}
    types |= {BAG_PREFIX + name: pa.large_list(pa.int64()) for name in layout.bag_names}
    if labels:
        types["labels"] = pa.list_(pa.float32(), len(layout.label_names))
        side = {
            "weight": (layout.has_weight, pa.float32()),
            "group": (layout.has_group, pa.int64()),
            "time": (layout.has_time, pa.int64()),
            "reference": (layout.has_reference, pa.float32()),
        }
        types |= {name: kind for name, (there, kind) in side.items() if there}
    return types


def record_batch(frame: pl.DataFrame, types: dict[str, pa.DataType]) -> pa.RecordBatch:
    """Returns an encoded frame as one record batch without validity bitmaps.

    Every array is built from its bare values, so that the same values give the same bytes in a file.
    """
    table = frame.select(list(types)).rechunk().to_arrow()
    arrays = []
    for name, kind in types.items():
        array = table.column(name).combine_chunks()
        array = array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
        if pa.types.is_fixed_size_list(kind):
            array = pa.FixedSizeListArray.from_arrays(_bare(array.flatten()), type=kind)
        elif pa.types.is_large_list(kind):
            # A slice keeps the offsets of the whole; its values do not.
            offsets = array.offsets.to_numpy()
            array = pa.LargeListArray.from_arrays(pa.array(offsets - offsets[0]), _bare(array.flatten()), type=kind)
        else:
            array = _bare(array)
        arrays.append(array)
    schema = pa.schema([pa.field(name, kind, nullable=False) for name, kind in types.items()])
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


@dataclasses.dataclass
class Columns:
    """R encoded rows as tensors that may be views of a memory-mapped file: read only.

    Attributes:
        rows: R.
        wide: [R] or [R, width] tensors by the names of Batch's fields.
        bags: Values and offsets [R + 1] of each bag.
    """

    rows: int
    wide: dict[str, torch.Tensor]
    bags: list[tuple[torch.Tensor, torch.Tensor]]

    @staticmethod
    def of(batch: pa.RecordBatch, layout: Layout) -> Columns:
        """Takes a record batch without copying a value."""
        rows = batch.num_rows
        wide: dict[str, torch.Tensor] = {
            "ids": torch.zeros(rows, 0, dtype=torch.int64),
            "dense": torch.zeros(rows, 0),
            "vectors": torch.zeros(rows, 0),
        }
        bags: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        for name, array in zip(batch.schema.names, batch.columns, strict=True):
            if pa.types.is_fixed_size_list(array.type):
                wide[name] = _tensor(array.flatten()).reshape(rows, array.type.list_size)
            elif pa.types.is_large_list(array.type):
                bags[name] = (_tensor(array.values), _tensor(array.offsets))
            else:
                wide[name] = _tensor(array)
        return Columns(rows, wide, [bags[BAG_PREFIX + name] for name in layout.bag_names])

    def take(self, index: torch.Tensor) -> Batch:
        """Returns copies of the rows `index` (int64 [K]) in its order."""
        picked = {name: _take(value, index) for name, value in self.wide.items()}
        parts = [gather_ragged(values, offsets, index) for values, offsets in self.bags]
        return self._batch(picked, parts, len(index))

    def slice(self, start: int, stop: int) -> Batch:
        """Returns copies of the rows from `start` up to `stop`."""
        picked = {name: torch.from_numpy(value[start:stop].numpy().copy()) for name, value in self.wide.items()}
        parts = []
        for values, offsets in self.bags:
            here = offsets[start : stop + 1]
            parts.append((values[int(here[0]) : int(here[-1])], here.diff()))
        return self._batch(picked, parts, stop - start)

    @staticmethod
    def _batch(wide: dict[str, Any], bags: list[tuple[torch.Tensor, torch.Tensor]], rows: int) -> Batch:
        if not bags:
            empty = torch.zeros(0, dtype=torch.int64)
            return Batch(bag_values=empty, bag_lengths=torch.zeros(0, rows, dtype=torch.int64), **wide)
        values = torch.cat([values for values, _ in bags])
        return Batch(bag_values=values, bag_lengths=torch.stack([lengths for _, lengths in bags]), **wide)


def _take(value: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    # numpy gathers rows in the calling thread. Torch would wake its pool for a copy of a millisecond, and
    # on busy cores waiting for the pool costs twenty times the copy.
    return torch.from_numpy(value.numpy().take(index.numpy(), axis=0))


def _bare(array: pa.Array) -> pa.Array:
    return pa.array(np.ascontiguousarray(array.to_numpy(zero_copy_only=False)))


def _tensor(array: pa.Array) -> torch.Tensor:
    if not len(array):
        return torch.zeros(0, dtype=torch.int64 if pa.types.is_integer(array.type) else torch.float32)
    return torch.from_dlpack(array)
