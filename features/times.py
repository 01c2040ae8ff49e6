"""Times in configs: moments as ISO text in UTC, and lengths such as `1h`."""

from __future__ import annotations

import datetime
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

from features.errors import ConfigError
from features.ops.text import TIME_EXAMPLE, time_of

_EPOCH = datetime.datetime(1970, 1, 1)
_STEP = datetime.timedelta(microseconds=1)
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_MONDAY = 4 * 86_400 * 1_000_000
"""1970-01-05: weeks begin on a Monday."""


def _as_text(value: Any) -> Any:
    # YAML reads such a text as a datetime or a date by itself.
    if isinstance(value, datetime.datetime):
        value = value if value.tzinfo is None else value.astimezone(datetime.UTC).replace(tzinfo=None)
        return value.isoformat(sep=" ")
    if isinstance(value, datetime.date):
        return f"{value.isoformat()} 00:00:00"
    return f"{value} 00:00:00" if isinstance(value, str) and len(value) == 10 else value


def _as_length(value: Any) -> Any:
    # 0 is a length in any unit.
    return "0s" if value == 0 and not isinstance(value, bool) else value


def _checked(value: str) -> str:
    try:
        length_of(value)
    except ConfigError as error:
        raise ValueError(f"{error.what}, such as 30m: a number and s, m, h, d or w") from None
    return value


IsoTime = Annotated[str, BeforeValidator(_as_text)]
"""A time in UTC, such as `2024-01-02 03:04:05` or `2024-01-02`."""

Length = Annotated[str, BeforeValidator(_as_length), AfterValidator(_checked)]
"""A length of time, such as `30m`: a number and s, m, h, d or w."""


def microseconds_of(text: str) -> int:
    """Returns the microseconds since 1970-01-01 UTC of a time.

    Raises:
        ConfigError: It is none.

    Example:
        >>> microseconds_of("1970-01-01 00:00:01")
        1000000
    """
    time = time_of(text)
    if time is None:
        raise ConfigError("not a time", found=text, expected=f"such as {TIME_EXAMPLE}, in UTC")
    return (time - _EPOCH) // _STEP


def length_of(text: str, *, field: str | None = None) -> int:
    """Returns the microseconds of a length of time: a number and s, m, h, d or w.

    Raises:
        ConfigError: It is none.

    Example:
        >>> length_of("1h"), length_of("0s")
        (3600000000, 0)
    """
    match = re.fullmatch(r"(0|[1-9][0-9]{0,5})([smhdw])", text)
    if match is None:
        raise ConfigError(
            "is no length of time",
            field=field,
            found=repr(text),
            expected="a number and s, m, h, d or w, such as 30m",
        )
    return int(match[1]) * _UNITS[match[2]] * 1_000_000


def origin_of(length: str) -> int:
    """Returns the microseconds since 1970-01-01 from which periods of a length are counted: weeks begin on Mondays.

    Example:
        >>> origin_of("1d"), origin_of("1w") // 86_400_000_000
        (0, 4)
    """
    return _MONDAY if length.endswith("w") else 0
