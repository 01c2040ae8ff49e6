"""Opens event files lazily by their ending: Parquet, CSV, TSV, NDJSON, Arrow IPC and Delta tables, here or by a URL."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import polars as pl

from features.errors import DataError, list_names
from features.frames import first_line
from features.reading.inputs import Inputs, Options, delta_table, find_inputs

_INFER_ROWS = 10_000
_SEPARATORS = {"csv": ",", "tsv": "\t"}
_NO_PARTITION = "__HIVE_DEFAULT_PARTITION__"
_PATH_COLUMN = "__path__"


def scan(path: str | Path, *, storage_options: Options | None = None) -> pl.LazyFrame:
    """Opens what a path stands for, several files in the order of their names.

    The columns of CSV and TSV are all text, and an empty field is null: the spec says what the text means. A folder
    `KEY=VALUE` in the path gives every row of its files a column KEY with the text VALUE, unless the files have such a
    column.

    Args:
        path: Such as `events.parquet`, `logs/day-*.csv.gz`, `logs/`, `table@v3` or `s3://bucket/logs/**/*.parquet`;
            see `find_inputs`.
        storage_options: Settings of the object store of a URL.

    Raises:
        DataError: There is no such file, its ending is unknown, it is empty or damaged, its header names a column
            twice, or the columns of several files differ.
    """
    inputs = find_inputs(path)
    if inputs.kind == "delta":
        table = delta_table(inputs, storage_options)
        with _readable(inputs.path, inputs):
            frame = pl.scan_delta(table)
            frame.collect_schema()
        return frame
    for file in () if inputs.remote else inputs.files:
        if Path(file).stat().st_size == 0:
            raise DataError("file is empty", field=file, mend="write it anew or leave it out")
    options = dict(storage_options or {}) if inputs.remote else {}
    # A store out of reach is told of at once; a long reading may try as often as Polars does.
    opening = {"max_retries": 2, **options} if inputs.remote else {}
    schema = _common_schema(inputs, opening)
    with _readable(inputs.path, inputs):
        keys = _partition_keys(inputs, opening)
        keys = [key for key in keys if key not in schema]
        frame = _read(inputs, list(inputs.files), options, schema, paths=bool(keys))
        if keys:
            columns = [_partition(pl.col(_PATH_COLUMN), key).alias(key) for key in keys]
            frame = frame.with_columns(columns).drop(_PATH_COLUMN)
        frame.collect_schema()
    return frame


def _read(
    inputs: Inputs, files: list[str], options: dict[str, Any], schema: pl.Schema | None = None, *, paths: bool = False
) -> pl.LazyFrame:
    """The rows of some files; with `paths` also the name of a row's file."""
    glob = _has_pattern(inputs)
    more: dict[str, Any] = {
        "storage_options": options or None,
        "include_file_paths": _PATH_COLUMN if paths else None,
    }
    match inputs.kind:
        case "parquet":
            return pl.scan_parquet(files, hive_partitioning=False, glob=glob, **more)
        case "ipc":
            return pl.scan_ipc(files, hive_partitioning=False, glob=glob, **more)
        case "ndjson":
            # It has no switch for patterns: a local name is none.
            files = files if glob else [escape(file) for file in files]
            return pl.scan_ndjson(files, schema=schema, infer_schema_length=_INFER_ROWS, **more)
        case _:
            # A guessed type would lose what the file says: 01234 is not 1234, and the guess hangs on the rows read.
            # Polars finds out by itself whether a file is compressed, whatever its ending.
            return pl.scan_csv(files, separator=_SEPARATORS[inputs.kind], infer_schema=False, glob=glob, **more)


def _has_pattern(inputs: Inputs) -> bool:
    """Whether the store is to find the files; local ones are found, and the web knows no patterns."""
    return inputs.remote and not inputs.path.startswith("http")


def _common_schema(inputs: Inputs, options: dict[str, Any]) -> pl.Schema:
    """The columns of all files. Reads the header or the footer of each: what is wrong shows now, not in an hour.

    Raises:
        DataError: A file is damaged, or its columns are not those of the first.
    """
    schemas: dict[str, pl.Schema] = {}
    for file in inputs.files:
        with _readable(file, inputs):
            schemas[file] = _read(inputs, [file], options).collect_schema()
            if inputs.kind in _SEPARATORS:
                _check_header(inputs, file, options)
    if inputs.kind == "ndjson":
        # A row has the keys that it needs: one file may have more of them than another.
        try:
            return pl.concat(
                [pl.DataFrame(schema=schema) for schema in schemas.values()], how="diagonal_relaxed"
            ).schema
        except pl.exceptions.PolarsError as error:
            raise DataError(
                "the types of a key differ from file to file",
                field=inputs.path,
                found=first_line(error),
                mend="write it alike in all files",
            ) from error
    first_file, first = next(iter(schemas.items()))
    for file, schema in schemas.items():
        _check_alike(file, schema, first_file, first, ordered=inputs.kind in _SEPARATORS)
    return first


