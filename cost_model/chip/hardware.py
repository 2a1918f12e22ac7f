"""Hardware descriptions: YAML files checked in full, and three presets (docs/spec/cost.md has the fields).

A file describes one chip: what multiplies (a PE `array` or a `simd` core), a vector unit for everything else, and memories.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from cost_model.chip.arrays import Dataflow, Skip, ceil_div, larger
from cost_model.chip.technology import Energy, Figure, memory_growth
from eamsim.arguments import expect_path
from eamsim.errors import BadFile, UserError
from eamsim.files.limits import YAML_BRACKETS, YAML_BYTES
from eamsim.files.reading import read_text

Positive = Annotated[int, Field(ge=1, le=2**48)]
Side = Annotated[int, Field(ge=1, le=2**16)]
Bits = Annotated[int, Field(ge=1, le=64)]
Content = Literal["weights", "activations", "maps"]
Home = Literal["sram", "dram", "rom"]
Level = Literal[Home, "accumulators"]
LEVELS: tuple[Level, ...] = ("sram", "dram", "rom", "accumulators")
MOST_MHZ = 20_000
"""More is no chip's clock, but a frequency in another unit."""
ADVICE = "`eamsim hardware show small-npu` prints one to begin with"
PRESETS = files("cost_model") / "presets"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Array(_Strict):
    """rows x columns PEs, each one `left_bits` x `right_bits` multiply-accumulate a cycle; wider operands take several passes.

    skip: what it does with products that no result needs (docs/spec/cost.md). skips_zero_codes: frozen codes that mean zero count
    as such in A.V. shifts_codes: A.V multiplies by shifting, so that an attention code is as wide as it is stored; otherwise
    it is decoded to a power of two first. looks_up_levels: each row has a table of 16 levels at its left port, so that fitted codes
    are read as they are stored; otherwise the vector unit writes the levels into the SRAM first. accumulator_bits: width of a partial
    sum. pipelined_folds: a fold's operands are loaded, and its results drained, behind the stream of another. mac_pj: a multiplier and
    the adder of its accumulator; register_pj_per_bit: of what a PE latches and hands to its neighbour.
    """

    kind: Literal["array"]
    rows: Side
    columns: Side
    dataflow: Dataflow
    skip: Skip
    skips_zero_codes: bool = False
    shifts_codes: bool
    looks_up_levels: bool = False
    left_bits: Bits
    right_bits: Bits
    accumulator_bits: Bits = 32
    pipelined_folds: bool = False
    mac_pj: Figure
    register_pj_per_bit: Figure | None = None

    @field_validator("skip")
    @classmethod
    def _pairs_need_os(cls, skip: Skip, info: ValidationInfo) -> Skip:
        if skip == "pair" and (dataflow := info.data.get("dataflow", "os")) != "os":
            raise ValueError(f"pair expects dataflow os, where a row of the array owns a query, got {dataflow}")
        return skip

    @property
    def macs_per_cycle(self) -> int:
        return self.rows * self.columns


class Simd(_Strict):
    """A core whose dot-product instruction makes `lanes` multiply-accumulates of `left_bits` x `right_bits`.

    cycles_per_step: of one such instruction with its loads and loop overhead. skip: none, or pair: a loop over the needed pairs.
    register_tile: results along either side computed at once, which divides the loads. step_pj: energy of one step.
    """

    kind: Literal["simd"]
    looks_up_levels: ClassVar[bool] = False
    lanes: Side
    left_bits: Bits
    right_bits: Bits
    cycles_per_step: float = Field(gt=0, le=1e6)
    register_tile: Side = 1
    skip: Literal["none", "pair"]
    skips_zero_codes: bool = False
    step_pj: Figure

    @property
    def macs_per_cycle(self) -> float:
        return self.lanes / self.cycles_per_step


class Vector(_Strict):
    """The unit for softmax, LayerNorm, GELU and requantisation: each lane one primitive a cycle (32-bit).

    map_entry_steps: simple ones for each run, column or row pointer of a frozen map, where nothing beside the unit decodes them.
    """

    lanes: Side
    map_entry_steps: Annotated[int, Field(ge=0, le=64)] = 0
    multiply_pj: Figure
    simple_pj: Figure
    lookup_pj: Figure


