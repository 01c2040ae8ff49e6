"""int8 rows that share one step: their bytes, the bound of the error, and both kernels."""

from __future__ import annotations

import math
import typing

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from features.errors import ConfigError
from recsys.embeddings.formats import FormatName, RowFormat, rounding_noise, shared_step
from recsys.embeddings.numba_table import NumbaTable
from recsys.embeddings.table import TableOptimizer
from recsys.embeddings.torch_table import TorchTable


def drawn(seed: int, width: int, tail: float, rows: int = 200) -> Tensor:
    """A table of rows of several sizes, with values far out and some rows of zeros."""
    rng = np.random.default_rng(seed)
    values = rng.standard_t(tail, (rows, width)) * np.exp(rng.normal(0, 1, (rows, 1))) * 10 ** rng.uniform(-9, 9)
    values[rng.random(rows) < 0.1] = 0
    return torch.from_numpy(values.astype(np.float32))


def test_golden_bytes() -> None:
    form = RowFormat("int8", 5, 0.25)
    values = torch.tensor([[1.5, -1.5, 0.1, -0.7, 0.0], [31.75, -31.75, 0.5, 0.24, -0.24], [99, -99, 0, 0, 0]])
    assert form.row_bytes == 5
    assert form.encode(values).tolist() == [
        [134, 122, 128, 125, 128],
        [255, 1, 130, 129, 127],
        [255, 0, 128, 128, 128],
    ]
    assert form.round(values)[:2].tolist() == [[1.5, -1.5, 0.0, -0.75, 0.0], [31.75, -31.75, 0.5, 0.25, -0.25]]


@given(st.integers(0, 2**32 - 1), st.integers(1, 20), st.floats(1.5, 20))
@settings(deadline=None)
def test_no_value_is_off_by_more_than_half_a_step(seed: int, width: int, tail: float) -> None:
    values = drawn(seed, width, tail)
    step = shared_step(float(values.abs().max()))
    form = RowFormat("int8", width, step)
    stored = form.encode(values)
    assert stored.shape == (len(values), width)
    read = form.decode(stored)
    assert ((read - values).abs() <= step * 0.5001).all()
    # the largest is on the outermost level; zeros stay, and so do rows that were rounded before
    assert int((stored.int() - 128).abs().max()) == 127
    assert (read[values == 0] == 0).all()
    assert torch.equal(form.encode(read), stored)


@pytest.mark.parametrize("values", [torch.zeros(3, 4), torch.full((3, 4), 1e-42)])
def test_a_table_of_zeros_keeps_them(values: Tensor) -> None:
    step = shared_step(float(values.max()))
    assert step == 1.0
    assert (RowFormat("int8", 4, step).round(values) == 0).all()


def test_stochastic_rounding_is_right_on_average() -> None:
    form = RowFormat("int8", 8, 0.3)
    values = torch.linspace(-2, 2, 8).expand(20_000, 8)
    read = form.decode(form.encode(values, rounding_noise(torch.arange(20_000), 8, step=3)))
    torch.testing.assert_close(read.mean(0), values[0], atol=0.006, rtol=0)


@pytest.mark.parametrize("step", [0.0, -1.0, math.inf, math.nan])
def test_a_step_that_makes_no_sense_is_refused(step: float) -> None:
    with pytest.raises(ValueError, match="cannot share the step"):
        RowFormat("int8", 4, step)


@pytest.mark.parametrize("name", [name for name in typing.get_args(FormatName) if name != "int8"])
def test_other_formats_share_none(name: FormatName) -> None:
    with pytest.raises(ValueError, match="cannot share the step"):
        RowFormat(name, 4, 0.1)


@pytest.mark.parametrize("width", [1, 5, 16])
def test_both_kernels_read_the_same_bits(width: int) -> None:
    values = drawn(1, width, 3.0)
    step = shared_step(float(values.abs().max()))
    rows = torch.randint(0, len(values), (5000,), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    expected = RowFormat("int8", width, step).round(values)[rows.long()]
    for kernel in (TorchTable, NumbaTable):
        table = kernel(len(values), RowFormat("int8", width, step), TableOptimizer("sgd"))
        table.assign(None, values)
        assert torch.equal(table.gather(rows), expected)


@pytest.mark.parametrize("kernel", [TorchTable, NumbaTable])
def test_it_is_not_trained(kernel: type[TorchTable]) -> None:
    table = kernel(10, RowFormat("int8", 4, 0.1), TableOptimizer("sgd")).train()
    rows = torch.tensor([1], dtype=torch.int32)
    with pytest.raises(ConfigError, match=r"is for serving.*step of 0.1 for all rows.*train.warm_start"):
        table(rows)
    with torch.no_grad():
        assert table(rows).shape == (1, 4)
