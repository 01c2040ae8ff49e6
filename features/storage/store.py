"""Store: the encoded rows of the three splits on disk, as Arrow shards with a manifest.

Shards are uncompressed Arrow IPC with fixed-size lists: a shard maps into memory and is a tensor at once.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from features.batch import Batch
from features.columns import Columns, column_types
from features.errors import ArtifactError, DataError, list_names
from features.files import digest_of, read_json, write_json
from features.fingerprint import FINGERPRINT_VERSION, check_fingerprint_version
from features.folders import kept_aside, whole_or_nothing
from features.layout import Layout
from features.pipeline import FeaturePipeline
from features.reading.unreadable import READ, Unreadable
from features.spec import FeatureSpec, digest_json
from features.storage.engines.base import Engine
from features.storage.pieces import Rows
from features.storage.piecewise import InPieces
from features.storage.quality import STRICT, QualityConfig, check, check_share, keep_all, write_quarantine
from features.storage.shards import Progress, Shards, describe, write_shards
from features.storage.splits import SPLITS, Split, drop_reason
from features.validation import validate

STORE_VERSION = 2
QUARANTINE = "quarantine"
"""The folder of rows in quarantine, inside the store."""
_MANIFEST, _SPEC, _PIPELINE = "manifest.json", "spec.json", "pipeline"
_MEND = "run `recsys prepare`"


def build_store(
    events: pl.LazyFrame,
    spec: FeatureSpec,
    split: Split,
    folder: Path,
    *,
    shard_rows: int = 1_000_000,
    source: dict[str, Any] | None = None,
    quality: QualityConfig = STRICT,
    unreadable: Unreadable = READ,
    engine: Engine | None = None,
    parts: Sequence[Rows] = (),
    progress: Progress | None = None,
) -> Store:
    """Divides, fits on train, encodes, checks and writes.

    Everything is written into a temporary folder beside `folder`, which takes its name at the very end: after
    an error nothing is left, but the quarantine if there is too much of it (in `folder`.quarantine). A store that
    stands there already is replaced. Memory does not grow with the rows, nor with `shard_rows`.

    Args:
        events: One row an event; `__file__` and `__place__`, if they are there, say where it comes from.
        spec: The description of the columns.
        split: How to divide the events.
        folder: Where to write.
        shard_rows: Rows a file.
        source: Where the events come from, for the manifest; plain JSON.
        quality: What becomes of rows that cannot be used.
        unreadable: Records and files that `events` lacks as they could not be read.
        engine: Works off pieces of `shard_rows` events, with the same result; None for streaming passes over all
            rows in this process.
        parts: For an engine: open the rows of `events`, one part after the other, with the same columns.
        progress: Told about the rows read.

    Raises:
        DataError: The input or a split is empty, a column or a value is wrong, or too much is in quarantine.
        ArtifactError: It cannot be written, or `folder` holds something else.
    """
    folder = Path(folder)
    if shard_rows < 1:
        raise DataError("shard_rows is not positive", field="shard_rows", found=shard_rows)
    check_free(folder)
    with whole_or_nothing(folder) as partial, naming(source or {}):
        pipeline = FeaturePipeline(spec)
        events = events.lazy()
        rows: _AtOnce | InPieces = (
            _AtOnce(events, split, pipeline, quality)
            if engine is None
            else InPieces(events, parts, split, spec, quality, engine, partial / "pieces", shard_rows)
        )
        quarantined = Counter(rows.reasons) + unreadable.reasons()
        with kept_aside(partial / QUARANTINE, folder):
            if rows.reasons:
                rows.write_quarantine(partial / QUARANTINE / "rows-00000.parquet")
            unreadable.write(partial / QUARANTINE)
            check_share(rows.rows_read + len(unreadable.records), quarantined, quality)
            unreadable.check_share(quality)
        if rows.counts is not None:
            check_splits(rows.counts, split)
        shards = rows.fit_and_write(partial, pipeline, shard_rows, progress)
        check_splits(rows.counts or {}, split)
        dropped = (rows.counts or {}).get(None, 0)
        manifest = {
            **describe(partial, shards, pipeline.layout),
            "rows_read": rows.rows_read + len(unreadable.records),
            "split": split.model_dump(mode="json"),
            "dropped": {drop_reason(split): dropped} if dropped else {},
            "quarantined": dict(sorted(quarantined.items())),
            "quarantined_files": list(unreadable.files),
            "notes": list(unreadable.notes),
            "source": source or {},
        }
        store = finish(partial, pipeline, manifest)
    store.folder = folder
    return store


class _AtOnce:
    """Events that are checked in this process, if need be, and are fitted on and written in one pass; see `InPieces`.

    Attributes:
        counts: None until they are written, if there was no need to look at them before.
    """

    def __init__(self, events: pl.LazyFrame, split: Split, pipeline: FeaturePipeline, quality: QualityConfig) -> None:
        self._bad: pl.LazyFrame | None = None
        self.counts: dict[str | None, int] | None = None
        self.reasons: dict[str, int] = {}
        kept = keep_all(events, split, pipeline, quality)
        if kept is None:
            checked = check(events, split, pipeline, quality)
            kept, self._bad, self.counts, self.reasons = checked.kept, checked.bad, checked.counts, checked.reasons
        self._kept = kept

    @property
    def rows_read(self) -> int:
        """Kept, dropped and quarantined, as far as is known."""
        return sum((self.counts or {}).values()) + sum(self.reasons.values())

    def write_quarantine(self, path: Path) -> None:
        assert self._bad is not None
        write_quarantine(self._bad, path)

    def fit_and_write(
        self, folder: Path, pipeline: FeaturePipeline, shard_rows: int, progress: Progress | None
    ) -> Shards:
        shards = write_shards(folder, self._kept, pipeline, shard_rows, progress, fit=True)
        if self.counts is None:
            rows = {split: sum(entry["rows"] for entry in entries) for split, entries in shards.items()}
            self.counts = {split: count for split, count in rows.items() if count}
        return shards


def finish(folder: Path, pipeline: FeaturePipeline, manifest: dict[str, Any]) -> Store:
    """Writes manifest, spec and pipeline beside shards that are written, and opens the store.

    Args:
        folder: Holds the shards.
        pipeline: They were encoded with it.
        manifest: What `build_store` says of them.

    Raises:
        DataError: Rows were lost between reading and writing.
        ArtifactError: It cannot be written, or a shard is not whole.
    """
    counted = sum(sum(manifest[key].values()) for key in ("rows", "dropped", "quarantined")) + manifest.get(
        "retired", 0
    )
    if counted != manifest["rows_read"]:
        raise DataError("rows were lost", found=counted, expected=manifest["rows_read"], mend="report this")
    manifest |= {
        "version": STORE_VERSION,
        "fingerprint_version": FINGERPRINT_VERSION,
        "spec_digest": pipeline.spec.digest(),
        "pipeline_digest": pipeline.digest(),
        "versions": {"polars": pl.__version__, "pyarrow": pa.__version__},
    }
    manifest["digest"] = _digest(manifest)
    pipeline.save(folder / _PIPELINE)
    write_json(folder / _SPEC, pipeline.spec.model_dump(mode="json"))
    write_json(folder / _MANIFEST, manifest)
    return Store.open(folder)


def check_splits(counts: dict[str | None, int], split: Split) -> None:
    """Refuses an input without rows, or with a split without rows.

    Raises:
        DataError: It is empty.
    """
    if not counts:
        raise DataError("the input has no rows", mend="check the input files and the recipe's parameters")
    for name in SPLITS:
        if not counts.get(name):
            raise DataError(
                f"the {name} split is empty",
                field=f"split ({split.kind})",
                found={str(key): count for key, count in counts.items()},
                mend="give more rows or other fractions or values",
            )


class Store:
    """An open store.

    Attributes:
        folder: Where it is.
        manifest: What `manifest.json` says.
        spec: The spec it was prepared with.
        layout: What a row holds.
        pipeline: The fitted pipeline.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], spec: FeatureSpec, pipeline: FeaturePipeline) -> None:
        self.folder, self.manifest, self.spec, self.pipeline = folder, manifest, spec, pipeline
        self.layout: Layout = spec.layout

    @staticmethod
    def open(folder: Path, *, spec: FeatureSpec | None = None) -> Store:
        """Opens a store and checks that its files are there and whole.

        Args:
            folder: Where it is.
            spec: If given, the spec that the data must have been prepared with.

        Raises:
            ArtifactError: There is no store, it is damaged or of another version, or the spec changed.
        """
        folder = Path(folder)
        if not (folder / _MANIFEST).is_file():
            raise ArtifactError("there is no prepared data", field=str(folder), mend=_MEND)
        manifest = read_json(folder / _MANIFEST, mend=_MEND)
        if not isinstance(manifest, dict) or "version" not in manifest:
            raise ArtifactError("file is damaged", field=str(folder / _MANIFEST), mend=_MEND)
        if manifest["version"] != STORE_VERSION:
            raise ArtifactError(
                "version of the prepared data is another one",
                field=str(folder),
                found=manifest["version"],
                expected=STORE_VERSION,
                mend=_MEND,
            )
        check_fingerprint_version(manifest.get("fingerprint_version"), str(folder), _MEND)
        prepared = validate(FeatureSpec, read_json(folder / _SPEC, mend=_MEND), where=str(folder / _SPEC))
        if spec is not None and spec.digest() != prepared.digest():
            raise ArtifactError(
                f"the spec changed since the data was prepared: {_difference(prepared, spec)}",
                field=str(folder),
                mend=_MEND,
            )
        pipeline = FeaturePipeline.load(folder / _PIPELINE)
        digests = (manifest.get("digest"), manifest.get("spec_digest"), manifest.get("pipeline_digest"))
        if digests != (_digest(manifest), prepared.digest(), pipeline.digest()):
            raise ArtifactError("manifest, spec and pipeline do not belong together", field=str(folder), mend=_MEND)
        store = Store(folder, manifest, prepared, pipeline)
        for name in SPLITS:
            for number in range(len(manifest["shards"][name])):
                store.shard(name, number)
        return store

    @property
    def digest(self) -> str:
        """Hex SHA-256 of spec, fitted state and the bytes of all shards; free of paths, times and versions."""
        return str(self.manifest["digest"])

    def rows(self, split: str) -> int:
        """Returns the number of rows of a split."""
        return int(self.manifest["rows"][_known(split)])

    def shard_rows(self, split: str) -> list[int]:
        """Returns the number of rows of each shard of a split."""
        return [int(shard["rows"]) for shard in self.manifest["shards"][_known(split)]]

    def shard(self, split: str, number: int) -> Columns:
        """Maps a shard into memory.

        Raises:
            ArtifactError: It is missing, truncated or not what the manifest says.
        """
        entry = self.manifest["shards"][_known(split)][number]
        path = self.folder / entry["path"]
        try:
            size = path.stat().st_size
            if size != entry["bytes"]:
                raise ArtifactError(
                    "shard is truncated or was changed",
                    field=str(path),
                    found=f"{size} bytes",
                    expected=f"{entry['bytes']} bytes",
                    mend=_MEND,
                )
            with pa.memory_map(str(path)) as file:
                batch = pa.ipc.open_file(file).get_batch(0)
        except FileNotFoundError:
            raise ArtifactError("shard is missing", field=str(path), mend=_MEND) from None
        except (OSError, pa.ArrowException) as error:
            raise ArtifactError("shard is damaged", field=str(path), found=error, mend=_MEND) from error
        expected = column_types(self.layout, labels=True)
        if (
            batch.num_rows != entry["rows"]
            or dict(zip(batch.schema.names, batch.schema.types, strict=True)) != expected
        ):
            raise ArtifactError("shard does not hold what the manifest says", field=str(path), mend=_MEND)
        return Columns.of(batch, self.layout)

    def verify(self) -> None:
        """Reads every byte and checks it against the digests of the manifest.

        Raises:
            ArtifactError: A shard was damaged.
        """
        for name in SPLITS:
            for entry in self.manifest["shards"][name]:
                path = self.folder / entry["path"]
                if not path.is_file():
                    raise ArtifactError("shard is missing", field=str(path), mend=_MEND)
                if (found := digest_of(path)) != entry["xxh3"]:
                    raise ArtifactError(
                        "shard is damaged", field=str(path), found=f"xxh3 {found}", expected=entry["xxh3"], mend=_MEND
                    )

    def read(self, split: str) -> Batch:
        """Returns a whole split as one batch."""
        shards = (self.shard(split, number) for number in range(len(self.shard_rows(split))))
        return Batch.cat([shard.slice(0, shard.rows) for shard in shards])

    def id_counts(self, split: str = "train") -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Counts the values of every id feature and every bag.

        Returns:
            By feature: fingerprints (int64, sorted) and how often each occurs (int64).
        """
        counts: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for number in range(len(self.shard_rows(split))):
            shard = self.shard(split, number)
            columns = {name: shard.wide["ids"][:, place] for place, name in enumerate(self.layout.id_names)}
            columns |= {name: bag[0] for name, bag in zip(self.layout.bag_names, shard.bags, strict=True)}
            for name, column in columns.items():
                here = np.unique(column.numpy(), return_counts=True)
                counts[name] = _merge(counts[name], here) if name in counts else here
        return counts


def check_free(folder: Path) -> None:
    """Refuses a folder that holds something else than a store.

    Raises:
        ArtifactError: It does.
    """
    # One look, as another process may be about to replace the folder.
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return
    except NotADirectoryError:
        names = [folder.name] if folder.exists() else []
    if names and _MANIFEST not in names:
        raise ArtifactError(
            "something that is no prepared data is there already", field=str(folder), mend="choose another folder"
        )


@contextmanager
def naming(source: dict[str, Any]) -> Iterator[None]:
    """Names the source in an error that names no column."""
    try:
        yield
    except DataError as error:
        name = source.get("source") or source.get("recipe")
        if error.field is not None or name is None:
            raise
        raise DataError(
            error.what, field=str(name), found=error.found, expected=error.expected, mend=error.mend
        ) from error


def _digest(manifest: dict[str, Any]) -> str:
    kept = ("version", "fingerprint_version", "spec_digest", "pipeline_digest", "split", "rows", "dropped", "shards")
    return digest_json({key: manifest.get(key) for key in kept})


def _difference(prepared: FeatureSpec, wanted: FeatureSpec) -> str:
    old = {feature.name: feature for feature in prepared.features}
    new = {feature.name: feature for feature in wanted.features}
    parts = {
        "added": [name for name in new if name not in old],
        "removed": [name for name in old if name not in new],
        "changed": [name for name in new if name in old and new[name] != old[name]],
    }
    roles = ("derive", "labels", "weight", "group", "time", "time_unit", "reference")
    parts["changed"] += [role for role in roles if getattr(prepared, role) != getattr(wanted, role)]
    named = [f"{title} {list_names(names)}" for title, names in parts.items() if names]
    return "; ".join(named) or "the order of the features"


def _known(split: str) -> str:
    if split not in SPLITS:
        raise DataError("no such split", field=split, expected=f"one of {list_names(SPLITS)}")
    return split


def _merge(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    values, place = np.unique(np.concatenate([a[0], b[0]]), return_inverse=True)
    counts = np.zeros(len(values), dtype=np.int64)
    np.add.at(counts, place, np.concatenate([a[1], b[1]]))
    return values, counts
