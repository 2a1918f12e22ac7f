"""A verified program as the engine runs it: a table of operation records, packed constants, and a place for every value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, assert_never

import numpy as np

from eamsim import tensors
from eamsim.check import magnitude
from eamsim.constraints import Verified
from eamsim.engine.ir.tile import ROWS, STEP
from eamsim.engine.kernels import attention, digest, layernorm, linear, movement
from eamsim.engine.memory import CACHE_LINE, Arena, Constants, aligned
from eamsim.engine.refusals import Refusal, refuse
from eamsim.program import Attention, Embed, Gather, InputQuant, LayerNorm, Linear, Operation, Pool, Residual, Value

KINDS = ("input_quant", "gather", "embed", "layer_norm", "linear", "pack_heads", "attend", "pool", "publish", "digest")
INPUT_QUANT, GATHER, EMBED, LAYER_NORM, LINEAR, PACK_HEADS, ATTEND, POOL, PUBLISH, DIGEST = range(len(KINDS))

# units: pieces of work in one image; block: the most of them in one task; grain: a task has a multiple of it.
COMMON_FIELDS = (
    "kind",
    "units",
    "block",
    "grain",
    "x",
    "x_size",
    "x_signed",
    "in_channels",
    "out",
    "out_signed",
    "channels",
    "low",
    "high",
)
FIELDS = COMMON_FIELDS + movement.FIELDS + layernorm.FIELDS + linear.FIELDS + attention.FIELDS + digest.FIELDS
RECORD = np.dtype([(name, np.int64) for name in FIELDS])
TAP_DTYPES = tuple(np.dtype(kind) for kind in (np.uint8, np.int16, np.int32, np.int64))


@dataclass(frozen=True)
class PlannedTap:
    """What is declared of a tap; the record whose fields `tap_FIELD` and `item_FIELD` (memory.tap_fields) say where it goes, how wide."""

    declared: tensors.Tap
    record: int
    field: str

    @property
    def name(self) -> str:
        return self.declared.value.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.declared.value.shape

    @property
    def dtype(self) -> np.dtype:
        """Of its integers as the kernels write them: the first that holds what is proven of them."""
        return next(kind for kind in TAP_DTYPES if all(np.iinfo(kind).min <= end <= np.iinfo(kind).max for end in self.declared.bound))

    @property
    def room(self) -> int:
        """Bytes for one image, whole cache lines."""
        return -(-self.declared.value.size * self.dtype.itemsize // CACHE_LINE) * CACHE_LINE


@dataclass(frozen=True)
class Plan:
    """The records [operations] of RECORD, the taps they offer, the constants, and the sizes of everything else.

    code_size, value_size, panel_size, bias_size: elements for one image; slack: bytes that whole tiles read past the codes of the last
    image; byte_scratch, word_scratch: elements for one thread.
    """

    records: np.ndarray
    taps: list[PlannedTap]
    constants: dict[str, np.ndarray]
    image: int
    output: int
    code_size: int
    value_size: int
    panel_size: int
    bias_size: int
    slack: int
    byte_scratch: int
    word_scratch: int

    def memory(self, batch: int, threads: int) -> list[Arena]:
        """Everything but the taps, for batches of this size, as each thread sees it."""
        shared = Arena(
            **self.constants,
            codes=aligned(self.code_size * batch + self.slack, np.uint8),
            values=aligned(self.value_size * batch, np.int32),
            panels=aligned(self.panel_size * batch, np.int8),
            panel_bias=aligned(self.bias_size * batch, np.int32),
            taps=aligned(0, np.uint8),
            bytes=aligned(0, np.uint8),
            words=aligned(0, np.int32),
        )
        scratch = ((aligned(self.byte_scratch, np.uint8), aligned(self.word_scratch, np.int32)) for _ in range(threads))
        return [shared._replace(bytes=own_bytes, words=own_words) for own_bytes, own_words in scratch]


def make_plan(program: Verified) -> Plan:
    """Refuse what the kernels cannot do exactly (UserError), pack constants and place values."""
    refuse_overflow(program)
    for value in program.values.values():
        if not value.signed and value.bits > 8:
            refuse(value.name, Refusal.CODES, f"{value.bits} bits")
    places, code_size, value_size = place_values(program)
    constants = Constants(sum(linear.packed_bytes(op) for op in program.operations if isinstance(op, Linear)))
    rows, taps = [], []
    for op in program.operations:
        steps = plan_operation(op, program, places, constants)
        common = common_fields(program.values[op.x], op.out, places)
        for fields in steps:
            rows.append(common | fields)
        taps += [PlannedTap(tap, len(rows) - 1, tap.value.name.rpartition(".")[2]) for tap in tensors.inner_taps(op, program)]
        rows.append(publication(op.out, places))
        taps.append(PlannedTap(tensors.ranged(op.out), len(rows) - 1, "out"))
    for tap in taps:
        rows[tap.record][f"item_{tap.field}"] = tap.dtype.itemsize
    widest = max(value.shape[-1] for value in program.values.values())
    return Plan(
        records=records(rows),
        taps=taps,
        constants=constants.flat(),
        image=places[program.image.name],
        output=places[program.output.name],
        code_size=code_size,
        value_size=value_size,
        panel_size=max(row.get("panel_bytes", 0) for row in rows),
        bias_size=max(row.get("bias_words", 0) for row in rows),
        slack=ROWS * widest + STEP,
        byte_scratch=max(row.get("bytes", 0) for row in rows),
        word_scratch=max(row.get("words", 0) for row in rows),
    )


def refuse_overflow(program: Verified) -> None:
    """The kernels sum in 32 bits and narrow nothing."""
    bits = min(program.datapath.accumulator_bits, 32)
    limit = 1 << (bits - 1)
    for name, (low, high) in program.bounds.items():
        if not name.endswith(".exponents") and (low < -limit or high >= limit):
            refuse(name, Refusal.SUMS, f"[{low}, {high}] in {bits} bits (overflow '{program.datapath.overflow}')")


def plan_operation(op: Operation, program: Verified, places: dict[str, int], constants: Constants) -> list[dict[str, Any]]:
    """The record or records of an operation, without the common fields."""
    x, bounds = program.values[op.x], program.bounds
    match op:
        case InputQuant():
            return [{"kind": INPUT_QUANT} | movement.plan_input_quant(op, constants)]
        case Gather():
            return [{"kind": GATHER} | movement.plan_gather(op, constants)]
        case Embed():
            return [{"kind": EMBED} | movement.plan_embed(op, constants)]
        case LayerNorm():
            return [{"kind": LAYER_NORM} | layernorm.plan_layer_norm(op, constants)]
        case Linear():
            operand = program.values[op.epilogue.operand] if isinstance(op.epilogue, Residual) else None
            place, reach = -1 if operand is None else places[operand.name], magnitude(bounds[f"{op.out.name}.acc"])
            return [{"kind": LINEAR} | linear.plan_linear(op, x, operand, place, reach, constants)]
        case Attention():
            q = program.values[op.inputs[-1]]
            fields = attention.plan_attention(op, x, q, places[q.name], bounds[f"{op.out.name}.scores"], constants)
            heads, blocks = fields["units"], fields["blocks"]
            return [fields | {"kind": PACK_HEADS, "units": 2 * heads}, fields | {"kind": ATTEND, "units": heads * blocks}]
        case Pool():
            return [{"kind": POOL} | movement.plan_pool(op, x.shape[0])]
        case _:
            assert_never(op)


def common_fields(x: Value, out: Value, places: dict[str, int]) -> dict[str, int]:
    source = {"x": places[x.name], "x_size": x.size, "x_signed": int(x.signed), "in_channels": x.shape[-1]}
    target = {"out": places[out.name], "out_signed": int(out.signed), "channels": out.shape[-1], "low": out.low, "high": out.high}
    return source | target | {"grain": 1}


def publication(value: Value, places: dict[str, int]) -> dict[str, int]:
    """A record that copies a finished value to its tap."""
    work = {"kind": PUBLISH, "units": value.size, "block": movement.ELEMENTS}
    return common_fields(value, value, places) | work


def records(rows: list[dict[str, Any]]) -> np.ndarray:
    """Taps start at -1 (not asked for), every other field at 0."""
    table = np.zeros(len(rows), RECORD)
    for name in FIELDS:
        default = -1 if name.startswith("tap_") else 0
        table[name] = [row.get(name, default) for row in rows]
    return table


def place_values(program: Verified) -> tuple[dict[str, int], int, int]:
    """Offsets of all values, codes and signed apart, reused once the last reader is past: (offset by name, codes, signed values)."""
    last_use = {program.image.name: 0, program.output.name: len(program.operations)}
    for index, op in enumerate(program.operations):
        last_use.setdefault(op.out.name, index + 1)  # a value nobody reads may still be hashed
        for name in op.inputs:
            last_use[name] = max(last_use[name], index)
    places: dict[str, int] = {}
    live: dict[bool, list[Value]] = {False: [], True: []}
    sizes = {False: 0, True: 0}
    for index, value in enumerate(program.values.values()):
        # Value `index` is written by operation `index - 1`, whose inputs must still lie elsewhere.
        same = live[value.signed] = [other for other in live[value.signed] if last_use[other.name] >= index - 1]
        places[value.name] = first_gap(value, same, places)
        same.append(value)
        sizes[value.signed] = max(sizes[value.signed], places[value.name] + value.size)
    return places, sizes[False], sizes[True]


def first_gap(value: Value, live: list[Value], places: dict[str, int]) -> int:
    """The least offset at which `value` overlaps no live value."""
    offset = 0
    for other in sorted(live, key=lambda other: places[other.name]):
        if offset + value.size <= places[other.name]:
            break
        offset = max(offset, places[other.name] + other.size)
    return offset
