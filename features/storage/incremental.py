"""Adds new files to a store, with the pipeline as it was fitted first, and goes on where a killed run was.

Work is done in pieces: a file, or so many rows of one. A finished piece is a folder in the workshop beside the store;
its name says everything that it hangs on, so that a later run finds it or does it anew.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import xxhash
from pydantic import Field

from features.errors import ArtifactError, ConfigError, DataError, list_names
from features.files import read_json, write_json
from features.folders import finished, kept_aside, link, remove_leftovers, spool_beside, whole_or_nothing, workshop
from features.frames import SPLIT_COLUMN, first_line
from features.pipeline import FeaturePipeline
from features.reading.input_files import ADDED_COLUMNS, FileRows, InputFile, Reading, read_files, unreadable_of
from features.reading.records import Open
from features.spec import FeatureSpec
from features.storage.drift import Profile, compare, profile_of, schema_drift
from features.storage.engines.base import LOCAL, Engine
from features.storage.pieces import count_rows, fit_on_files, write_fit_columns
from features.storage.quality import STRICT, Checked, QualityConfig, check, check_share, write_quarantine
from features.storage.shards import (
    Progress,
    Shards,
    compact,
    describe,
    drop_older,
    link_shards,
    read_shard,
    write_shards,
)
from features.storage.splits import SPLITS, Split, drop_reason
from features.storage.store import QUARANTINE, Store, check_free, check_splits, finish, naming
from features.validation import Strict

CountUnmatched = Callable[[pl.LazyFrame], dict[str, int]]

_DAY = 86_400_000_000
_KEYS, _FILE, _ROWS = "keys", "piece.json", "rows.parquet"
_ANEW = "`recsys prepare --rebuild` prepares everything anew"
_PROFILE = "profile.safetensors"
_DRIFT_BATCHES = 30
_MEND = "remove the hidden folder beside the store whose name ends in .work"


class IncrementalConfig(Strict):
    """How files are added to a store."""

    piece_rows: int = Field(4_000_000, ge=1)
    """A file of more rows is worked off in pieces of so many; what a killed run had finished is not done again."""
    compact_above: int = Field(100, ge=1)
    """With more shards in a split, neighbours are merged up to `shard_rows`."""
    keep_days: float | None = Field(None, gt=0)
    """Shards whose rows are all older than the newest row by more than this are dropped."""
    gone: Literal["error", "keep"] = "error"
    """A file that was read and is not there any more is an error, or its rows are kept."""
    side_tables: Literal["error", "keep"] = "error"
    """A side table whose content changed is an error, or rows keep what they got and new ones get what is there now."""


UPDATE = IncrementalConfig()
"""The defaults."""


@dataclasses.dataclass
class _Piece:
    """Rows of one file: all, or `limit` from `start` on."""

    rows: FileRows
    stamp: tuple[int, int]
    digest: str
    start: int
    limit: int | None
    checked: Checked | None = None

    @property
    def file(self) -> InputFile:
        return self.rows.file

    def frame(self, open_file: Open) -> pl.LazyFrame:
        frame = self.rows.open(open_file)
        return frame if self.limit is None else frame.slice(self.start, self.limit)

    @property
    def salt(self) -> int:
        return int(self.digest[:16], 16) or 1


def update_store(
    files: Sequence[InputFile],
    open_file: Open,
    spec: FeatureSpec,
    split: Split,
    folder: Path,
    *,
    shard_rows: int = 1_000_000,
    source: dict[str, Any] | None = None,
    sides: Mapping[str, Any] | None = None,
    count_unmatched: CountUnmatched | None = None,
    quality: QualityConfig = STRICT,
    incremental: IncrementalConfig = UPDATE,
    anew: bool = False,
    engine: Engine | None = None,
    progress: Progress | None = None,
) -> Store:
    """Adds the files that the store does not hold yet; the first time fits on the train rows of all files.

    The old store stays until the new one is whole. What is finished when the run stops, for whatever reason, is
    not done again by the next one.

    Args:
        files: All files of the source, in the order in which rows are added.
        open_file: Opens one as rows.
        spec: The description of the columns.
        split: How to divide the events; it must divide by row.
        folder: The store.
        shard_rows: Rows a shard at most.
        source: Where the events come from, for the manifest; plain JSON.
        sides: What tells the content of each file of the side tables that `open_file` joins; plain JSON.
        count_unmatched: Counts rows that `open_file` opened and that have no row in a side table, by table.
        quality: What becomes of rows that cannot be used. The limit holds for the new files together.
        incremental: See there.
        anew: Forget the store that is there.
        engine: Works off pieces, with the same result; None for one after the other in this process, as it is done
            anyway if there is a `quality.key`.
        progress: Told about the rows read.

    Raises:
        ConfigError: The split does not divide by row.
        DataError: A file that was read is changed or gone, or a side table is changed; a row, column or file is wrong;
            too much is in quarantine.
        ArtifactError: Files cannot be added to what is there, another process is preparing it, or it cannot be written.
    """
    folder = Path(folder)
    if not split.by_row:
        raise ConfigError(
            "rows would move between splits when files are added",
            field="data.split.kind",
            found=split.kind,
            expected="random, column, or time with valid_from and test_from",
            mend="choose one of these, or leave data.incremental out",
        )
    check_free(folder)
    with workshop(folder) as work, naming(source or {}), spool_beside(folder) as spool:
        remove_leftovers(folder)
        old = None if anew or not folder.exists() else _open(folder, spec, split)
        known = {entry["file"]: entry for entry in old.manifest["inputs"]} if old else {}
        stamps = {file.name: file.stamp for file in files}
        digests = {file.name: _digest(file, known.get(file.name)) for file in files}
        _check_known(known, digests, incremental)
        _check_sides(old, sides or {}, incremental)
        new = [file for file in files if known.get(file.name, {}).get("digest") != digests[file.name]]
        if old is not None and not new:
            return old
        pipeline = FeaturePipeline(spec) if old is None else old.pipeline
        readings = read_files(new, open_file, pipeline, quality, spool, engine)
        # What is a second row of a key hangs on the pieces before.
        engine = None if quality.key is not None else engine
        run = _Run(
            work,
            old,
            pipeline,
            split,
            quality,
            shard_rows,
            source or {},
            sides or {},
            open_file,
            count_unmatched,
            engine,
        )
        pieces = run.pieces(readings, stamps, digests, incremental.piece_rows)
        if old is None:
            run.fit(pieces)
        done = run.encode(pieces, progress)
        with whole_or_nothing(folder) as partial:
            store = run.assemble(partial, folder, readings, done, digests, incremental)
        store.folder = folder
    return store


def _open(folder: Path, spec: FeatureSpec, split: Split) -> Store:
    store = Store.open(folder, spec=spec)
    if "inputs" not in store.manifest or store.manifest["split"] != split.model_dump(mode="json"):
        raise ArtifactError(
            "files cannot be added to this store: it was made at once, or with another split",
            field=str(folder),
            mend=_ANEW,
        )
    return store


def _digest(file: InputFile, known: dict[str, Any] | None) -> str:
    """The fingerprint of a file; one of the same size and time of change is not read again."""
    if known is not None and (known["bytes"], known["changed"]) == file.stamp:
        return str(known["digest"])
    return file.digest()


def _check_known(known: dict[str, dict[str, Any]], digests: dict[str, str], incremental: IncrementalConfig) -> None:
    read = {name: entry for name, entry in known.items() if entry["failure"] is None}
    if changed := [name for name, entry in read.items() if digests.get(name, entry["digest"]) != entry["digest"]]:
        raise DataError(
            "files changed after they were read", field=list_names(changed), expected="new files only", mend=_ANEW
        )
    gone = [name for name in read if name not in digests]
    if gone and incremental.gone == "error":
        raise DataError(
            "files are gone that were read",
            field=list_names(gone),
            mend=f"set data.incremental.gone: keep to keep their rows; {_ANEW}",
        )


def _check_sides(old: Store | None, sides: Mapping[str, Any], incremental: IncrementalConfig) -> None:
    # A store that was made before this was looked at does not say.
    before = sides if old is None else old.manifest.get("sides", sides)
    changed = [name for name in sorted({*before, *sides}) if before.get(name) != sides.get(name)]
    if changed and incremental.side_tables == "error":
        raise DataError(
            "side tables changed after rows were joined to them",
            field=list_names(changed),
            expected="the same content",
            mend="set data.incremental.side_tables: keep if rows that are prepared may keep what they got, as with "
            f"an as-of join to a table that only grows; {_ANEW}",
        )


@dataclasses.dataclass(frozen=True)
class _Worker:
    """What is done with a single piece; it can be sent to another process.

    Attributes:
        checker: Says what the operators cannot take: not fitted in a first run, in which the check comes first.
        pipeline: Encodes, once it is fitted.
    """

    checker: FeaturePipeline
    pipeline: FeaturePipeline
    split: Split
    quality: QualityConfig
    shard_rows: int
    open_file: Open
    count_unmatched: CountUnmatched | None

    def check(self, piece: _Piece, seen: np.ndarray | None = None) -> Checked:
        frame = piece.frame(self.open_file)
        return check(frame, self.split, self.checker, self.quality, seen=seen, salt=piece.salt)

    def fit_columns(self, item: tuple[_Piece, Path]) -> dict[str | None, int]:
        """Writes what the pipeline is fitted on; returns the rows of each split."""
        piece, path = item
        checked = self.check(piece)
        write_fit_columns(FeaturePipeline(self.checker.spec), checked.kept, path)
        return checked.counts

    def encode_apart(self, item: tuple[Path, _Piece]) -> None:
        """Encodes a piece that no other has to do with."""
        folder, piece = item
        if not folder.is_dir():
            self.encode(piece, folder)

    def encode(self, piece: _Piece, folder: Path, seen: np.ndarray | None = None) -> None:
        """Writes the folder of a piece."""
        checked = piece.checked or self.check(piece, seen)
        with finished(folder) as partial:
            if checked.reasons:
                write_quarantine(checked.bad, partial / _ROWS)
            shards = write_shards(partial, checked.kept, self.pipeline, self.shard_rows)
            if piece.file.stamp != piece.stamp:
                raise DataError(
                    "file changed while it was read",
                    field=piece.file.name,
                    mend="write files under another name and rename them when they are whole",
                )
            written = sum(entry["rows"] for entries in shards.values() for entry in entries)
            dropped = checked.counts.get(None, 0)
            if written + dropped + sum(checked.reasons.values()) != checked.rows_read:
                raise DataError("rows were lost", field=piece.file.name, found=written, expected=checked.rows_read)
            if checked.keys is not None:
                np.save(partial / f"{_KEYS}.npy", checked.keys)
            count = self.count_unmatched
            write_json(
                partial / _FILE,
                {
                    "rows_read": checked.rows_read,
                    "dropped": dropped,
                    "reasons": checked.reasons,
                    "unmatched": {} if count is None else count(piece.frame(self.open_file)),
                    "shards": shards,
                },
            )


class _Run:
    """One update, with what all its pieces share."""

    def __init__(
        self,
        work: Path,
        old: Store | None,
        pipeline: FeaturePipeline,
        split: Split,
        quality: QualityConfig,
        shard_rows: int,
        source: dict[str, Any],
        sides: Mapping[str, Any],
        open_file: Open,
        count_unmatched: CountUnmatched | None,
        engine: Engine | None,
    ) -> None:
        self.work, self.old, self.pipeline = work, old, pipeline
        self.checker = FeaturePipeline(pipeline.spec) if old is None else pipeline
        self.open_file, self.count_unmatched, self.engine = open_file, count_unmatched, engine
        self.sides = dict(sides)
        self.split, self.quality, self.shard_rows, self.source = split, quality, shard_rows, source
        self.seen = np.empty(0, dtype=np.uint64)
        if old is not None and quality.key is not None:
            self.seen = _all_keys(sorted((old.folder / _KEYS).glob("*.npy")))

    def pieces(
        self,
        readings: Sequence[Reading],
        stamps: dict[str, tuple[int, int]],
        digests: dict[str, str],
        piece_rows: int,
    ) -> list[_Piece]:
        """Cuts files of many rows."""
        pieces = []
        parts = [reading.rows for reading in readings if reading.rows is not None]
        counts = (self.engine or LOCAL).map(
            count_rows, [functools.partial(rows.open, self.open_file) for rows in parts]
        )
        for rows, count in zip(parts, counts, strict=True):
            limit = None if count <= piece_rows else piece_rows
            name = rows.file.name
            pieces += [
                _Piece(rows, stamps[name], digests[name], start, limit) for start in range(0, max(count, 1), piece_rows)
            ]
        return pieces

    @property
    def _worker(self) -> _Worker:
        return _Worker(
            self.checker,
            self.pipeline,
            self.split,
            self.quality,
            self.shard_rows,
            self.open_file,
            self.count_unmatched,
        )

    def fit(self, pieces: Sequence[_Piece]) -> None:
        """Fits on the train rows of all pieces, or takes what a killed run had fitted on the same."""
        inputs = [(piece.file.name, piece.digest, piece.start) for piece in pieces]
        saved = self.work / f"fit-{self._hash(self.pipeline.spec.digest(), inputs)}"
        if saved.is_dir():
            self.pipeline = FeaturePipeline.load(saved)
            return
        # Files of other types are fitted on as the one type that holds them all, and so not apart.
        alike = all(piece.rows.schema == pieces[0].rows.schema for piece in pieces)
        if self.engine is not None and alike and pieces:
            self._fit_apart(self.engine, pieces)
        else:
            self._fit_here(pieces)
        with finished(saved) as partial:
            self.pipeline.save(partial)

    def _fit_here(self, pieces: Sequence[_Piece]) -> None:
        counts: Counter[str | None] = Counter()
        seen = self.seen
        for piece in pieces:
            piece.checked = self._worker.check(piece, seen)
            counts.update(piece.checked.counts)
            seen = _union(seen, piece.checked.keys)
        check_splits(dict(counts), self.split)
        kept = [piece.checked.kept for piece in pieces if piece.checked is not None]
        rows = pl.concat(kept, how="diagonal_relaxed")
        self.pipeline.fit(rows.filter(pl.col(SPLIT_COLUMN) == "train"))

    def _fit_apart(self, engine: Engine, pieces: Sequence[_Piece]) -> None:
        folder = self.work / "fit-columns"
        items = [(piece, folder / f"{number:06d}.arrow") for number, piece in enumerate(pieces)]
        counts: Counter[str | None] = Counter()
        try:
            for found in engine.map(self._worker.fit_columns, items):
                counts.update(found)
            check_splits(dict(counts), self.split)
            fit_on_files(self.pipeline, pieces[0].frame(self.open_file), [path for _, path in items])
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def encode(self, pieces: Sequence[_Piece], progress: Progress | None) -> list[Path]:
        """Encodes what is not encoded yet; returns the folders of all pieces."""
        folders: list[Path] = []
        before = ""
        for piece in pieces:
            changed = piece.file.changed if self.quality.now == "file" else None
            before = self._hash(
                self.pipeline.digest(),
                [self.shard_rows, piece.file.name, piece.digest, piece.start, changed],
                before if self.quality.key is not None else "",
            )
            folders.append(self.work / f"piece-{before}")
        todo = {folder: piece for piece, folder in zip(pieces, folders, strict=True) if not folder.is_dir()}
        apart: Iterator[None] = (
            iter(()) if self.engine is None else self.engine.map(self._worker.encode_apart, list(todo.items()))
        )
        rows, seen = 0, self.seen
        for folder in folders:
            if folder in todo and self.engine is None:
                self._worker.encode(todo[folder], folder, seen)
            elif folder in todo:
                next(apart)
            if (folder / f"{_KEYS}.npy").is_file():
                seen = _union(seen, np.load(folder / f"{_KEYS}.npy"))
            rows += read_json(folder / _FILE, mend=_MEND)["rows_read"]
            if progress is not None:
                progress(rows)
        return folders

    def assemble(
        self,
        partial: Path,
        folder: Path,
        readings: Sequence[Reading],
        pieces: Sequence[Path],
        digests: dict[str, str],
        incremental: IncrementalConfig,
    ) -> Store:
        """Makes the new store of the old one's shards and of the pieces."""
        unreadable = unreadable_of(readings)
        found = [read_json(piece / _FILE, mend=_MEND) for piece in pieces]
        batches = list(self.old.manifest["batches"]) if self.old else []
        name = f"batch-{len(batches):05d}"
        aside = partial / QUARANTINE / name
        for number, piece in enumerate(pieces):
            if (piece / _ROWS).is_file():
                link(piece / _ROWS, aside / f"rows-{number:05d}.parquet")
        unreadable.write(aside)
        reasons = sum((Counter(piece["reasons"]) for piece in found), unreadable.reasons())
        rows_read = sum(piece["rows_read"] for piece in found) + len(unreadable.records)
        with kept_aside(partial / QUARANTINE, folder):
            check_share(rows_read, reasons, self.quality)
            unreadable.check_share(self.quality)
        shards: Shards = {split: [] for split in SPLITS}
        for split in SPLITS:
            (partial / split).mkdir()
        manifest = _manifest_before(self.old)
        if self.old is not None:
            link_shards(self.old.folder, self.old.manifest["shards"], partial, shards)
            for kind in (QUARANTINE, _KEYS):
                for path in sorted((self.old.folder / kind).rglob("*.*")):
                    link(path, partial / path.relative_to(self.old.folder))
        for number, (piece, entry) in enumerate(zip(pieces, found, strict=True)):
            link_shards(piece, entry["shards"], partial, shards)
            if (piece / f"{_KEYS}.npy").is_file():
                link(piece / f"{_KEYS}.npy", partial / _KEYS / f"{name}-{number:05d}.npy")
        layout = self.pipeline.layout
        unmatched = _added(piece["unmatched"] for piece in found)
        batch: dict[str, Any] = {"files": len(readings), "rows_read": rows_read, "unmatched": unmatched}
        unmatched_before = self.old.manifest["source"].get("unmatched", {}) if self.old else {}
        if layout.has_time:
            batch |= _late(pieces, found, manifest["time_range"])
        profile, drift = self._drift(pieces, found)
        changes, columns = _schema_changes(readings, self.old)
        batch |= {"drift": drift, "columns": changes}
        if incremental.keep_days is not None:
            shards, retired = self._retire(partial, shards, incremental.keep_days)
            manifest["retired"] += retired
            batch["retired"] = retired
        if any(len(entries) > incremental.compact_above for entries in shards.values()):
            shards = compact(partial, shards, self.shard_rows)
        dropped = sum(piece["dropped"] for piece in found) + sum(manifest["dropped"].values())
        failures = {reading.file.name: reading.failure for reading in readings}
        inputs = {entry["file"]: entry for entry in manifest["inputs"]}
        for reading in readings:
            file = reading.file
            inputs[file.name] = {
                "file": file.name,
                "bytes": file.bytes,
                "changed": file.changed,
                "digest": digests[file.name],
                "failure": failures[file.name],
            }
        manifest |= {
            **describe(partial, shards, layout),
            "rows_read": manifest["rows_read"] + rows_read,
            "dropped": {drop_reason(self.split): dropped} if dropped else {},
            "quarantined": dict(sorted((Counter(manifest["quarantined"]) + reasons).items())),
            "quarantined_files": [
                {"file": entry["file"], "bytes": entry["bytes"], "reason": entry["failure"]}
                for entry in inputs.values()
                if entry["failure"] is not None
            ],
            "notes": [*manifest["notes"], *unreadable.notes],
            "inputs": list(inputs.values()),
            "batches": [*_without_drift(batches), batch],
            "columns": columns,
            "split": self.split.model_dump(mode="json"),
            "source": self.source | {"unmatched": _added([unmatched_before, unmatched])},
            "sides": self.sides,
        }
        check_splits(dict(manifest["rows"]), self.split)
        profile.save(partial / _PROFILE)
        return finish(partial, self.pipeline, manifest)

    def _drift(self, pieces: Sequence[Path], found: Sequence[dict[str, Any]]) -> tuple[Profile, list[dict[str, Any]]]:
        """How far the new rows are from those the pipeline was fitted on, and the profile to compare the next with."""
        layout = self.pipeline.layout
        shards = [
            piece / shard["path"]
            for piece, entry in zip(pieces, found, strict=True)
            for split in SPLITS
            for shard in entry["shards"][split]
        ]
        if self.old is None:
            return profile_of(shards, layout, None), []
        before = Profile.load(self.old.folder / _PROFILE)
        now = profile_of(shards, layout, before)
        drift = compare(before, now, self.quality.drift)
        for name, seen in now.seen.items():
            before.seen[name] |= seen
        return before, drift

    def _retire(self, folder: Path, shards: Shards, days: float) -> tuple[Shards, int]:
        if not self.pipeline.layout.has_time:
            raise ConfigError("the spec names no time", field="data.incremental.keep_days", mend="name spec.time")
        ranges = describe(folder, shards, self.pipeline.layout)["time_range"]
        newest = max(last for _, last in ranges.values())
        return drop_older(folder, shards, newest - int(days * _DAY))

    def _hash(self, first: str, *more: Any) -> str:
        rules = [self.split.model_dump(mode="json"), self.quality.rules(), self.source, self.sides]
        return str(xxhash.xxh3_128_hexdigest(json.dumps([first, *more, *rules], sort_keys=True).encode()))


