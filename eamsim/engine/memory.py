"""What the kernels read and write: constants, activations, scratch and taps, each in one flat array of its type.

Activations lie value by value, within a value image by image: element e of image b of a value of `size` elements placed at `offset` is
at `offset * batch + b * size + e`, so that the rows of all images follow each other. Codes (unsigned, at most 8 bits) are uint8, signed
values int32.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from eamsim.engine.ir.tile import ROWS

CACHE_LINE = 64


class Arena(NamedTuple):
    """Every array a kernel can reach; the scratch is the own of the thread that got this tuple, all others are shared."""

    weights: np.ndarray
    """int8: packed weights of every Linear."""
    tables: np.ndarray
    """uint8: lookup tables and frozen maps."""
    ints: np.ndarray
    """int32: everything by channel or token."""
    longs: np.ndarray
    """int64: LayerNorm offsets."""
    codes: np.ndarray
    """uint8: activations."""
    values: np.ndarray
    """int32: activations."""
    panels: np.ndarray
    """int8: packed keys and values of the current Attention."""
    panel_bias: np.ndarray
    """int32: what the zero point of q adds to each key's scores."""
    taps: np.ndarray
    """uint8: the taps asked for, each as integers of its own width, then their digests if these were; one byte if none."""
    bytes: np.ndarray
    """uint8: scratch."""
    words: np.ndarray
    """int32: scratch."""


def tap_fields(*names: str) -> tuple[str, ...]:
    """Of a record, for each tap: the byte of one image at which it lies among the taps (-1: nowhere), and the bytes of an integer."""
    return tuple(f"{field}_{name}" for name in names for field in ("tap", "item"))


class Constants:
    """Collects constant arrays of four types; `add` returns the offset of each within its flat array.

    Room for `weights` bytes of int8 is taken at once, so that no two copies of the largest of them are ever in memory.
    """

    def __init__(self, weights: int = 0) -> None:
        self.parts: dict[str, list[np.ndarray]] = {"uint8": [], "int32": [], "int64": []}
        self.sizes = dict.fromkeys(("int8", *self.parts), 0)
        self.weights = aligned(weights, np.int8)

    def add(self, array: np.ndarray) -> int:
        """Each array starts on a cache line and is followed by zeros up to the next."""
        kind = str(array.dtype)
        offset = self.sizes[kind]
        gap = -array.nbytes % CACHE_LINE // array.itemsize
        if kind == "int8":
            self.weights[offset : offset + array.size].reshape(array.shape)[:] = array
        else:
            self.parts[kind] += [array.ravel(), np.zeros(gap, array.dtype)]
        self.sizes[kind] = offset + array.size + gap
        return offset

    def flat(self) -> dict[str, np.ndarray]:
        """The four arrays by their names in Arena."""
        names = {"tables": "uint8", "ints": "int32", "longs": "int64"}
        return {"weights": self.weights} | {name: self.joined(kind) for name, kind in names.items()}

    def joined(self, kind: str) -> np.ndarray:
        whole = aligned(self.sizes[kind], kind)
        if self.parts[kind]:
            np.concatenate(self.parts[kind], out=whole)
        return whole


def aligned(size: int, kind: str | type) -> np.ndarray:
    """Zeros [max(size, 1)] that start on a cache line."""
    itemsize = np.dtype(kind).itemsize
    raw = np.zeros(max(size, 1) * itemsize + CACHE_LINE, np.uint8)
    start = -raw.ctypes.data % CACHE_LINE
    return raw[start : start + max(size, 1) * itemsize].view(kind)


def whole_tiles(rows: int) -> int:
    """Rows rounded up to whole register tiles."""
    return -(-rows // ROWS) * ROWS


# Kernels take Arena apart once and hand arrays to what they call for each row: every call that takes the whole of it costs a
# reference count for each array.


@njit
def store_row(is_signed, start, codes, values, row):
    """Copy int32 scratch into codes or values at `start`."""
    if is_signed:
        target = values[start : start + len(row)]
        for i in range(len(row)):
            target[i] = row[i]
    else:
        narrow = codes[start : start + len(row)]
        for i in range(len(row)):
            narrow[i] = np.uint8(row[i])


@njit
def keep(taps, base, item, offset, row):
    """Publish a row of a tap of integers of `item` bytes: base is the byte at which the tap lies, negative if it was not asked for.

    What such an integer cannot hold is clipped: wrapped, it might pass for a right one.
    """
    if base < 0:
        return
    target = taps[base + item * offset : base + item * (offset + len(row))]
    if item == 1:
        copy_clipped(row, target, 0, (1 << 8) - 1)
    elif item == 2:
        copy_clipped(row, target.view(np.int16), -(1 << 15), (1 << 15) - 1)
    elif item == 4:
        copy_clipped(row, target.view(np.int32), -(1 << 31), (1 << 31) - 1)
    else:
        copy_clipped(row, target.view(np.int64), -(1 << 62), 1 << 62)


@njit
def copy_clipped(row, target, low, high):
    for i in range(len(row)):
        target[i] = min(max(np.int64(row[i]), low), high)
