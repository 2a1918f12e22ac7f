"""LLVM IR that moves bytes: tables by shuffles, and codes of tokens into the panels of a right operand.

Packing is plain vector IR, which LLVM lowers for whatever machine there is.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from eamsim.engine.ir.tile import (
    I8,
    I16,
    I32,
    I64,
    PANEL,
    STEP,
    STEP_BYTES,
    Vectors,
    broadcast,
    concatenate,
    declare,
    each_vector,
    load,
    store,
)

LANES, ENTRIES = 32, 256
WORDS, BYTES = ir.VectorType(I16, LANES), ir.VectorType(I8, LANES)
SHUFFLES = {16: "llvm.aarch64.neon.tbl1.v16i8", 32: "llvm.x86.avx2.pshuf.b", 64: "llvm.x86.avx512.pshuf.b.512"}


def emit_look_up(builder: ir.IRBuilder, v: Vectors, table, entries, source, target) -> None:
    """target[i] = table[source[i]], uint8, for two vectors of bytes; 0 beyond the `entries`, a multiple of 16.

    A byte shuffle looks up 16 entries at a time: saturated, every index but those from 0 to 15 has its highest bit set and gives 0.
    That of aarch64 gives 0 for them as they are.
    """
    kind = ir.VectorType(I8, 4 * v.lanes)
    add = declare(builder, f"llvm.uadd.sat.v{kind.count}i8", kind, [kind, kind])
    shuffle = declare(builder, SHUFFLES[kind.count], kind, [kind, kind])
    limit, step = ir.Constant(kind, [0 if kind.count == 16 else 0x70] * kind.count), ir.Constant(kind, [16] * kind.count)
    codes = [load(builder, kind, source, (I64(n), kind.count)) for n in range(2)]
    entry, loop, done = builder.block, builder.append_basic_block("entries"), builder.append_basic_block("found")
    builder.branch(loop)
    builder.position_at_end(loop)
    first = builder.phi(I64)
    index, found = [builder.phi(kind) for _ in codes], [builder.phi(kind) for _ in codes]
    sixteen = load(builder, ir.VectorType(I8, 16), table, (first, 1))
    repeated = builder.shuffle_vector(sixteen, sixteen, ir.Constant(ir.VectorType(I32, kind.count), [n % 16 for n in range(kind.count)]))
    more = [builder.or_(f, builder.call(shuffle, [repeated, builder.call(add, [x, limit])])) for f, x in zip(found, index, strict=True)]
    lower = [builder.sub(x, step) for x in index]
    following = builder.add(first, I64(16))
    builder.cbranch(builder.icmp_signed("<", following, entries), loop, done)
    zeros = [ir.Constant(kind, None)] * 2
    for phis, begin, again in ((index, codes, lower), (found, zeros, more), ([first], [I64(0)], [following])):
        for phi, once, then in zip(phis, begin, again, strict=True):
            phi.add_incoming(once, entry)
            phi.add_incoming(then, loop)
    builder.position_at_end(done)
    for n, value in enumerate(more):
        store(builder, value, target, (I64(n), kind.count))


def emit_look_up_bytes(builder: ir.IRBuilder, table, source, target, vectors) -> None:
    """target[i] = table[source[i]], uint8, of ENTRIES entries that stay in registers; vectors of LANES bytes. AVX-512 (BW).

    A third of the instructions of sixteen shuffles. VBMI has a permutation of bytes for it; that machine is a subset, for another tenth.
    """
    words = [builder.zext(load(builder, BYTES, table, (I64(n), LANES)), WORDS) for n in range(ENTRIES // LANES)]

    def found(n: Any, so_far: list[Any]) -> list[Any]:
        index = builder.zext(load(builder, BYTES, source, (n, LANES)), WORDS)
        store(builder, builder.trunc(look_up_words(builder, words, index), BYTES), target, (n, LANES))
        return so_far

    each_vector(builder, vectors, [], found)


def look_up_words(builder: ir.IRBuilder, table: list[Any], index: Any) -> Any:
    """table[index] of ENTRIES words in registers: two at a time by a permutation, of the four results one by the two highest bits."""
    permute = declare(builder, "llvm.x86.avx512.vpermi2var.hi.512", WORDS, [WORDS, WORDS, WORDS])
    found = [builder.call(permute, [table[n], index, table[n + 1]]) for n in range(0, len(table), 2)]
    for bit in (64, 128):
        is_set = builder.icmp_unsigned("!=", builder.and_(index, ir.Constant(WORDS, [bit] * LANES)), ir.Constant(WORDS, None))
        found = [builder.select(is_set, found[n + 1], found[n]) for n in range(0, len(found), 2)]
    return found[0]


def numbered(builder: ir.IRBuilder, kind: ir.Type, rows, stride, numbers, n: Any) -> Any:
    """The beginning of the row whose number, int32, is the n-th."""
    number = builder.sext(load(builder, I32, numbers, (n, 4)), I64)
    return load(builder, kind, rows, (builder.mul(number, stride), 1))


def emit_copy_rows(builder: ir.IRBuilder, rows, stride, numbers, count, size, target) -> None:
    """`size` bytes of each, one after the other: each row overwrites what was too much of the one before."""
    chunk = ir.VectorType(I8, PANEL)
    chunks = builder.sdiv(builder.add(size, I64(PANEL - 1)), I64(PANEL))

    def row(n: Any, so_far: list[Any]) -> list[Any]:
        def copy(m: Any, so_far: list[Any]) -> list[Any]:
            bytes_ = numbered(builder, chunk, builder.add(rows, builder.mul(m, I64(PANEL))), stride, numbers, n)
            store(builder, bytes_, target, (builder.mul(n, size), 1), (m, PANEL))
            return so_far

        return each_vector(builder, chunks, so_far, copy)

    each_vector(builder, count, [], row)


def emit_key_chunk(builder: ir.IRBuilder, rows, stride, numbers, zero, panel, sums) -> None:
    """STEP steps of a panel of keys: dwords of PANEL rows transposed, less `zero`; sums[token] += the bytes of its row, int32."""
    four, line = ir.VectorType(I32, STEP), ir.VectorType(I32, PANEL)
    fours = [numbered(builder, four, rows, stride, numbers, I64(n)) for n in range(PANEL)]
    parts = [concatenate(builder, fours[token : token + STEP]) for token in range(0, PANEL, STEP)]

    def pick(left: Any, right: Any, lanes: list[int]) -> Any:
        return builder.shuffle_vector(left, right, ir.Constant(line, lanes))

    every = [4 * token for token in range(8)]  # lanes of one step in eight rows
    halves = [[pick(parts[n], parts[n + 1], [s + lane for s in (step, step + 1) for lane in every]) for n in (0, 2)] for step in (0, 2)]
    bytes_, words = ir.Constant(line, [0x00FF00FF] * PANEL), ir.Constant(line, [0xFFFF] * PANEL)
    less, pairs = broadcast(builder, builder.trunc(zero, I8), ir.VectorType(I8, STEP_BYTES)), ir.Constant(line, None)
    for step in range(STEP):
        half = [8 * (step % 2) + lane for lane in range(8)]
        left, right = halves[step // 2]
        keys = pick(left, right, [*half, *(PANEL + lane for lane in half)])
        for shift in (0, 8):
            pairs = builder.add(pairs, builder.and_(builder.lshr(keys, ir.Constant(line, [shift] * PANEL)), bytes_))
        store(builder, builder.sub(builder.bitcast(keys, less.type), less), panel, (I64(step), STEP_BYTES))
    total = builder.add(builder.and_(pairs, words), builder.lshr(pairs, ir.Constant(line, [16] * PANEL)))
    store(builder, builder.add(load(builder, line, sums), total), sums)


def emit_value_step(builder: ir.IRBuilder, rows, stride, numbers, zero, panel) -> None:
    """One step of a panel of values: PANEL bytes of STEP rows interleaved, less `zero`."""
    kind = ir.VectorType(I8, PANEL)
    first, second, third, fourth = (numbered(builder, kind, rows, stride, numbers, I64(n)) for n in range(STEP))
    pairs = [builder.bitcast(zipped(builder, *two), ir.VectorType(I16, PANEL)) for two in ((first, second), (third, fourth))]
    line = ir.VectorType(I8, STEP_BYTES)
    values = builder.bitcast(zipped(builder, *pairs), line)
    store(builder, builder.sub(values, broadcast(builder, builder.trunc(zero, I8), line)), panel)


def zipped(builder: ir.IRBuilder, left: Any, right: Any) -> Any:
    """Their lanes in turn."""
    count = left.type.count
    order = [lane for pair in zip(range(count), range(count, 2 * count), strict=True) for lane in pair]
    return builder.shuffle_vector(left, right, ir.Constant(ir.VectorType(I32, 2 * count), order))
