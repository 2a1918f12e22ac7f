"""Multiply-accumulates whose results nobody reads: a ViT's head reads the class token, and the last block computes all the others."""

from __future__ import annotations

from typing import assert_never

import numpy as np

from cost_model.ledger import attention_linear
from eamsim.program import Attention, Embed, Gather, InputQuant, LayerNorm, Linear, Pool, Program, Residual


def read_rows(program: Program) -> dict[str, np.ndarray]:
    """Of every value, bool along its first axis: whether the output depends on that row. Found backwards from the output.

    Attention reads all k and v of a window of which any row is read, hence the whole rows of q, k and v.
    """
    read = {name: np.zeros(value.shape[0], np.bool_) for name, value in program.values.items()}
    read[program.output.name][:] = True
    for op in reversed(program.operations):
        rows = read[op.out.name]
        match op:
            case Linear():
                read[op.x] |= rows
                if isinstance(op.epilogue, Residual):
                    read[op.epilogue.operand] |= rows
            case Attention():
                read[op.x] |= np.repeat(rows.reshape(op.windows, -1).any(axis=1), op.tokens)
            case Gather():
                moves_rows = op.granule == program.values[op.x].shape[-1] == op.out.shape[-1]
                read[op.x][op.indices[rows] if moves_rows else slice(None)] = True
            case LayerNorm():
                read[op.x] |= rows
            case Embed():
                read[op.x] |= rows[len(op.prefix) :]
            case Pool() | InputQuant():
                read[op.x][:] = True
            case _:
                assert_never(op)
    return read


def unread_macs(program: Program) -> dict[str, int]:
    """MACs of rows that nothing reads, by the name of an operation's output; an Attention's include its q projection."""
    read, found = read_rows(program), {}
    for op in program.operations:
        unread = ~read[op.out.name]
        if isinstance(op, Linear):
            found[op.out.name] = int(unread.sum()) * op.weight.size
        elif isinstance(op, Attention):
            q = len(op.score_heads) * len(attention_linear(program, op).weight)
            found[op.out.name] = (int(unread.sum()) * (q + op.heads * op.tokens) + unread_scores(op, unread)) * op.head_dim
    return {name: macs for name, macs in found.items() if macs}


def unread_scores(op: Attention, unread: np.ndarray) -> int:
    """Scores computed for these rows, bool [windows x tokens], as `counts.computed_scores` counts them."""
    if op.frozen is None or op.softmax == "paper":
        return int(unread.sum()) * op.heads * op.tokens
    computed = (~op.frozen.mask).sum(axis=(1, 3))
    return int(np.tile(computed, (op.windows // len(computed), 1)).ravel()[unread].sum())
