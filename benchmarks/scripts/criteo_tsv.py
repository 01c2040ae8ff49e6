"""Raw events in the official form of Criteo, as many as wanted, made from the sample by repetition.

In each repetition after the first, three in ten of a column's distinct ids have one character changed, so that the
vocabulary grows with the rows as it does in a longer log. The same request gives the same bytes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from features.recipes import RECIPES
from features.recipes.criteo import CATEGORIES, INTEGERS

CHANGED = 0.3
SPLITS = {"train": 0.8, "valid": 0.1, "test": 0.1}
_HEX = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Write the events.

    Args:
        request: folder, rows, seed; `with_header` (rows, none if 0): so many first rows once more as train.csv,
            valid.csv and test.csv with a header and tabs, for a library that reads no other form.

    Returns:
        rows, bytes of the file.
    """
    folder = Path(request["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "train.txt"
    write(path, RECIPES["criteo"].load(None).collect(), request["rows"], request["seed"])
    if request["with_header"]:
        divide(path, folder, request["with_header"])
    return {"rows": request["rows"], "bytes": path.stat().st_size}


def write(path: Path, sample: pl.DataFrame, rows: int, seed: int) -> None:
    """Write `rows` rows made from the sample as 40 columns with tabs between them and no header."""
    plain = sample.select("label", *INTEGERS)
    columns = {name: _dictionary(sample.get_column(name)) for name in CATEGORIES}
    with path.open("wb") as file:
        for repetition in range(-(-rows // sample.height)):
            ids = []
            for number, (name, (values, codes)) in enumerate(columns.items()):
                rng = np.random.default_rng([seed, repetition, number])
                share = CHANGED if repetition else 0.0
                ids.append(pl.Series(_changed(values, share, rng)).gather(codes).alias(name))
            frame = plain.with_columns(ids).head(rows - repetition * sample.height)
            frame.write_csv(file, include_header=False, separator="\t")


def _dictionary(column: pl.Series) -> tuple[np.ndarray, pl.Series]:
    """Return the distinct values [V, 8] as characters and the place of every row's value among them."""
    distinct = column.drop_nulls().unique(maintain_order=True)
    places = pl.DataFrame({"value": distinct, "code": pl.Series(range(len(distinct)), dtype=pl.UInt32)})
    codes = column.to_frame("value").join(places, on="value", how="left", maintain_order="left").get_column("code")
    return np.array(distinct.to_list(), dtype="S8").view(np.uint8).reshape(-1, 8), codes


def _changed(values: np.ndarray, share: float, rng: np.random.Generator) -> list[str]:
    changed = values.copy()
    rows = np.flatnonzero(rng.random(len(values)) < share)
    changed[rows, rng.integers(0, 8, len(rows))] = _HEX[rng.integers(0, 16, len(rows))]
    return list(changed.view("S8").ravel().astype(str).tolist())


def divide(path: Path, folder: Path, rows: int) -> None:
    """Write the first rows as train.csv, valid.csv and test.csv in file order, with a header and tabs."""
    names = ["label", *INTEGERS, *CATEGORIES]
    text = pl.read_csv(path, separator="\t", has_header=False, new_columns=names, n_rows=rows, infer_schema=False)
    start = 0
    for name, share in SPLITS.items():
        part = text.slice(start, int(rows * share))
        part.write_csv(folder / f"{name}.csv", separator="\t")
        start += part.height


if __name__ == "__main__":
    print(json.dumps(run(json.load(sys.stdin))))
