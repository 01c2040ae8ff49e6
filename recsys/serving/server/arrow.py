"""Arrow IPC streams from strangers, read with a bound on what they unfold to; and answers as such streams."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from features.errors import DataError, list_names
from features.frames import first_line
from recsys.serving.server.refusal import Refusal

MEDIA_TYPE = "application/vnd.apache.arrow.stream"
_POLARS = (pl.exceptions.PolarsError, pl.exceptions.PanicException)
_HEADER = 2
_DICTIONARY_DATA = 1
_COMPRESSION = 3
"""Places of fields in the tables Message, DictionaryBatch and RecordBatch of Arrow's Message.fbs."""


@dataclass(frozen=True)
class Stream:
    """What was read of a stream.

    Attributes:
        frame: The columns that were asked for.
        others: Names of the other columns.
        metadata: Of its schema.
    """

    frame: pl.DataFrame
    others: list[str]
    metadata: Mapping[bytes, bytes]

    def rows(self) -> list[dict[str, Any]]:
        """The rows of the frame.

        Raises:
            Refusal: A value is none that Python has, such as a time in an unknown zone or of the year 10000.
        """
        try:
            return self.frame.to_dicts()
        except (ArithmeticError, LookupError, ValueError, *_POLARS) as error:
            raise _malformed(first_line(error)) from None


def read_stream(body: bytes, columns: Mapping[str, Any], max_rows: int, max_list: int) -> Stream:
    """Reads some columns of a stream.

    Args:
        body: The stream.
        columns: The columns to read, as far as they are there.
        max_rows: Rows of all its batches.
        max_list: Elements of a list.

    Raises:
        Refusal: It is no stream, compressed, damaged, or larger than the limits; nothing large is made before that
            is known.
    """
    try:
        _require_plain(body)
        with pa.ipc.open_stream(body) as reader:
            names, metadata = reader.schema.names, reader.schema.metadata or {}
            known = [name for name in names if name in columns]
            if len(set(names)) < len(names):
                raise _malformed("two columns have one name")
            if not known:
                raise _malformed(f"no column is one of {list_names(columns)}")
            for name in known:
                _require_flat(reader.schema.field(name))
            batches, rows = [], 0
            for batch in reader:
                rows += batch.num_rows
                if rows > max_rows:
                    raise too_many("rows", rows, max_rows)
                # Offsets from a stranger may point anywhere.
                batch.validate(full=True)
                batches.append(batch.select(known))
            table = pa.Table.from_batches(batches, pa.schema([reader.schema.field(name) for name in known]))
        for name in known:
            if pa.types.is_nested(table.schema.field(name).type):
                require_length(name, pc.max(pc.list_value_length(table[name])).as_py() or 0, max_list)
                # Elements that belong to no row, which may be many without a byte.
                require_length(name, sum(len(chunk.values) for chunk in table[name].chunks), max_rows * max_list)
        frame = pl.DataFrame(pl.from_arrow(table))
    except (pa.ArrowException, *_POLARS, OSError, ValueError, TypeError, struct.error) as error:
        raise _malformed(first_line(error)) from None
    return Stream(frame, [name for name in names if name not in columns], metadata)


def write_stream(columns: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """Columns as a stream with metadata."""
    batch = pa.record_batch(dict(columns)).replace_schema_metadata(dict(metadata))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


def too_many(name: str, found: int, limit: int) -> Refusal:
    """The refusal of more rows than a request may have."""
    message = f"{name}: too many. Found: {found:,}. Expected: at most {limit:,}"
    return Refusal(413, "too_large", message, field=name)


def require_length(column: str, length: int, limit: int) -> None:
    """Refuses a list that is too long."""
    if length > limit:
        raise Refusal.of(DataError("list is too long", field=column, found=length, expected=f"at most {limit:,}"))


def _require_plain(body: bytes) -> None:
    """Refuses compressed batches, which may unfold to any size."""
    reader = pa.ipc.MessageReader.open_stream(body)
    for message in reader:
        if message.type == "schema":
            continue
        # pyarrow has verified the flatbuffer, but does not tell what it says about compression.
        table = _follow(message.metadata, _root(message.metadata), _HEADER)
        if message.type == "dictionary":
            table = _follow(message.metadata, table, _DICTIONARY_DATA)
        if _field(message.metadata, table, _COMPRESSION):
            raise Refusal(415, "media_type", "compressed Arrow batches are not read: write them without compression")


def _require_flat(field: pa.Field) -> None:
    """Refuses types whose size in memory says nothing about what they unfold to."""
    kind = field.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        # Polars panics on a name of elements that is no UTF-8; pyarrow raises a UnicodeDecodeError.
        _ = kind.value_field.name
        kind = kind.value_type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_nested(kind) or pa.types.is_decimal256(kind):  # of the latter Polars panics
        error = DataError(
            "type is not read", field=field.name, found=field.type, expected="plain values or lists of them"
        )
        raise Refusal.of(error)


def _root(buffer: pa.Buffer) -> int:
    return int(struct.unpack_from("<I", buffer, 0)[0])


def _field(buffer: pa.Buffer, table: int, place: int) -> int:
    """Where a field of a flatbuffer's table lies; 0 if it is not there."""
    vtable = table - struct.unpack_from("<i", buffer, table)[0]
    if 4 + 2 * place >= struct.unpack_from("<H", buffer, vtable)[0]:
        return 0
    offset = struct.unpack_from("<H", buffer, vtable + 4 + 2 * place)[0]
    return int(table + offset) if offset else 0


def _follow(buffer: pa.Buffer, table: int, place: int) -> int:
    at = _field(buffer, table, place)
    return int(at + struct.unpack_from("<I", buffer, at)[0])


def _malformed(why: str) -> Refusal:
    return Refusal(400, "malformed", f"the body is no Arrow IPC stream that can be read: {why}")
