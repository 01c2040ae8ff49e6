"""Moments in configs: ISO text in UTC."""

from __future__ import annotations

import datetime
from typing import Annotated, Any

from pydantic import BeforeValidator

from features.errors import ConfigError
from features.ops.text import TIME_EXAMPLE, time_of

_EPOCH = datetime.datetime(1970, 1, 1)
_STEP = datetime.timedelta(microseconds=1)


def _as_text(value: Any) -> Any:
    # YAML reads such a text as a datetime or a date by itself.
    if isinstance(value, datetime.datetime):
        value = value if value.tzinfo is None else value.astimezone(datetime.UTC).replace(tzinfo=None)
        return value.isoformat(sep=" ")
    if isinstance(value, datetime.date):
        return f"{value.isoformat()} 00:00:00"
    return f"{value} 00:00:00" if isinstance(value, str) and len(value) == 10 else value


IsoTime = Annotated[str, BeforeValidator(_as_text)]
"""A time in UTC, such as `2024-01-02 03:04:05` or `2024-01-02`."""


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
