"""Fingerprints are golden: if one of these values changes, FINGERPRINT_VERSION must be raised."""

from collections.abc import Callable

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.errors import DataError
from features.fingerprint import (
    FINGERPRINT_VERSION,
    NULL_FINGERPRINT,
    cross_expr,
    cross_fingerprints,
    fingerprint,
    fingerprint_expr,
)
from features.ops.cast import hash_column_encoder, hash_encoder

GOLDEN = {
    "": -1205034819632174695,
    "null": 4524394692449115962,
    "a": -3292477735350538661,
    "Zürich": -8795003695103573383,
    "日本": -9168515153253716053,
    "7": 1750302349509622455,
    "-9223372036854775808": -7034505301505659888,
    "true": -2897580954684740022,
    "user-1": -6812973808080884760,
    "68fd1e64": 6718470718629228516,
}
INT64 = st.integers(min_value=-(2**63), max_value=2**63 - 1)


def test_version():
    assert FINGERPRINT_VERSION == 1


@pytest.mark.parametrize(("text", "value"), GOLDEN.items())
def test_golden_values(text, value):
    assert fingerprint(text) == value


def test_golden_values_in_polars():
    frame = pl.DataFrame({"text": [*GOLDEN, None]})
    assert frame.select(fingerprint_expr(pl.col("text"))).to_series().to_list() == [
        *GOLDEN.values(),
        NULL_FINGERPRINT,
    ]


def test_golden_null_and_crosses():
    assert NULL_FINGERPRINT == 7657076720915041788
    a, b = fingerprint("a"), fingerprint("b")
    assert cross_fingerprints([a, b]) == -2649393450474558119
    assert cross_fingerprints([b, a]) == -4502627335103107873
    assert cross_fingerprints([1, NULL_FINGERPRINT, -1]) == 2834147529781573571


def test_a_lone_surrogate_cannot_be_written():
    with pytest.raises(UnicodeEncodeError):
        fingerprint("\ud800")


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])) | st.none()))
def test_polars_and_python_agree_on_text(texts):
    frame = pl.DataFrame({"text": pl.Series(texts, dtype=pl.String)})
    expected = [NULL_FINGERPRINT if text is None else fingerprint(text) for text in texts]
    assert frame.select(fingerprint_expr(pl.col("text"))).to_series().to_list() == expected


@given(st.lists(st.tuples(INT64, INT64, INT64), min_size=1))
def test_polars_and_python_agree_on_crosses(rows):
    frame = pl.DataFrame(rows, schema={"a": pl.Int64, "b": pl.Int64, "c": pl.Int64}, orient="row")
    crossed = frame.select(cross_expr([pl.col("a"), pl.col("b"), pl.col("c")])).to_series().to_list()
    assert crossed == [cross_fingerprints(row) for row in rows]


@given(INT64, INT64)
def test_order_of_a_cross_matters(a, b):
    assert (cross_fingerprints([a, b]) == cross_fingerprints([b, a])) == (a == b)


@given(
    declared=st.sampled_from(["string", "integer", "boolean"]),
    values=st.lists(st.none() | st.text() | st.integers() | st.booleans(), max_size=30)
    | st.lists(st.none() | st.text(st.characters()), min_size=10, max_size=30),
)
def test_many_values_have_the_codes_that_each_has_alone(declared, values):
    one, many = hash_encoder(declared, "x"), hash_column_encoder(declared, "x")

    def outcome(encode: Callable[[], list[int]]) -> list[int] | str:
        try:
            return encode()
        except DataError as error:
            return str(error)

    assert outcome(lambda: many(values)) == outcome(lambda: [one(value) for value in values])


def test_a_text_that_utf8_cannot_write_is_named_among_many():
    with pytest.raises(DataError, match="x: not a text"):
        hash_column_encoder("string", "x")(["good"] * 20 + ["\ud800"])
