"""The integer program: a flat list of operations on named values, and nothing else.

Every consumer (golden interpreter, engine, exporters, cost model) reads this one form; none of them
shares arithmetic with another. The meaning of each operation is `docs/spec/datapath.md`; the limits on each
field are the numbered constraints of `eamsim/constraints.py`. A value has no batch axis: a program
describes one image. Everything an interpreter needs is an integer stored here; scales are not.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, assert_never

import numpy as np

from eamsim.datapath import DEFAULT

Rounding = Literal["half_up", "half_even", "half_away", "floor"]
Overflow = Literal["error", "wrap", "saturate"]
Softmax = Literal["paper", "renormalised"]


@dataclass(frozen=True)
class Value:
    """A tensor of `bits`-wide two's-complement (signed) or plain binary (unsigned) integers."""

    name: str
    shape: tuple[int, ...]
    bits: int
    signed: bool = False

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def low(self) -> int:
        """The least integer the width can hold."""
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def high(self) -> int:
        """The greatest integer the width can hold."""
        return (1 << (self.bits - self.signed)) - 1

    def __str__(self) -> str:
        return f"{self.name}: {'i' if self.signed else 'u'}{self.bits}{list(self.shape)}"


@dataclass(frozen=True)
class Datapath:
    """Widths and rules that hold for the whole program (docs/spec/datapath.md, section 1).

    rounding: how every right shift rounds. multiplier_bits: width of each unsigned M of a ratio M / 2^S.
    accumulator_bits: width of the sums of Linear, of the scores and of the even and odd products.
    overflow: `error` has the verifier prove that no sum can leave the accumulator; `wrap` and `saturate`
    narrow the finished sum.
    """

    rounding: Rounding = "half_up"
    multiplier_bits: int = DEFAULT.multiplier_bits
    accumulator_bits: int = DEFAULT.accumulator_bits
    overflow: Overflow = "error"


@dataclass(frozen=True, eq=False)
class InputQuant:
    """uint8 RGB image [height, width, 3] -> codes: `out = table[channel][pixel]`, table uint8 [3, 256]."""

    x: str
    out: Value
    table: np.ndarray

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.x,)


@dataclass(frozen=True, eq=False)
class Gather:
    """Copy granules of `granule` consecutive elements: granule g of `out` is granule `indices[g]` of `x`.

    indices: int32 [out.size / granule]. Patchify, window partition and reverse, cyclic shift, patch merging,
    token selection.
    """

    x: str
    out: Value
    indices: np.ndarray
    granule: int

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.x,)


@dataclass(frozen=True, eq=False)
class Embed:
    """`out = concat(prefix, saturate(x + position))`: prefix int32 [prefix_tokens, channels], position int32 like x."""

    x: str
    out: Value
    prefix: np.ndarray
    position: np.ndarray

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.x,)


@dataclass(frozen=True, eq=False)
class LayerNorm:
    """Integer LayerNorm over the last axis of x [tokens, channels].

    gain int32 [channels]; offset int64 [channels], beta and the zero point folded in; shift: of the result; variance_offset: at least 1;
    fraction_bits: of the normalised x; reciprocal_bits: of the reciprocal of its deviation.
    """

    x: str
    out: Value
    gain: np.ndarray
    offset: np.ndarray
    shift: int
    variance_offset: int
    fraction_bits: int = DEFAULT.norm_fraction_bits
    reciprocal_bits: int = DEFAULT.reciprocal_bits

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.x,)


@dataclass(frozen=True, eq=False)
class Requant:
    """`clip(round_shift(acc * multiplier, shift) + zero)`: int32 [channels] each; unsigned codes."""

    multiplier: np.ndarray
    shift: np.ndarray
    zero: np.ndarray


@dataclass(frozen=True, eq=False)
class Gelu:
    """An index of `index_bits`, requantised per channel around `index_zero`, then table uint8 [2^index_bits] -> codes."""

    multiplier: np.ndarray
    shift: np.ndarray
    index_zero: int
    index_bits: int
    table: np.ndarray


