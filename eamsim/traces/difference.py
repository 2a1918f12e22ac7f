"""Taps of two runs, compared: the first differing integer in program order, or digests where the integers are too many to keep."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

Taps = dict[str, np.ndarray]


@dataclass(frozen=True)
class Difference:
    """The first differing element of the first differing tap; `elements` of that tap differ in all."""

    tap: str
    index: tuple[int, ...]
    expected: int
    found: int
    elements: int

    def __str__(self) -> str:
        where = f"{self.tap}{list(self.index)}"
        integers = f"expected {self.expected} ({self.expected:#x}), found {self.found} ({self.found:#x})"
        return f"{where}: {integers}; {self.elements} elements of this tap differ"


def first_difference(expected: Taps, found: Taps) -> Difference | None:
    """None if every tap of `expected`, in its order, is in `found` with the same shape and integers.

    ValueError when a tap is missing on either side or has another shape: the runs are not of the same program.
    """
    if expected.keys() != found.keys():
        raise ValueError(f"the runs publish different taps: {sorted(expected.keys() ^ found.keys())}")
    for tap, integers in expected.items():
        if integers.shape != found[tap].shape:
            raise ValueError(f"{tap}: expected shape {integers.shape}, found {found[tap].shape}")
        different = np.argwhere(integers != found[tap])
        if len(different):
            index = tuple(int(i) for i in different[0])
            return Difference(tap, index, int(integers[index]), int(found[tap][index]), len(different))
    return None


def digests(taps: Taps) -> dict[str, str]:
    """SHA-256 of each tap's integers as little-endian int64 in C order, in hexadecimal."""
    return {name: hashlib.sha256(integers.astype("<i8").tobytes()).hexdigest() for name, integers in taps.items()}
