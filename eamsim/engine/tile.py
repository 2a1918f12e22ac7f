"""LLVM IR of the register tiles: ROWS rows of a product u8 x s8 -> s32, and what happens to the sums before they leave the registers.

Strides are in bytes, addresses and numbers int64. This file, softmax.py and isa.py alone know instruction sets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import llvmlite.binding as llvm
from llvmlite import ir

ROWS = 6
PANEL = 16
STEP = 4
STEP_BYTES = PANEL * STEP

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
Sums = dict[tuple[int, int], Any]
"""int32 vectors by (row, vector of the row)."""


class Product(NamedTuple):
    """Where the operands of a tile lie. The sums start from `bias`, and are widened after each run of safe_steps steps."""

    a: Any
    a_stride: Any
    b: Any
    b_stride: Any
    bias: Any
    steps: Any
    safe_steps: Any


class Finish(NamedTuple):
    """Where the finished sums go, by which constants; tap: copies of the sums, 0 if nobody wants them.

    tap_item: bytes of an integer there, 2 (sums beyond are clipped) or 4; tap_odd: of a context, the odd sums', where tap has the even.
    """

    out: Any
    out_stride: Any
    multiplier: Any
    shift: Any
    zero: Any
    operand: Any
    operand_stride: Any
    exponent_change: Any
    low: Any
    high: Any
    tap: Any
    tap_stride: Any
    tap_item: Any
    tap_odd: Any


@dataclass(frozen=True)
class Vectors:
    """How one instruction set fills a tile of ROWS rows: `panels` panels wide, in vectors of `lanes` int32.

    signed: its step takes the left bytes for signed; 128 is taken from each before, and `emit_bias` makes up for it. One panel then.
    """

    lanes: int
    panels: int
    sums: ir.VectorType
    step: Callable[[ir.IRBuilder, Any, Any, Any], Any]
    fold: Callable[[ir.IRBuilder, Any], Any]
    signed: bool = False


def avx2_step(builder: ir.IRBuilder, sums: Any, row: Any, column: Any) -> Any:
    """sums[16] += a[2i] * b[2i] + a[2i + 1] * b[2i + 1], int16."""
    v32i8, v16i16 = ir.VectorType(I8, 32), ir.VectorType(I16, 16)
    multiply = declare(builder, "llvm.x86.avx2.pmadd.ub.sw", v16i16, [v32i8, v32i8])
    return builder.add(sums, builder.call(multiply, [builder.bitcast(row, v32i8), builder.bitcast(column, v32i8)]))


def avx2_fold(builder: ir.IRBuilder, sums: Any) -> Any:
    v16i16 = ir.VectorType(I16, 16)
    multiply = declare(builder, "llvm.x86.avx2.pmadd.wd", ir.VectorType(I32, 8), [v16i16, v16i16])
    return builder.call(multiply, [sums, ir.Constant(v16i16, [1] * 16)])


def vnni_step(builder: ir.IRBuilder, sums: Any, row: Any, column: Any) -> Any:
    """sums[i] += a[4i] * b[4i] + ... + a[4i + 3] * b[4i + 3], int32; from LLVM 22 the operands are bytes."""
    lanes = ir.VectorType(I32, sums.type.count)
    operand = ir.VectorType(I8, 4 * lanes.count) if llvm.llvm_version_info[0] >= 22 else lanes
    dot = declare(builder, f"llvm.x86.avx512.vpdpbusd.{32 * lanes.count}", lanes, [lanes, operand, operand])
    return builder.call(dot, [sums, builder.bitcast(row, operand), builder.bitcast(column, operand)])


def sdot_step(builder: ir.IRBuilder, sums: Any, row: Any, column: Any) -> Any:
    """The same of signed bytes on both sides."""
    lanes, operand = ir.VectorType(I32, 4), ir.VectorType(I8, 16)
    dot = declare(builder, "llvm.aarch64.neon.sdot.v4i32.v16i8", lanes, [lanes, operand, operand])
    return builder.call(dot, [sums, builder.bitcast(row, operand), builder.bitcast(column, operand)])


def keep_sums(builder: ir.IRBuilder, sums: Any) -> Any:
    return sums


AVX2 = Vectors(8, 1, ir.VectorType(I16, 16), avx2_step, avx2_fold)
AVX_VNNI = Vectors(8, 1, ir.VectorType(I32, 8), vnni_step, keep_sums)
AVX512_VNNI = Vectors(16, 4, ir.VectorType(I32, 16), vnni_step, keep_sums)
DOTPROD = Vectors(4, 1, ir.VectorType(I32, 4), sdot_step, keep_sums, signed=True)


def emit_product(builder: ir.IRBuilder, v: Vectors, panels: int, p: Product) -> Sums:
    """The sums of one tile, in runs of at most safe_steps steps; the builder is left where they are finished.

    Sums that are int32 from the start need no runs: A.V, of runs of 8 steps, spent a tenth of its time between them.
    """
    result, count = ir.VectorType(I32, v.lanes), panels * PANEL // v.lanes
    cells = [(i, j) for i in range(ROWS) for j in range(count)]
    bias = [load(builder, result, p.bias, (I64(j * v.lanes), 4)) for j in range(count)]
    entry, (run, step, fold, finished) = builder.block, (builder.append_basic_block(name) for name in ("run", "step", "fold", "finished"))
    builder.branch(run)

    builder.position_at_end(run)
    start = builder.phi(I64)
    before = {cell: builder.phi(result) for cell in cells}
    stop = p.steps
    if v.fold is not keep_sums:
        stop = builder.add(start, p.safe_steps)
        stop = builder.select(builder.icmp_signed("<", stop, p.steps), stop, p.steps)
    builder.branch(step)

    builder.position_at_end(step)
    k = builder.phi(I64)
    sums = {cell: builder.phi(v.sums) for cell in cells}
    columns, following = columns_of(builder, v, panels, p, k), {}
    for i in range(ROWS):
        row = row_of(builder, v, load(builder, I32, p.a, (p.a_stride, i), (k, STEP)))
        for j in range(count):
            following[i, j] = v.step(builder, sums[i, j], row, columns[j])
    after = builder.add(k, I64(1))
    builder.cbranch(builder.icmp_signed("<", after, stop), step, fold)
    for phi, first, again in [(k, start, after), *((sums[cell], ir.Constant(v.sums, None), following[cell]) for cell in cells)]:
        phi.add_incoming(first, run)
        phi.add_incoming(again, step)

    builder.position_at_end(fold)
    totals = {cell: builder.add(before[cell], v.fold(builder, following[cell])) for cell in cells}
    builder.cbranch(builder.icmp_signed("<", stop, p.steps), run, finished)
    for phi, first, again in [(start, I64(0), stop), *((before[i, j], bias[j], totals[i, j]) for i, j in cells)]:
        phi.add_incoming(first, entry)
        phi.add_incoming(again, fold)
    builder.position_at_end(finished)
    return totals


def columns_of(builder: ir.IRBuilder, v: Vectors, panels: int, p: Product, k: Any) -> list[Any]:
    """Step k of the right operand."""
    places = [divmod(j * v.lanes, PANEL) for j in range(panels * PANEL // v.lanes)]
    return [load(builder, ir.VectorType(I32, v.lanes), p.b, (p.b_stride, panel), (k, STEP_BYTES), (I64(at), 4)) for panel, at in places]


def row_of(builder: ir.IRBuilder, v: Vectors, four: Any) -> Any:
    """The operand for all columns of a step of one row: its four bytes, each less 128 if the step takes them for signed."""
    return broadcast(builder, builder.xor(four, I32(0x80808080)) if v.signed else four, ir.VectorType(I32, v.lanes))


def emit_bias(builder: ir.IRBuilder, v: Vectors, p: Product, target: Any) -> None:
    """The bias of one panel, int32 at `target`, less the sums that a row of zeros has."""
    zeros, kind = row_of(builder, v, I32(0)), ir.VectorType(I32, v.lanes)

    def add(k: Any, sums: list[Any]) -> list[Any]:
        return [v.step(builder, total, zeros, column) for total, column in zip(sums, columns_of(builder, v, 1, p, k), strict=True)]

    for j, total in enumerate(each_vector(builder, p.steps, [ir.Constant(kind, None)] * (PANEL // v.lanes), add)):
        at = (I64(j * v.lanes), 4)
        store(builder, builder.sub(load(builder, kind, p.bias, at), total), target, at)


def emit_store(builder: ir.IRBuilder, rounding: str, v: Vectors, sums: Sums, f: Finish) -> None:
    """The sums as they are, int32."""
    for (i, j), value in sums.items():
        store(builder, value, f.out, (f.out_stride, i), (I64(j * v.lanes), 4))


def emit_words(builder: ir.IRBuilder, rounding: str, v: Vectors, sums: Sums, f: Finish) -> None:
    """The sums as int16, which holds them."""
    for i in range(ROWS):
        joined = concatenate(builder, [value for (row, _), value in sums.items() if row == i])
        store(builder, builder.trunc(joined, ir.VectorType(I16, joined.type.count)), f.out, (f.out_stride, i))


def emit_codes(builder: ir.IRBuilder, rounding: str, v: Vectors, sums: Sums, f: Finish) -> None:
    """clip(round_shift(acc * multiplier, shift) + zero, low, high) as uint8."""
    emit_finish(builder, rounding, v, sums, f, I8, False)


def emit_values(builder: ir.IRBuilder, rounding: str, v: Vectors, sums: Sums, f: Finish) -> None:
    """The same as int32."""
    emit_finish(builder, rounding, v, sums, f, I32, False)


def emit_residual(builder: ir.IRBuilder, rounding: str, v: Vectors, sums: Sums, f: Finish) -> None:
    """clip(round_shift(operand * 2^(shift - exponent_change) + acc * multiplier, shift), low, high), int32."""
    emit_finish(builder, rounding, v, sums, f, I32, True)


def emit_finish(builder: ir.IRBuilder, rounding: str, v: Vectors, sums: Sums, f: Finish, kind: ir.Type, residual: bool) -> None:
    """A rounded ratio of the sums, of int64 products whose shifted low halves are the whole result (shift <= 32).

    Even and odd lanes apart: vpmuldq multiplies the low half of each 64 bits, wherever they came from.
    """
    emit_tap(builder, v, sums, f)
    narrow = ir.VectorType(I32, v.lanes)
    offsets = [(I64(j * v.lanes), 4) for j in range(1 + max(j for _, j in sums))]
    multiplier = [signed_halves(builder, load(builder, narrow, f.multiplier, at)) for at in offsets]
    shift = [load(builder, narrow, f.shift, at) for at in offsets]
    if residual:
        change, one = broadcast(builder, builder.trunc(f.exponent_change, I32), narrow), ir.Constant(narrow, [1] * v.lanes)
        power = [signed_halves(builder, builder.shl(one, builder.sub(s, change))) for s in shift]
    for i in range(ROWS):
        row = []
        for j, at in enumerate(offsets):
            totals = products(builder, signed_halves(builder, sums[i, j]), multiplier[j])
            if residual:
                operand = signed_halves(builder, load(builder, narrow, f.operand, (f.operand_stride, i), at))
                totals = [builder.add(*pair) for pair in zip(totals, products(builder, operand, power[j]), strict=True)]
            row.append(rounded(builder, rounding, totals, shift[j], None if residual else load(builder, narrow, f.zero, at), f.low, f.high))
        joined = concatenate(builder, row)
        store(builder, builder.trunc(joined, ir.VectorType(I8, joined.type.count)) if kind is I8 else joined, f.out, (f.out_stride, i))


def emit_short_codes(builder: ir.IRBuilder, rounding: str, v: Vectors, sums: Sums, f: Finish) -> None:
    """`emit_codes` where acc * multiplier and its rounding constant stay within int32."""
    emit_short(builder, rounding, v, sums, f, I8, False)


def emit_short_residual(builder: ir.IRBuilder, rounding: str, v: Vectors, sums: Sums, f: Finish) -> None:
    """`emit_residual` where they do, the operand is aligned as it is, and rounding does not depend on it (half_up, floor)."""
    emit_short(builder, rounding, v, sums, f, I32, True)


def emit_short(builder: ir.IRBuilder, rounding: str, v: Vectors, sums: Sums, f: Finish, kind: ir.Type, residual: bool) -> None:
    """Six instructions a vector for twelve to fifteen: of 192 channels, a tile's epilogue took 290 cycles (480 with residual), now 200."""
    emit_tap(builder, v, sums, f)
    narrow = ir.VectorType(I32, v.lanes)
    low, high = (broadcast(builder, builder.trunc(limit, I32), narrow) for limit in (f.low, f.high))
    offsets = [(I64(j * v.lanes), 4) for j in range(1 + max(j for _, j in sums))]
    constants = [[load(builder, narrow, place, at) for at in offsets] for place in (f.multiplier, f.shift)]
    for i in range(ROWS):
        row = []
        for j, (at, multiplier, shift) in enumerate(zip(offsets, *constants, strict=True)):
            value = builder.ashr(add_half(builder, rounding, builder.mul(sums[i, j], multiplier), shift), shift)
            added = load(builder, narrow, f.operand, (f.operand_stride, i), at) if residual else load(builder, narrow, f.zero, at)
            row.append(clip(builder, builder.add(value, added), low, high))
        joined = concatenate(builder, row)
        store(builder, builder.trunc(joined, ir.VectorType(I8, joined.type.count)) if kind is I8 else joined, f.out, (f.out_stride, i))


