"""The numbered constraints of docs/spec/datapath.md: a program that passes can be executed without a further check.

Every index, code, shift, width and shape is validated, and every sum is bounded from the actual weights, so that no
int64 step can overflow anywhere. Errors read `block3.attn.proj Linear [C2]: weight must be ..., got ...`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from math import isqrt, prod
from types import MappingProxyType
from typing import assert_never
from weakref import WeakKeyDictionary

import numpy as np

from eamsim.arguments import field_hints, mistyped
from eamsim.check import MAX_SHIFT, SUM_LIMIT, Bound, Check, ProgramError, extent, magnitude
from eamsim.program import (
    Attention,
    Datapath,
    Embed,
    Epilogue,
    Frozen,
    Gather,
    Gelu,
    InputQuant,
    LayerNorm,
    Linear,
    Operation,
    Pool,
    Program,
    Raw,
    Requant,
    Residual,
    Value,
)

Bounds = dict[str, Bound]

TAPS = {"variance", "reciprocal", "normalised", "acc", "index", "scores", "exponents", "log_sum", "codes", "even", "odd"}
"""What operations publish besides their outputs, after the output's name and a dot (docs/spec/datapath.md section 4)."""
LEVEL_BITS = 8
MAX_ELEMENTS = 1 << 31
PROVED: WeakKeyDictionary[Operation, tuple[tuple[Datapath | Value, ...], Bounds]] = WeakKeyDictionary()
"""By operation: what its proof rests on beside its own fields, and what it says."""


@dataclass(frozen=True, eq=False)
class Verified(Program):
    """A program that keeps every constraint: what every reader takes. Constructing one proves it, or raises ProgramError.

    bounds: what no image can exceed, (low, high) by tap: the finished sums before narrowing (`.acc`, `.scores`, `.even`, `.odd`) and
    `.exponents`. The arrays become read-only, and `dataclasses.replace`, copies and pickles prove again: what was proved stays true.
    """

    bounds: Mapping[str, Bound] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "bounds", MappingProxyType(prove(self)))

    def __reduce__(self) -> tuple[type[Verified], tuple]:
        return Verified, (self.name, self.image, self.operations, self.datapath)


def verify(program: Program) -> Verified:
    """The program with its proof; ProgramError unless every constraint holds. One that has its proof is returned as it is."""
    if not isinstance(program, Program):
        raise ProgramError(f"program: expected eamsim.program.Program, got {type(program).__name__}; make one, or read one from a file")
    return program if isinstance(program, Verified) else Verified(program.name, program.image, program.operations, program.datapath)


def expect_verified(program: Program) -> None:
    """What a reader does first, for callers that no type checker saw: ProgramError for a program without its proof."""
    if not isinstance(program, Verified):
        raise ProgramError(f"program: expected eamsim.constraints.Verified, got {type(program).__name__}; pass verify(program)")


def seal(item: object) -> None:
    """Make the arrays of an operation read-only, and those that they are views of."""
    if isinstance(item, np.ndarray):
        item.setflags(write=False)
        seal(item.base)
    elif is_dataclass(item):
        for each in fields(item):
            seal(getattr(item, each.name))


def prove(program: Program) -> Bounds:
    """The bounds of a program whose every constraint holds; raises ProgramError."""
    check = Check(f"{program.name}", program.datapath)
    verify_types(check, program)
    verify_datapath(check, program.datapath)
    check.that(program.name.isprintable(), "P4", f"names must be printable, got {program.name!r}")
    check.that(bool(program.operations), "P1", "a program needs at least one operation")
    image = program.image
    verify_value(check, image)
    is_rgb = len(image.shape) == 3 and image.shape[2] == 3 and image.bits == 8 and not image.signed
    check.that(is_rgb, "P2", f"the image must be u8 [height, width, 3], got {image}")
    verify_name(check, image)
    values, bounds = {image.name: image}, {}
    for op in program.operations:
        check = Check(f"{op.out.name} {type(op).__name__}", program.datapath)
        verify_value(check, op.out)
        check.that(op.out.name not in values, "P4", "the name is taken by an earlier value")
        verify_name(check, op.out)
        for name in op.inputs:
            check.that(name in values, "P5", f"input '{name}' is not an earlier value")
        bounds |= prove_operation(check, op, values)
        values[op.out.name] = op.out
    return bounds


