"""The digests of taps and of finished values; units are images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numba.np.numpy_support import carray

from eamsim.compiled.compiler import compile_kernel, kept, logged, njit
from eamsim.engine.ir.sha256 import BLOCK_BYTES, DIGEST_BYTES, LANES, WORDS, begin, compress, end

# source: CODES, VALUES or TAPS; first_byte: where one image's integers begin in it; bits: of an integer in its packing; hash: the address
# of a function; found: the byte of one image, among the taps, where what it finds begins. awaited, awaited_end: of an operation, the
# records of the digests that must be taken before its taps may be written.
FIELDS = ("source", "first_byte", "item", "elements", "bits", "hash", "found", "awaited", "awaited_end")
CODES, VALUES, TAPS = range(3)
LANES_BYTES = LANES * DIGEST_BYTES
FOUND_BYTES = LANES_BYTES + 16
"""The digests of the lanes, then the least and the greatest integer as int64."""
BYTES = types.CPointer(types.uint8)
HASH_ARGUMENTS = (BYTES, types.int64, types.int64, types.int64, BYTES)
CHUNK = 4 * BLOCK_BYTES
"""Bytes that are packed and hashed while they are near."""


@njit
def digest(op, first, last, batch, memory):
    """FOUND_BYTES for each of these images, by eamsim/traces/file.py."""
    source = memory.taps.ctypes.data
    if op.source == CODES:
        source = memory.codes.ctypes.data
    elif op.source == VALUES:
        source = memory.values.ctypes.data
    size = op.elements * op.item
    for image in range(first, last):
        found = memory.taps.ctypes.data + op.found * batch + image * FOUND_BYTES
        call(op.hash, source + op.first_byte * batch + image * size, size, op.item, op.bits, found)  # pyright: ignore[reportCallIssue]


@intrinsic
def call(typingctx, function, integers, size, item, bits, found):
    """The function at this address, of `hash_address`."""

    def codegen(context, builder, signature, args):
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(64)] * 5)
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6), codegen


def hash_address() -> int:
    """Of `hash_at` as a C function, compiled when digests are first asked for: in `forward` it would be, for each instruction set."""
    compile_kernel(hash_at, HASH_ARGUMENTS, "digests", logged)
    result = hash_at.overloads[HASH_ARGUMENTS]
    return result.library.get_pointer_to_function(result.fndesc.llvm_cfunc_wrapper_name)


@kept(Path(__file__).parents[1])
@njit(no_cpython_wrapper=True)  # pyright: ignore[reportCallIssue] (an option its types leave out)
def hash_at(integers, size, item, bits, found):
    """`hash_integers` of the bytes at an address, its digests and extremes to another."""
    digests, extremes = carray(found, LANES_BYTES), carray(found, FOUND_BYTES)[LANES_BYTES:].view(np.int64)
    extremes[0], extremes[1] = hash_integers(carray(integers, size), item, bits, digests)  # pyright: ignore[reportGeneralTypeIssues]


@njit
def hash_integers(integers, item, bits, digests):
    """Of integers of `item` bytes in their packing; returns the least and the greatest."""
    state, row = np.empty((WORDS, LANES), np.uint32), np.empty(CHUNK, np.uint8)
    low, high = np.int64(1 << 62), np.int64(-(1 << 62))
    begin(state)
    step = 8 * CHUNK // bits * item
    whole = len(integers) // step * step
    for start in range(0, whole, step):
        chunk = integers[start : start + step]
        least, greatest = extremes(chunk, item)
        low, high = min(low, least), max(high, greatest)
        place = chunk.ctypes.data if bits == 8 * item else pack(chunk, item, bits, row)
        compress(state, place, CHUNK // BLOCK_BYTES)
    rest = integers[whole:]
    if len(rest) > 0:
        least, greatest = extremes(rest, item)
        low, high = min(low, least), max(high, greatest)
        pack(rest, item, bits, row)
    length = (len(rest) // item * bits + 7) // 8
    blocks = length // BLOCK_BYTES
    if blocks > 0:
        compress(state, row.ctypes.data, blocks)
    end(state, row[blocks * BLOCK_BYTES : length], (len(integers) // item * bits + 7) // 8, digests)
    return low, high


@njit
def extremes(chunk, item):
    """The least and the greatest of integers of `item` bytes: unsigned if that is one."""
    if item == 1:
        return extremes_of(chunk)
    if item == 2:
        return extremes_of(chunk.view(np.int16))
    if item == 4:
        return extremes_of(chunk.view(np.int32))
    return extremes_of(chunk.view(np.int64))


@njit
def extremes_of(x):
    low, high = x[0], x[0]
    for i in range(len(x)):
        low, high = min(low, x[i]), max(high, x[i])
    return np.int64(low), np.int64(high)


@njit
def pack(chunk, item, bits, row):
    """Integers in the packing of `bits` (eamsim/files/packing.py), at the start of `row`, whose address is returned."""
    if bits == 8 * item:
        row[: len(chunk)] = chunk
    elif bits == 1:
        row[: (len(chunk) + 7) // 8] = 0
        for i in range(len(chunk)):
            row[i // 8] |= np.uint8(chunk[i] << i % 8)
    elif bits == 4:
        pairs = chunk[: len(chunk) // 2 * 2].view(np.uint16)
        for i in range(len(pairs)):
            row[i] = np.uint8(pairs[i] | pairs[i] >> 4)
        if len(chunk) % 2:
            row[len(pairs)] = chunk[-1]
    elif item == 2:
        low_parts(chunk.view(np.int16), row)
    elif bits == 8:
        low_parts(chunk.view(np.int32), row)
    else:
        low_parts(chunk.view(np.int32), row.view(np.int16))
    return row.ctypes.data


@njit
def low_parts(x, target):
    for i in range(len(x)):
        target[i] = x[i]
