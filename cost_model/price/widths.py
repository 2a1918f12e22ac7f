"""What a datapath of given widths costs: energy per image and area, from the widths of a program's own operations.

The figures of the hardware description hold at its widths (multiplies 32 x 32 bits, simple steps 32, lookups 8 bits from 8 KB, the
array's multipliers and accumulators); here they are scaled to the program's. All of that is an estimate. Scaling laws: a multiplier is
quadratic (Horowitz, ISSCC 2014, 45 nm: 3.1 pJ at 32 x 32 bits, 0.2 at 8 x 8, a factor of 15.5 for 16 times the bits), an adder linear
(0.1, 0.05, 0.03 pJ at 32, 16, 8 bits), a memory's energy per bit grows with the root of its size (10 pJ at 8 KB, 20 at 32 KB, 100 at
1 MB). Leakage is left out: widths do not change the time.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log2
from typing import assert_never

from cost_model.chip.area import ADD_UM2, MULTIPLY_UM2, REGISTER_UM2, element_um2
from cost_model.chip.hardware import Array, Hardware
from cost_model.chip.technology import ADD_PJ, MULTIPLY_PJ, Energy, memory_growth
from cost_model.price.energy import evaluate, product_energy
from cost_model.work.ledger import operation_work
from eamsim.constraints import LEVEL_BITS, Verified
from eamsim.errors import UserError
from eamsim.program import Attention, Embed, Epilogue, Gather, Gelu, InputQuant, LayerNorm, Linear, Operation, Pool, Raw, Requant, Residual

TABLE_UM2 = 1.0
"""Per bit of a table: an estimate, three times a 6T cell of about 0.35 um2 at 45 nm, for the periphery of so small a memory."""
LOOKUP_BITS, LOOKUP_TABLE_BITS = 8, 8 * 8192
"""What one lookup of a hardware description is: 8 bits out of 8 KB."""


@dataclass(frozen=True)
class Step:
    """One unit of a kind of work (`ledger.STEPS`) on the vector unit.

    multiplies: widths of both operands; simple: widths; lookups: (index bits, entry bits) of tables.
    """

    multiplies: tuple[tuple[int, int], ...] = ()
    simple: tuple[int, ...] = ()
    lookups: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Price:
    """Per image, in pJ: the array's multiply-accumulates, the vector unit, everything moved. area_um2: array, lanes and tables."""

    mac: Energy
    vector: Energy
    traffic: Energy
    area_um2: float

    @property
    def energy(self) -> Energy:
        return self.mac + self.vector + self.traffic


def price(program: Verified, hardware: Hardware, batch: int = 1) -> Price:
    """A verified program on an array whose units are as wide as the program needs.

    UserError for a SIMD core, whose registers are as wide as they are, and where the program does not fit the memories.
    """
    array = hardware.compute
    if not isinstance(array, Array):
        raise UserError(f"--hw: expected an array, whose units can be made narrower, got {hardware.name}, a SIMD core; choose another")
    bits = program.datapath.accumulator_bits
    mac_pj = array.mac_pj * (_mac_pj(array, bits) / _mac_pj(array, array.accumulator_bits))
    array = array.model_copy(update={"accumulator_bits": bits, "mac_pj": mac_pj})
    estimate = evaluate(program, hardware.model_copy(update={"compute": array}), batch)
    levels = hardware.memories.levels
    moved = sum((memory.energy(*estimate.traffic.of(level)) for level, memory in levels.items()), Energy())
    counted = [(operation_work(program, op), steps(program, op)) for op in program.operations]
    work = [(kind, step, getattr(total, kind)) for total, units in counted for kind, step in units.items()]
    return Price(
        mac=sum((product_energy(array, op.runs) for op in estimate.operations), Energy()) * (1 / batch),
        vector=sum((step_energy(step, hardware) * count for _, step, count in work), Energy()),
        traffic=moved * (1 / batch),
        area_um2=array.rows * array.columns * element_um2(array, bits)
        + hardware.vector.lanes * lane_area([(kind, step) for kind, step, count in work if count]),
    )


def _mac_pj(array: Array, accumulator_bits: int) -> float:
    return array.left_bits * array.right_bits * MULTIPLY_PJ + accumulator_bits * ADD_PJ


def step_energy(step: Step, hardware: Hardware) -> Energy:
    """Of one unit of work."""
    vector = hardware.vector
    products = sum(left * right for left, right in step.multiplies) / 32**2
    read = sum(width / LOOKUP_BITS * memory_growth(width << index, LOOKUP_TABLE_BITS) for index, width in step.lookups)
    return vector.multiply_pj.energy * products + vector.simple_pj.energy * (sum(step.simple) / 32) + vector.lookup_pj.energy * read


