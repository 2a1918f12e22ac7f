"""Every tensor of a program with the width it is declared to have: taps (docs/spec/datapath.md section 4) and constants."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from math import isqrt
from typing import Any, assert_never

import numpy as np

from eamsim.check import Bound
from eamsim.constraints import LEVEL_BITS, Verified, expect_verified
from eamsim.errors import UserError
from eamsim.files.packing import BITS, limits
from eamsim.program import (
    Attention,
    Datapath,
    Embed,
    Epilogue,
    Frozen,
    Gather,
    Gelu,
    InputQuant,
    LayerNorm,
    Linear,
    Operation,
    Pool,
    Queries,
    Raw,
    Requant,
    Residual,
    Value,
)

SHIFT_BITS, ROW_LOG2_BITS = 6, 25


@dataclass(frozen=True)
class Tap:
    """What one operation publishes for one image: a name, shape and register width, and what no image can exceed.

    bound: the least and the greatest integer that the datapath can bring about, as `eamsim.constraints` proves it from the actual weights
    (after narrowing, where the accumulator wraps or saturates); of outputs and codes the range of their width.
    """

    value: Value
    bound: Bound

    @property
    def packing(self) -> str:
        """The first packing of `eamsim.files.packing` that holds the bound: how traces store and digest the tap."""
        return next(name for name in BITS if limits(name)[0] <= self.bound[0] and self.bound[1] <= limits(name)[1])


def taps(program: Verified) -> dict[str, Tap]:
    """Every tap by name in the order of execution, the image first."""
    expect_verified(program)
    found = [ranged(program.image)]
    for op in program.operations:
        found += [*inner_taps(op, program), ranged(op.out)]
    return {tap.value.name: tap for tap in found}


def ranged(value: Value) -> Tap:
    return Tap(value, (value.low, value.high))


def inner_taps(op: Operation, program: Verified) -> Iterator[Tap]:
    """What an operation publishes before its output."""
    match op:
        case LayerNorm():
            yield from layer_norm_taps(op, program.values[op.x])
        case Linear():
            yield accumulator(f"{op.out.name}.acc", op.out.shape, program.bounds[f"{op.out.name}.acc"], program.datapath)
            if isinstance(op.epilogue, Gelu):
                yield ranged(Value(f"{op.out.name}.index", op.out.shape, op.epilogue.index_bits))
        case Attention():
            yield from attention_taps(op, program.bounds, program.datapath)
        case InputQuant() | Gather() | Embed() | Pool():
            return
        case _:
            assert_never(op)


def accumulator(name: str, shape: tuple[int, ...], bound: Bound, datapath: Datapath) -> Tap:
    """A finished sum: as wide as the accumulator, within its proven bound or, where that does not fit, in the accumulator's range."""
    value = Value(name, shape, datapath.accumulator_bits, signed=True)
    fits = value.low <= bound[0] and bound[1] <= value.high
    return Tap(value, bound) if fits else ranged(value)


def unsigned(name: str, shape: tuple[int, ...], high: int) -> Tap:
    """0 to `high`, in as many bits as that takes."""
    return Tap(Value(name, shape, max(high.bit_length(), 1)), (0, high))


def layer_norm_taps(op: LayerNorm, x: Value) -> Iterator[Tap]:
    name, (tokens, channels), reach = op.out.name, op.out.shape, 1 << (x.bits - 1)
    yield unsigned(f"{name}.variance", (tokens,), channels * channels * reach * reach + op.variance_offset)
    yield unsigned(f"{name}.reciprocal", (tokens,), 2 << op.reciprocal_bits)  # D has its leading one at 2^(e - reciprocal_bits - 1)
    normalised = (2 << op.fraction_bits) * (isqrt(channels) + 2)  # C7
    bound = -normalised, normalised
    yield Tap(Value(f"{name}.normalised", op.out.shape, normalised.bit_length() + 1, signed=True), bound)


