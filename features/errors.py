"""The few exception types of the project, on the ground floor so that every package can use them.

Each error is for a person: it names the field, what was found, what was expected and how to mend it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RecsysError(Exception):
    """Base of everything that the user can mend.

    Args:
        what: What is wrong, one clause without a full stop at the end.
        field: The column, key or file it is about.
        found: What was there.
        expected: What should have been there.
        mend: What to do about it.

    Example:
        >>> print(RecsysError("label is not binary", field="click", found=3, expected="0 or 1"))
        click: label is not binary. Found: 3. Expected: 0 or 1
    """

    def __init__(
        self,
        what: str,
        *,
        field: str | None = None,
        found: object = None,
        expected: object = None,
        mend: str | None = None,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.field = field
        self.found = found
        self.expected = expected
        self.mend = mend

    def __str__(self) -> str:
        head = self.what if self.field is None else f"{self.field}: {self.what}"
        parts = [head]
        for title, value in (("Found", self.found), ("Expected", self.expected), ("Mend", self.mend)):
            if value is not None:
                parts.append(f"{title}: {value}")
        return " ".join(". ".join(part.rstrip(".") for part in parts).split())


class ConfigError(RecsysError):
    """A config or a spec is wrong."""


class DataError(RecsysError):
    """Input data is wrong: a missing column, a wrong dtype, a bad label, an empty or truncated file."""


class ArtifactError(RecsysError):
    """Something on disk that we wrote is missing, damaged or mismatched, or cannot be written."""


class UndefinedMetricError(DataError):
    """A metric has no value on this data, such as the AUC of a set with one class only."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Returns the known name closest to `name`, or None when nothing is close.

    Example:
        >>> nearest("widht", ["width", "rows"])
        'width'
        >>> nearest("zzz", ["width", "rows"]) is None
        True
    """
    candidates = sorted(set(known))
    by_fold = {candidate.casefold(): candidate for candidate in reversed(candidates)}
    close = difflib.get_close_matches(name.casefold(), list(by_fold), n=1, cutoff=0.6)
    return by_fold[close[0]] if close else None


def did_you_mean(name: str, known: Iterable[str], otherwise: str | None = None) -> str | None:
    """Returns the mend for a name that is not known: the nearest one, or `otherwise` when nothing is close.

    Example:
        >>> did_you_mean("widht", ["width", "rows"]), did_you_mean("zzz", ["width", "rows"], "leave it out")
        ("did you mean 'width'?", 'leave it out')
    """
    close = nearest(name, known)
    return f"did you mean {close!r}?" if close else otherwise


def unknown_name(
    what: str,
    name: str,
    known: Iterable[str],
    *,
    field: str,
    found: object = None,
    otherwise: str | None = None,
) -> ConfigError:
    """Returns the error for a name that is none of those known.

    Args:
        what: What is wrong.
        name: The name.
        known: Those it could have been.
        field: Where it stands.
        found: What was there, if `field` does not say it.
        otherwise: The mend when no known name is close.

    Example:
        >>> print(unknown_name("unknown key", "widht", ["width", "rows"], field="table.widht"))
        table.widht: unknown key. Expected: one of width, rows. Mend: did you mean 'width'?
    """
    known = list(known)
    expected, mend = f"one of {list_names(known)}", did_you_mean(name, known, otherwise)
    return ConfigError(what, field=field, found=found, expected=expected, mend=mend)


def list_names(names: Iterable[str], limit: int = 30) -> str:
    """Writes names for an error message, cut after `limit` of them.

    Example:
        >>> list_names(["a", "b", "c"], limit=2)
        'a, b ... and 1 more'
    """
    every = list(names)
    text = ", ".join(every[:limit])
    return text if len(every) <= limit else f"{text} ... and {len(every) - limit} more"
