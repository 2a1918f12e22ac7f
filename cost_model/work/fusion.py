"""Two operations as one: of what the first makes for the second alone, only a part is alive at a time."""

from __future__ import annotations

from dataclasses import dataclass

from eamsim.constraints import Verified
from eamsim.program import Attention, Gelu, Linear
from eamsim.unread import own_linear


@dataclass(frozen=True)
class Fused:
    """first, second: names of their outputs; part of the first's, out of `whole`, is alive. rows: of a block, for both, if in blocks."""

    first: str
    second: str
    part: int
    whole: int
    rows: int | None = None


def fused_pairs(program: Verified, by_head: bool, mlp_rows: int | None, batch: int) -> tuple[Fused, ...]:
    """By head, a Linear of q, k and v with its Attention; by rows, a Linear with a GELU and the Linear that follows it at once."""
    if not by_head and mlp_rows is None:
        return ()
    pairs = []
    for before, op in zip(program.operations, program.operations[1:], strict=False):
        if not isinstance(before, Linear) or before.out.name not in op.inputs or own_linear(program, before.out.name) is None:
            continue
        if by_head and isinstance(op, Attention):
            pairs.append(Fused(before.out.name, op.out.name, 1, op.heads))
        rows = batch * before.out.shape[0]
        if mlp_rows is not None and mlp_rows < rows and isinstance(before.epilogue, Gelu) and isinstance(op, Linear):
            pairs.append(Fused(before.out.name, op.out.name, mlp_rows, rows, mlp_rows))
    return tuple(pairs)
