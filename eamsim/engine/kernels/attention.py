"""Attention as the engine runs it: the plan, keys and values packed for the matrix product, and what both ways to attend share.

attend.py has the general way, attend_words.py that of 16 bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from eamsim.check import Bound
from eamsim.engine.ir import softmax
from eamsim.engine.ir.softmax import COMPUTED, EXCLUDED, IN_SOFTMAX
from eamsim.engine.ir.tile import PANEL, ROWS, STEP, STEP_BYTES
from eamsim.engine.isa import pack_key_chunk, pack_value_step
from eamsim.engine.kernels import needed
from eamsim.engine.kernels.fixedpoint import bit_length
from eamsim.engine.kernels.linear import safe_steps
from eamsim.engine.kernels.needed import order_of
from eamsim.engine.memory import CACHE_LINE, Constants, keep, tap_fields, whole_tiles
from eamsim.engine.refusals import Refusal, refuse
from eamsim.program import Attention, Value

FIELDS = (
    *("windows", "heads", "scored", "slots", "window_tokens", "query_rows", "head_dim", "block_rows", "blocks"),
    *("q", "q_channels", "key_column", "value_column"),
    *("q_zero", "k_zero", "v_zero", "key_bytes", "value_bytes", "panel_bytes", "safe_key_steps", "safe_value_steps"),
    *("score_multiplier", "score_shift", "narrow_exponents", "exp2", "exponent_fraction", "exp2_bits", "log2", "log2_bits", "log2_scale"),
    *("map", "map_window", "map_head", "map_row", "all_computed", "row_log2", "row_log2_window", "logit_bias", "logit_bias_window"),
    *("last_code", "powers", "multiplier_even", "multiplier_odd", "out_shift", "out_zero", "narrow_context"),
    *("row_bytes", "even", "odd", "context_shift", "context_zero", "zeros", *softmax.FIELDS, *needed.FIELDS),
    *tap_fields("scores", "exponents", "codes", "log_sum", "even", "odd"),
)
BLOCK_ROWS = 17 * ROWS  # two blocks of 197 tokens, so that three heads are equal work for two threads; else 36 to 204 rows are within 1 %
MAX_ATTENTION_BITS = 4


def plan_attention(op: Attention, x: Value, q: Value, q_place: int, score_bound: Bound, constants: Constants) -> dict[str, Any]:
    """Units: heads of windows; `plan_operation` makes the halves to pack and the blocks of rows to attend of them.

    q: the value whose first columns are the queries, which lies at `q_place`.
    """
    refuse_widths(op, x)
    k_reach, v_reach = (max(zero, x.high - zero) for zero in (op.k_zero, op.v_zero))
    zeros = {"q_zero": op.q_zero, "k_zero": op.k_zero, "v_zero": op.v_zero}
    steps = {"safe_key_steps": safe_steps(x.high, k_reach), "safe_value_steps": safe_steps(1 << op.top_power, v_reach)}
    blocks = plan_blocks(op, constants) | {"q": q_place, "q_channels": q.shape[1]}
    maps = plan_maps(op, blocks["block_rows"], constants)
    return zeros | steps | blocks | plan_softmax(op, score_bound, v_reach, constants) | maps


def refuse_widths(op: Attention, x: Value) -> None:
    where = f"{op.out.name} Attention"
    if op.attention_bits > MAX_ATTENTION_BITS:
        refuse(where, Refusal.ATTENTION_CODES, f"{op.attention_bits} bits, whose powers leave a byte")
    for name in ("k_zero", "v_zero"):
        zero = getattr(op, name)
        if zero > 128 or x.high - zero > 127:
            refuse(where, Refusal.KEYS_AND_VALUES, f"{x.bits} bits and {name} {zero}")


def plan_blocks(op: Attention, constants: Constants) -> dict[str, Any]:
    """How the work is cut, and the room it needs."""
    tokens, rows, head_dim, scored = op.tokens, op.rows, op.head_dim, len(op.score_heads)
    block_rows = whole_tiles(-(-rows // -(-rows // BLOCK_ROWS)))
    key_column = scored * head_dim if op.queries is None else 0
    slots = np.full(op.heads, -1, np.int32)
    slots[list(op.score_heads)] = np.arange(scored)
    key_bytes, value_bytes = panel_bytes(head_dim, tokens), panel_bytes(tokens, head_dim)
    key_columns, value_columns, row_bytes = padded_columns(tokens), padded_columns(head_dim), padded_row(tokens)
    return {
        "units": op.windows * op.heads,
        "block": 1,
        "words": whole_lines(block_rows * max(row_bytes, 2 * value_columns) + value_columns),
        "bytes": whole_lines(block_rows * (3 * row_bytes + head_dim) + PANEL),
        "windows": op.windows,
        "heads": op.heads,
        "scored": scored,
        "slots": constants.add(slots),
        "window_tokens": tokens,
        "query_rows": rows,
        "key_column": key_column,
        "value_column": key_column + scored * head_dim,
        "head_dim": head_dim,
        "row_bytes": row_bytes,
        "block_rows": block_rows,
        "blocks": -(-rows // block_rows),
        "key_bytes": key_bytes,
        "value_bytes": value_bytes,
        "panel_bytes": op.windows * (scored * key_bytes + op.heads * value_bytes),
        "bias_words": op.windows * scored * key_columns,
    }


def plan_softmax(op: Attention, score_bound: Bound, value_reach: int, constants: Constants) -> dict[str, Any]:
    return (
        softmax.plan_words(op, score_bound, constants)
        | plan_context(op, value_reach, constants)
        | {
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
            "powers": constants.add(powers(op)),
        }
    )


def plan_context(op: Attention, value_reach: int, constants: Constants) -> dict[str, Any]:
    """The numbers of the last step; once more as a row for each channel, where whole tiles are finished in registers."""
    numbers = {
        "multiplier_even": op.multiplier_even,
        "multiplier_odd": op.multiplier_odd,
        "out_shift": op.out_shift,
        "out_zero": op.out_zero,
    }
    places = [constants.add(np.full(padded_columns(op.head_dim), number, np.int32)) for number in numbers.values()]
    zeros = constants.add(np.zeros(padded_columns(op.head_dim), np.int32))
    rows = dict(zip(("even", "odd", "context_shift", "context_zero", "zeros"), [*places, zeros], strict=True))
    return numbers | rows | {"narrow_context": op.out_shift <= 32 and context_reach(op, value_reach) < 1 << 30}


def context_reach(op: Attention, value_reach: int) -> int:
    """The greatest magnitude of the context before its zero point is added."""
    return op.tokens * (value_reach << op.top_power) * (op.multiplier_even + op.multiplier_odd) >> op.out_shift


def powers(op: Attention) -> np.ndarray:
    """uint8 [2, 16]: by code, the operand 2^(top_power - code // 2) of the even and of the odd product; 0 where not its own, or silent."""
    codes = np.arange(op.last_code + 1 - op.last_code_is_zero)
    table = np.zeros((2, 16), np.uint8)
    table[codes % 2, codes] = 1 << (op.top_power - codes // 2)
    return table


def narrow_exponents(op: Attention, score_bound: Bound) -> bool:
    """Whether (m - s) * multiplier and its rounding constant stay within int32."""
    reach = (score_bound[1] - score_bound[0]) * op.score_multiplier
    return op.score_shift < 31 and reach + (1 << op.score_shift) < 1 << 31


def plan_maps(op: Attention, block_rows: int, constants: Constants) -> dict[str, Any]:
    """Frozen codes and excluded pairs in one map of bytes, what it leaves out, what is added by row or pair.

    Keys are in the order of needed.py; strides are 0 where a map is shared.
    """
    tokens, order = op.tokens, needed.key_order(op)
    pairs = np.full((1, 1, 1, tokens), COMPUTED, np.uint8)
    fields = {"row_log2": -1, "row_log2_window": 0, "logit_bias": -1, "logit_bias_window": 0}
    if op.frozen is not None:
        codes = op.frozen.codes << np.uint8(op.attention_bits - op.frozen.bits)
        pairs = np.where(op.frozen.mask, codes | np.uint8(IN_SOFTMAX if op.softmax == "paper" else 0), pairs)
        if op.softmax == "renormalised":
            row_log2 = op.frozen.row_log2
            fields |= {"row_log2": constants.add(row_log2), "row_log2_window": row_log2[0].size if len(row_log2) > 1 else 0}
    if op.excluded is not None:
        pairs = np.where(op.excluded[:, None], np.uint8(EXCLUDED), pairs)
    if op.logit_bias is not None:
        bias = needed.in_order(op.logit_bias, order)
        fields |= {"logit_bias": constants.add(bias), "logit_bias_window": bias[0].size if len(bias) > 1 else 0}
    pairs = needed.in_order(pairs, order)
    pairs = np.pad(pairs, [(0, 0)] * 3 + [(0, padded_row(tokens) - tokens)], constant_values=EXCLUDED)
    strides = [size if extent > 1 else 0 for extent, size in zip(pairs.shape, np.cumprod(pairs.shape[:0:-1])[::-1].tolist(), strict=False)]
    fields |= needed.plan_groups(op, pairs, block_rows, constants) | needed.plan_order(order, constants)
    return fields | {
        "map": constants.add(pairs),
        "map_window": strides[0],
        "map_head": strides[1],
        "map_row": strides[2],
        "all_computed": op.frozen is None and op.excluded is None,
    }


def padded_columns(columns: int) -> int:
    return -(-columns // PANEL) * PANEL


def padded_row(tokens: int) -> int:
    """Bytes of a row of the map, of codes and of operands; words of a row of scores."""
    return -(-tokens // softmax.LANES) * softmax.LANES


def whole_lines(elements: int) -> int:
    return -(-elements // CACHE_LINE) * CACHE_LINE


def panel_bytes(rows: int, columns: int) -> int:
    """Size of a packed right operand of `rows` x `columns`."""
    return padded_columns(columns) * -(-rows // STEP) * STEP


@njit
def pack_heads(op, first, last, batch, memory):
    """Units: the keys, then the values of each head of each window."""
    for unit in range(first, last):
        window, head = unit // 2 // op.heads, unit // 2 % op.heads
        rows = memory.codes[op.x * batch + window * op.window_tokens * op.in_channels :]
        slot, order = memory.ints[op.slots + head], order_of(op, window, head, memory.ints)
        if unit % 2 == 1:
            values = memory.panels[value_panels(op, window, head) :][: op.value_bytes]
            pack_values(op, rows[op.value_column + head * op.head_dim :], order, values)
        elif slot >= 0:
            keys = memory.panels[key_panels(op, window, slot) :][: op.key_bytes]
            bias = memory.panel_bias[key_bias(op, window, slot) : key_bias(op, window, slot + 1)]
            pack_keys(op, rows[op.key_column + slot * op.head_dim :], order, keys, bias)


@njit
def key_panels(op, window, slot):
    """Where a window's keys lie; `window` counts through all images."""
    return window // op.windows * op.panel_bytes + (window % op.windows * op.scored + slot) * op.key_bytes


@njit
def key_bias(op, window, slot):
    """Where the biases of a window's keys lie."""
    return (window * op.scored + slot) * ((op.window_tokens + PANEL - 1) // PANEL * PANEL)


@njit
def value_panels(op, window, head):
    values = op.windows * op.scored * op.key_bytes
    return window // op.windows * op.panel_bytes + values + (window % op.windows * op.heads + head) * op.value_bytes


@njit
def pack_keys(op, rows, order, panels, bias):
    """panels [tokens / 16][head_dim / 4][16][4] = k - k_zero; bias = -q_zero * sum over head_dim of it."""
    steps, tokens = (op.head_dim + STEP - 1) // STEP, op.window_tokens
    panels[:] = 0
    bias[:] = 0
    whole = tokens // PANEL * PANEL if op.head_dim % PANEL == 0 else 0
    for token in range(0, whole, PANEL):
        for left in range(0, op.head_dim, PANEL):
            source, numbers = rows.ctypes.data + left, order.ctypes.data + 4 * token
            target = panels.ctypes.data + (token // PANEL * steps + left // STEP) * STEP_BYTES
            pack_key_chunk(source, op.in_channels, numbers, op.k_zero, target, bias.ctypes.data + 4 * token)  # pyright: ignore[reportCallIssue]
    for token in range(whole, tokens):
        keys = rows[order[token] * op.in_channels :]
        panel = panels[token // PANEL * steps * STEP_BYTES + token % PANEL * STEP :]
        for d in range(op.head_dim):
            bias[token] = np.int32(bias[token] + np.int32(keys[d]))
            panel[d // STEP * STEP_BYTES + d % STEP] = np.int8(np.uint8(keys[d] - np.uint8(op.k_zero)))
    for token in range(tokens):
        bias[token] = np.int32(-op.q_zero * (np.int64(bias[token]) - op.head_dim * op.k_zero))


@njit
def pack_values(op, rows, order, panels):
    """panels [head_dim / 16][tokens / 4][16][4] = v - v_zero."""
    steps, tokens = (op.window_tokens + STEP - 1) // STEP, op.window_tokens
    panels[:] = 0
    whole = tokens // STEP * STEP if op.head_dim % PANEL == 0 else 0
    for token in range(0, whole, STEP):
        for left in range(0, op.head_dim, PANEL):
            source, numbers = rows.ctypes.data + left, order.ctypes.data + 4 * token
            target = panels.ctypes.data + left * steps * STEP + token // STEP * STEP_BYTES
            pack_value_step(source, op.in_channels, numbers, op.v_zero, target)  # pyright: ignore[reportCallIssue]
    for token in range(whole, tokens):
        values = rows[order[token] * op.in_channels :]
        start = token // STEP * STEP_BYTES + token % STEP
        for d in range(op.head_dim):
            panels[start + d // PANEL * steps * STEP_BYTES + d % PANEL * STEP] = np.int8(np.uint8(values[d] - np.uint8(op.v_zero)))


@njit
def keep_no_scores(op, row, rows, batch, taps):
    """Of rows without a computed pair, counted from the head's row `row`: 0 for what the softmax would have found of each."""
    if max(op.tap_scores, op.tap_exponents) >= 0:
        zeros = np.zeros(op.window_tokens, np.int32)
        for r in rows:
            keep(taps, op.tap_scores * batch, op.item_scores, (row + r) * op.window_tokens, zeros)
            keep(taps, op.tap_exponents * batch, op.item_exponents, (row + r) * op.window_tokens, zeros)


@njit
def row_map_start(op, window, head, token):
    return op.map + window % op.windows * op.map_window + head * op.map_head + token * op.map_row


@njit
def log2_of(op, total, ints):
    """log2 of a sum of powers, int64; 0 for 0."""
    if total == 0:
        return np.int64(0)
    lead = bit_length(total) - 1
    mantissa = ((total << op.log2_bits) >> lead) - (np.int64(1) << op.log2_bits)
    return ((lead - op.exp2_bits) << op.exponent_fraction) + np.int64(ints[op.log2 + mantissa])
