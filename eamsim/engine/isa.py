"""Matrix products u8 x s8 -> s32 for each instruction set, and what is done with the sums.

An instruction set is an empty named tuple: its type, known when a kernel is compiled, selects the code. All share one layout of the
right operand: panels of 16 columns, int8 [columns / 16][steps][16][4], where a step is 4 consecutive k; zero beyond the matrix. The
left operand is uint8, row-major, read to the end of the last step and of the last tile of ROWS rows.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any, NamedTuple

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core.cgutils import alloca_once
from numba.extending import intrinsic, overload

from eamsim.engine.ir import epilogue, shuffles, softmax, tile
from eamsim.engine.ir.epilogue import Finish
from eamsim.engine.ir.tile import PANEL, ROWS, STEP, STEP_BYTES, Product
from eamsim.engine.kernels.fixedpoint import ROUNDINGS, Floor
from eamsim.errors import UserError


class Portable(NamedTuple):
    """Plain loops, which LLVM vectorises for whatever machine there is."""


class Avx2(NamedTuple):
    """vpmaddubsw into int16 sums, widened by vpmaddwd before they can overflow."""


class AvxVnni(NamedTuple):
    """vpdpbusd on 256 bits: four products into each int32 sum."""


class Avx512Vnni(NamedTuple):
    """vpdpbusd on 512 bits."""


class DotProd(NamedTuple):
    """sdot of aarch64, on 128 bits, of left operands less 128."""


class Store(NamedTuple):
    """Finish of a tile: the sums as they are, int32."""


class StoreWords(NamedTuple):
    """Finish of a tile: the sums as int16."""


class ToContext(NamedTuple):
    """Finish of a tile: even and odd sums of the values to uint8."""


class ToCodes(NamedTuple):
    """Finish of a tile: requantised to uint8."""


class ToValues(NamedTuple):
    """Finish of a tile: requantised to int32."""


class AddResidual(NamedTuple):
    """Finish of a tile: aligned with an int32 operand and added to it."""


class ToShortCodes(NamedTuple):
    """`ToCodes` of products that int32 holds."""


class AddShortResidual(NamedTuple):
    """`AddResidual` of products that int32 holds, and an operand on the scale of the result."""


ISAS: dict[str, Any] = {
    "avx512vnni": Avx512Vnni(),
    "avxvnni": AvxVnni(),
    "avx2": Avx2(),
    "dotprod": DotProd(),
    "portable": Portable(),
}
VECTORS: dict[type, tile.Vectors] = {Avx2: tile.AVX2, AvxVnni: tile.AVX_VNNI, Avx512Vnni: tile.AVX512_VNNI, DotProd: tile.DOTPROD}
FINISHES: dict[type, Any] = {
    Store: epilogue.emit_store,
    StoreWords: epilogue.emit_words,
    ToContext: epilogue.emit_context,
    ToCodes: epilogue.emit_codes,
    ToValues: epilogue.emit_values,
    AddResidual: epilogue.emit_residual,
    ToShortCodes: epilogue.emit_short_codes,
    AddShortResidual: epilogue.emit_short_residual,
}


def detect() -> list[str]:
    """Names of the instruction sets this machine can run, the fastest first."""
    has = llvm.get_host_cpu_features()
    runs = {
        "avx512vnni": has.get("avx512vnni") and has.get("avx512bw"),
        "avxvnni": has.get("avxvnni"),
        "avx2": has.get("avx2"),
        "dotprod": has_dot_product(),
        "portable": True,
    }
    return [name for name in ISAS if runs[name]]


@cache
def has_dot_product() -> bool:
    """Whether LLVM, by itself, sums products of bytes with sdot on this machine: on Linux it knows that by the processor's name alone."""
    triple = llvm.get_default_triple()
    if not triple.startswith(("aarch64", "arm64")):
        return False
    bytes_, sums = ir.VectorType(tile.I8, 16), ir.VectorType(tile.I32, 16)
    module = ir.Module()
    function = ir.Function(module, ir.FunctionType(tile.I32, [bytes_, bytes_]), "dot")
    builder = ir.IRBuilder(function.append_basic_block())
    left, right = (builder.sext(operand, sums) for operand in function.args)
    builder.ret(builder.call(tile.declare(builder, "llvm.vector.reduce.add.v16i32", tile.I32, [sums]), [builder.mul(left, right)]))
    features = llvm.get_host_cpu_features().flatten()
    machine = llvm.Target.from_triple(triple).create_target_machine(cpu=llvm.get_host_cpu_name(), features=features)
    return "sdot" in machine.emit_assembly(llvm.parse_assembly(str(module)))


