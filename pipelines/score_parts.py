"""Scores on their way to disk: whole parts in a workshop, a manifest of them, and at the end one file or folder.

A part is written aside and renamed, then the manifest names it: whatever the moment at which the process is killed, the
next one goes on behind the last part that the manifest names.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from features.errors import ConfigError, list_names
from features.files import cannot_write, read_json, write_json
from features.folders import link, whole_or_nothing
from features.reading.unreadable import Unreadable

MANIFEST = "_scores.json"
"""Of a folder of scores; a file of scores carries the same in its metadata."""
_KEY = b"recsys.scores"
_PROGRESS = "progress.json"
_DATA_ENDINGS = (".csv", ".tsv", ".json", ".ndjson", ".jsonl", ".arrow", ".ipc", ".feather", ".gz", ".zst", ".pq")


@dataclass(frozen=True)
class Scored:
    """Some rows that follow each other, with their scores.

    Attributes:
        read: How many rows they were.
        table: Kept columns and probabilities of those that could be used.
        sums: Of the probabilities, a task each.
        bad: The others with file, place and reason, if there are any.
        reasons: How many of these there are, by reason.
    """

    read: int
    table: pa.Table
    sums: list[float]
    bad: pa.Table | None = None
    reasons: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """What the manifest says of a part."""

    read: int
    rows: int
    sums: list[float]
    reasons: dict[str, int]


class Parts:
    """The parts in a workshop.

    Args:
        work: The workshop.
        identity: All that the scores hang on, as plain JSON: parts that were made of something else are removed.

    Raises:
        ArtifactError: The workshop cannot be read or written.
    """

    def __init__(self, work: Path, identity: dict[str, Any]) -> None:
        self.work, self.identity = work, identity
        self.done: list[Part] = []
        manifest = work / _PROGRESS
        if manifest.is_file():
            found = read_json(manifest, mend=f"remove {work}")
            if found.get("identity") == identity:
                self.done = [Part(**part) for part in found["parts"]]
        if not self.done:
            self.clear()

    @property
    def read(self) -> int:
        """Rows of the source that need not be read again."""
        return sum(part.read for part in self.done)

    @property
    def rows(self) -> int:
        """Rows with a score."""
        return sum(part.rows for part in self.done)

    @property
    def reasons(self) -> Counter[str]:
        """Rows without, by reason."""
        return sum((Counter(part.reasons) for part in self.done), Counter())

    @property
    def sums(self) -> list[float]:
        """Of the probabilities, a task each."""
        return [sum(task) for task in zip(*(part.sums for part in self.done), strict=True)]

    def write(self, scored: Iterable[Scored]) -> None:
        """Writes the next part: its rows are all that it is given.

        Raises:
            ArtifactError: It cannot be written.
        """
        rows, bad = self._scores(len(self.done)), self._bad(len(self.done))
        read, sums, reasons = 0, [], Counter[str]()
        with _writer(rows) as write, _writer(bad) as write_bad:
            for one in scored:
                read += one.read
                sums.append(one.sums)
                reasons.update(one.reasons)
                write(one.table)
                if one.bad is not None:
                    write_bad(one.bad)
        total = [sum(task) for task in zip(*sums, strict=True)]
        count = pq.read_metadata(rows).num_rows
        self.done.append(Part(read, count, total, dict(sorted(reasons.items()))))
        write_json(self.work / _PROGRESS, {"identity": self.identity, "parts": [asdict(part) for part in self.done]})

    def clear(self) -> None:
        """Removes everything, so that nothing is left of the workshop when it is closed."""
        self.done = []
        for path in self.work.iterdir():
            if path.name == _PROGRESS or path.suffix in (".parquet", ".partial"):
                path.unlink()

    def publish(self, out: Path, result: dict[str, Any], unreadable: Unreadable) -> None:
        """Gives the scores, and what is in quarantine, their names; what had these names before is replaced.

        Args:
            out: The file or folder.
            result: Kept with the scores, see `result_of`.
            unreadable: What is no row at all.

        Raises:
            ArtifactError: It cannot be written.
        """
        note = json.dumps({"identity": self.identity, "result": result}, sort_keys=True)
        self.write_quarantine(out, unreadable)
        if is_file(out):
            whole = self.work / "whole.partial"
            with _writer(whole, {_KEY: note.encode()}) as write:
                for number in range(len(self.done)):
                    for table in _row_groups(self._scores(number)):
                        write(table)
            with _explained(out):
                if out.is_dir():
                    raise IsADirectoryError(f"{out} is a folder")
                os.replace(whole, out)
            return
        with whole_or_nothing(out) as partial:
            for number in range(len(self.done)):
                link(self._scores(number), partial / f"part-{number:05d}.parquet")
            write_json(partial / MANIFEST, json.loads(note))

    def write_quarantine(self, out: Path, unreadable: Unreadable) -> None:
        """Writes the rows and records that are in quarantine beside the scores; removes a quarantine that was there.

        Raises:
            ArtifactError: It cannot be written.
        """
        aside = quarantine_of(out)
        if not self.reasons and not unreadable.records:
            shutil.rmtree(aside, ignore_errors=True)
            return
        with whole_or_nothing(aside) as partial:
            for number in range(len(self.done)):
                if self.done[number].reasons:
                    link(self._bad(number), partial / f"rows-{number:05d}.parquet")
            unreadable.write(partial)

    def _scores(self, number: int) -> Path:
        return self.work / f"part-{number:05d}.parquet"

    def _bad(self, number: int) -> Path:
        return self.work / f"rows-{number:05d}.parquet"


def is_file(out: Path) -> bool:
    """Whether scores go into one Parquet file, or into a folder of them: the ending says it.

    Raises:
        ConfigError: The ending is that of another kind of file.

    Example:
        >>> is_file(Path("scores.parquet")), is_file(Path("scores/2024-03-01"))
        (True, False)
    """
    if out.suffix.lower() in _DATA_ENDINGS:
        raise ConfigError(
            "scores are written as Parquet",
            field=str(out),
            found=out.suffix,
            expected="a file that ends in .parquet, or a folder",
            mend=f"name it {out.with_suffix('.parquet').name}",
        )
    return out.suffix.lower() == ".parquet"


def quarantine_of(out: Path) -> Path:
    """The folder for rows without a score."""
    return out.with_name(f"{out.name}.quarantine")


def result_of(out: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """What was kept with scores, if they are there and hang on the same.

    Raises:
        ConfigError: A folder is there that holds other things than scores.
    """
    if not is_file(out):
        if out.is_dir() and (names := os.listdir(out)) and MANIFEST not in names:
            raise ConfigError(
                "the folder holds other things than scores, and would be replaced",
                field=str(out),
                found=list_names(sorted(names), 5),
                mend="name a new folder",
            )
        note = read_json(out / MANIFEST, mend="remove the folder") if (out / MANIFEST).is_file() else {}
    else:
        note = {}
        with suppress(OSError, pa.ArrowInvalid, ValueError):
            note = json.loads((pq.read_schema(out).metadata or {}).get(_KEY, b"{}"))
    if note.get("identity") != identity:
        return None
    result: dict[str, Any] = note["result"]
    return None if result["quarantined"] and not quarantine_of(out).is_dir() else result


def _row_groups(path: Path) -> Iterator[pa.Table]:
    with pq.ParquetFile(path) as file:
        for number in range(file.num_row_groups):
            yield file.read_row_group(number)


@contextmanager
def _writer(path: Path, metadata: dict[bytes, bytes] | None = None) -> Iterator[Any]:
    """Gives a function that adds a row group to a file, which gets its name when it is whole."""
    partial = path.with_name(f"{path.name}.partial")
    writer: pq.ParquetWriter | None = None

    def write(table: pa.Table) -> None:
        nonlocal writer
        table = table.replace_schema_metadata(metadata)
        with _explained(path):
            if writer is None:
                writer = pq.ParquetWriter(partial, table.schema, compression="zstd")
            writer.write_table(table)

    try:
        yield write
    except BaseException:
        if writer is not None:
            with suppress(OSError, pa.ArrowException):
                writer.close()
        partial.unlink(missing_ok=True)
        raise
    if writer is not None:
        with _explained(path):
            writer.close()
            os.replace(partial, path)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise cannot_write(path, error if isinstance(error, OSError) else OSError(str(error))) from error
