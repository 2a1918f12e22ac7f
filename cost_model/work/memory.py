"""Bytes of a program: constants, activations and frozen maps, each tensor packed to its width and rounded up to a byte."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

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


def live_bytes(program: Verified, residual_in_place: bool = False, streams_image: bool = False) -> dict[str, int]:
    """Bytes of all values alive while each operation runs, by the name of its output.

    Alive are its inputs, its output and whatever a later operation still reads; what an operation keeps to itself (a row of scores, an
    accumulator) is not counted. residual_in_place: a residual sum takes the place of its operand, if that is as wide and nobody reads it
    later; otherwise nothing is overwritten. streams_image: pixels are quantised as they come.
    """
    last_use = {name: position for position, op in enumerate(program.operations) for name in op.inputs}
    alive = {} if streams_image else {program.image.name: value_bytes(program.image)}
    live = {}
    for position, op in enumerate(program.operations):
        alive[op.out.name] = value_bytes(op.out)
        live[op.out.name] = sum(alive.values())
        match op:
            case Linear(epilogue=Residual(operand=old)) if residual_in_place and last_use[old] == position and old != op.x:
                live[op.out.name] -= value_bytes(op.out) if program.values[old].bits == op.out.bits else 0
        alive = {name: size for name, size in alive.items() if last_use.get(name, -1) > position}
    return live