def _check_header(inputs: Inputs, file: str, options: dict[str, Any]) -> None:
    """Refuses a first line that Polars would take and change, or that shows another form than the ending says."""
    separator = _SEPARATORS[inputs.kind]
    line = pl.scan_csv(
        file,
        separator=separator,
        has_header=False,
        infer_schema=False,
        n_rows=1,
        truncate_ragged_lines=True,
        glob=_has_pattern(inputs),
        storage_options=options or None,
    ).collect()
    names = ["" if name is None else str(name) for name in line.row(0)]
    if any("\r" in name for name in names):
        raise DataError(
            "lines end with a carriage return alone", field=file, mend="write the file with \\n or \\r\\n as line ends"
        )
    if names[0].lstrip().startswith("{"):
        raise DataError("holds JSON, not separated text", field=file, mend="rename the file to .ndjson")
    other = next((sign for sign in "\t,;|" if sign in names[0]), None) if len(names) == 1 else None
    if other is not None:
        raise DataError(
            "the header is one single column",
            field=file,
            found=names[0][:80],
            expected=f"columns with {separator!r} between them",
            mend="use .csv for commas and .tsv for tabs; write the file anew if it has another separator",
        )
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(
            "the header names a column twice", field=file, found=list_names(twice), mend="rename one of them"
        )


def _check_alike(file: str, schema: pl.Schema, first_file: str, first: pl.Schema, *, ordered: bool) -> None:
    """Refuses columns that are not those of the first file, which Polars would only find when it comes to the file."""
    if schema == first or (not ordered and dict(schema) == dict(first)):
        return
    differences = {
        "it lacks": [name for name in first if name not in schema],
        "it also has": [name for name in schema if name not in first],
        "of another type": [
            f"{name} ({schema[name]}, not {first[name]})"
            for name in first
            if name in schema and schema[name] != first[name]
        ],
    }
    found = "; ".join(f"{title} {list_names(names)}" for title, names in differences.items() if names)
    raise DataError(
        f"its columns are not those of {first_file}",
        field=file,
        found=found or "another order",
        mend="write both with the same columns, or prepare them apart",
    )


def _partition_keys(inputs: Inputs, options: dict[str, Any]) -> list[str]:
    """The keys of the folders KEY=VALUE in the names of all files.

    Raises:
        DataError: Not all files lie in folders of the same keys.
    """
    names = list(inputs.files)
    if inputs.remote and "**" in inputs.path:
        # What lies behind the stars only the store knows.
        names = _read(inputs, names, options, paths=True).select(_PATH_COLUMN).head(1).collect()[_PATH_COLUMN].to_list()
    found = {name: re.findall(r"(?:^|/)([^/=]+)=[^/]*(?=/)", name) for name in names}
    first = next(iter(found.values()), [])
    for name, keys in found.items():
        if sorted(keys) != sorted(first):
            raise DataError(
                "its folders have other keys than those of the first file",
                field=name,
                found=list_names(keys) or "none",
                expected=list_names(first) or "none",
                mend="move it, or read it apart",
            )
    return list(dict.fromkeys(first))


def _partition(path: pl.Expr, key: str) -> pl.Expr:
    """The text of the folder KEY=VALUE in the name of a row's file."""
    raw = path.str.extract(rf"(?:^|/){re.escape(key)}=([^/]*)/")
    return raw.map_batches(_unquoted, return_dtype=pl.String, is_elementwise=True)


def _unquoted(values: pl.Series) -> pl.Series:
    written = values.unique().drop_nulls()
    read = {value: None if value == _NO_PARTITION else unquote(value) for value in written}
    return values.replace_strict(read, return_dtype=pl.String) if read else values


@contextmanager
def _readable(field: str, inputs: Inputs) -> Iterator[None]:
    """Turns Polars' errors into one that names the file."""
    try:
        yield
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        raise DataError(
            "cannot be read" if inputs.remote else "file is damaged or not what its ending says",
            field=field,
            found=first_line(error),
            mend="check the address, the network and data.storage_options"
            if inputs.remote
            else "copy or write the file anew",
        ) from error
