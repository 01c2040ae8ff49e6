"""A trained model with its rows in another format: the same plan and network, every row rounded to nearest.

It is for serving, where all int8 rows of a table may share one step: `int8-table`.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from features.errors import ConfigError, did_you_mean
from recsys.embeddings.formats import SHARED_INT8, FormatName, shared_step
from recsys.models.ctr import CTRModel

FORMATS: tuple[FormatName, ...] = typing.get_args(FormatName)
SERVED_FORMATS = (*FORMATS, SHARED_INT8)
"""Formats that a model can be served in; one with int8 rows of a shared step is not trained."""
_ROWS_AT_ONCE = 1 << 18


@torch.no_grad()
def convert(model: CTRModel, format: str) -> CTRModel:
    """A model for serving that reads its rows in another format.

    Args:
        model: left as it is.
        format: fp32, bf16, fp16, int8, int4, int2, or int8-table.

    Raises:
        ConfigError: there is no such format, or the model has it already.
    """
    check_served_format(format)
    if format == model.plan.format_name:
        raise ConfigError(
            "the model's rows are in this format already", field="format", found=format, mend="choose another one"
        )
    old = model.embedding.table
    if format == SHARED_INT8:
        largest = max((float(old.values(rows).abs().max()) for rows in _pieces(old.rows)), default=0.0)
        plan = replace(model.plan, format="int8", step=shared_step(largest))
    else:
        plan = replace(model.plan, format=check_format(format), step=None)
    converted = CTRModel(model.layout, plan, model.config, kernel="torch")
    new = converted.embedding.table
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
    raise _no_such(format, FORMATS)


def check_served_format(format: str) -> None:
    """Raises a ConfigError if there is no format of that name to convert a model to."""
    if format not in SERVED_FORMATS:
        raise _no_such(format, SERVED_FORMATS)


def _no_such(format: str, known: Sequence[str]) -> ConfigError:
    return ConfigError(
        "there is no such row format",
        field="format",
        found=format,
        expected=", ".join(known),
        mend=did_you_mean(format, known),
    )


def _pieces(rows: int) -> Iterator[Tensor]:
    """All row numbers in order, so many at a time; none of no rows."""
    for start in range(0, rows, _ROWS_AT_ONCE):
        yield torch.arange(start, min(start + _ROWS_AT_ONCE, rows))
