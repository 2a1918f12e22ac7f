"""The matrix product of every instruction set against NumPy; of those this machine lacks, a tile's structure and its assembly."""

import re
from dataclasses import replace
from functools import partial
from itertools import product as product_of
from typing import NamedTuple

import llvmlite.binding as llvm
import numpy as np
import pytest
from llvmlite import ir
from numba import njit

from eamsim.engine import isa
from eamsim.engine.ir import epilogue, shuffles, tile
from eamsim.engine.kernels import linear
from eamsim.engine.kernels.fixedpoint import ROUNDINGS
from eamsim.errors import UserError


@njit
def multiply(tag, a, a_stride, panels, count, bias, out, out_stride, rows, steps, safe_steps):
    isa.gemm(tag, a, a_stride, panels, count, bias, out, out_stride, rows, steps, safe_steps)


class EmulatedVnni(NamedTuple):
    """The AVX-512 tile with vpdpbusd spelled out in generic IR, for machines without it."""


class EmulatedDotProd(NamedTuple):
    """The tile of aarch64 with sdot spelled out."""


def emulated_step(builder: ir.IRBuilder, sums, row, column, signed: bool):
    lanes = sums.type.count
    narrow, wide = (ir.VectorType(ir.IntType(bits), 4 * lanes) for bits in (8, 32))
    left = (builder.sext if signed else builder.zext)(builder.bitcast(row, narrow), wide)
    products = builder.mul(left, builder.sext(builder.bitcast(column, narrow), wide))
    for byte in range(4):
        order = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [4 * lane + byte for lane in range(lanes)])
        sums = builder.add(sums, builder.shuffle_vector(products, ir.Constant(wide, ir.Undefined), order))
    return sums


@pytest.fixture
def emulated(monkeypatch):
    """By the name of what is emulated."""
    for like, vectors in ((EmulatedVnni, tile.AVX512_VNNI), (EmulatedDotProd, tile.DOTPROD)):
        monkeypatch.setitem(isa.VECTORS, like, replace(vectors, step=partial(emulated_step, signed=vectors.signed)))
    return {"emulated vpdpbusd": EmulatedVnni(), "emulated sdot": EmulatedDotProd()}


def tagged(*names: str):
    """Runs a test with each of these instruction sets, or emulated ones, as its argument `tag`."""

    def tag(request):
        return isa.ISAS[request.param] if request.param in isa.ISAS else request.getfixturevalue("emulated")[request.param]

    return pytest.fixture(params=names)(tag)


tag = tagged(*isa.detect(), "emulated vpdpbusd", "emulated sdot")
tiled = tagged(*(name for name in isa.detect() if name != "portable"), "emulated vpdpbusd")
native = tagged(*isa.detect())


