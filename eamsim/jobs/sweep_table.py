"""The table of a sweep, one line per unit of work: sweep.csv, written by `eamsim sweep` and read by whoever draws figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from eamsim.errors import BadFile, UserError
from eamsim.files.table import read_lines, write_lines
from eamsim.program import Softmax
from reference.attention.freeze import Freezing, Order, Scope

Variant = Literal["eam-fp32", "eam-4bits", "random-4bits", "baseline"]
Runner = Literal["float", "fakequant", "engine"]


@dataclass(frozen=True)
class SweepUnit:
    """What one unit of work evaluates.

    model: as the command line names it; variant: EAM with float means, with 4-bit codes, 4-bit codes in random order, or `baseline`,
    where nothing is frozen; runner: the float model, the fake-quantised one or the integer engine. A baseline has empty softmax,
    granularity, scope and order, and tau 0; only random-4bits has a seed. Raises UserError for anything else.
    """

    model: str
    variant: Variant
    runner: Runner
    softmax: Softmax | Literal[""]
    granularity: str
    scope: Scope | Literal[""]
    order: Order | Literal[""]
    seed: int | None
    tau: float

    def __post_init__(self) -> None:
        checks: list[tuple[str, Any]] = [("variant", Variant), ("runner", Runner)]
        for name, known in checks if self.variant == "baseline" else [*checks, ("softmax", Softmax)]:
            if getattr(self, name) not in get_args(known):
                raise UserError(f"{name}: must be one of {', '.join(get_args(known))}, got {getattr(self, name)!r}")
        if self.variant == "baseline":
            if (self.softmax, self.granularity, self.scope, self.order, self.seed, self.tau) != ("", "", "", "", None, 0):
                raise UserError(f"baseline: freezes nothing, expected tau 0 and no other choice, got {self}")
            return
        drawn = self.variant == "random-4bits"
        if (self.order == "random", self.seed is not None) != (drawn, drawn):
            raise UserError(f"order: random and a seed belong to the variant random-4bits alone, got {self.order!r} for {self.variant}")
        if self.runner not in (("fakequant",) if self.variant == "eam-fp32" else ("fakequant", "engine")):
            raise UserError(f"runner: {self.variant} cannot run as {self.runner}; float means have no integer program")
        if self.freezing is None:
            raise UserError(f"{self.variant}: expected a scope and an order, got {self.scope!r} and {self.order!r}")

    @property
    def freezing(self) -> Freezing | None:
        """What is frozen, if anything."""
        if self.scope == "" or self.order == "":
            return None
        return Freezing(self.tau, self.granularity, self.scope, self.order, self.seed or 0)


@dataclass(frozen=True)
class Row(SweepUnit):
    """The accuracy of one unit: fractions top1 and top5 of so many images. Raises UserError outside their ranges.

    tau_with_excluded: tau with the pairs that a Swin's shifted windows exclude counted as frozen; None where there are none.
    """

    images: int
    top1: float
    top5: float
    tau_with_excluded: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tau_with_excluded is not None and not self.tau < self.tau_with_excluded <= 1:
            raise UserError(f"tau_with_excluded: expected more than tau, at most 1, got {self.tau_with_excluded} for {self.tau}")
        if self.images < 1 or not 0 <= self.top1 <= self.top5 <= 1:
            raise UserError(f"accuracy: expected 0 <= top1 <= top5 <= 1 of 1 image or more, got {self.top1}, {self.top5} of {self.images}")


SWIN_COLUMNS = tuple(field.name for field in fields(Row))
COLUMNS = SWIN_COLUMNS[:-1]
"""Of a table without a Swin's rows."""


def write_sweep(path: Path, rows: Sequence[Row]) -> None:
    """Replace the table at `path` in one step; fractions in the shortest decimals that read back the same.

    Equal rows make equal bytes. Raises BadFile where it cannot be written.
    """
    columns = COLUMNS if all(row.tau_with_excluded is None for row in rows) else SWIN_COLUMNS
    write_lines(path, [columns, *(astuple(row)[: len(columns)] for row in rows)], "free some space, then continue with --resume")


def read_sweep(path: Path) -> list[Row]:
    """The rows of a table in the order of the file; BadFile names what is wrong and where."""
    header, lines = read_lines(path, "a sweep", "make it with `eamsim sweep`")
    if tuple(header) not in (COLUMNS, SWIN_COLUMNS):
        raise BadFile(f"{path}: expected the columns {','.join(COLUMNS)}, got {','.join(header)[:200]}; make it with `eamsim sweep`")
    return [_row(f"{path}: row {number}", header, line) for number, line in enumerate(lines, 1)]


def _row(where: str, header: list[str], line: list[str]) -> Row:
    if len(line) != len(header):
        raise BadFile(f"{where}: expected {len(header)} fields, got {len(line)}; make the table again with `eamsim sweep --resume`")
    values: dict[str, Any] = dict(zip(header, line, strict=True))
    excluded = values.get("tau_with_excluded")
    try:
        values |= {name: float(values[name]) for name in ("tau", "top1", "top5")} | {
            "tau_with_excluded": float(excluded) if excluded else None
        }
        values |= {"seed": int(values["seed"]) if values["seed"] else None, "images": int(values["images"])}
        return Row(**values)
    except (ValueError, UserError) as error:
        raise BadFile(f"{where}: {error}; make the table again with `eamsim sweep --resume`") from error
