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
    one, most = cast(1), cast(31 if narrow else 63)
    mode = rounding.instance_class

    def floor(rounding, x, shift):
        return cast(x >> cast(cast(shift) & most))

    def half_up(rounding, x, shift):
        s = cast(cast(shift) & most)
        half = cast(cast(one << s) >> one)
        return cast(cast(x + half) >> s)

    def half_even(rounding, x, shift):
        s = cast(cast(shift) & most)
        half = cast(cast(one << s) >> one)
        some = cast(half > cast(0))
        odd = cast(cast(x >> s) & some)
        return cast(cast(cast(x + half) - cast(some - odd)) >> s)

    def half_away(rounding, x, shift):
        s = cast(cast(shift) & most)
        half = cast(cast(one << s) >> one)
        below = cast((x < cast(0)) & (half > cast(0)))
        return cast(cast(cast(x + half) - below) >> s)

    return {Floor: floor, HalfUp: half_up, HalfEven: half_even, HalfAway: half_away}[mode]


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
