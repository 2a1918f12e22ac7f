"""Narrower constants: how far each may lie from what it stood for, on worked operations."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from programs import Shape, operation, random_program

from eamsim import golden
from eamsim.check import ProgramError
from eamsim.datapath import Widths
from eamsim.narrow import (
    excess,
    half_up,
    narrow_attention,
    narrow_gelu,
    narrow_norm,
    narrow_operation,
    narrowed,
    nearest,
    ratio,
    sum_bits,
    value_drops,
    widths_of,
)
from eamsim.program import Attention, Datapath, Embed, Gelu, LayerNorm, Linear, Program, Raw, Residual, Value
from reference.lowering.constants import exp2_table, gelu_index, gelu_table, log2, log2_table

WIDE = Widths(
    residual_bits=16,
    multiplier_bits=16,
    exponent_bits=8,
    exp2_bits=15,
    log2_index_bits=8,
    norm_fraction_bits=12,
    reciprocal_bits=15,
    gelu_index_bits=8,
    accumulator_bits=32,
)
HALF = Fraction(1, 2)


def widths(**given: int) -> Widths:
    return Widths(**vars(WIDE) | given)


def linear(epilogue, out: Value, bias) -> Linear:
    """Whose accumulator is its bias."""
    count = len(bias)
    return Linear("x", out, np.full((1, count), 8, np.uint8), 4, np.full(count, 8, np.uint8), 0, np.array(bias, np.int32), epilogue)


@pytest.mark.parametrize("bits", range(2, 31))
def test_what_is_dropped_brings_every_number_below_its_width_and_no_bit_more(bits):
    near = [n for power in range(31) for n in (2**power - 1, 2**power, 2**power + 1) if n < 2**30]

    for number, drop in zip(near, excess(np.array(near), bits).tolist(), strict=True):
        assert half_up(number, drop) < 2**bits
        assert drop == 0 or half_up(number, drop - 1) >= 2**bits


@pytest.mark.parametrize("bits", [2, 6, 8, 12, 16])
def test_a_ratio_is_off_by_half_a_unit_of_its_last_place_at_most(bits):
    multiplier, shift = np.random.default_rng(bits).integers(1, 1 << 16, 5000), np.full(5000, 40)

    found = ratio(multiplier, shift, bits)

    for m, s, new_m, new_s in zip(multiplier.tolist(), shift.tolist(), *(each.tolist() for each in found), strict=True):
        assert 0 < new_m < 1 << bits
        error = abs(Fraction(new_m, 1 << new_s) - Fraction(m, 1 << s))
        assert error == 0 if m < 1 << bits else error <= Fraction(m, 1 << s) / (1 << bits)


def test_a_shift_beyond_the_page_costs_the_multiplier_bits():
    assert [int(each[0]) for each in ratio(np.array([0b1101]), np.array([64]), 16)] == [0b11, 62]  # 13 / 2^64, to the nearest


@pytest.mark.parametrize("bits", range(1, 9))
def test_exponential_tables_are_those_that_lowering_would_make(bits):
    op = narrow_attention(operation(random_program(Shape(1)), "block0.attn", Attention), widths(exponent_bits=bits))

    np.testing.assert_array_equal(op.exp2, exp2_table(bits, 15))


@pytest.mark.parametrize(("bits", "index_bits"), [(8, 5), (5, 8), (3, 3), (1, 1)])
def test_logarithms_are_rounded_once_more(bits, index_bits):
    before = operation(random_program(Shape(1)), "block0.attn", Attention)
    drop = 8 - bits

    op = narrow_attention(before, widths(exponent_bits=bits, log2_index_bits=index_bits))

    assert len(op.log2) == 1 << index_bits
    assert np.abs(op.log2 - log2_table(index_bits, bits)).max() <= (drop > 0)
    for index, entry in enumerate(op.log2.tolist()):  # half a unit for each rounding, the first in units of 2^-8
        assert abs(entry - log2(1 + Fraction(index, 1 << index_bits)) * (1 << bits)) <= HALF + (drop > 0) * HALF / (1 << drop)
    assert abs(op.log2_scale - Fraction(before.log2_scale, 1 << drop)) <= HALF


def test_a_narrower_exponential_keeps_its_first_entry():
    op = narrow_attention(operation(random_program(Shape(1)), "block0.attn", Attention), widths(exp2_bits=4, exponent_bits=2))

    assert op.exp2.tolist() == [16, 13, 11, 10]  # 2^4 * 2^(-i/4) = 16, 13.5, 11.3, 9.5; 13.4543 is 27554.5 / 2^11, rounded
    assert op.exp2_bits == 4


@pytest.mark.parametrize("bits", range(2, 9))
def test_a_coarser_gelu_gives_the_code_of_a_place_within_half_a_step(bits):
    scale = 0.2
    limits = [(code - 1.5) * scale for code in range(1, 16)]  # of codes whose zero point is 1
    step, zero = gelu_index(limits, 16 * scale, 8)
    table = gelu_table(Fraction(step), zero, 8, limits)
    before = Gelu(np.array([1 << 15], np.int32), np.array([15], np.int32), zero, 8, table)

    after = narrow_gelu(before, widths(gelu_index_bits=bits))

    q = Fraction((1 << 8) - 3, (1 << bits) - 3)
    multiplier, shift = int(after.multiplier[0]), int(after.shift[0])
    assert abs(Fraction(multiplier, 1 << shift) * q - 1) <= Fraction(1, 1 << 16)
    for acc in range(-zero, 256 - zero):  # one a step: every entry of the old table
        index = min(max(int(nearest(acc * multiplier, 1 << shift)) + after.index_zero, 0), (1 << bits) - 1)
        reach = range(int(acc + zero - q / 2 - 2), int(acc + zero + q / 2 + 3))
        codes = {int(table[min(max(place, 0), 255)]) for place in reach}
        assert int(after.table[index]) in codes
    assert {int(after.table[0]), int(after.table[-1])} == {int(table[0]), int(table[-1])} or bits == 2


def test_layer_norm_keeps_its_output_within_a_step():
    rng = np.random.default_rng(4)
    x, out = rng.integers(-20000, 20000, (50, 64)), Value("out", (50, 64), 8)
    gain, offset = rng.integers(2**13, 2**15, 64).astype(np.int32), np.full(64, 100 << 21)
    op = LayerNorm("x", out, gain, offset, 21, 1 << 16)

    after = narrow_norm(op, out, widths(norm_fraction_bits=8, reciprocal_bits=12, multiplier_bits=12, residual_bits=12), 4, 0)

    assert (after.fraction_bits, after.reciprocal_bits, after.variance_offset, after.shift) == (8, 12, 1 << 8, 21 - 4 - 4)
    assert np.abs(after.gain).max() < 1 << 11
    run = [golden.execute(each, {"x": part}, Datapath(), lambda *_: None) for each, part in ((op, x), (after, half_up(x, 4)))]
    assert np.abs(run[0] - run[1]).max() <= 1


@pytest.mark.parametrize("drop", [1, 4, 8])
def test_a_coarser_residual_is_the_exact_sum_rounded_once(drop):
    sums, stream = [1000, -1000, 123456, -99999], np.array([[-3 << drop, 5 << drop, 77 << drop, -1 << drop]])
    out, shift, change = Value("out", (1, 4), 16, True), 20, 1
    epilogue = Residual("r", np.full(4, 50000, np.int32), np.full(4, shift, np.int32), change)

    found = narrow_operation(linear(epilogue, out, sums), widths(residual_bits=16 - drop), {"x": 0, "r": drop, "out": drop})

    values = {"x": np.zeros((1, 1), np.int64), "r": stream >> drop}
    got = golden.execute(found, values, Datapath(), lambda *_: None)[0]
    assert found.out.bits == 16 - drop
    for acc, r, result in zip(sums, stream[0].tolist(), got.tolist(), strict=True):
        exact = (Fraction(r, 1 << change) + Fraction(acc * 50000, 1 << shift)) / (1 << drop)
        assert abs(result - exact) <= HALF


def test_the_constants_of_the_stream_saturate():
    program = random_program(Shape(5, prefix=1))
    before = operation(program, "embed", Embed)
    top = replace(before, position=np.full_like(before.position, before.out.high))  # 2^15 - 1 rounds to 2^7, which eight bits do not hold
    program = replace(program, operations=tuple(top if op is before else op for op in program.operations))

    after = operation(narrowed(program, widths(residual_bits=8)), "embed", Embed)

    assert (after.position == 127).all()


def test_the_unit_of_the_logits_grows_where_a_ratio_would_not_fit():
    raw = Raw(np.array([40000, 30000], np.int32), np.array([8, 8], np.int32))  # ratios of 156 and 117
    head, narrow = linear(raw, Value("head", (1, 2), 32, True), [1000, 1500]), widths(multiplier_bits=4)
    program = Program("head", Value("x", (1, 1, 3), 8), (head,))

    found = narrow_operation(head, narrow, value_drops(program, narrow))  # pyright: ignore[reportArgumentType]

    assert found.out.bits == 32 - 4
    logits = golden.execute(found, {"x": np.zeros((1, 1), np.int64)}, Datapath(), lambda *_: None)[0]
    np.testing.assert_allclose(logits, np.array([1000 * 40000, 1500 * 30000]) / 2**12, rtol=2**-4)  # half a unit of 4 bits


def test_a_ratio_above_its_width_is_refused():
    program = random_program(Shape(1))
    before = operation(program, "block0.attn.proj", Linear)
    low = replace(before, epilogue=replace(before.epilogue, shift=np.full_like(before.epilogue.shift, 3)))
    program = replace(program, operations=tuple(low if op is before else op for op in program.operations))

    with pytest.raises(ProgramError, match=r"block0\.attn\.proj Linear \[C9\]: shift must lie in \[0, 62\]"):
        narrowed(program, widths(multiplier_bits=4))


@pytest.mark.parametrize(("bound", "bits"), [((0, 0), 1), ((-1, 0), 1), ((0, 1), 2), ((-128, 127), 8), ((-129, 0), 9), ((0, 128), 9)])
def test_bits_of_a_sum(bound, bits):
    assert sum_bits(bound) == bits


def test_the_least_gain_of_32_bits_stays_under_equal_widths():
    """-2^31 is as wide as 2^31 - 1: nothing is dropped, though its magnitude has one bit more."""
    program = random_program(Shape(3))
    norm = operation(program, "norm", LayerNorm)
    least = replace(norm, gain=np.full_like(norm.gain, -(1 << 31)))
    program = replace(program, operations=tuple(least if op is norm else op for op in program.operations))

    found = operation(narrowed(program, widths_of(program)), "norm", LayerNorm)

    np.testing.assert_array_equal(found.gain, least.gain)
    assert found.shift == least.shift


def test_the_widths_of_a_program():
    shape = Shape(1, residual_bits=10, exponent_bits=5, gelu_index_bits=6, datapath=Datapath(multiplier_bits=12, accumulator_bits=30))
    found = widths_of(random_program(shape))

    given = {"residual_bits": 10, "multiplier_bits": 12, "exponent_bits": 5, "exp2_bits": 15, "log2_index_bits": 5, "gelu_index_bits": 6}
    assert vars(found).items() >= (given | {"reciprocal_bits": 15, "accumulator_bits": 30}).items()
