"""Rows that nobody reads are not computed: of a ViT's last block, whose class token alone is classified, all but one, but for k and v."""

from __future__ import annotations

from dataclasses import replace
from typing import assert_never

import numpy as np

from eamsim.constraints import Verified, expect_verified
from eamsim.program import (
    Attention,
    Embed,
    Frozen,
    Gather,
    InputQuant,
    LayerNorm,
    Linear,
    Operation,
    Pool,
    Queries,
    Requant,
    Residual,
    Value,
)

Rows = dict[str, np.ndarray]
"""By value, the rows that are computed: ascending numbers."""


def without_unread_rows(program: Verified) -> Verified:
    """The program with equal outputs whose LayerNorms, Linears, Gathers of rows and Attentions compute the rows alone that are read.

    Values keep their names. Where an operation NAME takes fewer rows than a value has, a Gather NAME.x or NAME.operand brings them; an
    Attention NAME of one window has its q from a Linear NAME.q, k and v from NAME.kv, if one Linear made all three for it alone.
    """
    expect_verified(program)
    rows, operations = needed_rows(program), []
    for op in program.operations:
        if isinstance(op, Attention) and len(rows[op.out.name]) < op.out.shape[0]:
            operations = [other for other in operations if other.out.name != op.x]  # the Linear of q, k and v, which it takes apart
        operations += _with_rows(program, op, rows)
    return replace(program, operations=tuple(operations))


def needed_rows(program: Verified) -> Rows:
    """Found backwards from the output; a value without a reader, which may still be a tap, keeps all of its rows."""
    needed = {name: np.zeros(value.shape[0], np.bool_) for name, value in program.values.items()}
    for op in reversed(program.operations):
        out = needed[op.out.name]
        if not out.any():
            out[:] = True
        match op:
            case LayerNorm() | Linear():
                for name in op.inputs:
                    needed[name] |= out
            case Gather() if _takes_rows(program, op):
                needed[op.x][op.indices[out]] = True
            case Attention() if _splits(program, op):
                needed[op.x][:] = True
            case InputQuant() | Gather() | Embed() | Attention() | Pool():
                for name in (*op.inputs, op.out.name):
                    needed[name][:] = True
            case _:
                assert_never(op)
    return {name: np.flatnonzero(rows) for name, rows in needed.items()}


def _takes_rows(program: Verified, op: Gather) -> bool:
    x, out = program.values[op.x].shape, op.out.shape
    return len(x) == len(out) == 2 and x[1] == out[1] == op.granule


def _splits(program: Verified, op: Attention) -> bool:
    """Whether its q can have rows of their own."""
    linear = own_linear(program, op.x)
    return op.windows == 1 and op.queries is None and bool(op.score_heads) and linear is not None and isinstance(linear.epilogue, Requant)


def own_linear(program: Verified, name: str) -> Linear | None:
    """The Linear that makes a value for one reader alone; None where something else makes it, or others read it too."""
    readers = sum(name in op.inputs for op in program.operations)
    made = next((op for op in program.operations if op.out.name == name), None)
    return made if isinstance(made, Linear) and readers == 1 and made.out is not program.output else None


def with_channels(op: Linear, channels: np.ndarray, name: str) -> Linear:
    """The layer with these output channels alone, under a name; its epilogue is a Requant."""
    epilogue = op.epilogue
    assert isinstance(epilogue, Requant)
    return replace(
        op,
        out=replace(op.out, name=name, shape=(op.out.shape[0], len(channels))),
        weight=np.ascontiguousarray(op.weight[:, channels]),
        weight_zero=op.weight_zero[channels],
        bias=op.bias[channels],
        epilogue=Requant(epilogue.multiplier[channels], epilogue.shift[channels], epilogue.zero[channels]),
    )


def _with_rows(program: Verified, op: Operation, rows: Rows) -> list[Operation]:
    """The operation on the rows that are computed of its values, after the Gathers that it needs."""
    if all(len(rows[name]) == program.values[name].shape[0] for name in (*op.inputs, op.out.name)):
        return [op]
    out = replace(op.out, shape=(len(rows[op.out.name]), op.out.shape[1]))
    match op:
        case LayerNorm():
            before, x = _picked(program, op, "x", op.x, rows)
            return [*before, replace(op, x=x, out=out)]
        case Linear():
            before, x = _picked(program, op, "x", op.x, rows)
            if not isinstance(epilogue := op.epilogue, Residual):
                return [*before, replace(op, x=x, out=out)]
            beside, operand = _picked(program, op, "operand", epilogue.operand, rows)
            return [*before, *beside, replace(op, x=x, out=out, epilogue=replace(epilogue, operand=operand))]
        case Gather():
            return [replace(op, out=out, indices=_places(rows[op.x], op.indices[rows[op.out.name]]))]
        case Attention():
            return _with_query_rows(program, op, out, rows)
        case InputQuant() | Embed() | Pool():
            raise AssertionError(f"{op.out.name}: all rows of its values are needed")
        case _:
            assert_never(op)


def _with_query_rows(program: Verified, op: Attention, out: Value, rows: Rows) -> list[Operation]:
    """The Linears of q and of k and v, and the Attention on the query rows that are computed."""
    linear, queries, name = own_linear(program, op.x), rows[op.out.name], op.out.name
    assert linear is not None
    q, kv = np.split(np.arange(linear.out.shape[1]), [len(op.score_heads) * op.head_dim])
    of_q, of_kv = with_channels(linear, q, f"{name}.q"), with_channels(linear, kv, f"{name}.kv")
    before, x = _picked(program, of_q, "x", linear.x, rows | {of_q.out.name: queries})
    frozen, bias, excluded = op.frozen, op.logit_bias, op.excluded
    if frozen is not None:
        mask, codes, row_log2 = (array.take(queries, axis=2) for array in (frozen.mask, frozen.codes, frozen.row_log2))
        frozen = Frozen(mask, codes, frozen.bits, row_log2)
    changed = replace(
        op,
        x=of_kv.out.name,
        out=out,
        frozen=frozen,
        logit_bias=None if bias is None else bias.take(queries, axis=2),
        excluded=None if excluded is None else excluded.take(queries, axis=1),
        queries=Queries(of_q.out.name, op.tokens),
    )
    return [of_kv, *before, replace(of_q, x=x, out=replace(of_q.out, shape=(len(queries), len(q)))), changed]


def _picked(program: Verified, op: Operation, field: str, name: str, rows: Rows) -> tuple[list[Operation], str]:
    """The value that holds the operation's rows of the value `name`, and the Gather that makes it if they are not all that it has."""
    own, value = rows[op.out.name], program.values[name]
    if np.array_equal(rows[name], own):
        return [], name
    out = replace(value, name=f"{op.out.name}.{field}", shape=(len(own), value.shape[1]))
    return [Gather(name, out, _places(rows[name], own), value.shape[1])], out.name


def _places(rows: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Where the wanted rows lie among the computed."""
    return np.searchsorted(rows, wanted).astype(np.int32)
