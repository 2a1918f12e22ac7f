"""Exact counts of what an integer program executes for one image, operation by operation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from operator import add
from typing import assert_never

import numpy as np

from cost_model.work.ledger import qk_linears
from cost_model.work.memory import code_bytes, live_bytes, mask_bytes, weight_bytes
from eamsim.constraints import Verified, expect_verified
from eamsim.program import Attention, Embed, Gather, Gelu, InputQuant, LayerNorm, Linear, Operation, Pool


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates by the layer they are spent in: `scores` is QK^T, `attention_value` A.V."""

    patch_embedding: int = 0
    patch_merging: int = 0
    qkv: int = 0
    scores: int = 0
    attention_value: int = 0
    proj: int = 0
    fc1: int = 0
    fc2: int = 0
    head: int = 0
    other: int = 0

    def __add__(self, other: Macs) -> Macs:
        return Macs(*map(add, astuple(self), astuple(other)))

    @property
    def paper(self) -> int:
        """The scope of Eq. 9: the Transformer layers alone."""
        return self.full - self.patch_embedding - self.patch_merging - self.head - self.other

    @property
    def full(self) -> int:
        """Everything from the image to the logits."""
        return sum(astuple(self))


@dataclass(frozen=True)
class Cost:
    """Work and storage of one operation, or by addition of several run one after the other.

    dense: what the MACs would be with nothing frozen, all scores and the q and k of every head; activation_bytes: the largest set of
    values alive at once; mask_bytes, code_bytes: the frozen maps.
    """

    macs: Macs = Macs()
    dense: Macs = Macs()
    weight_bytes: int = 0
    mask_bytes: int = 0
    code_bytes: int = 0
    activation_bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.macs + other.macs,
            self.dense + other.dense,
            self.weight_bytes + other.weight_bytes,
            self.mask_bytes + other.mask_bytes,
            self.code_bytes + other.code_bytes,
            max(self.activation_bytes, other.activation_bytes),
        )

    @property
    def map_bytes(self) -> int:
        return self.mask_bytes + self.code_bytes


def count(program: Verified) -> Cost:
    """The whole program, one image: MACs from the real masks, bytes of weights, frozen maps and activations."""
    return sum(count_operations(program).values(), Cost())


def count_operations(program: Verified) -> dict[str, Cost]:
    """Cost of each operation by the name of its output, in the order of execution."""
    expect_verified(program)
    layers, frozen_away = linear_layers(program), _frozen_away(program)
    live = live_bytes(program)
    return {
        op.out.name: _count(op, layers.get(op.out.name, ""), frozen_away.get(op.out.name, 0), live[op.out.name])
        for op in program.operations
    }


def _count(op: Operation, layer: str, frozen_away: int, live: int) -> Cost:
    match op:
        case Linear():
            macs, dense = (Macs(**{layer: (op.out.size + more) * len(op.weight)}) for more in (0, op.out.shape[0] * frozen_away))
            return Cost(macs, dense, weight_bytes=weight_bytes(op), activation_bytes=live)
        case Attention():
            macs = attention_macs(op)
            dense = replace(macs, scores=macs.attention_value)
            return Cost(macs, dense, mask_bytes=mask_bytes(op), code_bytes=code_bytes(op), activation_bytes=live)
        case InputQuant() | Gather() | Embed() | LayerNorm() | Pool():
            return Cost(activation_bytes=live)
        case _:
            assert_never(op)


def _frozen_away(program: Verified) -> dict[str, int]:
    """Output channels that a Linear would have besides with nothing frozen: q and k of the heads without scores."""
    found: dict[str, int] = {}
    for op in (op for op in program.operations if isinstance(op, Attention)):
        for linear in qk_linears(program, op):
            if linear is not None:
                found[linear.out.name] = found.get(linear.out.name, 0) + (op.heads - len(op.score_heads)) * op.head_dim
    return found


def attention_macs(op: Attention) -> Macs:
    """One MAC per computed score and channel, and one per attention weight and channel.

    The even and the odd product together are one A.V: every code is even or odd and enters one of them. Frozen weights
    are multiplied too. Pairs in `excluded` count: a dense array computes them, and published counts include them.
    """
    weights = op.windows * op.heads * op.rows * op.tokens
    return Macs(scores=computed_scores(op) * op.head_dim, attention_value=weights * op.head_dim)


