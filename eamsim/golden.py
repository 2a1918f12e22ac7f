"""The golden interpreter: the executable form of docs/spec/datapath.md. Slow, and obviously right.

One function per operation, in int64, in the words of the page. Where any other consumer of a program disagrees
with this file, that consumer is wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import assert_never

import numpy as np

from eamsim.arguments import PIXELS, expect_array, expect_type
from eamsim.constraints import Verified, expect_verified
from eamsim.intmath import bit_length, isqrt, narrow, round_shift
from eamsim.program import (
    Attention,
    Datapath,
    Embed,
    Gather,
    Gelu,
    InputQuant,
    LayerNorm,
    Linear,
    Operation,
    Pool,
    Raw,
    Requant,
    Residual,
    Value,
)

Publish = Callable[[str, np.ndarray], None]
Values = dict[str, np.ndarray]


def run(program: Verified, image: np.ndarray, taps: dict[str, np.ndarray] | None = None) -> np.ndarray:
    """Execute a program on one uint8 image [height, width, 3]; return the last value, flattened, int64.

    taps: a dict that receives every tap (docs/spec/datapath.md section 4) as an int64 array under its name. Raises UserError.
    """
    expect_verified(program)
    expect_array("image", image, "uint8", program.image.shape, advice=PIXELS)
    expect_type("taps", taps, dict, type(None))
    tap: Publish = (lambda name, value: None) if taps is None else taps.__setitem__
    values: Values = {program.image.name: image.astype(np.int64)}
    for op in program.operations:
        values[op.out.name] = execute(op, values, program.datapath, tap)
        tap(op.out.name, values[op.out.name])
    return values[program.output.name].ravel()


def execute(op: Operation, values: Values, datapath: Datapath, tap: Publish) -> np.ndarray:
    """One operation: its output, int64, of the shape of `op.out`."""
    x = values[op.x]
    match op:
        case InputQuant():
            return input_quant(op, x)
        case Gather():
            return gather(op, x)
        case Embed():
            return embed(op, x)
        case LayerNorm():
            return layer_norm(op, x, datapath, tap)
        case Linear():
            return linear(op, x, values, datapath, tap)
        case Attention():
            return attention(op, x, values, datapath, tap)
        case Pool():
            return pool(op, x, datapath)
        case _:
            assert_never(op)


def clip(x: np.ndarray, value: Value) -> np.ndarray:
    return np.clip(x, value.low, value.high)


def input_quant(op: InputQuant, x: np.ndarray) -> np.ndarray:
    return op.table.astype(np.int64)[np.arange(3), x]


def gather(op: Gather, x: np.ndarray) -> np.ndarray:
    return x.reshape(-1, op.granule)[op.indices].reshape(op.out.shape)


def embed(op: Embed, x: np.ndarray) -> np.ndarray:
    return np.concatenate([op.prefix.astype(np.int64), clip(x + op.position, op.out)])


def layer_norm(op: LayerNorm, x: np.ndarray, datapath: Datapath, tap: Publish) -> np.ndarray:
    channels = x.shape[1]
    total = x.sum(axis=1, keepdims=True)
    squares = (x * x).sum(axis=1, keepdims=True)
    centred = channels * x - total
    variance = channels * squares - total * total + op.variance_offset
    deviation = isqrt(variance)
    exponent = bit_length(deviation) + op.reciprocal_bits
    reciprocal = (np.int64(1) << exponent) // deviation
    normalised = round_shift(centred * reciprocal, exponent - op.fraction_bits, datapath.rounding)
    tap(f"{op.out.name}.variance", variance[:, 0])
    tap(f"{op.out.name}.reciprocal", reciprocal[:, 0])
    tap(f"{op.out.name}.normalised", normalised)
    return clip(round_shift(normalised * op.gain + op.offset, op.shift, datapath.rounding), op.out)


def linear(op: Linear, x: np.ndarray, values: Values, datapath: Datapath, tap: Publish) -> np.ndarray:
    weight = op.weight.astype(np.int64) - op.weight_zero
    operand = x - op.x_zero if op.levels is None else op.levels.astype(np.int64)[x]
    acc = narrow(operand @ weight + op.bias, datapath.accumulator_bits, datapath.overflow)
    tap(f"{op.out.name}.acc", acc)
    epilogue = op.epilogue
    multiplier, shift = epilogue.multiplier.astype(np.int64), epilogue.shift.astype(np.int64)
    scaled = acc * multiplier
    match epilogue:
        case Requant():
            return clip(round_shift(scaled, shift, datapath.rounding) + epilogue.zero, op.out)
        case Gelu():
            index = round_shift(scaled, shift, datapath.rounding) + epilogue.index_zero
            index = np.clip(index, 0, (1 << epilogue.index_bits) - 1)
            tap(f"{op.out.name}.index", index)
            return epilogue.table.astype(np.int64)[index]
        case Residual():
            aligned = values[epilogue.operand] << (shift - epilogue.exponent_change)
            return clip(round_shift(aligned + scaled, shift, datapath.rounding), op.out)
        case Raw():
            return clip(round_shift(scaled, shift, datapath.rounding), op.out)
        case _:
            assert_never(epilogue)


def attention(op: Attention, x: np.ndarray, values: Values, datapath: Datapath, tap: Publish) -> np.ndarray:
    name, scored = op.out.name, len(op.score_heads)
    parts = by_head(op, x, op.tokens)
    if op.queries is None:
        q, k, v = np.split(parts, [scored, 2 * scored], axis=1)
    else:
        q, (k, v) = by_head(op, values[op.queries.operand], op.rows), np.split(parts, [scored], axis=1)
    excluded, frozen, computed = pair_masks(op)
    scores = np.zeros((op.windows, op.heads, op.rows, op.tokens), np.int64)
    scores[:, np.array(op.score_heads, np.int64)] = (q - op.q_zero) @ (k - op.k_zero).swapaxes(2, 3)
    if op.logit_bias is not None:
        scores = scores + op.logit_bias
    scores = np.where(computed, narrow(scores, datapath.accumulator_bits, datapath.overflow), 0)
    tap(f"{name}.scores", scores)
    codes = softmax_codes(op, scores, computed, datapath, tap)
    if op.frozen is not None:
        codes = np.where(frozen, op.frozen.codes.astype(np.int64) << (op.attention_bits - op.frozen.bits), codes)
    codes = np.where(excluded, op.last_code, codes)
    tap(f"{name}.codes", codes)
    silent = excluded | (codes == op.last_code) if op.last_code_is_zero else np.broadcast_to(excluded, codes.shape)
    power = np.where(silent, 0, np.int64(1) << (op.top_power - codes // 2))
    even = np.where(codes % 2 == 0, power, 0) @ (v - op.v_zero)
    odd = np.where(codes % 2 == 1, power, 0) @ (v - op.v_zero)
    even = narrow(even, datapath.accumulator_bits, datapath.overflow)
    odd = narrow(odd, datapath.accumulator_bits, datapath.overflow)
    tap(f"{name}.even", even)
    tap(f"{name}.odd", odd)
    out = round_shift(even * op.multiplier_even + odd * op.multiplier_odd, op.out_shift, datapath.rounding)
    return clip(out.transpose(0, 2, 1, 3).reshape(op.out.shape) + op.out_zero, op.out)


def by_head(op: Attention, x: np.ndarray, rows: int) -> np.ndarray:
    """[windows, columns / head_dim, rows, head_dim]."""
    return x.reshape(op.windows, rows, -1, op.head_dim).transpose(0, 2, 1, 3)


def pair_masks(op: Attention) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """bool [windows, heads, rows, tokens]: pairs that take no part, frozen pairs, pairs whose score is computed."""
    shape = (op.windows, op.heads, op.rows, op.tokens)
    excluded = np.zeros(shape, bool) if op.excluded is None else np.broadcast_to(op.excluded[:, None], shape)
    frozen = np.zeros(shape, bool) if op.frozen is None else np.broadcast_to(op.frozen.mask, shape)
    return excluded, frozen, ~excluded & ~frozen if op.softmax == "renormalised" else ~excluded


def softmax_codes(op: Attention, scores: np.ndarray, computed: np.ndarray, datapath: Datapath, tap: Publish) -> np.ndarray:
    """Log-sqrt2 codes of the softmax over the computed pairs of each row; meaningless at other pairs."""
    f = op.fraction_bits
    top = np.where(computed, scores, np.iinfo(np.int64).min).max(axis=3, keepdims=True)
    exponents = round_shift(np.where(computed, top - scores, 0) * op.score_multiplier, op.score_shift, datapath.rounding)
    tap(f"{op.out.name}.exponents", exponents)
    whole = np.minimum(exponents >> f, op.exp2_bits + 1)  # shifting 2^exp2_bits any further leaves 0 as well
    terms = np.where(computed, op.exp2.astype(np.int64)[exponents & ((1 << f) - 1)] >> whole, 0)
    log_sum = log2_fixed(op, terms.sum(axis=3))
    tap(f"{op.out.name}.log_sum", log_sum)
    row_log2 = 0
    if op.frozen is not None and op.softmax == "renormalised":
        row_log2 = op.frozen.row_log2
    offset = log_sum + row_log2 + op.log2_scale
    codes = round_shift(2 * (exponents + offset[..., None]), f, datapath.rounding)
    return np.clip(codes, 0, op.last_code)


def log2_fixed(op: Attention, total: np.ndarray) -> np.ndarray:
    """log2(total) - exp2_bits with f fractional bits, from the leading one and a table; 0 where total is 0."""
    lead = bit_length(np.maximum(total, 1)) - 1
    mantissa = ((total << op.log2_bits) >> lead) & (len(op.log2) - 1)
    log2 = ((lead - op.exp2_bits) << op.fraction_bits) + op.log2.astype(np.int64)[mantissa]
    return np.where(total > 0, log2, 0)


def pool(op: Pool, x: np.ndarray, datapath: Datapath) -> np.ndarray:
    total = x.sum(axis=0, keepdims=True)
    return clip(round_shift(total * op.multiplier, op.shift, datapath.rounding) + op.zero, op.out)
