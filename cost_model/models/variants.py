"""The same program with other weights frozen: none, as many at random, or as many in whole rows, columns, tiles or heads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, lru_cache
from math import ceil, log2

import numpy as np

from cost_model.models.paper import FROZEN_BITS
from cost_model.models.skeleton import zeros
from cost_model.work.ledger import qk_linears
from eamsim.constraints import Verified, expect_verified
from eamsim.errors import UserError
from eamsim.program import Attention, Frozen, Gather, Linear, Operation, Requant, Softmax, Value, scored_heads
from eamsim.unread import own_linear

Freezer = Callable[[Attention], Frozen | None]


def thawed(program: Verified) -> Verified:
    """Nothing frozen: every score computed, every head with its q and k; a program that is so already is returned as it is."""
    expect_verified(program)
    if all(op.frozen is None and op.softmax == "paper" and not op.last_code_is_zero for op in program.attentions):
        return program
    return refrozen(program, lambda op: None, "paper")


def refrozen(program: Verified, freezer: Freezer, softmax: Softmax) -> Verified:
    """The shapes of `program` with each Attention frozen as `freezer` says; under `renormalised`, wholly frozen heads lose q and k.

    Where q has rows of its own, one head keeps both, as in `reference.lowering.frozen`. UserError where no Linear of its own makes an
    Attention's q and k, and they change.
    """
    expect_verified(program)
    changed: dict[str, Operation] = {}
    for op in program.operations:
        if isinstance(op, Attention):
            frozen = freezer(op)
            scored = scored_heads(op, frozen, softmax)
            changed[op.out.name] = replace(op, softmax=softmax, frozen=frozen, last_code_is_zero=False, score_heads=scored)
            more = (len(scored) - len(op.score_heads)) * op.head_dim
            for name, linear in zip((op.inputs[-1], op.x), qk_linears(program, op), strict=True) if more else ():
                if linear is None:
                    why = "its heads lose or regain q and k only where a Linear makes them for it alone"
                    raise UserError(f"{op.out.name}: {why}, got {name}, which is not so made; count the program without a chip")
                wide = changed.get(name, linear)
                changed[name] = _with_channels(linear, wide.out.shape[1] + more)
    return replace(program, operations=tuple(changed.get(op.out.name, op) for op in program.operations))


def _with_channels(linear: Linear, channels: int) -> Linear:
    """A Linear of q, k or v with so many output channels."""
    zero, ratio = zeros((channels,), np.uint8), zeros((channels,))
    return replace(
        linear,
        out=replace(linear.out, shape=(linear.out.shape[0], channels)),
        weight=zeros((len(linear.weight), channels), np.uint8),
        weight_zero=zero,
        bias=ratio,
        epilogue=Requant(ratio, ratio, ratio),
    )


@lru_cache(maxsize=32)
def scattered(tau: float, seed: int = 0) -> Freezer:
    """round(tau * pairs) weights of each head and window at random, excluded pairs aside; one pattern for equal windows and layers."""

    @cache
    def pattern(heads: int, rows: int, tokens: int, excluded: bytes | None) -> np.ndarray:
        live = np.arange(rows * tokens) if excluded is None else np.flatnonzero(np.frombuffer(excluded, np.bool_) == 0)
        order = np.random.default_rng(seed).random((heads, len(live))).argsort(axis=1)[:, : round(tau * len(live))]
        mask = np.zeros((heads, rows * tokens), np.bool_)
        np.put_along_axis(mask, live[order], True, axis=1)
        if round(tau * max(len(live), 1)) == max(len(live), 1):
            mask[:] = True  # the excluded pairs too: nothing of the head is left
        return mask.reshape(heads, rows, tokens)

    @cache
    def frozen(bits: int, windows: int, heads: int, rows: int, tokens: int, excluded: bytes | None) -> Frozen | None:
        step = rows * tokens
        starts = [None] * windows if excluded is None else [excluded[w * step : (w + 1) * step] for w in range(windows)]
        return _frozen(np.stack([pattern(heads, rows, tokens, start) for start in starts]), bits)

    return lambda op: frozen(
        _code_bits(op), op.windows, op.heads, op.rows, op.tokens, None if op.excluded is None else op.excluded.tobytes()
    )


def whole_heads(program: Verified, tau: float) -> Freezer:
    """round(tau * heads) whole heads of the model, spread evenly over its layers: what as much freezing can save at best."""
    total = sum(op.heads for op in program.attentions)
    first = {op.out.name: sum(other.heads for other in program.attentions[:index]) for index, op in enumerate(program.attentions)}
    wanted = round(tau * total)

    @cache
    def frozen(bits: int, heads: tuple[bool, ...], windows: int, rows: int, tokens: int) -> Frozen | None:
        return _frozen(np.broadcast_to(np.array(heads)[None, :, None, None], (windows, len(heads), rows, tokens)), bits)

    def freezer(op: Attention) -> Frozen | None:
        indices = range(first[op.out.name], first[op.out.name] + op.heads)
        heads = tuple((index + 1) * wanted // total > index * wanted // total for index in indices)
        return frozen(_code_bits(op), heads, op.windows, op.rows, op.tokens)

    return freezer


def without_heads(dense: Verified, tau: float) -> Verified | None:
    """As many heads removed as `whole_heads` freezes, one of each layer kept at least: with their q, k, v and rows of the projection.

    dense: a program with nothing frozen; the shapes alone. None where no Linear of its own makes q, k or v, or reads the result.
    """
    freezer, changed = whole_heads(dense, tau), dict[str, Operation]()
    for op in dense.attentions:
        frozen, path, makers = freezer(op), _to_its_linear(dense, op.out.name), {own_linear(dense, name) for name in op.inputs}
        if path is None or None in makers:
            return None
        kept = op.heads - (0 if frozen is None else min(op.heads - 1, int(frozen.mask[0, :, 0, 0].sum())))
        width = kept * op.head_dim
        for maker in filter(None, makers):
            changed[maker.out.name] = _with_channels(maker, maker.out.shape[1] // op.heads * kept)
        bias = None if op.logit_bias is None else op.logit_bias[:, :kept]
        thinner = replace(op, heads=kept, out=_as_wide(op.out, width), score_heads=tuple(range(kept)), logit_bias=bias)
        *gathers, linear = path
        changed |= {op.out.name: thinner} | {each.out.name: replace(each, out=_as_wide(each.out, width), granule=width) for each in gathers}
        changed[linear.out.name] = replace(linear, weight=zeros((width, linear.out.shape[1]), np.uint8))
    return replace(dense, operations=tuple(changed.get(op.out.name, op) for op in dense.operations))


def _as_wide(value: Value, channels: int) -> Value:
    return replace(value, shape=(value.shape[0], channels))


def _to_its_linear(program: Verified, name: str) -> tuple[*tuple[Gather, ...], Linear] | None:
    """Gathers of whole rows and then the Linear that alone read a value; None if anything else does."""
    found = [op for op in program.operations if name in op.inputs]
    if len(found) != 1:
        return None
    (reader,) = found
    if isinstance(reader, Gather) and reader.granule == program.values[name].shape[1]:
        rest = _to_its_linear(program, reader.out.name)
        return None if rest is None else (reader, *rest)
    return (reader,) if isinstance(reader, Linear) and reader.x == name else None


def whole_units(tau: float, height: int, width: int, seed: int = 0) -> Freezer:
    """round(tau * units) rows, columns or tiles of each head at random, one pattern for equal layers; a side of 0 is all of them."""

    @cache
    def frozen(bits: int, windows: int, heads: int, rows: int, tokens: int) -> Frozen | None:
        top, left = (np.arange(extent) // (side or extent) for extent, side in ((rows, height), (tokens, width)))
        units = (top[-1] + 1) * (left[-1] + 1)
        order = np.random.default_rng(seed).random((heads, units)).argsort(axis=1)[:, : round(tau * units)]
        chosen = np.zeros((heads, units), np.bool_)
        np.put_along_axis(chosen, order, True, axis=1)
        mask = chosen.reshape(heads, top[-1] + 1, left[-1] + 1)[:, top][:, :, left]
        return _frozen(np.broadcast_to(mask, (windows, *mask.shape)), bits)

    return lambda op: frozen(_code_bits(op), op.windows, op.heads, op.rows, op.tokens)


def _code_bits(op: Attention) -> int:
    """Of a frozen weight: EAM's four, or as many as the attention has."""
    return min(FROZEN_BITS, op.attention_bits)


def _frozen(mask: np.ndarray, bits: int) -> Frozen | None:
    """Codes in turn, so that none is free for other uses, and a mass that leaves each row one weight's share; None for an empty mask."""
    if not mask.any():
        return None
    codes = np.resize(np.arange(1 << bits, dtype=np.uint8), mask.shape[2:]) * mask
    row_log2 = np.full(mask.shape[:3], ceil(log2(mask.shape[2]) * (1 << 8)), np.int32)
    return Frozen(mask, codes, bits, row_log2)
