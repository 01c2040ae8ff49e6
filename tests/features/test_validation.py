"""What is wrong in plain data becomes one ConfigError: path, find, wish, nearest name."""

from typing import Annotated, Literal

import pytest
from pydantic import Field

from features.errors import ConfigError
from features.spec import FeatureSpec
from features.validation import Strict, validate


class Inner(Strict):
    width: int = 8
    kind: Literal["small", "large"] = "small"


class Left(Strict):
    side: Literal["left"] = "left"
    turns: int = 1


class Right(Strict):
    side: Literal["right"] = "right"
    speed: float = 1.0


class Outer(Strict):
    table: Inner = Inner()
    tables: dict[str, Inner] = Field(default_factory=dict)
    moves: list[Annotated[Left | Right, Field(discriminator="side")]] = Field(default_factory=list)
    maybe: Inner | None = None
    size: int | str = 0
    pair: tuple[float | None, float | None] | None = None


def error_of(data, where=""):
    with pytest.raises(ConfigError) as caught:
        validate(Outer, data, where=where)
    return caught.value


def test_good_data_is_read():
    assert validate(Outer, {"moves": [{"side": "right", "speed": 2}]}).moves == [Right(speed=2.0)]


@pytest.mark.parametrize(
    ("data", "field", "near"),
    [
        ({"tabel": {}}, "tabel", "table"),
        ({"table": {"widht": 3}}, "table.widht", "width"),
        ({"tables": {"big": {"widht": 3}}}, "tables.big.widht", "width"),
        ({"maybe": {"widht": 3}}, "maybe.widht", "width"),
        ({"moves": [{"side": "left"}, {"side": "right", "sped": 3}]}, "moves.1.sped", "speed"),
        ({"moves": [{"side": "lift"}]}, "moves.0.side", "left"),
        ({"table": {"kind": "smal"}}, "table.kind", "small"),
    ],
)
def test_misspelt_names_get_the_nearest(data, field, near):
    error = error_of(data)
    assert error.field == field
    assert error.mend == f"did you mean '{near}'?"


def test_where_is_put_before_the_path():
    assert error_of({"table": {"widht": 3}}, where="recsys.model").field == "recsys.model.table.widht"


@pytest.mark.parametrize(
    ("data", "field", "found"),
    [
        ({"table": {"width": "many"}}, "table.width", "'many'"),
        ({"table": 3}, "table", "3"),
        ({"moves": [{"side": "left", "turns": [1]}]}, "moves.0.turns", "[1]"),
        ({"size": [1]}, "size", "[1]"),
        ({"pair": [1, "x"]}, "pair.1", "'x'"),
        ([1], "Outer", "[1]"),
    ],
)
def test_wrong_values_say_what_was_found(data, field, found):
    error = error_of(data)
    assert error.field == field
    assert error.found == found
    assert error.expected


def test_missing_keys():
    with pytest.raises(ConfigError, match="labels: required key is missing"):
        validate(FeatureSpec, {"features": [{"type": "id", "name": "a"}]})
    with pytest.raises(ConfigError, match=r"features\.0\.type: key 'type' is missing"):
        validate(FeatureSpec, {"features": [{"name": "a"}], "labels": ["y"]})


def test_a_model_is_never_changed_in_place():
    with pytest.raises(ValueError, match="frozen"):
        Inner().width = 3
