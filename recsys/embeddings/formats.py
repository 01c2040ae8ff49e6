"""How a row of the table is stored: fp32, bf16, fp16, or int8, int4 and int2 codes with a scale a row or one for all.

A format turns fp32 rows into stored rows and back.  Rounding is to nearest, or stochastic: up or down with the
probabilities that make the stored value right on average, so that steps far smaller than a code still add up
(Gupta et al. 2015; for embedding tables Li et al., ALPT, AAAI 2023).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from recsys.hugepages import zeros

FormatName = Literal["fp32", "bf16", "fp16", "int8", "int4", "int2"]

SHARED_INT8 = "int8-table"
"""What int8 rows that share one step are called."""
SCALE_BYTES = 2
"""An integer row ends with its scale in bf16, unless all rows share one step."""
HEADROOM = 1.125
"""A scale that has to grow grows this much further than it must."""
BEST_STEP = {4: 0.3352, 2: 0.9957}
"""Bits of a code -> the scale that rounds normally distributed values of variance 1 best (Max 1960, table II)."""
ENCODED_AT_ONCE = 1 << 16
"""Rows of a table: what rounding them holds beside them does not follow the table's size."""
SHRINK_BELOW = 0.5
"""A scale is made smaller once the row needs less than this share of it."""

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_BITS = {"fp32": 32, "bf16": 16, "fp16": 16, "int8": 8, "int4": 4, "int2": 2}
_FP16_MAX = 65504.0
_MASK = 0xFFFFFFFF


