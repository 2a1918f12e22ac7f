"""What a program does besides multiply-accumulates, and which of those nobody would miss: exact, per operation, for one image.

The counts follow the formulas of docs/spec/datapath.md. One unit of each kind is so many primitives of a vector unit: 32-bit
multiplies, simple steps (add, compare, shift, clip) and table lookups; `STEPS` lists them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from operator import add
from typing import assert_never

import numpy as np

from cost_model.work.gemms import audible_pairs, frozen_pairs, needed_codes, needed_scores
from eamsim.constraints import Verified, expect_verified
from eamsim.program import Attention, Embed, Epilogue, Gather, Gelu, InputQuant, LayerNorm, Linear, Operation, Pool, Raw, Requant, Residual
from eamsim.unread import own_linear

SQUARE_ROOT_STEPS, DIVISION_STEPS = 31, 16  # one bit of the result each: V is below 2^62, the reciprocal has 16 bits


@dataclass(frozen=True)
class Work:
    """Integer operations that are no multiply-accumulate, by what they are for.

    level_lookups: one code of a Linear that has levels; exponents: one score through scaling, the power-of-two table and the sum;
    logarithms: one row's; attention_codes: one rounded to a code; mask_decodes: one pair looked up in a frozen map; frozen_codes: one
    taken from it.
    """

    input_lookups: int = 0
    moved: int = 0
    embedded: int = 0
    normalised: int = 0
    normalised_tokens: int = 0
    requantised: int = 0
    gelu_lookups: int = 0
    residual_adds: int = 0
    level_lookups: int = 0
    logit_biases: int = 0
    exponents: int = 0
    logarithms: int = 0
    attention_codes: int = 0
    mask_decodes: int = 0
    frozen_codes: int = 0
    merged: int = 0
    pooled: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(*map(add, vars(self).values(), vars(other).values()))


@dataclass(frozen=True)
class Primitives:
    """Steps of a vector unit: 32-bit multiplies, simple steps, table lookups."""

    multiplies: int = 0
    simple: int = 0
    lookups: int = 0

    @property
    def total(self) -> int:
        return self.multiplies + self.simple + self.lookups


STEPS = {
    "input_lookups": Primitives(lookups=1),
    "moved": Primitives(simple=1),
    "embedded": Primitives(simple=2),
    "normalised": Primitives(multiplies=4, simple=7),
    "normalised_tokens": Primitives(multiplies=2, simple=3 + 3 * (SQUARE_ROOT_STEPS + DIVISION_STEPS)),
    "requantised": Primitives(multiplies=1, simple=3),
    "gelu_lookups": Primitives(lookups=1),
    "residual_adds": Primitives(simple=2),
    "level_lookups": Primitives(lookups=1),
    "logit_biases": Primitives(simple=1),
    "exponents": Primitives(multiplies=1, simple=5, lookups=1),
    "logarithms": Primitives(simple=6, lookups=1),
    "attention_codes": Primitives(simple=3),
    "mask_decodes": Primitives(simple=1),
    "frozen_codes": Primitives(simple=1),
    "merged": Primitives(multiplies=2, simple=4),
    "pooled": Primitives(simple=1),
}


def primitives(work: Work) -> Primitives:
    """The vector unit's steps for all of `work`."""
    units = [(getattr(work, name), step) for name, step in STEPS.items()]
    return Primitives(
        sum(count * step.multiplies for count, step in units),
        sum(count * step.simple for count, step in units),
        sum(count * step.lookups for count, step in units),
    )


def ledger(program: Verified) -> dict[str, Work]:
    """Work of each operation beside its multiply-accumulates, by the name of its output, for one image."""
    expect_verified(program)
    return {op.out.name: operation_work(program, op) for op in program.operations}


