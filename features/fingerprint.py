"""Value -> stable signed 64-bit fingerprint, the same from Python and from Polars.

Salts, table rows and chunks are no business of this module: they come later, inside the model.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
import polars_hash as plh
import xxhash

from features.errors import ArtifactError

FINGERPRINT_VERSION = 1
"""Raised whenever the fingerprint of any value changes; travels with every artefact."""

_MASK = (1 << 64) - 1
_SIGN = 1 << 63
_CROSS_START = 0x9E3779B97F4A7C15
_CROSS_ODD = 0xD6E8FEB86659FD93


def fingerprint(text: str) -> int:
    """Returns the fingerprint of a value already cast to its declared dtype and written as text.

    It is xxh64 with seed 0 of the UTF-8 bytes, read as a signed integer. No unicode normalisation.

    Raises:
        UnicodeEncodeError: The text holds a lone surrogate, which UTF-8 cannot write.

    Example:
        >>> fingerprint("user-1"), fingerprint("")
        (-6812973808080884760, -1205034819632174695)
    """
    value = xxhash.xxh64_intdigest(text.encode())
    return value - (1 << 64) if value >= _SIGN else value


def fingerprints(texts: Sequence[str]) -> list[int]:
    """Returns the fingerprint of each text: a third of the time a text that `fingerprint` takes, from some ten on.

    Raises:
        UnicodeEncodeError: As of `fingerprint`.

    Example:
        >>> fingerprints(["user-1", ""])
        [-6812973808080884760, -1205034819632174695]
    """
    values = np.fromiter(map(xxhash.xxh64_intdigest, map(str.encode, texts)), np.uint64, len(texts))
    return values.view(np.int64).tolist()


def _null() -> int:
    value = xxhash.xxh64_intdigest(b"null", seed=1)
    return value - (1 << 64) if value >= _SIGN else value


NULL_FINGERPRINT = _null()
"""Fingerprint of a missing value; the text "null" is an ordinary string with another one."""


def check_fingerprint_version(found: object, where: str, mend: str) -> None:
    """Refuses ids that another version of the fingerprint made: a model would look every one of them up elsewhere.

    Args:
        found: The version that an artefact was written with.
        where: The artefact.
        mend: What to do about it.

    Raises:
        ArtifactError: It is not this one.
    """
    if found != FINGERPRINT_VERSION:
        raise ArtifactError(
            "its ids were made by another version of the fingerprint",
            field=where,
            found=f"fingerprint version {found}",
            expected=FINGERPRINT_VERSION,
            mend=mend,
        )


def cross_fingerprints(parts: Sequence[int]) -> int:
    """Joins the fingerprints of several features, in the order given, into one.

    Each part is xored into the state, which is then mixed by two rounds of xor-shift and multiplication.

    Args:
        parts: Signed 64-bit fingerprints.

    Example:
        >>> cross_fingerprints([1, 2]) != cross_fingerprints([2, 1])
        True
    """
    state = _CROSS_START
    for part in parts:
        state = _mix(state ^ (part & _MASK))
    return state - (1 << 64) if state >= _SIGN else state


def fingerprint_expr(text: pl.Expr) -> pl.Expr:
    """Polars form of `fingerprint`: String -> Int64, null -> NULL_FINGERPRINT."""
    return plh.HExpr._from_pyexpr(text._pyexpr).nchash.xxhash64().reinterpret(signed=True).fill_null(NULL_FINGERPRINT)


def cross_expr(parts: Sequence[pl.Expr]) -> pl.Expr:
    """Polars form of `cross_fingerprints`: Int64 expressions -> Int64."""
    state = pl.lit(_CROSS_START, dtype=pl.UInt64)
    for part in parts:
        state = mix_expr(state ^ part.reinterpret(signed=False))
    return state.reinterpret(signed=True)


def mix_expr(state: pl.Expr) -> pl.Expr:
    """Mixes UInt64 values; the Polars form of `_mix`. Integer division stands in for the right shift."""
    shift = pl.lit(1 << 32, dtype=pl.UInt64)
    odd = pl.lit(_CROSS_ODD, dtype=pl.UInt64)
    for _ in range(2):
        state = (state ^ (state // shift)) * odd
    return state ^ (state // shift)


def _mix(state: int) -> int:
    for _ in range(2):
        state = ((state ^ (state >> 32)) * _CROSS_ODD) & _MASK
    return state ^ (state >> 32)