class Memory(_Strict):
    """A memory, what it holds for good, and how fast each of its ports is. A write costs what a read does unless given.

    ports: 1, which reads and writes share, or 2, one for each. burst_bits: what moves at least, and in whole. row_bits: of an open row of
    a DRAM; row_pj, row_cycles: to open one, for every so many bits that an operation reads, and writes.
    """

    bytes: Positive
    bits_per_cycle: Positive
    ports: Annotated[int, Field(ge=1, le=2)] = 1
    burst_bits: Positive = 1
    row_bits: Positive | None = None
    row_cycles: Annotated[int, Field(ge=0, le=2**20)] = 0
    row_pj: Figure | None = None
    read_pj_per_bit: Figure
    write_pj_per_bit: Figure | None = None
    leakage_mw: float = Field(ge=0, le=1e6, default=0.0)
    holds: tuple[Content, ...] = ()

    def energy(self, read_bits: int, written_bits: int) -> Energy:
        """Of so many bits."""
        write_pj, bursts = self.write_pj_per_bit or self.read_pj_per_bit, (self.in_bursts(read_bits), self.in_bursts(written_bits))
        moved = self.read_pj_per_bit.energy * bursts[0] + write_pj.energy * bursts[1]
        return moved + self.row_pj.energy * self.rows(*bursts) if self.row_pj else moved

    def cycles(self, read_bits: int, written_bits: int) -> int:
        """Until so many bits have gone through its ports."""
        read, written = self.in_bursts(read_bits), self.in_bursts(written_bits)
        busiest = read + written if self.ports == 1 else larger(read, written)
        return ceil_div(busiest, self.bits_per_cycle) + self.row_cycles * self.rows(read, written)

    def in_bursts(self, bits: int) -> int:
        """Rounded up to whole bursts."""
        return bits if self.burst_bits == 1 else ceil_div(bits, self.burst_bits) * self.burst_bits

    def rows(self, read_bits: int, written_bits: int) -> int:
        """That are opened, if it has any."""
        return ceil_div(read_bits, self.row_bits) + ceil_div(written_bits, self.row_bits) if self.row_bits else 0

    @model_validator(mode="after")
    def _rows_have_a_size(self) -> Memory:
        if self.row_bits is None and (self.row_cycles or self.row_pj):
            raise ValueError("row_cycles and row_pj are of rows: give row_bits too, or leave them out")
        return self

    def of_size(self, size: int) -> Memory:
        """The same kind of memory with so many bytes: it leaks in proportion, and a bit costs as `memory_growth` says."""
        growth = memory_growth(size, self.bytes)
        write = self.write_pj_per_bit and self.write_pj_per_bit * growth
        scaled = {"read_pj_per_bit": self.read_pj_per_bit * growth, "write_pj_per_bit": write}
        return self.model_copy(update={"bytes": size, "leakage_mw": self.leakage_mw * size / self.bytes} | scaled)


class Memories(_Strict):
    """sram: what the array and the vector unit work from. dram, rom: behind it, read into it once per batch.

    accumulators: beside the array, for partial sums and for scores that wait for their row; what does not fit goes to the SRAM.
    weight_buffer_bytes: of the SRAM, what weights, constants and maps from behind it come through. double_buffered: one operation's
    are fetched while another computes. residual_in_place: a sum may overwrite the operand that nobody reads any more. streams_image:
    pixels come from outside as they are quantised, and never lie in the SRAM.
    """

    sram: Memory
    dram: Memory | None = None
    rom: Memory | None = None
    accumulators: Memory | None = None
    weight_buffer_bytes: Annotated[int, Field(ge=0, le=2**48)] = 0
    double_buffered: bool = True
    residual_in_place: bool = False
    streams_image: bool = False
    attention_by_head: bool = False
    mlp_rows: Positive | None = None

    @property
    def levels(self) -> dict[Level, Memory]:
        """Those that are there, by name."""
        named: dict[Level, Memory | None] = {level: getattr(self, level) for level in LEVELS}
        return {level: memory for level, memory in named.items() if memory is not None}

    @model_validator(mode="after")
    def _everything_has_a_place(self) -> Memories:
        if faults := misplaced({level: memory.holds for level, memory in self.levels.items()}):
            raise ValueError("; ".join(faults))
        return self


