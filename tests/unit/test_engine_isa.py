"""The matrix product of every instruction set against NumPy; AVX-512 by its tile's structure and its assembly."""

from typing import NamedTuple

import llvmlite.binding as llvm
import numpy as np
import pytest
from llvmlite import ir
from numba import njit

from eamsim.engine import isa, linear
from eamsim.errors import UserError


@njit
def multiply(tag, a, a_stride, panels, count, bias, out, out_stride, rows, steps, safe_steps):
    isa.gemm(tag, a, a_stride, panels, count, bias, out, out_stride, rows, steps, safe_steps)


class EmulatedVnni(NamedTuple):
    """The AVX-512 tile with vpdpbusd spelled out in generic IR, for machines without it."""


def emulated_step(builder: ir.IRBuilder, sums, row, column):
    v64i8, v64i32 = ir.VectorType(ir.IntType(8), 64), ir.VectorType(ir.IntType(32), 64)
    left = builder.zext(builder.bitcast(row, v64i8), v64i32)
    right = builder.sext(builder.bitcast(column, v64i8), v64i32)
    products = builder.mul(left, right)
    for byte in range(4):
        lanes = ir.Constant(ir.VectorType(ir.IntType(32), 16), [4 * lane + byte for lane in range(16)])
        sums = builder.add(sums, builder.shuffle_vector(products, ir.Constant(v64i32, ir.Undefined), lanes))
    return sums


@pytest.fixture(params=[*isa.detect(), "emulated"])
def tag(request, monkeypatch):
    if request.param != "emulated":
        return isa.ISAS[request.param]
    vnni = isa.VECTORS[isa.Avx512Vnni]
    emulated = isa.Vectors(vnni.lanes, vnni.panels, vnni.sums, emulated_step, vnni.fold)
    monkeypatch.setitem(isa.VECTORS, EmulatedVnni, emulated)
    return EmulatedVnni()


def product(tag, a: np.ndarray, weight: np.ndarray, bias: np.ndarray, safe_steps: int) -> np.ndarray:
    """gemm as the kernels call it: no padding of a but the slack after its end, rows of out for whole tiles."""
    (rows, depth), columns = a.shape, weight.shape[1]
    wide = -(-columns // isa.PANEL) * isa.PANEL
    left = np.concatenate([a.ravel(), np.full(isa.ROWS * depth + isa.STEP, 255, np.uint8)])
    out = np.full((-(-rows // isa.ROWS) * isa.ROWS, wide), -7, np.int32)
    packed, padded = linear.pack(weight).ravel(), linear.padded(bias, isa.PANEL)
    steps = -(-depth // isa.STEP)
    multiply(tag, left, depth, packed, wide // isa.PANEL, padded, out.ravel(), wide, rows, steps, safe_steps)
    return out[:rows, :columns]


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


def test_the_avx512_tile_compiles_to_vpdpbusd():
    """24 accumulators of a wide tile in registers: one instruction for each, and no spill of a vector inside the loop."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    module, vectors = ir.Module(), isa.VECTORS[isa.Avx512Vnni]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [isa.I64] * 9), "wide")
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    isa.emit_tile(builder, vectors, vectors.panels, *function.args)
    builder.ret_void()
    machine = llvm.Target.from_triple("x86_64-unknown-linux-gnu").create_target_machine(cpu="icelake-server", opt=3)
    assembly = machine.emit_assembly(llvm.parse_assembly(str(module)))
    assert assembly.count("vpdpbusd") == isa.ROWS * vectors.panels
    assert not [line for line in assembly.splitlines() if "zmm" in line and "Spill" in line]


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