def verify_types(check: Check, program: Program) -> None:
    """What the other constraints, and every reader, rely on before they look at a number."""
    for name, hint in field_hints(Program).items():
        wrong = mistyped(getattr(program, name), hint, name)
        check.that(wrong is None, "P6", str(wrong))


def verify_datapath(check: Check, datapath: Datapath) -> None:
    check.that(datapath.rounding in ("half_up", "half_even", "half_away", "floor"), "D1", f"unknown rounding {datapath.rounding!r}")
    check.that(datapath.overflow in ("error", "wrap", "saturate"), "D2", f"unknown overflow {datapath.overflow!r}")
    check.number("D3", "multiplier_bits", datapath.multiplier_bits, 2, 30)
    check.number("D4", "accumulator_bits", datapath.accumulator_bits, 8, 48)


def verify_value(check: Check, value: Value) -> None:
    low, high = (2, 32) if value.signed else (1, 16)
    check.number("P3", f"bits of {value.name}", value.bits, low, high)
    sizes = all(n > 0 for n in value.shape) and bool(value.shape)
    fits = sizes and prod(value.shape) < MAX_ELEMENTS  # exact: the int64 of Value.size may wrap
    check.that(fits, "P3", f"{value.name} must have positive extents and fewer than 2^31 elements, got {value.shape}")


def verify_name(check: Check, value: Value) -> None:
    check.that(value.name.isprintable(), "P4", f"names must be printable, got {value.name!r}")
    allowed = bool(value.name) and value.name.rpartition(".")[2] not in TAPS
    check.that(allowed, "P4", f"the name of a value is neither empty nor that of a tap, nor ends in one, got '{value.name}'")


def prove_operation(check: Check, op: Operation, values: dict[str, Value]) -> Bounds:
    """Its bounds, proved once: programs that differ in some operations share the others, whose arrays are read-only from here on."""
    premises = (check.datapath, *(values[name] for name in op.inputs))
    known = PROVED.get(op)
    if known is None or known[0] != premises:
        known = premises, verify_operation(check, op, values)
        seal(op)
        PROVED[op] = known
    return known[1]


def verify_operation(check: Check, op: Operation, values: dict[str, Value]) -> Bounds:
    x = values[op.x]
    match op:
        case InputQuant():
            return verify_input_quant(check, op, x)
        case Gather():
            return verify_gather(check, op, x)
        case Embed():
            return verify_embed(check, op, x)
        case LayerNorm():
            return verify_layer_norm(check, op, x)
        case Linear():
            return verify_linear(check, op, x, values)
        case Attention():
            return verify_attention(check, op, x, values)
        case Pool():
            return verify_pool(check, op, x)
        case _:
            assert_never(op)


def verify_input_quant(check: Check, op: InputQuant, x: Value) -> Bounds:
    check.that(len(x.shape) == 3 and x.shape[2] == 3 and x.bits == 8 and not x.signed, "C1", f"x must be u8 [height, width, 3], got {x}")
    check.codes("C2", op.out)
    check.shape("C2", op.out, x.shape)
    check.array("C3", "table", op.table, np.uint8, (3, 256), (0, op.out.high))
    return {}


