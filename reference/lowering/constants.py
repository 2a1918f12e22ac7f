"""From real numbers to the integers of a program: ratios and tables, correctly rounded, once and for all consumers."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from decimal import ROUND_HALF_UP, Decimal, localcontext
from fractions import Fraction
from functools import partial

import numpy as np

from eamsim.errors import UserError

MAX_SHIFT = 40  # a ratio too small to be normalised within it keeps fewer bits; the residual stream still fits in 63 bits
DIGITS = 100  # of every irrational number: the series of erf loses at most 32 of them


def round_half_up(x: Fraction) -> int:
    """floor(x + 1/2), exactly."""
    return math.floor(x + Fraction(1, 2))


Place = Callable[[], str]
"""Where a constant belongs and what it is made of, for the error."""


def ratio(r: Fraction, multiplier_bits: int, place: Place) -> tuple[int, int]:
    """(M, S) with M / 2^S nearest to r > 0, M of exactly `multiplier_bits` bits unless that needs S > MAX_SHIFT."""
    shift = multiplier_bits - _floor_log2(r) - 1
    if round_half_up(r * Fraction(2) ** shift) >> multiplier_bits:  # rounded up to the next power of two
        shift -= 1
    if shift < 0:
        raise UserError(
            f"{place()}: one unit of its sums is {float(r):.3g} of its result, more than a multiplier of {multiplier_bits} bits holds;"
            " look for a weight that is far too large"
        )
    shift = min(shift, MAX_SHIFT)
    return round_half_up(r * Fraction(2) ** shift), shift


def ratios(
    numerators: Sequence[Fraction], denominators: Sequence[Fraction], multiplier_bits: int, place: Callable[[int], str]
) -> tuple[np.ndarray, np.ndarray]:
    """`ratio` of each numerator to its denominator: multiplier and shift, int32; place: of an index."""
    fractions = enumerate(zip(numerators, denominators, strict=True))
    pairs = np.array([ratio(above / below, multiplier_bits, partial(place, i)) for i, (above, below) in fractions], np.int32)
    return pairs[:, 0].copy(), pairs[:, 1].copy()


def _floor_log2(r: Fraction) -> int:
    estimate = r.numerator.bit_length() - r.denominator.bit_length()
    return estimate if r >= Fraction(2) ** estimate else estimate - 1


def over_sqrt2(multiplier: int) -> int:
    """round(multiplier / sqrt(2)), exactly."""
    return (math.isqrt(2 * multiplier * multiplier) + 1) // 2


def log2(x: Fraction) -> Fraction:
    """log2(x) to far more digits than any table needs; x > 0."""
    with localcontext(prec=DIGITS):
        return Fraction((Decimal(x.numerator) / Decimal(x.denominator)).ln() / Decimal(2).ln())


def sqrt(n: int) -> Fraction:
    """The square root of a positive integer to far more digits than any multiplier needs."""
    with localcontext(prec=DIGITS):
        return Fraction(Decimal(n).sqrt())


def log2_e() -> Fraction:
    """log2(e), as exactly."""
    with localcontext(prec=DIGITS):
        return Fraction(1 / Decimal(2).ln())


def exp2_table(fraction_bits: int, value_bits: int) -> np.ndarray:
    """round(2^value_bits * 2^(-i / 2^fraction_bits)): int32 [2^fraction_bits]."""
    with localcontext(prec=DIGITS):
        entries = [Decimal(2) ** (value_bits - Decimal(i) / (1 << fraction_bits)) for i in range(1 << fraction_bits)]
        return np.array([_nearest(entry) for entry in entries], np.int32)


def log2_table(index_bits: int, fraction_bits: int) -> np.ndarray:
    """round(2^fraction_bits * log2(1 + i / 2^index_bits)): int32 [2^index_bits]."""
    entries = [log2(1 + Fraction(i, 1 << index_bits)) * (1 << fraction_bits) for i in range(1 << index_bits)]
    return np.array([round_half_up(entry) for entry in entries], np.int32)


def gelu_table(step: Fraction, index_zero: int, index_bits: int, limits: Sequence[float]) -> np.ndarray:
    """Codes of GELU at `(i - index_zero) * step`, limits the least values of the codes from 1 on: uint8 [2^index_bits]."""
    exact = [Fraction(limit) for limit in limits]
    return np.array([bisect_right(exact, gelu((i - index_zero) * step)) for i in range(1 << index_bits)], np.uint8)


def gelu_index(limits: Sequence[float], reach: float, index_bits: int) -> tuple[float, int]:
    """(step, zero) of an index that covers the inputs between which GELU's code changes, up to `reach`, and one step on either side."""
    x = np.linspace(-10, max(10, reach), 1 << 16)
    phi = np.vectorize(math.erf)(x / math.sqrt(2)) / 2 + 0.5
    changes = np.flatnonzero(np.diff(np.searchsorted(limits, x * phi, side="right")))
    low, high = (float(x[changes[0]]), float(x[changes[-1] + 1])) if len(changes) else (-1.0, 1.0)
    step = (high - low) / ((1 << index_bits) - 3)
    return step, 1 - round(low / step)


def gelu(x: Fraction) -> Fraction:
    """x * (1 + erf(x / sqrt(2))) / 2 to more than 30 digits."""
    if abs(x) > 12:  # the tail is below 1e-31
        return max(x, Fraction(0))
    with localcontext(prec=DIGITS):
        value = Decimal(x.numerator) / Decimal(x.denominator)
        term, total, n = value, value, 0
        while abs(term) > Decimal(10) ** (-DIGITS // 2):  # Phi(x) - 1/2 = 1/sqrt(2 pi) * sum (-1)^n x^(2n+1) / (2^n n! (2n+1))
            n += 1
            term *= -value * value / (2 * n)
            total += term / (2 * n + 1)
        return Fraction(value * (Decimal("0.5") + total / (2 * _pi()).sqrt()))


def _pi() -> Decimal:
    """Machin's formula, to the digits of the current context."""
    return 4 * (4 * _arctan_inverse(5) - _arctan_inverse(239))


def _arctan_inverse(n: int) -> Decimal:
    term, total, k = Decimal(1) / n, Decimal(1) / n, 1
    while abs(term) > Decimal(10) ** (-DIGITS):
        term /= -n * n
        k += 2
        total += term / k
    return total


def _nearest(x: Decimal) -> int:
    return int(x.to_integral_value(ROUND_HALF_UP))
