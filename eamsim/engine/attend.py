"""Attention in blocks of rows: scores, softmax codes, frozen merge, even and odd products, context."""

from __future__ import annotations

import numpy as np
from numba import njit
from numba.extending import overload

from eamsim.engine.attention import key_bias, key_panels, value_panels
from eamsim.engine.fixedpoint import Floor, HalfEven, bit_length, clip, round_narrow, round_shift
from eamsim.engine.isa import Avx512Vnni, StoreWords, ToContext, exponents_of, gemm, look_up, operands_of, publish_row, tiles
from eamsim.engine.memory import keep
from eamsim.engine.softmax import COMPUTED, EXCLUDED, LANES, Exponents, Operands, Published
from eamsim.engine.tile import PANEL, ROWS, STEP, STEP_BYTES, Finish, Product

# Exponents are limited to 2^28 where the code is computed: any code is at its last value long before, and 32 bits suffice.
MAX_EXPONENT = np.int32(1 << 28)


@njit
def attend(isa, rounding, op, first, last, batch, memory):
    """Units: blocks of rows of heads of windows."""
    for unit in range(first, last):
        block, head = unit % op.blocks, unit // op.blocks % op.heads
        window = unit // op.blocks // op.heads
        top = block * op.block_rows
        rows = min(op.block_rows, op.window_tokens - top)
        attend_block(isa, rounding, op, window, head, top, rows, batch, memory)


@njit
def attend_block(isa, rounding, op, window, head, top, rows, batch, memory):
    """Rows [top, top + rows) of one head of one window; `window` counts through all images."""
    if in_words(isa, rounding, op, window, head, top, rows, batch, memory):
        return
    columns, slot = op.row_bytes, memory.ints[op.slots + head]
    scores = memory.words
    if slot >= 0:
        q = memory.codes[op.x * batch + (window * op.window_tokens + top) * op.in_channels + slot * op.head_dim :]
        keys = memory.panels[key_panels(op, window, slot) :]
        bias = memory.panel_bias[key_bias(op, window, slot) :]
        steps, panels = (op.head_dim + STEP - 1) // STEP, (op.window_tokens + PANEL - 1) // PANEL
        gemm(isa, q, op.in_channels, keys, panels, bias, scores, columns, rows, steps, op.safe_key_steps)
        weigh(rounding, op, window, head, top, rows, scores, columns, batch, memory)
    else:
        keep_no_scores(op, window, head, top, rows, batch, memory.taps)
    merge_frozen(op, window, head, top, rows, batch, memory)
    context(isa, rounding, op, window, head, top, rows, batch, memory)


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
        slot = memory.ints[op.slots + head]
        if slot >= 0:
            word_scores(isa, op, window, slot, top, rows, batch, memory.words, memory)
            weigh_words(rounding, op, window, head, top, rows, memory.words, memory.bytes, batch, memory)
        else:
            keep_no_scores(op, window, head, top, rows, batch, memory.taps)
            frozen_words(op, window, head, top, rows, memory.words, memory.bytes, batch, memory)
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
def keep_no_scores(op, window, head, top, rows, batch, taps):
    """Of a head without scores: 0 for all that the softmax would have found."""
    row, pairs = (window * op.heads + head) * op.window_tokens + top, rows * op.window_tokens
    if max(op.tap_scores, op.tap_exponents, op.tap_log_sum) >= 0:
        zeros = np.zeros(pairs, np.int32)
        keep(taps, op.tap_scores * batch, op.item_scores, row * op.window_tokens, zeros)
        keep(taps, op.tap_exponents * batch, op.item_exponents, row * op.window_tokens, zeros)
        keep(taps, op.tap_log_sum * batch, op.item_log_sum, row, zeros[:rows])


