"""The engine's scalar primitives against Python integers."""

from fractions import Fraction
from math import floor, isqrt

import numpy as np
import pytest
from numba import njit

from eamsim.engine.kernels import fixedpoint


@njit
def shift_all(rounding, x, shift, out):
    for i in range(len(x)):
        out[i] = fixedpoint.round_shift(rounding, x[i], shift)


@njit
def bit_length_all(x, out):
    for i in range(len(x)):
        out[i] = fixedpoint.bit_length(x[i])


def expected(name: str, x: int, shift: int) -> int:
    value = Fraction(x, 1 << shift)
    match name:
        case "floor":
            return floor(value)
        case "half_up":
            return floor(value + Fraction(1, 2))
        case "half_even":
            return round(value)
        case _:
            return (1 if value > 0 else -1) * floor(abs(value) + Fraction(1, 2))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("shift", [0, 1, 2, 5, 12, 30])
@pytest.mark.parametrize("name", fixedpoint.ROUNDINGS)
def test_round_shift_is_the_exact_quotient_rounded(name, shift, dtype):
    edges = [sign * (k * (1 << shift) // 2) + d for k in range(8) for d in (-1, 0, 1) for sign in (-1, 1)]
    x = np.unique([*range(-300, 301), *(edge for edge in edges if abs(edge) < 1 << 30)]).astype(dtype)
    out = np.empty_like(x)
    shift_all(fixedpoint.ROUNDINGS[name], x, dtype(shift), out)
    np.testing.assert_array_equal(out, [expected(name, int(value), shift) for value in x])


def edge_values() -> np.ndarray:
    powers = [(1 << bits) + d for bits in range(63) for d in (-1, 0, 1)]
    roots = [*range(100), *((1 << bits) + d for bits in range(1, 31) for d in (-1, 0, 1)), 3037000498]
    squares = [root * root + d for root in roots for d in (-1, 0, 1)]
    random = np.random.default_rng(0).integers(0, 1 << 62, 10_000).tolist()
    return np.array([value for value in (*powers, *squares, *random, (1 << 63) - 2) if value >= 0], np.int64)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_isqrt_is_exact_around_powers_and_squares(size):
    values = edge_values()
    values = values[values < 1 << 62]
    for x in np.array_split(values, len(values) // size):
        out = np.empty_like(x)
        fixedpoint.isqrt_each(x.copy(), out)
        np.testing.assert_array_equal(out, [isqrt(value) for value in x.tolist()])


def test_bit_length_is_pythons():
    x = edge_values()
    out = np.empty_like(x)
    bit_length_all(x, out)
    np.testing.assert_array_equal(out, [value.bit_length() for value in x.tolist()])
