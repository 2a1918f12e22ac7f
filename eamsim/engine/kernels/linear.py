"""Linear: packed weights; whole tiles finished in registers, the rest as a product into int32 scratch and an epilogue row by row."""

from __future__ import annotations

from typing import Any, assert_never

import numpy as np
from numba import njit
from numba.extending import overload

from eamsim.engine.ir.epilogue import Finish
from eamsim.engine.ir.tile import PANEL, ROWS, STEP, STEP_BYTES, Product
from eamsim.engine.isa import AddResidual, AddShortResidual, Portable, ToCodes, ToShortCodes, ToValues, gemm, look_up, tiles
from eamsim.engine.kernels.fixedpoint import Floor, HalfUp, clip, round_shift
from eamsim.engine.memory import Constants, keep, store_row, tap_fields
from eamsim.engine.refusals import Refusal, refuse
from eamsim.program import Epilogue, Gelu, Linear, Raw, Requant, Residual, Value

FIELDS = (
    "levels",
    "entries",
    "weight",
    "bias",
    "steps",
    "safe_steps",
    "multiplier",
    "shift",
    "narrow",
    "short",
    "zero",
    "has_table",
    "lut",
    "operand",
    "exponent_change",
    *tap_fields("acc", "index"),
)
TOKENS, CHANNELS = 8 * ROWS, 16 * PANEL  # one block of accumulators: 48 KB
LOOK_UP = 16  # entries that a table is made of


