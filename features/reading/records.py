"""Finds the lines of a text file that are no records, which a reader would take for rows of nulls or stop at.

CSV and TSV are looked through as bytes, and NDJSON by reading it. Only a file with a bad line is read line by line.
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import polars as pl
import pyarrow as pa

from features.errors import DataError
from features.frames import PLACE_COLUMN, first_line

_BLOCK = 8 << 20
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_LONGEST = 64 << 20
_MOST_BAD = 1_000_000
_TEXT_LENGTH = 1000
_COMPRESSED = {".gz": "gzip", ".zst": "zstd"}
_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_JSON = (".ndjson", ".jsonl")
_NO_END = "the last line has no end: the file may be cut off"

Open = Callable[[Path], pl.LazyFrame]
"""Opens a file as rows."""


@dataclasses.dataclass(frozen=True)
class BadRecord:
    """A line, or several that a quote binds together, that is no record.

    Attributes:
        place: Its number among the file's records, from 0.
        reason: What is wrong.
        text: How it begins.
    """

    place: int
    reason: str
    text: str


@dataclasses.dataclass(frozen=True)
class Opened:
    """A file opened as rows, without what is no record.

    Attributes:
        frame: Rows with their place in the file.
        path: The file that holds them: the file itself, or a copy of its good records.
        places: uint32 [R], of the rows of a copy their places in the file; None for the file itself.
        records: What is no record.
        note: What is odd about the file, if anything.
    """

    frame: pl.LazyFrame
    path: Path
    places: np.ndarray | None
    records: list[BadRecord]
    note: str | None = None


def open_records(path: Path, open_file: Open, spool: Path) -> Opened:
    """Opens a file and looks for what is no record in it.

    Args:
        path: CSV, TSV, NDJSON (also compressed) or any other file that `open_file` takes.
        open_file: Opens a file of this ending, and of it without `.gz` or `.zst`.
        spool: If there are bad records, a copy of the others is written under this folder.

    Raises:
        DataError: The file cannot be read, or has a million bad records.
    """
    kind = _kind(path)
    note = _NO_END if kind in (*_SEPARATORS, *_JSON) and not _ends(path) else None
    try:
        if kind in _SEPARATORS and not _agree(path, _SEPARATORS[kind]):
            return _divided(path, open_file, spool, note)
        frame = open_file(path)
        read_through(frame)
    except (DataError, pl.exceptions.PolarsError, OSError, pa.ArrowException) as error:
        if kind not in (*_SEPARATORS, *_JSON):
            raise _unreadable(path, error) from error
        return _divided(path, open_file, spool, note)
    return Opened(with_places(frame, None), path, None, [], note)


def with_places(frame: pl.LazyFrame, places: np.ndarray | None) -> pl.LazyFrame:
    """Adds the place of every row in its file: its number, or what `places` says."""
    if places is None:
        return frame.with_row_index(PLACE_COLUMN)
    return pl.concat([pl.LazyFrame({PLACE_COLUMN: places}), frame], how="horizontal")


def require_records(path: Path) -> None:
    """Refuses a CSV or TSV file with lines of too few fields, which a reader would fill with nulls in silence.

    Raises:
        DataError: There are such lines; shows the first.
    """
    kind = _kind(path)
    try:
        if kind not in _SEPARATORS or _agree(path, _SEPARATORS[kind]):
            return
        bad = [record for _, record in _records(path, kind) if record is not None]
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error
    if bad:
        raise DataError(
            f"{bad[0].reason} (in {len(bad)} line{'s' if len(bad) > 1 else ''})",
            field=str(path),
            found=f"{bad[0].text!r:.80} in row {bad[0].place}",
            expected="as many fields in every line as in the header, in UTF-8",
            mend="mend the lines, or set data.quality.mode: quarantine",
        )


def read_through(frame: pl.LazyFrame) -> None:
    """Reads every value, so that what cannot be read shows."""
    frame.select(pl.all().null_count()).collect(engine="streaming")


def _kind(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return (
        suffixes[-2] if suffixes[-1:] and suffixes[-1] in _COMPRESSED and len(suffixes) > 1 else "".join(suffixes[-1:])
    )


def _stream(path: Path) -> BinaryIO:
    return pa.input_stream(str(path), compression=_COMPRESSED.get(path.suffix.lower()))


def _blocks(path: Path) -> Iterator[bytes]:
    with _stream(path) as file:
        while block := file.read(_BLOCK):
            yield block


def _ends(path: Path) -> bool:
    if path.suffix.lower() in _COMPRESSED:
        return True
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) == b"\n"


def _agree(path: Path, separator: str) -> bool:
    """Whether all records are UTF-8 and have as many separators outside quotes as the header."""
    waiting, fields = b"", 0
    for block in _blocks(path):
        data = waiting + block
        ends, separators = _marks(data, separator)
        if not len(ends):
            if len(data) > _LONGEST:
                return False
            waiting = data
            continue
        waiting, whole = data[ends[-1] + 1 :], data[: ends[-1] + 1]
        fields = fields or int((separators < ends[0]).sum())
        if not _is_utf8(whole) or not _even(ends, separators[separators < ends[-1]], fields):
            return False
    if not waiting:
        return True
    ends, separators = _marks(waiting + b"\n", separator)
    return len(ends) > 0 and _is_utf8(waiting) and _even(ends, separators, fields or len(separators))


def _marks(data: bytes, separator: str) -> tuple[np.ndarray, np.ndarray]:
    """Where records end, and where separators stand."""
    octets = np.frombuffer(data, dtype=np.uint8)
    ends, separators = octets == ord("\n"), octets == ord(separator)
    if b'"' in data:
        outside = np.cumsum(octets == ord('"')) % 2 == 0
        ends, separators = ends & outside, separators & outside
    return np.flatnonzero(ends), np.flatnonzero(separators)


def _even(ends: np.ndarray, separators: np.ndarray, fields: int) -> bool:
    if len(separators) != len(ends) * fields:
        return False
    if not fields:
        return True
    rows = separators.reshape(len(ends), fields)
    return bool((rows[:, -1] < ends).all() and (rows[1:, 0] > ends[:-1]).all())


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _divided(path: Path, open_file: Open, spool: Path, note: str | None) -> Opened:
    kind = _kind(path)
    name = path.name[: -len(path.suffix)] if path.suffix.lower() in _COMPRESSED else path.name
    # A folder KEY=VALUE may be a column.
    copy = spool.joinpath(uuid.uuid4().hex, *(part for part in path.parent.parts if "=" in part), name)
    copy.parent.mkdir(parents=True)
    bad: list[BadRecord] = []
    total = 0
    try:
        with copy.open("wb") as good:
            for data, record in _records(path, kind):
                if record is None:
                    good.write(data)
                else:
                    bad.append(record)
                if len(bad) > _MOST_BAD:
                    raise DataError("more than a million bad records", field=str(path), mend="write the file anew")
                total += 1
        # The first record of a CSV is its header.
        rows = total - (kind in _SEPARATORS)
        frame = open_file(copy)
        read_through(frame)
    except (pl.exceptions.PolarsError, OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error
    places = np.delete(np.arange(rows, dtype=np.uint32), [record.place for record in bad])
    return Opened(with_places(frame, places), copy, places, bad, note)


def _records(path: Path, kind: str) -> Iterator[tuple[bytes, BadRecord | None]]:
    """Yields the bytes of each record, and what is wrong with it."""
    lines = _lines(path)
    first = next(lines, b"").removeprefix(_BYTE_ORDER_MARK)
    lines = itertools.chain([first] if first else [], lines)
    if kind in _JSON:
        for place, line in enumerate(line for line in lines if line.strip()):
            reason = _json_reason(line)
            yield line, None if reason is None else BadRecord(place, reason, _short(line))
        return
    separator = _SEPARATORS[kind]
    try:
        header = next(lines)
        (names,) = csv.reader([header.decode()], delimiter=separator)
    except (StopIteration, ValueError, csv.Error) as error:
        raise DataError("header cannot be read", field=str(path), found=first_line(error), mend="mend it") from error
    yield header, None
    check = _CsvCheck(separator, len(names))
    place = 0
    ahead: list[bytes] = []
    while line := (ahead.pop(0) if ahead else next(lines, b"")):
        record, reason, used = line, check.reason(line), 0
        if reason is not None and line.count(b'"') % 2:
            # A quote may bind lines together. If it does not, only the first line is lost.
            while len(ahead) < 100 and (following := next(lines, b"")):
                ahead.append(following)
            joined = line
            for number, following in enumerate(ahead, start=1):
                joined += following
                if following.count(b'"') % 2:
                    if check.reason(joined) is None:
                        record, reason, used = joined, None, number
                    break
        del ahead[:used]
        yield record, None if reason is None else BadRecord(place, reason, _short(line))
        place += 1


def _lines(path: Path) -> Iterator[bytes]:
    """Yields the lines, each with its end; the last one gets one."""
    waiting = b""
    for block in _blocks(path):
        *lines, waiting = (waiting + block).split(b"\n")
        for line in lines:
            yield line + b"\n"
    if waiting:
        yield waiting + b"\n"


class _CsvCheck:
    """Says what is wrong with the bytes of a record."""

    def __init__(self, separator: str, fields: int) -> None:
        self.separator, self.fields = separator.encode(), fields
        field = rf'(?:"(?:[^"]|"")*"|[^"{separator}\n]*)'
        self.quoted = re.compile(rf"{field}(?:{separator}{field})*\r?\n".encode())
        self.inside = re.compile(rb'"(?:[^"]|"")*"')

    def reason(self, record: bytes) -> str | None:
        if not _is_utf8(record):
            return "invalid UTF-8"
        if b'"' in record:
            if not self.quoted.fullmatch(record):
                return "quotes that do not fit together"
            record = self.inside.sub(b"", record)
        elif not record.strip(b"\r\n") and self.fields > 1:
            return "blank line"
        found = record.count(self.separator) + 1
        return None if found == self.fields else "too few fields" if found < self.fields else "too many fields"


def _json_reason(line: bytes) -> str | None:
    if not _is_utf8(line):
        return "invalid UTF-8"
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return "no JSON"
    return None if isinstance(value, dict) else "no JSON object"


def _short(data: bytes) -> str:
    return data[:_TEXT_LENGTH].decode(errors="replace").rstrip("\r\n")


def _unreadable(path: Path, error: BaseException) -> DataError:
    if isinstance(error, DataError):
        return error
    return DataError("file cannot be read", field=str(path), found=first_line(error), mend="copy or write it anew")