class RowFormat:
    """One way to store rows of a width.

    A float row is a row of a [rows, width] tensor of that dtype.  An integer row is bytes: codes, the first in the
    lowest bits, then the scale in bf16; code c of b bits stands for `(c - (2**b - 1) / 2) * scale`, so that the levels
    lie symmetrically around 0.  Where all int8 rows share a step, a row is its codes alone and c stands for
    `(c - 128) * step`: 0 is a level, since a row of zeros has no scale of its own to say so.

    Args:
        name: fp32, bf16, fp16, int8, int4 or int2.
        width: values in a row, D.
        step: of int8, the distance between levels in all rows; None for a scale a row.

    Raises:
        ValueError: the step is not positive and finite, or the format has none.

    >>> RowFormat("int4", 16).row_bytes, RowFormat("fp32", 16).row_bytes
    (10, 64)
    >>> f = RowFormat("int4", 4)
    >>> f.encode(torch.tensor([[1.5, -1.5, 0.1, -0.7]])).tolist()
    [[15, 72, 77, 62]]
    >>> f.decode(f.encode(torch.tensor([[1.5, -1.5, 0.1, -0.7]]))).round(decimals=1).tolist()
    [[1.5, -1.5, 0.10000000149011612, -0.699999988079071]]
    >>> RowFormat("int8", 4, step=0.5).encode(torch.tensor([[1.5, 0.0, 0.3, -9.0]])).tolist()
    [[131, 128, 129, 110]]
    """

    def __init__(self, name: FormatName, width: int, step: float | None = None) -> None:
        self.name: FormatName = name
        self.width = width
        self.step = step
        self.bits = _BITS[name]
        self.is_integer = name.startswith("int")
        self.code_bytes = -(-width * self.bits // 8)
        self.row_bytes = self.code_bytes + (SCALE_BYTES if self.is_integer and step is None else 0)
        self.half = (2**self.bits - 1) / 2
        """Half the range of codes: the largest value of a row in units of its scale."""
        self.zero = self.half if step is None else 128
        """The code that stands for 0, of a scale a row one between two codes."""
        if step is not None and not (name == "int8" and 0 < step < math.inf):
            raise ValueError(f"rows in {name} cannot share the step {step}")

    def same_as(self, other: RowFormat) -> bool:
        """Whether equal bytes stand for equal rows in both."""
        return (self.name, self.width, self.step) == (other.name, other.width, other.step)

    def empty(self, rows: int) -> Tensor:
        """Zeroed storage of so many rows: [rows, D] of a float dtype, or [rows, row_bytes] uint8."""
        if self.is_integer:
            return zeros(rows, self.row_bytes, dtype=torch.uint8)
        return zeros(rows, self.width, dtype=_DTYPES[self.name])

    def decode(self, stored: Tensor) -> Tensor:
        """Stored rows [n, ...] -> values [n, D] fp32."""
        if not self.is_integer:
            return stored.to(torch.float32)
        return (self._codes(stored) - self.zero) * (self._scales(stored) if self.step is None else self.step)

    def encode(self, values: Tensor, noise: Tensor | None = None, previous: Tensor | None = None) -> Tensor:
        """Values [n, D] fp32 -> stored rows [n, ...].

        Args:
            values: finite.
            noise: [n, D] in [0, 1) for stochastic rounding, under a scale that holds every value. Without, values are
                rounded to nearest, and those of an int4 or int2 row that lie far out are held at the last level, where
                that makes the whole row more exact. Rows that were rounded to nearest before are stored as they were.
                Under a shared step, values beyond the outermost levels are held there.
            previous: with noise, the rows' last stored form; an integer row keeps its scale while that serves, because
                a value that stays on its grid is not rounded again.
        """
        if self.name == "fp32":
            return values.clone()
        if not self.is_integer:
            return self._encode_float(values, noise)
        if self.step is not None:
            return self._pack(self._codes_of(values, torch.tensor(self.step), 0.5 if noise is None else noise))
        return self._pack(*self._quantise(values, noise, previous))

    def encode_table(self, values: Tensor) -> Tensor:
        """As `encode` to nearest, in steps: of a whole table [R, D] there is no more than the result beside it."""
        stored = self.empty(len(values))
        for start in range(0, len(values), ENCODED_AT_ONCE):
            stored[start : start + ENCODED_AT_ONCE] = self.encode(values[start : start + ENCODED_AT_ONCE])
        return stored

    def round(self, values: Tensor) -> Tensor:
        """What the rows [n, D] would be read as once stored, rounded to nearest."""
        return self.decode(self.encode(values))

    def _encode_float(self, values: Tensor, noise: Tensor | None) -> Tensor:
        dtype = _DTYPES[self.name]
        limit = _FP16_MAX if self.name == "fp16" else torch.finfo(dtype).max
        values = values.clamp(-limit, limit)
        if noise is None:
            return values.to(dtype)
        dropped = 16 if self.name == "bf16" else 13
        if self.name == "fp16":
            values = values * 2.0**-112  # moves fp16's exponents, subnormal ones too, to where fp32's begin
        bits = values.contiguous().view(torch.int32).to(torch.int64) & _MASK
        bits = (bits + (noise * 2**dropped).to(torch.int64)) & (_MASK >> dropped << dropped)
        bits = torch.where(bits >= 2**31, bits - 2**32, bits).to(torch.int32)
        rounded = bits.view(torch.float32)
        return (rounded * 2.0**112 if self.name == "fp16" else rounded).clamp(-limit, limit).to(dtype)

    def _quantise(self, values: Tensor, noise: Tensor | None, previous: Tensor | None) -> tuple[Tensor, Tensor]:
        """Codes [n, D] uint8 and scales [n, 1] fp32, exact in bf16."""
        needed = values.abs().amax(1, keepdim=True) / self.half
        if noise is None:
            return self._nearest(values, _bf16_nearest(needed))
        scale = _bf16_above(needed)
        if previous is not None:
            old = self._scales(previous)
            fits = (needed <= old) & (needed >= old * SHRINK_BELOW)
            scale = torch.where(fits, old, _bf16_above(needed * HEADROOM))
        return self._codes_of(values, scale, noise), scale

    def _nearest(self, values: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Codes and scales to nearest, from scales [n, 1] that hold every value but for half a code.

        Of that scale and the one that is best for normally distributed values, a row gets the one under which it is
        more exact.  Rows that were rounded to nearest before are exact under the first: they are stored as they were.
        """
        codes = self._codes_of(values, scale, 0.5)
        if self.bits not in BEST_STEP:
            return codes, scale
        # in float64, where the order of a sum does not show
        spread = (values.double().square().mean(1, keepdim=True).sqrt() * BEST_STEP[self.bits]).float()
        other = torch.minimum(scale, _bf16_nearest(spread))
        other_codes = self._codes_of(values, other, 0.5)
        better = self._squared_error(values, other_codes, other) < self._squared_error(values, codes, scale)
        return torch.where(better, other_codes, codes), torch.where(better, other, scale)

    def _codes_of(self, values: Tensor, scale: Tensor, noise: Tensor | float) -> Tensor:
        inverse = torch.where(scale > 0, 1 / scale, 0)
        codes = (values * inverse + self.zero + noise).floor_().clamp_(0, 2 * self.half)
        return codes.to(torch.uint8)

    def _squared_error(self, values: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
        return (values - (codes.to(torch.float32) - self.half) * scale).double().square().sum(1, keepdim=True)

    def _pack(self, codes: Tensor, scale: Tensor | None = None) -> Tensor:
        per_byte = 8 // self.bits
        if per_byte > 1:
            padded = codes.new_zeros(len(codes), self.code_bytes * per_byte)
            padded[:, : self.width] = codes
            parts = padded.view(len(codes), self.code_bytes, per_byte)
            codes = parts[:, :, 0].clone()
            for k in range(1, per_byte):
                codes |= parts[:, :, k] << (k * self.bits)
        return codes if scale is None else torch.cat([codes, scale.to(torch.bfloat16).view(torch.uint8)], 1)

    def _codes(self, stored: Tensor) -> Tensor:
        codes = stored[:, : self.code_bytes]
        per_byte = 8 // self.bits
        if per_byte > 1:
            mask = 2**self.bits - 1
            codes = torch.stack([(codes >> (k * self.bits)) & mask for k in range(per_byte)], 2)
            codes = codes.flatten(1)[:, : self.width]
        return codes.to(torch.float32)

    def _scales(self, stored: Tensor) -> Tensor:
        return (
            stored[:, self.code_bytes :]
            .clone(memory_format=torch.contiguous_format)
            .view(torch.bfloat16)
            .to(torch.float32)
        )


def shared_step(largest: float) -> float:
    """The smallest step, exact in fp32, under which int8 rows hold values up to this size; 1 where all are zeros.

    >>> shared_step(12.7) == float(torch.tensor(0.1)), shared_step(0.0)
    (True, 1.0)
    """
    step = float(torch.tensor(largest / 127))
    return step if step >= torch.finfo(torch.float32).tiny else 1.0


def rounding_noise(rows: Tensor, width: int, step: int) -> Tensor:
    """The noise of stochastic rounding: uniform, a pure function of row, column and step.

    Args:
        rows: [n] row numbers.
        width: D.
        step: number of the optimizer step.

    Returns:
        [n, D] fp32 in [0, 1), multiples of 2**-24.
    """
    base = _mix32((rows.to(torch.int64) * 0x9E3779B1 + step * 0x85EBCA6B) & _MASK)
    # an odd multiple of a uniform number is uniform; keys far from small multiples of one another keep columns apart
    columns = _mix32(torch.arange(1, width + 1, dtype=torch.int64, device=rows.device)) | 1
    return (((base.unsqueeze(1) * columns) & _MASK) >> 8).to(torch.float32) * 2.0**-24


def _mix32(x: Tensor) -> Tensor:
    """A 32-bit finaliser (constants of Wellons' lowbias32), in int64."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _MASK
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _MASK
    return x ^ (x >> 16)


def _bf16_nearest(x: Tensor) -> Tensor:
    """The bf16 nearest to a non-negative fp32, the larger of two, as fp32."""
    bits = x.contiguous().view(torch.int32).to(torch.int64)
    return ((bits + 0x8000) >> 16 << 16).to(torch.int32).view(torch.float32)


def _bf16_above(x: Tensor) -> Tensor:
    """The smallest bf16 not below a non-negative fp32, as fp32."""
    bits = x.contiguous().view(torch.int32).to(torch.int64)
    return ((bits + 0xFFFF) >> 16 << 16).to(torch.int32).view(torch.float32)
