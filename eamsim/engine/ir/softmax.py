"""The softmax of a row in lanes of 16 bits, where the program's constants prove that they hold it; LLVM IR for AVX-512 (BW).

Scores become exponents in place, exponents become the operands of A.V. Every row of scores, of the map and of operands is padded to
whole vectors of LANES, and the map says of the padding that it takes no part.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir

from eamsim.check import Bound
from eamsim.engine.ir.shuffles import BYTES, ENTRIES, LANES, SHUFFLES, WORDS, look_up_words
from eamsim.engine.ir.tile import I8, I16, I32, I64, PANEL, address, broadcast, declare, each_vector, load, store
from eamsim.engine.memory import Constants
from eamsim.program import Attention

INTS = ir.VectorType(I32, LANES // 2)
# One byte of the map for each pair: its code if frozen, else one of these; the softmax runs over those with the highest bit.
EXCLUDED, COMPUTED, IN_SOFTMAX = 0x40, 0xFF, 0x80
FIELDS = ("in_words", "word_cap", "word_up", "word_multiplier", "word_half", "word_down", "word_exp2", "word_code_half")


class Exponents(NamedTuple):
    """Where a row lies (scores int16, in place; pairs uint8; exp2 uint16 [ENTRIES]) and t = (high half of d * multiplier + half) >> down.

    d = min(m - s, cap) << up, the high half that of 32 bits; fraction: fractional bits of t. runs: int32 [count, 2], first panel and
    panels of what may have pairs of the softmax; no other vector is read.
    """

    scores: Any
    pairs: Any
    runs: Any
    count: Any
    exp2: Any
    cap: Any
    up: Any
    multiplier: Any
    half: Any
    down: Any
    fraction: Any


class Published(NamedTuple):
    """A row of scores int16, before they are exponents, and what of it goes to taps of int16: addresses and elements, 0 if nobody asks.

    Exponents are (d * multiplier + half) >> shift, which int32 holds, and not limited as those of Exponents are; runs as there.
    """

    scores: Any
    pairs: Any
    runs: Any
    count: Any
    vectors: Any
    score_tap: Any
    score_count: Any
    exponent_tap: Any
    exponent_count: Any
    multiplier: Any
    half: Any
    shift: Any


class Operands(NamedTuple):
    """Exponents int16 and pairs of a row; code = clip((t + offset) >> down, 0, last); powers: uint8 [2, 16]; even, odd: uint8 rows.

    code_tap: uint8, so many elements of it; 0 if nobody asks.
    """

    exponents: Any
    pairs: Any
    vectors: Any
    offset: Any
    down: Any
    last: Any
    powers: Any
    even: Any
    odd: Any
    code_tap: Any
    code_count: Any


def plan_words(op: Attention, score_bound: Bound, constants: Constants) -> dict[str, Any]:
    """The constants of Exponents and Operands; `in_words` is 0 where 16 bits cannot be proved to be enough.

    Rounding: half up and half away are alike here, for t is not negative and negative codes are clipped; floor leaves the halves out.
    """
    fraction, bits = op.fraction_bits, op.score_multiplier.bit_length()
    fits = 1 <= fraction <= 8 and op.exp2_bits <= 15 and 1 <= bits <= 16 and score_bound[0] >= -(1 << 15) and score_bound[1] < 1 << 15
    multiplier, shift = op.score_multiplier << max(16 - bits, 0), op.score_shift + 16 - bits
    up = max(17 - shift, 0)
    down = shift + up - 16
    if not fits or up > 15 or down > 15:
        return {"in_words": 0}
    half = 1 << (down - 1)
    reach = score_bound[1] - score_bound[0]
    cap = min(reach, 65535 >> up, ((65536 - half << 16) - 1) // multiplier >> up)
    greatest = (cap << up) * multiplier >> 16 + down
    # From `silent` on a power is 0 and a code its last value, whatever the row's sum: what lies above the cap need not be told apart.
    silent = max(op.exp2_bits + 1 << fraction, (op.last_code << fraction) // 2 + 1 - op.log2_scale)
    exp2 = np.zeros(ENTRIES, "<u2")
    exp2[: len(op.exp2)] = op.exp2
    return {
        "in_words": cap == reach or greatest >= silent,
        "word_cap": cap,
        "word_up": up,
        "word_multiplier": multiplier,
        "word_half": half,
        "word_down": down,
        "word_exp2": constants.add(exp2.view(np.uint8)),
        "word_code_half": (1 << fraction) >> 2,
    }


def emit_exponents(builder: ir.IRBuilder, row: Exponents) -> Any:
    """Scores to exponents, in place; returns the sum of their powers over the softmax's pairs, int64."""
    lowest = ir.Constant(WORDS, [-(1 << 15)] * LANES)
    top = greatest(builder, row)
    cap, up, multiplier, half, down, fraction = (broadcast(builder, builder.trunc(x, I16), WORDS) for x in row[5:])
    one = ir.Constant(WORDS, [1] * LANES)
    mask = builder.sub(builder.shl(one, fraction), one)
    table = [load(builder, WORDS, row.exp2, (I64(n), 2 * LANES)) for n in range(ENTRIES // LANES)]
    high_half = declare(builder, "llvm.x86.avx512.pmulhu.w.512", WORDS, [WORDS, WORDS])
    shift = declare(builder, "llvm.x86.avx512.psrlv.w.512", WORDS, [WORDS, WORDS])  # 0 from 16 places on
    add_pairs = declare(builder, "llvm.x86.avx512.pmaddw.d.512", INTS, [WORDS, WORDS])

    def power(n: Any, so_far: list[Any]) -> list[Any]:
        below = builder.sub(top, load(builder, WORDS, row.scores, (n, 2 * LANES)))
        below = builder.shl(builder.select(builder.icmp_unsigned("<", below, cap), below, cap), up)
        t = builder.lshr(builder.add(builder.call(high_half, [below, multiplier]), half), down)
        store(builder, t, row.scores, (n, 2 * LANES))
        entry = builder.call(shift, [look_up_words(builder, table, builder.and_(t, mask)), builder.lshr(t, fraction)])
        entry = builder.select(in_softmax(builder, row.pairs, n), entry, ir.Constant(WORDS, None))
        # Powers reach 2^15: summed as signed words less 2^15, which is added again in the end.
        return [builder.add(so_far[0], builder.call(add_pairs, [builder.xor(entry, lowest), one])), builder.add(so_far[1], I64(1))]

    reduce_add = declare(builder, f"llvm.vector.reduce.add.v{LANES // 2}i32", I32, [INTS])
    total, vectors = each_needed(builder, row, [ir.Constant(INTS, None), I64(0)], power)
    return builder.add(builder.sext(builder.call(reduce_add, [total]), I64), builder.mul(vectors, I64(LANES << 15)))


def greatest(builder: ir.IRBuilder, row: Exponents | Published) -> Any:
    """A row's greatest score of the softmax's pairs, in every lane."""
    lowest = ir.Constant(WORDS, [-(1 << 15)] * LANES)

    def greater(n: Any, so_far: list[Any]) -> list[Any]:
        score = builder.select(in_softmax(builder, row.pairs, n), load(builder, WORDS, row.scores, (n, 2 * LANES)), lowest)
        return [builder.select(builder.icmp_signed(">", score, so_far[0]), score, so_far[0])]

    reduce_max = declare(builder, f"llvm.vector.reduce.smax.v{LANES}i16", I16, [WORDS])
    return broadcast(builder, builder.call(reduce_max, each_needed(builder, row, [lowest], greater)), WORDS)


def each_needed(builder: ir.IRBuilder, row: Exponents | Published, begin: list[Any], body: Any) -> list[Any]:
    """`each_vector` of those that the row's runs of panels reach; no two of them reach the same, for a panel lies between them."""
    panels = LANES // PANEL

    def run(r: Any, so_far: list[Any]) -> list[Any]:
        first, count = (builder.zext(load(builder, I32, row.runs, (r, 8), (I64(n), 4)), I64) for n in range(2))
        start = builder.udiv(first, I64(panels))
        end = builder.udiv(builder.add(builder.add(first, count), I64(panels - 1)), I64(panels))
        return each_vector(builder, builder.sub(end, start), so_far, lambda n, values: body(builder.add(start, n), values))

    return each_vector(builder, row.count, begin, run)


def emit_published(builder: ir.IRBuilder, row: Published) -> None:
    """Scores and exponents of a row to their taps; both 0 outside the softmax."""
    ints, nothing = ir.VectorType(I32, LANES), ir.Constant(WORDS, None)
    top = greatest(builder, row)
    multiplier, half, shift = (broadcast(builder, builder.trunc(x, I32), ints) for x in (row.multiplier, row.half, row.shift))
    limit = ir.Constant(ints, [(1 << 15) - 1] * LANES)

    def publish(n: Any, so_far: list[Any]) -> list[Any]:
        score, inside = load(builder, WORDS, row.scores, (n, 2 * LANES)), in_softmax(builder, row.pairs, n)
        below = builder.zext(builder.sub(top, score), ints)
        t = builder.lshr(builder.add(builder.mul(below, multiplier), half), shift)
        t = builder.trunc(builder.select(builder.icmp_unsigned("<", t, limit), t, limit), WORDS)
        store_first(builder, builder.select(inside, score, nothing), row.score_tap, n, row.score_count)
        store_first(builder, builder.select(inside, t, nothing), row.exponent_tap, n, row.exponent_count)
        return so_far

    each_vector(builder, row.vectors, [], publish)


def store_first(builder: ir.IRBuilder, vector: Any, base: Any, n: Any, count: Any) -> None:
    """Vector n of a row that has no more than `count` elements."""
    kind, bits = vector.type, vector.type.element.width
    ints = ir.VectorType(I32, kind.count)
    left = broadcast(builder, builder.trunc(builder.sub(count, builder.mul(n, I64(kind.count))), I32), ints)
    mask = builder.icmp_signed("<", ir.Constant(ints, list(range(kind.count))), left)
    target = address(builder, kind, base, (n, kind.count * bits // 8))
    name = f"llvm.masked.store.v{kind.count}i{bits}.p0"
    function = declare(builder, name, ir.VoidType(), [kind, target.type, I32, mask.type])
    builder.call(function, [vector, target, I32(1), mask])


def emit_operands(builder: ir.IRBuilder, row: Operands) -> None:
    """Exponents to codes, frozen codes merged, and of these the two operands of the values."""
    offset, down, last = (broadcast(builder, builder.trunc(x, I16), WORDS) for x in (row.offset, row.down, row.last))
    add = declare(builder, f"llvm.sadd.sat.v{LANES}i16", WORDS, [WORDS, WORDS])
    beyond = declare(builder, f"llvm.uadd.sat.v{LANES}i8", BYTES, [BYTES, BYTES])
    shuffle = declare(builder, SHUFFLES[LANES], BYTES, [BYTES, BYTES])
    tables = []
    for parity in range(2):
        sixteen = load(builder, ir.VectorType(I8, 16), row.powers, (I64(parity), 16))
        tables.append(builder.shuffle_vector(sixteen, sixteen, ir.Constant(ir.VectorType(I32, LANES), [n % 16 for n in range(LANES)])))
    zero, frozen = ir.Constant(WORDS, None), ir.Constant(BYTES, [0x7F] * LANES)

    def operands(n: Any, so_far: list[Any]) -> list[Any]:
        code = builder.ashr(builder.call(add, [load(builder, WORDS, row.exponents, (n, 2 * LANES)), offset]), down)
        code = builder.select(builder.icmp_signed("<", code, last), code, last)
        code = builder.trunc(builder.select(builder.icmp_signed(">", code, zero), code, zero), BYTES)
        pair = load(builder, BYTES, row.pairs, (n, LANES))
        computed = builder.icmp_unsigned("==", pair, ir.Constant(BYTES, [0xFF] * LANES))
        code = builder.select(computed, code, builder.and_(pair, frozen))
        with builder.if_then(builder.icmp_signed("!=", row.code_count, I64(0)), likely=False):
            excluded = builder.icmp_unsigned("==", code, ir.Constant(BYTES, [EXCLUDED] * LANES))
            shown = builder.select(excluded, builder.trunc(last, BYTES), code)
            store_first(builder, shown, row.code_tap, n, row.code_count)
        index = builder.call(beyond, [code, ir.Constant(BYTES, [0x70] * LANES)])  # an excluded pair's has its highest bit set: 0
        for table, target in zip(tables, (row.even, row.odd), strict=True):
            store(builder, builder.call(shuffle, [table, index]), target, (n, LANES))
        return so_far

    each_vector(builder, row.vectors, [], operands)


def in_softmax(builder: ir.IRBuilder, pairs: Any, n: Any) -> Any:
    """Of the pairs of vector n: whether the softmax runs over them."""
    return builder.icmp_signed("<", load(builder, BYTES, pairs, (n, LANES)), ir.Constant(BYTES, None))
