"""LLVM IR of the register tiles: ROWS rows of a product u8 x s8 -> s32, in sums that do not leave the registers (epilogue.py).

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
