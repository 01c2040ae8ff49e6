"""The quality gate: rows that cannot be used stop the run, or go into quarantine with their file, row and reason."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from pydantic import Field, model_validator

from features.errors import ConfigError, DataError, list_names
from features.files import cannot_write
from features.fingerprint import fingerprint_expr
from features.frames import FILE_COLUMN, PLACE_COLUMN, SPLIT_COLUMN, first_line, require_column, schema_of
from features.ops.base import Operator, Problem
from features.ops.time import microseconds_expr
from features.pipeline import FeaturePipeline
from features.storage.drift import DriftConfig
from features.storage.splits import RandomSplit, Split, assign_split, split_problems
from features.times import IsoTime, microseconds_of
from features.validation import Strict

REASON_COLUMN = "__reason__"
"""Why a row is in quarantine."""
DUPLICATE_COLUMN = "__duplicate__"
CHANGED_COLUMN = "__changed__"
"""When the file that a row comes from was changed last, in microseconds since 1970-01-01 UTC."""


class QualityConfig(Strict):
    """What becomes of rows that cannot be used."""

    mode: Literal["strict", "quarantine"] = "strict"
    """strict: the first is an error. quarantine: they are set aside with file, row and reason, and counted."""
    max_bad_share: float = Field(0.01, ge=0, le=1)
    """A larger share of rows, or of bytes in files that cannot be read, in quarantine fails the run."""
    key: list[str] | None = Field(None, min_length=1)
    """Columns that tell events apart: of several rows with one key the first is kept. 8 bytes of memory a row."""
    since: IsoTime | None = None
    """No event is older."""
    now: IsoTime | Literal["file"] | None = None
    """No event is younger than this time, or than the last change of the file it is in."""
    drift: DriftConfig = DriftConfig()
    """From where on a change of the data is said."""

    @model_validator(mode="after")
    def _check_times(self) -> QualityConfig:
        for text in (self.since, self.now):
            if text not in (None, "file"):
                microseconds_of(str(text))
        return self

    def rules(self) -> dict[str, Any] | None:
        """Returns what decides which rows are kept, as plain JSON; None for the default."""
        rules = self.model_dump(mode="json", include={"mode", "key", "since", "now"})
        return None if rules == QualityConfig().model_dump(mode="json", include=set(rules)) else rules


STRICT = QualityConfig()
"""No quarantine and no rules."""


@dataclasses.dataclass(frozen=True)
class Checked:
    """Events divided into those that are kept, dropped and quarantined, lazily.

    Attributes:
        kept: Rows with their split.
        bad: Rows with their reason, all their columns, and file and place as far as known.
        counts: Rows of each split (None: of no split) that are kept.
        reasons: Rows of each reason.
        keys: uint64 hashes of the keys of the kept rows, if there is a key.
    """

    kept: pl.LazyFrame
    bad: pl.LazyFrame
    counts: dict[str | None, int]
    reasons: dict[str, int]
    keys: np.ndarray | None = None

    @property
    def rows_read(self) -> int:
        """Kept, dropped and quarantined."""
        return sum(self.counts.values()) + sum(self.reasons.values())


def check(
    events: pl.LazyFrame,
    split: Split,
    pipeline: FeaturePipeline,
    quality: QualityConfig,
    *,
    seen: np.ndarray | None = None,
    salt: int | None = None,
    first: int = 0,
) -> Checked:
    """Divides events, and finds those that cannot be used.

    Args:
        events: One row an event.
        split: How to divide them.
        pipeline: Its operators say which values they cannot take; it need not be fitted.
        quality: The rules.
        seen: Sorted hashes of keys that rows elsewhere have.
        salt: Of a random split: divides by this number and the row's place in its file.
        first: The number of the first row, where `events` is a part of all.

    Raises:
        DataError: A column is missing; in strict mode also for rows that break a rule of `quality`. A value that
            an operator cannot take is no error yet in strict mode: encoding will raise it.
        ConfigError: A rule needs a time that the spec does not name.
    """
    spec, strict = pipeline.spec, quality.mode == "strict"
    flagged, problems, keys = _flag(events, split, pipeline, quality, seen, salt, first)
    good = _good(flagged)
    quarantined = flagged.filter(pl.col(REASON_COLUMN).is_not_null())
    if strict or split.by_row:
        found = _count(flagged, [REASON_COLUMN, SPLIT_COLUMN])
        reasons: dict[str, int] = {}
        for (reason, _), count in found.items():
            if reason is not None:
                reasons[reason] = reasons.get(reason, 0) + count
        counts = {name: count for (reason, name), count in found.items() if reason is None}
    else:
        reasons = {reason: count for (reason,), count in _count(quarantined, [REASON_COLUMN]).items() if reason}
        good = assign_split(good, split, spec)
        counts = {name: count for (name,), count in _count(good, [SPLIT_COLUMN]).items()}
    if strict and reasons:
        raise _error(flagged, problems, quality, reasons)
    return Checked(good.filter(pl.col(SPLIT_COLUMN).is_not_null()), quarantined, counts, reasons, keys)


def keep_all(
    events: pl.LazyFrame, split: Split, pipeline: FeaturePipeline, quality: QualityConfig
) -> pl.LazyFrame | None:
    """Returns all events with their split where no value decides whether a row is kept and where: no look is needed.

    So it is with a random split in strict mode without rules; None otherwise. Arguments as of `check`.
    """
    if quality.mode != "strict" or quality.key is not None or not isinstance(split, RandomSplit):
        return None
    flagged, problems, _ = _flag(events, split, pipeline, quality, None, None, 0)
    return None if problems else _good(flagged)


def kept_rows(
    events: pl.LazyFrame, split: Split, pipeline: FeaturePipeline, quality: QualityConfig, *, first: int = 0
) -> pl.LazyFrame:
    """Returns the rows that `check` keeps, without counting, for a split by row and rules without a key.

    Args:
        events: A part of the events, which `check` has found good enough.
        split: How to divide them.
        pipeline: Its operators say which values they cannot take.
        quality: The rules.
        first: The number of the first row.
    """
    flagged, _, _ = _flag(events, split, pipeline, quality, None, None, first)
    return _good(flagged).filter(pl.col(SPLIT_COLUMN).is_not_null())


def problems_of(pipeline: FeaturePipeline, schema: pl.Schema, *, labels: bool = True) -> list[Problem]:
    """Returns the tests for values that the operators, or columns that are no features, cannot take.

    Of derived columns the inputs are looked at; what an expression makes of them is an error when it is encoded.

    Args:
        pipeline: It need not be fitted.
        schema: The columns there are.
        labels: False for rows to be scored: label, weight, group, time and reference are not looked at.

    Raises:
        DataError: A column is missing or of a type that no value of it can be taken.
    """
    problems = pipeline.input_problems(schema)
    side_operators = pipeline.side_operators() if labels else {}
    sides = [(role, item) for role, items in side_operators.items() for item in items]
    for role, operator in [*((None, item) for item in pipeline.operators.values()), *sides]:
        if isinstance(operator, Operator) and not set(operator.columns) & set(pipeline.spec.derive):
            for column in operator.columns:
                require_column(column, schema, role=role)
            problems += operator.problems(schema)
    return problems


def first_reason(problems: list[Problem]) -> pl.Expr:
    """Returns why a row cannot be used, after the first test that it fails; null if it fails none."""
    nothing = pl.lit(None, dtype=pl.String)
    cases = [pl.when(problem.bad).then(pl.lit(_reason(problem))).otherwise(None) for problem in problems]
    return pl.coalesce(*cases, nothing)


def check_share(rows: int, quarantined: dict[str, int], quality: QualityConfig, *, what: str = "rows") -> None:
    """Refuses a run of which too much is in quarantine.

    Args:
        rows: How many were read.
        quarantined: How many are in quarantine, by reason.
        quality: Holds the limit.
        what: The unit: rows, or bytes in files.

    Raises:
        DataError: More than the limit.
    """
    bad = sum(quarantined.values())
    if bad > quality.max_bad_share * rows:
        worst = sorted(quarantined.items(), key=lambda item: -item[1])
        raise DataError(
            f"too many {what} are in quarantine",
            field="data.quality.max_bad_share",
            found=f"{bad:,} of {rows:,} {what} ({bad / rows:.2%}): "
            + list_names((f"{count:,} {reason}" for reason, count in worst), limit=5),
            expected=f"at most {quality.max_bad_share:.2%}",
            mend="look at the quarantine, mend the files or raise the limit",
        )


def write_quarantine(bad: pl.LazyFrame, path: Path) -> None:
    """Writes rows in quarantine as Parquet: `__file__`, `__place__` (the row in it, from 0), `__reason__`, the row.

    Raises:
        ArtifactError: It cannot be written.
    """
    names = schema_of(bad).names()
    first = [name for name in (FILE_COLUMN, PLACE_COLUMN, REASON_COLUMN) if name in names]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        rest = [name for name in names if name not in (*first, SPLIT_COLUMN, CHANGED_COLUMN)]
        bad.select(*first, *rest).sink_parquet(path, maintain_order=True)
    except OSError as error:
        raise cannot_write(path, error) from error


def _flag(
    events: pl.LazyFrame,
    split: Split,
    pipeline: FeaturePipeline,
    quality: QualityConfig,
    seen: np.ndarray | None,
    salt: int | None,
    first: int,
) -> tuple[pl.LazyFrame, list[Problem], np.ndarray | None]:
    """Rows with their reason, and with their split where it does not hang on which rows are good."""
    spec, strict = pipeline.spec, quality.mode == "strict"
    schema = schema_of(events)
    for column in (REASON_COLUMN, DUPLICATE_COLUMN):
        if column in schema:
            raise DataError("this name is taken: we give it to a column of our own", field=column, mend="rename it")
    problems = [*split_problems(split, spec, schema), *_rules(pipeline, quality, schema)]
    if not strict:
        problems += problems_of(pipeline, schema)
        events = events if PLACE_COLUMN in schema else events.with_row_index(PLACE_COLUMN, offset=first)
    bad = first_reason(problems)
    divided = events
    if strict or split.by_row:
        divided = assign_split(events, split, spec, salt=salt, first=first)
        # A row of no split is never looked at: its label and values may be anything.
        bad = pl.when(pl.col(SPLIT_COLUMN).is_not_null()).then(bad).otherwise(None)
    keys = None
    if quality.key is not None:
        divided, keys = _find_duplicates(divided, quality.key, bad, seen)
        twice = pl.when(pl.col(DUPLICATE_COLUMN)).then(pl.lit(_duplicate_of(quality.key))).otherwise(None)
        bad = pl.coalesce(bad, twice)
    return divided.with_columns(bad.alias(REASON_COLUMN)).drop(DUPLICATE_COLUMN, strict=False), problems, keys


def _good(flagged: pl.LazyFrame) -> pl.LazyFrame:
    return flagged.filter(pl.col(REASON_COLUMN).is_null()).drop(REASON_COLUMN)


def _rules(pipeline: FeaturePipeline, quality: QualityConfig, schema: pl.Schema) -> list[Problem]:
    """Tests for times that are too old or too young."""
    bounds = [("since", quality.since), ("now", quality.now)]
    problems = []
    for name, text in bounds:
        if text is None:
            continue
        column = pipeline.spec.time
        if column is None:
            raise ConfigError("the spec names no time", field=f"data.quality.{name}", mend="name spec.time")
        if text == "file" and CHANGED_COLUMN not in schema:
            raise ConfigError(
                "these events come from no file", field="data.quality.now", found=text, expected="a time in UTC"
            )
        limit = pl.col(CHANGED_COLUMN) if text == "file" else pl.lit(microseconds_of(text))
        require_column(column, schema, role="time")
        time, _ = microseconds_expr(column, schema[column], pipeline.spec.time_unit)
        bad, what, expected = (
            (time < limit, "time is before data.quality.since", f"no earlier than {text}")
            if name == "since"
            else (time > limit, "time is in the future", f"no later than {text}")
        )
        problems.append(Problem(column, bad.fill_null(False), what, expected, "mend or drop the rows"))
    return problems


def _reason(problem: Problem) -> str:
    return f"{problem.column}: {problem.what}"


def _duplicate_of(key: list[str]) -> str:
    return f"{', '.join(key)}: key of an earlier row"


def _find_duplicates(
    frame: pl.LazyFrame, key: list[str], bad: pl.Expr, seen: np.ndarray | None
) -> tuple[pl.LazyFrame, np.ndarray]:
    """Marks good rows whose key a good row before them has; returns also the keys of the others, sorted."""
    schema = schema_of(frame)
    for column in key:
        require_column(column, schema, role="key")
    text = pl.concat_str([pl.col(column).cast(pl.String).fill_null("\0") for column in key], separator="\x1f")
    wanted = pl.col(SPLIT_COLUMN).is_not_null() if SPLIT_COLUMN in schema else pl.lit(True)
    hashed = fingerprint_expr(text).reinterpret(signed=False)
    rows = _collect(frame.select(hash=hashed, wanted=bad.is_null() & wanted))
    known = np.empty(0, np.uint64) if seen is None else seen
    rows = rows.with_columns(again=pl.Series(_isin_sorted(rows["hash"].to_numpy(), known)))
    first = pl.col("hash").is_first_distinct().over("wanted") & ~pl.col("again")
    rows = rows.select("hash", "wanted", first=first)
    kept = np.sort(rows.filter("wanted", "first")["hash"].to_numpy())
    marked = rows.select((pl.col("wanted") & ~pl.col("first")).alias(DUPLICATE_COLUMN))
    return pl.concat([frame, marked.lazy()], how="horizontal"), kept


def _isin_sorted(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    if not len(known):
        return np.zeros(len(values), dtype=bool)
    place = np.minimum(np.searchsorted(known, values), len(known) - 1)
    return known[place] == values


def _count(frame: pl.LazyFrame, by: list[str]) -> dict[tuple[Any, ...], int]:
    return {tuple(row[:-1]): row[-1] for row in _collect(frame.group_by(by).len()).iter_rows()}


def _collect(frame: pl.LazyFrame) -> pl.DataFrame:
    try:
        return frame.collect(engine="streaming")
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError("data cannot be read", found=first_line(error), mend="check the input files") from error


def _error(
    flagged: pl.LazyFrame, problems: list[Problem], quality: QualityConfig, reasons: dict[str, int]
) -> DataError:
    """The error of the first rule that is broken, with a sample."""
    for problem in problems:
        if count := reasons.get(_reason(problem)):
            rows = flagged.filter(pl.col(REASON_COLUMN) == _reason(problem))
            return problem.error(_collect(rows.select(problem.column).head(1)).item(), count)
    key = quality.key or []
    reason = _duplicate_of(key)
    row = _collect(flagged.filter(pl.col(REASON_COLUMN) == reason).select(key).head(1)).row(0)
    return DataError(
        f"key is not unique (in {reasons[reason]} rows)",
        field=", ".join(key),
        found=", ".join(map(repr, row)),
        expected="another key in every row",
        mend="drop the rows, or set data.quality.mode: quarantine",
    )
