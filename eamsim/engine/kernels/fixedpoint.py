"""Scalar fixed-point primitives of the kernels; written apart from the golden interpreter's on purpose.

A rounding mode is an empty named tuple: its type, known when a kernel is compiled, selects the formula.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload


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


@intrinsic
def leading_zeros(typingctx, x):
    """Of an int64; 64 for 0."""
    return types.int64(types.int64), lambda context, builder, signature, args: builder.ctlz(args[0], ir.Constant(ir.IntType(1), 0))


@njit
def bit_length(x):
    """Position of the leading one of x >= 0, counted from 1; 0 for 0. int64."""
    return np.int64(64) - leading_zeros(np.int64(x))  # pyright: ignore[reportCallIssue] (Numba passes the typing context)


@njit
def isqrt_each(x, root):
    """root = floor(sqrt(x)) of int64 arrays, x in [0, 2^62) and lost: a bit a step, all side by side.

    Newton's iteration, number by number, took a third of a LayerNorm: five divisions that wait for each other.
    """
    greatest = np.int64(0)
    for i in range(len(x)):
        root[i] = 0
        greatest = max(greatest, x[i])
    bit = np.int64(1) << ((bit_length(greatest) >> 1) << 1)
    while bit > 0:
        for i in range(len(x)):
            trial = root[i] + bit
            taken = x[i] >= trial
            x[i] -= trial if taken else np.int64(0)
            root[i] = (root[i] >> 1) + (bit if taken else np.int64(0))
        bit >>= 2
