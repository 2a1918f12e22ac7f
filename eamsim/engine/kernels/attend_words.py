"""A block of attention with scores in 16 bits (softmax.py) and the context finished in registers. AVX-512."""

from __future__ import annotations

import numpy as np
from numba import njit
from numba.extending import overload

from eamsim.engine.ir.epilogue import Finish
from eamsim.engine.ir.softmax import LANES, Exponents, Operands, Published
from eamsim.engine.ir.tile import PANEL, ROWS, STEP, STEP_BYTES, Product
from eamsim.engine.isa import Avx512Vnni, StoreWords, ToContext, advanced, exponents_of, moved, operands_of, publish_row, tiles
from eamsim.engine.kernels.attention import keep_no_scores, key_bias, key_panels, log2_of, row_map_start, value_panels
from eamsim.engine.kernels.fixedpoint import Floor, HalfEven
from eamsim.engine.kernels.needed import first_group, group_at, queries
from eamsim.engine.memory import keep


def in_words(isa, rounding, op, window, head, top, rows, batch, memory):
    """The block with scores in 16 bits and the context finished in registers; False, and nothing done, where that cannot be."""
    raise NotImplementedError("compiled code only")


@overload(in_words)
def _in_words(isa, rounding, op, window, head, top, rows, batch, memory):
    if isa.instance_class is not Avx512Vnni or rounding.instance_class is HalfEven:
        return lambda isa, rounding, op, window, head, top, rows, batch, memory: False

    def block(isa, rounding, op, window, head, top, rows, batch, memory):
        if not taps_in_words(op) or op.in_words == 0 or op.narrow_context == 0 or op.head_dim % PANEL != 0 or rows < ROWS:
            return False
        ints, tables, taps, scores, operands = memory.ints, memory.tables, memory.taps, memory.words, memory.bytes
        head_row, log_sums, slot = (window * op.heads + head) * op.query_rows + top, np.zeros(rows, np.int64), ints[op.slots + head]
        keys = memory.panels.ctypes.data + key_panels(op, window, slot)
        bias = memory.panel_bias.ctypes.data + 4 * key_bias(op, window, slot)
        members, runs, following = group_at(first_group(op, window, head, top, ints), ints)
        while len(members) > 0:
            if len(runs) > 0:
                q, stride = queries(op, window, slot, top, members, batch, memory.codes, operands)
                word_scores(isa, op, q.ctypes.data, stride, keys, bias, len(members), runs, scores)
                weigh_words(rounding, op, window, head, top, members, runs, scores, operands, log_sums, batch, ints, tables, taps)
            else:
                keep_no_scores(op, head_row, members, batch, taps)
                frozen_words(op, window, head, top, members, scores, operands, batch, tables, taps)
            members, runs, following = group_at(following, ints)
        keep(taps, op.tap_log_sum * batch, op.item_log_sum, head_row, log_sums)
        word_context(isa, rounding, op, window, head, top, rows, batch, memory.bytes, memory)
        return True

    return block


@njit
def taps_in_words(op):
    """Whether the taps asked for are as wide as the kernels of 16 bits write them."""
    pairs = (op.tap_scores < 0 or op.item_scores == 2) and (op.tap_codes < 0 or op.item_codes == 1)
    exponents = op.tap_exponents < 0 or (op.item_exponents == 2 and op.narrow_exponents != 0)
    sums = (op.tap_even < 0 and op.tap_odd < 0) or (min(op.tap_even, op.tap_odd) >= 0 and op.item_even == 4 and op.item_odd == 4)
    return pairs and exponents and sums