def verify_gather(check: Check, op: Gather, x: Value) -> Bounds:
    check.number("C1", "granule", op.granule, 1, x.size)
    divides = x.size % op.granule == 0 and op.out.size % op.granule == 0
    check.that(divides, "C1", f"granule {op.granule} must divide {x.size} and {op.out.size} elements")
    check.array("C2", "indices", op.indices, np.int32, (op.out.size // op.granule,), (0, x.size // op.granule - 1))
    check.that((op.out.bits, op.out.signed) == (x.bits, x.signed), "C3", f"out must be as wide as x: {x}, got {op.out}")
    return {}


def verify_embed(check: Check, op: Embed, x: Value) -> Bounds:
    check.matrix("C1", x)
    check.wide("C1", x)
    check.wide("C2", op.out)
    prefix_tokens = len(op.prefix) if op.prefix.ndim else 0
    check.shape("C2", op.out, (prefix_tokens + x.shape[0], x.shape[1]))
    limits = op.out.low, op.out.high
    check.array("C3", "prefix", op.prefix, np.int32, (prefix_tokens, x.shape[1]), limits)
    check.array("C4", "position", op.position, np.int32, x.shape, limits)
    return {}


def verify_layer_norm(check: Check, op: LayerNorm, x: Value) -> Bounds:
    check.matrix("C1", x)
    check.wide("C1", x)
    channels, reach = x.shape[1], 1 << (x.bits - 1)
    check.shape("C2", op.out, x.shape)
    check.array("C3", "gain", op.gain, np.int32, (channels,))
    check.array("C3", "offset", op.offset, np.int64, (channels,))
    check.number("C4", "shift", op.shift, 0, MAX_SHIFT)
    check.number("C5", "reciprocal_bits", op.reciprocal_bits, 1, 24)
    check.number("C5", "fraction_bits", op.fraction_bits, 0, op.reciprocal_bits + 1)
    check.number("C6", "variance_offset", op.variance_offset, 1, SUM_LIMIT - 1)
    variance = channels * channels * reach * reach + op.variance_offset  # C * S2 reaches it
    check.that(variance < SUM_LIMIT, "C6", f"the terms of the variance may reach {variance}, expected below 2^62")
    # |y * r| <= 2 * channels * reach * 2^25 < 2^57 follows.
    # |y| <= D' sqrt(channels - 1) with D' <= 2 D the unrounded root, and r / 2^(e + reciprocal_bits) <= 1 / D.
    normalised = (2 << op.fraction_bits) * (isqrt(channels) + 2)
    scaled = normalised * magnitude(extent(op.gain)) + magnitude(extent(op.offset))
    check.scaled("C7", "normalised x times gain plus offset", scaled)
    return {}


def verify_linear(check: Check, op: Linear, x: Value, values: dict[str, Value]) -> Bounds:
    check.matrix("C1", x)
    check.codes("C1", x)
    check.matrix("C2", op.out)
    in_channels, (tokens, out_channels) = x.shape[1], op.out.shape
    check.that(tokens == x.shape[0], "C2", f"out must have {x.shape[0]} tokens, got {tokens}")
    check.number("C3", "weight_bits", op.weight_bits, 2, 8)
    code_bound = (0, (1 << op.weight_bits) - 1)
    check.array("C4", f"weight (u{op.weight_bits})", op.weight, np.uint8, (in_channels, out_channels), code_bound)
    check.array("C5", "weight_zero", op.weight_zero, np.uint8, (out_channels,), code_bound)
    check.number("C6", "x_zero", op.x_zero, 0, x.high)
    check.array("C7", "bias", op.bias, np.int32, (out_channels,))
    verify_levels(check, op, x)
    bound = linear_bound(op, x)
    acc = check.accumulator("C8", "acc", bound)
    epilogue = op.epilogue
    check.array("C9", "multiplier", epilogue.multiplier, np.int32, (out_channels,), (0, check.max_multiplier))
    check.array("C9", "shift", epilogue.shift, np.int32, (out_channels,), (0, MAX_SHIFT))
    check.scaled("C10", "acc times multiplier", magnitude(acc) * int(epilogue.multiplier.max()))
    verify_epilogue(check, epilogue, op.out, magnitude(acc), values)
    return {f"{op.out.name}.acc": bound}


def verify_levels(check: Check, op: Linear, x: Value) -> None:
    if op.levels is None:
        return
    check.that(x.bits <= LEVEL_BITS, "C16", f"levels need codes of at most {LEVEL_BITS} bits, got {x}")
    half = 1 << (LEVEL_BITS - 1)
    check.array("C16", f"levels (i{LEVEL_BITS})", op.levels, np.int32, (1 << x.bits,), (-half, half - 1))
    check.number("C16", "x_zero beside levels", op.x_zero, 0, 0)


def linear_bound(op: Linear, x: Value) -> Bound:
    """Least and greatest accumulator over all inputs and output channels, exact, from the actual weights."""
    weight = op.weight.astype(np.int16) - op.weight_zero
    below, above = (-op.x_zero, x.high - op.x_zero) if op.levels is None else extent(op.levels)
    positive, negative = (limit(weight, 0).sum(axis=0, dtype=np.int64) for limit in (np.maximum, np.minimum))
    high = above * positive + below * negative + op.bias
    low = below * positive + above * negative + op.bias
    return int(low.min()), int(high.max())


def verify_epilogue(check: Check, epilogue: Epilogue, out: Value, acc: int, values: dict[str, Value]) -> None:
    match epilogue:
        case Requant():
            check.codes("C11", out)
            check.array("C11", "zero", epilogue.zero, np.int32, epilogue.multiplier.shape, (0, out.high))
        case Gelu():
            check.codes("C12", out)
            check.number("C12", "index_bits", epilogue.index_bits, 2, 12)
            check.number("C12", "index_zero", epilogue.index_zero, -(1 << 16), 1 << 16)
            check.array("C12", "table", epilogue.table, np.uint8, (1 << epilogue.index_bits,), (0, out.high))
        case Residual():
            operand, change = values[epilogue.operand], epilogue.exponent_change
            check.wide("C13", operand)
            check.wide("C13", out)
            check.shape("C13", operand, out.shape)
            check.number("C13", "exponent_change", change, 0, int(epilogue.shift.min()))
            aligned = 1 << (operand.bits - 1 + int(epilogue.shift.max()) - change)
            check.scaled("C14", "aligned sum", aligned + acc * int(epilogue.multiplier.max()))
        case Raw():
            check.wide("C15", out)
        case _:
            assert_never(epilogue)


def verify_attention(check: Check, op: Attention, x: Value, values: dict[str, Value]) -> Bounds:
    check.matrix("C1", x)
    check.codes("C1", x)
    check.matrix("C2", op.out)
    check.codes("C2", op.out)
    check.number("C3", "heads", op.heads, 1, op.out.shape[1])
    check.number("C3", "windows", op.windows, 1, op.out.shape[0])
    whole = op.out.shape[0] % op.windows == 0 and op.out.shape[1] % op.heads == 0
    check.that(whole, "C3", f"windows {op.windows} and heads {op.heads} must divide out {op.out.shape}")
    if op.queries is not None:
        check.number("C19", "queries.tokens", op.queries.tokens, 1, x.shape[0])
    pairs = op.windows * op.heads * op.rows * op.tokens
    check.that(pairs < MAX_ELEMENTS, "C3", f"windows * heads * rows * tokens must be below 2^31, got {pairs}")
    in_range = all(0 <= head < op.heads for head in op.score_heads)
    ascending = in_range and tuple(sorted(set(op.score_heads))) == op.score_heads
    check.that(ascending, "C4", f"score_heads must be ascending head numbers below {op.heads}, got {op.score_heads}")
    scored = len(op.score_heads)
    if op.queries is not None:
        q = values[op.queries.operand]
        check.codes("C19", q)
        check.that(q.bits == x.bits, "C19", f"queries.operand must be as wide as x: {x}, got {q}")
        check.shape("C19", q, (op.out.shape[0], scored * op.head_dim))
    check.shape("C1", x, (op.windows * op.tokens, ((2 if op.queries is None else 1) * scored + op.heads) * op.head_dim))
    check.that(op.softmax in ("paper", "renormalised"), "C5", f"unknown softmax {op.softmax!r}")
    for name in ("q_zero", "k_zero", "v_zero"):
        check.number("C6", name, getattr(op, name), 0, x.high)
    verify_softmax_tables(check, op)
    verify_maps(check, op)
    return verify_attention_bounds(check, op, x)


def verify_softmax_tables(check: Check, op: Attention) -> None:
    check.number("C7", "exp2_bits", op.exp2_bits, 1, 24)
    verify_table(check, "exp2", op.exp2, 1 << op.exp2_bits)
    verify_table(check, "log2", op.log2, 1 << op.fraction_bits)
    check.that(int(op.exp2[0]) == 1 << op.exp2_bits, "C7", f"exp2[0] must be {1 << op.exp2_bits}, got {int(op.exp2[0])}")
    check.that(op.tokens << op.exp2_bits < 1 << 31, "C7", f"the sum of {op.tokens} exponentials may reach 2^31")
    check.number("C8", "log2_scale", op.log2_scale, -(1 << 24), 1 << 24)
    check.number("C9", "attention_bits", op.attention_bits, 2, 6)


def verify_table(check: Check, name: str, table: np.ndarray, high: int) -> None:
    size = len(table) if table.ndim == 1 else 0
    is_power = 2 <= size <= 1 << 16 and size & (size - 1) == 0
    check.that(is_power, "C7", f"{name} must be a row of 2^n entries, n in 1..16, got shape {table.shape}")
    check.array("C7", name, table, np.int32, (size,), (0, high))


def verify_maps(check: Check, op: Attention) -> None:
    rows, tokens = op.rows, op.tokens
    if op.frozen is not None:
        verify_frozen(check, op, op.frozen)
    unscored = [head for head in range(op.heads) if head not in op.score_heads]
    whole = op.softmax == "renormalised" and op.frozen is not None and bool(op.frozen.mask[:, unscored].all())
    check.that(not unscored or whole, "C11", f"heads {unscored} lack scores: they must be wholly frozen, softmax renormalised")
    if op.logit_bias is not None:
        maps = len(op.logit_bias) if op.logit_bias.ndim else 0
        check.that(maps in (1, op.windows), "C12", f"logit_bias must have 1 or {op.windows} maps, got {maps}")
        check.array("C12", "logit_bias", op.logit_bias, np.int32, (maps, op.heads, rows, tokens))
    if op.excluded is not None:
        check.array("C13", "excluded", op.excluded, np.bool_, (op.windows, rows, tokens))


def verify_frozen(check: Check, op: Attention, frozen: Frozen) -> None:
    maps = len(frozen.mask) if frozen.mask.ndim else 0
    check.that(maps in (1, op.windows), "C10", f"frozen.mask must have 1 or {op.windows} maps, got {maps}")
    shape = (maps, op.heads, op.rows, op.tokens)
    check.array("C10", "frozen.mask", frozen.mask, np.bool_, shape)
    check.number("C10", "frozen.bits", frozen.bits, 1, op.attention_bits)
    check.array("C10", f"frozen.codes (u{frozen.bits})", frozen.codes, np.uint8, shape, (0, (1 << frozen.bits) - 1))
    check.that(not frozen.codes[~frozen.mask].any(), "C10", "frozen.codes must be 0 where the mask is not set")
    check.array("C10", "frozen.row_log2", frozen.row_log2, np.int32, shape[:3], (0, 1 << 24))


def verify_attention_bounds(check: Check, op: Attention, x: Value) -> Bounds:
    q, k, v = (max(zero, x.high - zero) for zero in (op.q_zero, op.k_zero, op.v_zero))
    bias = extent(op.logit_bias) if op.logit_bias is not None else (0, 0)
    product = op.head_dim * q * k
    scores = (min(bias[0], 0) - product, max(bias[1], 0) + product)
    low, high = check.accumulator("C14", "scores", scores)
    check.ratio("C15", op.score_multiplier, op.score_shift)
    check.scaled("C15", "exponent before its shift", (high - low) * op.score_multiplier)
    exponents = ((high - low) * op.score_multiplier >> op.score_shift) + 1
    check.that(exponents < 1 << 30, "C15", f"exponents may reach {exponents}, beyond 30 bits")
    sums = op.tokens * (1 << op.top_power) * v
    even = check.accumulator("C16", "even and odd sums", (-sums, sums))
    for name in ("multiplier_even", "multiplier_odd"):
        check.number("C17", name, getattr(op, name), 0, check.max_multiplier)
    check.number("C17", "out_shift", op.out_shift, 0, MAX_SHIFT)
    check.scaled("C17", "scaled context", magnitude(even) * (op.multiplier_even + op.multiplier_odd))
    check.number("C18", "out_zero", op.out_zero, 0, op.out.high)
    name = op.out.name
    return {f"{name}.scores": scores, f"{name}.exponents": (0, exponents), f"{name}.even": (-sums, sums), f"{name}.odd": (-sums, sums)}


def verify_pool(check: Check, op: Pool, x: Value) -> Bounds:
    check.matrix("C1", x)
    check.codes("C2", op.out)
    check.shape("C2", op.out, (1, x.shape[1]))
    check.ratio("C3", op.multiplier, op.shift)
    check.scaled("C3", "scaled sum", x.shape[0] * max(-x.low, x.high) * op.multiplier)
    check.number("C4", "zero", op.zero, 0, op.out.high)
    return {}
