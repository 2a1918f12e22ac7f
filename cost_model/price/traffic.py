"""Bits moved between the memories of a chip, operation by operation.

The array and the vector unit work from the SRAM. Weights, constants and maps that live behind it are copied into its weight buffer
once per batch. Values stay in it if everything alive beside them fits, a head's attention codes included, otherwise they go to the DRAM
and come back; a matrix product whose input does so is tiled, the smaller of two orders: input blocks resident and the weights fetched
for each, or the other way round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import add
from typing import Literal, assert_never

from cost_model.chip.arrays import Run, ceil_div
from cost_model.chip.hardware import Hardware, Home, Level
from cost_model.work.fusion import Fused, fused_pairs
from cost_model.work.gemms import Gemm
from cost_model.work.memory import live_bytes
from eamsim.constraints import LEVEL_BITS, Verified
from eamsim.errors import UserError
from eamsim.program import (
    Attention,
    Embed,
    Epilogue,
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
    Value,
)

SHIFT_BITS = 6  # shifts of ratios are 0..62


class DoesNotFit(UserError):
    """A program needs more memory than a chip has."""


@dataclass(frozen=True)
class Traffic:
    """Bits read from and written to each memory."""

    sram_read_bits: int = 0
    sram_write_bits: int = 0
    dram_read_bits: int = 0
    dram_write_bits: int = 0
    rom_read_bits: int = 0
    accumulator_read_bits: int = 0
    accumulator_write_bits: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(*map(add, vars(self).values(), vars(other).values()))

    def of(self, level: Level) -> tuple[int, int]:
        """(read, written) bits of one memory."""
        match level:
            case "sram":
                return self.sram_read_bits, self.sram_write_bits
            case "dram":
                return self.dram_read_bits, self.dram_write_bits
            case "rom":
                return self.rom_read_bits, 0
            case "accumulators":
                return self.accumulator_read_bits, self.accumulator_write_bits


@dataclass(frozen=True)
class Placement:
    """Where weights and maps lie, which values do not fit the SRAM, and the SRAM bits that are free for values and tiles.

    image: where its pixels are when they are quantised. blocks: by the output of a fused Linear, the rows of a block and how often its
    weights are fetched for the batch.
    """

    weights: Home
    maps: Home
    spilled: frozenset[str]
    free_bits: int
    image: Literal["sram", "dram", "outside"]
    blocks: Mapping[str, tuple[int, int]]


def place(program: Verified, hardware: Hardware, batch: int, map_bits: int) -> Placement:
    """Residency for a batch; maps that should stay in the SRAM but do not fit beside the activations go behind it.

    DoesNotFit where nothing behind the SRAM can take what does not fit.
    """
    home, memories = hardware.home, hardware.memories
    fused = fused_pairs(program, memories.attention_by_head, memories.mlp_rows, batch)
    values = live_bytes(program, memories.residual_in_place, memories.streams_image, fused)
    live = {op.out.name: 8 * batch * values[op.out.name] + code_bits(op) for op in program.operations}
    weights = sum(weight_bits(op) + constant_bits(program, op) for op in program.operations)
    free = 8 * (memories.sram.bytes - memories.weight_buffer_bytes) - (weights if home["weights"] == "sram" else 0)
    maps: Home = home["maps"]
    behind: list[Home] = [level for level in memories.levels if level not in ("sram", "accumulators")]
    if maps == "sram" and free - map_bits < max(live.values()) and behind:
        maps = behind[0]
    free -= map_bits if maps == "sram" else 0
    spilled = values_that_spill(program, live, free) - ({program.image.name} if memories.streams_image else set())
    if free <= 0 or (spilled and "dram" not in behind):
        raise DoesNotFit(
            f"{hardware.name}: sram of {memories.sram.bytes:,} bytes, and no dram behind it, cannot hold the "
            f"{ceil_div(max(live.values()), 8):,} bytes of activations at batch {batch}; describe more memory or take a smaller batch"
        )
    outside = "dram" if memories.dram else "outside"
    image = outside if memories.streams_image else "sram"
    return Placement(home["weights"], maps, spilled, free, image, fused_blocks(program, fused, 8 * memories.weight_buffer_bytes))


def fused_blocks(program: Verified, fused: Sequence[Fused], buffer_bits: int) -> dict[str, tuple[int, int]]:
    """Rows of a block, and fetches of the weights: once if those of both fit the weight buffer, otherwise for each block."""
    weights, blocks = {op.out.name: weight_bits(op) for op in program.operations}, {}
    for pair in fused:
        if pair.rows is not None:
            fits = weights[pair.first] + weights[pair.second] <= buffer_bits
            blocks |= dict.fromkeys((pair.first, pair.second), (pair.rows, 1 if fits else ceil_div(pair.whole, pair.rows)))
    return blocks


def values_that_spill(program: Verified, live_bits: dict[str, int], free_bits: int) -> frozenset[str]:
    """Values that are alive during an operation whose live values exceed the free SRAM."""
    last_use = {name: position for position, op in enumerate(program.operations) for name in op.inputs}
    made = {program.image.name: 0} | {op.out.name: position for position, op in enumerate(program.operations)}
    full = [position for position, op in enumerate(program.operations) if live_bits[op.out.name] > free_bits]
    return frozenset(name for name, start in made.items() if any(start <= position <= last_use.get(name, start) for position in full))


def code_bits(op: Operation) -> int:
    """Of the attention codes of one head, which wait in the SRAM for A.V."""
    return op.rows * op.tokens * op.attention_bits if isinstance(op, Attention) else 0


def weight_bits(op: Operation) -> int:
    """Bits of the packed weights."""
    return op.weight.size * op.weight_bits if isinstance(op, Linear) else 0


def constant_bits(program: Verified, op: Operation) -> int:
    """Bits of biases, ratios, zero points and levels at the widths of the datapath; other tables sit in the units that use them."""
    datapath = program.datapath
    match op:
        case Linear():
            ratio_bits = datapath.multiplier_bits + SHIFT_BITS
            level_bits = 0 if op.levels is None else op.levels.size * LEVEL_BITS
            return op.out.shape[1] * (32 + ratio_bits + op.weight_bits + zero_bits(op.epilogue, op.out)) + level_bits
        case LayerNorm():
            return op.gain.size * (32 + 64)
        case Embed():
            return (op.prefix.size + op.position.size) * op.out.bits
        case InputQuant() | Gather() | Attention() | Pool():
            return 0
        case _:
            assert_never(op)


def zero_bits(epilogue: Epilogue, out: Value) -> int:
    """Bits of the zero point that a channel has of its own."""
    match epilogue:
        case Requant():
            return out.bits
        case Gelu() | Residual() | Raw():
            return 0
        case _:
            assert_never(epilogue)


def fetched(level: Home, bits: int) -> Traffic:
    """A copy of so many bits from behind the SRAM into it; nothing if they are there."""
    match level:
        case "sram":
            return Traffic()
        case "dram":
            return Traffic(dram_read_bits=bits, sram_write_bits=bits)
        case "rom":
            return Traffic(rom_read_bits=bits, sram_write_bits=bits)


def refetches(left_bits: int, right_bits: int, room_bits: int) -> tuple[int, int]:
    """How often a product fetches its left and its right operand, the cheaper of keeping blocks of the one or of the other."""
    keep_left, keep_right = ceil_div(left_bits, room_bits), ceil_div(right_bits, room_bits)
    choices = ((1, keep_left), (keep_right, 1))
    return min(choices, key=lambda times: times[0] * left_bits + times[1] * right_bits)


def operation_fetches(program: Verified, op: Operation, placement: Placement, batch: int, map_bits: int) -> Traffic:
    """What comes from behind the SRAM for the whole batch: weights, constants, the maps."""
    times = placement.blocks.get(op.out.name, (0, 1))[1]
    if isinstance(op, Linear) and op.x in placement.spilled:
        times *= refetches(batch * _bits(program, op.x), weight_bits(op), placement.free_bits // 2)[1]
    return fetched(placement.weights, times * weight_bits(op) + constant_bits(program, op)) + fetched(placement.maps, map_bits)


def operation_moves(
    program: Verified,
    op: Operation,
    runs: Sequence[tuple[Gemm, Run]],
    placement: Placement,
    batch: int,
    map_bits: int,
) -> Traffic:
    """What an operation on the whole batch reads and writes of values, codes and maps."""
    reads = sum(run.left_reads * gemm.left_bits + run.right_reads * gemm.right_bits for gemm, run in runs)
    inputs = {name: batch * _bits(program, name) for name in op.inputs}
    written, pixels = batch * op.out.size * op.out.bits, inputs.get(program.image.name, 0)
    match op:
        case Attention():
            written += batch * op.windows * op.heads * op.rows * op.tokens * op.attention_bits
            reads += batch * map_bits * (op.windows // op.frozen.mask.shape[0]) if op.frozen is not None else 0
        case Linear():
            reads += sum(inputs[operand] for operand in op.inputs[1:])
        case InputQuant() | Gather() | Embed() | LayerNorm() | Pool():
            reads += sum(inputs.values()) - (pixels if placement.image != "sram" else 0)
        case _:
            assert_never(op)
    traffic = Traffic(sram_read_bits=reads, sram_write_bits=written, dram_read_bits=pixels if placement.image == "dram" else 0)
    for name, bits in inputs.items():
        if name in placement.spilled:
            tiled = isinstance(op, Linear) and name == op.x
            times = refetches(bits, weight_bits(op), placement.free_bits // 2)[0] if tiled else 1
            traffic += fetched("dram", times * bits)
    if op.out.name in placement.spilled:
        out = batch * op.out.size * op.out.bits
        traffic += Traffic(sram_read_bits=out, dram_write_bits=out)
    return traffic


def _bits(program: Verified, name: str) -> int:
    value = program.values[name]
    return value.size * value.bits