def plan_linear(op: Linear, x: Value, operand: Value | None, place: int, reach: int, constants: Constants) -> dict[str, Any]:
    """Units: tokens. operand: the Residual's r, which lies at `place` (-1 without one); reach: the greatest magnitude of a sum."""
    low, high = (int(limit(limit(op.weight, axis=0).astype(np.int16) - op.weight_zero)) for limit in (np.min, np.max))
    if low < -128 or high > 127:
        refuse(f"{op.out.name} Linear", Refusal.WEIGHTS, f"[{low}, {high}]")
    weight = (op.weight - op.weight_zero).view(np.int8)  # modulo 256: the difference is what fits
    zero, greatest, levels = plan_levels(op, x, constants)
    bias = op.bias - zero * weight.sum(axis=0, dtype=np.int64)
    epilogue = op.epilogue
    return {
        "units": op.out.shape[0],
        "block": TOKENS,
        "grain": ROWS,
        "words": TOKENS * CHANNELS,
        "weight": constants.add(pack(weight)),
        "bias": constants.add(padded(bias.astype(np.int32), PANEL)),  # modulo 2^32: the finished sum is what fits
        "steps": -(-x.shape[1] // STEP),
        "safe_steps": safe_steps(greatest, max(-low, high)),
        "multiplier": constants.add(epilogue.multiplier),
        "shift": constants.add(epilogue.shift),
        "narrow": is_narrow(epilogue, reach, operand),
        "short": is_short(epilogue, reach),
        "operand": place,
        **levels,
    } | plan_epilogue(epilogue, op.out, constants)


def plan_levels(op: Linear, x: Value, constants: Constants) -> tuple[int, int, dict[str, int]]:
    """What is to be taken off each left operand, the greatest of them, and where codes become operands if they are none themselves.

    Levels are signed and left operands are not: the table holds by how much each exceeds the least.
    """
    if op.levels is None:
        return op.x_zero, x.high, {}
    least = int(op.levels.min())
    table = padded((op.levels - least).astype(np.uint8), LOOK_UP)
    fields = {"levels": constants.add(table), "entries": len(table), "bytes": (TOKENS + ROWS) * x.shape[1] + STEP}
    return -least, int(op.levels.max()) - least, fields


def is_narrow(epilogue: Epilogue, reach: int, operand: Value | None) -> bool:
    """Whether the rounded sum is the low half of a 64-bit one shifted by at most 32 places, and int32 holds all that follows."""
    shift = epilogue.shift.astype(np.int64)
    result = int((reach * epilogue.multiplier.astype(np.int64) >> shift).max())
    aligned = 0
    if isinstance(epilogue, Residual) and operand is not None:
        result += operand.high >> epilogue.exponent_change
        aligned = int(shift.max()) - epilogue.exponent_change
    is_byte = not isinstance(epilogue, Gelu) or epilogue.index_bits <= 8
    return bool(shift.max() <= 32 and result < 1 << 30 and aligned <= 30 and is_byte)


def is_short(epilogue: Epilogue, reach: int) -> bool:
    """Of a narrow epilogue: whether 32 bits hold every product and its rounding constant, and a residual needs no alignment."""
    shift, multiplier = int(epilogue.shift.max()), int(epilogue.multiplier.max())
    aligned = not isinstance(epilogue, Residual) or epilogue.exponent_change == 0
    return aligned and shift <= 30 and reach * multiplier + (1 << shift) < 1 << 31


def plan_epilogue(epilogue: Requant | Gelu | Residual | Raw, out: Value, constants: Constants) -> dict[str, Any]:
    """The zero point, the limits before the table if there is one, and the table."""
    channels, clip_out = out.shape[1], {"low": out.low, "high": out.high}
    match epilogue:
        case Requant():
            return clip_out | {"zero": constants.add(epilogue.zero)}
        case Gelu():
            zero = np.full(channels, epilogue.index_zero, np.int32)
            limits = {"low": 0, "high": (1 << epilogue.index_bits) - 1}
            return limits | {"zero": constants.add(zero), "has_table": True, "lut": constants.add(epilogue.table)}
        case Residual():
            return clip_out | {"exponent_change": epilogue.exponent_change}
        case Raw():
            return clip_out | {"zero": constants.add(np.zeros(channels, np.int32))}
        case _:
            assert_never(epilogue)


def pack(weight: np.ndarray) -> np.ndarray:
    """[in_channels, out_channels] -> int8 panels [out / 16][in / 4][16][4], zero padded."""
    steps, panels = (-(-extent // size) for extent, size in zip(weight.shape, (STEP, PANEL), strict=True))
    full = np.zeros((steps * STEP, panels * PANEL), np.int8)
    full[: weight.shape[0], : weight.shape[1]] = weight
    return full.reshape(steps, STEP, panels, PANEL).transpose(2, 0, 3, 1)


def packed_bytes(op: Linear) -> int:
    """Size of what `pack` makes of the weights."""
    in_channels, out_channels = op.weight.shape
    return -(-in_channels // STEP) * -(-out_channels // PANEL) * STEP_BYTES


def padded(row: np.ndarray, multiple: int) -> np.ndarray:
    return np.pad(row, (0, -len(row) % multiple))


def safe_steps(left: int, right: int) -> int:
    """Steps for which a sum of two products each, of magnitudes up to left * right, stays within int16."""
    return (1 << 15) - 1 if left * right == 0 else ((1 << 15) - 1) // (2 * left * right)


@njit
def linear(isa, rounding, op, first, last, batch, memory):
    x = memory.codes[op.x * batch + first * op.in_channels :]
    if op.entries > 0:
        codes = x[: (last - first) * op.in_channels]
        x = memory.bytes
        look_up(isa, memory.tables[op.levels :], op.entries, codes, x[: len(codes)])
    whole = op.narrow and last - first >= ROWS and (op.tap_acc < 0 or op.item_acc in (2, 4))
    done = fused(isa, rounding, op, first, last, x, batch, memory) if whole else 0
    acc = memory.words[: TOKENS * CHANNELS]
    for left in range(done, op.channels, CHANNELS):
        width = min(CHANNELS, op.channels - left)
        panels = (width + PANEL - 1) // PANEL
        weight = memory.weights[op.weight + left * op.steps * STEP :]
        bias = memory.ints[op.bias + left :]
        gemm(isa, x, op.in_channels, weight, panels, bias, acc, CHANNELS, last - first, op.steps, op.safe_steps)
        finish(rounding, op, first, last, left, width, acc, batch, memory)


@njit
def tile_operands(op, first, x, batch, memory):
    """Product and Finish of the tiles from row `first` on, whose left operands are x, column 0."""
    ints, values, codes = memory.ints.ctypes.data, memory.values.ctypes.data, memory.codes.ctypes.data
    offset, channels = first * op.channels, op.channels
    product = Product(
        x.ctypes.data,
        op.in_channels,
        memory.weights.ctypes.data + op.weight,
        op.steps * STEP_BYTES,
        ints + 4 * op.bias,
        op.steps,
        op.safe_steps,
    )
    finish = Finish(
        values + 4 * (op.out * batch + offset) if op.out_signed else codes + op.out * batch + offset,
        (4 if op.out_signed else 1) * channels,
        ints + 4 * op.multiplier,
        ints + 4 * op.shift,
        ints + 4 * op.zero,
        values + 4 * (op.operand * batch + offset),
        4 * channels,
        op.exponent_change,
        op.low,
        op.high,
        memory.taps.ctypes.data + op.tap_acc * batch + op.item_acc * offset if op.tap_acc >= 0 else 0,
        op.item_acc * channels,
        op.item_acc,
        0,
    )
    return product, finish


def fused(isa, rounding, op, first, last, x, batch, memory):
    """Whole panels of rows [first, last), finished before they leave the registers; returns the channels done."""
    raise NotImplementedError("compiled code only")


@overload(fused)
def _fused(isa, rounding, op, first, last, x, batch, memory):
    if isa.instance_class is Portable:
        return lambda isa, rounding, op, first, last, x, batch, memory: 0

    # An integer added before or after rounding half up is the same; with the other two ties depend on the sum.
    separable = rounding.instance_class in (HalfUp, Floor)

    def in_tiles(isa, rounding, op, first, last, x, batch, memory):
        if op.safe_steps == 0:
            return 0
        channels, rows, count = op.channels, last - first, op.channels // PANEL
        product, finish = tile_operands(op, first, x, batch, memory)
        if op.operand >= 0 and op.short and separable:
            tiles(isa, rounding, AddShortResidual(), count, rows, product, finish, 4)
        elif op.operand >= 0:
            tiles(isa, rounding, AddResidual(), count, rows, product, finish, 4)
        elif op.out_signed:
            tiles(isa, rounding, ToValues(), count, rows, product, finish, 4)
        elif op.short:
            tiles(isa, rounding, ToShortCodes(), count, rows, product, finish, 1)
        else:
            tiles(isa, rounding, ToCodes(), count, rows, product, finish, 1)
        if op.has_table:  # of whole rows at once: what is not done of them is overwritten later
            codes = memory.codes[op.out * batch + first * channels : op.out * batch + last * channels]
            keep(memory.taps, op.tap_index * batch, op.item_index, first * channels, codes)
            look_up(isa, memory.tables[op.lut :], (op.high + 16) // 16 * 16, codes, codes)
        return count * PANEL

    return in_tiles


@njit
def finish(rounding, op, first, last, left, width, acc, batch, memory):
    """The epilogue of channels [left, left + width) of rows [first, last)."""
    codes, values, taps, low, high = memory.codes, memory.values, memory.taps, op.low, op.high
    multiplier = memory.ints[op.multiplier + left : op.multiplier + left + width]
    shift = memory.ints[op.shift + left : op.shift + left + width]
    zero = memory.ints[op.zero + left : op.zero + left + width]
    table = memory.tables[op.lut : op.lut + high + 1]
    for token in range(first, last):
        offset = token * op.channels + left
        row = acc[(token - first) * CHANNELS : (token - first) * CHANNELS + width]
        keep(taps, op.tap_acc * batch, op.item_acc, offset, row)
        if op.operand >= 0:
            operand = values[op.operand * batch + offset : op.operand * batch + offset + width]
            add_residual(rounding, row, multiplier, shift, operand, op.exponent_change, low, high)
        else:
            requantise(rounding, row, multiplier, shift, zero, low, high)
        if op.has_table:
            keep(taps, op.tap_index * batch, op.item_index, offset, row)
            look_up_row(table, row)
        store_row(op.out_signed, op.out * batch + offset, codes, values, row)


@njit
def requantise(rounding, acc, multiplier, shift, zero, low, high):
    """acc = clip(round_shift(acc * multiplier, shift) + zero, low, high)."""
    for i in range(len(acc)):
        product = np.int64(np.int64(acc[i]) * np.int64(multiplier[i]))
        acc[i] = np.int32(clip(round_shift(rounding, product, np.int64(shift[i])) + np.int64(zero[i]), low, high))


@njit
def add_residual(rounding, acc, multiplier, shift, operand, exponent_change, low, high):
    """acc = clip(round_shift(operand * 2^(shift - exponent_change) + acc * multiplier, shift), low, high)."""
    for i in range(len(acc)):
        s = np.int64(shift[i])
        aligned = np.int64(operand[i]) << (s - exponent_change)
        total = np.int64(aligned + np.int64(acc[i]) * np.int64(multiplier[i]))
        acc[i] = np.int32(clip(round_shift(rounding, total, s), low, high))


@njit
def look_up_row(table, acc):
    for i in range(len(acc)):
        acc[i] = np.int32(table[np.uint32(acc[i])])
