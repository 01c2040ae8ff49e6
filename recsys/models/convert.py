"""A trained model with its rows in another format: the same plan and network, every row rounded to nearest."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from features.errors import ConfigError, did_you_mean
from recsys.embeddings.formats import FormatName
from recsys.models.ctr import CTRModel

FORMATS: tuple[FormatName, ...] = typing.get_args(FormatName)
_ROWS_AT_ONCE = 1 << 18


@torch.no_grad()
def convert(model: CTRModel, format: str) -> CTRModel:
    """A model for serving that reads its rows in another format.

    Args:
        model: left as it is.
        format: fp32, bf16, fp16, int8, int4 or int2.

    Raises:
        ConfigError: there is no such format, or the model has it already.
    """
    name = check_format(format)
    if name == model.plan.format:
        raise ConfigError(
            "the model's rows are in this format already", field="format", found=format, mend="choose another one"
        )
    converted = CTRModel(model.layout, replace(model.plan, format=name), model.config, kernel="torch")
    old, new = model.embedding.table, converted.embedding.table
    for rows in _pieces(old.rows):
        new.assign(rows, old.values(rows))
    converted.load_tensors({**model.tensors(), "table": new.stored()})
    return converted.eval()


@torch.no_grad()
def rounding_error(model: CTRModel, converted: CTRModel) -> float:
    """What conversion did to the rows: norm of the differences over norm of the values; 0 for a table of zeros."""
    old, new = model.embedding.table, converted.embedding.table
    lost, total = 0.0, 0.0
    for rows in _pieces(old.rows):
        values = old.values(rows).double()
        lost += float((new.values(rows).double() - values).square().sum())
        total += float(values.square().sum())
    return (lost / total) ** 0.5 if total else 0.0


def check_format(format: str) -> FormatName:
    """The format of that name.

    Raises:
        ConfigError: there is none.

    >>> check_format("int8")
    'int8'
    """
    for name in FORMATS:
        if name == format:
            return name
    raise ConfigError(
        "there is no such row format",
        field="format",
        found=format,
        expected=", ".join(FORMATS),
        mend=did_you_mean(format, FORMATS),
    )


def _pieces(rows: int) -> Iterator[Tensor]:
    """All row numbers in order, so many at a time; none of no rows."""
    for start in range(0, rows, _ROWS_AT_ONCE):
        yield torch.arange(start, min(start + _ROWS_AT_ONCE, rows))
