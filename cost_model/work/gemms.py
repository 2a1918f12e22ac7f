"""The matrix products a program executes: their shapes, operand widths, and which pairs of tokens they need."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, assert_never

import numpy as np

from eamsim.constraints import LEVEL_BITS, Verified
from eamsim.program import Attention, Embed, Gather, InputQuant, LayerNorm, Linear, Operation, Pool


@dataclass(frozen=True, eq=False)
class Gemm:
    """Products [rows, depth] x [depth, columns] of one shape, run `repeats` times; operand widths in bits.

    needed: bool [products, rows, columns or depth], the axis named by `over`: what some result depends on; None for one
    product that needs everything. decoded_bits: width of the left operand as a number, where that is not how it is stored (an
    attention code c is 2^(7 - c // 2)). levels: the left operand's codes are looked up. sums: accumulators per result, 2 for the even
    and the odd product.
    """

    rows: int
    columns: int
    depth: int
    left_bits: int
    right_bits: int
    repeats: int = 1
    needed: np.ndarray | None = None
    over: Literal["columns", "depth"] = "columns"
    decoded_bits: int | None = None
    levels: bool = False
    sums: int = 1

    @property
    def number_bits(self) -> int:
        """Width of the left operand as a number."""
        return self.left_bits if self.decoded_bits is None else self.decoded_bits

    @property
    def as_numbers(self) -> Gemm:
        """The same products of a left operand that is stored as the numbers it stands for."""
        return replace(self, left_bits=self.number_bits)

    @property
    def products(self) -> int:
        """Distinct products: each has its own pairs to skip."""
        return 1 if self.needed is None else len(self.needed)

    @property
    def dense(self) -> Gemm:
        """The same products with everything needed."""
        return replace(self, repeats=self.products * self.repeats, needed=None)

    @property
    def dense_macs(self) -> int:
        """Multiply-accumulates with nothing skipped."""
        return self.repeats * self.products * self.rows * self.columns * self.depth

    @property
    def needed_macs(self) -> int:
        """Multiply-accumulates that some result depends on."""
        if self.needed is None:
            return self.dense_macs
        return self.repeats * int(np.count_nonzero(self.needed)) * (self.depth if self.over == "columns" else self.columns)


def gemms(program: Verified, op: Operation, batch: int = 1, skips_zero_codes: bool = False) -> list[Gemm]:
    """The products of one operation for `batch` images, which share the weights and the frozen maps.

    skips_zero_codes: A.V needs no product with an excluded pair, nor with a frozen weight whose stored code means zero.
    """
    match op:
        case Linear():
            tokens, channels = op.out.shape
            fitted = {} if op.levels is None else {"decoded_bits": LEVEL_BITS, "levels": True}
            return [Gemm(batch * tokens, channels, len(op.weight), program.values[op.x].bits, op.weight_bits, **fitted)]
        case Attention():
            bits = program.values[op.x].bits
            scored, heads = list(op.score_heads), list(range(op.heads))
            shape = {"rows": op.rows, "columns": op.tokens, "depth": op.head_dim, "left_bits": bits, "right_bits": bits}
            scores = [Gemm(**shape, **_instances(op, scored, batch, needed_scores(op)))] if scored else []
            shape = {"rows": op.rows, "columns": op.head_dim, "depth": op.tokens, "left_bits": op.attention_bits, "right_bits": bits}
            audible = _instances(op, heads, batch, audible_pairs(op) if skips_zero_codes else None)
            return [*scores, Gemm(**shape, **audible, over="depth", decoded_bits=op.top_power + 1, sums=2)]
        case InputQuant() | Gather() | Embed() | LayerNorm() | Pool():
            return []
        case _:
            assert_never(op)


def _instances(op: Attention, heads: list[int], batch: int, needed: np.ndarray | None) -> dict:
    """One product per window and head; windows that share a map and images are repeats."""
    if needed is None:
        return {"repeats": batch * op.windows * len(heads)}
    return {"repeats": batch * (op.windows // len(needed)), "needed": needed[:, heads].reshape(-1, op.rows, op.tokens)}


def frozen_pairs(op: Attention) -> np.ndarray | None:
    """bool [maps, heads, rows, tokens], or None where nothing is frozen."""
    return None if op.frozen is None or not op.frozen.mask.any() else op.frozen.mask


def needed_scores(op: Attention) -> np.ndarray | None:
    """The computed pairs of docs/spec/datapath.md, bool [maps, heads, rows, tokens]; None where all are."""
    return _without(op, frozen_pairs(op) if op.softmax == "renormalised" else None)


def needed_codes(op: Attention) -> np.ndarray | None:
    """Pairs whose code comes from the softmax: neither excluded nor frozen, under either meaning; None where all do."""
    return _without(op, frozen_pairs(op))


def audible_pairs(op: Attention) -> np.ndarray | None:
    """Pairs that can add to A.V: not excluded, and not frozen to the code that means zero; None where all can."""
    frozen = frozen_pairs(op)
    if frozen is not None and op.frozen is not None:
        codes = op.frozen.codes << (op.attention_bits - op.frozen.bits)
        frozen = frozen & (codes == op.last_code) if op.last_code_is_zero else None
    return _without(op, frozen)


def _without(op: Attention, dropped: np.ndarray | None) -> np.ndarray | None:
    """All pairs but the excluded and the dropped."""
    if op.excluded is None or not op.excluded.any():
        return None if dropped is None or not dropped.any() else ~dropped
    kept = np.broadcast_to(~op.excluded[:, None], (op.windows, op.heads, op.rows, op.tokens))
    return kept if dropped is None else kept & ~dropped
