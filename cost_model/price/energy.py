"""Cycles and energy of a program on a hardware description, operation by operation.

The sides of a PE array may be integer arrays, one element a design (`eamsim.jobs.search.designs`): then so are the figures.

An operation takes the time of its slowest part, t = max(compute, vector, traffic / bandwidth of each memory): on an array these
overlap, on a SIMD core compute and vector work follow one another; without double buffers an operation's fetches come first. Energy
adds up: multiply-accumulates that toggle, vector primitives, bits moved, and leakage over the time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, reduce
from math import ceil
from typing import assert_never

from cost_model.chip.arrays import Run, ceil_div, larger, row_balance, run
from cost_model.chip.hardware import Array, Hardware, Simd
from cost_model.chip.simd import simd_run
from cost_model.chip.technology import Energy
from cost_model.price.sums import partial_sums, room_bits, scores, tiles
from cost_model.price.traffic import Placement, Traffic, operation_fetches, operation_moves, place
from cost_model.work.encodings import Stored, row_mass_bits, store
from cost_model.work.gemms import Gemm, gemms
from cost_model.work.ledger import Primitives, Work, operation_work, primitives
from eamsim.arguments import expect_integer, expect_type
from eamsim.constraints import LEVEL_BITS, Verified, expect_verified
from eamsim.program import Attention, Embed, Gather, InputQuant, LayerNorm, Linear, Operation, Pool

Runs = tuple[tuple[Gemm, Run], ...]


@dataclass(frozen=True)
class OperationCost:
    """One operation for the whole batch.

    runs: its matrix products. cycles: of each resource by name, `total_cycles` what they come to. fetches: once per batch whatever
    its size; moves: for each image. energy and fetch_energy likewise, without leakage.
    """

    name: str
    runs: Runs
    cycles: dict[str, int]
    total_cycles: int
    fetches: Traffic
    moves: Traffic
    energy: Energy
    fetch_energy: Energy

    @property
    def macs(self) -> int:
        """Multiply-accumulates that toggle, in multiplies of the hardware's width."""
        return sum(done.macs for _, done in self.runs)

    @property
    def bound_by(self) -> str:
        """The resource that takes longest."""
        return max(self.cycles, key=lambda name: self.cycles[name])


@dataclass(frozen=True)
class Estimate:
    """A program on a chip: `operations` for a batch; everything else per image."""

    hardware: Hardware
    batch: int
    placement: Placement
    maps: tuple[Stored, ...]
    map_bits: int
    first_load_cycles: int
    operations: tuple[OperationCost, ...]

    @cached_property
    def latency_cycles(self) -> int:
        """From the first weights to the last result of the batch, one operation after another."""
        return self.first_load_cycles + sum(op.total_cycles for op in self.operations)

    @cached_property
    def cycles_per_image(self) -> float:
        """Of an image among many: where every operation has an engine of its own, those of the slowest."""
        busy = self.latency_cycles
        if self.hardware.layer_pipelined:
            busy = reduce(larger, (op.total_cycles for op in self.operations))
        return busy / self.batch

    @property
    def milliseconds_per_image(self) -> float:
        return self.cycles_per_image / (1e3 * self.hardware.frequency_mhz)

    @cached_property
    def traffic(self) -> Traffic:
        """Of the whole batch."""
        return sum((op.fetches + op.moves for op in self.operations), Traffic())

    @property
    def utilisation(self) -> float:
        """Multiplies that toggle / multiplies the time would have allowed."""
        engines = sum(bool(op.runs) for op in self.operations) if self.hardware.layer_pipelined else 1
        slots = self.cycles_per_image * self.batch * engines * self.hardware.compute.macs_per_cycle
        return sum(op.macs for op in self.operations) / slots

    @property
    def score_cycles_saved(self) -> float:
        """Of the cycles that all scores would take: what skipping saves, wholly frozen heads aside."""
        dense = sum(compute_run(gemm.dense, self.hardware.compute).cycles for gemm, _ in self.score_runs)
        return 1 - sum(done.cycles for _, done in self.score_runs) / dense if dense else 0.0

    @property
    def score_runs(self) -> list[tuple[Gemm, Run]]:
        """QK^T of every Attention: what runs before its A.V."""
        return [pair for op in self.operations if op.runs and op.runs[-1][0].over == "depth" for pair in op.runs[:-1]]

    @property
    def row_balance(self) -> float:
        """Mean over longest row of needed scores within a block of the array's rows: what `skip: pair` can make of its masks."""
        compute = self.hardware.compute
        height = compute.rows if isinstance(compute, Array) else 1
        needed = [gemm.needed for gemm, _ in self.score_runs if gemm.needed is not None]
        return sum(row_balance(mask, height) for mask in needed) / len(needed) if needed else 1.0

    @property
    def bound_shares(self) -> dict[str, float]:
        """Share of the time in operations that each resource decides."""
        total = sum(op.total_cycles for op in self.operations)
        names = {op.bound_by for op in self.operations}
        return {name: sum(op.total_cycles for op in self.operations if op.bound_by == name) / total for name in sorted(names)}

    @cached_property
    def fetch_energy(self) -> Energy:
        """Per image: what one fetch of weights, constants and maps per batch comes to."""
        return sum((op.fetch_energy for op in self.operations), Energy()) * (1 / self.batch)

    @cached_property
    def energy(self) -> Energy:
        """Per image, all of it."""
        milliwatts = sum(memory.leakage_mw for memory in self.hardware.memories.levels.values())
        leakage_pj = milliwatts * self.milliseconds_per_image * 1e6
        dynamic = sum((op.energy for op in self.operations), Energy()) * (1 / self.batch)
        return dynamic + self.fetch_energy + Energy(leakage_pj, leakage_pj, leakage_pj)


