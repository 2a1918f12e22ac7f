"""Integer arrays as the fewest bytes that hold them, and back: the packings of the .eam format."""

from __future__ import annotations

import math

import numpy as np

DTYPES = {"bool": np.bool_, "uint8": np.uint8, "int32": np.int32, "int64": np.int64}
BITS = {"u1": 1, "u4": 4, "u8": 8, "i8": 8, "u16": 16, "i16": 16, "i32": 32, "i64": 64}


def limits(packing: str) -> tuple[int, int]:
    """The least and the greatest integer of a packing."""
    bits, signed = BITS[packing], packing.startswith("i")
    return -(1 << (bits - 1)) if signed else 0, (1 << (bits - signed)) - 1


def narrowest(array: np.ndarray) -> str:
    """The first packing of `BITS` that holds every element."""
    low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
    return next(name for name in BITS if limits(name)[0] <= low and high <= limits(name)[1])


def packed_bytes(elements: int, packing: str) -> int:
    """Length of `elements` packed elements; the last byte is filled up."""
    return -(-elements * BITS[packing] // 8)


def stored_form(packing: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    """dtype and shape of the packed array as one of bytes and words: below a byte its axes are lost."""
    if BITS[packing] < 8:
        return "|u1", (packed_bytes(math.prod(shape), packing),)
    return _stored_dtype(packing).str, shape


def pack(array: np.ndarray, packing: str) -> bytes:
    """Elements in C order: u1 and u4 fill each byte from its low end, the wider ones are little endian."""
    flat = array.ravel()
    match packing:
        case "u1":
            return np.packbits(flat.astype(np.bool_), bitorder="little").tobytes()
        case "u4":
            codes = np.zeros(flat.size + flat.size % 2, np.uint8)
            codes[: flat.size] = flat
            return (codes[0::2] | codes[1::2] << 4).tobytes()
        case _:
            return flat.astype(_stored_dtype(packing)).tobytes()


def unpack(data: bytes, packing: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """The array that `pack` was given; ValueError where a packing may hold what the dtype cannot."""
    elements = int(np.prod(shape, dtype=np.int64))
    match packing:
        case "u1":
            stored = np.unpackbits(np.frombuffer(data, np.uint8), count=elements, bitorder="little").view(np.bool_)
        case "u4":
            codes = np.frombuffer(data, np.uint8)
            stored = np.empty(2 * len(codes), np.uint8)
            # In place: half of the time, and no freed temporary that would keep weights on the heap.
            np.bitwise_and(codes, 15, out=stored[0::2])
            np.right_shift(codes, 4, out=stored[1::2])
            stored = stored[:elements]
        case _:
            stored = np.frombuffer(data, _stored_dtype(packing))
    if not np.can_cast(stored.dtype, DTYPES[dtype]):
        raise ValueError(f"{packing} does not fit {dtype}")
    return stored.astype(DTYPES[dtype], copy=packing != "u4").reshape(shape)


def _stored_dtype(packing: str) -> np.dtype:
    return np.dtype(f"<{packing[0]}{BITS[packing] // 8}")
