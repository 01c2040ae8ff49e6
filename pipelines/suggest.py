"""What to do with the columns of a profile: an operator for each, the place of its rows, and the size of the table."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from features.ops.ngrams import Ngrams
from features.ops.time import DAY, HOUR
from features.profiling.profile import ColumnProfile, Profile
from features.profiling.roles import Roles, is_time, unit_of, words_of
from features.spec import NgramsFeature, RecencyFeature
from recsys.embeddings import EmbeddingConfig
from recsys.evaluation.single_column import Power

WIDTH = 8
"""Values in a row of the suggested table: several narrow chunks a feature beat a wide one in the same bytes."""
SHARED_IDS = 2
"""Distinct values for one row of the suggested table's shared region."""
LEAST_ROWS = 1_000
CHUNKS = ((1_000, 1), (10_000, 2))
"""Chunks of a hashed feature by its distinct values; more than these get four."""
MOST_CHUNKS = 4
HOT_VALUES, HOT_PART, HOT_HEAD = 100_000, 0.5, 0.1
"""A field gets hot rows if it has so many values, this part of all values, and ten of them have this share of it."""
HOT_SLOTS = 20_000
UNIQUE_SHARE = 0.97
LONGEST_LIST = 50
BUCKETS = 20
LATER = 0.01
"""Share of rows in which a time may be later than the event, by clocks that differ."""
WRITTEN = 0.5
"""A text is read by its words if so many of its values are distinct, and as many have several words."""
GAIN = 0.02
"""Ranges must have an AUC so much above the number's own, and values one so much above the ranges', to be read so."""
ID_WORDS = frozenset(
    (
        *("id", "ids", "uid", "key", "code", "hash", "zip", "zipcode", "postcode", "postal", "user", "item", "product"),
        *("sku", "ad", "ads", "campaign", "creative", "advertiser", "publisher", "session", "device", "category"),
        *("brand", "city", "country", "region", "movie", "book", "author", "store", "shop", "site", "page", "app"),
        *("ip", "cookie", "genre", "seller", "merchant", "customer", "visitor", "member", "account", "query"),
    )
)
"""Words in the names of columns whose whole numbers are names."""
_SEPARATORS = ("|", ";", ",")


@dataclass(frozen=True)
class Suggestion:
    """What to do with one column.

    Attributes:
        column: Its name.
        operator: Type of its features; label, or drop.
        features: Entries of the spec.
        reason: Why.
        region: exact, hot or shared; None of what has no rows.
        chunks: Lookups a value.
        values: Distinct ids its features have together.
    """

    column: str
    operator: str
    features: tuple[dict[str, Any], ...]
    reason: str
    region: str | None = None
    chunks: int = 0
    values: int = 0


@dataclass(frozen=True)
class Table:
    """The suggested table.

    Attributes:
        rows: Of the shared region.
        width: Values in a row.
        chunks: Feature -> lookups, of those that have more than one.
        hot: Feature -> ids with rows of their own.
        max_values: A feature with at most so many distinct values is exact.
        bytes: Of all rows in fp32 and the index.
        collisionless_bytes: Of a row for every value at the width that each feature has here.
    """

    rows: int
    width: int
    chunks: dict[str, int]
    hot: dict[str, int]
    max_values: int
    bytes: int
    collisionless_bytes: int


def suggest(profile: Profile, roles: Roles, powers: Mapping[str, Power]) -> tuple[tuple[Suggestion, ...], Table]:
    """Suggests an operator for every column, in their order, and a table for all.

    Args:
        profile: Of the source.
        roles: Its label, time and group.
        powers: Column -> what it tells of the label, where that could be measured.
    """
    names: set[str] = set()
    events = None if roles.time is None else _times(profile.column(roles.time), profile.sample.get_column(roles.time))
    raw: list[tuple[ColumnProfile, str, list[dict[str, Any]], str, int]] = []
    for column in profile.columns:
        values = profile.sample.get_column(column.name) if column.name in profile.sample.columns else None
        operator, features, reason = _operator(column, values, roles, powers.get(column.name), events)
        distinct = _distinct_ngrams(values) if operator == "ngrams" and values is not None else column.distinct
        raw.append((column, operator, [_named(feature, column.name, names) for feature in features], reason, distinct))
    hashed = sum(distinct for _, operator, _, _, distinct in raw if operator in ("id", "ids", "ngrams"))
    placed = [_placed(*each, hashed) for each in raw]
    return tuple(placed), _table(placed)


