"""Search of designs: array shape x dataflow x SRAM x batch x granularity, every point priced as `cost_model.price.energy` prices one.

A unit of work is one granularity on one dataflow: its masks are counted once for every array shape, and all shapes are priced
together as integer arrays, for each SRAM and batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np

from cost_model.chip.area import area_mm2
from cost_model.chip.arrays import Dataflow
from cost_model.chip.hardware import Array, Hardware
from cost_model.models.architectures import Architecture, SwinArchitecture
from cost_model.models.skeleton import skeleton
from cost_model.models.variants import Freezer, refrozen, scattered, thawed, whole_heads, whole_units
from cost_model.price.energy import priced, workload
from cost_model.price.traffic import DoesNotFit
from cost_model.work.encodings import TILE
from eamsim.constraints import Verified
from eamsim.errors import UserError
from eamsim.jobs.search.pareto import undominated
from eamsim.jobs.workers import Workers, results
from eamsim.program import Softmax
from eamsim.progress import Progress

Subject = Architecture | SwinArchitecture | Verified
Points = dict[str, np.ndarray]
"""Columns of equal length: `CHOICES`, then per image cycles and microjoules, the milliseconds of the batch, and the area."""
CHOICES = ("granularity", "dataflow", "rows", "columns", "sram_bytes", "batch")
GOALS = ("energy_uj", "latency_ms", "area_mm2")
MOST_POINTS = 10_000_000


@dataclass(frozen=True)
class DesignUnit:
    """What is priced at a time."""

    granularity: str
    dataflow: Dataflow


@dataclass(frozen=True)
class Space:
    """Every combination of the choices; all else is the description's. tau, softmax: of maps frozen for the search.

    The SRAM's leakage and its weight buffer grow with it, its energy per bit with the root of it, and its bits per cycle stay.
    """

    hardware: Hardware
    rows: Sequence[int]
    columns: Sequence[int]
    dataflows: Sequence[Dataflow]
    sram_bytes: Sequence[int]
    batches: Sequence[int]
    granularities: Sequence[str]
    tau: float
    softmax: Softmax = "renormalised"
    encoding: str = "auto"

    def __len__(self) -> int:
        return len(self.units) * self.points_per_unit

    @property
    def points_per_unit(self) -> int:
        return len(self.rows) * len(self.columns) * len(self.sram_bytes) * len(self.batches)

    @property
    def units(self) -> list[DesignUnit]:
        """In the order of the points."""
        return [DesignUnit(*choice) for choice in product(self.granularities, self.dataflows)]

    def check(self) -> None:
        """UserError for a space that cannot be searched."""
        compute = self.hardware.compute
        if not isinstance(compute, Array):
            raise UserError(f"--hw: expected a PE array, got {self.hardware.name}, a SIMD core; take small-npu or large-npu")
        if self.hardware.layer_pipelined:
            raise UserError(f"--hw: expected one array for all, got {self.hardware.name}, which is layer_pipelined; take small-npu")
        if compute.skip == "pair" and set(self.dataflows) != {"os"}:
            raise UserError(f"--dataflow: {self.hardware.name} skips pairs, which expects os alone, got {','.join(self.dataflows)}")
        if len(self) > MOST_POINTS:
            raise UserError(f"search: expected at most {MOST_POINTS:,} points, got {len(self):,}; leave some choices out")


@lru_cache(maxsize=1)
def variant(subject: Subject, granularity: str, tau: float, softmax: Softmax) -> Verified:
    """The subject frozen anew: none, weight, row, column, tile:RxC or head at tau; `own` is a program as it is. UserError otherwise."""
    program = subject if isinstance(subject, Verified) else skeleton(subject)
    if granularity == "own" and isinstance(subject, Verified):
        return program
    dense = thawed(program)
    freezers: dict[str, Callable[[], Freezer | None]] = {
        "none": lambda: None,
        "weight": lambda: scattered(tau),
        "row": lambda: whole_units(tau, 1, 0),
        "column": lambda: whole_units(tau, 0, 1),
        "head": lambda: whole_heads(dense, tau),
    }
    if tile := TILE.fullmatch(granularity):
        freezer = whole_units(tau, int(tile[1]), int(tile[2]))
    elif granularity in freezers:
        freezer = freezers[granularity]()
    else:
        own = ", own" if isinstance(subject, Verified) else ""
        raise UserError(f"--granularity: expected {', '.join(freezers)}{own} or tile:RxC such as tile:16x16, got {granularity!r}")
    return dense if freezer is None else refrozen(dense, freezer, softmax)


def design(hardware: Hardware, dataflow: Dataflow, rows: Any, columns: Any, sram_bytes: int) -> Hardware:
    """The description with another array and another SRAM."""
    compute = hardware.compute.model_copy(update={"rows": rows, "columns": columns, "dataflow": dataflow})
    before = hardware.memories
    buffer_bytes = before.weight_buffer_bytes * sram_bytes // before.sram.bytes
    memories = before.model_copy(update={"sram": before.sram.of_size(sram_bytes), "weight_buffer_bytes": buffer_bytes})
    return hardware.model_copy(update={"compute": compute, "memories": memories})


def price_unit(unit: DesignUnit, subject: Subject, space: Space) -> Points:
    """The points of one unit, in the order of the choices; those that do not fit their memories are left out."""
    rows, columns = np.array(list(product(space.rows, space.columns)), np.int64).T
    program = variant(subject, unit.granularity, space.tau, space.softmax)
    chip = design(space.hardware, unit.dataflow, rows, columns, space.hardware.memories.sram.bytes)
    work = workload(program, chip.compute, space.encoding)
    found = []
    for sram_bytes, batch in product(space.sram_bytes, space.batches):
        chip = design(space.hardware, unit.dataflow, rows, columns, sram_bytes)
        try:
            estimate = priced(work, chip, batch)
        except DoesNotFit:
            continue
        energy = estimate.energy * 1e-6
        figures = {
            **dict(zip(CHOICES, (unit.granularity, unit.dataflow, rows, columns, sram_bytes, batch), strict=True)),
            "cycles": estimate.cycles_per_image,
            "latency_ms": estimate.milliseconds_per_image * batch,
            "energy_uj_low": energy.low_pj,
            "energy_uj": energy.nominal_pj,
            "energy_uj_high": energy.high_pj,
            "area_mm2": area_mm2(chip),
        }
        found.append({name: np.broadcast_to(figure, len(rows)) for name, figure in figures.items()})
    return _joined(found)


def search(subject: Subject, space: Space, workers: Workers, progress: Progress) -> Points:
    """All points that fit, in the order of the choices, and whether each is on the front; UserError where none does."""
    done: dict[DesignUnit, Points] = {}
    with workers(price_unit, subject, space) as (submit, at_once), progress("designs", len(space)) as advance:
        for unit, points in results(submit, space.units, at_once):
            done[unit] = points
            advance(space.points_per_unit)
    points = _joined([done[unit] for unit in space.units if len(done[unit])])
    if not points:
        raise UserError("search: no design fits its memories; take larger SRAMs or smaller batches")
    return points | {"pareto": undominated(np.stack([points[goal] for goal in GOALS], axis=1))}


def rows_of(points: Points, chosen: np.ndarray) -> Iterator[dict[str, Any]]:
    """The chosen points one by one, in plain numbers."""
    for index in np.flatnonzero(chosen):
        yield {name: column[index].item() for name, column in points.items()}


def _joined(parts: Sequence[Points]) -> Points:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}