def _manifest_before(old: Store | None) -> dict[str, Any]:
    """What the new manifest goes on from."""
    before: dict[str, Any] = {
        "rows_read": 0,
        "retired": 0,
        "dropped": {},
        "quarantined": {},
        "notes": [],
        "inputs": [],
        "time_range": {},
    }
    return before if old is None else {key: old.manifest.get(key, value) for key, value in before.items()}


def _schema_changes(readings: Sequence[Reading], old: Store | None) -> tuple[list[str], dict[str, str]]:
    """How the columns change from file to file, and those of the last one."""
    columns: dict[str, str] = {} if old is None else old.manifest["columns"]
    changes = []
    for reading in readings:
        if reading.rows is None:
            continue
        now = {name: str(dtype) for name, dtype in reading.rows.schema.items() if name not in ADDED_COLUMNS}
        if columns:
            changes += [f"{reading.file.name}: {change}" for change in schema_drift(columns, now)]
        columns = now
    return changes, columns


def _added(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The sums by name, also those that are 0."""
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(total)


def _without_drift(batches: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last batches as they are, the others without their drift: an hourly job would make the manifest huge."""
    early = max(len(batches) - _DRIFT_BATCHES, 0)
    return [
        {key: value for key, value in batch.items() if key != "drift"} if number < early else batch
        for number, batch in enumerate(batches)
    ]


def _late(pieces: Sequence[Path], found: Sequence[dict[str, Any]], ranges: dict[str, list[int]]) -> dict[str, int]:
    """Counts rows, and pieces with such rows, that are older than the newest row of the store before."""
    if not ranges:
        return {"late_rows": 0, "late_pieces": 0}
    newest = max(last for _, last in ranges.values())
    rows = []
    for piece, entry in zip(pieces, found, strict=True):
        paths = [piece / shard["path"] for shards in entry["shards"].values() for shard in shards]
        rows.append(sum(int((read_shard(path).column("time").to_numpy() < newest).sum()) for path in paths))
    return {"late_rows": sum(rows), "late_pieces": sum(count > 0 for count in rows)}


def _all_keys(paths: Sequence[Path]) -> np.ndarray:
    try:
        parts = [np.load(path) for path in paths]
    except (OSError, ValueError) as error:
        raise ArtifactError(
            "keys cannot be read", field=str(paths[0].parent), found=first_line(error), mend=_ANEW
        ) from error
    return np.sort(np.concatenate(parts)) if parts else np.empty(0, dtype=np.uint64)


def _union(seen: np.ndarray, keys: np.ndarray | None) -> np.ndarray:
    return seen if keys is None else np.sort(np.concatenate([seen, keys]))
