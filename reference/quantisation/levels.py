"""Fitted levels: a quantiser whose codes stand for any 8-bit integers, where no even grid fits (docs/spec/datapath.md, Linear)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from eamsim.errors import UserError
from reference.quantisation.quantisers import Affine, as_scale

LOW, HIGH = -128, 127
BINS = 64
"""Of the histogram that levels are fitted to, in a step of the coarsest scale."""
SCALES = 33
"""That are tried, an eighth of an octave apart: the largest value's, and such as cut off up to 15/16 of it."""


@dataclass(frozen=True, eq=False)
class Levels:
    """Code c stands for `levels[c] * scale`, and every value has the code of the nearest; of two as near, the upper.

    scale: float64, 24 bits; levels: float64 integers [2^bits], ascending, in -128..127.
    """

    scale: Tensor
    levels: Tensor
    bits: int

    @property
    def zero(self) -> Tensor:
        """Levels are not codes less a zero point: nothing is taken off them."""
        return torch.zeros((), dtype=torch.float64)

    @property
    def magnitude_bits(self) -> int:
        """A level is at most 2^magnitude_bits."""
        return 7

    @property
    def limits(self) -> Tensor:
        """The least values of the codes from 1 on: float64 [2^bits - 1], exact."""
        return (self.levels[1:] + self.levels[:-1]) / 2 * self.scale

    @property
    def reach(self) -> float:
        """More than any value that is not the last code's."""
        return (self.levels[-1].item() + 1) * self.scale.item()

    def codes(self, x: Tensor) -> Tensor:
        return torch.bucketize(x, self.limits, right=True).double()

    def decode(self, codes: Tensor) -> Tensor:
        return self.levels[codes.long()] * self.scale

    def steps(self, x: Tensor) -> Tensor:
        """x quantised, in steps of the scale: the levels themselves."""
        return self.levels[torch.bucketize(x, self.limits, right=True)]

    def __call__(self, x: Tensor) -> Tensor:
        """x quantised and dequantised."""
        return self.steps(x).mul_(self.scale)


Grid = Affine | Levels
"""What codes of a value stand for."""


def fit_levels(x: Tensor, bits: int) -> Levels:
    """The levels of least squared error on x, of all sets of 2^bits 8-bit integers, by the best of SCALES scales.

    Values are counted in a histogram first, so that the choice depends on no order of a sum. Raises UserError where x is not finite.
    """
    largest = x.abs().max().item()
    if not np.isfinite(largest):
        raise UserError("levels: expected finite values, got NaN or infinite ones; check the weights")
    width = float(as_scale(torch.tensor(largest or 1.0, dtype=torch.float64))) / (HIGH * BINS)
    numbers, counts = np.unique(torch.round(x / width).numpy().astype(np.int64), return_counts=True)
    best = np.inf, np.empty(0), 1.0
    for octave in range(SCALES):
        step = BINS * 2.0 ** (-octave / 8)
        error, levels = _best_levels(numbers, counts, step, 1 << bits)
        if error < best[0]:
            best = error, levels, step
    return Levels(as_scale(torch.tensor(best[2] * width, dtype=torch.float64)), torch.from_numpy(best[1].astype(np.float64)), bits)


def _best_levels(numbers: np.ndarray, counts: np.ndarray, step: float, wanted: int) -> tuple[float, np.ndarray]:
    """Squared error and integers of the `wanted` levels, each `step` times an integer, that are nearest to the counted numbers.

    Dynamic programming over the greatest level so far: what lies between two neighbours has the error of the nearer.
    """
    sums = [np.concatenate([[0], np.cumsum(counts * numbers**power)]).astype(np.float64) for power in range(3)]  # exact: below 2^53
    integers = np.arange(LOW, HIGH + 1)
    places = integers * step
    middles = (places[:, None] + places) / 2
    place, middle = np.searchsorted(numbers, places), np.searchsorted(numbers, middles)

    def error(first: np.ndarray, last: np.ndarray, level: np.ndarray) -> np.ndarray:
        zeroth, once, twice = (each[last] - each[first] for each in sums)
        return twice - 2 * level * once + level * level * zeroth

    between = error(place[:, None], middle, places[:, None]) + error(middle, place, places)
    between[np.tril_indices(len(integers))] = np.inf
    total, before = error(np.zeros_like(place), place, places), []
    for _ in range(wanted - 1):
        through = total[:, None] + between
        before.append(through.argmin(axis=0))
        total = through.min(axis=0)
    total = total + error(place, np.full_like(place, len(numbers)), places)
    chosen = [int(total.argmin())]
    for previous in reversed(before):
        chosen.append(int(previous[chosen[-1]]))
    return float(total.min()), integers[chosen[::-1]]
