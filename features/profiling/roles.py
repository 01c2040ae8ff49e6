"""Which columns of a profile are label, time and group: by what they hold, then by their name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from features.errors import DataError, list_names
from features.frames import require_column
from features.ops.text import FALSE, TRUE
from features.profiling.profile import ColumnProfile, Profile
from features.spec import TimeUnit

LABEL_NAMES = (
    *("label", "click", "clicked", "is_click", "target", "y", "conversion", "converted", "purchase", "purchased"),
    *("bought", "buy", "liked", "like", "response", "outcome"),
)
"""Names of labels, the likeliest first; `is_*` comes after them."""
TIME_WORDS = frozenset(("time", "timestamp", "ts", "at", "date", "datetime"))
GROUP_WORDS = ("user", "uid", "userid", "customer", "visitor", "member", "account", "session")
_ONE, _ZERO = {"1", "1.0", *TRUE}, {"0", "0.0", *FALSE}
_UNITS: dict[TimeUnit, float] = {"s": 1, "ms": 1e3, "us": 1e6, "ns": 1e9}
_FIRST_SECOND, _LAST_SECOND = 631_152_000, 4_102_444_800  # 1990 to 2100


@dataclass(frozen=True)
class Roles:
    """The columns that are more than features.

    Attributes:
        label: Column of 0 and 1, or None if none was found.
        candidates: Columns that could be the label, the likeliest first.
        time: Time of the event, there in every row, or None.
        time_unit: Of integer times.
        group: Key of a user or the like, or None.
    """

    label: str | None
    candidates: tuple[str, ...]
    time: str | None
    time_unit: TimeUnit | None
    group: str | None


def find_roles(profile: Profile, *, label: str | None = None, time: str | None = None) -> Roles:
    """Finds label, time and group.

    A label is found by its name, or because it is the only column of 0 and 1; of several without a telling name none
    is chosen.

    Args:
        profile: Of the source.
        label: The label's column, if it is known.
        time: The time's column, if it is known.

    Raises:
        DataError: A given column is not there, or cannot be what it is said to be.
    """
    columns = {column.name: column for column in profile.columns}
    for name, role in ((label, "label"), (time, "time")):
        if name is not None:
            require_column(name, columns, role=role)
    candidates = _label_candidates(profile.columns)
    if label is not None:
        _check_label(columns[label])
    elif candidates and (len(candidates) == 1 or _label_rank(candidates[0]) < _label_rank(candidates[1])):
        label = candidates[0]
    if time is not None:
        _check_time(columns[time])
    else:
        times = [column for column in profile.columns if _is_time(column)]
        # The time of the event is more often called so than by another word.
        time = min(times, key=lambda column: not TIME_WORDS & set(words_of(column.name))).name if times else None
    groups = [column for column in profile.columns if column.name not in (label, time) and _is_group(column)]
    return Roles(
        label=label,
        candidates=tuple(candidates),
        time=time,
        time_unit=None if time is None else unit_of(columns[time]),
        group=min(groups, key=lambda column: _group_rank(column.name)).name if groups else None,
    )


def words_of(name: str) -> list[str]:
    """Returns the words of a column's name.

    Example:
        >>> words_of("userId"), words_of("event-time_2")
        (['user', 'id'], ['event', 'time', '2'])
    """
    return re.findall(r"[a-z]+|[0-9]+", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower())


def unit_of(column: ColumnProfile) -> TimeUnit | None:
    """Returns the unit in which a column of whole numbers, or their text, counts times from 1990 to 2100, or None."""
    if column.quantiles is None or not ((column.kind == "integer") or column.reading == "integer"):
        return None
    low, high = column.quantiles[0.0], column.quantiles[1.0]
    for unit, steps in _UNITS.items():
        if _FIRST_SECOND * steps <= low and high <= _LAST_SECOND * steps:
            return unit
    return None


def is_time(column: ColumnProfile) -> bool:
    """Whether a column holds times: by its type, its text, or as integers with the name of a time."""
    if column.kind == "time" or column.reading == "time":
        return True
    return unit_of(column) is not None and bool(TIME_WORDS & set(words_of(column.name)))


def _is_time(column: ColumnProfile) -> bool:
    return is_time(column) and not column.missing and column.distinct > 1


def _check_time(column: ColumnProfile) -> None:
    if column.kind != "time" and column.reading != "time" and unit_of(column) is None:
        raise DataError(
            "holds no times",
            field=column.name,
            found=_described(column),
            expected="dates, times, ISO text, or integers that count s, ms, us or ns since 1970",
            mend="name another column with --time, or leave it out",
        )
    _check_no_gap(column, "time", "a time")


def _label_candidates(columns: Sequence[ColumnProfile]) -> list[str]:
    found = [column.name for column in columns if not column.missing and _classes(column) == {0, 1}]
    return sorted(found, key=_label_rank)


def _label_rank(name: str) -> int:
    lower = name.lower()
    if lower in LABEL_NAMES:
        return LABEL_NAMES.index(lower)
    return len(LABEL_NAMES) + (0 if lower.startswith("is_") else 1)


def _classes(column: ColumnProfile) -> set[int] | None:
    """The classes of a label; None if some value is none."""
    values = {item.value for item in column.top}
    if column.kind == "list" or not column.exact or column.distinct != len(values) or not values <= _ONE | _ZERO:
        return None
    return {int(value in _ONE) for value in values}


def _check_label(column: ColumnProfile) -> None:
    classes = _classes(column)
    if classes is None or not classes:
        raise DataError(
            "label has other values than 0 and 1",
            field=column.name,
            found=_described(column),
            expected="two values: 0 and 1, or false and true",
            mend="turn it into 0 and 1, or name another column with --label",
        )
    if len(classes) == 1:
        raise DataError(
            "label has one class only, so that there is nothing to learn",
            field=column.name,
            found=f"{column.top[0].value} in {column.values} rows",
            expected="rows of both classes",
            mend="give more rows, or name another column with --label",
        )
    _check_no_gap(column, "label", "0 or 1")


def _check_no_gap(column: ColumnProfile, role: str, value: str) -> None:
    if column.missing:
        raise DataError(
            f"{role} is missing in {column.missing} of {column.rows} rows",
            field=column.name,
            expected=f"{value} in every row",
            mend=f"drop these rows, or name another column with --{role}",
        )


def _described(column: ColumnProfile) -> str:
    about = "exactly" if column.exact else "about"
    values = list_names([item.value for item in column.top], limit=5)
    return f"{column.dtype}, {about} {column.distinct:,} values" + (f": {values}" if values else "")


def _is_group(column: ColumnProfile) -> bool:
    if column.missing or column.kind not in ("integer", "text") or _group_rank(column.name) == len(GROUP_WORDS):
        return False
    return 1 < column.distinct < 0.9 * column.rows


def _group_rank(name: str) -> int:
    """Place among the words for a group; a name has at most `id` beside the word."""
    words = set(words_of(name)) - {"id", "key", "hash"}
    return GROUP_WORDS.index(next(iter(words))) if len(words) == 1 and words <= set(GROUP_WORDS) else len(GROUP_WORDS)
