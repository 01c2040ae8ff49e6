"""What a recipe is: a known data set read into one row an event, from the files a user downloads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import polars as pl

from features.errors import DataError

DATA_VARIABLE = "RECSYS_DATA"


class Recipe(Protocol):
    """A data set.

    Attributes:
        name: Its name in configs.
        description: What it is, one line.
        how_to_get: Where to download it and where to put it.
        spec_hint: A spec that works, as plain data.
    """

    name: str
    description: str
    how_to_get: str
    spec_hint: dict[str, Any]

    def load(self, folder: Path | None = None, **params: Any) -> pl.LazyFrame:
        """Returns one row an event.

        Args:
            folder: Where the files are; found by `find_data` when not given.
            params: What can be chosen; unknown ones are errors.

        Raises:
            DataError: The files are not there or are damaged.
            ConfigError: A parameter is wrong.
        """
        ...

    def files(self, folder: Path | None = None, **params: Any) -> list[Path]:
        """Returns the files that `load` reads; none for generated events.

        Raises:
            DataError: One is not there.
        """
        ...

    def provenance(self, folder: Path | None = None, **params: Any) -> dict[str, Any]:
        """Returns where the rows come from and how many were left out and why, for the manifest; plain JSON."""
        ...


def find_data(subfolder: str, how_to_get: str = "", *, also: Sequence[str] = ()) -> Path:
    """Returns the folder of a data set under RECSYS_DATA, by default `../shared/data` beside the working folder.

    Args:
        subfolder: The name of its folder.
        how_to_get: Advice for the error.
        also: Other names that the folder may have, such as the one inside the archive.

    Raises:
        DataError: It is not there; says how to get it.
    """
    root = Path(os.environ.get(DATA_VARIABLE) or Path.cwd().parent / "shared" / "data")
    names = (subfolder, *also)
    for name in names:
        if (root / name).is_dir():
            return root / name
    advice = f"{how_to_get} " if how_to_get else ""
    raise DataError(
        "data set is not on this machine",
        field=str(root / subfolder),
        mend=f"{advice}Put it into a folder named {' or '.join(names)} and set {DATA_VARIABLE} to the folder above it",
    )


def require_file(folder: Path, names: list[str], how_to_get: str) -> Path:
    """Returns the first of the files that is in the folder.

    Raises:
        DataError: None is.
    """
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise DataError("file is missing", field=str(folder), expected=" or ".join(names), mend=how_to_get)


def integers(frame: pl.DataFrame, name: str, path: Path, mend: str) -> pl.Series:
    """Returns a column of text as integers.

    Args:
        frame: The rows as they were read.
        name: The column.
        path: The file, for the error.
        mend: Advice for the error.

    Raises:
        DataError: A value is none.
    """
    numbers = frame.get_column(name).cast(pl.Int64, strict=False)
    if numbers.null_count():
        bad = frame.get_column(name).filter(numbers.is_null())[0]
        raise DataError(f"{name} is no integer", field=str(path), found=repr(bad), mend=mend)
    return numbers