@njit
def word_scores(isa, op, window, slot, top, rows, batch, scores, memory):
    """Scores int16 [rows, row_bytes] of a block, before what is added by pair."""
    steps, panels = op.head_dim // STEP, (op.window_tokens + PANEL - 1) // PANEL
    product = Product(
        memory.codes.ctypes.data + op.x * batch + (window * op.window_tokens + top) * op.in_channels + slot * op.head_dim,
        op.in_channels,
        memory.panels.ctypes.data + key_panels(op, window, slot),
        steps * STEP_BYTES,
        memory.panel_bias.ctypes.data + 4 * key_bias(op, window, slot),
        steps,
        steps,
    )
    finish = Finish(scores.ctypes.data, 2 * op.row_bytes, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    tiles(isa, Floor(), StoreWords(), panels, rows, product, finish, 2)


@njit
def weigh_words(rounding, op, window, head, top, rows, scores, operands, batch, memory):
    """Scores of a block to the operands of the even and the odd product, uint8 [rows, 2, row_bytes]."""
    ints, tokens, columns = memory.ints, op.window_tokens, op.row_bytes
    tables, vectors = memory.tables.ctypes.data, columns // LANES
    code_half, word_half = (np.int64(0), np.int64(0)) if is_floor(rounding) else (op.word_code_half, op.word_half)
    head_row, log_sums, taps = (window * op.heads + head) * tokens + top, np.empty(rows, np.int64), memory.taps
    if op.logit_bias >= 0:
        bias = op.logit_bias + window % op.windows * op.logit_bias_window + (head * tokens + top) * tokens
        add_words(scores.view(np.int16), ints[bias : bias + rows * tokens], tokens, columns)
    for r in range(rows):
        pairs = tables + row_map_start(op, window, head, top + r)
        score, operand = scores.ctypes.data + 2 * columns * r, operands.ctypes.data + 2 * columns * r
        if max(op.tap_scores, op.tap_exponents) >= 0:
            publish_words(rounding, op, score, pairs, (head_row + r) * tokens, batch, taps)
        constants = (op.word_cap, op.word_up, op.word_multiplier, word_half, op.word_down, op.exponent_fraction)
        exponents = Exponents(score, pairs, vectors, tables + op.word_exp2, *constants)
        total = exponents_of(exponents)  # pyright: ignore[reportCallIssue] (Numba passes the typing context)
        log_sums[r] = log2_of(op, total, ints)
        offset = log_sums[r] + op.log2_scale + code_half
        if op.row_log2 >= 0:
            offset += np.int64(ints[op.row_log2 + window % op.windows * op.row_log2_window + head * tokens + top + r])
        offset = min(max(offset, np.int64(-(1 << 15))), np.int64((1 << 15) - 1))
        down = op.exponent_fraction - 1
        tap, count = code_tap(op, (head_row + r) * tokens, batch, taps)
        codes = Operands(score, pairs, vectors, offset, down, op.last_code, tables + op.powers, operand, operand + columns, tap, count)
        operands_of(codes)  # pyright: ignore[reportCallIssue]
    keep(taps, op.tap_log_sum * batch, op.item_log_sum, head_row, log_sums)


@njit
def publish_words(rounding, op, score, pairs, start, batch, taps):
    """Scores and exponents of a row whose scores are at the address `score`; start: element of the taps."""
    tokens, shift = op.window_tokens, op.score_shift
    half = np.int64(0) if is_floor(rounding) else (np.int64(1) << shift) >> 1
    scores, exponents = (tokens if op.tap_scores >= 0 else 0), (tokens if op.tap_exponents >= 0 else 0)
    score_tap = taps.ctypes.data + op.tap_scores * batch + 2 * start
    exponent_tap = taps.ctypes.data + op.tap_exponents * batch + 2 * start
    row = Published(score, pairs, op.row_bytes // LANES, score_tap, scores, exponent_tap, exponents, op.score_multiplier, half, shift)
    publish_row(row)  # pyright: ignore[reportCallIssue] (Numba passes the typing context)


@njit
def code_tap(op, start, batch, taps):
    """Where the codes of a row go, and how many of them: none if nobody asked."""
    if op.tap_codes < 0:
        return np.int64(0), np.int64(0)
    return taps.ctypes.data + op.tap_codes * batch + start, op.window_tokens


@njit
def frozen_words(op, window, head, top, rows, unread, operands, batch, memory):
    """The operands of rows without a computed pair: whatever the exponents `unread` are, every code is the map's."""
    tables, columns = memory.tables.ctypes.data, op.row_bytes
    head_row = (window * op.heads + head) * op.window_tokens + top
    for r in range(rows):
        pairs, operand = tables + row_map_start(op, window, head, top + r), operands.ctypes.data + 2 * columns * r
        vectors, powers = columns // LANES, tables + op.powers
        tap, count = code_tap(op, (head_row + r) * op.window_tokens, batch, memory.taps)
        codes = Operands(unread.ctypes.data, pairs, vectors, 0, 0, op.last_code, powers, operand, operand + columns, tap, count)
        operands_of(codes)  # pyright: ignore[reportCallIssue]


def is_floor(rounding):
    raise NotImplementedError("compiled code only")


@overload(is_floor)
def _is_floor(rounding):
    result = rounding.instance_class is Floor
    return lambda rounding: result


@njit
def add_words(scores, logit_bias, tokens, columns):
    """What is added by pair; the sums stay within 16 bits."""
    for r in range(len(logit_bias) // tokens):
        score, bias = scores[r * columns : r * columns + tokens], logit_bias[r * tokens : (r + 1) * tokens]
        for j in range(tokens):
            score[j] = np.int16(np.int32(score[j]) + bias[j])


@njit
def operands_of_codes(isa, op, codes, rows, operands, memory):
    """The operands of the even and the odd product, uint8 [rows, 2, row_bytes], of codes [rows, row_bytes]."""
    columns = op.row_bytes
    for parity in range(2):
        powers = memory.tables[op.powers + 16 * parity :]
        for r in range(rows):
            start = (2 * r + parity) * columns
            look_up(isa, powers, 16, codes[r * columns : (r + 1) * columns], operands[start : start + columns])


@njit
def word_context(isa, rounding, op, window, head, top, rows, batch, operands, memory):
    """Even and odd products of a block with the values, requantised before they leave the registers."""
    ints, token = memory.ints.ctypes.data, window * op.window_tokens + top
    start = 4 * ((window * op.heads + head) * op.window_tokens + top) * op.head_dim
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


@njit
def row_map_start(op, window, head, token):
    return op.map + window % op.windows * op.map_window + head * op.map_head + token * op.map_row


@njit
def in_softmax(pair):
    """Whether the softmax runs over a pair of the map: its highest bit."""
    return np.int8(pair) < np.int8(0)


@njit
def weigh(rounding, op, window, head, top, rows, scores, columns, batch, memory):
    """Scores -> codes of the softmax over the pairs of each row that take part; meaningless at other pairs."""
    tokens, ints, tables, taps = op.window_tokens, memory.ints, memory.tables, memory.taps
    codes, log_sums = memory.bytes[codes_start(op) :], np.empty(rows, np.int64)
    for r in range(rows):
        token = top + r
        row = (window * op.heads + head) * tokens + token
        score = scores[r * columns : r * columns + tokens]
        start = row_map_start(op, window, head, token)
        pairs = tables[start : start + tokens]
        if op.logit_bias >= 0:
            bias = op.logit_bias + window % op.windows * op.logit_bias_window + (head * tokens + token) * tokens
            add(score, ints[bias : bias + tokens])
        if op.tap_scores >= 0:
            keep(taps, op.tap_scores * batch, op.item_scores, row * tokens, only_in_softmax(pairs, score))
        exponents(rounding, op, pairs, score)
        keep(taps, op.tap_exponents * batch, op.item_exponents, row * tokens, score)
        log_sums[r] = log2_sum(op, pairs, score, ints)
        offset = log_sums[r] + op.log2_scale
        if op.row_log2 >= 0:
            offset += np.int64(ints[op.row_log2 + window % op.windows * op.row_log2_window + head * tokens + token])
        code = codes[r * columns : r * columns + tokens]
        to_codes(rounding, score, np.int32(offset), np.int32(op.exponent_fraction), np.int32(op.last_code), code)
    keep(taps, op.tap_log_sum * batch, op.item_log_sum, (window * op.heads + head) * tokens + top, log_sums)


@njit
def add(score, logit_bias):
    for j in range(len(score)):
        score[j] = np.int32(score[j] + logit_bias[j])


@njit
def only_in_softmax(pairs, score):
    """The scores, 0 where the softmax does not run."""
    shown = np.empty(len(score), np.int32)
    for j in range(len(score)):
        shown[j] = score[j] if in_softmax(pairs[j]) else np.int32(0)
    return shown


@njit
def exponents(rounding, op, pairs, score):
    """score -> base-2 exponents t = round_shift((m - score) * multiplier, shift) in place, m the row's greatest; 0 outside the softmax."""
    lowest = np.int32(-(1 << 31))
    top = lowest
    for j in range(len(score)):
        top = max(top, score[j] if in_softmax(pairs[j]) else lowest)
    if op.narrow_exponents:
        to_exponents(rounding, pairs, top, score, np.int32(op.score_multiplier), np.int32(op.score_shift))
    else:
        to_exponents(rounding, pairs, top, score, np.int64(op.score_multiplier), np.int64(op.score_shift))


@njit
def to_exponents(rounding, pairs, top, score, multiplier, shift):
    """score = round_shift((top - score) * multiplier, shift), in the width of multiplier and shift; 0 outside the softmax."""
    width = type(multiplier)
    for j in range(len(score)):
        below = np.uint32(np.int32(top - score[j]))  # the difference of two int32, not negative in the softmax
        exponent = np.int32(round_shift(rounding, width(width(below) * multiplier), shift))
        score[j] = exponent if in_softmax(pairs[j]) else np.int32(0)


@njit
def log2_sum(op, pairs, exponent, ints):
    """log2(sum of 2^-t) over the softmax's pairs, on the grid of the exponents; 0 without any."""
    table = ints[op.exp2 : op.exp2 + (np.int64(1) << op.exponent_fraction)]
    return log2_of(op, np.int64(sum_of_powers(table, np.int32(op.exponent_fraction), pairs, exponent)), ints)


@njit
def log2_of(op, total, ints):
    """log2 of a sum of powers, int64; 0 for 0."""
    if total == 0:
        return np.int64(0)
    lead = bit_length(total) - 1
    mantissa = ((total << op.log2_bits) >> lead) - (np.int64(1) << op.log2_bits)
    return ((lead - op.exp2_bits) << op.exponent_fraction) + np.int64(ints[op.log2 + mantissa])


@njit
def sum_of_powers(table, fraction, pairs, exponent):
    """Sum of table[t mod 1] >> floor(t) over the softmax's pairs: below 2^31."""
    fraction, mask, total = np.int32(fraction & np.int32(31)), np.int32(len(table) - 1), np.int32(0)
    for j in range(len(exponent)):
        whole = min(np.int32(exponent[j] >> fraction), np.int32(31))  # an entry has less than 31 bits: 0 from there on
        term = np.int32(table[np.uint32(exponent[j] & mask)] >> np.int32(whole & np.int32(31)))
        total = np.int32(total + (term if in_softmax(pairs[j]) else np.int32(0)))
    return total


@njit
def to_codes(rounding, exponent, offset, fraction, last_code, code):
    """code = clip(round_shift(2 * (exponent + offset), fraction), 0, last_code)."""
    for j in range(len(exponent)):
        level = np.int32(min(exponent[j], MAX_EXPONENT) + offset)
        rounded = round_shift(rounding, np.int32(level << np.int32(1)), fraction)
        code[j] = np.uint8(min(max(rounded, np.int32(0)), last_code))


@njit
def codes_start(op):
    """Where codes lie in scratch: after both operands."""
    return 2 * op.block_rows * op.row_bytes


@njit
def merge_frozen(op, window, head, top, rows, batch, memory):
    """The codes of frozen and excluded pairs beside the computed.

    All rows at once: row by row, what is left of each beyond whole vectors cost 0.4 ns a pair.
    """
    tokens, columns = op.window_tokens, op.row_bytes
    code = memory.bytes[codes_start(op) : codes_start(op) + rows * columns]
    if not op.all_computed:
        start = row_map_start(op, window, head, top)
        merge(memory.tables[start : start + rows * columns], code)
    for r in range(rows):
        row = ((window * op.heads + head) * tokens + top + r) * tokens
        if op.tap_codes >= 0:
            shown = without_mark(code[r * columns : r * columns + tokens], op.last_code)
            keep(memory.taps, op.tap_codes * batch, op.item_codes, row, shown)


@njit
def merge(pairs, code):
    """A computed pair keeps its code; of others comes what the map says, without the mark of the softmax."""
    for j in range(len(code)):
        pair, computed = pairs[j], code[j]
        code[j] = np.uint8(computed if pair == np.uint8(COMPUTED) else np.uint8(pair & np.uint8(0x7F)))


@njit
def without_mark(code, last_code):
    """The codes; an excluded pair's is the last."""
    shown = np.empty(len(code), np.uint8)
    for j in range(len(code)):
        shown[j] = np.uint8(last_code) if code[j] == np.uint8(EXCLUDED) else code[j]
    return shown


@njit
def context(isa, rounding, op, window, head, top, rows, batch, memory):
    """Even and odd products of a block with the values, requantised to out."""
    columns = (op.head_dim + PANEL - 1) // PANEL * PANEL
    operands, words = memory.bytes, memory.words
    operands_of_codes(isa, op, operands[codes_start(op) :], rows, operands, memory)
    zero, sums = words[:columns], words[columns:]
    zero[:] = 0
    panels = memory.panels[value_panels(op, window, head) :]
    steps = (op.window_tokens + STEP - 1) // STEP
    gemm(isa, operands, op.row_bytes, panels, columns // PANEL, zero, sums, columns, 2 * rows, steps, op.safe_value_steps)
    finish_context(rounding, op, window, head, top, rows, sums, columns, batch, memory)


@njit
def finish_context(rounding, op, window, head, top, rows, sums, columns, batch, memory):
    tokens, head_dim, codes, taps = op.window_tokens, op.head_dim, memory.codes, memory.taps
    for r in range(rows):
        even = sums[2 * r * columns : 2 * r * columns + head_dim]
        odd = sums[(2 * r + 1) * columns : (2 * r + 1) * columns + head_dim]
        offset = ((window * op.heads + head) * tokens + top + r) * head_dim
        keep(taps, op.tap_even * batch, op.item_even, offset, even)
        keep(taps, op.tap_odd * batch, op.item_odd, offset, odd)
        start = op.out * batch + (window * tokens + top + r) * op.channels + head * head_dim
        out = codes[start : start + head_dim]
        if op.narrow_context:
            requantise_context(rounding, op, even, odd, np.int32(op.out_zero), np.int32(op.low), np.int32(op.high), out)
        else:
            requantise_context(rounding, op, even, odd, op.out_zero, op.low, op.high, out)


@njit
def requantise_context(rounding, op, even, odd, zero, low, high, out):
    """out = clip(round_shift(even * multiplier_even + odd * multiplier_odd, shift) + zero, low, high), in the width of the last three."""
    m_even, m_odd, width = np.int64(np.int32(op.multiplier_even)), np.int64(np.int32(op.multiplier_odd)), type(low)
    for d in range(len(out)):
        total = np.int64(np.int64(even[d]) * m_even + np.int64(odd[d]) * m_odd)
        out[d] = np.uint8(clip(width(round_narrow(rounding, low, total, op.out_shift) + zero), low, high))