def product(tag, a: np.ndarray, weight: np.ndarray, bias: np.ndarray, safe_steps: int) -> np.ndarray:
    """gemm as the kernels call it: no padding of a but the slack after its end, rows of out for whole tiles."""
    (rows, depth), columns = a.shape, weight.shape[1]
    wide = -(-columns // tile.PANEL) * tile.PANEL
    left = np.concatenate([a.ravel(), np.full(tile.ROWS * depth + tile.STEP, 255, np.uint8)])
    out = np.full((-(-rows // tile.ROWS) * tile.ROWS, wide), -7, np.int32)
    packed, padded = linear.pack(weight).ravel(), linear.padded(bias, tile.PANEL)
    steps = -(-depth // tile.STEP)
    multiply(tag, left, depth, packed, wide // tile.PANEL, padded, out.ravel(), wide, rows, steps, safe_steps)
    return out[:rows, :columns]


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "depth", "columns"), [(1, 1, 1), (6, 4, 16), (7, 5, 17), (13, 64, 100), (12, 197, 64), (48, 768, 80)])
@pytest.mark.parametrize(("x_high", "w_reach"), [(15, 15), (255, 15), (128, 15), (255, 64), (255, 127), (15, 128)])
def test_gemm_is_the_integer_product(tag, rows, depth, columns, x_high, w_reach):
    rng = np.random.default_rng(rows * depth)
    a = rng.integers(0, x_high + 1, (rows, depth), dtype=np.uint8)
    weight = rng.integers(-w_reach, min(w_reach, 127) + 1, (depth, columns)).astype(np.int8)
    bias = rng.integers(-(1 << 20), 1 << 20, columns).astype(np.int32)
    found = product(tag, a, weight, bias, linear.safe_steps(x_high, w_reach))
    np.testing.assert_array_equal(found, a.astype(np.int64) @ weight + bias)


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize(("x_high", "w_reach"), [(15, 15), (255, 15), (128, 15), (255, 64), (255, 127), (7, 127)])
def test_gemm_does_not_saturate_at_extreme_operands(tag, sign, x_high, w_reach):
    a, weight = np.full((6, 600), x_high, np.uint8), np.full((600, 16), sign * w_reach, np.int8)
    found = product(tag, a, weight, np.zeros(16, np.int32), linear.safe_steps(x_high, w_reach))
    np.testing.assert_array_equal(found, np.full((6, 16), sign * 600 * x_high * w_reach))


def test_safe_steps_is_the_greatest_that_fits_int16():
    for left, right in [(15, 15), (255, 15), (128, 15), (255, 64), (255, 128)]:
        steps = linear.safe_steps(left, right)
        assert 2 * left * right * steps <= 32767 < 2 * left * right * (steps + 1)


FINISHES = {
    "codes": (isa.ToCodes(), np.uint8),
    "values": (isa.ToValues(), np.int32),
    "residual": (isa.AddResidual(), np.int32),
    "short codes": (isa.ToShortCodes(), np.uint8),
    "short residual": (isa.AddShortResidual(), np.int32),
}
# Ties depend on the operand here: the engine takes the long way.
UNEQUAL = [("short residual", "half_even"), ("short residual", "half_away")]


@njit
def finish_tiles(
    tag, rounding, kind, a, a_stride, panels, count, bias, rows, steps, safe_steps, out, item, constants, operand, limits, tap
):
    multiplier, shift, zero = constants
    product = tile.Product(a.ctypes.data, a_stride, panels.ctypes.data, steps * tile.STEP_BYTES, bias.ctypes.data, steps, safe_steps)
    columns = count * tile.PANEL
    change, low, high = limits
    finish = epilogue.Finish(
        out.ctypes.data,
        item * columns,
        multiplier.ctypes.data,
        shift.ctypes.data,
        zero.ctypes.data,
        operand.ctypes.data,
        4 * columns,
        change,
        low,
        high,
        np.int64(tap.ctypes.data) if len(tap) else 0,
        tap.itemsize * columns,
        tap.itemsize,
        0,
    )
    isa.tiles(tag, rounding, kind, count, rows, product, finish, item)


def rounded(name: str, x: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """x / 2^shift in int64, written apart from the engine: by quotient and remainder."""
    quotient, remainder = x >> shift, x - (x >> shift << shift)
    twice, whole = 2 * remainder, np.int64(1) << shift
    up = {"floor": False, "half_up": twice >= whole, "half_even": (twice > whole) | ((twice == whole) & (quotient % 2 == 1))}
    return quotient + (up[name] if name in up else (twice > whole) | ((twice == whole) & (x >= 0))) * (shift > 0)


@pytest.mark.slow
@pytest.mark.parametrize("tapped", [None, np.int16, np.int32])
@pytest.mark.parametrize(("kind", "name"), [pair for pair in product_of(FINISHES, ROUNDINGS) if pair not in UNEQUAL])
def test_a_finished_tile_is_the_rounded_ratio_of_its_sums(tiled, kind, name, tapped):
    """Rows that are no multiple of a tile's, shifts from 0 to 32 (30 where products are int32), products of both signs, ties.

    A sum that the tap's integers cannot hold is clipped there, not wrapped.
    """
    rng, (finish, dtype) = np.random.default_rng(len(name)), FINISHES[kind]
    residual, short = kind.endswith("residual"), kind.startswith("short")
    rows, depth, columns, change = 13, 70, 80, 0 if short else 1
    a = rng.integers(0, 16, (rows, depth), dtype=np.uint8)
    weight = rng.integers(-15, 16, (depth, columns)).astype(np.int8)
    bias = rng.integers(-500, 500, columns).astype(np.int32)
    bias[4:6] = [1 << 17, -1 << 17]
    acc = a.astype(np.int64) @ weight + bias
    shift = rng.integers(change, 31, columns).astype(np.int32)
    shift[:4] = [change, 30 if residual or short else 32, 16, 1]
    multiplier = np.minimum(rng.integers(0, 1 << 16, columns), (1 << 14) << shift.astype(np.int64) >> 2).astype(np.int32)
    multiplier[2:6] = [1 << 15, 1, 1, 1]
    zero = rng.integers(0, 16, columns).astype(np.int32)
    operand = rng.integers(-(1 << 15), 1 << 15, (rows, columns)).astype(np.int32)
    limits = (change, 0, 15) if kind.endswith("codes") else (change, -9000, 9000)
    total = acc * multiplier + (operand.astype(np.int64) << (shift - change) if residual else 0)
    expected = np.clip(rounded(name, total, shift.astype(np.int64)) + (0 if residual else zero), *limits[1:])
    out, tap = np.zeros((rows, columns), dtype), np.zeros(rows * columns if tapped else 0, tapped or np.int32)
    left = np.concatenate([a.ravel(), np.full(tile.ROWS * depth + tile.STEP, 255, np.uint8)])
    steps, constants = -(-depth // tile.STEP), (multiplier, shift, zero)
    safe = linear.safe_steps(15, 15) // 20  # several runs
    item, panels = out.itemsize, linear.pack(weight).ravel()
    finish_tiles(
        tiled, ROUNDINGS[name], finish, left, depth, panels, columns // tile.PANEL, bias, rows, steps, safe,
        out.ravel(), item, constants, operand.ravel(), limits, tap,
    )  # fmt: skip
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(tap, acc.ravel().clip(np.iinfo(tapped).min, np.iinfo(tapped).max) if tapped else [])


@njit
def look_up(tag, table, entries, source, target):
    isa.look_up(tag, table, entries, source, target)


@pytest.mark.parametrize("entries", [16, 48, 256])
@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 400])
def test_look_up_reads_a_table_and_gives_0_beyond_it(native, entries, size):
    """The byte shuffles of 512 bits run in tests/emulated."""
    rng = np.random.default_rng(size)
    table = rng.integers(1, 256, entries, dtype=np.uint8)
    source = rng.permutation(np.resize(np.arange(256, dtype=np.uint8), size))
    target = np.zeros_like(source)
    look_up(native, table, entries, source, target)
    np.testing.assert_array_equal(target, np.pad(table, (0, 256 - entries))[source])


def assembly(emit, triple: str, cpu: str) -> str:
    """Machine code for another processor of what `emit` builds from numbers."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    module = ir.Module()
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [tile.I64] * 21), "wide")
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    emit(builder, function.args)
    builder.ret_void()
    machine = llvm.Target.from_triple(triple).create_target_machine(cpu=cpu, opt=3)
    return machine.emit_assembly(llvm.parse_assembly(str(module)))


X86, ARM = "x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"
DOTS = {
    "avx512vnni": (X86, "icelake-server", "vpdpbusd", r"zmm.*Spill"),
    "avxvnni": (X86, "alderlake", "vpdpbusd", r"ymm.*Spill"),
    "dotprod": (ARM, "neoverse-n1", "sdot", r"\bq\d+, .*\[sp"),
}


def emit_tile(name: str, kind: type, builder: ir.IRBuilder, numbers) -> None:
    vectors = isa.VECTORS[type(isa.ISAS[name])]
    sums = tile.emit_product(builder, vectors, vectors.panels, tile.Product(*numbers[:7]))
    isa.FINISHES[kind](builder, "half_up", vectors, sums, epilogue.Finish(*numbers[7:]))


@pytest.mark.parametrize("name", DOTS)
def test_a_tile_compiles_to_dot_products(name):
    """Its accumulators in registers: one instruction for each, and no spill of a vector inside the loop."""
    triple, cpu, dot, spill = DOTS[name]
    vectors, text = isa.VECTORS[type(isa.ISAS[name])], assembly(partial(emit_tile, name, isa.Store), triple, cpu)
    loop = text[: text.rindex(dot)][text.index(dot) :]
    assert text.count(dot) == tile.ROWS * vectors.panels * tile.PANEL // vectors.lanes
    assert not re.search(spill, loop)


# Of aarch64; fmov moves bits and is none.
FLOAT = re.compile(r"\b(f(add|sub|mul|div|n?m(add|sub)|ml[as]|abs|neg|sqrt|cm|ccmp|max|min|cvt|rint)\w*|[su]cvtf)\b")
LONG = (isa.ToCodes, isa.ToValues, isa.AddResidual, isa.ToContext)


@pytest.mark.parametrize("kind", isa.FINISHES)
def test_a_tile_of_aarch64_finishes_in_integer_vectors(kind):
    text = assembly(partial(emit_tile, "dotprod", kind), *DOTS["dotprod"][:2])
    assert not FLOAT.search(text)
    assert ("smull" in text) == (kind in LONG)  # of 64 bits it multiplies no vectors


def test_float_instructions_of_aarch64_would_be_seen():
    def emit(builder: ir.IRBuilder, numbers) -> None:
        halved = builder.fmul(builder.sitofp(numbers[0], ir.DoubleType()), ir.Constant(ir.DoubleType(), 0.3))
        tile.store(builder, builder.fptosi(halved, tile.I64), numbers[1])

    assert len(FLOAT.findall(assembly(emit, *DOTS["dotprod"][:2]))) == 3


def test_a_table_of_aarch64_is_read_by_shuffles_and_the_peak_is_of_dot_products():
    vectors, target = tile.DOTPROD, DOTS["dotprod"][:2]
    assert "tbl" in assembly(lambda builder, numbers: shuffles.emit_look_up(builder, vectors, *numbers[:4]), *target)
    text = assembly(lambda builder, numbers: tile.emit_peak(builder, vectors, numbers[0]), *target)
    assert text.count("sdot") == tile.ROWS * tile.PANEL // vectors.lanes


def test_the_instruction_set_is_the_argument_then_the_environment_then_the_fastest(monkeypatch):
    monkeypatch.delenv("EAMSIM_ISA", raising=False)
    assert isa.select() == isa.detect()[0]
    monkeypatch.setenv("EAMSIM_ISA", "portable")
    assert isa.select() == "portable"
    assert isa.select(isa.detect()[0]) == isa.detect()[0]


def test_an_unavailable_instruction_set_is_refused_with_the_available_ones(monkeypatch):
    monkeypatch.setenv("EAMSIM_ISA", "sse9")
    with pytest.raises(UserError, match=r"expected one of .*portable, got 'sse9'"):
        isa.select()