@njit
def word_scores(isa, op, q, stride, keys, bias, rows, runs, scores):
    """Scores int16 [rows, row_bytes] of a group, before what is added by pair; q, keys and bias are addresses."""
    steps = op.head_dim // STEP
    product = Product(q, stride, keys, steps * STEP_BYTES, bias, steps, steps)
    finish = Finish(scores.ctypes.data, 2 * op.row_bytes, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    for n in range(0, len(runs), 2):
        first, panels = np.int64(runs[n]), np.int64(runs[n + 1])
        here, there = advanced(product, 0, first), moved(finish, 0, first, 2)
        tiles(isa, Floor(), StoreWords(), panels, max(rows, ROWS), here, there, 2)


@njit
def weigh_words(rounding, op, window, head, top, members, runs, scores, operands, log_sums, batch, ints, tables, taps):
    """Scores of a group to the block's operands of the even and the odd product, uint8 [rows, 2, row_bytes]."""
    tokens, columns = op.window_tokens, op.row_bytes
    table, vectors = tables.ctypes.data, columns // LANES
    code_half, word_half = (np.int64(0), np.int64(0)) if is_floor(rounding) else (op.word_code_half, op.word_half)
    head_row = (window * op.heads + head) * op.query_rows + top
    if op.logit_bias >= 0:
        bias = op.logit_bias + window % op.windows * op.logit_bias_window + (head * op.query_rows + top) * tokens
        add_words(scores.view(np.int16), ints[bias:], members, tokens, columns)
    for n in range(len(members)):
        r = np.int64(members[n])
        pairs = table + row_map_start(op, window, head, top + r)
        score, operand = scores.ctypes.data + 2 * columns * n, operands.ctypes.data + 2 * columns * r
        if max(op.tap_scores, op.tap_exponents) >= 0:
            publish_words(rounding, op, score, pairs, runs, (head_row + r) * tokens, batch, taps)
        constants = (op.word_cap, op.word_up, op.word_multiplier, word_half, op.word_down, op.exponent_fraction)
        exponents = Exponents(score, pairs, runs.ctypes.data, len(runs) // 2, table + op.word_exp2, *constants)
        total = exponents_of(exponents)  # pyright: ignore[reportCallIssue] (Numba passes the typing context)
        log_sums[r] = log2_of(op, total, ints)
        offset = log_sums[r] + op.log2_scale + code_half
        if op.row_log2 >= 0:
            offset += np.int64(ints[op.row_log2 + window % op.windows * op.row_log2_window + head * op.query_rows + top + r])
        offset = min(max(offset, np.int64(-(1 << 15))), np.int64((1 << 15) - 1))
        down = op.exponent_fraction - 1
        tap, count = code_tap(op, (head_row + r) * tokens, batch, taps)
        codes = Operands(score, pairs, vectors, offset, down, op.last_code, table + op.powers, operand, operand + columns, tap, count)
        operands_of(codes)  # pyright: ignore[reportCallIssue]


@njit
def publish_words(rounding, op, score, pairs, runs, start, batch, taps):
    """Scores and exponents of a row whose scores are at the address `score`; start: element of the taps."""
    tokens, shift = op.window_tokens, op.score_shift
    half = np.int64(0) if is_floor(rounding) else (np.int64(1) << shift) >> 1
    scores, exponents = (tokens if op.tap_scores >= 0 else 0), (tokens if op.tap_exponents >= 0 else 0)
    score_tap = taps.ctypes.data + op.tap_scores * batch + 2 * start
    exponent_tap = taps.ctypes.data + op.tap_exponents * batch + 2 * start
    source = (score, pairs, runs.ctypes.data, len(runs) // 2, op.row_bytes // LANES)
    row = Published(*source, score_tap, scores, exponent_tap, exponents, op.score_multiplier, half, shift)
    publish_row(row)  # pyright: ignore[reportCallIssue] (Numba passes the typing context)


@njit
def code_tap(op, start, batch, taps):
    """Where the codes of a row go, and how many of them: none if nobody asked."""
    if op.tap_codes < 0:
        return np.int64(0), np.int64(0)
    return taps.ctypes.data + op.tap_codes * batch + start, op.window_tokens


@njit
def frozen_words(op, window, head, top, members, unread, operands, batch, tables, taps):
    """The operands of rows without a computed pair: whatever the exponents `unread` are, every code is the map's."""
    table, columns = tables.ctypes.data, op.row_bytes
    head_row = (window * op.heads + head) * op.query_rows + top
    for r in members:
        pairs, operand = table + row_map_start(op, window, head, top + r), operands.ctypes.data + 2 * columns * r
        vectors, powers = columns // LANES, table + op.powers
        tap, count = code_tap(op, (head_row + r) * op.window_tokens, batch, taps)
        codes = Operands(unread.ctypes.data, pairs, vectors, 0, 0, op.last_code, powers, operand, operand + columns, tap, count)
        operands_of(codes)  # pyright: ignore[reportCallIssue]


def is_floor(rounding):
    raise NotImplementedError("compiled code only")


@overload(is_floor)
def _is_floor(rounding):
    result = rounding.instance_class is Floor
    return lambda rounding: result


@njit
def add_words(scores, logit_bias, members, tokens, columns):
    """What is added by pair; the sums stay within 16 bits."""
    for n in range(len(members)):
        score, bias = scores[n * columns : n * columns + tokens], logit_bias[members[n] * tokens :]
        for j in range(tokens):
            score[j] = np.int16(np.int32(score[j]) + bias[j])


@njit
def word_context(isa, rounding, op, window, head, top, rows, batch, operands, memory):
    """Even and odd products of a block with the values, requantised before they leave the registers."""
    ints, token = memory.ints.ctypes.data, window * op.query_rows + top
    start = 4 * ((window * op.heads + head) * op.query_rows + top) * op.head_dim
    taps = memory.taps.ctypes.data + start
    steps = (op.window_tokens + STEP - 1) // STEP
    zero = memory.ints.ctypes.data + 4 * op.zeros
    product = Product(
        operands.ctypes.data,
        op.row_bytes,
        memory.panels.ctypes.data + value_panels(op, window, head),
        steps * STEP_BYTES,
        zero,
        steps,
        steps,
    )
    finish = Finish(
        memory.codes.ctypes.data + op.out * batch + token * op.channels + head * op.head_dim,
        op.channels // 2,
        ints + 4 * op.even,
        ints + 4 * op.context_shift,
        ints + 4 * op.context_zero,
        ints + 4 * op.odd,
        0,
        0,
        op.low,
        op.high,
        taps + op.tap_even * batch if op.tap_even >= 0 else 0,
        2 * op.head_dim,
        4,
        taps + op.tap_odd * batch,
    )
    tiles(isa, rounding, ToContext(), op.head_dim // PANEL, 2 * rows, product, finish, 1)
