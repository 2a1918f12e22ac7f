"""Random verified programs: every operation, ViT and Swin shaped, with the edge values that break interpreters."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import numpy as np

from eamsim.constraints import Verified
from eamsim.program import (
    Attention,
    Datapath,
    Embed,
    Frozen,
    Gather,
    Gelu,
    InputQuant,
    LayerNorm,
    Linear,
    Operation,
    Pool,
    Program,
    Queries,
    Raw,
    Requant,
    Residual,
    Value,
)

DETOURS = ("none", "qkv.gather", "qkv.norm", "twice", "class", "split")
"""What stands between the operations of a block: q, k and v gathered, or normalised; two Attentions of which the first is dropped; after
Attention a Gather of the first token alone, or of each token as two."""
FREEZES = ("none", "empty", "scattered", "rows", "columns", "units", "heads", "all")


@dataclass(frozen=True)
class Shape:
    """What hypothesis draws; everything else follows from `seed`. queries: rows of q in each window, apart from its tokens; 0: those."""

    seed: int
    side: int = 4
    patch: int = 2
    heads: int = 2
    head_dim: int = 4
    hidden: int = 12
    depth: int = 1
    prefix: int = 1
    windows: int = 1
    queries: int = 0
    input_bits: int = 8
    weight_bits: int = 4
    activation_bits: int = 4
    attention_bits: int = 4
    residual_bits: int = 16
    exponent_bits: int = 8
    gelu_index_bits: int = 8
    freeze: str = "none"
    frozen_bits: int = 4
    softmax: str = "paper"
    last_code_is_zero: bool = False
    biased: bool = False
    pooled: bool = False
    detour: str = "none"
    fitted: bool = False
    extreme: bool = False
    datapath: Datapath = field(default_factory=Datapath)


class Builder:
    """Appends operations; the newest value is the input of the next one."""

    def __init__(self, shape: Shape):
        self.shape, self.rng, self.operations = shape, np.random.default_rng(shape.seed), []
        self.last = Value("image", (shape.side, shape.side, 3), 8)

    def add(self, op: Operation) -> Value:
        self.operations.append(op)
        self.last = op.out
        return op.out

    def integers(self, low: int, high: int, size=None, dtype: type = np.int32) -> Any:
        """Uniform in [low, high]; a third of the arrays of an extreme program are all-low or all-high."""
        if self.shape.extreme and self.rng.integers(3) == 0:
            return np.full(size or (), self.rng.choice([low, high]), dtype)
        return self.rng.integers(low, high + 1, size, dtype=np.int64).astype(dtype)

    def ratio(self, channels: int, reach: int, levels: int) -> dict[str, np.ndarray]:
        """Multipliers and shifts that bring sums up to `reach` near `levels`, with some far off when extreme."""
        top = (1 << self.shape.datapath.multiplier_bits) - 1
        multiplier = self.integers(top // 2, top, channels)
        exact = np.log2(max(reach, 1) * float(top) / levels)
        shift = np.clip(int(exact) + self.integers(-1, 2, channels), 0, 40)
        if self.shape.extreme:
            shift[self.rng.random(channels) < 0.2] = self.rng.choice([0, 1, 40])
            multiplier[self.rng.random(channels) < 0.2] = self.rng.choice([0, 1, top])
        return {"multiplier": multiplier, "shift": shift.astype(np.int32)}

    def linear(self, name: str, out: Value, epilogue_of) -> Value:
        """epilogue_of(channels, reach) -> epilogue, reach a typical magnitude of the sums."""
        x, (tokens, channels) = self.last, (self.last.shape[0], out.shape[1])
        high = (1 << self.shape.weight_bits) - 1
        weight = self.integers(0, high, (x.shape[1], channels), np.uint8)
        zero = self.integers(0, high, channels, np.uint8)
        if self.shape.extreme and self.rng.integers(4) == 0:
            weight = np.broadcast_to(zero, weight.shape).copy()
        levels = self.levels(x) if self.shape.fitted and self.rng.integers(3) else None
        reach = int(np.sqrt(x.shape[1]) * (x.high if levels is None else 64) * high / 4) + 1
        bias = self.integers(-reach, reach, channels)
        x_zero = int(self.integers(0, x.high)) if levels is None else 0
        assert out.shape[0] == tokens
        epilogue = epilogue_of(channels, reach)
        return self.add(Linear(x.name, out, weight, self.shape.weight_bits, zero, x_zero, bias, epilogue, levels))

    def levels(self, x: Value) -> np.ndarray:
        """Of all codes of x, in no order: few apart, all equal when extreme, or with both ends of their range among them."""
        low, high = self.rng.choice([(-128, 127), (-20, 127), (-128, -100), (3, 9)])
        levels = self.integers(int(low), int(high), 1 << x.bits)
        if self.rng.integers(3) == 0:
            levels[self.rng.permutation(len(levels))[:2]] = -128, 127
        return levels

    def codes(self, name: str, channels: int) -> Value:
        return Value(name, (self.last.shape[0], channels), self.shape.activation_bits)

    def requant(self, channels: int, reach: int) -> Requant:
        high = (1 << self.shape.activation_bits) - 1
        return Requant(**self.ratio(channels, reach, high), zero=self.integers(0, high, channels))

    def gelu(self, channels: int, reach: int) -> Gelu:
        entries = 1 << self.shape.gelu_index_bits
        table = self.integers(0, (1 << self.shape.activation_bits) - 1, entries, np.uint8)
        ratio = self.ratio(channels, reach, entries)
        return Gelu(**ratio, index_zero=int(self.integers(-5, entries)), index_bits=self.shape.gelu_index_bits, table=table)

    def residual(self, operand: Value):
        def epilogue(channels: int, reach: int) -> Residual:
            ratio = self.ratio(channels, reach, 1 << (self.shape.residual_bits - 2))
            change = int(self.integers(0, 2))
            ratio["shift"] = np.maximum(ratio["shift"], change)
            return Residual(operand.name, **ratio, exponent_change=change)

        return epilogue

    def raw(self, channels: int, reach: int) -> Raw:
        return Raw(**self.ratio(channels, reach, 1 << (self.shape.residual_bits - 2)))

    def norm(self, name: str, out: Value) -> Value:
        channels, fraction = self.last.shape[1], int(self.integers(4, 12))
        shift = fraction + int(self.integers(4, 10))
        gain = self.integers(-(1 << shift - fraction + 3), 1 << shift - fraction + 3, channels)
        offset = self.integers(out.low << shift, out.high << shift, channels, np.int64)
        variance_offset = int(self.rng.choice([1, 7, 1 << 20]))
        return self.add(LayerNorm(self.last.name, out, gain, offset, shift, variance_offset, fraction))

    def gather(self, name: str, shape: tuple[int, ...], indices: np.ndarray, granule: int) -> Value:
        out = Value(name, shape, self.last.bits, self.last.signed)
        return self.add(Gather(self.last.name, out, indices.astype(np.int32).ravel(), granule))

    def frozen(self, maps: int, rows: int, tokens: int) -> Frozen | None:
        shape, kind = (maps, self.shape.heads, rows, tokens), self.shape.freeze
        mask = np.zeros(shape, bool)
        match kind:
            case "none":
                return None
            case "scattered":
                mask = self.rng.random(shape) < self.rng.random()
            case "rows":
                mask[:, :, self.rng.random(rows) < 0.5] = True
            case "columns":
                mask[..., self.rng.random(tokens) < 0.5] = True
            case "units":
                mask = np.array([self.units(rows, tokens) for _ in range(maps * self.shape.heads)]).reshape(shape)
            case "heads":
                mask[:, self.rng.integers(self.shape.heads)] = True
            case "all":
                mask[:] = True
        codes = np.where(mask, self.integers(0, (1 << self.shape.frozen_bits) - 1, shape, np.uint8), np.uint8(0))
        row_log2 = self.integers(0, 6 << self.shape.exponent_bits, shape[:3])
        return Frozen(mask, codes, self.shape.frozen_bits, row_log2)

    def units(self, rows: int, tokens: int) -> np.ndarray:
        """A map frozen by rows, by columns or by tiles, whole heads now and then, bool [rows, tokens]."""
        sides = tuple(int(side) for side in self.rng.integers(1, tokens + 1, 2))
        height, width = ((1, tokens), (tokens, 1), sides)[self.rng.integers(3)]
        down, across = np.arange(rows) // height, np.arange(tokens) // width
        return (self.rng.random((rows, tokens)) < self.rng.random())[np.ix_(down, across)]

    def attention(self, name: str, chosen: np.ndarray | None) -> Value:
        """qkv Linear and Attention on the newest value, whose tokens are `windows` windows in a row; chosen: q's own [windows, rows]."""
        s, rng = self.shape, self.rng
        x, tokens = self.last, self.last.shape[0] // s.windows
        rows = tokens if chosen is None else chosen.shape[1]
        frozen = self.frozen(int(rng.choice([1, s.windows])), rows, tokens)
        scored = tuple(range(s.heads))
        if frozen is not None and s.softmax == "renormalised":
            scored = tuple(h for h in scored if not frozen.mask[:, h].all()) or ((0,) if s.queries else ())
        queries, width = None, (2 * len(scored) + s.heads) * s.head_dim
        if chosen is not None:
            queries = Queries(self.own_queries(f"{name}.q", chosen, len(scored) * s.head_dim).name, tokens)
            self.last, width = x, (len(scored) + s.heads) * s.head_dim
        self.projection(f"{name}.kv" if queries else f"{name}.qkv", width)
        f, high, x = s.exponent_bits, self.last.high, self.last
        top = (1 << s.datapath.multiplier_bits) - 1
        bias = self.integers(-500, 500, (int(rng.choice([1, s.windows])), s.heads, rows, tokens)) if s.biased else None
        excluded = rng.random((s.windows, rows, tokens)) < 0.3 if s.biased else None
        reach = s.head_dim * high * high
        score_shift = max(0, int(np.log2(reach * top / (8 << f))) + int(rng.integers(-2, 3)))
        context_reach = (1 << ((1 << s.attention_bits) - 1) // 2) * high * 2
        out = Value(name, (s.windows * rows, s.heads * s.head_dim), s.activation_bits)
        even = int(self.integers(top // 2, top))
        return self.add(
            Attention(
                x.name, out, s.heads, s.windows, scored, *(int(self.integers(0, high)) for _ in range(3)),
                score_multiplier=int(self.integers(top // 2, top)), score_shift=score_shift,
                exp2=np.round(2.0 ** (15 - np.arange(1 << f) / (1 << f))).astype(np.int32), exp2_bits=15,
                log2=np.round(np.log2(1 + np.arange(1 << f) / (1 << f)) * (1 << f)).astype(np.int32),
                log2_scale=int(self.integers(-(2 << f), 1 << f)), attention_bits=s.attention_bits,
                last_code_is_zero=s.last_code_is_zero, softmax=s.softmax,  # pyright: ignore[reportArgumentType]
                multiplier_even=even, multiplier_odd=round(even / 2**0.5),
                out_shift=int(np.log2(context_reach * top / high)), out_zero=int(self.integers(0, high)),
                frozen=frozen, logit_bias=bias, excluded=excluded, queries=queries,
            )
        )  # fmt: skip

    def own_queries(self, name: str, chosen: np.ndarray, width: int) -> Value:
        """q of some rows of the newest value, any of them more than once or never."""
        channels = self.last.shape[1]
        self.gather(f"{name}.x", (chosen.size, channels), chosen, channels)
        return self.linear(name, self.codes(name, width), self.requant)

    def projection(self, name: str, width: int) -> None:
        """q, k and v: codes [tokens, width]."""
        codes, rows = self.codes(name, width), self.last.shape[0]
        if self.shape.detour == "qkv.norm":
            self.linear(f"{name}.linear", Value(f"{name}.linear", codes.shape, self.shape.residual_bits, True), self.raw)
            self.norm(name, codes)
            return
        self.linear(name, codes, self.requant)
        if self.shape.detour == "qkv.gather":
            self.gather(f"{name}.gather", codes.shape, self.rng.permutation(rows), width)

    def detoured(self, name: str, stream: Value, context: Value) -> Value:
        """Gathers after Attention: the newest value is what proj reads, the result the stream that it is added to."""
        rows, channels = stream.shape
        match self.shape.detour:
            case "class":
                shape, indices, granule = (1, channels), np.zeros(1), channels
            case "split" if channels % 2 == 0:
                shape, indices, granule = (2 * rows, channels // 2), self.rng.permutation(2 * rows), channels // 2
            case _:
                return stream
        self.last = stream
        stream = self.gather(f"{name}.stream", shape, indices, granule)
        self.last = context
        self.gather(f"{name}.context", shape, indices, granule)
        return stream

    def block(self, name: str) -> None:
        s, stream = self.shape, self.last
        channels = stream.shape[1]
        self.norm(f"{name}.norm1", self.codes(f"{name}.norm1", channels))
        order = self.rng.permutation(stream.shape[0])
        if s.windows > 1:
            self.gather(f"{name}.partition", stream.shape, order, channels)
        chosen = self.rng.integers(stream.shape[0], size=(s.windows, s.queries)) if s.queries else None
        context = self.attention(f"{name}.attn", chosen)
        if s.detour == "twice":
            op = self.operations[-1]
            context = self.add(replace(op, out=replace(context, name=f"{name}.again")))
        if chosen is not None:
            self.last = stream
            stream = self.gather(f"{name}.rows", (chosen.size, channels), order[chosen] if s.windows > 1 else chosen, channels)
            self.last = context
        elif s.windows > 1:
            context = self.gather(f"{name}.reverse", context.shape, np.argsort(order), context.shape[1])
        stream = self.detoured(name, stream, context)
        middle = Value(f"{name}.attn.proj", stream.shape, s.residual_bits, True)
        self.linear(middle.name, middle, self.residual(stream))
        self.norm(f"{name}.norm2", self.codes(f"{name}.norm2", stream.shape[1]))
        self.linear(f"{name}.mlp.fc1", self.codes(f"{name}.mlp.fc1", s.hidden), self.gelu)
        out = Value(f"{name}.mlp.fc2", stream.shape, s.residual_bits, True)
        self.linear(out.name, out, self.residual(middle))

    def tail(self) -> None:
        stream = self.last
        channels = stream.shape[1]
        if self.shape.pooled:
            self.norm("norm", Value("norm", stream.shape, 8, True))
            out = Value("pool", (1, channels), self.shape.activation_bits)
            ratio = {key: int(value[0]) for key, value in self.ratio(1, 128 * stream.shape[0], out.high).items()}
            self.add(Pool("norm", out, **ratio, zero=int(self.integers(0, out.high))))
        else:
            self.gather("cls", (1, channels), np.zeros(1), channels)
            self.norm("norm", self.codes("norm", channels))
        self.linear("head", Value("head", (1, 5), 32, True), self.raw)


def random_program(shape: Shape) -> Verified:
    """A program with the named extents, widths and freezing."""
    b, side = Builder(shape), shape.side // shape.patch
    table = b.integers(0, (1 << shape.input_bits) - 1, (3, 256), np.uint8)
    b.add(InputQuant("image", Value("input", b.last.shape, shape.input_bits), table))
    rows = np.arange(shape.side * side).reshape(side, shape.patch, side).transpose(0, 2, 1)
    b.gather("patches", (side * side, shape.patch**2 * 3), rows, shape.patch * 3)
    channels = shape.heads * shape.head_dim
    out = Value("patch_embed", (side * side, channels), shape.residual_bits, True)
    b.linear("patch_embed", out, b.raw)
    limit = 1 << (shape.residual_bits - 2)
    embedded = Value("embed", (shape.prefix + side * side, channels), shape.residual_bits, True)
    prefix, position = (b.integers(-limit, limit, (rows_, channels)) for rows_ in (shape.prefix, side * side))
    b.add(Embed("patch_embed", embedded, prefix, position))
    for block in range(shape.depth):
        b.block(f"block{block}")
    b.tail()
    return Verified("random", Value("image", (shape.side, shape.side, 3), 8), tuple(b.operations), shape.datapath)


def unproved(program: Program, **changes) -> Program:
    """The program with these fields, legal or not."""
    return Program(**{each.name: getattr(program, each.name) for each in fields(Program)} | changes)


T = TypeVar("T")


def operation(program: Program, name: str, kind: type[T]) -> T:
    """The operation that makes the value `name`, which is of this kind."""
    op = next(op for op in program.operations if op.out.name == name)
    assert isinstance(op, kind)
    return op


def random_images(program: Program, images: int, seed: int) -> np.ndarray:
    """uint8 [images, height, width, 3]; the first is constant, so that LayerNorm sees equal rows."""
    batch = np.random.default_rng(seed).integers(0, 256, (images, *program.image.shape), dtype=np.uint8)
    batch[0] = batch[0, 0, 0]
    return batch
