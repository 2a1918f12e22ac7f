"""Matrix products u8 x s8 -> s32 for each instruction set: the only file with intrinsics.

An instruction set is an empty named tuple: its type, known when a kernel is compiled, selects the code. All share one layout of the
right operand: panels of 16 columns, int8 [columns / 16][steps][16][4], where a step is 4 consecutive k; zero beyond the matrix. The
left operand is uint8, row-major, read to the end of the last step and of the last tile of ROWS rows; the result has room for whole
tiles.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from eamsim.errors import UserError

ROWS = 6
PANEL = 16
STEP = 4
STEP_BYTES = PANEL * STEP

I16, I32, I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)


class Portable(NamedTuple):
    """Plain loops, which LLVM vectorises for whatever machine there is."""


class Avx2(NamedTuple):
    """vpmaddubsw into int16 sums, widened by vpmaddwd before they can overflow."""


class Avx512Vnni(NamedTuple):
    """vpdpbusd: four products into each int32 sum."""


ISAS: dict[str, Any] = {"avx512vnni": Avx512Vnni(), "avx2": Avx2(), "portable": Portable()}


def detect() -> list[str]:
    """Names of the instruction sets this machine can run, the fastest first."""
    has = llvm.get_host_cpu_features()
    runs = {"avx512vnni": has.get("avx512vnni") and has.get("avx512bw"), "avx2": has.get("avx2"), "portable": True}
    return [name for name in ISAS if runs[name]]


def select(name: str | None = None) -> str:
    """The instruction set to use: `name`, else the environment variable EAMSIM_ISA, else the fastest; UserError if it is not available."""
    available = detect()
    asked = name or os.environ.get("EAMSIM_ISA") or available[0]
    if asked not in available:
        raise UserError(f"instruction set (EAMSIM_ISA): expected one of {', '.join(available)}, got {asked!r}; choose one of these")
    return asked


def gemm(isa, a, a_stride, panels, count, bias, out, out_stride, rows, steps, safe_steps):
    """out[i, j] = bias[j] + sum_k a[i, k] * panel[k, j], modulo 2^32, for `rows` rows and `count` panels of 16 columns.

    a: uint8, rows `a_stride` apart. panels: int8. bias: int32, one for each column. out: int32, rows `out_stride` apart.
    safe_steps: steps whose products of two neighbours, summed, cannot leave int16 (0: not even one step).
    """
    raise NotImplementedError("compiled code only")


@overload(gemm)
def _gemm(isa, a, a_stride, panels, count, bias, out, out_stride, rows, steps, safe_steps):
    if isa.instance_class is Portable:
        return portable_gemm
    wide = VECTORS[isa.instance_class].panels

    def tiled_gemm(isa, a, a_stride, panels, count, bias, out, out_stride, rows, steps, safe_steps):
        if safe_steps == 0:
            gemm(Portable(), a, a_stride, panels, count, bias, out, out_stride, rows, steps, safe_steps)
            return
        stride = steps * STEP_BYTES
        a_at, b_at, bias_at, out_at = a.ctypes.data, panels.ctypes.data, bias.ctypes.data, out.ctypes.data
        whole = count // wide * wide
        for j in range(0, whole, wide):
            for i in range(0, rows, ROWS):
                where = out_at + 4 * (i * out_stride + PANEL * j)
                wide_tile(  # pyright: ignore[reportCallIssue] (Numba passes the typing context)
                    isa,
                    a_at + i * a_stride,
                    a_stride,
                    b_at + j * stride,
                    stride,
                    bias_at + 64 * j,
                    where,
                    4 * out_stride,
                    steps,
                    safe_steps,
                )
        for j in range(whole, count):
            for i in range(0, rows, ROWS):
                where = out_at + 4 * (i * out_stride + PANEL * j)
                narrow_tile(  # pyright: ignore[reportCallIssue]
                    isa,
                    a_at + i * a_stride,
                    a_stride,
                    b_at + j * stride,
                    stride,
                    bias_at + 64 * j,
                    where,
                    4 * out_stride,
                    steps,
                    safe_steps,
                )

    return tiled_gemm


def portable_gemm(isa, a, a_stride, panels, count, bias, out, out_stride, rows, steps, safe_steps):
    columns = count * PANEL
    wide = np.empty((STEP, columns), np.int32)
    for i in range(rows):
        acc = out[i * out_stride : i * out_stride + columns]
        for n in range(columns):
            acc[n] = bias[n]
    for k in range(steps):
        for j in range(count):
            panel = panels[(j * steps + k) * STEP_BYTES : (j * steps + k + 1) * STEP_BYTES]
            for n in range(PANEL):
                for m in range(STEP):
                    wide[m, j * PANEL + n] = np.int32(panel[n * STEP + m])
        w0, w1, w2, w3 = wide[0], wide[1], wide[2], wide[3]
        for i in range(rows):
            x = a[i * a_stride + k * STEP : i * a_stride + (k + 1) * STEP]
            x0, x1, x2, x3 = np.int32(x[0]), np.int32(x[1]), np.int32(x[2]), np.int32(x[3])
            acc = out[i * out_stride : i * out_stride + columns]
            for n in range(columns):
                low = np.int32(np.int32(x0 * w0[n]) + np.int32(x1 * w1[n]))
                high = np.int32(np.int32(x2 * w2[n]) + np.int32(x3 * w3[n]))
                acc[n] = np.int32(acc[n] + np.int32(low + high))


@dataclass(frozen=True)
class Vectors:
    """How one instruction set fills a tile of ROWS rows: `panels` panels wide, in vectors of `lanes` int32."""

    lanes: int
    panels: int
    sums: ir.VectorType
    step: Callable[[ir.IRBuilder, ir.Value, ir.Value, ir.Value], Any]
    fold: Callable[[ir.IRBuilder, ir.Value], Any]


def avx2_step(builder: ir.IRBuilder, sums: ir.Value, row: ir.Value, column: ir.Value) -> Any:
    """sums[16] += a[2i] * b[2i] + a[2i + 1] * b[2i + 1], int16."""
    v32i8, v16i16 = ir.VectorType(ir.IntType(8), 32), ir.VectorType(I16, 16)
    multiply = declare(builder, "llvm.x86.avx2.pmadd.ub.sw", v16i16, [v32i8, v32i8])
    return builder.add(sums, builder.call(multiply, [builder.bitcast(row, v32i8), builder.bitcast(column, v32i8)]))


def avx2_fold(builder: ir.IRBuilder, sums: ir.Value) -> Any:
    v16i16 = ir.VectorType(I16, 16)
    multiply = declare(builder, "llvm.x86.avx2.pmadd.wd", ir.VectorType(I32, 8), [v16i16, v16i16])
    return builder.call(multiply, [sums, ir.Constant(v16i16, [1] * 16)])


def vnni_step(builder: ir.IRBuilder, sums: ir.Value, row: ir.Value, column: ir.Value) -> Any:
    """sums[16] += a[4i] * b[4i] + ... + a[4i + 3] * b[4i + 3], int32; from LLVM 22 the operands are bytes."""
    v16i32 = ir.VectorType(I32, 16)
    operand = ir.VectorType(ir.IntType(8), 64) if llvm.llvm_version_info[0] >= 22 else v16i32
    dot = declare(builder, "llvm.x86.avx512.vpdpbusd.512", v16i32, [v16i32, operand, operand])
    return builder.call(dot, [sums, builder.bitcast(row, operand), builder.bitcast(column, operand)])


VECTORS: dict[type, Vectors] = {
    Avx2: Vectors(8, 1, ir.VectorType(I16, 16), avx2_step, avx2_fold),
    Avx512Vnni: Vectors(16, 4, ir.VectorType(I32, 16), vnni_step, lambda builder, sums: sums),
}


def declare(builder: ir.IRBuilder, name: str, result: ir.Type, arguments: list[ir.Type]) -> Any:
    return builder.module.globals.get(name) or ir.Function(builder.module, ir.FunctionType(result, arguments), name)


@intrinsic
def wide_tile(typingctx, isa, a, a_stride, b, b_stride, bias, out, out_stride, steps, safe_steps):
    """One tile of ROWS rows and as many panels as the registers hold; addresses and strides in bytes."""
    return tile_of(isa, VECTORS[isa.instance_class].panels)


@intrinsic
def narrow_tile(typingctx, isa, a, a_stride, b, b_stride, bias, out, out_stride, steps, safe_steps):
    """One tile of ROWS rows and one panel; addresses and strides in bytes."""
    return tile_of(isa, 1)


def tile_of(isa, panels: int):
    vectors = VECTORS[isa.instance_class]

    def codegen(context, builder, signature, args):
        emit_tile(builder, vectors, panels * PANEL // vectors.lanes, *args[1:])
        return context.get_dummy_value()

    return types.void(isa, *[types.int64] * 9), codegen


def emit_tile(builder: ir.IRBuilder, v: Vectors, count: int, a, a_stride, b, b_stride, bias, out, out_stride, steps, safe_steps) -> None:
    """IR of one tile: `count` vectors wide, in runs of at most safe_steps steps, after each of which the sums are folded into `out`."""
    result = ir.VectorType(I32, v.lanes)
    cells = [(i, j) for i in range(ROWS) for j in range(count)]
    entry, run, step, fold, done = builder.block, *(builder.append_basic_block(name) for name in ("run", "step", "fold", "done"))
    builder.branch(run)

    builder.position_at_end(run)
    start, base, base_stride = builder.phi(I64), builder.phi(I64), builder.phi(I64)
    stop = builder.add(start, safe_steps)
    stop = builder.select(builder.icmp_signed("<", stop, steps), stop, steps)
    builder.branch(step)

    builder.position_at_end(step)
    k = builder.phi(I64)
    sums = {cell: builder.phi(v.sums) for cell in cells}
    columns = [
        load(builder, result, b, (b_stride, j * v.lanes // PANEL), (k, STEP_BYTES), (I64(j * v.lanes % PANEL), 4)) for j in range(count)
    ]
    following = {}
    for i in range(ROWS):
        row = broadcast(builder, load(builder, I32, a, (a_stride, i), (k, STEP)), result)
        for j in range(count):
            following[i, j] = v.step(builder, sums[i, j], row, columns[j])
    after = builder.add(k, I64(1))
    builder.cbranch(builder.icmp_signed("<", after, stop), step, fold)
    for phi, first, again in [(k, start, after), *((sums[cell], ir.Constant(v.sums, None), following[cell]) for cell in cells)]:
        phi.add_incoming(first, run)
        phi.add_incoming(again, step)

    builder.position_at_end(fold)
    for i, j in cells:
        before = load(builder, result, base, (base_stride, i), (I64(j * v.lanes), 4))
        where = address(builder, result, out, (out_stride, i), (I64(j * v.lanes), 4))
        builder.store(builder.add(before, v.fold(builder, following[i, j])), where, align=4)
    builder.cbranch(builder.icmp_signed("<", stop, steps), run, done)
    for phi, first, again in [(start, I64(0), stop), (base, bias, out), (base_stride, I64(0), out_stride)]:
        phi.add_incoming(first, entry)
        phi.add_incoming(again, fold)
    builder.position_at_end(done)


def address(builder: ir.IRBuilder, kind: ir.Type, base, *offsets: tuple[ir.Value, int]) -> Any:
    """A pointer to base + sum of value * factor."""
    for value, factor in offsets:
        base = builder.add(base, builder.mul(value, I64(factor)))
    return builder.inttoptr(base, ir.PointerType(kind))


def load(builder: ir.IRBuilder, kind: ir.Type, base, *offsets: tuple[ir.Value, int]) -> Any:
    return builder.load(address(builder, kind, base, *offsets), align=1)


def broadcast(builder: ir.IRBuilder, scalar: ir.Value, kind: ir.VectorType) -> Any:
    undefined = ir.Constant(kind, ir.Undefined)
    one = builder.insert_element(undefined, scalar, I32(0))
    return builder.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(I32, kind.count), [0] * kind.count))