def misplaced(holds: Mapping[str, Sequence[object]]) -> list[str]:
    """What is wrong with what the memories hold for good, by level."""
    held = [content for contents in holds.values() for content in contents]
    faults = [f"exactly one memory holds {name}, got {held.count(name)}" for name in ("weights", "maps") if held.count(name) != 1]
    if "activations" not in holds.get("sram", ()) or held.count("activations") != 1:
        faults.append("sram, and no other memory, holds activations")
    if holds.get("accumulators"):
        faults.append("accumulators hold partial sums and scores, and nothing for good: leave holds out")
    return faults


class Hardware(_Strict):
    """One accelerator.

    layer_pipelined: every operation has an array and a vector unit of its own, of the size described; images follow one another.
    """

    name: str = Field(min_length=1)
    description: str = ""
    frequency_mhz: float
    layer_pipelined: bool = False
    compute: Annotated[Array | Simd, Field(discriminator="kind")]
    vector: Vector
    memories: Memories

    @field_validator("frequency_mhz")
    @classmethod
    def _in_megahertz(cls, frequency: float) -> float:
        if not 0 < frequency <= MOST_MHZ:
            raise ValueError(f"expected a clock above 0 and up to {MOST_MHZ:,} MHz, got {frequency:,g}; 500e6 Hz are 500")
        return frequency

    @property
    def home(self) -> dict[Content, Home]:
        """The memory that holds the weights, the activations and the maps."""
        return {content: level for level, memory in self.memories.levels.items() if level != "accumulators" for content in memory.holds}

    @property
    def with_zero_skip(self) -> Hardware:
        """The same chip without products of frozen codes that mean zero."""
        return self.model_copy(update={"compute": self.compute.model_copy(update={"skips_zero_codes": True})})

    def with_maps_in(self, level: Home) -> Hardware:
        """The same chip with the frozen maps in another of its memories; UserError if it has no such memory."""
        levels = self.memories.levels
        homes = [name for name in levels if name != "accumulators"]
        if level not in homes:
            raise UserError(f"--maps: {self.name} has {', '.join(homes)}, got {level!r}; choose one of them or describe another chip")
        held = {name: [content for content in memory.holds if content != "maps"] for name, memory in levels.items()}
        held[level].append("maps")
        moved = {name: memory.model_copy(update={"holds": tuple(held[name])}) for name, memory in levels.items()}
        return self.model_copy(update={"memories": self.memories.model_copy(update=moved)})


PARTS: dict[Hashable, type[BaseModel]] = {"array": Array, "simd": Simd, "vector": Vector, "memories": Memories}
PARTS |= dict.fromkeys(LEVELS, Memory)
KINDS = tuple(get_args(part.model_fields["kind"].annotation)[0] for part in (Array, Simd))


def preset_names() -> list[str]:
    """The presets that ship with the package."""
    return sorted(path.name.removesuffix(".yaml") for path in PRESETS.iterdir() if path.name.endswith(".yaml"))


def preset_text(name: str) -> str:
    """The YAML of a preset; UserError for a name that is none."""
    if name not in preset_names():
        raise UserError(f"preset: expected one of {', '.join(preset_names())}, got {name!r}")
    return (PRESETS / f"{name}.yaml").read_text(encoding="utf-8")


def load(name: str) -> Hardware:
    """A preset by its name, or a YAML file; UserError with every fault of the file, BadFile if it cannot be read."""
    expect_path("hardware", name)
    if name in preset_names():
        return parse(preset_text(name), name)
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        raise UserError(f"--hw: expected a .yaml file or one of {', '.join(preset_names())}, got {name!r}")
    try:
        return parse(read_text(path, YAML_BYTES), str(path))
    except OSError as error:
        raise BadFile(f"{path}: cannot be read ({error.strerror}); give a hardware description") from error
    except UnicodeDecodeError as error:
        raise BadFile(f"{path}: expected UTF-8 text, got other bytes at {error.start}; give a hardware description") from error


