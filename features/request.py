"""RequestEncoder: rows as plain mappings become a Batch, column by column, without a DataFrame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from features.batch import Batch
from features.derived import Derived
from features.errors import DataError
from features.frames import require_column
from features.layout import Layout
from features.ops.base import ColumnEncoder, Kind, Operator, shown
from features.ops.cross import Cross

Row = Mapping[str, Any]
_NOTHING: Row = {}
_DTYPES = {"group": np.int64, "time": np.int64}


class RequestEncoder:
    """The functions from value to code of all operators, built once for many requests.

    Args:
        layout: What the batches hold.
        operators: Fitted, in spec order.
        side: The operators of labels, weight, group, time and reference.
        derived: The derived columns.
    """

    def __init__(
        self,
        layout: Layout,
        operators: Sequence[Operator | Cross],
        side: Mapping[str, Sequence[Operator]],
        derived: Derived,
    ) -> None:
        self._layout, self._derived = layout, derived
        places = {name: place for place, name in enumerate(layout.id_names)}
        plain = [item for item in operators if isinstance(item, Operator)]
        self._ids = [(places[item.name], *_bound(item)) for item in plain if item.kind == "id"]
        self._crosses = [
            (places[item.name], item, [places[name] for name in item.of])
            for item in operators
            if isinstance(item, Cross)
        ]
        self._bags = [(item.outputs, *_bound(item)) for item in plain if item.kind == "bag"]
        self._numbers = _slices(plain, "number")
        self._vectors = _slices(plain, "vector")
        self._side = {role: [_bound(item) for item in items] for role, items in side.items()}
        self._vector_width = layout.vector_width
        self._columns = frozenset(column for item in plain for column in item.columns) | frozenset(derived.inputs)
        self._columns |= {item.column for items in side.values() for item in items}

    def __call__(self, rows: Row | Sequence[Row], *, shared: Row | None, labels: bool) -> Batch:
        """Encodes rows; see `FeaturePipeline.encode`."""
        rows = [rows] if isinstance(rows, Mapping) else rows
        columns = _Columns(rows, shared or _NOTHING)
        if shared:
            self._check_shared(rows, shared)
        if self._derived.inputs:
            columns.add(self._derived, self._columns)
        count, layout = len(rows), self._layout
        ids = np.empty((count, len(layout.id_names)), dtype=np.int64)
        codes: dict[int, list[int]] = {}
        for place, encode, names in self._ids:
            codes[place] = ids[:, place] = columns.encoded(encode, names)
        for place, cross, parts in self._crosses:
            parts_of = columns.level([codes[part] for part in parts])
            ids[:, place] = [cross.encode(row) for row in zip(*parts_of, strict=True)]
        lists: list[list[list[int]]] = []
        for outputs, encode, names in self._bags:
            found = columns.encoded(encode, names)
            found = found if len(found) == count else found * count
            lists.extend([found] if outputs == 1 else [[row[k] for row in found] for k in range(outputs)])
        lengths = [len(row) for bag in lists for row in bag]
        batch = Batch(
            ids=torch.from_numpy(ids),
            bag_values=torch.tensor([code for bag in lists for row in bag for code in row], dtype=torch.int64),
            bag_lengths=torch.tensor(lengths, dtype=torch.int64).view(len(lists), count),
            dense=_filled(columns, self._numbers, len(layout.dense_names)),
            vectors=_filled(columns, self._vectors, self._vector_width),
        )
        for role, items in self._side.items() if labels else ():
            values = np.empty((count, len(items)), dtype=_DTYPES.get(role, np.float32))
            for place, (encode, names) in enumerate(items):
                values[:, place] = columns.encoded(encode, names)
            setattr(batch, role, torch.from_numpy(values if role == "labels" else values[:, 0]))
        return batch

    def _check_shared(self, rows: Sequence[Row], shared: Row) -> None:
        read = self._columns.intersection(shared)
        for row in rows:
            if not read.isdisjoint(row):
                name = min(read.intersection(row))
                raise DataError(
                    "is given twice, in a row and in what all rows share",
                    field=name,
                    found=f"{shown(row[name])} and {shown(shared[name])}",
                    mend="leave it out of one of them",
                )


class _Columns:
    """The values of one request by column: a list of one value where all rows share it."""

    def __init__(self, rows: Sequence[Row], shared: Row) -> None:
        self._rows, self._shared = rows, shared
        self._derived: dict[str, list[Any]] = {}
        self.count = len(rows)

    def add(self, derived: Derived, known: frozenset[str]) -> None:
        for row in (self._shared, *self._rows):
            derived.check_names(row)
        inputs = [self.values(name) for name in derived.inputs]
        self._derived = derived.encode(dict(zip(derived.inputs, self.level(inputs), strict=True)))

    def values(self, name: str) -> list[Any]:
        """[count] values, or one."""
        if name in self._derived:
            return self._derived[name]
        if name in self._shared:
            return [self._shared[name]]
        try:
            return [row[name] for row in self._rows]
        except KeyError:
            lacking = next(row for row in self._rows if name not in row)
            require_column(name, {**self._shared, **lacking})
            raise

    def encoded(self, encode: ColumnEncoder, names: tuple[str, ...]) -> list[Any]:
        """[count] codes, or one."""
        if len(names) == 1:
            return encode(self.values(names[0]))
        return encode(*self.level([self.values(name) for name in names]))

    def level(self, lists: Sequence[list[Any]]) -> Sequence[list[Any]]:
        """Returns the lists at one length: that of the longest."""
        if len({len(values) for values in lists}) == 1:
            return lists
        return [values if len(values) == self.count else values * self.count for values in lists]


def _bound(operator: Operator) -> tuple[ColumnEncoder, tuple[str, ...]]:
    return operator.column_encoder(), operator.columns


def _slices(operators: Sequence[Operator], kind: Kind) -> list[tuple[Any, ColumnEncoder, tuple[str, ...]]]:
    """The place of each operator's floats in a row: a number where it has one, else a slice."""
    found: list[tuple[Any, ColumnEncoder, tuple[str, ...]]] = []
    start = 0
    for item in operators:
        if item.kind == kind:
            width = item.outputs
            found.append((start if kind == "number" and width == 1 else slice(start, start + width), *_bound(item)))
            start += width
    return found


def _filled(columns: _Columns, slices: list[tuple[Any, ColumnEncoder, tuple[str, ...]]], width: int) -> torch.Tensor:
    table = np.empty((columns.count, width), dtype=np.float32)
    for place, encode, names in slices if columns.count else ():
        table[:, place] = columns.encoded(encode, names)
    return torch.from_numpy(table)
