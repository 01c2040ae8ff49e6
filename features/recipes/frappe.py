"""frappe: uses of apps by 957 users, with where and when each was used; what a user did not use is drawn.

The file holds uses only. Each is followed by negatives: the same user and context with an item that this user never
used in the whole file, every such item as likely as another. Two of each give the 288,609 rows of Neural FM and AFM.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import polars as pl
from pydantic import Field

from features.errors import DataError
from features.fingerprint import cross_expr
from features.frames import first_line, require_column
from features.recipes.base import find_data, integers, require_file
from features.validation import Strict, validate

_HOW_TO_GET = "Download frappe.zip from https://www.baltrunas.info/context-aware/frappe and unpack it."
_MEND = "unpack the archive again"
_INTEGERS = ("user", "item", "city")
_COLUMNS = ("user", "item", "daytime", "weekday", "isweekend", "homework", "cost", "weather", "country", "city")

_SPEC_HINT: dict[str, Any] = {
    "features": [
        {"type": "id", "name": name, **({"dtype": "integer"} if name in _INTEGERS else {})} for name in _COLUMNS
    ],
    "labels": ["label"],
    "group": "user",
}


class FrappeParams(Strict):
    """Parameters of the recipe."""

    negatives: Annotated[int, Field(ge=0, le=100)] = 2
    """Rows of label 0 drawn for each use; a user who used every item gets none."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Decides which items are drawn."""


class Frappe:
    """Reads the official `frappe` folder (frappe.csv, with tabs between the fields)."""

    name = "frappe"
    description = "Frappe: 96,203 uses of 4,082 apps with their context; with 2 drawn negatives each 288,609 rows"
    how_to_get = _HOW_TO_GET
    spec_hint = _SPEC_HINT

    def load(self, folder: Path | None = None, **params: Any) -> pl.LazyFrame:
        """Returns the uses in the order of the file, each followed by its negatives.

        label, user, item, daytime, weekday, isweekend, homework, cost, weather, country and city. `cnt`, how often the
        app was used, is left out: only a use has one, so that it tells the label.
        """
        chosen = validate(FrappeParams, params, where="params")
        (path,) = self.files(folder)
        return _with_negatives(_read(path), chosen).lazy()

    def files(self, folder: Path | None = None, **params: Any) -> list[Path]:
        """Returns the one file."""
        folder = find_data("frappe", _HOW_TO_GET) if folder is None else Path(folder)
        return [require_file(folder, ["frappe.csv"], _HOW_TO_GET)]

    def provenance(self, folder: Path | None = None, **params: Any) -> dict[str, Any]:
        """Says how many rows are uses and how many were drawn; no use is left out."""
        chosen = validate(FrappeParams, params, where="params")
        rows, positives = (
            self.load(folder, **params).select(pl.len(), pl.col("label").cast(pl.Int64).sum()).collect().row(0)
        )
        return {
            "recipe": self.name,
            "params": chosen.model_dump(),
            "rows": rows,
            "positives": positives,
            "negatives": rows - positives,
            "dropped": {},
        }


def _read(path: Path) -> pl.DataFrame:
    if path.stat().st_size == 0:
        raise DataError("file is empty", field=str(path), mend=_MEND)
    try:
        # All columns, though not all are wanted: a line with too many fields shows only then.
        uses = pl.read_csv(path, separator="\t", quote_char=None, infer_schema=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError("file is damaged", field=str(path), found=first_line(error), mend=_MEND) from error
    for column in _COLUMNS:
        require_column(column, uses.schema)
    if not uses.height:
        raise DataError("file is empty", field=str(path), found="a header alone", mend=_MEND)
    for column in _COLUMNS:
        # What is not known is written as "unknown": an empty field is the end of a line that was cut off.
        if uses[column].null_count():
            line = uses[column].is_null().arg_true()[0] + 2
            raise DataError(f"line {line} has no {column}", field=str(path), mend=_MEND)
    return uses.select(_COLUMNS).with_columns(integers(uses, name, path, _MEND) for name in _INTEGERS)


def _with_negatives(uses: pl.DataFrame, params: FrappeParams) -> pl.DataFrame:
    """Returns each use and behind it its negatives.

    A draw is a number r below the count of the items that the user never used, and stands for the r-th of them. It
    hangs on the seed, the place of the use and which of its negatives it is, and on no generator of random numbers.
    """
    items, item = np.unique(uses["item"].to_numpy(), return_inverse=True)
    users, user = np.unique(uses["user"].to_numpy(), return_inverse=True)
    owner, used = np.divmod(np.unique(user * len(items) + item), len(items))
    unused = len(items) - np.bincount(owner)
    first = np.searchsorted(owner, np.arange(len(users)))
    # For every used item: how many items before it the user never used. It never falls within a user; with a range of
    # its own for each user, those of all users are one sorted list.
    before = used - (np.arange(len(used)) - first[owner])
    steps = owner * (len(items) + 1) + before

    row = np.repeat(np.arange(uses.height), 1 + params.negatives)
    which = np.tile(np.arange(1 + params.negatives), uses.height)
    keep = (which == 0) | (unused[user[row]] > 0)
    row, which = row[keep], which[keep]

    drawn = which > 0
    of = user[row[drawn]]
    rank = (_draws(params.seed, row[drawn], which[drawn]) % unused[of].astype(np.uint64)).astype(np.int64)
    passed = np.searchsorted(steps, of * (len(items) + 1) + rank, side="right") - first[of]
    item = item[row]
    item[drawn] = rank + passed
    return (
        uses[row]
        .with_columns(pl.Series("item", items[item]), pl.Series("label", ~drawn).cast(pl.Int8))
        .select("label", *_COLUMNS)
    )


def _draws(seed: int, row: np.ndarray, which: np.ndarray) -> np.ndarray:
    """Returns an unsigned 64-bit number for each negative, the same for ever for one (seed, row, which)."""
    parts = [pl.lit(seed, dtype=pl.Int64), pl.col("row"), pl.col("which")]
    places = pl.DataFrame({"row": row.astype(np.int64), "which": which.astype(np.int64)})
    return places.select(cross_expr(parts).reinterpret(signed=False)).to_series().to_numpy()