def operation_work(program: Verified, op: Operation) -> Work:
    """One operation, one image."""
    size = op.out.size
    match op:
        case InputQuant():
            return Work(input_lookups=size)
        case Gather():
            return Work(moved=size)
        case Embed():
            return Work(embedded=op.position.size)
        case LayerNorm():
            return Work(normalised=size, normalised_tokens=op.out.shape[0])
        case Linear():
            levels = 0 if op.levels is None else program.values[op.x].size
            return replace(epilogue_work(op.epilogue, size), level_lookups=levels)
        case Attention():
            return attention_work(op)
        case Pool():
            return Work(pooled=program.values[op.x].size, requantised=size)
        case _:
            assert_never(op)


def epilogue_work(epilogue: Epilogue, size: int) -> Work:
    """What makes so many results of the sums of a Linear."""
    match epilogue:
        case Requant() | Raw():
            return Work(requantised=size)
        case Gelu():
            return Work(requantised=size, gelu_lookups=size)
        case Residual():
            return Work(requantised=size, residual_adds=size)
        case _:
            assert_never(epilogue)


def attention_work(op: Attention) -> Work:
    """The softmax of the computed pairs, the frozen merge, and the context: E and O scaled and added."""
    computed, coded, frozen = (pairs(op, needed) for needed in (needed_scores(op), needed_codes(op), frozen_pairs(op)))
    has_map = frozen_pairs(op) is not None
    return Work(
        logit_biases=computed if op.logit_bias is not None else 0,
        exponents=computed,
        logarithms=rows(op, needed_scores(op)),
        attention_codes=coded,
        mask_decodes=pairs(op, None) if has_map else 0,
        frozen_codes=frozen if has_map else 0,
        merged=op.out.size,
    )


def pairs(op: Attention, needed: np.ndarray | None) -> int:
    """Pairs of all windows: those of a mask [maps, heads, rows, tokens], or all."""
    return op.windows * op.heads * op.rows * op.tokens if needed is None else op.windows // len(needed) * int(np.count_nonzero(needed))


def rows(op: Attention, needed: np.ndarray | None) -> int:
    """Rows of all windows in which a mask has anything, or all."""
    return op.out.size // op.head_dim if needed is None else op.windows // len(needed) * int(np.count_nonzero(needed.any(axis=3)))


def zero_code_macs(op: Attention) -> int:
    """A.V products that add nothing: excluded pairs, and weights frozen to the code that means zero (zero-skip)."""
    return (pairs(op, None) - pairs(op, audible_pairs(op))) * op.head_dim


def structured_macs(program: Verified, op: Attention) -> int:
    """Products that no code depends on although the program has them: of q and k, and of scores under the `paper` meaning.

    A wholly frozen row needs no q, and no denominator either; a column that no row needs, no k (where a Linear of their own makes them).
    """
    coded, scored = needed_codes(op), list(op.score_heads)
    if coded is None or not scored:
        return 0
    coded = coded[:, scored]
    computed = needed_scores(op)
    needed = coded.any(axis=3, keepdims=True) & (np.ones_like(coded) if computed is None else computed[:, scored])
    rows_left, columns_left = int(np.count_nonzero(needed.any(axis=3))), int(np.count_nonzero(needed.any(axis=2)))
    heads = len(needed) * len(scored)
    before = needed.size if computed is None else int(np.count_nonzero(computed[:, scored]))
    unused = heads * op.rows - rows_left, heads * op.tokens - columns_left  # q and k
    linears = qk_linears(program, op)
    projections = sum(lines * op.head_dim * len(linear.weight) for lines, linear in zip(unused, linears, strict=True) if linear)
    return op.windows // len(needed) * ((before - int(np.count_nonzero(needed))) * op.head_dim + projections)


def qk_linears(program: Verified, op: Attention) -> tuple[Linear | None, Linear | None]:
    """The Linears that make q and k, for this Attention alone: often one; None where something else makes them, or reads them too."""
    return own_linear(program, op.inputs[-1]), own_linear(program, op.x)