def attention_taps(op: Attention, bounds: Mapping[str, Bound], datapath: Datapath) -> Iterator[Tap]:
    name, rows = op.out.name, (op.windows, op.heads, op.rows)
    pairs, context = (*rows, op.tokens), (*rows, op.head_dim)
    yield accumulator(f"{name}.scores", pairs, bounds[f"{name}.scores"], datapath)
    yield unsigned(f"{name}.exponents", pairs, bounds[f"{name}.exponents"][1])
    # The row's greatest score adds 2^exp2_bits, every other pair at most as much; log2's table ends at 2^f.
    yield unsigned(f"{name}.log_sum", rows, op.tokens.bit_length() << op.fraction_bits)
    yield unsigned(f"{name}.codes", pairs, op.last_code)
    for part in ("even", "odd"):
        yield accumulator(f"{name}.{part}", context, bounds[f"{name}.{part}"], datapath)


def constants(op: Operation, program: Verified) -> dict[str, tuple[Value, np.ndarray]]:
    """Every array of an operation that is not empty, by its field (`weight`, `frozen.codes`), as wide as its constraints allow."""
    out = op.out
    match op:
        case InputQuant():
            widths = {"table": out.bits}
        case Gather():
            widths = {"indices": max((program.values[op.x].size // op.granule - 1).bit_length(), 1)}
        case Embed():
            widths = {"prefix": -out.bits, "position": -out.bits}
        case LayerNorm():
            widths = {"gain": -32, "offset": -64}
        case Linear():
            widths = {"weight": op.weight_bits, "weight_zero": op.weight_bits, "bias": -32, "levels": -LEVEL_BITS}
            widths |= epilogue_widths(op.epilogue, out, program.datapath)
        case Attention():
            frozen_bits = 0 if op.frozen is None else op.frozen.bits
            widths = {"exp2": op.exp2_bits + 1, "log2": op.fraction_bits + 1, "logit_bias": -32, "excluded": 1}
            widths |= {"frozen.mask": 1, "frozen.codes": frozen_bits, "frozen.row_log2": ROW_LOG2_BITS}
        case Pool():
            widths = {}
        case _:
            assert_never(op)
    arrays = {name: item for name, item in leaves(op) if isinstance(item, np.ndarray) and item.size}
    return {name: (Value(f"{out.name}.{name}", array.shape, *width(widths[name])), array) for name, array in arrays.items()}


def width(bits: int) -> tuple[int, bool]:
    """Bits and sign of a width that is negative when signed."""
    return abs(bits), bits < 0


def epilogue_widths(epilogue: Epilogue, out: Value, datapath: Datapath) -> dict[str, int]:
    ratio = {"multiplier": datapath.multiplier_bits, "shift": SHIFT_BITS}
    match epilogue:
        case Requant():
            return ratio | {"zero": out.bits}
        case Gelu():
            return ratio | {"table": out.bits}
        case Residual() | Raw():
            return ratio
        case _:
            assert_never(epilogue)


def parameters(op: Operation) -> dict[str, Any]:
    """Every number, flag and text of an operation by its field (`x_zero`, `index_bits`)."""
    return {name: item for name, item in leaves(op) if not isinstance(item, np.ndarray | Value) and item is not None}


def leaves(part: Operation | Epilogue | Frozen | Queries) -> Iterator[tuple[str, Any]]:
    """The fields of an operation, those of its epilogue among them, of its frozen weights and queries after `frozen.` and `queries.`."""
    for field in fields(part):
        item = getattr(part, field.name)
        if isinstance(item, Frozen | Queries):
            yield from ((f"{field.name}.{name}", leaf) for name, leaf in leaves(item))
        elif isinstance(item, Epilogue):
            yield "epilogue", type(item).__name__
            yield from leaves(item)
        else:
            yield field.name, item


def matching(names: Iterable[str], patterns: str, option: str) -> list[str]:
    """The names that fit one of the patterns (`block0.attn*,*.acc`), in their order; UserError for a pattern that fits none."""
    names = list(names)
    for pattern in patterns.split(","):
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UserError(
                f"{option}: {pattern!r} fits none of {', '.join(names[:4])}, ... ({len(names)} names); see eamsim trace inspect"
            )
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns.split(","))]