@dataclass(frozen=True)
class Workload:
    """What a program asks of a chip whatever the batch and the memories: counted once, priced many times.

    runs, map_bits, map_entries, scores (written, read): of each Attention for one image, by the name of its output; steps: of the vector
    unit, for every operation.
    """

    program: Verified
    maps: tuple[Stored, ...]
    map_bits: dict[str, int]
    map_entries: dict[str, int]
    runs: dict[str, Runs]
    scores: dict[str, tuple[int, int]]
    steps: dict[str, Primitives]


def evaluate(program: Verified, hardware: Hardware, batch: int = 1, encoding: str = "auto") -> Estimate:
    """The program on the chip, `batch` images at a time; UserError where it does not fit or a map cannot be stored as asked."""
    expect_type("hardware", hardware, Hardware)
    return priced(workload(program, hardware.compute, encoding), hardware, batch)


def workload(program: Verified, compute: Array | Simd, encoding: str = "auto") -> Workload:
    """Count the masks; UserError where a map cannot be stored as asked."""
    expect_verified(program)
    attentions = program.attentions
    stored = {op.frozen: tuple(store(op, encoding)) for op in {op.frozen: op for op in attentions}.values()}
    map_bits = {op.out.name: sum(head.bits for head in stored[op.frozen]) + row_mass_bits(op) for op in attentions}
    counted: dict[tuple, tuple[Runs, Work]] = {}
    for op in program.operations:
        if (key := _work_key(program, op)) not in counted:
            masked = gemms(program, op, 1, compute.skips_zero_codes) if isinstance(op, Attention) else ()
            counted[key] = tuple((gemm, compute_run(gemm, compute)) for gemm in masked), vector_work(program, op, compute)
    found = {op.out.name: counted[_work_key(program, op)] for op in program.operations}
    return Workload(
        program,
        tuple(head for op in attentions for head in stored[op.frozen]),
        map_bits,
        {op.out.name: sum(head.entries for head in stored[op.frozen]) * _windows_per_map(op) for op in attentions},
        {op.out.name: found[op.out.name][0] for op in attentions},
        {op.out.name: (found[op.out.name][1].exponents, found[op.out.name][1].attention_codes) for op in attentions},
        {name: primitives(work) for name, (_, work) in found.items()},
    )


def _windows_per_map(op: Attention) -> int:
    return 1 if op.frozen is None else op.windows // len(op.frozen.mask)


