"""Attention: keys and values packed for the matrix product, then blocks of rows from scores to context."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numba.np.ufunc import get_thread_id

from eamsim.engine.fixedpoint import bit_length, clip, round_shift
from eamsim.engine.isa import PANEL, ROWS, STEP, STEP_BYTES, gemm
from eamsim.engine.linear import safe_steps
from eamsim.engine.memory import Constants, keep, refuse, whole_tiles
from eamsim.program import Attention, Value
from eamsim.verify import Bound

FIELDS = (
    *("windows", "heads", "scored", "slots", "window_tokens", "head_dim", "block_rows", "blocks"),
    *("q_zero", "k_zero", "v_zero", "key_bytes", "value_bytes", "panel_bytes", "safe_key_steps", "safe_value_steps"),
    *("score_multiplier", "score_shift", "narrow_exponents", "exp2", "exponent_fraction", "exp2_bits", "log2", "log2_bits", "log2_scale"),
    *("map", "map_window", "map_head", "map_row", "least_computed", "row_log2", "row_log2_window", "logit_bias", "logit_bias_window"),
    *("last_code", "top_power", "silent_code", "multiplier_even", "multiplier_odd", "out_shift", "out_zero"),
    *("tap_scores", "tap_exponents", "tap_codes", "tap_log_sum", "tap_even", "tap_odd"),
)
BLOCK_ROWS = 12 * ROWS
# One byte of the map for each pair: 0 takes no part, 1 + code frozen, 255 computed.
EXCLUDED, COMPUTED = 0, 255
# Exponents are limited to 2^28 where the code is computed: any code is at its last value long before, and 32 bits suffice.
MAX_EXPONENT = np.int32(1 << 28)
MAX_ATTENTION_BITS = 4


def plan_attention(op: Attention, x: Value, score_bound: Bound, constants: Constants) -> dict[str, Any]:
    """Units: heads of windows when packing; blocks of their rows when attending."""
    refuse_widths(op, x)
    k_reach, v_reach = (max(zero, x.high - zero) for zero in (op.k_zero, op.v_zero))
    zeros = {"q_zero": op.q_zero, "k_zero": op.k_zero, "v_zero": op.v_zero}
    steps = {"safe_key_steps": safe_steps(x.high, k_reach), "safe_value_steps": safe_steps(1 << op.top_power, v_reach)}
    return zeros | steps | plan_blocks(op, constants) | plan_softmax(op, score_bound, constants) | plan_maps(op, constants)


def refuse_widths(op: Attention, x: Value) -> None:
    where = f"{op.out.name} Attention"
    if op.attention_bits > MAX_ATTENTION_BITS:
        refuse(where, f"attention_bits is {op.attention_bits}, and the powers of more than {MAX_ATTENTION_BITS} bits leave a byte")
    for name in ("k_zero", "v_zero"):
        zero = getattr(op, name)
        if zero > 128 or x.high - zero > 127:
            refuse(where, f"codes of {x.bits} bits less {name} {zero} leave int8")


def plan_blocks(op: Attention, constants: Constants) -> dict[str, Any]:
    """How the work is cut, and the room it needs."""
    tokens, head_dim, scored = op.tokens, op.head_dim, len(op.score_heads)
    block_rows = whole_tiles(-(-tokens // -(-tokens // BLOCK_ROWS)))
    slots = np.full(op.heads, -1, np.int32)
    slots[list(op.score_heads)] = np.arange(scored)
    key_bytes, value_bytes = panel_bytes(head_dim, tokens), panel_bytes(tokens, head_dim)
    key_columns, value_columns = padded_columns(tokens), padded_columns(head_dim)
    return {
        "units": op.windows * op.heads,
        "block": 1,
        "words": block_rows * max(key_columns, 2 * value_columns) + value_columns,
        "bytes": 2 * block_rows * tokens + STEP,
        "windows": op.windows,
        "heads": op.heads,
        "scored": scored,
        "slots": constants.add(slots),
        "window_tokens": tokens,
        "head_dim": head_dim,
        "block_rows": block_rows,
        "blocks": -(-tokens // block_rows),
        "key_bytes": key_bytes,
        "value_bytes": value_bytes,
        "panel_bytes": op.windows * (scored * key_bytes + op.heads * value_bytes),
        "bias_words": op.windows * scored * key_columns,
    }


def plan_softmax(op: Attention, score_bound: Bound, constants: Constants) -> dict[str, Any]:
    return {
        "score_multiplier": op.score_multiplier,
        "score_shift": op.score_shift,
        "narrow_exponents": narrow_exponents(op, score_bound),
        "exp2": constants.add(op.exp2),
        "exponent_fraction": op.fraction_bits,
        "exp2_bits": op.exp2_bits,
        "log2": constants.add(op.log2),
        "log2_bits": len(op.log2).bit_length() - 1,
        "log2_scale": op.log2_scale,
        "last_code": op.last_code,
        "top_power": op.top_power,
        "silent_code": op.last_code if op.last_code_is_zero else -1,
        "multiplier_even": op.multiplier_even,
        "multiplier_odd": op.multiplier_odd,
        "out_shift": op.out_shift,
        "out_zero": op.out_zero,
    }


def narrow_exponents(op: Attention, score_bound: Bound) -> bool:
    """Whether (m - s) * multiplier and its rounding constant stay within int32."""
    reach = (score_bound[1] - score_bound[0]) * op.score_multiplier
    return op.score_shift < 31 and reach + (1 << op.score_shift) < 1 << 31


def plan_maps(op: Attention, constants: Constants) -> dict[str, Any]:
    """Frozen codes and excluded pairs in one map of bytes, and what is added by row or pair; strides are 0 where a map is shared."""
    tokens = op.tokens
    pairs = np.full((1, 1, 1, tokens), COMPUTED, np.uint8)
    fields = {"row_log2": -1, "row_log2_window": 0, "logit_bias": -1, "logit_bias_window": 0}
    if op.frozen is not None:
        codes = op.frozen.codes << np.uint8(op.attention_bits - op.frozen.bits)
        pairs = np.where(op.frozen.mask, codes + np.uint8(1), pairs)
        if op.softmax == "renormalised":
            row_log2 = op.frozen.row_log2
            fields |= {"row_log2": constants.add(row_log2), "row_log2_window": row_log2[0].size if len(row_log2) > 1 else 0}
    if op.excluded is not None:
        pairs = np.where(op.excluded[:, None], np.uint8(EXCLUDED), pairs)
    if op.logit_bias is not None:
        bias = op.logit_bias
        fields |= {"logit_bias": constants.add(bias), "logit_bias_window": bias[0].size if len(bias) > 1 else 0}
    strides = [size if extent > 1 else 0 for extent, size in zip(pairs.shape, np.cumprod(pairs.shape[:0:-1])[::-1].tolist(), strict=False)]
    least_computed = COMPUTED if op.softmax == "renormalised" else EXCLUDED + 1
    return fields | {
        "map": constants.add(pairs),
        "map_window": strides[0],
        "map_head": strides[1],
        "map_row": strides[2],
        "least_computed": least_computed,
    }


def taps(op: Attention) -> dict[str, tuple[int, ...]]:
    rows = (op.windows, op.heads, op.tokens)
    pairs = {name: (*rows, op.tokens) for name in ("scores", "exponents", "codes")}
    return pairs | {"log_sum": rows, "even": (*rows, op.head_dim), "odd": (*rows, op.head_dim)}


def padded_columns(columns: int) -> int:
    return -(-columns // PANEL) * PANEL


def panel_bytes(rows: int, columns: int) -> int:
    """Size of a packed right operand of `rows` x `columns`."""
    return padded_columns(columns) * -(-rows // STEP) * STEP


@njit
def pack_heads(op, first, last, batch, memory):
    """Units: heads of windows."""
    for unit in range(first, last):
        window, head = unit // op.heads, unit % op.heads
        rows = memory.codes[op.x * batch + window * op.window_tokens * op.in_channels :]
        slot = memory.ints[op.slots + head]
        if slot >= 0:
            keys = memory.panels[key_panels(op, window, slot) :][: op.key_bytes]
            columns = (op.window_tokens + PANEL - 1) // PANEL * PANEL
            bias = memory.panel_bias[(window * op.scored + slot) * columns :][:columns]
            pack_keys(op, rows[(op.scored + slot) * op.head_dim :], keys, bias)
        values = memory.panels[value_panels(op, window, head) :][: op.value_bytes]
        pack_values(op, rows[(2 * op.scored + head) * op.head_dim :], values)


@njit
def key_panels(op, window, slot):
    """Where a window's keys lie; `window` counts through all images."""
    return window // op.windows * op.panel_bytes + (window % op.windows * op.scored + slot) * op.key_bytes


