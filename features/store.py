"""Store: the encoded rows of the three splits on disk, as Arrow shards with a manifest.

Shards are uncompressed Arrow IPC with fixed-size lists: a shard maps into memory and is a tensor at once.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from features.batch import Batch
from features.columns import Columns, column_types, record_batch
from features.errors import ArtifactError, DataError, list_names
from features.files import cannot_write, md5_of, read_json, write_json
from features.fingerprint import FINGERPRINT_VERSION, check_fingerprint_version
from features.frames import SPLIT_COLUMN, iterate
from features.layout import Layout
from features.pipeline import FeaturePipeline
from features.spec import FeatureSpec, digest_json
from features.splits import SPLITS, Split, assign_split, drop_reason
from features.validation import validate

STORE_VERSION = 1
_MANIFEST, _SPEC, _PIPELINE = "manifest.json", "spec.json", "pipeline"
_MEND = "run `recsys prepare`"
_READ_ROWS = 65_536

Progress = Callable[[int], None]
"""Called with the number of rows read so far."""


def build_store(
    events: pl.LazyFrame,
    spec: FeatureSpec,
    split: Split,
    folder: Path,
    *,
    shard_rows: int = 1_000_000,
    source: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> Store:
    """Divides, fits on train, encodes, checks and writes.

    Everything is written into a temporary folder beside `folder`, which takes its name at the very end: after
    an error nothing is left. A store that stands there already is replaced. Memory holds up to `shard_rows`
    encoded rows a split.

    Args:
        events: One row an event.
        spec: The description of the columns.
        split: How to divide the events.
        folder: Where to write.
        shard_rows: Rows a file.
        source: Where the events come from, for the manifest; plain JSON.
        progress: Told about the rows read.

    Raises:
        DataError: The input or a split is empty, or a column or a value is wrong.
        ArtifactError: It cannot be written, or `folder` holds something else.
    """
    folder = Path(folder)
    if shard_rows < 1:
        raise DataError("shard_rows is not positive", field="shard_rows", found=shard_rows)
    _check_free(folder)
    with _whole_or_nothing(folder) as partial, _naming(source or {}):
        assigned = assign_split(events.lazy(), split, spec)
        pipeline = FeaturePipeline(spec)
        rows, dropped = _count(assigned, split)
        # A row of no split is never looked at: its label and values may be anything.
        assigned = assigned.filter(pl.col(SPLIT_COLUMN).is_not_null()) if dropped else assigned
        pipeline.fit(assigned.filter(pl.col(SPLIT_COLUMN) == "train"))
        manifest = _write_shards(partial, assigned, pipeline, shard_rows, progress)
        if sum(manifest["rows"].values()) != rows:
            raise DataError("rows were lost", found=manifest["rows"], expected=rows, mend="report this")
        manifest |= {
            "rows_read": rows + dropped,
            "version": STORE_VERSION,
            "fingerprint_version": FINGERPRINT_VERSION,
            "spec_digest": spec.digest(),
            "pipeline_digest": pipeline.digest(),
            "split": split.model_dump(mode="json"),
            "dropped": {drop_reason(split): dropped} if dropped else {},
            "source": source or {},
            "versions": {"polars": pl.__version__, "pyarrow": pa.__version__},
        }
        manifest["digest"] = _digest(manifest)
        pipeline.save(partial / _PIPELINE)
        write_json(partial / _SPEC, spec.model_dump(mode="json"))
        write_json(partial / _MANIFEST, manifest)
        store = Store.open(partial)
    store.folder = folder
    return store


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
        """Reads every byte and checks it against the MD5 sums of the manifest.

        Raises:
            ArtifactError: A shard was damaged.
        """
        for name in SPLITS:
            for entry in self.manifest["shards"][name]:
                path = self.folder / entry["path"]
                if not path.is_file():
                    raise ArtifactError("shard is missing", field=str(path), mend=_MEND)
                if (found := md5_of(path)) != entry["md5"]:
                    raise ArtifactError(
                        "shard is damaged", field=str(path), found=f"md5 {found}", expected=entry["md5"], mend=_MEND
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


class _ShardWriter:
    """Gathers the rows of one split and writes a file whenever there are enough."""

    def __init__(self, folder: Path, split: str, types: dict[str, pa.DataType], shard_rows: int) -> None:
        self.folder, self.split, self.types, self.shard_rows = folder, split, types, shard_rows
        self.waiting: list[pl.DataFrame] = []
        self.height = 0
        self.shards: list[dict[str, Any]] = []
        self.label_sums: np.ndarray | None = None
        self.times: list[int] = []
        (folder / split).mkdir(parents=True)

    @property
    def rows(self) -> int:
        return sum(shard["rows"] for shard in self.shards)

    def add(self, frame: pl.DataFrame) -> None:
        while self.height + frame.height >= self.shard_rows:
            take = self.shard_rows - self.height
            self.waiting.append(frame.head(take))
            frame = frame.slice(take)
            self.flush()
        if frame.height:
            self.waiting.append(frame)
            self.height += frame.height

    def flush(self) -> None:
        if not self.waiting:
            return
        batch = record_batch(pl.concat(self.waiting), self.types)
        self.waiting, self.height = [], 0
        name = f"{self.split}/part-{len(self.shards):05d}.arrow"
        path = self.folder / name
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
            writer.write_batch(batch)
        self.shards.append({"path": name, "rows": batch.num_rows, "bytes": path.stat().st_size, "md5": md5_of(path)})
        labels = batch.column("labels").flatten().to_numpy().reshape(batch.num_rows, -1).sum(axis=0, dtype=np.float64)
        self.label_sums = labels if self.label_sums is None else self.label_sums + labels
        if "time" in self.types:
            times = batch.column("time").to_numpy()
            self.times += [int(times.min()), int(times.max())]


def _write_shards(
    folder: Path, assigned: pl.LazyFrame, pipeline: FeaturePipeline, shard_rows: int, progress: Progress | None
) -> dict[str, Any]:
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
    rows = {name: writer.rows for name, writer in writers.items()}
    manifest: dict[str, Any] = {
        "rows": rows,
        "shards": {name: writer.shards for name, writer in writers.items()},
        "label_means": {
            name: dict(zip(pipeline.layout.label_names, (writer.label_sums / writer.rows).tolist(), strict=True))
            for name, writer in writers.items()
            if writer.label_sums is not None
        },
    }
    if pipeline.layout.has_time:
        manifest["time_range"] = {name: [min(writer.times), max(writer.times)] for name, writer in writers.items()}
    return manifest


def _count(assigned: pl.LazyFrame, split: Split) -> tuple[int, int]:
    """Returns the number of rows in splits, none of which is empty, and of rows in none."""
    try:
        found = dict(assigned.group_by(SPLIT_COLUMN).len().collect().iter_rows())
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(
            "data cannot be read", found=str(error).splitlines()[0], mend="check the input files"
        ) from error
    if not found:
        raise DataError("the input has no rows", mend="check the input files and the recipe's parameters")
    for name in SPLITS:
        if not found.get(name):
            raise DataError(
                f"the {name} split is empty",
                field=f"split ({split.kind})",
                found={str(key): count for key, count in found.items()},
                mend="give more rows or other fractions or values",
            )
    dropped = found.pop(None, 0)
    return sum(found.values()), dropped


def _check_free(folder: Path) -> None:
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
def _naming(source: dict[str, Any]) -> Iterator[None]:
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


@contextmanager
def _whole_or_nothing(folder: Path) -> Iterator[Path]:
    """Gives a folder to write into, which takes the place of `folder` at the end, or vanishes on an error."""
    partial, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{kind}") for kind in ("partial", "old"))
    try:
        _remove_leftovers(folder)
        partial.mkdir(parents=True)
        yield partial
        _replace(partial, folder, old)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError):
            raise cannot_write(folder, error) from error
        raise


def _replace(partial: Path, folder: Path, old: Path) -> None:
    """Gives `partial` the name of `folder`, also while another process does the same: the last one stays."""
    try:
        while True:
            try:
                os.replace(partial, folder)
                return
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            shutil.rmtree(old, ignore_errors=True)
            with suppress(FileNotFoundError):
                os.replace(folder, old)
    finally:
        _put_back(old, folder)


def _remove_leftovers(folder: Path) -> None:
    """Removes what killed processes left beside `folder`; those that still run keep theirs."""
    if not folder.parent.is_dir():
        return
    pattern = re.compile(rf"\.{re.escape(folder.name)}\.([0-9]+)\.(partial|old)")
    for path in folder.parent.iterdir():
        match = pattern.fullmatch(path.name)
        if match is None or (int(match[1]) != os.getpid() and _runs(int(match[1]))):
            continue
        if match[2] == "old":
            _put_back(path, folder)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _put_back(old: Path, folder: Path) -> None:
    """Removes the store that was replaced, or gives it its name back if nothing took its place."""
    if old.exists() and not folder.exists():
        # Another process may have put its own there meanwhile.
        with suppress(OSError):
            os.replace(old, folder)
    shutil.rmtree(old, ignore_errors=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


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
    roles = ("labels", "weight", "group", "time", "time_unit", "reference")
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
