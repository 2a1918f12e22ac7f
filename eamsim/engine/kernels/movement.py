"""InputQuant, Gather, Embed, Pool, and the copy of a finished value to its tap."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from eamsim.engine.kernels.fixedpoint import clip, round_shift
from eamsim.engine.memory import Constants, keep, tap_fields
from eamsim.program import Embed, Gather, InputQuant, Pool

FIELDS = (
    *("table", "indices", "granule", "prefix", "prefix_tokens", "position", "tokens", "ratio", "ratio_shift", "ratio_zero"),
    *tap_fields("out"),
)
PIXELS, ELEMENTS, TOKENS = 1 << 12, 1 << 14, 32


def plan_input_quant(op: InputQuant, constants: Constants) -> dict[str, Any]:
    """Units: pixels."""
    return {"units": op.out.size // 3, "block": PIXELS, "table": constants.add(op.table)}


def plan_gather(op: Gather, constants: Constants) -> dict[str, Any]:
    """Units: granules."""
    block = max(1, ELEMENTS // op.granule)
    return {"units": len(op.indices), "block": block, "indices": constants.add(op.indices), "granule": op.granule}


def plan_embed(op: Embed, constants: Constants) -> dict[str, Any]:
    """Units: tokens of out."""
    prefix, position = constants.add(op.prefix), constants.add(op.position)
    tokens = op.out.shape[0]
    return {"units": tokens, "block": TOKENS, "prefix": prefix, "prefix_tokens": len(op.prefix), "position": position, "tokens": tokens}


def plan_pool(op: Pool, tokens: int) -> dict[str, Any]:
    """Units: images."""
    ratio = {"ratio": op.multiplier, "ratio_shift": op.shift, "ratio_zero": op.zero}
    return {"units": 1, "block": 1, "tokens": tokens} | ratio


@njit
def input_quant(op, first, last, batch, memory):
    pixels = memory.codes[op.x * batch + 3 * first : op.x * batch + 3 * last]
    out = memory.codes[op.out * batch + 3 * first : op.out * batch + 3 * last]
    for channel in range(3):
        table = memory.tables[op.table + 256 * channel : op.table + 256 * (channel + 1)]
        for i in range(channel, len(out), 3):
            out[i] = table[pixels[i]]


@njit
def gather(op, first, last, batch, memory, activations):
    """activations: the codes or the values, whichever x and out both are."""
    granule = op.granule
    for unit in range(first, last):
        image = unit // op.units
        source = op.x * batch + image * op.x_size + np.int64(memory.ints[op.indices + unit - image * op.units]) * granule
        x, out = activations[source : source + granule], activations[op.out * batch + unit * granule :]
        for i in range(granule):
            out[i] = x[i]


@njit
def embed(op, first, last, batch, memory):
    channels = op.channels
    for row in range(first, last):
        image = row // op.tokens
        token = row - image * op.tokens
        out = memory.values[op.out * batch + row * channels : op.out * batch + (row + 1) * channels]
        if token < op.prefix_tokens:
            prefix = memory.ints[op.prefix + token * channels : op.prefix + (token + 1) * channels]
            for i in range(channels):
                out[i] = prefix[i]
            continue
        token -= op.prefix_tokens
        start = op.x * batch + image * op.x_size + token * channels
        x = memory.values[start : start + channels]
        position = memory.ints[op.position + token * channels : op.position + (token + 1) * channels]
        for i in range(channels):
            out[i] = np.int32(clip(np.int64(x[i]) + np.int64(position[i]), op.low, op.high))


@njit
def pool(rounding, op, first, last, batch, memory):
    for image in range(first, last):
        out = memory.codes[op.out * batch + image * op.channels : op.out * batch + (image + 1) * op.channels]
        for channel in range(op.channels):
            total = np.int64(0)
            for token in range(op.tokens):
                at = op.x * batch + image * op.x_size + token * op.channels + channel
                total += np.int64(memory.values[at]) if op.x_signed else np.int64(memory.codes[at])
            scaled = round_shift(rounding, np.int64(total * op.ratio), op.ratio_shift) + op.ratio_zero
            out[channel] = np.uint8(clip(scaled, op.low, op.high))


@njit
def publish(op, first, last, batch, memory):
    """Copy elements of a finished value to its tap."""
    start, end = op.x * batch + first, op.x * batch + last
    if op.x_signed:
        keep(memory.taps, op.tap_out * batch, op.item_out, first, memory.values[start:end])
    else:
        keep(memory.taps, op.tap_out * batch, op.item_out, first, memory.codes[start:end])