def _operator(
    column: ColumnProfile, values: pl.Series | None, roles: Roles, power: Power | None, events: pl.Series | None
) -> tuple[str, list[dict[str, Any]], str]:
    """Operator, spec entries (without their common keys) and reason of one column."""
    if column.name == roles.label:
        return "label", [], "the label"
    if column.kind == "other" or values is None:
        what = "its fields" if "Struct" in column.dtype else "it, cast to a number, text or list,"
        return "drop", [], f"{column.dtype.split('(')[0]}: no operator reads it; give {what} as columns"
    if column.missing == column.rows or not column.values:
        return "drop", [], "no row has a value"
    if column.distinct == 1 and not column.missing:
        return "drop", [], "constant"
    if power is not None and power.suspicious:
        what = "is the label by another name" if power.copies else f"predicts the label too well (AUC {power.auc:.3f})"
        return "drop", [], f"{what}: is it known before the event?"
    if column.kind == "list":
        return _list(column)
    if is_time(column):
        return _time(column) if events is None or column.name == roles.time else _other_time(column, values, events)
    if _is_written(column, values):
        return "ngrams", [{}], "text of words that come again in other texts"
    if _unique(column):
        return "drop", [], "nearly every row has a value of its own"
    if column.kind == "boolean":
        return "id", [{"dtype": "boolean"}], "a boolean"
    if column.kind == "text" and column.reading is None:
        separator = _separator(values)
        if separator is not None:
            return "ids", [{"separator": separator, "pooling": "mean"}], f"lists written with {separator!r}"
        return "id", [{}], "text"
    if column.leading_zeros:
        return "id", [{}], "numbers with zeros in front are names"
    if column.whole and (reason := _is_name(column, power)):
        return "id", [{"dtype": "string" if column.dtype in ("UInt64", "Int128", "UInt128") else "integer"}], reason
    return _number(column, power)


def _list(column: ColumnProfile) -> tuple[str, list[dict[str, Any]], str]:
    lengths = column.quantiles or {}
    if column.inner == "number" and lengths[0.0] == lengths[1.0] > 0:
        return "vector", [{"size": int(lengths[0.0])}], "lists of numbers, all of one length"
    if column.inner == "number" and not column.whole:
        return "drop", [], "lists of numbers of different lengths: no operator reads them"
    dtype = {"integer": "integer", "number": "integer", "boolean": "boolean"}.get(str(column.inner), "string")
    options: dict[str, Any] = {"dtype": dtype, "pooling": "mean"}
    if lengths[0.99] > LONGEST_LIST:
        options["max_length"] = LONGEST_LIST
    return "ids", [options], f"lists, {lengths[0.5]:g} long in the middle, at most {lengths[1.0]:g}"


def _microseconds(column: ColumnProfile) -> float:
    """What one step of a column of times is."""
    unit = unit_of(column)
    return {"s": 1_000_000, "ms": 1_000, "us": 1, "ns": 0.001}[unit] if unit else 1


def _times(column: ColumnProfile, values: pl.Series) -> pl.Series:
    return column.numbers(values) * _microseconds(column)


def _other_time(column: ColumnProfile, values: pl.Series, events: pl.Series) -> tuple[str, list[dict[str, Any]], str]:
    """A time beside that of the event: how long ago it was, if it was before the event."""
    later = float((_times(column, values) > events).mean() or 0.0)  # type: ignore[arg-type]
    if later > LATER:
        return "drop", [], f"later than the event in {later:.1%} of the rows: is it known before the event?"
    unit = unit_of(column)
    return "recency", [{"unit": unit} if unit else {}], "a time before the event"


def _time(column: ColumnProfile) -> tuple[str, list[dict[str, Any]], str]:
    unit = unit_of(column)
    quantiles = column.quantiles or {}
    span = (quantiles[1.0] - quantiles[0.0]) * _microseconds(column)
    parts = [("hour", span >= 4 * HOUR and column.dtype != "Date"), ("weekday", span >= 3 * DAY)]
    features = [{"part": part, **({"unit": unit} if unit else {})} for part, wanted in parts if wanted]
    if not features:
        return "drop", [], "times so close to each other have neither hours nor weekdays to learn from"
    return "time", features, "a time" if unit is None else f"a time in {unit}"


def _number(column: ColumnProfile, power: Power | None) -> tuple[str, list[dict[str, Any]], str]:
    if power is not None and (power.by_range or 0.0) - (power.by_size or 0.0) > GAIN:
        return "bucket", [{"quantiles": BUCKETS}], "a number; the label rate goes up and down with it"
    quantiles = column.quantiles or {}
    low, q01, middle, q99, high = (quantiles[share] for share in (0.0, 0.01, 0.5, 0.99, 1.0))
    options: dict[str, Any] = {}
    reason = "a number"
    if low >= 0 and q99 - middle > 5 * (middle - q01):
        options |= {"clip": [0, None], "log": 1}
        reason = "a number with a long tail"
    elif max(high - q99, q01 - low) > 10 * (q99 - q01) > 0:
        options["clip"] = [float(f"{q01:.6g}"), float(f"{q99:.6g}")]
        reason = "a number with outliers"
    options["standardise"] = True
    if column.missing:
        options["missing_flag"] = True
    return "number", [options], reason


def _is_written(column: ColumnProfile, values: pl.Series) -> bool:
    """Whether a text has many values, most of several words, and words that come again."""
    if column.kind != "text" or column.reading is not None or column.distinct < WRITTEN * column.values:
        return False
    words = values.drop_nulls().cast(pl.String).str.split(" ")
    if (words.list.len() > 1).mean() < WRITTEN:  # type: ignore[operator]
        return False
    every = words.explode(empty_as_null=False)
    return 2 * every.n_unique() <= len(every)