@dataclass(frozen=True, eq=False)
class Residual:
    """`saturate(round_shift(r * 2^(shift - exponent_change) + acc * multiplier, shift))`, r the value `operand`."""

    operand: str
    multiplier: np.ndarray
    shift: np.ndarray
    exponent_change: int


@dataclass(frozen=True, eq=False)
class Raw:
    """`saturate(round_shift(acc * multiplier, shift))`: signed, on one common scale. Logits, patch embedding."""

    multiplier: np.ndarray
    shift: np.ndarray


Epilogue = Requant | Gelu | Residual | Raw


@dataclass(frozen=True, eq=False)
class Linear:
    """`acc[t, n] = bias[n] + sum_k (x[t, k] - x_zero) * (weight[k, n] - weight_zero[n])`, then one epilogue.

    weight: uint8 codes [in_channels, out_channels] of `weight_bits`; weight_zero: uint8 [out_channels];
    bias: int32 [out_channels], in units of the accumulator. levels: int32 [2^bits of x] or None, 8-bit integers which the codes
    of x stand for: `levels[x[t, k]]` in place of `x[t, k] - x_zero`.
    """

    x: str
    out: Value
    weight: np.ndarray
    weight_bits: int
    weight_zero: np.ndarray
    x_zero: int
    bias: np.ndarray
    epilogue: Epilogue
    levels: np.ndarray | None = None

    @property
    def inputs(self) -> tuple[str, ...]:
        match self.epilogue:
            case Residual(operand=operand):
                return self.x, operand
            case Requant() | Gelu() | Raw():
                return (self.x,)
            case _:
                assert_never(self.epilogue)


@dataclass(frozen=True, eq=False)
class Frozen:
    """Frozen attention weights of one Attention: `codes` replace the computed codes where `mask` is set.

    mask: bool [maps, heads, rows, tokens], maps = windows, or 1 when all windows share one map;
    codes: uint8, same shape, `bits` wide (`bits <= attention bits`; a narrower code is the leading part of an
    attention code), 0 where the mask is not set; row_log2: int32 [maps, heads, rows], log2(1 / (1 - F)) of the
    row's frozen mass F on the grid of the exponents (only read by the renormalised softmax).
    """

    mask: np.ndarray
    codes: np.ndarray
    bits: int
    row_log2: np.ndarray


@dataclass(frozen=True, eq=False)
class Queries:
    """q of an Attention whose query rows are not its tokens: `operand`, codes [windows * rows, len(score_heads) * head_dim].

    tokens: keys and values of one window.
    """

    operand: str
    tokens: int


