"""The golden interpreter where the page's examples do not reach: every rounding, narrow accumulators, wide codes, edges."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from programs import Shape, operation, random_images, random_program

from eamsim import golden
from eamsim.errors import UserError
from eamsim.intmath import bit_length, isqrt, narrow, round_shift
from eamsim.program import Datapath, LayerNorm, Linear, Raw, Value


def rounded(exact: Fraction, rounding: str) -> int:
    floor = exact.numerator // exact.denominator
    tie = exact - floor == Fraction(1, 2)
    match rounding:
        case "floor":
            return floor
        case "half_up":
            return floor + (exact - floor >= Fraction(1, 2))
        case "half_even":
            return round(exact)
        case _:
            return floor + (exact > 0 if tie else exact - floor > Fraction(1, 2))


@pytest.mark.parametrize("rounding", ["half_up", "half_even", "half_away", "floor"])
def test_round_shift_is_the_rounded_quotient(rounding):
    x = np.arange(-(1 << 10), 1 << 10)
    for shift in range(12):
        expected = [rounded(Fraction(int(n), 1 << shift), rounding) for n in x]
        np.testing.assert_array_equal(round_shift(x, shift, rounding), expected)


@given(st.lists(st.integers(-(2**47), 2**47)), st.integers(8, 48))
def test_narrow(sums, bits):
    total = np.array(sums, np.int64)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    np.testing.assert_array_equal(narrow(total, bits, "saturate"), [min(max(n, low), high) for n in sums])
    wrapped = narrow(total, bits, "wrap")
    assert all(low <= w <= high and (w - n) % 2**bits == 0 for w, n in zip(wrapped.tolist(), sums, strict=True))
    if all(low <= n <= high for n in sums):
        np.testing.assert_array_equal(narrow(total, bits, "error"), total)
    else:
        with pytest.raises(OverflowError, match=f"leaves the {bits}-bit accumulator"):
            narrow(total, bits, "error")


@given(st.lists(st.integers(0, 2**62), min_size=1))
def test_isqrt_and_bit_length(numbers):
    x = np.array(numbers, np.int64)
    root = isqrt(x)
    assert all(r * r <= n < (r + 1) ** 2 for r, n in zip(root.tolist(), numbers, strict=True))
    assert bit_length(x).tolist() == [n.bit_length() for n in numbers]


def test_wrap_differs_from_saturate_exactly_where_a_sum_overflows():
    ratio = np.array([4], np.int32), np.array([2], np.int32)
    weight, zero = np.full((4, 1), 15, np.uint8), np.zeros(1, np.uint8)
    op = Linear("x", Value("out", (2, 1), 32, True), weight, 4, zero, 0, np.zeros(1, np.int32), Raw(*ratio))
    x = {"x": np.array([[1, 1, 1, 1], [3, 3, 3, 3]])}
    wrap, saturate = (golden.execute(op, x, Datapath(accumulator_bits=8, overflow=rule), lambda *_: None) for rule in ("wrap", "saturate"))
    assert wrap.tolist() == [[60], [180 - 256]]
    assert saturate.tolist() == [[60], [127]]


def test_levels_that_are_codes_less_the_zero_point_mean_the_same():
    program = random_program(Shape(seed=5, depth=2))
    images = random_images(program, 2, 5)
    operations = [
        replace(op, levels=np.arange(1 << program.values[op.x].bits, dtype=np.int32) - op.x_zero, x_zero=0)
        if isinstance(op, Linear) and op.x != "patches"  # whose 8 bits have no room for a zero point
        else op
        for op in program.operations
    ]
    fitted = replace(program, operations=tuple(operations))
    assert fitted.bounds == program.bounds
    for image in images:
        taps, expected = {}, {}
        golden.run(fitted, image, taps)
        golden.run(program, image, expected)
        assert list(taps) == list(expected)
        for name, array in expected.items():
            np.testing.assert_array_equal(taps[name], array, err_msg=name)


@examples(60)
@given(seed=st.integers(0, 10**6), wide=st.booleans())
def test_values_stay_in_their_width_and_bounds_hold(seed, wide):
    """Also for widths that only the golden interpreter takes: 8-bit weights, 6-bit attention, 48-bit accumulators."""
    shape = Shape(seed=seed, biased=bool(seed % 2), windows=1 + seed % 2 * 3, prefix=0, extreme=bool(seed % 3), fitted=bool(seed % 5 % 2))
    if wide:
        shape = replace(shape, weight_bits=8, attention_bits=6, frozen_bits=5, freeze="scattered", datapath=Datapath(accumulator_bits=48))
    program = random_program(shape)
    golden.run(program, random_images(program, 2, seed)[1], taps := {})
    for value in program.values.values():
        if value.name != "image":
            assert value.low <= taps[value.name].min() <= taps[value.name].max() <= value.high
    for name, (low, high) in program.bounds.items():
        assert low <= taps[name].min() <= taps[name].max() <= high


def test_all_equal_channels_and_rows_are_defined():
    program = random_program(Shape(seed=1, side=8))
    op = replace(operation(program, "block0.norm1", LayerNorm), variance_offset=1)
    taps: dict[str, np.ndarray] = {}
    golden.layer_norm(op, np.full(op.out.shape, -(2**15)), Datapath(), taps.__setitem__)
    assert (taps["block0.norm1.variance"] == 1).all()
    assert (taps["block0.norm1.normalised"] == 0).all()


def test_image_of_another_shape_is_refused():
    program = random_program(Shape(seed=1))
    with pytest.raises(UserError, match=r"image: expected uint8 \[4, 4, 3\], got uint8 \[5, 4, 3\]"):
        golden.run(program, np.zeros((5, 4, 3), np.uint8))
