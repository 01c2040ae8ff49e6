"""docs/configuration.md says what the code says."""

import re
import typing

from pydantic import BaseModel

from pipelines.reference import PAGE, TABLES, render, table
from recsys.training import TrainConfig


def test_the_page_is_up_to_date() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert render(page) == page, "run `python -m pipelines.reference`"


def test_the_page_has_every_table_and_every_key_has_a_meaning() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert sorted(re.findall(r"<!-- table: (\S+) -->", page)) == sorted(TABLES)
    assert not [line for line in page.splitlines() if re.search(r"\|\s+\|$", line)]


def test_what_stands_below_has_a_table() -> None:
    described = set(TABLES.values())
    for model in TABLES.values():
        for name, info in model.model_fields.items():
            nested = {m for m in (info.annotation, *typing.get_args(info.annotation)) if _is_model(m)}
            assert nested <= described, f"{model.__name__}.{name}"


def _is_model(of: object) -> bool:
    return isinstance(of, type) and issubclass(of, BaseModel)


def test_a_row_of_a_table() -> None:
    assert "| `epochs` | integer | 1 |" in table(TrainConfig)
    assert "| `patience` | integer or null | null |" in table(TrainConfig)
