"""A bandit log in a file becomes arrays: its columns found, its candidates listed, its bad rows refused or counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from features.errors import ConfigError, DataError, list_names
from features.frames import require_column, schema_of
from features.reading.sources import scan
from pipelines.raw_rows import pieces
from recsys.evaluation.off_policy import BanditLog, find_problems
from recsys.evaluation.off_policy.log import raise_if_any

_PIECE = 65_536


@dataclass(frozen=True)
class LogColumns:
    """What the columns of a log are called."""

    action: str = "item_id"
    """What was shown."""
    reward: str | None = None
    """What came of it, 0 to 1; the label of the model when left out."""
    propensity: str = "propensity_score"
    """The chance the logging policy had to show it, at this position."""
    position: str | None = None
    """Where it was shown; `position` when left out and there is one, the empty text for none."""
    group: str | None = None
    """Rows that belong together, such as those of a user: drawn together and in one fold."""


def read_log(source: str, columns: LogColumns, wanted: Sequence[str] | None) -> tuple[pl.DataFrame, LogColumns]:
    """The log's rows with the columns that are needed (all, if none are named), and what its columns are called."""
    frame = scan(source)
    schema = schema_of(frame)
    position = ("position" if "position" in schema else "") if columns.position is None else columns.position
    columns = replace(columns, position=position or None)
    roles = {role: name for role, name in asdict(columns).items() if name is not None}
    for role, name in roles.items():
        require_column(name, schema, role=role)
    if wanted is not None:
        needed = dict.fromkeys([*roles.values(), *(name for name in wanted if name in schema)])
        frame = frame.select(*needed)
    rows = list(pieces(frame, _PIECE, source))
    if not sum(map(len, rows)):
        raise DataError("there is no row", field=source, mend="give a log with at least one row")
    log = pl.concat(rows)
    if columns.group is not None and (lacking := log[columns.group].null_count()):
        raise DataError(
            "rows have no group", field=columns.group, found=f"null in {lacking:,} rows", mend="give each row a group"
        )
    return log, columns


def candidates_of(frame: pl.DataFrame, columns: LogColumns, path: str | None, features: Sequence[str]) -> pl.DataFrame:
    """A row an action with the columns that change with it, the action's first; in the order of the actions."""
    action = columns.action
    if path is None:
        table = _candidates_of_log(frame, columns, features)
    else:
        there = scan(path)
        schema = schema_of(there)
        require_column(action, schema, role="action")
        chosen = [name for name in features if name in schema and name != action]
        table = pl.concat(list(pieces(there.select(action, *chosen), _PIECE, path))).drop_nulls(action)
        twice = table.filter(pl.col(action).is_duplicated())
        if twice.height:
            raise DataError(
                "action has several rows", field=path, found=twice[action][0], mend="keep one row an action"
            )
    if not any(name in features for name in table.columns):
        raise ConfigError(
            "the model reads nothing that changes with the action",
            field=action,
            found=f"features from {list_names(features)}",
            mend="name the action's column with --action, or its features with --candidates",
        )
    if table.height < 2:
        raise DataError("one action leaves nothing to choose", field=action, found=f"{table.height} candidates")
    return table.sort(action)


def _candidates_of_log(frame: pl.DataFrame, columns: LogColumns, features: Sequence[str]) -> pl.DataFrame:
    action = columns.action
    roles = asdict(columns).values()
    others = [name for name in features if name in frame.columns and name not in roles]
    shown = frame.drop_nulls(action).group_by(action)
    values = shown.agg(pl.col(name).n_unique() for name in others)
    fixed = [name for name in others if values[name].max() == 1 and frame[name].n_unique() > 1]
    return shown.agg(pl.col(name).first() for name in fixed)


def every_candidate(rows: pl.DataFrame, table: pl.DataFrame, features: Sequence[str]) -> pl.DataFrame:
    """Each of N rows with each of K candidates in place of what was shown: [N * K], a row's candidates together."""
    index = np.arange(len(rows) * len(table))
    own = [name for name in features if name in rows.columns and name not in table.columns]
    parts = [rows.select(own)[index // len(table)]] if own else []
    return pl.concat([*parts, table[index % len(table)]], how="horizontal")


def usable(
    frame: pl.DataFrame, columns: LogColumns, table: pl.DataFrame, skip_bad: bool
) -> tuple[pl.DataFrame, BanditLog, list[Any], dict[str, int]]:
    """The rows that can be used, as a frame and as a log; the positions; how many rows were left out, by reason."""

    def numbers(name: str) -> np.ndarray:
        return frame[name].cast(pl.Float64, strict=False).fill_null(float("nan")).to_numpy()

    def places(name: str, values: pl.Series) -> np.ndarray:
        known = pl.DataFrame({"value": values.cast(pl.String), "place": np.arange(len(values), dtype=np.float64)})
        rows = frame.select(pl.col(name).cast(pl.String).alias("value")).join(
            known, on="value", how="left", maintain_order="left"
        )
        return rows["place"].fill_null(float("nan")).to_numpy()

    assert columns.reward is not None
    positions: list[Any] = []
    place = np.zeros(len(frame))
    if columns.position is not None:
        # A column of text is ordered as numbers where it holds numbers: 10 comes after 9.
        values = frame[columns.position].drop_nulls().unique()
        values = values.filter(values.is_not_nan()) if values.dtype.is_float() else values
        number = values.cast(pl.Float64, strict=False)
        values = values.gather((values if number.null_count() else number).arg_sort())
        positions, place = values.to_list(), places(columns.position, values)
    given = {
        "action": places(columns.action, table[columns.action]),
        "reward": numbers(columns.reward),
        "propensity": numbers(columns.propensity),
        "position": place,
    }
    count = max(1, len(positions))
    problems = find_problems(given, len(table), count)
    if not skip_bad:
        raise_if_any(problems, {role: name for role, name in asdict(columns).items() if name is not None})
    bad = np.any([problem.rows for problem in problems], axis=0) if problems else np.zeros(len(frame), dtype=bool)
    if bad.all():
        raise_if_any(problems)
    kept = {name: column[~bad] for name, column in given.items()}
    log = BanditLog(
        kept["action"],
        kept["reward"],
        kept["propensity"],
        actions=len(table),
        position=kept["position"],
        positions=count,
    )
    excluded = {problem.what: int(problem.rows.sum()) for problem in problems}
    return frame.filter(~bad), log, positions, excluded