@njit
def value_panels(op, window, head):
    values = op.windows * op.scored * op.key_bytes
    return window // op.windows * op.panel_bytes + values + (window % op.windows * op.heads + head) * op.value_bytes


@njit
def pack_keys(op, rows, panels, bias):
    """panels [tokens / 16][head_dim / 4][16][4] = k - k_zero; bias = -q_zero * sum over head_dim of it."""
    steps = (op.head_dim + STEP - 1) // STEP
    panels[:] = 0
    bias[:] = 0
    for token in range(op.window_tokens):
        keys = rows[token * op.in_channels : token * op.in_channels + op.head_dim]
        start = token // PANEL * steps * STEP_BYTES + token % PANEL * STEP
        total = np.int32(0)
        for d in range(op.head_dim):
            key = np.int32(np.int32(keys[d]) - np.int32(op.k_zero))
            panels[start + d // STEP * STEP_BYTES + d % STEP] = np.int8(key)
            total = np.int32(total + key)
        bias[token] = np.int32(-op.q_zero * total)


@njit
def pack_values(op, rows, panels):
    """panels [head_dim / 16][tokens / 4][16][4] = v - v_zero."""
    steps = (op.window_tokens + STEP - 1) // STEP
    panels[:] = 0
    for token in range(op.window_tokens):
        values = rows[token * op.in_channels : token * op.in_channels + op.head_dim]
        start = token // STEP * STEP_BYTES + token % STEP
        for d in range(op.head_dim):
            panels[start + d // PANEL * steps * STEP_BYTES + d % PANEL * STEP] = np.int8(np.int32(values[d]) - np.int32(op.v_zero))


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
    encode(op, window, head, top, rows, scores, columns, batch, memory)
    context(isa, rounding, op, window, head, top, rows, batch, memory)


@njit
def row_map(op, window, head, token, tables):
    start = op.map + window % op.windows * op.map_window + head * op.map_head + token * op.map_row
    return tables[start : start + op.window_tokens]


@njit
def weigh(rounding, op, window, head, top, rows, scores, columns, batch, memory):
    """Scores -> codes of the softmax over the computed pairs of each row, in place; meaningless at other pairs."""
    tokens, least = op.window_tokens, np.uint8(op.least_computed)
    ints, tables, taps = memory.ints, memory.tables, memory.taps
    for r in range(rows):
        token = top + r
        row = (window * op.heads + head) * tokens + token
        score = scores[r * columns : r * columns + tokens]
        pairs = row_map(op, window, head, token, tables)
        if op.logit_bias >= 0:
            start = op.logit_bias + window % op.windows * op.logit_bias_window + (head * tokens + token) * tokens
            add(score, ints[start : start + tokens])
        keep_computed(taps, op.tap_scores * batch, row * tokens, pairs, least, score)
        exponents(rounding, op, pairs, least, score)
        keep(taps, op.tap_exponents * batch, row * tokens, score)
        log_sum = log2_sum(op, pairs, least, score, ints)
        if op.tap_log_sum >= 0:
            taps[op.tap_log_sum * batch + row] = log_sum
        offset = log_sum + op.log2_scale
        if op.row_log2 >= 0:
            offset += np.int64(ints[op.row_log2 + window % op.windows * op.row_log2_window + head * tokens + token])
        to_codes(rounding, score, np.int32(offset), np.int32(op.exponent_fraction), np.int32(op.last_code))


@njit
def add(score, logit_bias):
    for j in range(len(score)):
        score[j] = np.int32(score[j] + logit_bias[j])


@njit
def keep_computed(taps, base, offset, pairs, least, score):
    if base >= 0:
        for j in range(len(score)):
            taps[base + offset + j] = np.int64(score[j]) if pairs[j] >= least else np.int64(0)


@njit
def exponents(rounding, op, pairs, least, score):
    """score -> base-2 exponents t = round_shift((m - score) * multiplier, shift) in place, m the row's greatest; 0 where not computed."""
    lowest = np.int32(-(1 << 31))
    top = lowest
    for j in range(len(score)):
        top = max(top, score[j] if pairs[j] >= least else lowest)
    if op.narrow_exponents:
        to_exponents(rounding, pairs, least, top, score, np.int32(op.score_multiplier), np.int32(op.score_shift))
    else:
        to_exponents(rounding, pairs, least, top, score, np.int64(op.score_multiplier), np.int64(op.score_shift))


@njit
def to_exponents(rounding, pairs, least, top, score, multiplier, shift):
    """score = round_shift((top - score) * multiplier, shift), in the width of multiplier and shift; 0 where not computed."""
    width = type(multiplier)
    for j in range(len(score)):
        below = np.uint32(np.int32(top - score[j]))  # the difference of two int32, not negative where computed
        exponent = np.int32(round_shift(rounding, width(width(below) * multiplier), shift))
        score[j] = exponent if pairs[j] >= least else np.int32(0)


@njit
def log2_sum(op, pairs, least, exponent, ints):
    """log2(sum of 2^-t) over the computed pairs, on the grid of the exponents; 0 without any."""
    table = ints[op.exp2 : op.exp2 + (np.int64(1) << op.exponent_fraction)]
    total = np.int64(sum_of_powers(table, np.int32(op.exponent_fraction), pairs, least, exponent))
    if total == 0:
        return np.int64(0)
    lead = bit_length(total) - 1
    mantissa = ((total << op.log2_bits) >> lead) - (np.int64(1) << op.log2_bits)
    return ((lead - op.exp2_bits) << op.exponent_fraction) + np.int64(ints[op.log2 + mantissa])


@njit
def sum_of_powers(table, fraction, pairs, least, exponent):
    """Sum of table[t mod 1] >> floor(t) over the computed pairs: below 2^31."""
    fraction, mask, total = np.int32(fraction & np.int32(31)), np.int32(len(table) - 1), np.int32(0)
    for j in range(len(exponent)):
        whole = min(np.int32(exponent[j] >> fraction), np.int32(31))  # an entry has less than 31 bits: 0 from there on
        term = np.int32(table[np.uint32(exponent[j] & mask)] >> np.int32(whole & np.int32(31)))
        total = np.int32(total + (term if pairs[j] >= least else np.int32(0)))
    return total


@njit
def to_codes(rounding, exponent, offset, fraction, last_code):
    """exponent -> clip(round_shift(2 * (exponent + offset), fraction), 0, last_code)."""
    for j in range(len(exponent)):
        level = np.int32(min(exponent[j], MAX_EXPONENT) + offset)
        code = round_shift(rounding, np.int32(level << np.int32(1)), fraction)
        exponent[j] = min(max(code, np.int32(0)), last_code)


@njit
def encode(op, window, head, top, rows, codes, columns, batch, memory):
    """Computed, frozen and excluded pairs merged, then spread to the operands of the even and the odd product."""
    tokens, last_code = op.window_tokens, np.int32(op.last_code)
    tables, taps, operands = memory.tables, memory.taps, memory.bytes[get_thread_id()]
    for r in range(rows):
        code = codes[r * columns : r * columns + tokens]
        pairs = row_map(op, window, head, top + r, tables)
        merge(pairs, code, last_code)
        keep(taps, op.tap_codes * batch, ((window * op.heads + head) * tokens + top + r) * tokens, code)
        even = operands[r * tokens : (r + 1) * tokens]
        odd = operands[(op.block_rows + r) * tokens : (op.block_rows + r + 1) * tokens]
        spread(np.int32(op.top_power), np.int32(op.silent_code), pairs, code, even, odd)


@njit
def merge(pairs, code, last_code):
    for j in range(len(code)):
        pair = np.int32(pairs[j])
        other = last_code if pair == np.int32(EXCLUDED) else np.int32(pair - np.int32(1))
        code[j] = code[j] if pair == np.int32(COMPUTED) else other


@njit
def spread(top_power, silent_code, pairs, code, even, odd):
    """Codes -> uint8 operands 2^(top_power - c // 2) of the even and the odd product, 0 where the other's or silent."""
    none, one = np.int32(0), np.int32(1)
    for j in range(len(code)):
        c = code[j]
        power = np.int32(one << np.int32(np.int32(top_power - np.int32(c >> one)) & np.int32(31)))
        power = power if c != silent_code else none
        power = power if pairs[j] != np.uint8(EXCLUDED) else none
        is_even = np.int32(c & one) == none
        even[j] = np.uint8(power if is_even else none)
        odd[j] = np.uint8(none if is_even else power)


@njit
def context(isa, rounding, op, window, head, top, rows, batch, memory):
    """Even and odd products of a block with the values, requantised to out."""
    tokens, head_dim = op.window_tokens, op.head_dim
    columns = (head_dim + PANEL - 1) // PANEL * PANEL
    operands, words = memory.bytes[get_thread_id()], memory.words[get_thread_id()]
    zero = words[:columns]
    zero[:] = 0
    even, odd = words[columns:], words[columns + op.block_rows * columns :]
    panels = memory.panels[value_panels(op, window, head) :]
    steps = (tokens + STEP - 1) // STEP
    gemm(isa, operands, tokens, panels, columns // PANEL, zero, even, columns, rows, steps, op.safe_value_steps)
    gemm(isa, operands[op.block_rows * tokens :], tokens, panels, columns // PANEL, zero, odd, columns, rows, steps, op.safe_value_steps)
    codes, taps = memory.codes, memory.taps
    for r in range(rows):
        e, o = even[r * columns : r * columns + head_dim], odd[r * columns : r * columns + head_dim]
        offset = ((window * op.heads + head) * tokens + top + r) * head_dim
        keep(taps, op.tap_even * batch, offset, e)
        keep(taps, op.tap_odd * batch, offset, o)
        start = op.out * batch + (window * tokens + top + r) * op.channels + head * head_dim
        requantise_context(rounding, op, e, o, codes[start : start + head_dim])


@njit
def requantise_context(rounding, op, even, odd, out):
    m_even, m_odd = np.int64(np.int32(op.multiplier_even)), np.int64(np.int32(op.multiplier_odd))
    shift, zero, low, high = op.out_shift, op.out_zero, op.low, op.high
    for d in range(len(out)):
        total = np.int64(np.int64(even[d]) * m_even + np.int64(odd[d]) * m_odd)
        out[d] = np.uint8(clip(round_shift(rounding, total, shift) + zero, low, high))