def _distinct_ngrams(values: pl.Series) -> int:
    """Of the sample: those of rows outside it are not known."""
    operator = Ngrams(NgramsFeature(name="text", column="text"))
    frame = values.alias("text").to_frame()
    return int(frame.select(operator.expressions(frame.schema)[0].explode().n_unique()).item())


def _unique(column: ColumnProfile) -> bool:
    if column.distinct < UNIQUE_SHARE * column.values or column.values < 20:
        return False
    text = column.kind == "text" and column.reading is None
    return text or (column.whole and (column.ascending or bool(_id_words(column.name))))


def _is_name(column: ColumnProfile, power: Power | None) -> str | None:
    """Why whole numbers are names and not sizes; None if they are sizes."""
    if _id_words(column.name):
        return "whole numbers, by its name ids"
    if column.distinct <= EmbeddingConfig().exact.max_values:
        return "few whole numbers"
    if power is not None and power.by_value - max(power.by_range or 0.0, power.by_size or 0.0) > GAIN:
        return "whole numbers that tell more one by one than by size"
    quantiles = column.quantiles or {}
    return "whole numbers too large to be sizes" if quantiles[0.5] > 2**31 else None


def _id_words(name: str) -> set[str]:
    words = words_of(name)
    return {word for word in words if word in ID_WORDS} | {
        word for word in words if word.endswith("id") and len(word) > 4
    }


def _separator(values: pl.Series) -> str | None:
    """What stands between the parts of a text, if the parts come again in other texts."""
    texts = values.drop_nulls().cast(pl.String)
    for separator in _SEPARATORS:
        with_it = texts.str.contains(separator, literal=True)
        if with_it.mean() < 0.2:  # type: ignore[operator]
            continue
        parts = texts.str.split(separator).explode(empty_as_null=False)
        if 2 * parts.n_unique() <= texts.n_unique():
            return separator
    return None


def _named(feature: dict[str, Any], column: str, taken: set[str]) -> dict[str, Any]:
    """The spec entry with a name that the spec takes and no other feature has."""
    base = re.sub(r"[^A-Za-z0-9_.-]", "_", column)
    base = f"{base}_{feature['part']}" if "part" in feature else base
    name, number = base, 2
    while name in taken:
        name, number = f"{base}_{number}", number + 1
    taken.add(name)
    return {"name": name, **({} if name == column else {"column": column}), **feature}


def _placed(
    column: ColumnProfile, operator: str, features: list[dict[str, Any]], reason: str, distinct: int, hashed: int
) -> Suggestion:
    entries = tuple({"type": operator, **feature} for feature in features)
    if operator in ("label", "drop", "number", "vector"):
        return Suggestion(column.name, operator, entries, reason)
    if operator == "time":
        values = sum(24 if feature["part"] == "hour" else 7 for feature in features)
        return Suggestion(column.name, operator, entries, reason, "exact", 1, values)
    if operator == "recency":
        buckets = RecencyFeature.model_fields["buckets"].default
        return Suggestion(column.name, operator, entries, reason, "exact", 1, buckets)
    values = BUCKETS if operator == "bucket" else distinct
    if values <= EmbeddingConfig().exact.max_values:
        return Suggestion(column.name, operator, entries, reason, "exact", 1, values)
    chunks = next((chunks for most, chunks in CHUNKS if values <= most), MOST_CHUNKS)
    hot = values >= max(HOT_VALUES, HOT_PART * hashed) and column.head_share >= HOT_HEAD
    return Suggestion(column.name, operator, entries, reason, "hot" if hot else "shared", chunks, values)


def _table(suggestions: list[Suggestion]) -> Table:
    shared = [item for item in suggestions if item.region in ("shared", "hot")]
    exact = sum(item.values for item in suggestions if item.region == "exact")
    rows = _round_up(max(LEAST_ROWS, sum(item.values for item in shared) / SHARED_IDS))
    hot = {item.features[0]["name"]: HOT_SLOTS for item in shared if item.region == "hot"}
    hot_rows = sum(HOT_SLOTS * item.chunks for item in shared if item.region == "hot")
    row = WIDTH * 4
    return Table(
        rows=rows,
        width=WIDTH,
        chunks={item.features[0]["name"]: item.chunks for item in shared if item.chunks > 1},
        hot=hot,
        max_values=EmbeddingConfig().exact.max_values,
        bytes=(rows + exact + hot_rows) * row + 4 * (exact + sum(hot.values())),
        collisionless_bytes=(exact + sum(item.values * item.chunks for item in shared)) * row,
    )


def _round_up(number: float) -> int:
    """Up to two digits.

    >>> [_round_up(x) for x in (1000, 1234.5, 98_765)]
    [1000, 1300, 99000]
    """
    scale = 10 ** (int(math.log10(number)) - 1)
    return int(math.ceil(number / scale - 1e-9) * scale)
