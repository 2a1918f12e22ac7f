"""Attention in blocks of rows: scores, softmax codes, frozen merge, even and odd products, context."""

from __future__ import annotations

import numpy as np
from numba import njit

from eamsim.engine.ir.softmax import COMPUTED, EXCLUDED
from eamsim.engine.ir.tile import PANEL, STEP, STEP_BYTES
from eamsim.engine.isa import gemm, look_up
from eamsim.engine.kernels.attend_words import in_words
from eamsim.engine.kernels.attention import keep_no_scores, key_bias, key_panels, log2_of, row_map_start, value_panels
from eamsim.engine.kernels.fixedpoint import clip, round_narrow, round_shift
from eamsim.engine.kernels.needed import first_group, group_at, queries, restore_order
from eamsim.engine.memory import keep

# Exponents are limited to 2^28 where the code is computed: any code is at its last value long before, and 32 bits suffice.
MAX_EXPONENT = np.int32(1 << 28)


@njit
def attend(isa, rounding, op, first, last, batch, memory):
    """Units: blocks of rows of heads of windows."""
    for unit in range(first, last):
        block, head = unit % op.blocks, unit // op.blocks % op.heads
        window = unit // op.blocks // op.heads
        top = block * op.block_rows
        rows = min(op.block_rows, op.query_rows - top)
        attend_block(isa, rounding, op, window, head, top, rows, batch, memory)
        restore_order(op, window, head, top, rows, batch, memory.taps, memory.ints)


@njit
def attend_block(isa, rounding, op, window, head, top, rows, batch, memory):
    """Rows [top, top + rows) of one head of one window; `window` counts through all images."""
    if in_words(isa, rounding, op, window, head, top, rows, batch, memory):
        return
    head_row, log_sums = (window * op.heads + head) * op.query_rows + top, np.zeros(rows, np.int64)
    members, runs, following = group_at(first_group(op, window, head, top, memory.ints), memory.ints)
    while len(members) > 0:
        if len(runs) > 0:
            score_group(isa, op, window, head, top, members, runs, batch, memory)
            weigh(rounding, op, window, head, top, members, runs, memory.words, log_sums, batch, memory)
        else:
            keep_no_scores(op, head_row, members, batch, memory.taps)
        members, runs, following = group_at(following, memory.ints)
    keep(memory.taps, op.tap_log_sum * batch, op.item_log_sum, head_row, log_sums)
    merge_frozen(op, window, head, top, rows, batch, memory)
    context(isa, rounding, op, window, head, top, rows, batch, memory)


@njit
def score_group(isa, op, window, head, top, members, runs, batch, memory):
    """Scores int32 [members, row_bytes] of a group, before what is added by pair."""
    steps, slot = (op.head_dim + STEP - 1) // STEP, memory.ints[op.slots + head]
    q, stride = queries(op, window, slot, top, members, batch, memory.codes, memory.bytes)
    keys, bias = memory.panels[key_panels(op, window, slot) :], memory.panel_bias[key_bias(op, window, slot) :]
    for n in range(0, len(runs), 2):
        first, panels = np.int64(runs[n]), np.int64(runs[n + 1])
        panel, column = keys[first * steps * STEP_BYTES :], first * PANEL
        scores = memory.words[column:]
        gemm(isa, q, stride, panel, panels, bias[column:], scores, op.row_bytes, len(members), steps, op.safe_key_steps)


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
def in_softmax(pair):
    """Whether the softmax runs over a pair of the map: its highest bit."""
    return np.int8(pair) < np.int8(0)


