"""Scalar fixed-point primitives of the kernels; written apart from the golden interpreter's on purpose.

A rounding mode is an empty named tuple: its type, known when a kernel is compiled, selects the formula.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit, types
from numba.extending import overload


class HalfUp(NamedTuple):
    """floor(x / 2^s + 1/2)."""


class HalfEven(NamedTuple):
    """Nearest, ties to the even neighbour."""


class HalfAway(NamedTuple):
    """Nearest, ties away from zero."""


class Floor(NamedTuple):
    """x >> s."""


ROUNDINGS = {"half_up": HalfUp(), "half_even": HalfEven(), "half_away": HalfAway(), "floor": Floor()}


def round_shift(rounding, x, shift):
    """x / 2^shift rounded by the tag `rounding`: x int32 or int64, the result of the same width; shift >= 0.

    Hardware twin: one adder for the rounding constant (0 for shift 0) before an arithmetic right shift.
    """
    raise NotImplementedError("compiled code only")


@overload(round_shift, inline="always")
def _round_shift(rounding, x, shift):
    # Every step is cast back, and shifts are seen to be below the width: left alone, Numba widens int32 to int64, at half the speed.
    narrow = x == types.int32
    cast = np.int32 if narrow else np.int64
    most = cast(31 if narrow else 63)

    def shifted(rounding, x, shift):
        s = cast(cast(shift) & most)
        return cast(add_half(rounding, x, s) >> s)

    return shifted


def round_narrow(rounding, width, x, shift):
    """`round_shift` of an int64 x in the width of the argument `width`: int32 only where the result fits and shift <= 32.

    AVX2 has no arithmetic shift of 64 bits; up to 32 places the logical one leaves the same low half.
    """
    raise NotImplementedError("compiled code only")


@overload(round_narrow, inline="always")
def _round_narrow(rounding, width, x, shift):
    def shifted(rounding, width, x, shift):
        return round_shift(rounding, x, shift)

    def halved(rounding, width, x, shift):
        s = np.int64(np.int64(shift) & np.int64(63))
        return np.int32(np.uint64(add_half(rounding, x, s)) >> np.uint64(s))

    return halved if width == types.int32 else shifted


def add_half(rounding, x, shift):
    """What an arithmetic right shift of x by `shift`, of the width of x, then rounds as `rounding` says."""
    raise NotImplementedError("compiled code only")


@overload(add_half, inline="always")
def _add_half(rounding, x, shift):
    cast = np.int32 if x == types.int32 else np.int64
    zero, one = cast(0), cast(1)

    def floor(rounding, x, shift):
        return x

    def half_up(rounding, x, shift):
        return cast(x + cast(cast(one << shift) >> one))

    def half_even(rounding, x, shift):
        half = cast(cast(one << shift) >> one)
        some = cast(half > zero)
        return cast(cast(x + half) - cast(some - cast(cast(x >> shift) & some)))

    def half_away(rounding, x, shift):
        half = cast(cast(one << shift) >> one)
        return cast(cast(x + half) - cast((x < zero) & (half > zero)))

    return {Floor: floor, HalfUp: half_up, HalfEven: half_even, HalfAway: half_away}[rounding.instance_class]


@njit
def clip(x, low, high):
    """x limited to [low, high]."""
    return min(max(x, low), high)


@njit
def bit_length(x):
    """Position of the leading one of x >= 0, counted from 1; 0 for 0. int64."""
    length = np.int64(0)
    width = np.int64(32)
    while width > 0:
        if (x >> width) > 0:
            x >>= width
            length += width
        width >>= 1
    return length + x


@njit(error_model="numpy")
def isqrt(x):
    """floor(sqrt(x)) of an int64 x in [0, 2^63 - 2]: Newton's iteration from above, which descends to the answer and stops.

    The start 2^ceil(bits / 2) exceeds sqrt(x), so that every iterate is at least floor(sqrt(x)); the first step that does not
    descend is the exact answer.
    """
    if x < 2:
        return x
    root = np.int64(1) << ((bit_length(x) + 1) >> 1)
    while True:
        following = (root + x // root) >> 1
        if following >= root:
            return root
        root = following
