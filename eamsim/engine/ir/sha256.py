"""SHA-256 (FIPS 180-4) of LANES messages side by side, whose words of 32 bits are dealt out to them in turn: LLVM IR for any machine.

One message's rounds wait for each other; lanes do not, and nothing is transposed. A core of a Zen 4 hashes 3.7 GB/s so (AVX-512), and 1.8
with its SHA instructions, message by message.
"""

# pyright: reportCallIssue=false
# Numba passes the typing context of an intrinsic.
from __future__ import annotations

from math import isqrt
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from eamsim.engine.ir.tile import I32, I64, declare, each_vector, load, store

LANES, WORDS, BLOCK_WORDS, ROUNDS = 16, 8, 16, 64
DIGEST_BYTES = 4 * WORDS
STEP_BYTES = 4 * LANES
BLOCK_BYTES = STEP_BYTES * BLOCK_WORDS
"""One block of every lane."""
VECTOR = ir.VectorType(I32, LANES)


def primes(count: int) -> list[int]:
    found: list[int] = []
    number = 2
    while len(found) < count:
        if all(number % prime for prime in found):
            found.append(number)
        number += 1
    return found


def cube_root(number: int) -> int:
    """floor(number^(1/3))."""
    root = 0
    for bit in reversed(range(number.bit_length() // 3 + 1)):
        root += (1 << bit) if (root + (1 << bit)) ** 3 <= number else 0
    return root


# 32 bits after the point of the roots of the first primes.
START = np.array([isqrt(prime << 64) & 0xFFFFFFFF for prime in primes(WORDS)], np.uint32)
ROUND_CONSTANTS = [cube_root(prime << 96) & 0xFFFFFFFF for prime in primes(ROUNDS)]


@intrinsic
def compressed(typingctx, state, source, blocks):
    """See `compress`."""

    def codegen(context, builder, signature, args):
        emit_compress(builder, *args)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3), codegen


def emit_compress(builder: ir.IRBuilder, state: Any, source: Any, blocks: Any) -> None:
    def block(n: Any, words: list[Any]) -> list[Any]:
        schedule = [load(builder, VECTOR, source, (n, BLOCK_BYTES), (I64(step), STEP_BYTES)) for step in range(BLOCK_WORDS)]
        return [builder.add(*pair) for pair in zip(words, rounds(builder, words, schedule), strict=True)]

    begin = [load(builder, VECTOR, state, (I64(word), STEP_BYTES)) for word in range(WORDS)]
    for word, value in enumerate(each_vector(builder, blocks, begin, block)):
        store(builder, value, state, (I64(word), STEP_BYTES))


def rounds(builder: ir.IRBuilder, words: list[Any], schedule: list[Any]) -> list[Any]:
    """FIPS 180-4, section 6.2.2, names as there; `schedule` grows from BLOCK_WORDS to ROUNDS."""
    funnel = declare(builder, f"llvm.fshr.v{LANES}i32", VECTOR, [VECTOR] * 3)

    def every(number: int) -> ir.Constant:
        return ir.Constant(VECTOR, [number] * LANES)

    def mixed(x: Any, first: int, second: int, third: Any) -> Any:
        """Exclusive or of x turned right by `first`, by `second`, and by `third` too unless that is a vector."""
        one, two = (builder.call(funnel, [x, x, every(by)]) for by in (first, second))
        return builder.xor(builder.xor(one, two), builder.call(funnel, [x, x, every(third)]) if isinstance(third, int) else third)

    a, b, c, d, e, f, g, h = words
    for t in range(ROUNDS):
        if t >= BLOCK_WORDS:
            x, y = schedule[t - 15], schedule[t - 2]
            s0, s1 = mixed(x, 7, 18, builder.lshr(x, every(3))), mixed(y, 17, 19, builder.lshr(y, every(10)))
            schedule.append(builder.add(builder.add(schedule[t - 16], s0), builder.add(schedule[t - 7], s1)))
        choice = builder.xor(g, builder.and_(e, builder.xor(f, g)))
        majority = builder.or_(builder.and_(a, b), builder.and_(c, builder.or_(a, b)))
        t1 = builder.add(h, builder.add(schedule[t], every(ROUND_CONSTANTS[t])))
        t1 = builder.add(t1, builder.add(mixed(e, 6, 11, 25), choice))
        t2 = builder.add(mixed(a, 2, 13, 22), majority)
        a, b, c, d, e, f, g, h = builder.add(t1, t2), a, b, c, builder.add(d, t1), e, f, g
    return [a, b, c, d, e, f, g, h]


@njit
def compress(state, source, blocks):
    """`blocks` >= 1 blocks of every lane, from the address `source` on, into the state uint32 [WORDS, LANES]; not inlined."""
    compressed(state.ctypes.data, source, blocks)


@njit
def begin(state):
    """The state uint32 [WORDS, LANES] before the first block."""
    for word in range(WORDS):
        state[word] = START[word]


@njit
def end(state, left, length, digests):
    """The lanes' digests uint8 [LANES * DIGEST_BYTES] of `length` bytes; `left`: what is not yet in, less than a block of every lane."""
    steps, last = (len(left) + STEP_BYTES - 1) // STEP_BYTES, np.zeros(2 * BLOCK_BYTES, np.uint8)
    blocks = 1 if steps + 3 <= BLOCK_WORDS else 2
    for n in range(len(left)):
        last[n] = left[n]
    words = last.view(np.uint32)
    bits = (length + STEP_BYTES - 1) // STEP_BYTES * 32
    for lane in range(LANES):
        words[steps * LANES + lane] = 0x80000000
        words[(blocks * BLOCK_WORDS - 2) * LANES + lane] = bits >> 32
        words[(blocks * BLOCK_WORDS - 1) * LANES + lane] = bits & 0xFFFFFFFF
    compress(state, last.ctypes.data, blocks)
    for lane in range(LANES):
        for n in range(DIGEST_BYTES):
            digests[lane * DIGEST_BYTES + n] = np.uint8(state[n // 4, lane] >> np.uint32(8 * (3 - n % 4)))
