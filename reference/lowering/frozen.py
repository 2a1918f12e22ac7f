"""Frozen attention maps in a lowered program: the only part of lowering that depends on what is frozen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from eamsim.arguments import expect_length
from eamsim.constraints import Verified
from eamsim.program import Attention, Frozen, Linear, Operation, Program, scored_heads
from eamsim.unread import with_channels
from reference.attention.freeze import FrozenMap, expect_frozen
from reference.quantisation.fakequant import frozen_mass, on_grid
from reference.quantisation.quantisers import LogSqrt2


def with_frozen(program: Program, frozen: Sequence[FrozenMap | None], grids: Sequence[LogSqrt2]) -> Verified:
    """`program`, lowered with nothing frozen, with a frozen map or none per block, its means as codes of the block's attention grid.

    Under `renormalised` a wholly frozen head loses its q and k columns. Of a ViT's last block whose q has the class token's row alone,
    the first, so have the maps, and one head keeps its q and k. Raises UserError for maps that are not the program's.
    """
    operations: dict[str, Operation] = {op.out.name: op for op in program.operations}
    expect_length("frozen", frozen, len(program.attentions))
    for block, (op, layer, grid) in enumerate(zip(program.attentions, frozen, grids, strict=True)):
        if layer is None:
            continue
        expect_frozen(block, layer, (op.windows * op.heads, op.tokens, op.tokens), op.heads)
        maps = _frozen(layer, grid, op)
        if op.queries is not None and not maps.mask.any():
            continue
        scored = list(scored_heads(op, maps, op.softmax))
        operations[op.out.name] = replace(op, score_heads=tuple(scored), frozen=maps)
        for name in op.inputs if len(scored) < op.heads else ():
            linear = operations[name]
            if isinstance(linear, Linear):
                parts = np.arange(linear.out.shape[1]).reshape(-1, op.heads, op.head_dim)
                of_qk = len(parts) - (name == op.x)  # beside them x has v, of every head
                operations[name] = with_channels(linear, np.concatenate([parts[:of_qk, scored].ravel(), parts[of_qk:].ravel()]), name)
    return Verified(program.name, program.image, tuple(operations.values()), program.datapath)


def _frozen(layer: FrozenMap, grid: LogSqrt2, op: Attention) -> Frozen:
    """Where nothing of a head is left but excluded pairs, these are marked too: they take no part, and the head needs no scores."""
    by_head = (-1, op.heads, op.tokens, op.tokens)
    codes = np.where(layer.mask, grid.codes(torch.from_numpy(layer.mean)).numpy(), 0).astype(np.uint8)
    row_log2 = np.rint(-np.log2(1 - frozen_mass(on_grid(layer, grid))) * (1 << op.fraction_bits)).astype(np.int32)
    mask = layer.mask.reshape(by_head).copy()  # the program's own: its arrays become read-only
    if op.excluded is not None and len(mask) == op.windows:
        whole = np.all(mask | op.excluded[:, None], axis=(0, 2, 3))
        mask = mask | whole[:, None, None]
    rows = np.arange(op.rows)
    mask, codes, row_log2 = (array.take(rows, axis=2) for array in (mask, codes.reshape(by_head), row_log2.reshape(by_head[:3])))
    return Frozen(mask, codes, grid.bits, row_log2)