def priced(work: Workload, hardware: Hardware, batch: int = 1) -> Estimate:
    """The workload on the chip whose `compute` it was counted for; UserError where it does not fit."""
    expect_integer("batch", batch, 1)
    program, map_bits = work.program, sum(work.map_bits.values())
    placement = place(program, hardware, batch, map_bits)
    costs: dict[tuple, OperationCost] = {}
    operations = []
    for op in program.operations:
        key = (
            *_work_key(program, op),
            placement.blocks.get(op.out.name),
            *(name in placement.spilled for name in (*op.inputs, op.out.name)),
        )
        if key not in costs:
            costs[key] = operation_cost(work, op, hardware, placement, batch)
        operations.append(replace(costs[key], name=op.out.name))
    load = first_load_cycles(program, hardware, placement)
    return Estimate(hardware, batch, placement, work.maps, map_bits, load, tuple(operations))


def _work_key(program: Verified, op: Operation) -> tuple:
    """All that the work of an operation depends on: layers are alike, and masks take long to count."""
    values = [program.values[name] for name in (*op.inputs, op.out.name)]
    key = (type(op), *((value.shape, value.bits) for value in values))
    match op:
        case Linear():
            return (*key, op.weight_bits, type(op.epilogue), op.levels is None)
        case Attention():
            masks = (op.frozen, id(op.excluded), op.logit_bias is None)
            return (*key, *masks, op.windows, op.heads, op.score_heads, op.attention_bits, op.softmax, op.last_code_is_zero)
        case InputQuant() | Gather() | Embed() | LayerNorm() | Pool():
            return key
        case _:
            assert_never(op)


def operation_cost(work: Workload, op: Operation, hardware: Hardware, placement: Placement, batch: int) -> OperationCost:
    """One operation for the batch."""
    compute, memories, program, room = hardware.compute, hardware.memories.levels, work.program, room_bits(hardware)
    if isinstance(op, Attention):
        runs = tuple((replace(gemm, repeats=batch * gemm.repeats), done * batch) for gemm, done in work.runs[op.out.name])
    else:
        fed = [gemm.as_numbers if gemm.levels and not compute.looks_up_levels else gemm for gemm in gemms(program, op, batch)]
        if op.out.name in placement.blocks:
            fed = [piece for gemm in fed for piece in in_blocks(gemm, placement.blocks[op.out.name][0])]
        cut = fed if isinstance(compute, Simd) else [piece for gemm in fed for piece in tiles(gemm, compute, room)]
        runs = tuple((gemm, compute_run(gemm, compute)) for gemm in cut)
    steps, map_bits = work.steps[op.out.name], work.map_bits.get(op.out.name, 0)
    decoding = batch * hardware.vector.map_entry_steps * work.map_entries.get(op.out.name, 0)
    fetches = operation_fetches(program, op, placement, batch, map_bits)
    moves = operation_moves(program, op, runs, placement, batch, map_bits)
    moves = sum((partial_sums(gemm, done, compute, room) for gemm, done in runs), moves)
    if isinstance(op, Attention):
        computed, coded = work.scores[op.out.name]
        moves += scores(op, compute, batch * computed, batch * (computed + coded), room)
    port_lookups = 0
    if isinstance(op, Linear) and op.levels is not None:
        codes = batch * program.values[op.x].size
        if compute.looks_up_levels:
            port_lookups = sum(done.left_reads for _, done in runs)
        else:  # the vector unit reads codes and writes levels, which the product reads
            moves += Traffic(sram_read_bits=codes * program.values[op.x].bits, sram_write_bits=codes * LEVEL_BITS)
    cycles = {"compute": sum(done.cycles for _, done in runs), "vector": ceil_div(batch * steps.total + decoding, hardware.vector.lanes)}
    overlapped = fetches + moves if hardware.memories.double_buffered else moves
    cycles |= {level: memory.cycles(*overlapped.of(level)) for level, memory in memories.items()}
    serial = isinstance(compute, Simd)
    total = reduce(larger, cycles.values(), cycles["compute"] + cycles["vector"] if serial else 0)
    if not hardware.memories.double_buffered:
        cycles["fetch"] = max(memory.cycles(*fetches.of(level)) for level, memory in memories.items())
        total = total + cycles["fetch"]
    lookups = batch * steps.lookups + port_lookups
    energy = product_energy(compute, runs) + vector_energy(hardware, batch * steps.multiplies, batch * steps.simple + decoding, lookups)
    moved, fetched = (sum((memory.energy(*t.of(level)) for level, memory in memories.items()), Energy()) for t in (moves, fetches))
    return OperationCost(op.out.name, runs, cycles, total, fetches, moves, energy + moved, fetched)


