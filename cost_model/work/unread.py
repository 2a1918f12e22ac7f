"""Multiply-accumulates whose results nobody reads: a ViT's head reads the class token, and the last block computes all the others."""

from __future__ import annotations

from typing import assert_never

import numpy as np

from eamsim.constraints import Verified, expect_verified
from eamsim.program import Attention, Embed, Gather, InputQuant, LayerNorm, Linear, Pool


def read_elements(program: Verified) -> dict[str, np.ndarray]:
    """Of every value, bool of its shape: whether the output depends on that element. Found backwards from the output.

    Whatever is frozen, a row of attention that is read reads its q, and all k and v of its head and window.
    """
    read = {name: np.zeros(value.shape, np.bool_) for name, value in program.values.items()}
    read[program.output.name][:] = True
    for op in reversed(program.operations):
        out = read[op.out.name]
        if isinstance(op, Attention):
            for name, part in zip(op.inputs, _read_of_attention(op, out), strict=True):
                read[name] |= part
            continue
        read[op.x] |= _read_of_input(program, op, out)
        for operand in op.inputs[1:]:  # of a residual sum, element by element
            read[operand] |= out
    return read


def _read_of_input(program: Verified, op: InputQuant | Gather | Embed | LayerNorm | Linear | Pool, out: np.ndarray) -> np.ndarray:
    """bool, to be broadcast over `op.x`: what the elements `out` of the output that are read depend on."""
    match op:
        case Linear() | LayerNorm():
            return np.logical_or.reduce(out, axis=1, keepdims=True)
        case Gather():
            x = np.zeros(program.values[op.x].shape, np.bool_)
            elements = op.indices.astype(np.int64)[:, None] * op.granule + np.arange(op.granule)
            x.reshape(-1)[elements[out.reshape(elements.shape)]] = True
            return x
        case Embed():
            return out[len(op.prefix) :]
        case Pool() | InputQuant():
            return out
        case _:
            assert_never(op)


def _read_of_attention(op: Attention, out: np.ndarray) -> tuple[np.ndarray, ...]:
    """bool like each input: q, k and v together, or k and v, then q."""
    context = out.reshape(op.windows, op.rows, op.heads, op.head_dim)
    q = np.logical_or.reduce(context, axis=3, keepdims=True)[:, :, list(op.score_heads)].repeat(op.head_dim, axis=3)
    k, v = (np.logical_or.reduce(part, axis=1, keepdims=True).repeat(op.tokens, axis=1) for part in (q, context))
    parts = ([q, k, v],) if op.queries is None else ([k, v], [q])
    return tuple(np.concatenate(part, axis=2).reshape(op.windows * part[0].shape[1], -1) for part in parts)


def unread_macs(program: Verified) -> dict[str, int]:
    """MACs of results that nothing reads, by the name of the operation that spends them: no more than it has."""
    expect_verified(program)
    read, found = read_elements(program), {}
    for op in program.operations:
        unread = ~read[op.out.name]
        if isinstance(op, Linear):
            found[op.out.name] = int(unread.sum()) * len(op.weight)
        elif isinstance(op, Attention):
            found[op.out.name] = int(unread.sum()) * op.tokens + unread_scores(op, unread) * op.head_dim
    return {name: macs for name, macs in found.items() if macs}


def unread_scores(op: Attention, unread: np.ndarray) -> int:
    """Scores computed for rows of a head of which nothing is read, as `counts.computed_scores` counts them; unread: bool like `op.out`."""
    rows = np.logical_and.reduce(unread.reshape(op.windows, op.rows, op.heads, op.head_dim), axis=3).swapaxes(1, 2)
    if op.frozen is None or op.softmax == "paper":
        return int(rows.sum()) * op.tokens
    computed = (~op.frozen.mask).sum(axis=3)
    return int((computed * rows).sum())
