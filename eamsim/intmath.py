"""The integer primitives of the golden interpreter, on int64 arrays, written for reading.

The formulas are those of docs/spec/datapath.md section 1; `eamsim/constraints.py` proves that none of them leaves int64.
"""

from __future__ import annotations

import math
from typing import assert_never

import numpy as np

from eamsim.program import Overflow, Rounding


def round_shift(x: np.ndarray, shift: np.ndarray | int, rounding: Rounding) -> np.ndarray:
    """x / 2^shift rounded to an integer: x int64, shift >= 0; `>>` is arithmetic (it floors).

    half_up: floor(x / 2^s + 1/2), ties towards plus infinity. half_even: ties to the even neighbour.
    half_away: ties away from zero. floor: x >> s.
    """
    shift = np.asarray(shift, np.int64)
    half = (np.int64(1) << shift) >> 1
    match rounding:
        case "half_up":
            return (x + half) >> shift
        case "floor":
            return x >> shift
        case "half_away":
            return np.where(x >= 0, (x + half) >> shift, -((half - x) >> shift))
        case "half_even":
            quotient = x >> shift
            remainder = x - (quotient << shift)
            up = (remainder > half) | ((remainder == half) & (quotient & 1 == 1))
            return quotient + (up & (shift > 0))
        case _:
            assert_never(rounding)


def narrow(total: np.ndarray, bits: int, overflow: Overflow) -> np.ndarray:
    """A finished sum in a two's-complement accumulator of `bits`; OverflowError under `error`."""
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    match overflow:
        case "error":
            if total.size and (total.min() < low or total.max() > high):
                raise OverflowError(f"a sum in [{total.min()}, {total.max()}] leaves the {bits}-bit accumulator")
            return total
        case "wrap":
            return ((total - low) & ((1 << bits) - 1)) + low
        case "saturate":
            return np.clip(total, low, high)
        case _:
            assert_never(overflow)


def isqrt(x: np.ndarray) -> np.ndarray:
    """floor(sqrt(x)), exact; x int64, non-negative."""
    return np.array([math.isqrt(value) for value in x.ravel().tolist()], np.int64).reshape(x.shape)


def bit_length(x: np.ndarray) -> np.ndarray:
    """Position of the leading one, counted from 1 (0 for 0); x int64, non-negative."""
    return np.array([value.bit_length() for value in x.ravel().tolist()], np.int64).reshape(x.shape)