@njit
def weigh(rounding, op, window, head, top, members, runs, scores, log_sums, batch, memory):
    """Scores of a group -> codes of the softmax over the pairs of each row that take part; meaningless at other pairs."""
    tokens, columns, ints, tables, taps = op.window_tokens, op.row_bytes, memory.ints, memory.tables, memory.taps
    codes = memory.bytes[codes_start(op) :]
    for n in range(len(members)):
        r = np.int64(members[n])
        token = top + r
        row = (window * op.heads + head) * op.query_rows + token
        score = scores[n * columns : n * columns + tokens]
        start = row_map_start(op, window, head, token)
        pairs = tables[start : start + tokens]
        if op.logit_bias >= 0:
            bias = op.logit_bias + window % op.windows * op.logit_bias_window + (head * op.query_rows + token) * tokens
            add(score, ints[bias : bias + tokens])
        if op.tap_scores >= 0:
            keep(taps, op.tap_scores * batch, op.item_scores, row * tokens, only_in_softmax(pairs, score))
        exponents(rounding, op, pairs, score, runs)
        if op.tap_exponents >= 0:
            keep(taps, op.tap_exponents * batch, op.item_exponents, row * tokens, only_in_softmax(pairs, score))
        log_sums[r] = log2_sum(op, pairs, score, runs, ints)
        offset = log_sums[r] + op.log2_scale
        if op.row_log2 >= 0:
            offset += np.int64(ints[op.row_log2 + window % op.windows * op.row_log2_window + head * op.query_rows + token])
        code = codes[r * columns : r * columns + tokens]
        last_code, fraction = np.int32(op.last_code), np.int32(op.exponent_fraction)
        for run in range(0, len(runs), 2):
            first, last = ends(runs, run)
            to_codes(rounding, score[first:last], np.int32(offset), fraction, last_code, code[first:last])


@njit
def ends(runs, n):
    """First and last pair of the run of panels at n, which may end beyond the row."""
    return np.int64(runs[n]) * PANEL, np.int64(runs[n] + runs[n + 1]) * PANEL


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
def exponents(rounding, op, pairs, score, runs):
    """score -> base-2 exponents t = round_shift((m - score) * multiplier, shift) in place, m the row's greatest; of the runs alone."""
    top = np.int32(-(1 << 31))
    for n in range(0, len(runs), 2):
        first, last = ends(runs, n)
        top = greatest(pairs[first:last], score[first:last], top)
    for n in range(0, len(runs), 2):
        first, last = ends(runs, n)
        if op.narrow_exponents:
            to_exponents(rounding, pairs[first:last], top, score[first:last], np.int32(op.score_multiplier), np.int32(op.score_shift))
        else:
            to_exponents(rounding, pairs[first:last], top, score[first:last], np.int64(op.score_multiplier), np.int64(op.score_shift))


@njit
def greatest(pairs, score, top):
    """Of `top` and the scores of the softmax."""
    lowest = np.int32(-(1 << 31))
    for j in range(len(score)):
        top = max(top, score[j] if in_softmax(pairs[j]) else lowest)
    return top


@njit
def to_exponents(rounding, pairs, top, score, multiplier, shift):
    """score = round_shift((top - score) * multiplier, shift), in the width of multiplier and shift; 0 outside the softmax."""
    width = type(multiplier)
    for j in range(len(score)):
        below = np.uint32(np.int32(top - score[j]))  # the difference of two int32, not negative in the softmax
        exponent = np.int32(round_shift(rounding, width(width(below) * multiplier), shift))
        score[j] = exponent if in_softmax(pairs[j]) else np.int32(0)


@njit
def log2_sum(op, pairs, exponent, runs, ints):
    """log2(sum of 2^-t) over the softmax's pairs, on the grid of the exponents; 0 without any."""
    table, total = ints[op.exp2 : op.exp2 + (np.int64(1) << op.exponent_fraction)], np.int64(0)
    for n in range(0, len(runs), 2):
        first, last = ends(runs, n)
        total += np.int64(sum_of_powers(table, np.int32(op.exponent_fraction), pairs[first:last], exponent[first:last]))
    return log2_of(op, total, ints)


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
        row = ((window * op.heads + head) * op.query_rows + top + r) * tokens
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
    head_dim, codes, taps = op.head_dim, memory.codes, memory.taps
    for r in range(rows):
        even = sums[2 * r * columns : 2 * r * columns + head_dim]
        odd = sums[(2 * r + 1) * columns : (2 * r + 1) * columns + head_dim]
        offset = ((window * op.heads + head) * op.query_rows + top + r) * head_dim
        keep(taps, op.tap_even * batch, op.item_even, offset, even)
        keep(taps, op.tap_odd * batch, op.item_odd, offset, odd)
        start = op.out * batch + (window * op.query_rows + top + r) * op.channels + head * head_dim
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