def parse(text: str, where: str) -> Hardware:
    """The description in a YAML text; UserError lists every fault as `where:line: field: what`."""
    if text.count("[") + text.count("{") > YAML_BRACKETS:
        raise UserError(f"{where}: expected at most {YAML_BRACKETS} brackets, got more; {ADVICE}")
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise UserError(f"{where}: expected every field in full, got an alias (*name); write the figures out")
        root = yaml.compose(text, yaml.SafeLoader)
    except RecursionError as error:
        raise UserError(f"{where}: expected a hardware description, got endless nesting; {ADVICE}") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{where}:{line}: expected YAML, got {error.problem}; {ADVICE}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{where}: expected YAML, got {str(error).splitlines()[0]}; {ADVICE}") from error
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f"{where}:1: expected the fields of a hardware description, got none; {ADVICE}")
    lines: dict[tuple[Hashable, ...], int] = {(): 1}
    faults: list[str] = []
    data = _plain(root, (), lines, faults)
    faults += [_fault(item, lines) for item in _errors(data)]
    if faults:
        raise UserError(*(f"{where}:{fault}" for fault in sorted(faults, key=lambda fault: int(fault.partition(":")[0]))))
    return Hardware.model_validate(data)


def _errors(data: Any) -> list[dict[str, Any]]:
    """What pydantic finds wrong, and what it does not look at then: the fields of a core of unknown kind, the places in faulty memories."""
    try:
        Hardware.model_validate(data)
        return []
    except ValidationError as error:
        errors: list[dict[str, Any]] = [dict(each) for each in error.errors()]
    compute, memories = data.get("compute"), data.get("memories")
    if isinstance(compute, dict) and compute.get("kind") not in KINDS:
        got = f", got {compute['kind']!r}" if "kind" in compute else ""
        unknown = {"type": "value_error" if got else "missing", "loc": ("compute", "kind"), "msg": f"expected {' or '.join(KINDS)}{got}"}
        return [unknown, *min((_errors(data | {"compute": compute | {"kind": kind}}) for kind in KINDS), key=len)]
    if isinstance(memories, dict) and any(each["loc"][0] == "memories" and each["loc"][1:] for each in errors):
        held = {level: memory.get("holds") for level, memory in memories.items() if isinstance(memory, dict)}
        found = misplaced({level: contents for level, contents in held.items() if isinstance(contents, list)})
        errors += [{"type": "value_error", "loc": ("memories",), "msg": fault} for fault in found]
    return errors


def _plain(node: yaml.Node, path: tuple[Hashable, ...], lines: dict[tuple[Hashable, ...], int], faults: list[str]) -> object:
    """The node as dicts, lists and strings (pydantic reads the numbers); notes the line of every field and faults of the YAML itself."""
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, object] = {}
        for key, value in node.value:
            name = str(key.value)
            if name in mapping:
                faults.append(f"{key.start_mark.line + 1}: {'.'.join(map(str, (*path, name)))}: given twice; keep one")
            lines[(*path, name)] = key.start_mark.line + 1
            mapping[name] = _plain(value, (*path, name), lines, faults)
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, (*path, index), lines, faults) for index, item in enumerate(node.value)]
    return None if node.tag == "tag:yaml.org,2002:null" else node.value


def _fields(location: tuple[Hashable, ...]) -> list[str]:
    """Names that are fields where a name is none: of the part of a description that `location` leads through."""
    part: type[BaseModel] = Hardware
    for name in location[:-1]:
        part = PARTS.get(name, Figure if str(name).endswith(("_pj", "_pj_per_bit")) else part)
    return list(part.model_fields)


def _fault(error: dict[str, Any], lines: dict[tuple[Hashable, ...], int]) -> str:
    """`line: field: what`; a missing field has the line of what it is missing from."""
    path: tuple[Hashable, ...] = ()
    for part in error["loc"]:
        path = (*path, part) if (*path, part) in lines or (error["type"] == "missing" and part == error["loc"][-1]) else path
    got = "" if error["type"] in ("missing", "value_error") else f", got {str(error['input'])[:60]!r}"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        close = get_close_matches(str(error["loc"][-1]), _fields(error["loc"]), 1)
        message, got = f"no such field; {f'did you mean {close[0]}?' if close else 'leave it out'}", ""
    return f"{lines.get(path, lines.get(path[:-1], 1))}: {'.'.join(map(str, path))}: {message[:1].lower()}{message[1:]}{got}"