def computed_scores(op: Attention) -> int:
    """Scores one image needs: all pairs under the `paper` softmax (its denominator), the unfrozen under the `renormalised`."""
    if op.frozen is None or op.softmax == "paper":
        return op.windows * op.heads * op.rows * op.tokens
    windows_per_map = op.windows // op.frozen.mask.shape[0]
    return windows_per_map * int(np.count_nonzero(~op.frozen.mask))


def frozen_share(program: Verified) -> float:
    """tau of the real masks: frozen attention weights / attention weights, over all maps, excluded pairs left out of both."""
    pairs, frozen, excluded = _pairs(program)
    return share(frozen, pairs - excluded)


def constant_share(program: Verified) -> float:
    """tau with the excluded pairs, whose weight is always 0, counted as frozen: (frozen + excluded) / all attention weights."""
    pairs, frozen, excluded = _pairs(program)
    return share(frozen + excluded, pairs)


def share(part: float, whole: float) -> float:
    """part / whole; 0 of nothing."""
    return part / whole if whole else 0.0


def _pairs(program: Verified) -> tuple[int, int, int]:
    """Attention weights of all windows and heads: all, frozen and not excluded, excluded."""
    pairs = frozen = excluded = 0
    for op in program.attentions:
        pairs += op.windows * op.heads * op.rows * op.tokens
        out = excluded_pairs(op)
        excluded += op.heads * int(np.count_nonzero(out)) * (op.windows // len(out))
        if op.frozen is not None:
            live = op.frozen.mask & ~out
            frozen += int(np.count_nonzero(live)) * (op.windows // len(live))
    return pairs, frozen, excluded


def excluded_pairs(op: Attention) -> np.ndarray:
    """`op.excluded` with an axis for the heads: bool [windows, 1, tokens, tokens], or [1, 1, 1, 1] where none is excluded."""
    return np.zeros((1, 1, 1, 1), np.bool_) if op.excluded is None else op.excluded[:, None]


def granularity(program: Verified) -> str:
    """The coarsest unit all masks are made of: `head`, `row`, `column`, `tile:RxC` or `weight` (also when nothing is frozen)."""
    masks = [op.frozen.mask for op in program.attentions if op.frozen is not None]
    if not any(mask.any() for mask in masks):
        return "weight"
    match _step(masks, 2), _step(masks, 3):
        case 0, 0:
            return "head"
        case _, 0:
            return "row"
        case 0, _:
            return "column"
        case 1, 1:
            return "weight"
        case rows, columns:
            return f"tile:{rows}x{columns}"


def _step(masks: Sequence[np.ndarray], axis: int) -> int:
    """The largest step on whose multiples alone the masks change along an axis; 0 if they never do."""
    changes = [np.nonzero(np.diff(mask, axis=axis))[axis] + 1 for mask in masks]
    return int(np.gcd.reduce(np.concatenate(changes), initial=0))


def linear_layers(program: Verified) -> dict[str, str]:
    """Which field of Macs each Linear belongs to, by the name of its output: read off the data flow, Gathers looked through."""
    made = {op.out.name: op for op in program.operations}
    source: dict[str, Operation | None] = {program.image.name: None}
    for op in program.operations:
        source[op.out.name] = source[op.x] if isinstance(op, Gather) else op
    projections = [source[name] for op in program.attentions for name in op.inputs]

    def layer(op: Linear) -> str:
        if op in projections:
            return "qkv"
        if isinstance(op.epilogue, Gelu):
            return "fc1"
        match source[op.x]:
            case Attention():
                return "proj"
            case Linear(epilogue=Gelu()):
                return "fc2"
            case InputQuant() | None:
                return "patch_embedding"
            case LayerNorm(x=merged) if isinstance(made.get(merged), Gather) and op is not source[program.output.name]:
                return "patch_merging"
            case Linear() | Gather() | Embed() | LayerNorm() | Pool():
                pass
            case unknown:
                assert_never(unknown)
        return "head" if op is source[program.output.name] else "other"

    return {op.out.name: layer(op) for op in program.operations if isinstance(op, Linear)}