def in_blocks(gemm: Gemm, rows: int) -> list[Gemm]:
    """The product of everything, so many rows at a time."""
    whole, rest = divmod(gemm.rows, rows)
    return [replace(gemm, rows=rows, repeats=gemm.repeats * whole), *([replace(gemm, rows=rest)] if rest else [])]


def vector_work(program: Verified, op: Operation, compute: Array | Simd) -> Work:
    """One operation, one image: without the look-ups of levels that an array has at its port."""
    work = operation_work(program, op)
    return replace(work, level_lookups=0) if compute.looks_up_levels else work


def compute_run(gemm: Gemm, compute: Array | Simd) -> Run:
    """What the hardware does for a product; operands wider than the multipliers take several passes, each with its cycles and reads."""
    left_bits = gemm.number_bits
    if isinstance(compute, Simd):
        done = simd_run(gemm, compute.lanes, compute.cycles_per_step, compute.register_tile, compute.skip == "pair")
    else:
        left_bits = gemm.left_bits if compute.shifts_codes and not gemm.levels else left_bits
        done = run(gemm, compute.dataflow, compute.rows, compute.columns, compute.skip, compute.pipelined_folds)
    passes = ceil_div(left_bits, compute.left_bits) * ceil_div(gemm.right_bits, compute.right_bits)
    return done * passes


def mac_energy(compute: Array | Simd) -> Energy:
    """Of one multiply-accumulate of the hardware's width."""
    return compute.mac_pj.energy if isinstance(compute, Array) else compute.step_pj.energy * (1 / compute.lanes)


def product_energy(compute: Array | Simd, runs: Runs) -> Energy:
    """Of multiplies and adds, and of what PEs latch and hand on."""
    energy = mac_energy(compute) * sum(done.macs for _, done in runs)
    if isinstance(compute, Simd) or compute.register_pj_per_bit is None:
        return energy
    return energy + compute.register_pj_per_bit.energy * sum(latched_bits(compute, gemm, done) for gemm, done in runs)


def latched_bits(array: Array, gemm: Gemm, done: Run):
    """Register bits that take a new value: each multiply's moving operands and sum; half a column of hops for what is loaded or drained."""
    moving = {"os": array.left_bits + array.right_bits, "ws": array.left_bits, "is": array.right_bits}[array.dataflow]
    hopping = {
        "os": done.results * array.accumulator_bits,
        "ws": done.right_reads * gemm.right_bits,
        "is": done.left_reads * gemm.left_bits,
    }
    return done.macs * (moving + array.accumulator_bits) + hopping[array.dataflow] * array.rows / 2


def vector_energy(hardware: Hardware, multiplies: int, simple: int, lookups: int) -> Energy:
    vector = hardware.vector
    return vector.multiply_pj.energy * multiplies + vector.simple_pj.energy * simple + vector.lookup_pj.energy * lookups


def first_load_cycles(program: Verified, hardware: Hardware, placement: Placement) -> int:
    """Waiting for the first fold's weights, which nothing overlaps; every later load hides behind a computation."""
    first = next((op for op in program.operations if gemms(program, op)), None)
    if first is None or placement.weights == "sram":
        return 0
    gemm, compute = gemms(program, first)[0], hardware.compute
    columns = -larger(-gemm.columns, -(compute.columns if isinstance(compute, Array) else compute.register_tile))
    return ceil_div(gemm.depth * columns * gemm.right_bits, hardware.memories.levels[placement.weights].bits_per_cycle)


def break_even_batch(frozen: Estimate, dense: Estimate) -> int | None:
    """The smallest batch from which freezing costs no more energy (nominal), or None if there is none.

    Fetches happen once per batch, everything else for each image: B* = (F_frozen - F_dense) / (S_dense - S_frozen), with F the
    fetches and S the rest of one image.
    """
    for name, estimate in (("frozen", frozen), ("dense", dense)):
        expect_type(name, estimate, Estimate)
    fetches = (frozen.fetch_energy - dense.fetch_energy).nominal_pj * frozen.batch
    saved = ((dense.energy - dense.fetch_energy) - (frozen.energy - frozen.fetch_energy)).nominal_pj
    if fetches <= 0 and saved >= 0:
        return 1
    return max(1, ceil(fetches / saved)) if saved > 0 else None
