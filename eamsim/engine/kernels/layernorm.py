"""LayerNorm in integers: exact centring, exact square root, one reciprocal for each token."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from eamsim.check import extent, magnitude
from eamsim.engine.ir import epilogue, tile
from eamsim.engine.kernels.fixedpoint import ROUNDINGS, bit_length, clip, isqrt_each, round_narrow
from eamsim.engine.memory import Constants, keep, store_row, tap_fields
from eamsim.engine.refusals import Refusal, refuse
from eamsim.program import LayerNorm

FIELDS = (
    "gain",
    "offset",
    "split_offset",
    "norm_shift",
    "variance_offset",
    "fraction_bits",
    "reciprocal_bits",
    *tap_fields("variance", "reciprocal", "normalised"),
)
TOKENS = 32
LANES = 16


def plan_layer_norm(op: LayerNorm, constants: Constants) -> dict[str, Any]:
    """Units: tokens."""
    tokens, channels = op.out.shape
    reach = (2 << op.fraction_bits) * (math.isqrt(channels) + 2)
    if channels << (op.reciprocal_bits + 1) >= 1 << 31 or reach >= 1 << 31:
        fields = f"{op.reciprocal_bits} reciprocal and {op.fraction_bits} fraction bits on {channels} channels"
        refuse(f"{op.out.name} LayerNorm", Refusal.NORMS, fields)
    whole = op.offset[: channels // LANES * LANES].reshape(-1, LANES // 2, 2)
    arrays = {"gain": constants.add(op.gain), "offset": constants.add(op.offset)}
    arrays["split_offset"] = constants.add(whole.transpose(0, 2, 1))
    numbers = {"norm_shift": op.shift, "variance_offset": op.variance_offset, "fraction_bits": op.fraction_bits}
    scaled = reach * magnitude(extent(op.gain)) + magnitude(extent(op.offset))
    numbers["narrow"] = op.shift <= 32 and scaled >> op.shift < 1 << 30
    return {"units": tokens, "block": TOKENS, "words": channels, "reciprocal_bits": op.reciprocal_bits} | arrays | numbers


@njit
def layer_norm(rounding, op, first, last, batch, memory):
    """The statistics of all tokens first: their square roots are taken side by side."""
    channels, values, taps = op.channels, memory.values, memory.taps
    found = np.empty((4, last - first), np.int64)
    totals, variances, deviations, reciprocals = found[0], found[1], found[2], found[3]
    for token in range(first, last):
        start = op.x * batch + token * channels
        total, squares = statistics(values[start : start + channels])
        totals[token - first] = total
        variances[token - first] = channels * squares - total * total + op.variance_offset
    keep(taps, op.tap_variance * batch, op.item_variance, first, variances)
    isqrt_each(variances, deviations)
    longs, ints, codes = memory.longs.ctypes.data, memory.ints.ctypes.data, memory.codes.ctypes.data
    x, out, constants = values.ctypes.data + 4 * op.x * batch, codes + op.out * batch, (ints + 4 * op.gain, longs + 8 * op.split_offset)
    normalised = taps.ctypes.data + op.tap_normalised * batch
    in_vectors = op.narrow and not op.out_signed and (op.tap_normalised < 0 or op.item_normalised == 4)
    whole = channels // LANES * LANES if in_vectors else 0
    for token in range(first, last):
        exponent, reciprocal = invert(deviations[token - first], op.reciprocal_bits)
        reciprocals[token - first] = reciprocal
        total, shift, start = totals[token - first], exponent - op.fraction_bits, token * channels
        done = whole if shift <= 32 else 0
        if done > 0:
            numbers = (channels * reciprocal, total * reciprocal, shift)
            tap = normalised + 4 * start if op.tap_normalised >= 0 else 0
            row = NormRow(x + 4 * start, out + start, done // LANES, *numbers, *constants, op.norm_shift, op.low, op.high, tap)
            norm_vectors(rounding, row)  # pyright: ignore[reportCallIssue] (Numba passes the typing context)
        if done < channels:
            norm_rest(rounding, op, token, done, total, reciprocal, shift, batch, memory)
    keep(taps, op.tap_reciprocal * batch, op.item_reciprocal, first, reciprocals)


@njit
def norm_rest(rounding, op, token, done, total, reciprocal, shift, batch, memory):
    """Channels [done, channels) of a token, in scratch: what does not fill a vector or 32 bits."""
    channels, start = op.channels, token * op.channels
    x, row = memory.values[op.x * batch + start + done : op.x * batch + start + channels], memory.words[: channels - done]
    gain, offset = memory.ints[op.gain + done : op.gain + channels], memory.longs[op.offset + done : op.offset + channels]
    if shift <= 32:
        normalise(rounding, np.int32(0), x, channels, total, reciprocal, shift, row)
    else:
        normalise(rounding, np.int64(0), x, channels, total, reciprocal, shift, row)
    keep(memory.taps, op.tap_normalised * batch, op.item_normalised, start + done, row)
    if op.narrow:
        scale(rounding, gain, offset, op.norm_shift, np.int32(op.low), np.int32(op.high), row)
    else:
        scale(rounding, gain, offset, op.norm_shift, op.low, op.high, row)
    store_row(op.out_signed, op.out * batch + start + done, memory.codes, memory.values, row)


class NormRow(NamedTuple):
    """Addresses and numbers of a token whose results fit 32 bits; offset: of LANES channels the even ones before the odd; tap: t or 0."""

    x: Any
    out: Any
    vectors: Any
    factor: Any
    centre: Any
    shift: Any
    gain: Any
    offset: Any
    scale_shift: Any
    low: Any
    high: Any
    tap: Any


@intrinsic
def norm_vectors(typingctx, rounding, row):
    """out = clip(round_shift(t * gain + offset, scale_shift)) as uint8, t = round_shift(x * factor - centre, shift); any machine."""
    mode = next(name for name, tag in ROUNDINGS.items() if type(tag) is rounding.instance_class)

    def codegen(context, builder, signature, args):
        emit_norm(builder, mode, NormRow(*[builder.extract_value(args[1], n) for n in range(len(NormRow._fields))]))
        return context.get_dummy_value()

    return types.void(rounding, row), codegen


def emit_norm(builder: ir.IRBuilder, rounding: str, row: NormRow) -> None:
    """Even and odd lanes apart, as in the tiles: every 64-bit product is of 32-bit factors."""
    narrow, wide = ir.VectorType(tile.I32, LANES), ir.VectorType(tile.I64, LANES // 2)
    factor = tile.broadcast(builder, builder.sext(builder.trunc(row.factor, tile.I32), tile.I64), wide)
    centre, shift = (tile.broadcast(builder, number, wide) for number in (row.centre, row.shift))
    scale_shift, half = tile.broadcast(builder, builder.trunc(row.scale_shift, tile.I32), narrow), ir.Constant(wide, [32] * wide.count)

    def channels(n: Any, so_far: list[Any]) -> list[Any]:
        gains = epilogue.signed_halves(builder, tile.load(builder, narrow, row.gain, (n, 4 * LANES)))
        totals, normalised = [], []
        for parity, x in enumerate(epilogue.signed_halves(builder, tile.load(builder, narrow, row.x, (n, 4 * LANES)))):
            t = epilogue.add_half(builder, rounding, builder.sub(builder.mul(x, factor), centre), shift)
            t = builder.ashr(builder.shl(builder.lshr(t, shift), half), half)  # its low half is all of it
            normalised.append(t)
            offset = tile.load(builder, wide, row.offset, (n, 8 * LANES), (tile.I64(parity), 4 * LANES))
            totals.append(builder.add(builder.mul(t, gains[parity]), offset))
        with builder.if_then(builder.icmp_signed("!=", row.tap, tile.I64(0)), likely=False):
            whole = epilogue.interleave(builder, normalised[0], normalised[1], ir.Constant(wide, None), ir.Constant(wide, None))
            tile.store(builder, whole, row.tap, (n, 4 * LANES))
        value = epilogue.rounded(builder, rounding, totals, scale_shift, None, row.low, row.high)
        tile.store(builder, builder.trunc(value, ir.VectorType(tile.I8, LANES)), row.out, (n, LANES))
        return so_far

    tile.each_vector(builder, row.vectors, [], channels)


@njit
def statistics(x):
    """sum x and sum x^2, int64."""
    total, squares = np.int64(0), np.int64(0)
    for i in range(len(x)):
        total += np.int64(x[i])
        squares += np.int64(x[i]) * np.int64(x[i])
    return total, squares


@njit(error_model="numpy")
def invert(deviation, reciprocal_bits):
    """(s, floor(2^s / D)) with s = bit_length(D) + reciprocal_bits."""
    exponent = bit_length(deviation) + reciprocal_bits
    return exponent, (np.int64(1) << exponent) // deviation


@njit
def normalise(rounding, width, x, channels, total, reciprocal, shift, row):
    """row = round_shift(y * reciprocal, shift) with y = channels * x - total.

    y * r is computed as x * (channels * r) - total * r: the same integer, of a 32 by 32 bit product.
    """
    factor, centre = np.int64(np.int32(channels * reciprocal)), total * reciprocal
    for i in range(len(row)):
        row[i] = np.int32(round_narrow(rounding, width, np.int64(np.int64(x[i]) * factor - centre), shift))


@njit
def scale(rounding, gain, offset, shift, low, high, row):
    """row = clip(round_shift(row * gain + offset, shift), low, high)."""
    for i in range(len(row)):
        scaled = round_narrow(rounding, low, np.int64(np.int64(row[i]) * np.int64(gain[i]) + offset[i]), shift)
        row[i] = np.int32(clip(scaled, low, high))
