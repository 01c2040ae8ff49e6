"""The two logs that online evaluation reads, as tables: what was predicted, and what came of it.

Rows that cannot be used are left out and counted by reason; a log without a column it needs is an error.
"""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from features.errors import DataError
from features.fingerprint import fingerprint_expr
from features.frames import require_column

ROLES = ("champion", "challenger", "shadow")
"""A champion's and a challenger's predictions were used, each for its part of the traffic; a shadow's were not."""
STREAM = ("role", "model", "version")
"""What tells the predictions of one request apart."""
PREDICTION_LOG = {
    "request_id": pl.String,
    "model": pl.String,
    "version": pl.String,
    "role": pl.String,
    "probability": pl.Float64,
    "time": pl.Datetime("us"),
}
"""Columns of the prediction log; any other column is an input of the model, to be watched for drift."""
LABEL_LOG = {"request_id": pl.String, "label": pl.Int8, "time": pl.Datetime("us")}
"""Columns of the label log; others are not read."""
INPUT = "input:"
"""Stands before the name of an input once it is read."""
_ROW = r":\d+$"
"""What the server adds to the id of a request for each of its rows."""


def read_predictions(frame: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, int]]:
    """Checks rows of the prediction log.

    Args:
        frame: As of `PREDICTION_LOG`, in the order they were written; numbers may stand for texts.

    Returns:
        The rows that can be used: `place` (in `frame`), `key` (of the request id), `request` (of the id without
        a `:ROW` at its end, which the server adds for each row of a request), `time` (microseconds), the columns of
        `STREAM`, `probability` and the inputs (numbers and booleans as Float64, texts as String, others left out);
        and how many were left out, by reason.

    Raises:
        DataError: A column is missing, or the time is no time.
    """
    _require(frame, PREDICTION_LOG, "prediction log")
    probability = pl.col("probability").cast(pl.Float64, strict=False)
    texts = [pl.col(name).cast(pl.String, strict=False) for name in STREAM]
    reasons = {
        **_common_reasons(frame, "prediction log"),
        "without model, version or role": pl.any_horizontal(text.is_null() for text in texts),
        f"role none of {', '.join(ROLES)}": ~pl.col("role").cast(pl.String, strict=False).is_in(ROLES),
        "probability not between 0 and 1": ~probability.is_between(0, 1).fill_null(False),
    }
    request = fingerprint_expr(pl.col("request_id").cast(pl.String).str.replace(_ROW, ""))
    kept = [request.alias("request"), *texts, probability, *_inputs(frame)]
    return _usable(frame, reasons, kept)


def read_labels(frame: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, int]]:
    """Checks rows of the label log.

    Args:
        frame: As of `LABEL_LOG`, in the order they were written; a label may be a number or a boolean.

    Returns:
        The rows that can be used: `place` (in `frame`), `key` (of the request), `time` (microseconds), `label` in
        {0, 1} as Int8; and how many were left out, by reason.

    Raises:
        DataError: A column is missing, or the time is no time.
    """
    _require(frame, LABEL_LOG, "label log")
    label = pl.col("label").cast(pl.Float64, strict=False)
    reasons = {
        **_common_reasons(frame, "label log"),
        "label neither 0 nor 1": ~label.is_in([0.0, 1.0]).fill_null(False),
    }
    return _usable(frame, reasons, [label.cast(pl.Int8, strict=False)])


def _require(frame: pl.DataFrame, columns: Mapping[str, object], log: str) -> None:
    for name in columns:
        require_column(name, frame.schema, role=log)
    if not isinstance(frame.schema["time"], pl.Datetime):
        raise DataError(
            f"the time of the {log} is no time",
            field="time",
            found=frame.schema["time"],
            expected="Datetime in UTC",
            mend="write it as a timestamp",
        )


def _common_reasons(frame: pl.DataFrame, log: str) -> dict[str, pl.Expr]:
    kind = frame.schema["request_id"]
    if kind != pl.String and not kind.is_integer():
        raise DataError(f"the request id of the {log} is neither text nor an integer", field="request_id", found=kind)
    empty = pl.col("request_id").is_null()
    if kind == pl.String:
        empty |= pl.col("request_id") == ""
    return {"without request id": empty, "without time": pl.col("time").is_null()}


def _usable(
    frame: pl.DataFrame, reasons: Mapping[str, pl.Expr], kept: list[pl.Expr]
) -> tuple[pl.DataFrame, dict[str, int]]:
    """The rows that no reason speaks against, and the first reason of each other row."""
    reason = pl.coalesce(
        pl.when(what.fill_null(True)).then(pl.lit(place, dtype=pl.UInt8)) for place, what in enumerate(reasons.values())
    ).fill_null(len(reasons))
    key = fingerprint_expr(pl.col("request_id").cast(pl.String))
    # A time with a zone counts the same microseconds since 1970 in UTC as one without.
    time = pl.col("time").dt.timestamp("us")
    rows = frame.select(
        pl.int_range(pl.len(), dtype=pl.Int64).alias("place"),
        key.alias("key"),
        time.alias("time"),
        *kept,
        reason.alias("__reason__"),
    )
    counts = dict(rows["__reason__"].value_counts().iter_rows())
    left_out = {name: counts[place] for place, name in enumerate(reasons) if place in counts}
    return rows.filter(pl.col("__reason__") == len(reasons)).drop("__reason__"), left_out


def _inputs(frame: pl.DataFrame) -> list[pl.Expr]:
    inputs = []
    for name, kind in frame.schema.items():
        if name in PREDICTION_LOG:
            continue
        if kind.is_numeric() or kind == pl.Boolean:
            # What is no finite number is as good as missing.
            number = pl.col(name).cast(pl.Float64)
            inputs.append(pl.when(number.is_finite()).then(number).alias(INPUT + name))
        elif kind == pl.String or isinstance(kind, pl.Categorical | pl.Enum):
            inputs.append(pl.col(name).cast(pl.String).alias(INPUT + name))
    return inputs
