"""What the integers of a trace have been: ranges, limits reached, histograms of codes, and how near sums came to what is proven."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eamsim.traces.file import TapEntry, Trace

HISTOGRAM_BITS = 8
SUMS = frozenset({"acc", "scores", "even", "odd"})


@dataclass(frozen=True)
class TapStatistics:
    """Of one tap over all images: least and greatest integer, elements at either end of the register, histogram of codes.

    at_low, at_high: elements equal to the least and the greatest integer of the declared width: what a clip or a saturating
    accumulator has cut off is among them. histogram: counts of 0, 1, ... where the width is at most 8 bits, unsigned; else empty.
    peak: greatest magnitude.
    """

    low: int
    high: int
    elements: int
    at_low: int
    at_high: int
    histogram: tuple[int, ...]

    @property
    def peak(self) -> int:
        return max(abs(self.low), abs(self.high))


def statistics(trace: Trace, name: str) -> TapStatistics | None:
    """None where the trace holds digests alone."""
    _, entry = trace.entries[name]
    if not entry.stored:
        return None
    low, high, at_low, at_high, elements = [], [], 0, 0, 0
    coded = not entry.signed and entry.bits <= HISTOGRAM_BITS
    histogram = np.zeros(1 << entry.bits if coded else 0, np.int64)
    least, greatest = limits_of(entry)
    for image in range(len(trace.header.images)):
        integers = trace.integers(name, image)
        assert integers is not None
        low.append(int(integers.min()))
        high.append(int(integers.max()))
        at_low += int(np.count_nonzero(integers == least))
        at_high += int(np.count_nonzero(integers == greatest))
        elements += integers.size
        if coded:
            histogram += np.bincount(integers.ravel(), minlength=len(histogram))
    return TapStatistics(min(low), max(high), elements, at_low, at_high, tuple(histogram.tolist()))


def limits_of(entry: TapEntry) -> tuple[int, int]:
    return (-(1 << (entry.bits - 1)), (1 << (entry.bits - 1)) - 1) if entry.signed else (0, (1 << entry.bits) - 1)


def is_sum(name: str) -> bool:
    """Whether the tap is a finished sum, which overflows where the accumulator is too narrow."""
    return name.rpartition(".")[2] in SUMS
