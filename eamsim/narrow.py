"""A program on a narrower datapath: the same network, every constant the stored integer rounded once more (docs/guide/widths.md).

Nothing is calibrated, and no float is read: only a program is needed. Scales change by powers of two, except the step of a GELU index.
What is narrow enough already is left as it is, so equal widths give an equal program.
"""

from __future__ import annotations

from dataclasses import astuple, replace
from typing import Any, assert_never

import numpy as np

from eamsim.arguments import expect_integer, expect_type
from eamsim.check import MAX_SHIFT
from eamsim.constraints import Verified, expect_verified
from eamsim.datapath import FLOORS, KNOBS, Widths
from eamsim.program import (
    Attention,
    Embed,
    Epilogue,
    Gather,
    Gelu,
    InputQuant,
    LayerNorm,
    Linear,
    Operation,
    Pool,
    Raw,
    Requant,
    Residual,
    Value,
)

GAIN_BITS = 32
"""Of LayerNorm's int32 gains, and more than any M may have."""
GUARD_BITS = 15
"""Of a GELU's multipliers while they are scaled by a ratio that is no power of two."""


def widths_of(program: Verified) -> Widths:
    """The widest of every kind."""
    norms = [op for op in program.operations if isinstance(op, LayerNorm)]
    epilogues = [op.epilogue for op in program.operations if isinstance(op, Linear)]
    streams = [value.bits for value in program.values.values() if value.signed and value.name != program.output.name]
    return Widths(
        residual_bits=max(streams, default=0),
        multiplier_bits=program.datapath.multiplier_bits,
        exponent_bits=max((op.fraction_bits for op in program.attentions), default=0),
        exp2_bits=max((op.exp2_bits for op in program.attentions), default=0),
        log2_index_bits=max((op.log2_bits for op in program.attentions), default=0),
        norm_fraction_bits=max((op.fraction_bits for op in norms), default=0),
        reciprocal_bits=max((op.reciprocal_bits for op in norms), default=0),
        gelu_index_bits=max((each.index_bits for each in epilogues if isinstance(each, Gelu)), default=0),
        accumulator_bits=program.datapath.accumulator_bits,
    )


def sum_bits(bound: tuple[int, int]) -> int:
    """The least two's-complement width that holds a sum in [low, high]."""
    return max((-bound[0] - 1).bit_length() if bound[0] < 0 else 0, bound[1].bit_length() if bound[1] > 0 else 0) + 1


def proven_sums(program: Verified) -> dict[str, int]:
    """Bits that each sum of the program provably stays within, by tap: over all images, from the actual weights."""
    return {name: sum_bits(bound) for name, bound in program.bounds.items() if not name.endswith(".exponents")}


def narrowed(program: Verified, widths: Widths) -> Verified:
    """The program with no width above these; ProgramError where a constant does not fit, such as a ratio above 2^multiplier_bits."""
    expect_verified(program)
    expect_type("widths", widths, Widths)
    for name, (has, floor) in zip(KNOBS, zip(astuple(widths_of(program)), astuple(FLOORS), strict=True), strict=True):
        expect_integer(name, getattr(widths, name), min(has, floor))
    path = program.datapath
    if widths.multiplier_bits >= path.multiplier_bits:
        widths = replace(widths, multiplier_bits=GAIN_BITS)  # gains may be wider than any M: they stay
    drops = value_drops(program, widths)
    datapath = replace(
        path,
        multiplier_bits=min(path.multiplier_bits, widths.multiplier_bits),
        accumulator_bits=min(path.accumulator_bits, widths.accumulator_bits),
    )
    operations = tuple(narrow_operation(op, widths, drops) for op in program.operations)
    return replace(program, operations=operations, datapath=datapath)


