"""LLVM IR of the epilogues of a register tile: what happens to the sums before they leave the registers."""

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir

from eamsim.engine.ir.tile import I8, I16, I32, I64, ROWS, Sums, Vectors, broadcast, concatenate, load, store


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
