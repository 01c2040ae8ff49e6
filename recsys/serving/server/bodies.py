"""Bodies of requests: JSON or Arrow to rows with every column the model reads, absent ones null and counted."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
import polars as pl

from features.errors import DataError, did_you_mean, list_names
from recsys.serving.server import arrow
from recsys.serving.server.refusal import Refusal
from recsys.serving.server.served import ServedModel
from recsys.serving.server.settings import ServerSettings

JSON = "application/json"
REQUEST = "request"
"""Key in the metadata of an Arrow stream of candidates; its value is the JSON body without the candidates."""
_RANK_KEYS = ("user", "candidates", "k", "by")


@dataclass
class Fields:
    """What the rows of a request lacked and had too much of."""

    missing: Counter[str] = field(default_factory=Counter)
    """By column: rows without it."""
    unknown: int = 0
    """Fields that the model does not read."""


@dataclass(frozen=True)
class RankRequest:
    """One user, many candidates.

    Attributes:
        user: Columns that all candidates share.
        candidates: [B] the other columns.
        k: How many to give back.
        by: The output that orders them.
    """

    user: dict[str, Any]
    candidates: list[dict[str, Any]]
    k: int
    by: int


class BodyReader:
    """Reads bodies for one server.

    Args:
        settings: Its limits.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._max_rows, self._max_list = settings.max_rows, settings.max_list
        self._refuse_unknown = settings.unknown_fields == "refuse"

    def score_rows(self, body: bytes, model: ServedModel, fields: Fields) -> list[dict[str, Any]]:
        """The rows of `{"rows": [...]}`.

        Raises:
            Refusal: It is not that.
        """
        data = _object(body, ("rows",), ("rows",))
        return self._rows(data["rows"], "rows", model, fields)

    def score_frame(self, body: bytes, model: ServedModel, fields: Fields) -> pl.DataFrame:
        """The rows of an Arrow IPC stream.

        Raises:
            Refusal: It is no such stream, or has too many rows, or columns it may not have.
        """
        stream = arrow.read_stream(body, model.types, self._max_rows, self._max_list)
        frame = stream.frame
        self._check_unknown(stream.others, model, fields, frame.height)
        absent = [column for column in model.types if column not in frame.columns]
        for column in absent:
            fields.missing[column] += frame.height
        return frame.with_columns(pl.lit(None).alias(column) for column in absent)

    def rank_rows(self, body: bytes, model: ServedModel, fields: Fields) -> RankRequest:
        """The user and candidates of `{"user": {...}, "candidates": [...], "k": 10, "by": "p_click"}`.

        Raises:
            Refusal: It is not that.
        """
        data = _object(body, _RANK_KEYS, ("candidates",))
        rows = data["candidates"]
        self._check_rows(rows, "candidates")
        return self._rank(data, rows, set().union(*rows), model, fields)

    def rank_frame(self, body: bytes, model: ServedModel, fields: Fields) -> RankRequest:
        """The candidates of an Arrow IPC stream, and from its schema's metadata what is asked about them.

        Raises:
            Refusal: It is no such stream, or has too many rows, or columns it may not have; or its metadata is wrong.
        """
        stream = arrow.read_stream(body, model.types, self._max_rows, self._max_list)
        told = stream.metadata.get(REQUEST.encode(), b"{}")
        data = _object(told, tuple(key for key in _RANK_KEYS if key != "candidates"), (), f"the metadata {REQUEST!r}")
        self._check_unknown(stream.others, model, fields, stream.frame.height)
        return self._rank(data, stream.rows(), set(stream.frame.columns), model, fields)

    def _rank(
        self, data: dict[str, Any], rows: list[dict[str, Any]], in_rows: set[str], model: ServedModel, fields: Fields
    ) -> RankRequest:
        """What is asked about candidates that have these columns."""
        user = data.get("user", {})
        if not isinstance(user, dict):
            raise _wrong("user", user, "an object of fields")
        by = data.get("by", model.outputs[0])
        if by not in model.outputs:
            raise _wrong("by", by, f"one of {list_names(model.outputs)}")
        k = data.get("k", self._max_rows)
        if type(k) is not int or k < 1:
            raise _wrong("k", k, "a whole number above 0")
        twice = sorted(in_rows.intersection(user).intersection(model.types))
        if twice:
            raise Refusal(422, "invalid_value", f"{twice[0]}: is given by the user and by a candidate", field=twice[0])
        here = [column for column in model.types if column in in_rows]
        candidates = [self._filled(row, here, model, fields) for row in rows]
        there = [column for column in model.types if column not in in_rows]
        shared = self._filled(user, there, model, fields, weight=len(rows))
        return RankRequest(shared, candidates, k, model.outputs.index(by))

    def _rows(self, rows: Any, name: str, model: ServedModel, fields: Fields) -> list[dict[str, Any]]:
        self._check_rows(rows, name)
        columns = model.nulls.keys()
        for place, row in enumerate(rows):
            if row.keys() != columns:
                rows[place] = self._filled(row, columns, model, fields)
            elif model.lists:
                self._check_lists(row, model)
        return list(rows)

    def _filled(
        self, row: dict[str, Any], columns: Any, model: ServedModel, fields: Fields, *, weight: int = 1
    ) -> dict[str, Any]:
        """The row with these columns and no others, absent ones null."""
        filled = {}
        for column in columns:
            if column in row:
                filled[column] = row[column]
            else:
                filled[column] = None
                fields.missing[column] += weight
        self._check_unknown([name for name in row if name not in model.types], model, fields, 1)
        self._check_lists(filled, model)
        return filled

    def _check_rows(self, rows: Any, name: str) -> None:
        if not isinstance(rows, list):
            raise _wrong(name, rows, "a list of objects")
        if len(rows) > self._max_rows:
            raise arrow.too_many(name, len(rows), self._max_rows)
        for place, row in enumerate(rows):
            if type(row) is not dict:
                raise _wrong(f"{name}.{place}", row, "an object of fields")

    def _check_unknown(self, names: list[str], model: ServedModel, fields: Fields, weight: int) -> None:
        if not names:
            return
        fields.unknown += len(names) * weight
        if self._refuse_unknown:
            mend = did_you_mean(names[0], model.types, "leave it out")
            error = DataError("the model reads no such field", field=names[0], mend=mend)
            raise Refusal(422, "unknown_field", str(error), field=names[0])

    def _check_lists(self, row: Mapping[str, Any], model: ServedModel) -> None:
        for column in model.lists:
            value = row.get(column)
            if type(value) is list:
                arrow.require_length(column, len(value), self._max_list)


def _object(body: bytes, known: tuple[str, ...], required: tuple[str, ...], name: str = "the body") -> dict[str, Any]:
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        hint = "; NaN and Infinity are no JSON: write null" if b"NaN" in body or b"Infinity" in body else ""
        raise _malformed(f"{name} is no JSON: {error}{hint}") from None
    if not isinstance(data, dict):
        raise _malformed(f"{name} is no JSON object. Found: {_kind(data)}")
    for key in data:
        if key not in known:
            mend = did_you_mean(key, known)
            told = f"{key}: unknown key. Expected: {list_names(known)}{f'. Mend: {mend}' if mend else ''}"
            raise Refusal(422, "unknown_key", told, field=key)
    for key in required:
        if key not in data:
            raise Refusal(422, "missing_key", f"{key}: required key is missing", field=key)
    return data


def _malformed(message: str) -> Refusal:
    return Refusal(400, "malformed", message)


def _wrong(name: str, found: Any, expected: str) -> Refusal:
    return Refusal(
        422, "invalid_value", f"{name}: wrong value. Found: {_kind(found)}. Expected: {expected}", field=name
    )


def _kind(value: Any) -> str:
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value)
    return "a text" if isinstance(value, str) else "a list" if isinstance(value, list) else "an object"
