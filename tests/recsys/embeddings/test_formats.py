"""Row formats: sizes, golden bytes, error bounds and the mean of stochastic rounding."""

from __future__ import annotations

import typing

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recsys.embeddings.formats import FormatName, RowFormat, rounding_noise

FORMATS: tuple[FormatName, ...] = typing.get_args(FormatName)


@pytest.mark.parametrize(
    ("name", "bytes_"), [("fp32", 20), ("bf16", 10), ("fp16", 10), ("int8", 7), ("int4", 5), ("int2", 4)]
)
def test_a_row_of_five_takes(name: FormatName, bytes_: int) -> None:
    form = RowFormat(name, 5)
    storage = form.empty(3)
    assert form.row_bytes == bytes_ == storage[0].numel() * storage.element_size()
    assert form.encode(torch.zeros(3, 5)).shape == storage.shape
    assert torch.equal(form.decode(storage), torch.zeros(3, 5))


def test_golden_bytes() -> None:
    values = torch.tensor([[1.5, -1.5, 0.1, -0.7, 0.3]])
    assert RowFormat("int8", 5).encode(values).tolist() == [[255, 0, 136, 68, 153, 65, 60]]
    assert RowFormat("int4", 5).encode(values).tolist() == [[15, 72, 9, 77, 62]]
    assert RowFormat("int2", 5).encode(values).tolist() == [[99, 2, 128, 63]]


@given(
    st.sampled_from(FORMATS),
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=20),
)
def test_rounding_errs_by_half_a_level_at_most(name: FormatName, values: list[float]) -> None:
    form, x = RowFormat(name, len(values)), torch.tensor([values])
    error = (form.round(x) - x).abs()
    if form.name == "int8":
        # a bf16 scale is off by at most 1/256
        # and the smallest scale there is, below which a row is zeros
        assert (error <= x.abs().max() / form.half * 0.5 * 1.01 + 2**-126).all()
    elif not form.is_integer:
        relative = {"fp32": 0.0, "bf16": 2**-8, "fp16": 2**-11}[name]
        assert (error <= x.abs() * relative + 2**-25).all()


@pytest.mark.parametrize("name", FORMATS[1:])
def test_stochastic_rounding_is_right_on_average(name: FormatName) -> None:
    form = RowFormat(name, 16)
    values = torch.randn(1, 16, generator=torch.Generator().manual_seed(0)).expand(20_000, 16)
    noise = rounding_noise(torch.arange(20_000), 16, step=3)
    drawn = form.decode(form.encode(values, noise))
    spread = drawn.std(0) / 20_000**0.5
    assert ((drawn.mean(0) - values[0]).abs() <= 5 * spread + 1e-6).all()
    assert drawn.std(0).max() > 0


def test_the_noise_is_uniform_and_differs_by_row_column_and_step() -> None:
    noise = rounding_noise(torch.arange(50_000), 8, step=1)
    assert noise.min() >= 0
    assert noise.max() < 1
    assert (torch.histc(noise, 20) / noise.numel() - 0.05).abs().max() < 0.002
    assert (noise != rounding_noise(torch.arange(50_000), 8, step=2)).float().mean() > 0.99
    assert abs(float(torch.corrcoef(noise[:, :2].T)[0, 1])) < 0.05
    assert abs(float(torch.corrcoef(torch.stack([noise[:-1, 0], noise[1:, 0]]))[0, 1])) < 0.02


def test_a_scale_is_kept_while_it_serves() -> None:
    form, noise = RowFormat("int4", 2), torch.full((1, 2), 0.5)
    stored = form.encode(torch.tensor([[1.0, -0.5]]))
    scale = stored[:, -2:]
    smaller = form.encode(torch.tensor([[0.8, 0.1]]), noise, stored)
    assert torch.equal(smaller[:, -2:], scale)
    larger = form.encode(torch.tensor([[1.1, 0.1]]), noise, stored)
    assert not torch.equal(larger[:, -2:], scale)
    assert form.decode(larger).abs().max() >= 1.0
    much_smaller = form.encode(torch.tensor([[0.2, 0.1]]), noise, stored)
    torch.testing.assert_close(form.decode(much_smaller), torch.tensor([[0.2, 0.1]]), atol=0.03, rtol=0)


@given(st.sampled_from(FORMATS), st.integers(0, 2**32 - 1), st.integers(1, 40), st.floats(0.5, 8))
def test_rows_rounded_to_nearest_are_stored_again_as_they_were(
    name: FormatName, seed: int, width: int, tail: float
) -> None:
    """Else a model loaded from its rows would not be the one that was evaluated."""
    form, rng = RowFormat(name, width), np.random.default_rng(seed)
    rows = rng.standard_t(tail, (20, width)) * np.exp(rng.normal(0, 3, (20, 1)))
    stored = form.encode(torch.from_numpy(rows.astype(np.float32)))
    assert torch.equal(form.encode(form.decode(stored)), stored)


@pytest.mark.parametrize("name", FORMATS)
def test_values_beyond_the_range_are_held_at_its_end(name: FormatName) -> None:
    form = RowFormat(name, 2)
    for noise in (None, torch.full((1, 2), 0.999)):
        assert torch.isfinite(form.decode(form.encode(torch.tensor([[7e4, -1e30]]), noise))).all()


@pytest.mark.parametrize(("name", "error"), [("int4", 0.01154), ("int2", 0.1188)])
def test_normal_values_are_rounded_as_well_as_an_even_quantiser_can(name: FormatName, error: float) -> None:
    """Against the mean square error of the best uniform quantiser of normal values (Max 1960, table II)."""
    values = torch.randn(200, 1024, generator=torch.Generator().manual_seed(0))
    assert float((RowFormat(name, 1024).round(values) - values).square().mean()) == pytest.approx(error, rel=0.03)
