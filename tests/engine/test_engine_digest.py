"""Digests that the engine takes in the pass."""

import hashlib

import numpy as np
import pytest

from eamsim.engine.ir import sha256
from eamsim.engine.kernels import digest
from eamsim.files.packing import limits, pack
from eamsim.traces.file import lanes_of

STORED = {
    "u1": np.uint8,
    "u4": np.uint8,
    "u8": np.uint8,
    "i8": np.int16,
    "u16": np.int16,
    "i16": np.int16,
    "i32": np.int32,
    "i64": np.int64,
}
BITS = {"u1": 1, "u4": 4, "u8": 8, "i8": 8, "u16": 16, "i16": 16, "i32": 32, "i64": 64}
WIDER = [("i8", np.int32), ("i16", np.int32), ("u16", np.int32)]


@pytest.mark.parametrize(("packing", "dtype"), [*STORED.items(), *WIDER])
def test_lanes_are_those_of_the_packing(packing: str, dtype: type):
    """Lengths about the ends of a byte, of a step of all lanes, of their blocks, of a chunk."""
    rng, (low, high) = np.random.default_rng(0), limits(packing)
    high = min(high, np.iinfo(dtype).max)
    bits = BITS[packing]
    sizes = {1, 2, 3, *(8 * edge // bits + n for edge in (64, 832, 896, 1024, 2048, digest.CHUNK, 3 * digest.CHUNK) for n in (-1, 0, 1))}
    for size in sorted(size for size in sizes if size > 0):
        integers = rng.integers(low, high, size, np.int64, endpoint=True).astype(dtype)
        found = np.empty(sha256.LANES * sha256.DIGEST_BYTES, np.uint8)
        extremes = digest.hash_integers(integers.view(np.uint8), integers.itemsize, bits, found)
        assert found.tobytes() == lanes_of(pack(integers, packing)), size
        assert extremes == (integers.min(), integers.max())


def test_the_constants_are_those_of_the_standard():
    assert [f"{number:08x}" for number in (*sha256.START[:2], sha256.ROUND_CONSTANTS[0], sha256.ROUND_CONSTANTS[63])] == [
        *("6a09e667", "bb67ae85", "428a2f98", "c67178f2"),
    ]
    empty = np.zeros(sha256.LANES * sha256.DIGEST_BYTES, np.uint8)
    state = np.empty((sha256.WORDS, sha256.LANES), np.uint32)
    sha256.begin(state)
    sha256.end(state, np.empty(0, np.uint8), 0, empty)
    assert empty.tobytes() == hashlib.sha256(b"").digest() * sha256.LANES
