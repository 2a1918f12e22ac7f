"""The whole forward pass as one compiled function."""

from __future__ import annotations

from pathlib import Path

from eamsim.compiled.compiler import kept, njit
from eamsim.engine.kernels.attend import attend
from eamsim.engine.kernels.attention import pack_heads
from eamsim.engine.kernels.digest import digest
from eamsim.engine.kernels.layernorm import layer_norm
from eamsim.engine.kernels.linear import linear
from eamsim.engine.kernels.movement import embed, gather, input_quant, pool, publish
from eamsim.engine.plan import ATTEND, DIGEST, EMBED, GATHER, INPUT_QUANT, LAYER_NORM, LINEAR, PACK_HEADS, POOL, PUBLISH
from eamsim.engine.team import claim, finish, wait_for

NONE = -1
SOURCES = Path(__file__).parent
"""What the machine code of all kernels depends on."""


@njit
def share_of(units, largest, threads):
    """How many tasks each thread has: of about `largest` units at most."""
    return (units + largest * threads - 1) // (largest * threads)


@njit
def run_task(isa, rounding, records, index, first, last, batch, memory):
    """Units [first, last) of all images' units of one operation; whether it is one of a known kind."""
    op = records[index]
    if op.kind == LINEAR:
        linear(isa, rounding, op, first, last, batch, memory)
    elif op.kind == ATTEND:
        attend(isa, rounding, op, first, last, batch, memory)
    elif op.kind == PACK_HEADS:
        pack_heads(op, first, last, batch, memory)
    elif op.kind == LAYER_NORM:
        layer_norm(rounding, op, first, last, batch, memory)
    elif op.kind == GATHER:
        if op.x_signed:
            gather(op, first, last, batch, memory, memory.values)
        else:
            gather(op, first, last, batch, memory, memory.codes)
    elif op.kind == EMBED:
        embed(op, first, last, batch, memory)
    elif op.kind == INPUT_QUANT:
        input_quant(op, first, last, batch, memory)
    elif op.kind == POOL:
        pool(rounding, op, first, last, batch, memory)
    elif op.kind == PUBLISH:
        publish(op, first, last, batch, memory)
    elif op.kind == DIGEST:
        digest(op, first, last, batch, memory)
    else:
        return False
    return True


@kept(SOURCES)
@njit(nogil=True)
def forward(isa, rounding, records, batch, thread, threads, team, memory):
    """Called by each of `threads` threads with the same `team` (see team.py) and a memory with its own scratch.

    A thread takes its own share of every operation first, the rows whose operands its cache has from the operation before, then what
    others have left. Digests are waited for by those operations alone that need their room. Returns the index of an operation that this
    thread has no kernel for, or NONE: raising here would leave the others waiting.
    """
    unknown = NONE
    for index in range(len(records)):
        op = records[index]
        for taken in range(op.awaited, op.awaited_end):
            wait_for(team, threads, taken, share_of(records[taken].units * batch, records[taken].block, threads) * threads)
        units = op.units * batch
        grains = (units + op.grain - 1) // op.grain
        share = share_of(units, op.block, threads)
        tasks = share * threads
        for turn in range(threads):
            owner = (thread + turn) % threads
            number = claim(team, threads, index, owner)
            while number < share:
                task = owner * share + number
                first, last = task * grains // tasks * op.grain, (task + 1) * grains // tasks * op.grain
                if first < last and not run_task(isa, rounding, records, index, first, min(last, units), batch, memory):
                    unknown = index
                finish(team, threads, index, tasks)
                number = claim(team, threads, index, owner)
        if op.kind != DIGEST:
            wait_for(team, threads, index, tasks)
    return unknown
