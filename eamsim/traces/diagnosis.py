"""Why two runs differ: what made the differing integer, and which known mistake gives exactly what was found.

A mistake is not guessed from a few numbers. The operation is executed again by the golden interpreter with the mistake built in, on the
expected inputs, and named only where all its integers come out as found.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any, assert_never, get_args

import numpy as np

from eamsim import golden
from eamsim.constraints import Verified
from eamsim.program import (
    Attention,
    Datapath,
    Embed,
    Gather,
    Gelu,
    InputQuant,
    LayerNorm,
    Linear,
    Operation,
    Pool,
    Raw,
    Requant,
    Residual,
    Rounding,
)

ENOUGH = 4  # integers that differ: fewer look like anything
Taps = Mapping[str, np.ndarray]
Variant = tuple[str, Operation, Datapath]


def operation_of(program: Verified, tap: str) -> Operation | None:
    """The operation that publishes the tap; None for the image."""
    by_name = {op.out.name: op for op in program.operations}
    return by_name.get(tap) or by_name.get(tap.rpartition(".")[0])


def published_with(program: Verified, tap: str, taps: Iterable[str]) -> list[str]:
    """Those of the taps that the same operation publishes."""
    op = operation_of(program, tap)
    return [name for name in taps if operation_of(program, name) is op]


@dataclass(frozen=True)
class Diagnosis:
    """cause: what explains the integers found, or None. tried: the mistakes that were executed. not_tried: why none was, or empty."""

    cause: str | None
    tried: int
    not_tried: str


def diagnose(program: Verified | None, tap: str, expected: Taps, found: Taps, bits: int) -> Diagnosis:
    """The mistake that gives every integer of the tap's operation as found, for one image, or what the integers look like.

    program: None where no mistake can be tried. bits: the width of the tap. Both sides hold the tap in one shape.
    """
    op = None if program is None else operation_of(program, tap)
    tried, not_tried = 0, "no operation makes it"
    if program is not None and op is not None:
        missing = [name for name in op.inputs if name not in expected]
        not_tried = f"{' and '.join(missing)}, which it reads, is not known" if missing else ""
        published = published_with(program, tap, found)
        for cause, variant, datapath in [] if missing else mistakes(op, program.datapath):
            tried += 1
            if reproduces(variant, datapath, expected, found, published):
                places = "tap" if len(published) == 1 else "taps"
                return Diagnosis(f"{cause}: gives exactly what was found, at {len(published)} {places} of {op.out.name}", tried, "")
    return Diagnosis(flipped_bit(expected[tap], found[tap], bits) or resemblance(expected[tap], found[tap]), tried, not_tried)


def reproduces(op: Operation, datapath: Datapath, expected: Taps, found: Taps, published: list[str]) -> bool:
    values = {name: expected[name] for name in op.inputs}
    taps: dict[str, np.ndarray] = {}
    try:
        taps[op.out.name] = golden.execute(op, values, datapath, taps.__setitem__)
    except (ValueError, IndexError):  # the mistake leads out of a table
        return False
    return all(np.array_equal(taps[name].ravel(), found[name].ravel()) for name in published)


def mistakes(op: Operation, datapath: Datapath) -> Iterator[Variant]:
    """Known mistakes of implementations, as an operation and a datapath that make them."""
    for rounding in get_args(Rounding):
        if rounding != datapath.rounding:
            yield f"rounding {rounding} instead of {datapath.rounding}", op, replace(datapath, rounding=rounding)
    for overflow in ("wrap", "saturate"):
        if overflow != datapath.overflow:
            yield f"accumulator: {overflow} instead of {datapath.overflow}", op, replace(datapath, overflow=overflow)
    for cause, variant in [*zero_points(op), *shifts(op), *orders(op)]:
        yield cause, variant, datapath


def zero_points(op: Operation) -> Iterator[tuple[str, Operation]]:
    match op:
        case Linear():
            for name in ("x_zero", "weight_zero", "bias"):
                yield f"missing {name}", replace(op, **{name: getattr(op, name) * 0})
            match op.epilogue:
                case Requant():
                    yield "missing zero point of the output", replace(op, epilogue=replace(op.epilogue, zero=op.epilogue.zero * 0))
                case Gelu():
                    yield "missing index_zero", replace(op, epilogue=replace(op.epilogue, index_zero=0))
                case Residual() | Raw():
                    pass
                case _:
                    assert_never(op.epilogue)
            if op.levels is not None:
                yield "codes themselves in place of their levels", replace(op, levels=None)
        case Attention():
            for name in ("q_zero", "k_zero", "v_zero", "out_zero", "log2_scale"):
                yield f"missing {name}", replace(op, **{name: 0})
        case Pool():
            yield "missing zero", replace(op, zero=0)
        case LayerNorm():
            yield "missing offset", replace(op, offset=op.offset * 0)
        case InputQuant() | Gather() | Embed():
            return
        case _:
            assert_never(op)


def shifts(op: Operation) -> Iterator[tuple[str, Operation]]:
    for by in (-1, 1, -2, 2, -4, 4):
        match op:
            case Linear():
                shift = np.maximum(op.epilogue.shift + by, 0)
                yield f"shift wrong by {by:+}", replace(op, epilogue=replace(op.epilogue, shift=shift))
                if isinstance(op.epilogue, Residual):
                    change = op.epilogue.exponent_change + by
                    if 0 <= change <= int(op.epilogue.shift.min()):
                        yield f"exponent_change wrong by {by:+}", replace(op, epilogue=replace(op.epilogue, exponent_change=change))
            case Attention():
                for name in ("score_shift", "out_shift"):
                    yield f"{name} wrong by {by:+}", replace(op, **{name: max(getattr(op, name) + by, 0)})
            case LayerNorm() | Pool():
                yield f"shift wrong by {by:+}", replace(op, shift=max(op.shift + by, 0))
            case InputQuant() | Gather() | Embed():
                return
            case _:
                assert_never(op)


def orders(op: Operation) -> Iterator[tuple[str, Operation]]:
    """Constants read from memory in another order, or with a sign."""
    match op:
        case Linear():
            if op.weight.size % 2 == 0:
                yield "nibble order of the weights (each pair swapped)", replace(op, weight=swapped(op.weight))
            transposed = np.ascontiguousarray(op.weight.T).reshape(op.weight.shape)
            yield "transposed weights", replace(op, weight=transposed)
            half = 1 << (op.weight_bits - 1)
            weight = (op.weight.astype(np.int64) ^ half) - half
            yield f"weights sign-extended from {op.weight_bits} bits, which are unsigned", replace(op, weight=weight)
            if op.levels is not None:
                yield "levels taken for unsigned, which are signed", replace(op, levels=op.levels & 255)
        case Attention():
            if op.frozen is not None and op.frozen.codes.size % 2 == 0:
                frozen = replace(op.frozen, codes=swapped(op.frozen.codes))
                yield "nibble order of the frozen codes (each pair swapped)", replace(op, frozen=frozen)
        case InputQuant():
            yield "channels in the order BGR", replace(op, table=op.table[::-1])
        case Gather() | Embed() | LayerNorm() | Pool():
            return
        case _:
            assert_never(op)


def swapped(codes: np.ndarray) -> np.ndarray:
    return codes.reshape(-1, 2)[:, ::-1].reshape(codes.shape)


def in_register(number: int, bits: int) -> bool:
    """Whether the number fits the width, with a sign or without."""
    return -(1 << (bits - 1)) <= number < 1 << bits


def flipped_bit(expected: np.ndarray, found: np.ndarray, bits: int) -> str | None:
    """The bit, where the tap differs in one element and there in one bit of its register."""
    wrong = np.argwhere(expected != found)
    if len(wrong) != 1:
        return None
    index = tuple(int(i) for i in wrong[0])
    numbers = int(expected[index]), int(found[index])
    changed = (numbers[0] ^ numbers[1]) & ((1 << (bits if all(in_register(number, bits) for number in numbers) else 64)) - 1)
    if changed.bit_count() != 1:
        return None
    change = f"bit {changed.bit_length() - 1} of {list(index)}, {numbers[0]} -> {numbers[1]}"
    return f"one flipped bit: {change}; the other {expected.size - 1} integers of this tap and image are as expected"


def swapped_axes(expected: np.ndarray, found: np.ndarray) -> tuple[int, ...] | None:
    """The order of the axes of `expected` in which its integers lie in `found`; None where they do in none, or already in C order."""
    orders = permutations(range(expected.ndim))
    return (
        None
        if np.array_equal(expected.ravel(), found.ravel())
        else next((axes for axes in orders if np.array_equal(expected.transpose(axes).ravel(), found.ravel())), None)
    )


def resemblance(expected: np.ndarray, found: np.ndarray) -> str | None:
    """What the integers of one tap look like, without a program to execute; said as a likeness, not as a finding."""
    found = found.reshape(expected.shape)
    error = found - expected
    wrong = error != 0
    if axes := swapped_axes(expected, found):
        return f"looks like a transposition: found holds the expected integers with the axes in the order {list(axes)}"
    if expected.size % 2 == 0 and np.array_equal(swapped(expected), found):
        return "looks like nibble order: each pair of elements is swapped"
    if np.count_nonzero(wrong) < ENOUGH:
        return None
    for bits in (32, 24, 16, 12, 8, 4):
        if (error[wrong] % (1 << bits) == 0).all():
            return f"looks like sign extension, or a width of {bits} bits: all errors are multiples of 2^{bits}"
    if np.isin(found[wrong], [found.min(), found.max()]).all():
        return f"looks like saturation: what differs is found at {sorted(set(found[wrong].tolist()))}"
    if (np.abs(error[wrong]) == 1).all():
        return "looks like rounding: all errors are one"
    if len(np.unique(error[wrong])) == 1:
        return f"looks like a missing constant: all errors are {int(error[wrong][0])}"
    return None


def operands(program: Verified, tap: str, index: tuple[int, ...], taps: Taps) -> dict[str, int]:
    """What made the integer at the index, as far as it is known: integers of the taps and constants of the operation."""
    op = operation_of(program, tap)
    inner = tap.rpartition(".")[2] if op is not None and tap != op.out.name else ""
    match op:
        case Linear():
            found = linear_operands(op, inner, index, taps)
        case Attention():
            found = attention_operands(op, inner, index, taps)
        case LayerNorm():
            found = layer_norm_operands(op, inner, index, taps)
        case Pool():
            found = {"M": op.multiplier, "S": op.shift, "zero": op.zero}
        case InputQuant() | Gather() | Embed() | None:
            found = {}
        case _:
            assert_never(op)
    return {name: int(number) for name, number in found.items() if number is not None}


def at(taps: Taps, name: str, index: tuple[int, ...]) -> Any:
    return taps[name][index] if name in taps else None


def linear_operands(op: Linear, inner: str, index: tuple[int, ...], taps: Taps) -> dict[str, Any]:
    channel = index[1]
    if inner == "acc":
        return {"bias": op.bias[channel], "x_zero": op.x_zero, "weight_zero": op.weight_zero[channel], "terms": op.weight.shape[0]}
    epilogue = op.epilogue
    found = {"acc": at(taps, f"{op.out.name}.acc", index), "M": epilogue.multiplier[channel], "S": epilogue.shift[channel]}
    match epilogue:
        case Requant():
            return found | {"zero": epilogue.zero[channel]}
        case Gelu():
            return found | {"index_zero": epilogue.index_zero, "index": None if inner else at(taps, f"{op.out.name}.index", index)}
        case Residual():
            return found | {"residual": at(taps, epilogue.operand, index), "exponent_change": epilogue.exponent_change}
        case Raw():
            return found
        case _:
            assert_never(epilogue)


def attention_operands(op: Attention, inner: str, index: tuple[int, ...], taps: Taps) -> dict[str, Any]:
    name = op.out.name
    match inner:
        case "scores":
            return {"q_zero": op.q_zero, "k_zero": op.k_zero, "terms": op.head_dim}
        case "exponents":
            scores = taps.get(f"{name}.scores")
            row = None if scores is None else scores[index[:3]].max()
            return {"score": at(taps, f"{name}.scores", index), "greatest": row, "M": op.score_multiplier, "S": op.score_shift}
        case "log_sum":
            return {"exp2_bits": op.exp2_bits, "f": op.fraction_bits}
        case "codes":
            found = {"exponent": at(taps, f"{name}.exponents", index), "log_sum": at(taps, f"{name}.log_sum", index[:3])}
            return found | {"log2_scale": op.log2_scale, "S": op.fraction_bits, **frozen_operands(op, index)}
        case "even" | "odd":
            return {"v_zero": op.v_zero, "terms": op.tokens}
        case "":
            window, row = divmod(index[0], op.rows)
            head, channel = divmod(index[1], op.head_dim)
            sums = {part: at(taps, f"{name}.{part}", (window, head, row, channel)) for part in ("even", "odd")}
            return sums | {"M_even": op.multiplier_even, "M_odd": op.multiplier_odd, "S": op.out_shift, "zero": op.out_zero}
        case _:
            raise AssertionError(f"Attention has no tap .{inner}")


def frozen_operands(op: Attention, index: tuple[int, ...]) -> dict[str, Any]:
    if op.frozen is None:
        return {}
    window, head, token, _ = index
    place = (window % len(op.frozen.mask), head, token)
    return {"frozen": op.frozen.mask[(*place, index[3])], "row_log2": op.frozen.row_log2[place]}


def layer_norm_operands(op: LayerNorm, inner: str, index: tuple[int, ...], taps: Taps) -> dict[str, Any]:
    name, row = op.out.name, index[:1]
    match inner:
        case "variance":
            return {"variance_offset": op.variance_offset, "channels": op.out.shape[1]}
        case "reciprocal":
            return {"variance": at(taps, f"{name}.variance", row), "reciprocal_bits": op.reciprocal_bits}
        case "normalised":
            return {"reciprocal": at(taps, f"{name}.reciprocal", row), "x": at(taps, op.x, index), "fraction_bits": op.fraction_bits}
        case "":
            found = {"normalised": at(taps, f"{name}.normalised", index), "gain": op.gain[index[1]], "offset": op.offset[index[1]]}
            return found | {"S": op.shift}
        case _:
            raise AssertionError(f"LayerNorm has no tap .{inner}")
