"""Rows that nobody reads are not computed: of a ViT's last block, whose class token alone is classified, all but one."""

from __future__ import annotations

from dataclasses import replace
from typing import assert_never

import numpy as np

from eamsim.constraints import Verified, expect_verified
from eamsim.program import Attention, Embed, Gather, InputQuant, LayerNorm, Linear, Operation, Pool, Residual

Rows = dict[str, np.ndarray]
"""By value, the rows that are computed: ascending numbers."""


def without_unread_rows(program: Verified) -> Verified:
    """The program with equal outputs whose LayerNorms, Linears and Gathers of rows compute the rows alone that are read.

    Values keep their names. Where an operation NAME takes fewer rows than a value has, a Gather NAME.x or NAME.operand brings them.
    """
    expect_verified(program)
    rows = needed_rows(program)
    return replace(program, operations=tuple(each for op in program.operations for each in _with_rows(program, op, rows)))


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
            case InputQuant() | Gather() | Embed() | Attention() | Pool():
                out[:] = needed[op.x][:] = True
            case _:
                assert_never(op)
    return {name: np.flatnonzero(rows) for name, rows in needed.items()}


def _takes_rows(program: Verified, op: Gather) -> bool:
    x, out = program.values[op.x].shape, op.out.shape
    return len(x) == len(out) == 2 and x[1] == out[1] == op.granule


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
        case InputQuant() | Embed() | Attention() | Pool():
            raise AssertionError(f"{op.out.name}: all rows of its values are needed")
        case _:
            assert_never(op)


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
