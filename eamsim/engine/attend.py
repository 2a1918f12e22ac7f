"""Attention in blocks of rows: scores, softmax codes, frozen merge, even and odd products, context."""

from __future__ import annotations

import numpy as np
from numba import njit
from numba.np.ufunc import get_thread_id

from eamsim.engine.attention import COMPUTED, EXCLUDED, key_panels, value_panels
from eamsim.engine.fixedpoint import bit_length, clip, round_narrow, round_shift
from eamsim.engine.isa import gemm, look_up
from eamsim.engine.memory import keep
from eamsim.engine.tile import PANEL, STEP

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
    tokens = op.window_tokens
    columns = (tokens + PANEL - 1) // PANEL * PANEL
    scores = memory.words[get_thread_id()]
    slot = memory.ints[op.slots + head]
    if slot >= 0:
        q = memory.codes[op.x * batch + (window * tokens + top) * op.in_channels + slot * op.head_dim :]
        keys = memory.panels[key_panels(op, window, slot) :]
        bias = memory.panel_bias[(window * op.scored + slot) * columns :]
        steps = (op.head_dim + STEP - 1) // STEP
        gemm(isa, q, op.in_channels, keys, columns // PANEL, bias, scores, columns, rows, steps, op.safe_key_steps)
        weigh(rounding, op, window, head, top, rows, scores, columns, batch, memory)
    merge_frozen(op, window, head, top, rows, batch, memory)
    context(isa, rounding, op, window, head, top, rows, batch, memory)


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
    codes = memory.bytes[get_thread_id()]
    for r in range(rows):
        token = top + r
        row = (window * op.heads + head) * tokens + token
        score = scores[r * columns : r * columns + tokens]
        start = row_map_start(op, window, head, token)
        pairs = tables[start : start + tokens]
        if op.logit_bias >= 0:
            bias = op.logit_bias + window % op.windows * op.logit_bias_window + (head * tokens + token) * tokens
            add(score, ints[bias : bias + tokens])
        keep_scores(taps, op.tap_scores * batch, row * tokens, pairs, score)
        exponents(rounding, op, pairs, score)
        keep(taps, op.tap_exponents * batch, row * tokens, score)
        log_sum = log2_sum(op, pairs, score, ints)
        if op.tap_log_sum >= 0:
            taps[op.tap_log_sum * batch + row] = log_sum
        offset = log_sum + op.log2_scale
        if op.row_log2 >= 0:
            offset += np.int64(ints[op.row_log2 + window % op.windows * op.row_log2_window + head * tokens + token])
        code = codes[r * tokens : (r + 1) * tokens]
        to_codes(rounding, score, np.int32(offset), np.int32(op.exponent_fraction), np.int32(op.last_code), code)


@njit
def add(score, logit_bias):
    for j in range(len(score)):
        score[j] = np.int32(score[j] + logit_bias[j])


@njit
def keep_scores(taps, base, offset, pairs, score):
    if base >= 0:
        for j in range(len(score)):
            taps[base + offset + j] = np.int64(score[j]) if in_softmax(pairs[j]) else np.int64(0)


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
    total = np.int64(sum_of_powers(table, np.int32(op.exponent_fraction), pairs, exponent))
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
def merge_frozen(op, window, head, top, rows, batch, memory):
    """The codes of frozen and excluded pairs beside the computed.

    All rows at once: row by row, what is left of each beyond whole vectors cost 0.4 ns a pair.
    """
    tokens = op.window_tokens
    code = memory.bytes[get_thread_id()][: rows * tokens]
    if not op.all_computed:
        start = row_map_start(op, window, head, top)
        merge(memory.tables[start : start + rows * tokens], code)
    keep_codes(memory.taps, op.tap_codes * batch, ((window * op.heads + head) * tokens + top) * tokens, code, op.last_code)


@njit
def merge(pairs, code):
    """A computed pair keeps its code; of others comes what the map says, without the mark of the softmax."""
    for j in range(len(code)):
        pair, computed = pairs[j], code[j]
        code[j] = np.uint8(computed if pair == np.uint8(COMPUTED) else np.uint8(pair & np.uint8(0x7F)))


@njit
def keep_codes(taps, base, offset, code, last_code):
    if base >= 0:
        for j in range(len(code)):
            taps[base + offset + j] = last_code if code[j] == np.uint8(EXCLUDED) else np.int64(code[j])


@njit
def context(isa, rounding, op, window, head, top, rows, batch, memory):
    """Even and odd products of a block with the values, requantised to out."""
    tokens, head_dim = op.window_tokens, op.head_dim
    columns = (head_dim + PANEL - 1) // PANEL * PANEL
    operands, words = memory.bytes[get_thread_id()], memory.words[get_thread_id()]
    zero = words[:columns]
    zero[:] = 0
    panels = memory.panels[value_panels(op, window, head) :]
    steps = (tokens + STEP - 1) // STEP
    size = op.block_rows * tokens
    for parity in range(2):
        powers = memory.tables[op.powers + 16 * parity :]
        operand = operands[size * (1 + parity) :]
        look_up(isa, powers, 16, operands[: rows * tokens], operand[: rows * tokens])
        sums = words[columns * (1 + parity * op.block_rows) :]
        gemm(isa, operand, tokens, panels, columns // PANEL, zero, sums, columns, rows, steps, op.safe_value_steps)
    finish_context(rounding, op, window, head, top, rows, words[columns:], columns, batch, memory)


@njit
def finish_context(rounding, op, window, head, top, rows, sums, columns, batch, memory):
    tokens, head_dim, codes, taps = op.window_tokens, op.head_dim, memory.codes, memory.taps
    for r in range(rows):
        even = sums[r * columns : r * columns + head_dim]
        odd = sums[(op.block_rows + r) * columns : (op.block_rows + r) * columns + head_dim]
        offset = ((window * op.heads + head) * tokens + top + r) * head_dim
        keep(taps, op.tap_even * batch, offset, even)
        keep(taps, op.tap_odd * batch, offset, odd)
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
