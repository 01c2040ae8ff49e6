"""ngrams: a text becomes the fingerprints of its runs of n words or n characters.

The form of a text does not hang on the Unicode tables of Python or Polars, which differ by version: words end at a
fixed set of characters, and lower case is a fixed table of letters.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any

import polars as pl

from features.errors import DataError
from features.fingerprint import NULL_FINGERPRINT, fingerprint, fingerprint_expr
from features.ops.base import Encoder, Operator, Problem, Schema, shown, wrong_dtype
from features.ops.text import is_text
from features.spec import NgramsFeature

BLANKS = r"\x00-\x20\x7f\u{85}\u{a0}\u{1680}\u{2000}-\u{200a}\u{2028}\u{2029}\u{202f}\u{205f}\u{3000}"
"""Characters that are no part of a text, beside those of ASCII that are no letters or digits for words."""
_PUNCTUATION = r"!-/:-@\[-`{-~"
_SEPARATOR = {"words": " ", "characters": ""}


def _pattern(kind: str) -> str:
    """A word, or a stretch of characters without blanks, for Polars."""
    return f"[^{BLANKS}{_PUNCTUATION}]+" if kind == "words" else f"[^{BLANKS}]+"


def _for_python(pattern: str) -> str:
    return re.sub(r"\\u\{([0-9a-f]+)\}", lambda match: rf"\u{int(match[1], 16):04x}", pattern)


def _lower_case() -> dict[str, str]:
    # Unicode 3.2 stands still inside Python; what it knows has kept its lower case ever since.
    old = unicodedata.ucd_3_2_0
    letters = [chr(code) for code in range(0x10450) if not 0xD800 <= code < 0xE000]
    return {
        letter: lower
        for letter in letters
        if old.category(letter) == "Lu" and (lower := letter.lower()) != letter and len(lower) == 1
    }


LOWER = _lower_case()
"""Capital letter -> small letter, one to one."""
_TABLE = str.maketrans(LOWER)


class Ngrams(Operator):
    """All runs of the smallest n in the order of the text, then those of n + 1, up to the largest n.

    A run of words is hashed with single blanks between them; so are stretches of characters, across which runs go.
    A text without a word has no id at all; a missing text has the one id of null.
    """

    kind = "bag"

    def __init__(self, feature: NgramsFeature) -> None:
        self.name, self.column, self.of = feature.name, feature.column, feature.of
        self.n, self.lowercase, self.max_length = feature.n, feature.lowercase, feature.max_length

    def expressions(self, schema: Schema) -> list[pl.Expr]:
        """[B] List(Int64) fingerprints."""
        dtype = schema[self.column]
        null_list = pl.lit([NULL_FINGERPRINT], dtype=pl.List(pl.Int64))
        if dtype == pl.Null:
            return [null_list]
        if not is_text(dtype):
            raise wrong_dtype(self.column, dtype, "text", "declare type: ids for a list, or cast the column to text")
        text = pl.col(self.column).cast(pl.String)
        if self.lowercase:
            text = text.str.replace_many(list(LOWER), list(LOWER.values()))
        parts = text.str.extract_all(_pattern(self.of))
        if self.of == "characters":
            joined = parts.list.join(" ")
            parts = pl.when(joined == "").then(pl.lit([], dtype=pl.List(pl.String))).otherwise(joined.str.split(""))
        low, high = self.n
        runs = [
            parts.list.eval(
                pl.concat_str([pl.element().shift(-step) for step in range(n)], separator=_SEPARATOR[self.of])
            ).list.drop_nulls()
            for n in range(low, high + 1)
        ]
        grams = pl.concat_list(runs) if len(runs) > 1 else runs[0]
        grams = grams if self.max_length is None else grams.list.head(self.max_length)
        return [grams.list.eval(fingerprint_expr(pl.element())).fill_null(null_list)]

    def problems(self, schema: Schema) -> list[Problem]:
        """None: every text has its runs."""
        return []

    def encoder(self) -> Encoder:
        """Value -> list of int."""
        find = re.compile(_for_python(_pattern(self.of))).findall
        column, lowercase, limit, separator = self.column, self.lowercase, self.max_length, _SEPARATOR[self.of]
        characters, sizes = self.of == "characters", range(self.n[0], self.n[1] + 1)

        def encode(value: Any) -> list[int]:
            if value is None:
                return [NULL_FINGERPRINT]
            if not isinstance(value, str):
                raise wrong_dtype(column, shown(value), "text", "cast the value to text before")
            words = find(value.translate(_TABLE) if lowercase else value)
            parts = " ".join(words) if characters else words
            grams = [separator.join(parts[start : start + n]) for n in sizes for start in range(len(parts) - n + 1)]
            try:
                return [fingerprint(gram) for gram in grams[:limit]]
            except UnicodeEncodeError:
                raise DataError(
                    "text that UTF-8 cannot write", field=column, found=ascii(value), mend="mend the text"
                ) from None

        return encode
