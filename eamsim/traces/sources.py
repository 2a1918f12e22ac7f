"""What `trace diff` compares: traces, runs of a program, dumps of a simulator, all as taps by image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from eamsim.errors import UserError
from eamsim.program import Value
from eamsim.traces.difference import Taps
from eamsim.traces.file import Trace

DUMP_BITS = 64


@dataclass(frozen=True)
class Digest:
    """A tap of which only this is known: SHA-256 of its integers in a packing (eamsim/files/packing.py), as a version of traces has it."""

    sha256: str
    packing: str
    version: int

    def __str__(self) -> str:
        return f"sha256 {self.sha256} of {self.packing}"


class TapSource(Protocol):
    """Taps of some images; names: those it has, in the order of execution where it knows it."""

    @property
    def names(self) -> Sequence[str]: ...

    @property
    def images(self) -> int: ...

    def value(self, name: str) -> Value:
        """The shape for one image, and the width, which is 64 bits where the source declares none."""
        ...

    def tap(self, name: str, image: int) -> np.ndarray | Digest:
        """int64 of one image, or their digest."""
        ...


class TraceSource:
    """A trace; its image counts as a tap, or different pictures would look like a wrong interpreter.

    image_name: what the program calls it. UserError where another tap of the trace has that name.
    """

    def __init__(self, trace: Trace, image_name: str):
        if image_name in trace.entries:
            raise UserError(f"{trace.path}: has a tap {image_name!r} beside the image; say with --program what the image is called")
        self.trace, self.image_name = trace, image_name
        self.names, self.images = (image_name, *trace.entries), len(trace.header.images)

    def value(self, name: str) -> Value:
        if name == self.image_name:
            return Value(name, self.trace.header.image_shape, 8)
        _, entry = self.trace.entries[name]
        return Value(name, entry.shape, entry.bits, entry.signed)

    def tap(self, name: str, image: int) -> np.ndarray | Digest:
        if name == self.image_name:
            return self.trace.image(image).astype(np.int64)
        integers = self.trace.integers(name, image)
        if integers is not None:
            return integers
        return Digest(self.trace.digest(name, image), self.trace.entries[name][1].packing, self.trace.header.digest_version)


class RunSource:
    """A program's run on uint8 images, image by image; run: all taps of one, the image among them."""

    def __init__(self, run: Callable[[np.ndarray], Taps], values: Mapping[str, Value], images: Callable[[int], np.ndarray], count: int):
        self.names, self.images, self._values, self._run, self._image_of = tuple(values), count, values, run, images
        self._last: tuple[int, Taps] = (-1, {})

    def value(self, name: str) -> Value:
        return self._values[name]

    def tap(self, name: str, image: int) -> np.ndarray:
        if self._last[0] != image:
            self._last = image, self._run(self._image_of(image))
        return self._last[1][name]


class DumpSource:
    """What a simulator wrote: int64 [images, ...] by tap; `eamsim.traces.dumps` reads and checks it."""

    def __init__(self, taps: Taps):
        self.names, self.images, self._taps = tuple(taps), len(next(iter(taps.values()))), taps

    def value(self, name: str) -> Value:
        return Value(name, self._taps[name].shape[1:], DUMP_BITS, signed=True)

    def tap(self, name: str, image: int) -> np.ndarray:
        return self._taps[name][image]