def emit_context(builder: ir.IRBuilder, rounding: str, v: Vectors, sums: Sums, f: Finish) -> None:
    """clip(round_shift(even * multiplier + odd * operand, shift) + zero, low, high) as uint8: two rows of sums make one.

    Even and odd sums follow each other; out_stride and tap_stride are half of what lies between two rows; operand: a row of multipliers.
    """
    with builder.if_then(builder.icmp_signed("!=", f.tap, I64(0)), likely=False):
        for (i, j), value in sums.items():
            store(builder, value, (f.tap, f.tap_odd)[i % 2], (f.tap_stride, i - i % 2), (I64(j * v.lanes), 4))
    narrow = ir.VectorType(I32, v.lanes)
    offsets = [(I64(j * v.lanes), 4) for j in range(1 + max(j for _, j in sums))]
    for i in range(0, ROWS, 2):
        row = []
        for j, at in enumerate(offsets):
            by = [signed_halves(builder, load(builder, narrow, multiplier, at)) for multiplier in (f.multiplier, f.operand)]
            even, odd = (products(builder, signed_halves(builder, sums[i + n, j]), by[n]) for n in range(2))
            totals = [builder.add(*pair) for pair in zip(even, odd, strict=True)]
            row.append(
                rounded(builder, rounding, totals, load(builder, narrow, f.shift, at), load(builder, narrow, f.zero, at), f.low, f.high)
            )
        joined = concatenate(builder, row)
        store(builder, builder.trunc(joined, ir.VectorType(I8, joined.type.count)), f.out, (f.out_stride, i))


