"""How a constraint of docs/spec/datapath.md is checked, and what the error of a broken one says: where, its number, what came.

`eamsim.constraints` says which constraints an operation has.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eamsim.errors import UserError
from eamsim.program import Datapath, Value

Bound = tuple[int, int]
"""The least and the greatest integer."""
MAX_SHIFT = 62
SUM_LIMIT = 1 << 62
SCALED_LIMIT = (1 << 63) - (1 << (MAX_SHIFT - 1))


class ProgramError(UserError):
    """A program that violates a constraint."""


@dataclass(frozen=True)
class Check:
    """Raises ProgramError with the operation's name and kind in front."""

    where: str
    datapath: Datapath

    def that(self, condition: bool, label: str, message: str) -> None:
        if not condition:
            raise ProgramError(f"{self.where} [{label}]: {message}")

    def array(self, label: str, name: str, array: np.ndarray, dtype: type, shape: tuple[int, ...], bound: Bound | None = None) -> None:
        """dtype and shape exactly, every element within the inclusive bound."""
        expected = f"{np.dtype(dtype)} {shape}"
        self.that(array.dtype == dtype and array.shape == shape, label, f"{name} must be {expected}, got {array.dtype} {array.shape}")
        if bound is not None and array.size:
            found = int(array.min()), int(array.max())
            self.that(bound[0] <= found[0] and found[1] <= bound[1], label, f"{name} must lie in {list(bound)}, got {list(found)}")

    def number(self, label: str, name: str, number: int, low: int, high: int) -> None:
        self.that(low <= number <= high, label, f"{name} must be an integer in [{low}, {high}], got {number}")

    def shape(self, label: str, value: Value, shape: tuple[int, ...]) -> None:
        self.that(value.shape == shape, label, f"{value.name} must have shape {shape}, got {value.shape}")

    def codes(self, label: str, value: Value) -> None:
        self.that(not value.signed, label, f"{value.name} must be unsigned codes, got {value}")

    def wide(self, label: str, value: Value) -> None:
        self.that(value.signed, label, f"{value.name} must be signed, got {value}")

    def matrix(self, label: str, value: Value) -> None:
        self.that(len(value.shape) == 2, label, f"{value.name} must be [tokens, channels], got {value.shape}")

    def ratio(self, label: str, multiplier: int, shift: int) -> None:
        self.number(label, "multiplier", multiplier, 0, self.max_multiplier)
        self.number(label, "shift", shift, 0, MAX_SHIFT)

    @property
    def max_multiplier(self) -> int:
        return (1 << self.datapath.multiplier_bits) - 1

    def accumulator(self, label: str, name: str, bound: Bound) -> Bound:
        """The bound of a sum once narrowed; under `error` the sum itself must fit."""
        high = (1 << (self.datapath.accumulator_bits - 1)) - 1
        fits = -high - 1 <= bound[0] and bound[1] <= high
        self.that(magnitude(bound) < SUM_LIMIT, label, f"{name} may reach {list(bound)}, expected below 2^62 in magnitude")
        if self.datapath.overflow == "error":
            width = self.datapath.accumulator_bits
            self.that(fits, label, f"{name} may reach {list(bound)}, beyond the {width}-bit accumulator (overflow 'error')")
        return bound if fits else (-high - 1, high)

    def scaled(self, label: str, name: str, reach: int) -> None:
        """The greatest magnitude of what is to be rounded: int64 holds it with any rounding constant."""
        self.that(reach < SCALED_LIMIT, label, f"{name} may reach {reach}, expected below 3 * 2^61")


def magnitude(bound: Bound) -> int:
    return max(abs(bound[0]), abs(bound[1]))


def extent(array: np.ndarray) -> Bound:
    return (int(array.min()), int(array.max())) if array.size else (0, 0)
