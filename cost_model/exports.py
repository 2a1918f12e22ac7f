"""A program's matrix products in the formats of other cost models: SCALE-Sim's GEMM topology and ZigZag's workload.

Both know dense products alone: wholly frozen heads are left out as in the program, scattered frozen weights cannot be said.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import assert_never

import yaml

from cost_model.work.gemms import Gemm, gemms
from eamsim.constraints import Verified, expect_verified
from eamsim.program import Attention, Embed, Gather, InputQuant, LayerNorm, Linear, Pool

ACCUMULATOR_BITS = 32


@dataclass(frozen=True)
class GemmLayer:
    """Products of one shape; left, right: the layers that make the operands, None for the image and for weights."""

    name: str
    gemm: Gemm
    result_bits: int
    left: str | None
    right: str | None


def layers(program: Verified) -> Iterator[GemmLayer]:
    """In the order of execution: each Linear, and of each Attention NAME the products NAME.scores (if any) and NAME.context."""
    expect_verified(program)
    makers: dict[str, str | None] = {program.image.name: None}
    for op in program.operations:
        source, name = makers[op.x], op.out.name
        products = gemms(program, op)
        match op:
            case Linear():
                yield GemmLayer(name, products[0], op.out.bits, source, None)
                makers[name] = name
            case Attention():
                scores = f"{name}.scores" if products[1:] else None
                if scores:
                    yield GemmLayer(scores, products[0].dense, ACCUMULATOR_BITS, makers[op.inputs[-1]], source)
                yield GemmLayer(f"{name}.context", products[-1].dense, op.out.bits, scores, source)
                makers[name] = f"{name}.context"
            case InputQuant() | Gather() | Embed() | LayerNorm() | Pool():
                makers[name] = source
            case _:
                assert_never(op)


def scalesim_csv(program: Verified) -> str:
    """SCALE-Sim's topology file for `input_type_gemm`: Layer, M, N, K; one line a product, since it knows no repeats."""
    lines = ["Layer,M,N,K,"]
    for layer in layers(program):
        gemm = layer.gemm
        names = [layer.name] if gemm.repeats == 1 else [f"{layer.name}.{number}" for number in range(gemm.repeats)]
        lines += [f"{name},{gemm.rows},{gemm.columns},{gemm.depth}," for name in names]
    return "\n".join(lines) + "\n"


def zigzag_yaml(program: Verified) -> str:
    """ZigZag's workload: one Gemm a layer with its operand widths; H counts the products (heads x windows) of an Attention.

    A layer is the source of its own constant operands, as ZigZag wants it.
    """
    numbers: dict[str | None, int] = {}
    workload = []
    for number, layer in enumerate(layers(program)):
        numbers[layer.name] = number
        gemm = layer.gemm
        sizes = {"B": gemm.rows, "K": gemm.columns, "C": gemm.depth}
        many = gemm.repeats > 1
        equation = "O[h][b][k]+=I[h][b][c]*W[h][c][k]" if many else "O[b][k]+=I[b][c]*W[c][k]"
        sizes = {"H": gemm.repeats, **sizes} if many else sizes
        workload.append(
            {
                "id": number,
                "name": layer.name,
                "operator_type": "Gemm",
                "equation": equation,
                "dimension_relations": [],
                "loop_dims": list(sizes),
                "loop_sizes": list(sizes.values()),
                "operand_precision": {
                    "I": gemm.number_bits if gemm.levels else gemm.left_bits,
                    "W": gemm.right_bits,
                    "O": ACCUMULATOR_BITS,
                    "O_final": layer.result_bits,
                },
                "operand_source": {"I": numbers.get(layer.left, number), "W": numbers.get(layer.right, number)},
            }
        )
    return yaml.safe_dump(workload, sort_keys=False)