def rounded(builder: ir.IRBuilder, rounding: str, totals: list[Any], shift: Any, zero: Any, *limits: Any) -> Any:
    """clip(round_shift(total, shift) + zero, low, high) of even and odd int64 lanes as one int32 vector; zero may be None."""
    down = unsigned_halves(builder, shift)
    even, odd = (add_half(builder, rounding, total, by) for total, by in zip(totals, down, strict=True))
    value = interleave(builder, even, odd, *down)
    low, high = (broadcast(builder, builder.trunc(limit, I32), value.type) for limit in limits)
    return clip(builder, value if zero is None else builder.add(value, zero), low, high)


def signed_halves(builder: ir.IRBuilder, x: Any) -> tuple[Any, Any]:
    """Even and odd lanes of an int32 vector as int64."""
    pairs, by = as_pairs(builder, x)
    return builder.ashr(builder.shl(pairs, by), by), builder.ashr(pairs, by)


def unsigned_halves(builder: ir.IRBuilder, x: Any) -> tuple[Any, Any]:
    pairs, by = as_pairs(builder, x)
    return builder.lshr(builder.shl(pairs, by), by), builder.lshr(pairs, by)


def as_pairs(builder: ir.IRBuilder, x: Any) -> tuple[Any, Any]:
    kind = ir.VectorType(I64, x.type.count // 2)
    return builder.bitcast(x, kind), ir.Constant(kind, [32] * kind.count)


def products(builder: ir.IRBuilder, x: tuple[Any, Any], y: tuple[Any, Any]) -> list[Any]:
    return [builder.mul(*pair) for pair in zip(x, y, strict=True)]


def interleave(builder: ir.IRBuilder, even: Any, odd: Any, even_shift: Any, odd_shift: Any) -> Any:
    """Low halves of even >> shift and odd >> shift as the lanes of one int32 vector; 0 <= shift <= 32."""
    kind, lanes = ir.VectorType(I32, 2 * even.type.count), range(2 * even.type.count)
    up = builder.sub(ir.Constant(odd.type, [32] * odd.type.count), odd_shift)  # straight to the high half
    low, high = builder.bitcast(builder.lshr(even, even_shift), kind), builder.bitcast(builder.shl(odd, up), kind)
    order = [lane + len(lanes) * (lane % 2) for lane in lanes]
    return builder.shuffle_vector(low, high, ir.Constant(ir.VectorType(I32, len(lanes)), order))


def emit_tap(builder: ir.IRBuilder, v: Vectors, sums: Sums, f: Finish) -> None:
    wanted = builder.icmp_signed("!=", f.tap, I64(0))
    with builder.if_then(builder.and_(wanted, builder.icmp_signed("==", f.tap_item, I64(4))), likely=False):
        for (i, j), value in sums.items():
            store(builder, value, f.tap, (f.tap_stride, i), (I64(j * v.lanes), 4))
    with builder.if_then(builder.and_(wanted, builder.icmp_signed("==", f.tap_item, I64(2))), likely=False):
        limits = [ir.Constant(ir.VectorType(I32, v.lanes), [limit] * v.lanes) for limit in (-(1 << 15), (1 << 15) - 1)]
        for (i, j), value in sums.items():
            word = builder.trunc(clip(builder, value, *limits), ir.VectorType(I16, v.lanes))
            store(builder, word, f.tap, (f.tap_stride, i), (I64(j * v.lanes), 2))


def add_half(builder: ir.IRBuilder, rounding: str, x: Any, shift: Any) -> Any:
    """What a right shift of x by `shift` then rounds as `rounding` says."""
    if rounding == "floor":
        return x
    one = ir.Constant(x.type, [1] * x.type.count)
    half = builder.lshr(builder.shl(one, shift), one)
    up = builder.add(x, half)
    some = builder.zext(builder.icmp_signed("!=", half, ir.Constant(x.type, None)), x.type)
    match rounding:
        case "half_up":
            return up
        case "half_even":
            even = builder.xor(builder.and_(builder.lshr(x, shift), one), one)
            return builder.sub(up, builder.and_(some, even))
        case "half_away":
            below = builder.lshr(x, ir.Constant(x.type, [x.type.element.width - 1] * x.type.count))
            return builder.sub(up, builder.and_(some, below))
    raise ValueError(rounding)


def clip(builder: ir.IRBuilder, x: Any, low: Any, high: Any) -> Any:
    x = builder.select(builder.icmp_signed(">", x, low), x, low)
    return builder.select(builder.icmp_signed("<", x, high), x, high)


def concatenate(builder: ir.IRBuilder, parts: list[Any]) -> Any:
    """Vectors of equal size end to end; their number is a power of two."""
    if len(parts) == 1:
        return parts[0]
    left, right = (concatenate(builder, half) for half in (parts[: len(parts) // 2], parts[len(parts) // 2 :]))
    count = 2 * left.type.count
    return builder.shuffle_vector(left, right, ir.Constant(ir.VectorType(I32, count), list(range(count))))


def declare(builder: ir.IRBuilder, name: str, result: ir.Type, arguments: list[ir.Type]) -> Any:
    return builder.module.globals.get(name) or ir.Function(builder.module, ir.FunctionType(result, arguments), name)


def address(builder: ir.IRBuilder, kind: ir.Type, base, *offsets: tuple[Any, int]) -> Any:
    """A pointer to base + sum of value * factor."""
    for value, factor in offsets:
        base = builder.add(base, builder.mul(value, I64(factor)))
    return builder.inttoptr(base, ir.PointerType(kind))


def load(builder: ir.IRBuilder, kind: ir.Type, base, *offsets: tuple[Any, int]) -> Any:
    return builder.load(address(builder, kind, base, *offsets), align=1)


def store(builder: ir.IRBuilder, value: Any, base, *offsets: tuple[Any, int]) -> None:
    builder.store(value, address(builder, value.type, base, *offsets), align=1)


def broadcast(builder: ir.IRBuilder, scalar: Any, kind: ir.VectorType) -> Any:
    undefined = ir.Constant(kind, ir.Undefined)
    one = builder.insert_element(undefined, scalar, I32(0))
    return builder.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(I32, kind.count), [0] * kind.count))


def each_vector(builder: ir.IRBuilder, vectors: Any, begin: list[Any], body: Any) -> list[Any]:
    """body(n, values) -> values for n in [0, vectors), at least once; returns the last values."""
    entry, loop, done = builder.block, builder.append_basic_block("vector"), builder.append_basic_block("after")
    builder.branch(loop)
    builder.position_at_end(loop)
    n, values = builder.phi(I64), [builder.phi(value.type) for value in begin]
    result, following = body(n, values), builder.add(n, I64(1))
    last = builder.block  # the body may have branched
    builder.cbranch(builder.icmp_signed("<", following, vectors), loop, done)
    for phi, first, again in zip([n, *values], [I64(0), *begin], [following, *result], strict=True):
        phi.add_incoming(first, entry)
        phi.add_incoming(again, last)
    builder.position_at_end(done)
    return result


def emit_peak(builder: ir.IRBuilder, v: Vectors, steps) -> int:
    """The multiply-accumulates of a tile without its loads, `steps` times; returns how many one step does.

    Sums that start apart and an empty piece of assembler keep LLVM from seeing equal products: vpmaddubsw, which it knows, needs one
    before each, and vpdpbusd one a step (before each they made it 207 GMAC/s of 234 on a Zen 4 core).
    """
    kind, count = ir.VectorType(I32, v.lanes), v.panels * PANEL // v.lanes * ROWS
    start, entry, loop, done = I64(0), builder.block, builder.append_basic_block("loop"), builder.append_basic_block("done")
    column, register = ir.Constant(kind, [1] * v.lanes), "w" if v is DOTPROD else "v"
    builder.branch(loop)
    builder.position_at_end(loop)
    k, row, sums = builder.phi(I64), builder.phi(kind), [builder.phi(v.sums) for _ in range(count)]
    unseen, following = row, []
    for index, total in enumerate(sums):
        if index == 0 or v.step is avx2_step:
            unseen = builder.asm(ir.FunctionType(kind, [kind]), "", f"={register},0", [unseen], side_effect=False)
        following.append(v.step(builder, total, unseen, column))
    after = builder.add(k, I64(1))
    builder.cbranch(builder.icmp_signed("<", after, steps), loop, done)
    apart = [ir.Constant(v.sums, [index] * v.sums.count) for index in range(count)]
    for phi, first, again in [(k, start, after), (row, column, unseen), *zip(sums, apart, following, strict=True)]:
        phi.add_incoming(first, entry)
        phi.add_incoming(again, loop)
    builder.position_at_end(done)
    for total in following:
        builder.asm(ir.FunctionType(ir.VoidType(), [v.sums]), "", register, [total], side_effect=True)
    return count * v.lanes * STEP