@dataclass(frozen=True, eq=False)
class Attention:
    """Scores, base-2 softmax, log-sqrt2 codes, frozen merge, even and odd products (docs/spec/datapath.md).

    x: codes [windows * tokens, (2 * len(score_heads) + heads) * head_dim]: q of every head in `score_heads`, then k of
    the same, then v of every head; a wholly frozen head of a renormalised operation needs neither q nor k. With `queries`, k and v alone.
    exp2: int32 [2^f] holding 2^exp2_bits * 2^(-i / 2^f); log2: int32 [2^m] holding 2^f * log2(1 + i / 2^m);
    log2_scale: log2(s_a) with f fractional bits, s_a the scale of code 0.
    logit_bias: int32 [maps, heads, rows, tokens] or None; excluded: bool [windows, rows, tokens] or None, pairs
    that take no part at all (Swin's shift mask).
    """

    x: str
    out: Value
    heads: int
    windows: int
    score_heads: tuple[int, ...]
    q_zero: int
    k_zero: int
    v_zero: int
    score_multiplier: int
    score_shift: int
    exp2: np.ndarray
    exp2_bits: int
    log2: np.ndarray
    log2_scale: int
    attention_bits: int
    last_code_is_zero: bool
    softmax: Softmax
    multiplier_even: int
    multiplier_odd: int
    out_shift: int
    out_zero: int
    frozen: Frozen | None = None
    logit_bias: np.ndarray | None = None
    excluded: np.ndarray | None = None
    queries: Queries | None = None

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.x,) if self.queries is None else (self.x, self.queries.operand)

    @property
    def rows(self) -> int:
        """Query rows of one window (of the image, when there is one window)."""
        return self.out.shape[0] // self.windows

    @property
    def tokens(self) -> int:
        """Keys and values of one window."""
        return self.rows if self.queries is None else self.queries.tokens

    @property
    def head_dim(self) -> int:
        return self.out.shape[1] // self.heads

    @property
    def fraction_bits(self) -> int:
        """f: fractional bits of the exponents and of every logarithm."""
        return len(self.exp2).bit_length() - 1

    @property
    def log2_bits(self) -> int:
        """m: the logarithm table has 2^m entries."""
        return len(self.log2).bit_length() - 1

    @property
    def last_code(self) -> int:
        return (1 << self.attention_bits) - 1

    @property
    def top_power(self) -> int:
        """Code c stands for 2^(top_power - c // 2) in the even or the odd product."""
        return self.last_code // 2


def scored_heads(op: Attention, frozen: Frozen | None, softmax: Softmax) -> tuple[int, ...]:
    """The heads that need scores once this is frozen: all, but under `renormalised` those that are wholly frozen.

    One at least where q is a value of its own, which cannot be empty.
    """
    scored = tuple(head for head in range(op.heads) if frozen is None or softmax == "paper" or not frozen.mask[:, head].all())
    return scored or (() if op.queries is None else (0,))


@dataclass(frozen=True, eq=False)
class Pool:
    """Mean over the tokens of x [tokens, channels]: `clip(round_shift(sum * multiplier, shift) + zero)`."""

    x: str
    out: Value
    multiplier: int
    shift: int
    zero: int

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.x,)


Operation = InputQuant | Gather | Embed | LayerNorm | Linear | Attention | Pool


@dataclass(frozen=True, eq=False)
class Program:
    """Operations in the order of execution; the last one's output is the program's (the logits)."""

    name: str
    image: Value
    operations: tuple[Operation, ...]
    datapath: Datapath = Datapath()

    @cached_property
    def values(self) -> dict[str, Value]:
        """Every value by name, the image first."""
        return {value.name: value for value in (self.image, *(op.out for op in self.operations))}

    @property
    def attentions(self) -> tuple[Attention, ...]:
        """One a block, in the order of execution."""
        return tuple(op for op in self.operations if isinstance(op, Attention))

    @property
    def output(self) -> Value:
        return self.operations[-1].out

    def __str__(self) -> str:
        path = self.datapath
        head = f"program {self.name} ({path.rounding}, {path.accumulator_bits}-bit accumulator, {path.overflow})"
        return "\n".join([head, f"  {self.image}", *(f"  {op.out} = {describe(op)}" for op in self.operations)])


def describe(op: Operation) -> str:
    """One line: the operation's kind, its inputs and what tells it from its siblings."""
    call = f"{type(op).__name__}({', '.join(op.inputs)})"
    match op:
        case Linear():
            fitted = f" of {len(op.levels)} levels" if op.levels is not None else ""
            return f"{call} w{op.weight_bits}{list(op.weight.shape)}{fitted} -> {type(op.epilogue).__name__}"
        case Attention():
            frozen = f", {op.frozen.mask.mean():.1%} frozen" if op.frozen is not None else ""
            rows = "" if op.queries is None else f", {op.rows} of {op.tokens} rows"
            return f"{call} {op.windows} x {op.heads} heads of {op.head_dim}{rows}, {op.softmax}{frozen}"
        case InputQuant() | Gather() | Embed() | LayerNorm() | Pool():
            return call
        case _:
            assert_never(op)
