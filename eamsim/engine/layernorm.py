"""LayerNorm in integers: exact centring, exact square root, one reciprocal for each token."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit
from numba.np.ufunc import get_thread_id

from eamsim.engine.fixedpoint import bit_length, clip, isqrt, round_narrow
from eamsim.engine.memory import Constants, keep, refuse, store_row
from eamsim.program import LayerNorm
from eamsim.verify import extent, magnitude

FIELDS = (
    "gain",
    "offset",
    "norm_shift",
    "variance_offset",
    "fraction_bits",
    "reciprocal_bits",
    "tap_variance",
    "tap_reciprocal",
    "tap_normalised",
)
TOKENS = 32


def plan_layer_norm(op: LayerNorm, constants: Constants) -> dict[str, Any]:
    """Units: tokens."""
    tokens, channels = op.out.shape
    reach = (2 << op.fraction_bits) * (math.isqrt(channels) + 2)
    if channels << (op.reciprocal_bits + 1) >= 1 << 31 or reach >= 1 << 31:
        refuse(
            f"{op.out.name} LayerNorm",
            f"{op.reciprocal_bits} reciprocal and {op.fraction_bits} fraction bits on {channels} channels exceed int32",
        )
    arrays = {"gain": constants.add(op.gain), "offset": constants.add(op.offset)}
    numbers = {"norm_shift": op.shift, "variance_offset": op.variance_offset, "fraction_bits": op.fraction_bits}
    scaled = reach * magnitude(extent(op.gain)) + magnitude(extent(op.offset))
    numbers["narrow"] = op.shift <= 32 and scaled >> op.shift < 1 << 30
    return {"units": tokens, "block": TOKENS, "words": channels, "reciprocal_bits": op.reciprocal_bits} | arrays | numbers


def taps(op: LayerNorm) -> dict[str, tuple[int, ...]]:
    tokens, channels = op.out.shape
    return {"variance": (tokens,), "reciprocal": (tokens,), "normalised": (tokens, channels)}


@njit
def layer_norm(rounding, op, first, last, batch, memory):
    channels, low, high = op.channels, op.low, op.high
    codes, values, taps = memory.codes, memory.values, memory.taps
    gain, offset = memory.ints[op.gain : op.gain + channels], memory.longs[op.offset : op.offset + channels]
    row = memory.words[get_thread_id()][:channels]
    for token in range(first, last):
        start = token * channels
        x = values[op.x * batch + start : op.x * batch + start + channels]
        total, squares = statistics(x)
        variance = channels * squares - total * total + op.variance_offset
        exponent, reciprocal = invert(variance, op.reciprocal_bits)
        shift = exponent - op.fraction_bits
        if shift <= 32:
            normalise(rounding, np.int32(0), x, total, reciprocal, shift, row)
        else:
            normalise(rounding, np.int64(0), x, total, reciprocal, shift, row)
        if op.tap_variance >= 0:
            taps[op.tap_variance * batch + token] = variance
        if op.tap_reciprocal >= 0:
            taps[op.tap_reciprocal * batch + token] = reciprocal
        keep(taps, op.tap_normalised * batch, start, row)
        if op.narrow:
            scale(rounding, gain, offset, op.norm_shift, np.int32(low), np.int32(high), row)
        else:
            scale(rounding, gain, offset, op.norm_shift, low, high, row)
        store_row(op.out_signed, op.out * batch + start, codes, values, row)


@njit
def statistics(x):
    """sum x and sum x^2, int64."""
    total, squares = np.int64(0), np.int64(0)
    for i in range(len(x)):
        total += np.int64(x[i])
        squares += np.int64(x[i]) * np.int64(x[i])
    return total, squares


@njit(error_model="numpy")
def invert(variance, reciprocal_bits):
    """(s, floor(2^s / D)) with D = floor(sqrt(variance)) and s = bit_length(D) + reciprocal_bits."""
    deviation = isqrt(variance)
    exponent = bit_length(deviation) + reciprocal_bits
    return exponent, (np.int64(1) << exponent) // deviation


@njit
def normalise(rounding, width, x, total, reciprocal, shift, row):
    """row = round_shift(y * reciprocal, shift) with y = channels * x - total.

    y * r is computed as x * (channels * r) - total * r: the same integer, of a 32 by 32 bit product.
    """
    factor, centre = np.int64(np.int32(len(x) * reciprocal)), total * reciprocal
    for i in range(len(row)):
        row[i] = np.int32(round_narrow(rounding, width, np.int64(np.int64(x[i]) * factor - centre), shift))


@njit
def scale(rounding, gain, offset, shift, low, high, row):
    """row = clip(round_shift(row * gain + offset, shift), low, high)."""
    for i in range(len(row)):
        scaled = round_narrow(rounding, low, np.int64(np.int64(row[i]) * np.int64(gain[i]) + offset[i]), shift)
        row[i] = np.int32(clip(scaled, low, high))
