"""The table's compiled CPU kernels (numba): gather-and-decode, and a fused sum, optimizer step and encode of rows.

Rows of a large table miss every cache, so each loop asks for the memory it will need some rows ahead; that alone makes
them several times faster than the same loops without.  No loop over rows calls a function with an array: numba counts
such an array's references, which with two threads takes longer than the row itself.  Functions that take one are
inlined, and no branch holds any, else the counting stays.  Work is divided between rows, never within one, and a row's
gradients are added in the order of the lookups: results do not depend on the number of threads.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from recsys.embeddings.formats import HEADROOM, SHRINK_BELOW

SGD, ADAGRAD, ADAM, RMSPROP = range(4)

_AHEAD = np.uint64(32)
"""Lookups between asking for a row and reading it."""
_LINE = np.uint64(64)
_COMPILE = {"nogil": True, "error_model": "numpy", "cache": True, "fastmath": {"reassoc", "nsz"}}
_LANES = np.uint64(16)
"""Loops over scratch rows run to a multiple of this, which is what the compiler makes vector code for."""
_AT_ONCE = np.uint64(8)
"""Rows that are encoded together: a row waits for its scale, in which time others can be worked on."""
_HEADROOM = np.float32(HEADROOM)
_SHRINK_BELOW = np.float32(SHRINK_BELOW)
_ONE, _TWO = np.uint64(1), np.uint64(2)
_LOOKUPS_A_WORKER = 4096
"""Fewer are not worth another thread."""
_MOST_WORKERS = numba.get_num_threads()


def workers_for(lookups: int) -> int:
    """The parts to divide so many lookups into, of which each gets a thread."""
    workers = min(torch.get_num_threads(), _MOST_WORKERS, lookups // _LOOKUPS_A_WORKER + 1)
    numba.set_num_threads(workers)
    return workers


@intrinsic
def _prefetch(context: Any, address: Any) -> Any:
    """Asks the processor to bring the cache line of an address near; the address need not be valid."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [byte, number, number, number]), "llvm.prefetch.p0"
        )
        read, keep, data = (ir.Constant(number, x) for x in (0, 3, 1))
        builder.call(function, [builder.inttoptr(arguments[0], byte), read, keep, data])
        return context.get_dummy_value()

    return types.void(types.uint64), generate


@intrinsic
def _as_float(context: Any, bits: Any) -> Any:
    """The fp32 with these 32 bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.uint32), generate


@intrinsic
def _as_bits(context: Any, value: Any) -> Any:
    """The 32 bits of an fp32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.uint32(types.float32), generate