def lane_area(used: list[tuple[str, Step]]) -> float:
    """The largest multiplier and adder that any step needs, and a memory for the largest table of each kind of work."""
    multiply = max((left * right for _, step in used for left, right in step.multiplies), default=0)
    add = max((width for _, step in used for width in step.simple), default=0)
    tables: dict[str, int] = {}
    for kind, step in used:
        for index, width in step.lookups:
            tables[kind] = max(tables.get(kind, 0), width << index)
    return multiply * MULTIPLY_UM2 + add * (ADD_UM2 + REGISTER_UM2) + sum(tables.values()) * TABLE_UM2


def steps(program: Verified, op: Operation) -> dict[str, Step]:
    """The steps of one unit of each kind of work that an operation may have, at the widths of the program."""
    x, bits, multiplier = program.values[op.x], program.datapath.accumulator_bits, program.datapath.multiplier_bits
    product, out = bits + multiplier, op.out.bits
    match op:
        case InputQuant():
            return {"input_lookups": Step(lookups=((8, out),))}
        case Gather():
            return {"moved": Step(simple=(out,))}
        case Embed():
            return {"embedded": Step(simple=(out + 1, out + 1))}
        case LayerNorm():
            return norm_steps(op, x.bits, x.shape[1], multiplier)
        case Linear():
            levels = {} if op.levels is None else {"level_lookups": Step(lookups=((x.bits, LEVEL_BITS),))}
            return {"requantised": Step(((bits, multiplier),), (product,) * 3)} | epilogue_steps(op.epilogue, product, out) | levels
        case Attention():
            return attention_steps(op, bits, multiplier)
        case Pool():
            total = x.bits + _bits(x.shape[0])
            return {"pooled": Step(simple=(total,)), "requantised": Step(((total, multiplier),), (total + multiplier,) * 3)}
        case _:
            assert_never(op)


def epilogue_steps(epilogue: Epilogue, product_bits: int, out_bits: int) -> dict[str, Step]:
    """Those beside the requantisation of the sums of a Linear."""
    match epilogue:
        case Requant() | Raw():
            return {}
        case Gelu():
            return {"gelu_lookups": Step(lookups=((epilogue.index_bits, out_bits),))}
        case Residual():
            return {"residual_adds": Step(simple=(product_bits + 1,) * 2)}
        case _:
            assert_never(epilogue)


def norm_steps(op: LayerNorm, bits: int, channels: int, gain_bits: int) -> dict[str, Step]:
    """Of x of so many bits: squares and centring, y r, the gain; for each token V, its root and the reciprocal, a bit of either a pass."""
    centred, variance = bits + _bits(channels) + 1, 2 * (bits + _bits(channels))
    normalised = op.fraction_bits + 2 + _bits(channels) // 2  # |t| <= 2^(F + 1) sqrt(C - 1), and its sign
    scaled, gained = centred + op.reciprocal_bits + 1, normalised + gain_bits
    root, division = variance // 2, op.reciprocal_bits + 1
    return {
        "normalised": Step(
            ((bits, bits), (bits, _bits(channels)), (centred, op.reciprocal_bits + 1), (normalised, gain_bits)),
            (variance, centred, centred, scaled, gained, gained, gained),
        ),
        "normalised_tokens": Step(
            ((variance, _bits(channels)), (bits + _bits(channels), bits + _bits(channels))),
            (variance,) * (3 + 3 * root) + (root,) * 3 * division,
        ),
    }


def attention_steps(op: Attention, bits: int, multiplier: int) -> dict[str, Step]:
    """Scores of the accumulator's width to exponents, their logarithm, codes, and the context."""
    total = op.exp2_bits + _bits(op.tokens)
    exponent = op.fraction_bits + _bits(op.exp2_bits + 1) + 1  # beyond it every exponential is 0, and every code the last
    return {
        "logit_biases": Step(simple=(bits,)),
        "exponents": Step(
            ((bits, multiplier),), (bits, bits, bits + multiplier, op.exp2_bits, total), ((op.fraction_bits, op.exp2_bits + 1),)
        ),
        "logarithms": Step(simple=(total,) * 3 + (exponent,) * 3, lookups=((op.log2_bits, op.fraction_bits + 1),)),
        "attention_codes": Step(simple=(exponent,) * 3),
        "mask_decodes": Step(simple=(1,)),
        "frozen_codes": Step(simple=(op.attention_bits,)),
        "merged": Step(((bits, multiplier), (bits, multiplier)), (bits + multiplier + 1,) * 4),
    }


def _bits(count: int) -> int:
    """ceil(log2(count)): by how much a sum of so many terms is wider than one of them."""
    return ceil(log2(count)) if count > 1 else 0