def select(name: str | None = None) -> str:
    """The instruction set to use: `name`, else the environment variable EAMSIM_ISA, else the fastest; UserError if it is not available."""
    available = detect()
    asked = name or os.environ.get("EAMSIM_ISA") or available[0]
    if asked not in available:
        raise UserError(f"instruction set (EAMSIM_ISA): expected one of {', '.join(available)}, got {asked!r}; choose one of these")
    return asked


def gemm(isa, a, a_stride, panels, count, bias, out, out_stride, rows, steps, safe_steps):
    """out[i, j] = bias[j] + sum_k a[i, k] * panel[k, j], modulo 2^32, for `rows` rows and `count` panels of 16 columns.

    a: uint8, rows `a_stride` apart. panels: int8. bias: int32, one for each column. out: int32, rows `out_stride` apart, with room for
    whole tiles. safe_steps: steps whose products of two neighbours, summed, cannot leave int16 (0: not even one step).
    """
    raise NotImplementedError("compiled code only")


@overload(gemm)
def _gemm(isa, a, a_stride, panels, count, bias, out, out_stride, rows, steps, safe_steps):
    if isa.instance_class is Portable:
        return portable_gemm

    def tiled_gemm(isa, a, a_stride, panels, count, bias, out, out_stride, rows, steps, safe_steps):
        if safe_steps == 0:
            gemm(Portable(), a, a_stride, panels, count, bias, out, out_stride, rows, steps, safe_steps)
            return
        product = Product(a.ctypes.data, a_stride, panels.ctypes.data, steps * STEP_BYTES, bias.ctypes.data, steps, safe_steps)
        finish = Finish(out.ctypes.data, 4 * out_stride, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
        tiles(isa, Floor(), Store(), count, (rows + ROWS - 1) // ROWS * ROWS, product, finish, 4)

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


def tiles(isa, rounding, kind, count, rows, product, finish, item_bytes):
    """Cover `rows` >= ROWS rows and `count` panels with tiles; the last tile of a column of them overlaps the one before."""
    raise NotImplementedError("compiled code only")


@overload(tiles)
def _tiles(isa, rounding, kind, count, rows, product, finish, item_bytes):
    wide = VECTORS[isa.instance_class].panels

    def cover(isa, rounding, kind, count, rows, product, finish, item_bytes):
        j = 0
        while j < count:
            is_wide = count - j >= wide
            column = from_bias(isa, advanced(product, 0, j))  # pyright: ignore[reportCallIssue] (Numba passes the typing context)
            for top in range(0, rows, ROWS):
                i = min(top, rows - ROWS)
                here, there = advanced(column, i, 0), moved(finish, i, j, item_bytes)
                if is_wide:
                    wide_tile(isa, rounding, kind, here, there)  # pyright: ignore[reportCallIssue]
                else:
                    narrow_tile(isa, rounding, kind, here, there)  # pyright: ignore[reportCallIssue]
            j += wide if is_wide else 1

    return cover


@njit
def advanced(p, i, j):
    """The operands of the tile at row i and panel j."""
    return Product(p.a + i * p.a_stride, p.a_stride, p.b + j * p.b_stride, p.b_stride, p.bias + 4 * PANEL * j, p.steps, p.safe_steps)


@njit
def moved(f, i, j, item_bytes):
    """The results and constants of the tile at row i and panel j, whose results take item_bytes each."""
    column = PANEL * j
    return Finish(
        f.out + i * f.out_stride + item_bytes * column,
        f.out_stride,
        f.multiplier + 4 * column,
        f.shift + 4 * column,
        f.zero + 4 * column,
        f.operand + i * f.operand_stride + 4 * column,
        f.operand_stride,
        f.exponent_change,
        f.low,
        f.high,
        f.tap + i * f.tap_stride + f.tap_item * column if f.tap != 0 else 0,
        f.tap_stride,
        f.tap_item,
        f.tap_odd + i * f.tap_stride + f.tap_item * column,
    )


@intrinsic
def from_bias(typingctx, isa, product):
    """The product, with the bias from which the sums of this instruction set start."""
    vectors = VECTORS[isa.instance_class]

    def codegen(context, builder, signature, args):
        if not vectors.signed:
            return args[1]
        bias = builder.ptrtoint(alloca_once(builder, tile.I32, PANEL), tile.I64)
        tile.emit_bias(builder, vectors, Product(*fields_of(builder, args[1], Product)), bias)
        return builder.insert_value(args[1], bias, Product._fields.index("bias"))

    return product(isa, product), codegen


@intrinsic
def wide_tile(typingctx, isa, rounding, kind, product, finish):
    """One tile of ROWS rows and as many panels as the registers hold."""
    return tile_of(VECTORS[isa.instance_class].panels, isa, rounding, kind, product, finish)


@intrinsic
def narrow_tile(typingctx, isa, rounding, kind, product, finish):
    """One tile of ROWS rows and one panel."""
    return tile_of(1, isa, rounding, kind, product, finish)


def tile_of(panels: int, isa, rounding, kind, product, finish):
    vectors, emit = VECTORS[isa.instance_class], FINISHES[kind.instance_class]
    mode = next(name for name, tag in ROUNDINGS.items() if type(tag) is rounding.instance_class)

    def codegen(context, builder, signature, args):
        sums = tile.emit_product(builder, vectors, panels, Product(*fields_of(builder, args[3], Product)))
        emit(builder, mode, vectors, sums, Finish(*fields_of(builder, args[4], Finish)))
        return context.get_dummy_value()

    return types.void(isa, rounding, kind, product, finish), codegen


def look_up(isa, table, entries, source, target):
    """target[i] = table[source[i]] for uint8 arrays of one length; 0 for codes beyond the `entries`, which are a multiple of 16."""
    raise NotImplementedError("compiled code only")


@overload(look_up)
def _look_up(isa, table, entries, source, target):
    def one_by_one(isa, table, entries, source, target):
        for i in range(len(source)):
            target[i] = table[source[i]] if source[i] < entries else np.uint8(0)

    if isa.instance_class is Portable:
        return one_by_one
    chunk, has_words = 8 * VECTORS[isa.instance_class].lanes, isa.instance_class is Avx512Vnni

    def in_vectors(isa, table, entries, source, target):
        table_at, source_at, target_at = table.ctypes.data, source.ctypes.data, target.ctypes.data
        whole = len(source) // chunk * chunk
        if has_words and entries == shuffles.ENTRIES and whole > 0:
            look_up_bytes(table_at, source_at, target_at, whole // shuffles.LANES)  # pyright: ignore[reportCallIssue]
        for start in range(0, 0 if has_words and entries == shuffles.ENTRIES else whole, chunk):
            look_up_chunk(isa, table_at, entries, source_at + start, target_at + start)  # pyright: ignore[reportCallIssue]
        look_up(Portable(), table, entries, source[whole:], target[whole:])

    return in_vectors


@intrinsic
def look_up_chunk(typingctx, isa, table, entries, source, target):
    """Two vectors of bytes."""

    def codegen(context, builder, signature, args):
        shuffles.emit_look_up(builder, VECTORS[isa.instance_class], *args[1:])
        return context.get_dummy_value()

    return types.void(isa, *[types.int64] * 4), codegen


@intrinsic
def look_up_bytes(typingctx, table, source, target, vectors):
    """`vectors` times 32 bytes in a table of 256. AVX-512."""

    def codegen(context, builder, signature, args):
        shuffles.emit_look_up_bytes(builder, *args)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), codegen


@intrinsic
def exponents_of(typingctx, row):
    """Scores to exponents in place, by the Exponents `row`; returns the sum of their powers. AVX-512."""

    def codegen(context, builder, signature, args):
        return softmax.emit_exponents(builder, softmax.Exponents(*fields_of(builder, args[0], softmax.Exponents)))

    return types.int64(row), codegen


@intrinsic
def publish_row(typingctx, row):
    """Scores and exponents to their taps, by the Published `row`. AVX-512."""

    def codegen(context, builder, signature, args):
        softmax.emit_published(builder, softmax.Published(*fields_of(builder, args[0], softmax.Published)))
        return context.get_dummy_value()

    return types.void(row), codegen


@intrinsic
def operands_of(typingctx, row):
    """Exponents to the operands of the values, by the Operands `row`. AVX-512."""

    def codegen(context, builder, signature, args):
        softmax.emit_operands(builder, softmax.Operands(*fields_of(builder, args[0], softmax.Operands)))
        return context.get_dummy_value()

    return types.void(row), codegen


@intrinsic
def pack_key_chunk(typingctx, rows, stride, numbers, zero, panel, sums):
    """16 bytes at `rows` of 16 numbered tokens into 4 steps of a panel of keys; int32 `sums` += the bytes; any machine."""

    def codegen(context, builder, signature, args):
        shuffles.emit_key_chunk(builder, *args)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6), codegen


@intrinsic
def pack_value_step(typingctx, rows, stride, numbers, zero, panel):
    """16 bytes at `rows` of 4 numbered tokens into one step of a panel of values; any machine."""

    def codegen(context, builder, signature, args):
        shuffles.emit_value_step(builder, *args)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), codegen


@intrinsic
def copy_rows(typingctx, rows, stride, numbers, count, size, target):
    """`size` bytes of each of `count` numbered rows, `stride` apart, in a row; up to 15 more are read and written; any machine."""

    def codegen(context, builder, signature, args):
        shuffles.emit_copy_rows(builder, *args)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6), codegen


def fields_of(builder, value, kind) -> list[Any]:
    return [builder.extract_value(value, n) for n in range(len(kind._fields))]
