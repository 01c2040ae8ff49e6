"""movielens_1m: a million ratings of films by 6,040 users, with what is known of both.

Ratings of 1 and 2 are label 0, of 4 and 5 label 1; the neutral 3 is left out unless it is asked for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from features.errors import DataError
from features.reading.sources import scan
from features.recipes.base import find_data, integers, require_file
from features.validation import Strict, validate

_HOW_TO_GET = "Download ml-1m.zip from https://grouplens.org/datasets/movielens/1m/ and unpack it."
_MEND = "unpack the archive again"

_SPEC_HINT: dict[str, Any] = {
    "features": [
        {"type": "id", "name": "user_id", "dtype": "integer"},
        {"type": "id", "name": "movie_id", "dtype": "integer"},
        {"type": "id", "name": "gender"},
        {"type": "id", "name": "age", "dtype": "integer"},
        {"type": "id", "name": "occupation", "dtype": "integer"},
        {"type": "id", "name": "zip"},
    ],
    "labels": ["label"],
    "group": "user_id",
}


class MovieLensParams(Strict):
    """Parameters of the recipe."""

    drop_neutral: bool = True
    """Whether ratings of 3 are left out; kept, they are label 0."""


class MovieLens1M:
    """Reads the official `ml-1m` folder (ratings.dat) and a form with `ratings.parquet` in its place."""

    name = "movielens_1m"
    description = "MovieLens-1M: 1,000,209 ratings, 739,012 without the neutral ones, base rate .778"
    how_to_get = _HOW_TO_GET
    spec_hint = _SPEC_HINT

    def load(self, folder: Path | None = None, **params: Any) -> pl.LazyFrame:
        """Returns one row a rating, in the order of the file.

        user_id, movie_id, gender, age, occupation, zip, title, genres (list), rating, label, timestamp (null where
        it is not known exactly) and seq_pos, the place of the rating in the history of its user.
        """
        chosen = validate(MovieLensParams, params, where="params")
        ratings_file, users_file, movies_file = self.files(folder)
        users, movies = _read_users(users_file), _read_movies(movies_file)
        frame = (
            _read_ratings(ratings_file)
            .join(users.lazy(), on="user_id", how="left", maintain_order="left")
            .join(movies.lazy(), on="movie_id", how="left", maintain_order="left")
            .with_columns(label=(pl.col("rating") >= 4).cast(pl.Int8))
            .select(
                *("user_id", "movie_id", "gender", "age", "occupation", "zip", "title", "genres"),
                *("rating", "label", "timestamp", "seq_pos"),
            )
        )
        return frame.filter(pl.col("rating") != 3) if chosen.drop_neutral else frame

    def files(self, folder: Path | None = None, **params: Any) -> list[Path]:
        """Returns the files of ratings, users and movies."""
        folder = find_data("movielens-1m", _HOW_TO_GET, also=["ml-1m"]) if folder is None else Path(folder)
        names = (["ratings.dat", "ratings.parquet"], ["users.dat"], ["movies.dat"])
        return [require_file(folder, options, _HOW_TO_GET) for options in names]

    def provenance(self, folder: Path | None = None, **params: Any) -> dict[str, Any]:
        """Says how many ratings there are and how many were left out."""
        chosen = validate(MovieLensParams, params, where="params")
        everything = self.load(folder, drop_neutral=False)
        rows, neutral = everything.select(pl.len(), (pl.col("rating") == 3).sum().alias("neutral")).collect().row(0)
        dropped = {"neutral rating of 3": neutral} if chosen.drop_neutral else {}
        return {"recipe": self.name, "params": chosen.model_dump(), "rows": rows, "dropped": dropped}


def _read_ratings(path: Path) -> pl.LazyFrame:
    order = ["user_id", "movie_id", "rating", "timestamp", "seq_pos"]
    if path.suffix == ".parquet":
        exact = pl.when(pl.col("ts_kind") == "exact").then(pl.col("timestamp"))
        time = (exact.cast(pl.Int64) * 1_000_000).cast(pl.Datetime("us"))
        return (
            scan(path)
            .with_columns(timestamp=time)
            .select(*(pl.col(name).cast(pl.Int64) for name in order[:3]), "timestamp", pl.col("seq_pos").cast(pl.Int64))
        )
    ratings = _read_dat(path, ["user_id", "movie_id", "rating", "timestamp"]).with_row_index("row")
    numbers = ratings.select("row", *(integers(ratings, name, path, _MEND) for name in order[:4]))
    in_history = numbers.sort("user_id", "timestamp", "row").with_columns(
        seq_pos=pl.int_range(pl.len()).over("user_id"),
        timestamp=(pl.col("timestamp") * 1_000_000).cast(pl.Datetime("us")),
    )
    return in_history.sort("row").select(order).lazy()


def _read_users(path: Path) -> pl.DataFrame:
    users = _read_dat(path, ["user_id", "gender", "age", "occupation", "zip"])
    return users.with_columns(integers(users, name, path, _MEND) for name in ("user_id", "age", "occupation"))


def _read_movies(path: Path) -> pl.DataFrame:
    movies = _read_dat(path, ["movie_id", "title", "genres"])
    return movies.with_columns(integers(movies, "movie_id", path, _MEND), pl.col("genres").str.split("|"))


def _read_dat(path: Path, names: list[str]) -> pl.DataFrame:
    """Reads lines of fields with `::` between them, in Latin-1."""
    lines = [line.rstrip("\r") for line in path.read_bytes().decode("latin-1").split("\n")]
    frame = pl.DataFrame({"line": lines}).filter(pl.col("line") != "")
    if not frame.height:
        raise DataError("file is empty", field=str(path), mend=_MEND)
    fields = frame.select(pl.col("line").str.split("::"))
    wrong = fields.with_row_index("number", offset=1).filter(pl.col("line").list.len() != len(names))
    if wrong.height:
        raise DataError(
            f"line {wrong['number'][0]} has another number of fields",
            field=str(path),
            found=wrong["line"].list.len()[0],
            expected=f"{len(names)}: {'::'.join(names)}",
            mend=_MEND,
        )
    return fields.select(pl.col("line").list.get(place).alias(name) for place, name in enumerate(names))
