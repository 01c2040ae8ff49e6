"""Which files a path stands for: a file, a glob, a folder, a Delta table or a URL; and how to tell that one changed."""

from __future__ import annotations

import dataclasses
import importlib
import os
import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from glob import glob, has_magic
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from features.errors import DataError, did_you_mean, list_names
from features.frames import first_line

Kind = Literal["parquet", "csv", "tsv", "ndjson", "ipc", "delta"]
Options = Mapping[str, str | int | bool]
"""Settings of an object store, as Polars takes them: `aws_region`, `aws_endpoint_url` and the like."""

SCHEMES = ("s3", "s3a", "gs", "gcs", "az", "azure", "abfs", "abfss", "adl", "hf", "http", "https")

_TEXTS: dict[str, Kind] = {".csv": "csv", ".tsv": "tsv", ".ndjson": "ndjson", ".jsonl": "ndjson"}
_KINDS: dict[str, Kind] = {
    ".parquet": "parquet",
    ".arrow": "ipc",
    ".ipc": "ipc",
    ".feather": "ipc",
    **{ending + packed: kind for ending, kind in _TEXTS.items() for packed in ("", ".gz", ".zst")},
}
_VERSION = re.compile(r"(?P<table>.+)@v(?P<version>[0-9]+)")
_HTTP = ("http", "https")


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The files that a path stands for.

    Attributes:
        path: The path as it was given, of a Delta table without its version.
        kind: What is in them, compressed or not.
        files: Local files by name; a URL, which may be a pattern; or the folder or URL of a Delta table.
        left_out: Files of a folder whose names begin with `.` or `_`, or that lie in such a folder.
        version: Of a Delta table: the one asked for, or None for the newest.
    """

    path: str
    kind: Kind
    files: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    version: int | None = None

    @property
    def local_files(self) -> tuple[str, ...] | None:
        """The files that can be looked at one by one; None for a URL and for a Delta table."""
        return None if self.remote or self.kind == "delta" else self.files

    @property
    def remote(self) -> bool:
        """Whether it is a URL."""
        return is_url(self.path)


def is_url(path: str) -> bool:
    """Whether a path is the URL of an object store.

    Example:
        >>> is_url("s3://bucket/day.parquet"), is_url("logs/day.parquet")
        (True, False)
    """
    return path.partition("://")[0] in SCHEMES and "://" in path


def find_inputs(path: str | Path) -> Inputs:
    """Finds the files of a path. Only a local path is looked at; a URL is taken at its word.

    Args:
        path: A file; a glob, also with `**`; a folder, with all files below it but those whose name or folder
            begins with `.` or `_`; a Delta table, with `@v3` for its version 3; or a URL of one of these.

    Raises:
        DataError: There is no such file, its ending is unknown, or the files are of several kinds.
    """
    name = str(path)
    if is_url(name):
        return _remote(name)
    match = _VERSION.fullmatch(name)
    if match and not Path(name).exists() and Path(match["table"], "_delta_log").is_dir():
        return Inputs(match["table"], "delta", (match["table"],), version=int(match["version"]))
    if Path(name).is_dir():
        if Path(name, "_delta_log").is_dir():
            return Inputs(name, "delta", (name,))
        return _several(name, *_below(Path(name)))
    # A file may be named like a pattern.
    if has_magic(name) and not Path(name).is_file():
        found = [file for file in sorted(glob(name, recursive=True)) if Path(file).is_file()]
        fixed = name.partition("**")[0]
        hidden = [file for file in found if "**" in name and _is_hidden(file[len(fixed) :])]
        return _several(name, [file for file in found if file not in set(hidden)], hidden)
    return Inputs(name, _kind(_existing(Path(name))), (name,))


def states(inputs: Inputs, options: Options | None = None) -> dict[str, list[int | str]]:
    """Says of every file what changes when it changes.

    Returns:
        By local file its size and time of change; by object its size and its etag or time of change; by Delta table
        its version and the table's own id. A URL alone, with nothing, where the package `obstore` is not installed
        or does not know the store.

    Raises:
        DataError: A file is gone, or the store does not answer.
    """
    if inputs.kind == "delta":
        table = delta_table(inputs, options)
        return {inputs.path: [table.version(), str(table.metadata().id)]}
    if inputs.remote:
        return _remote_states(inputs.path, options or {})
    try:
        stats = {file: os.stat(file) for file in inputs.files}
    except OSError as error:
        raise DataError("file is missing", field=str(error.filename), mend="check the path") from error
    return {file: [stat.st_size, stat.st_mtime_ns] for file, stat in stats.items()}


def delta_table(inputs: Inputs, options: Options | None = None) -> Any:
    """Opens a Delta table.

    Raises:
        DataError: It is none, has no such version, or the package `deltalake` is not installed.
    """
    try:
        deltalake = importlib.import_module("deltalake")
    except ImportError:
        raise DataError(
            "a Delta table needs the package deltalake, which is not installed",
            field=inputs.path,
            mend="pip install 'recsys-embeddings[delta]'",
        ) from None
    texts = {key: str(value) for key, value in (options or {}).items()}
    try:
        return deltalake.DeltaTable(inputs.path, version=inputs.version, storage_options=texts or None)
    except (deltalake.exceptions.DeltaError, OSError, ValueError) as error:
        raise DataError(
            "cannot be read as a Delta table" + ("" if inputs.version is None else f" of version {inputs.version}"),
            field=inputs.path,
            found=first_line(error),
            mend="check the path and the version; of files that are no Delta table give a pattern, such as *.parquet",
        ) from error


def _remote(url: str) -> Inputs:
    parts = urlsplit(url)
    if parts.username is not None or re.search(r"(?i)[?&][^=&]*(signature|sig|token|secret|password)=", url):
        raise DataError(
            "a secret in an address, which is written into logs and manifests",
            field=f"{parts.scheme}://{parts.hostname or ''}{parts.path}",
            mend="leave it out and give data.storage_options, with env:NAME as the value",
        )
    kind = _known_kind(parts.path if parts.scheme in _HTTP else url)
    if kind is not None:
        return Inputs(url, kind, (url,))
    if parts.scheme in _HTTP or has_magic(url) or url.endswith("/"):
        raise _unknown_ending(url, f"name the files, such as {url.split('*')[0].rstrip('/')}/**/*.parquet")
    match = _VERSION.fullmatch(url)
    table, version = (match["table"], int(match["version"])) if match else (url, None)
    return Inputs(table, "delta", (table,), version=version)


def _several(path: str, found: list[str], left_out: list[str]) -> Inputs:
    if not found:
        left = f"only {list_names(left_out, 3)}, which begin with . or _" if left_out else None
        what = "no file in the folder" if Path(path).is_dir() else "no file matches"
        raise DataError(what, field=path, found=left, mend="check the path")
    kinds = {file: _kind(Path(file)) for file in found}
    first = {kind: file for file, kind in reversed(kinds.items())}
    if len(first) > 1:
        raise DataError(
            "files of several kinds",
            field=path,
            found=list_names(sorted(first.values())),
            mend="give one kind at a time, such as *.parquet",
        )
    return Inputs(path, next(iter(first)), tuple(found), tuple(left_out))


def _below(folder: Path) -> tuple[list[str], list[str]]:
    """The files below a folder by name, and those that are left out."""
    found: list[str] = []
    left_out: list[str] = []
    for place, folders, names in os.walk(folder, followlinks=True):
        folders.sort()
        for name in names:
            file = os.path.join(place, name)
            (left_out if _is_hidden(os.path.relpath(file, folder)) else found).append(file)
    return sorted(found), sorted(left_out)


def _is_hidden(path: str) -> bool:
    return any(part.startswith((".", "_")) and "=" not in part for part in Path(path).parts)


def _existing(file: Path) -> Path:
    if not file.is_file():
        siblings = [entry.name for entry in file.parent.iterdir()] if file.parent.is_dir() else []
        mend = did_you_mean(file.name, siblings, "check the path")
        raise DataError("file is missing", field=str(file), mend=mend)
    return file


def _kind(file: Path) -> Kind:
    kind = _known_kind(str(file))
    if kind is None:
        raise _unknown_ending(str(file), "rename the file, or name the others by a pattern")
    return kind


def _known_kind(path: str) -> Kind | None:
    name = path.lower()
    return next((kind for ending, kind in _KINDS.items() if name.endswith(ending)), None)


def _unknown_ending(path: str, mend: str) -> DataError:
    return DataError("unknown ending", field=path, expected=f"one of {list_names(_KINDS)}", mend=mend)


def _remote_states(url: str, options: Options) -> dict[str, list[int | str]]:
    try:
        obstore = importlib.import_module("obstore")
        stores = importlib.import_module("obstore.store")
    except ImportError:
        return {url: []}
    scheme, _, rest = url.partition("://")
    if scheme == "hf":
        return {url: []}
    bucket, _, key = rest.partition("/")
    plain = {"allow_http", "aws_allow_http"}
    client = {"allow_http": True} if scheme == "http" or any(options.get(name) for name in plain) else {}
    config = {name: str(value) for name, value in options.items() if name not in {*plain, "max_retries"}}
    try:
        store = stores.from_url(f"{scheme}://{bucket}", config=config or None, client_options=client or None)
        if scheme in _HTTP or not has_magic(key):
            found = {url: obstore.head(store, urlsplit(url).path.lstrip("/") if scheme in _HTTP else key)}
        else:
            prefix = re.split(r"[*?\[]", key)[0].rpartition("/")[0]
            found = {f"{scheme}://{bucket}/{item['path']}": item for item in _listed(obstore, store, prefix, key)}
    except (obstore.exceptions.BaseError, OSError, ValueError) as error:
        raise DataError("the store does not answer", field=url, found=first_line(error)) from error
    return {name: [item["size"], item.get("e_tag") or str(item["last_modified"])] for name, item in found.items()}


def _listed(obstore: Any, store: Any, prefix: str, pattern: str) -> Iterator[Any]:
    """The objects that match; `*` may cross a slash here, so that no change is missed."""
    for chunk in obstore.list(store, prefix=prefix or None):
        for item in sorted(chunk, key=lambda item: item["path"]):
            if fnmatchcase(item["path"], pattern.replace("**/", "*")):
                yield item