def value_drops(program: Verified, widths: Widths) -> dict[str, int]:
    """By value, how many low bits it loses: its scale grows by as many powers of two, its reach stays. Codes lose none."""
    drops = {program.image.name: 0}
    for op in program.operations:
        match op:
            case Gather() | Embed():  # these keep the scale of what they move
                drops[op.out.name] = drops[op.x]
            case InputQuant() | LayerNorm() | Linear() | Attention() | Pool():
                to_stream = max(op.out.bits - widths.residual_bits, 0) if op.out.signed else 0
                drops[op.out.name] = output_drop(op, widths.multiplier_bits) if op.out is program.output else to_stream
            case _:
                assert_never(op)
    return drops


def output_drop(op: Operation, bits: int) -> int:
    """Logits have no unit that anyone relies on: it grows where else a ratio would not fit the multipliers."""
    if not isinstance(op, Linear) or not isinstance(op.epilogue, Raw):
        return 0
    return max(int((excess(op.epilogue.multiplier, bits) - op.epilogue.shift).max()), 0)


def narrow_operation(op: Operation, widths: Widths, drops: dict[str, int]) -> Operation:
    """One operation; its input and its output lose bits as `drops` says."""
    drop = drops[op.out.name]
    out = replace(op.out, bits=op.out.bits - drop)
    match op:
        case InputQuant():
            return op
        case Gather():
            return replace(op, out=out)
        case Embed():
            return replace(op, out=out, prefix=coarse(op.prefix, drop, out), position=coarse(op.position, drop, out))
        case LayerNorm():
            return narrow_norm(op, out, widths, drops[op.x], drop)
        case Linear():
            return replace(op, out=out, epilogue=narrow_epilogue(op.epilogue, widths, drops, drop))
        case Attention():
            return narrow_attention(op, widths)
        case Pool():
            multiplier, shift = ratio(np.array([op.multiplier]), np.array([op.shift - drops[op.x]]), widths.multiplier_bits)
            return replace(op, multiplier=int(multiplier[0]), shift=int(shift[0]))
        case _:
            assert_never(op)


def narrow_norm(op: LayerNorm, out: Value, widths: Widths, x_drop: int, out_drop: int) -> LayerNorm:
    """A coarser residual alters E alone, by 4^-x_drop: the rest does not depend on the scale of x."""
    fraction = min(op.fraction_bits, widths.norm_fraction_bits)
    gain_drop = int(excess(np.maximum(op.gain, ~op.gain).max(), widths.multiplier_bits - 1))  # -2^31 needs no more bits than 2^31 - 1
    drop = gain_drop + op.fraction_bits - fraction
    return replace(
        op,
        out=out,
        gain=half_up(op.gain, gain_drop).astype(np.int32),
        offset=half_up(op.offset, drop),
        shift=op.shift - drop + out_drop,
        variance_offset=max(1, int(half_up(np.int64(op.variance_offset), 2 * x_drop))),
        fraction_bits=fraction,
        reciprocal_bits=min(op.reciprocal_bits, widths.reciprocal_bits),
    )


def narrow_epilogue(epilogue: Epilogue, widths: Widths, drops: dict[str, int], out_drop: int) -> Epilogue:
    """The ratio shrinks by 2^-out_drop, as the unit of the output grows."""
    bits = widths.multiplier_bits
    match epilogue:
        case Requant():
            return replace(epilogue, **scaled(epilogue, 0, bits))
        case Raw():
            return replace(epilogue, **scaled(epilogue, out_drop, bits))
        case Residual():
            change = epilogue.exponent_change + out_drop - drops[epilogue.operand]
            return replace(epilogue, **scaled(epilogue, out_drop, bits), exponent_change=change)
        case Gelu():
            return narrow_gelu(epilogue, widths)
        case _:
            assert_never(epilogue)


