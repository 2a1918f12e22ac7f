"""Bytes of a program: constants, activations and frozen maps, each tensor packed to its width and rounded up to a byte."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from cost_model.work.fusion import Fused
from eamsim.constraints import Verified
from eamsim.program import Attention, Epilogue, Frozen, Linear, Operation, Residual, Value


def packed_bytes(elements: int, bits: int) -> int:
    """Bytes of one tensor stored without gaps: ceil(elements * bits / 8)."""
    return -(-elements * bits // 8)


def value_bytes(value: Value) -> int:
    """Bytes of one activation, packed."""
    return packed_bytes(value.size, value.bits)


def weight_bytes(op: Linear) -> int:
    """Bytes of the packed weight codes."""
    return packed_bytes(op.weight.size, op.weight_bits)


def mask_bytes(op: Attention) -> int:
    """One bit per element of the frozen maps."""
    return 0 if op.frozen is None else packed_bytes(op.frozen.mask.size, 1)


def code_bytes(op: Attention) -> int:
    """`frozen.bits` per frozen attention weight: the mask says which they are."""
    return 0 if op.frozen is None else packed_bytes(int(np.count_nonzero(op.frozen.mask)), op.frozen.bits)


def constant_bytes(program: Verified) -> int:
    """Bytes of all other constants (multipliers, biases, tables, indices), in the types the program holds them in."""
    return sum(array.nbytes for op in program.operations for array in _constants(op))


def _constants(part: Operation | Epilogue | Frozen) -> Iterator[np.ndarray]:
    for name, field in vars(part).items():
        if isinstance(field, np.ndarray) and name not in ("weight", "mask", "codes"):
            yield field
        elif isinstance(field, Epilogue | Frozen):
            yield from _constants(field)


def live_bytes(
    program: Verified, residual_in_place: bool = False, streams_image: bool = False, fused: Sequence[Fused] = ()
) -> dict[str, int]:
    """Bytes of all values alive while each operation runs, by the name of its output.

    Alive are its inputs, its output and whatever a later operation still reads; what an operation keeps to itself (a row of scores, an
    accumulator) is not counted. residual_in_place: a residual sum takes the place of its operand, if that is as wide and nobody reads it
    later; otherwise nothing is overwritten. streams_image: pixels are quantised as they come. fused: of what the first makes a part is
    alive, and during both what the first reads and the second makes.
    """
    last_use = {name: position for position, op in enumerate(program.operations) for name in op.inputs}
    sizes = {name: value_bytes(value) for name, value in program.values.items()}
    replaces = _in_place(program, last_use) if residual_in_place else set()
    made, early = {op.out.name: op for op in program.operations}, dict[str, str]()
    for pair in fused:
        sizes[pair.first] = -(-sizes[pair.first] * pair.part // pair.whole)
        last_use[made[pair.first].x] = max(last_use[made[pair.first].x], last_use[pair.first])
        if pair.second not in replaces:
            early[pair.first] = pair.second
    alive = {} if streams_image else {program.image.name: sizes[program.image.name]}
    live = {}
    for position, op in enumerate(program.operations):
        beside = early.get(op.out.name)
        alive |= {name: sizes[name] for name in (op.out.name, beside) if name is not None}
        live[op.out.name] = sum(alive.values()) - (sizes[op.out.name] if op.out.name in replaces else 0)
        alive = {name: size for name, size in alive.items() if last_use.get(name, -1) > position or name == beside}
    return live


def _in_place(program: Verified, last_use: dict[str, int]) -> set[str]:
    """Residual sums that may take the place of their operand."""
    found = set()
    for position, op in enumerate(program.operations):
        match op:
            case Linear(epilogue=Residual(operand=old)) if last_use[old] == position and old != op.x:
                found |= {op.out.name} if program.values[old].bits == op.out.bits else set()
    return found
