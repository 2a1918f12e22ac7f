"""Attention heads removed from a lowered program, the mean of their output kept in the bias of the layer that reads it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from eamsim.arguments import expect_length
from eamsim.constraints import Verified
from eamsim.errors import UserError
from eamsim.program import Attention, Gather, Linear, Operation
from eamsim.unread import needed_rows, with_channels
from reference.lowering.layers import int32


@dataclass(frozen=True, eq=False)
class MeanOutput:
    """Sums over images and rows of an Attention's output codes, int64 [channels], and how many rows were added up: the mean, exactly."""

    sums: np.ndarray
    rows: int


def mean_outputs(program: Verified, outputs: Iterable[Mapping[str, np.ndarray]]) -> dict[str, MeanOutput]:
    """Of every Attention, by the name of its output; of the rows alone that something reads.

    outputs: of batches of images, each Attention's output codes by name, int64 [batch, rows, channels].
    """
    needed, found = needed_rows(program), {}
    for batch in outputs:
        for op in program.attentions:
            codes = batch[op.out.name][:, needed[op.out.name]].reshape(-1, op.out.shape[1])
            so_far = found.get(op.out.name, MeanOutput(np.zeros(op.out.shape[1], np.int64), 0))
            found[op.out.name] = MeanOutput(so_far.sums + codes.sum(axis=0), so_far.rows + len(codes))
    return found


def without_heads(program: Verified, removed: Sequence[Collection[int]], means: Mapping[str, MeanOutput]) -> Verified:
    """`program`, lowered with nothing frozen, without these heads of each block: an Attention of fewer heads.

    Their q, k and v columns and their rows of the projection's weights are gone, and its bias has what their mean output would add,
    rounded half up. Raises UserError where no head of a block would be left.
    """
    expect_length("removed", removed, len(program.attentions))
    operations: dict[str, Operation] = {op.out.name: op for op in program.operations}
    kept: dict[str, np.ndarray] = {}  # channels of the values whose others are gone
    means = dict(means)
    for op, gone in zip(program.attentions, removed, strict=True):
        if not gone:
            continue
        heads = [head for head in range(op.heads) if head not in gone]
        if not heads:
            raise UserError(f"{op.out.name}: expected a head that stays, got all {op.heads} removed; freeze the last one instead")
        kept[op.out.name] = np.arange(op.out.shape[1]).reshape(op.heads, -1)[heads].ravel()
        operations |= _fewer_heads(operations, op, heads)
    for op in program.operations:  # what reads their output, directly or in another order of rows
        if op.x not in kept:
            continue
        match op:
            case Gather() if op.granule == op.out.shape[-1] == program.values[op.x].shape[-1]:
                channels = kept[op.out.name] = kept[op.x]
                means[op.out.name] = means[op.x]
                operations[op.out.name] = replace(op, out=replace(op.out, shape=(op.out.shape[0], len(channels))), granule=len(channels))
            case Linear() if op.levels is None:
                operations[op.out.name] = _folded(op, kept[op.x], means[op.x])
            case _:
                raise UserError(
                    f"{op.out.name}: expected a Linear to read the heads' output, got {type(op).__name__}; remove no head there"
                )
    return Verified(program.name, program.image, tuple(operations.values()), program.datapath)


def _fewer_heads(operations: Mapping[str, Operation], op: Attention, heads: list[int]) -> dict[str, Operation]:
    """The Attention of these heads, and the Linears of its q, k and v."""
    found: dict[str, Operation] = {}
    for name in op.inputs:
        linear = operations[name]
        assert isinstance(linear, Linear)
        parts = np.arange(linear.out.shape[1]).reshape(-1, op.heads, op.head_dim)
        found[name] = with_channels(linear, parts[:, heads].ravel(), name)
    out = replace(op.out, shape=(op.out.shape[0], len(heads) * op.head_dim))
    bias = None if op.logit_bias is None else op.logit_bias[:, heads].copy()
    found[op.out.name] = replace(op, out=out, heads=len(heads), score_heads=tuple(range(len(heads))), logit_bias=bias)
    return found


def _folded(op: Linear, channels: np.ndarray, mean: MeanOutput) -> Linear:
    """The layer that reads these channels alone: the others are their mean from now on, part of the bias."""
    others = np.setdiff1d(np.arange(len(op.weight)), channels)
    weight = op.weight[others].astype(np.int64) - op.weight_zero
    products = (mean.sums[others] - mean.rows * op.x_zero) @ weight
    bias = op.bias + (2 * products + mean.rows) // (2 * mean.rows)
    bias = int32(bias, lambda i: f"{op.out.name}, channel {i}", "its bias")
    return replace(op, weight=np.ascontiguousarray(op.weight[channels]), bias=bias)