@njit(parallel=True, **_COMPILE)
def gather(stored: Any, bits: Any, rows: Any, out: Any, workers: Any) -> None:
    """Reads rows.

    Args:
        stored: [R, ...] rows in their format, as `typed` gives them.
        bits: of a code; or the step that all rows share, as `bits_or_step` gives it.
        rows: [n] int32.
        out: [n, D] fp32, written.
        workers: parts the work is divided into.
    """
    n = len(rows)
    for worker in prange(workers):
        _gather_part(stored, bits, rows, out, np.uint64(n * worker // workers), np.uint64(n * (worker + 1) // workers))


@njit(parallel=True, **_COMPILE)
def update(
    stored: Any,
    bits: Any,
    rows: Any,
    order: Any,
    grad: Any,
    optimizer: Any,
    rates: Any,
    step: Any,
    first: Any,
    second: Any,
    last: Any,
    mean: Any,
    mean_last: Any,
    mean_step: Any,
    decay: Any,
    workers: Any,
) -> None:
    """One optimizer step on the rows looked up.

    Args:
        stored: [R, ...] rows in their format, as `typed` gives them; changed in place.
        bits: of a code.
        rows: [n] int32, ascending.
        order: [n] int64: which gradient belongs to each of them.
        grad: [n, D] fp32.
        optimizer: SGD, ADAGRAD, ADAM or RMSPROP.
        rates: [6] fp32: learning rate, eps, beta1, beta2, l2, factor of the gradients.
        step: number of this step, from 1.
        first: [R, D] first moments; empty if the optimizer has none.
        second: [R, D] or, row-wise, [R, 1] second moments (Adagrad: sums); empty if it has none.
        last: [R] int32, the step a row was last touched (RMSPROP); else empty.
        mean: [R, D] moving average; empty without one.
        mean_last: [R] int32, the step of the average at which a row of it was last brought up to date.
        mean_step: number of this step to the average, from 1.
        decay: of the average, a step.
        workers: parts the work is divided into.
    """
    n = len(rows)
    for worker in prange(workers):
        _update_part(
            stored,
            bits,
            rows,
            order,
            grad,
            optimizer,
            rates,
            step,
            first,
            second,
            last,
            mean,
            mean_last,
            mean_step,
            decay,
            np.uint64(n * worker // workers),
            np.uint64(n * (worker + 1) // workers),
        )


@njit(parallel=True, **_COMPILE)
def round_rows(values: Any, bits: Any, best_step: Any, workers: Any) -> None:
    """Rounds rows [n, D] fp32 in place to what their integer format would read them as, to nearest.

    Args:
        values: [n, D] fp32.
        bits: of a code.
        best_step: `formats.BEST_STEP` of these bits; infinite if there is none.
        workers: parts the work is divided into.
    """
    n, width = len(values), np.uint64(values.shape[1])
    half = _half(bits)
    for worker in prange(workers):
        for i in range(np.uint64(n * worker // workers), np.uint64(n * (worker + 1) // workers)):
            largest, squares = np.float32(0), np.float64(0)
            for j in range(width):
                largest = max(largest, abs(values[i, j]))
                squares += np.float64(values[i, j]) ** 2
            scale = _bf16_nearest(largest / half)
            spread = _bf16_nearest(np.float32(np.sqrt(squares / np.float64(width)) * best_step))
            more_exact = _squared_error(values, i, spread, half) < _squared_error(values, i, scale, half)
            scale = spread if (spread < scale) & more_exact else scale
            inverse = _inverse(scale)
            for j in range(width):
                values[i, j] = (_nearest_code(values[i, j], inverse, half) - half) * scale


@njit(inline="always", **_COMPILE)
def _squared_error(values: Any, i: Any, scale: Any, half: Any) -> Any:
    """Of row i, rounded to nearest under a scale."""
    inverse, total = _inverse(scale), np.float64(0)
    for j in range(np.uint64(values.shape[1])):
        value = values[i, j]
        total += np.float64(value - (_nearest_code(value, inverse, half) - half) * scale) ** 2
    return total


@njit(**_COMPILE)
def _gather_part(stored: Any, bits: Any, rows: Any, out: Any, start: Any, end: Any) -> None:
    base, size, width = np.uint64(stored.ctypes.data), np.uint64(stored.strides[0]), np.uint64(out.shape[1])
    for i in range(start, end):
        prefetch_row(base, size, rows[min(i + _AHEAD, end - _ONE)])
        decode(stored, bits, np.uint64(rows[i]), out, i, width)


@njit(**_COMPILE)
def _update_part(
    stored: Any,
    bits: Any,
    rows: Any,
    order: Any,
    grad: Any,
    optimizer: Any,
    rates: Any,
    step: Any,
    first: Any,
    second: Any,
    last: Any,
    mean: Any,
    mean_last: Any,
    mean_step: Any,
    decay: Any,
    start: Any,
    end: Any,
) -> None:
    """The groups of equal rows that begin in [start, end)."""
    width, n = np.uint64(grad.shape[1]), np.uint64(len(rows))
    rate, eps, beta1, beta2, l2, factor = rates[0], rates[1], rates[2], rates[3], rates[4], rates[5]
    zero, one = np.float32(0), np.float32(1)
    rowwise = second.shape[1] == 1 and width > _ONE
    # corrections of Adam's moments for having started at 0
    correction1 = np.float32(1 - np.float64(beta1) ** step) if optimizer == ADAM else one
    correction2 = np.float32(np.sqrt(1 - np.float64(beta2) ** step)) if optimizer >= ADAM else one
    padded = (width + _LANES - _ONE) // _LANES * _LANES
    g, old = np.zeros((1, padded), np.float32), np.zeros((1, padded), np.float32)
    new, scratch = np.zeros((_AT_ONCE, padded), np.float32), np.empty((1, padded), np.float32)
    changed, inverse = np.empty(_AT_ONCE, np.uint64), np.empty(_AT_ONCE, np.float32)
    keys = np.empty(padded, np.uint32)
    for j in range(padded):
        keys[j] = _mix32(j + _ONE) | np.uint32(1)
    # taken once: asking an array for its address counts references
    grad_at, stored_at = np.uint64(grad.ctypes.data), np.uint64(stored.ctypes.data)
    first_at, second_at, mean_at = (
        np.uint64(first.ctypes.data),
        np.uint64(second.ctypes.data),
        np.uint64(mean.ctypes.data),
    )
    grad_size, stored_size = np.uint64(grad.strides[0]), np.uint64(stored.strides[0])
    second_size, state_size = np.uint64(second.strides[0]), np.uint64(4) * width
    has_first, has_second, has_mean = len(first) > 0, len(second) > 0, len(mean) > 0
    zeroth = np.uint64(0)
    i = start
    while zeroth < i < n and rows[i] == rows[i - _ONE]:
        i += _ONE
    while i < end:
        count = zeroth
        while count < _AT_ONCE and i < end:
            row = np.uint64(rows[i])
            for j in range(padded):
                g[0, j] = zero
            while i < n and np.uint64(rows[i]) == row:
                ahead = min(i + _AHEAD, n - _ONE)
                soon = rows[ahead]
                prefetch_row(grad_at, grad_size, order[ahead])
                prefetch_row(stored_at, stored_size, soon)
                if has_second:
                    prefetch_row(second_at, second_size, soon)
                if has_first:
                    prefetch_row(first_at, state_size, soon)
                if has_mean:
                    prefetch_row(mean_at, state_size, soon)
                source = np.uint64(order[i])
                for j in range(width):
                    g[0, j] += grad[source, j]
                i += _ONE
            decode(stored, bits, row, old, zeroth, width)
            for j in range(padded):
                g[0, j] = g[0, j] * factor + l2 * old[0, j]
            if optimizer == SGD:
                for j in range(padded):
                    new[count, j] = old[0, j] - rate * g[0, j]
            else:
                if rowwise or optimizer == ADAGRAD:
                    square = zero
                    for j in range(padded):
                        square += g[0, j] * g[0, j]
                    square /= np.float32(width)
                if optimizer == ADAGRAD:
                    total = second[row, zeroth] + square
                    second[row, zeroth] = total
                    pace = rate / (np.sqrt(total) + eps)
                    for j in range(padded):
                        new[count, j] = old[0, j] - pace * g[0, j]
                else:
                    kept = beta2
                    if optimizer == RMSPROP:
                        kept = np.float32(np.float64(beta2) ** (step - last[row]))
                        last[row] = step
                    for j in range(width):
                        if not rowwise or j == zeroth:
                            gg = square if rowwise else g[0, j] * g[0, j]
                            moment = kept * second[row, j] + (one - beta2) * gg
                            second[row, j] = moment
                            pace = rate / (np.sqrt(moment) / correction2 + eps)
                        direction = g[0, j]
                        if optimizer == ADAM:
                            direction = beta1 * first[row, j] + (one - beta1) * direction
                            first[row, j] = direction
                            direction /= correction1
                        new[count, j] = old[0, j] - pace * direction
            if has_mean:
                missed = np.float32(np.float64(decay) ** (mean_step - np.int64(1) - mean_last[row]))
                for j in range(width):
                    caught_up = old[0, j] + (mean[row, j] - old[0, j]) * missed
                    mean[row, j] = caught_up + (new[count, j] - caught_up) * np.float32(1 - decay)
                mean_last[row] = mean_step
            changed[count] = row
            count += _ONE
        for c in range(count):
            inverse[c] = _rescale(stored, bits, changed[c], new, c)
        for c in range(count):
            base = _mix32(changed[c] * np.uint64(0x9E3779B1) + np.uint64(step) * np.uint64(0x85EBCA6B))
            _encode(stored, bits, changed[c], new, c, inverse[c], scratch, base, keys, width)


@njit(**_COMPILE)
def prefetch_row(base: Any, size: Any, row: Any) -> None:
    address = base + size * np.uint64(row)
    end = address + size
    address &= ~(_LINE - _ONE)
    while address < end:
        _prefetch(address)
        address += _LINE


def decode(stored: Any, bits: Any, row: Any, out: Any, at: Any, width: Any) -> None:
    """Reads one stored row into out[at]; the code depends on the dtype of `stored` and is chosen when compiling.

    A float32 for `bits` is the step that all int8 rows share.
    """


@overload(decode, inline="always")
def _compile_decode(stored: Any, bits: Any, row: Any, out: Any, at: Any, width: Any) -> Any:
    def fp32(stored: Any, bits: Any, row: Any, out: Any, at: Any, width: Any) -> None:
        for j in range(width):
            out[at, j] = stored[row, j]

    def bf16(stored: Any, bits: Any, row: Any, out: Any, at: Any, width: Any) -> None:
        for j in range(width):
            out[at, j] = _as_float(np.uint32(stored[row, j]) << np.uint32(16))

    def fp16(stored: Any, bits: Any, row: Any, out: Any, at: Any, width: Any) -> None:
        for j in range(width):
            x = np.uint32(stored[row, j])
            aligned = ((x & np.uint32(0x8000)) << np.uint32(16)) | ((x & np.uint32(0x7FFF)) << np.uint32(13))
            out[at, j] = _as_float(aligned) * np.float32(2.0**112)

    def int8(stored: Any, bits: Any, row: Any, out: Any, at: Any, width: Any) -> None:
        scale = _scale(stored, row)
        for j in range(width):
            out[at, j] = (np.float32(np.uint8(stored[row, j])) - np.float32(127.5)) * scale

    def packed(stored: Any, bits: Any, row: Any, out: Any, at: Any, width: Any) -> None:
        scale, half = _scale(stored, row), _half(bits)
        if bits == np.uint64(4):
            for j in range(width):
                shift = np.uint32(j & np.uint64(1)) * np.uint32(4)
                code = (np.uint32(stored[row, j >> np.uint64(1)]) >> shift) & np.uint32(15)
                out[at, j] = (np.float32(code) - half) * scale
        else:
            for j in range(width):
                shift = np.uint32(j & np.uint64(3)) * np.uint32(2)
                code = (np.uint32(stored[row, j >> np.uint64(2)]) >> shift) & np.uint32(3)
                out[at, j] = (np.float32(code) - half) * scale

    def int8_shared(stored: Any, bits: Any, row: Any, out: Any, at: Any, width: Any) -> None:
        for j in range(width):
            out[at, j] = (np.float32(np.uint8(stored[row, j])) - np.float32(128)) * bits

    if bits == types.float32:
        return int8_shared
    return _by_dtype(stored, fp32, bf16, fp16, int8, packed)


def _rescale(stored: Any, bits: Any, row: Any, values: Any, at: Any) -> Any:
    """Gives an integer row another scale where its own does not serve values[at] (padded with zeros).

    Returns:
        1 / scale; of other formats 0.
    """


@overload(_rescale, inline="always")
def _compile_rescale(stored: Any, bits: Any, row: Any, values: Any, at: Any) -> Any:
    def none(stored: Any, bits: Any, row: Any, values: Any, at: Any) -> Any:
        return np.float32(0)

    def integer(stored: Any, bits: Any, row: Any, values: Any, at: Any) -> Any:
        return _fit_scale(stored, row, values, at, _half(bits))

    return _by_dtype(stored, none, none, none, integer, integer)


def _encode(
    stored: Any, bits: Any, row: Any, values: Any, at: Any, inverse: Any, scratch: Any, base: Any, keys: Any, width: Any
) -> None:
    """Writes values[at] (padded with zeros) to a stored row with stochastic rounding, as `formats.RowFormat.encode`."""


@overload(_encode, inline="always")
def _compile_encode(stored, bits, row, values, at, inverse, scratch, base, keys, width):  # type: ignore[no-untyped-def]
    # numba compares signatures, annotations too
    def fp32(stored, bits, row, values, at, inverse, scratch, base, keys, width):  # type: ignore[no-untyped-def]
        for j in range(width):
            stored[row, j] = values[at, j]

    def bf16(stored, bits, row, values, at, inverse, scratch, base, keys, width):  # type: ignore[no-untyped-def]
        for j in range(np.uint64(scratch.shape[1])):
            extra = np.uint32(_noise(base, keys[j]) * np.float32(2**16))
            scratch[0, j] = _as_float(_as_bits(values[at, j]) + extra)
        for j in range(width):
            stored[row, j] = _as_bits(scratch[0, j]) >> np.uint32(16)

    def fp16(stored, bits, row, values, at, inverse, scratch, base, keys, width):  # type: ignore[no-untyped-def]
        for j in range(width):
            x = min(max(values[at, j], np.float32(-65504.0)), np.float32(65504.0)) * np.float32(2.0**-112)
            raw = _as_bits(x) + np.uint32(_noise(base, keys[j]) * np.float32(2**13))
            magnitude = min((raw & np.uint32(0x7FFFFFFF)) >> np.uint32(13), np.uint32(0x7BFF))
            stored[row, j] = np.int16(np.uint16(((raw >> np.uint32(16)) & np.uint32(0x8000)) | magnitude))

    def int8(stored, bits, row, values, at, inverse, scratch, base, keys, width):  # type: ignore[no-untyped-def]
        _draw_codes(values, at, inverse, np.float32(127.5), scratch, base, keys)
        for j in range(width):
            stored[row, j] = np.int8(np.int32(scratch[0, j]))

    def packed(stored, bits, row, values, at, inverse, scratch, base, keys, width):  # type: ignore[no-untyped-def]
        _draw_codes(values, at, inverse, _half(bits), scratch, base, keys)
        for j in range(width, np.uint64(scratch.shape[1])):
            scratch[0, j] = np.float32(0)
        if bits == np.uint64(4):
            for k in range(np.uint64(stored.shape[1]) - np.uint64(2)):
                low, high = np.int32(scratch[0, _TWO * k]), np.int32(scratch[0, _TWO * k + _ONE])
                stored[row, k] = np.uint8(low | (high << np.int32(4)))
        else:
            for k in range(np.uint64(stored.shape[1]) - np.uint64(2)):
                byte = np.int32(0)
                for part in range(np.uint64(4)):
                    byte |= np.int32(scratch[0, np.uint64(4) * k + part]) << np.int32(_TWO * part)
                stored[row, k] = np.uint8(byte)

    return _by_dtype(stored, fp32, bf16, fp16, int8, packed)


def _by_dtype(stored: Any, fp32: Any, bf16: Any, fp16: Any, int8: Any, packed: Any) -> Any:
    choices = {
        types.float32: fp32,
        types.uint16: bf16,
        types.int16: fp16,
        types.int8: int8,
        types.uint8: packed,
    }
    return choices[stored.dtype]


@njit(inline="always", **_COMPILE)
def _fit_scale(stored: Any, row: Any, values: Any, at: Any, half: Any) -> Any:
    """As `_rescale`, for codes of half this range."""
    # magnitudes compare as their bits do
    largest = np.uint32(0)
    for j in range(np.uint64(values.shape[1])):
        magnitude = np.uint32(_as_bits(values[at, j]) & np.uint32(0x7FFFFFFF))
        largest = np.uint32(magnitude if magnitude > largest else largest)
    scale = _serving_scale(_as_float(largest) / half, _scale(stored, row))
    raw, end = _as_bits(scale) >> np.uint32(16), np.uint64(stored.shape[1])
    stored[row, end - _TWO] = np.uint8(raw & np.uint32(0xFF))
    stored[row, end - _ONE] = np.uint8(raw >> np.uint32(8))
    return _inverse(scale)


@njit(inline="always", **_COMPILE)
def _draw_codes(values: Any, at: Any, inverse: Any, half: Any, codes: Any, base: Any, keys: Any) -> None:
    """Draws the codes of values[at]."""
    top = np.float32(2) * half
    for j in range(np.uint64(values.shape[1])):
        # the sum is not negative, so that cutting the fraction off rounds it down
        code = np.float32(np.int32(values[at, j] * inverse + half + _noise(base, keys[j])))
        codes[0, j] = code if code < top else top


@njit(**_COMPILE)
def _serving_scale(needed: Any, scale: Any) -> Any:
    """The scale a row has, as long as that serves it; else another, for what it needs."""
    # without a branch: which rows outgrow their scale cannot be foretold
    other = _bf16_above(needed * _HEADROOM)
    return other if (needed > scale) | (needed < scale * _SHRINK_BELOW) else scale


@njit(**_COMPILE)
def _inverse(scale: Any) -> Any:
    return np.float32(1) / scale if scale > 0 else np.float32(0)


@njit(**_COMPILE)
def _half(bits: Any) -> Any:
    return np.float32((1 << np.int64(bits)) - 1) * np.float32(0.5)


@njit(**_COMPILE)
def _nearest_code(value: Any, inverse: Any, half: Any) -> Any:
    return min(max(np.floor(value * inverse + half + np.float32(0.5)), np.float32(0)), np.float32(2) * half)


@njit(inline="always", **_COMPILE)
def _scale(stored: Any, row: Any) -> Any:
    end = np.uint64(stored.shape[1])
    low, high = np.uint32(np.uint8(stored[row, end - _TWO])), np.uint32(np.uint8(stored[row, end - _ONE]))
    return _as_float((low | (high << np.uint32(8))) << np.uint32(16))


@njit(**_COMPILE)
def _bf16_nearest(x: Any) -> Any:
    return _as_float(((_as_bits(x) + np.uint32(0x8000)) >> np.uint32(16)) << np.uint32(16))


@njit(**_COMPILE)
def _bf16_above(x: Any) -> Any:
    return _as_float(((_as_bits(x) + np.uint32(0xFFFF)) >> np.uint32(16)) << np.uint32(16))


@njit(**_COMPILE)
def _noise(base: Any, key: Any) -> Any:
    """As `formats.rounding_noise`, from the mixed row and step and the key of the column."""
    return np.float32(np.int32(np.uint32(base * key) >> np.uint32(8))) * np.float32(2.0**-24)


@njit(**_COMPILE)
def _mix32(x: Any) -> Any:
    # products and sums of uint32 are uint64 to numba: every one is cut back
    x = np.uint32(x)
    x = np.uint32((x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D))
    x = np.uint32((x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B))
    return np.uint32(x ^ (x >> np.uint32(16)))
