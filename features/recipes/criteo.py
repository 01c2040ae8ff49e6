"""criteo: display advertising events with 13 integers and 26 hashed categories, in the order of time."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import polars as pl

from features.errors import DataError
from features.frames import first_line, require_column, schema_of
from features.reading.sources import scan
from features.recipes.base import find_data, require_file
from features.validation import Strict, validate

INTEGERS = [f"I{number}" for number in range(1, 14)]
CATEGORIES = [f"C{number}" for number in range(1, 27)]

_HOW_TO_GET = (
    "Download the Criteo Display Advertising Challenge data (dac.tar.gz, see "
    "https://ailab.criteo.com/ressources/) and unpack it."
)
_SHARED = {"sample": "train_sample_137k.parquet", "head": "train_head_10k.parquet"}
_OFFICIAL = ["train.txt", "train.txt.gz", "train.tsv", "train.tsv.gz"]

_SPEC_HINT: dict[str, Any] = {
    "features": [
        *(
            {"type": "number", "name": name, "clip": [0, None], "log": 1, "standardise": True, "missing_flag": True}
            for name in INTEGERS
        ),
        *({"type": "id", "name": name} for name in CATEGORIES),
    ],
    "labels": ["label"],
}


class CriteoParams(Strict):
    """Parameters of the recipe."""

    part: Literal["sample", "head"] = "sample"
    """Which file of the Parquet form: the sample of 137,139 rows or the first 10,000 rows."""


class Criteo:
    """Reads the official form (train.txt, 40 columns without a header) and a form in Parquet."""

    name = "criteo"
    description = "Criteo display advertising: 45.8M clicks and non-clicks, or a sample of 137,139, base rate .257"
    how_to_get = _HOW_TO_GET
    spec_hint = _SPEC_HINT

    def load(self, folder: Path | None = None, **params: Any) -> pl.LazyFrame:
        """Returns label, I1 to I13, C1 to C26 and `row`, the place in time; the Parquet form keeps its part too."""
        (path,) = self.files(folder, **params)
        if path.suffix == ".parquet":
            frame = scan(path)
            schema = schema_of(frame)
            for column in ("label", *INTEGERS, *CATEGORIES):
                require_column(column, schema)
            place = [name for name in ("part", "row_in_part") if name in schema]
            frame = frame.sort(place, maintain_order=True) if place else frame
            return frame.with_row_index("row").select(
                "label", *INTEGERS, *CATEGORIES, *place, pl.col("row").cast(pl.Int64)
            )
        if path.stat().st_size == 0:
            raise DataError("file is empty", field=str(path), mend=_HOW_TO_GET)
        types: dict[str, Any] = dict.fromkeys(("label", *INTEGERS), pl.Int64)
        types |= dict.fromkeys(CATEGORIES, pl.String)
        frame = pl.scan_csv(path, separator="\t", has_header=False, schema=types, quote_char=None)
        try:
            frame.head(100).collect()
        except (pl.exceptions.PolarsError, OSError) as error:
            raise DataError(
                "not the official form",
                field=str(path),
                found=first_line(error),
                expected="a label, 13 integers and 26 texts with tabs between them",
                mend=_HOW_TO_GET,
            ) from error
        return frame.with_row_index("row").select("label", *INTEGERS, *CATEGORIES, pl.col("row").cast(pl.Int64))

    def files(self, folder: Path | None = None, **params: Any) -> list[Path]:
        """Returns the one file."""
        chosen = validate(CriteoParams, params, where="params")
        folder = find_data("criteo-kaggle", _HOW_TO_GET) if folder is None else Path(folder)
        return [require_file(folder, [*_OFFICIAL, _SHARED[chosen.part]], _HOW_TO_GET)]

    def provenance(self, folder: Path | None = None, **params: Any) -> dict[str, Any]:
        """Says which part was read; no row is left out."""
        chosen = validate(CriteoParams, params, where="params")
        return {"recipe": self.name, "params": chosen.model_dump(), "dropped": {}}