def narrow_gelu(epilogue: Gelu, widths: Widths) -> Gelu:
    """A step q = (2^b - 3) / (2^b' - 3) times as large: the range from one step after the first entry to one before the last stays.

    Entry j of the new table is the old entry nearest to j's place.
    """
    old_bits, bits = epilogue.index_bits, min(epilogue.index_bits, widths.gelu_index_bits)
    if bits == old_bits:
        return replace(epilogue, **scaled(epilogue, 0, widths.multiplier_bits))
    old, new = (1 << old_bits) - 3, (1 << bits) - 3
    zero = 1 + int(nearest((epilogue.index_zero - 1) * new, old))
    places = epilogue.index_zero + nearest((np.arange(1 << bits) - zero) * old, new)
    finer = nearest(epilogue.multiplier.astype(np.int64) * new << (old_bits - bits + GUARD_BITS), old)
    most = min(widths.multiplier_bits, int(epilogue.multiplier.max()).bit_length())
    multiplier, shift = ratio(finer, epilogue.shift + (old_bits - bits + GUARD_BITS), most)
    return Gelu(multiplier, shift, zero, bits, epilogue.table[np.clip(places, 0, (1 << old_bits) - 1)])


def narrow_attention(op: Attention, widths: Widths) -> Attention:
    """Tables keep every 2^k-th entry, which is what a table of so many entries holds; logarithms lose k fractional bits."""
    fraction = min(op.fraction_bits, widths.exponent_bits)
    exp2_bits = min(op.exp2_bits, widths.exp2_bits)
    index_drop = max(op.log2_bits - widths.log2_index_bits, 0)
    drop, bits = op.fraction_bits - fraction, widths.multiplier_bits
    score, score_shift = ratio(np.array([op.score_multiplier]), np.array([op.score_shift + drop]), bits)
    context = np.array([op.multiplier_even, op.multiplier_odd])
    context_drop = int(excess(context.max(), bits))
    even, odd = half_up(context, context_drop).tolist()
    frozen = op.frozen and replace(op.frozen, row_log2=half_up(op.frozen.row_log2, drop).astype(np.int32))
    return replace(
        op,
        score_multiplier=int(score[0]),
        score_shift=int(score_shift[0]),
        exp2=half_up(op.exp2[:: 1 << drop], op.exp2_bits - exp2_bits).astype(np.int32),
        exp2_bits=exp2_bits,
        log2=half_up(op.log2[:: 1 << index_drop], drop).astype(np.int32),
        log2_scale=int(half_up(np.int64(op.log2_scale), drop)),
        multiplier_even=even,
        multiplier_odd=odd,
        out_shift=op.out_shift - context_drop,
        frozen=frozen,
    )


def scaled(epilogue: Requant | Raw | Residual | Gelu, drop: int, bits: int) -> dict[str, np.ndarray]:
    """Multiplier and shift of an epilogue whose ratio shrinks by 2^-drop."""
    multiplier, shift = ratio(epilogue.multiplier, epilogue.shift + drop, bits)
    return {"multiplier": multiplier, "shift": shift}


def ratio(multiplier: np.ndarray, shift: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """M / 2^S with M below 2^bits and S at most 62, the nearest to the given: int32 each. S may come out negative: verify refuses it."""
    multiplier, shift = multiplier.astype(np.int64), shift.astype(np.int64)
    drop = np.maximum(excess(multiplier, bits), shift - MAX_SHIFT)
    return half_up(multiplier, drop).astype(np.int32), (shift - drop).astype(np.int32)


def excess(number: Any, bits: int) -> np.ndarray:
    """How many low bits a non-negative number must lose so that, rounded, it is below 2^bits."""
    drop = np.maximum(np.frexp(np.asarray(number, np.float64))[1].astype(np.int64) - bits, 0)  # exact: numbers are below 2^53
    return drop + (half_up(number, drop) >> bits)


def half_up(x: Any, drop: Any) -> np.ndarray:
    """floor(x / 2^drop + 1/2) of integers; drop >= 0."""
    x = np.asarray(x, np.int64)
    return (x + ((np.int64(1) << np.asarray(drop, np.int64)) >> 1)) >> drop


def nearest(numerator: Any, denominator: int) -> np.ndarray:
    """floor(numerator / denominator + 1/2) of integers; denominator > 0."""
    return (2 * np.asarray(numerator, np.int64) + denominator) // (2 * denominator)


def coarse(constant: np.ndarray, drop: int, out: Value) -> np.ndarray:
    """Constants of the residual stream in its new unit; rounded up at the top, they saturate."""
    return np.clip(half_up(constant, drop), out.low, out.high).astype(np.int32)
