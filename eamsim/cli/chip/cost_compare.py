"""`eamsim cost --compare A B`: two programs side by side."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from cost_model.chip.hardware import Hardware
from cost_model.models.variants import thawed
from cost_model.price.energy import evaluate
from eamsim.cli.output import table
from eamsim.constraints import Verified
from eamsim.jobs.costs.chip import figures as hardware_figures
from eamsim.jobs.costs.chip import summary

SHOWN = {  # key of a row: what it is called, and its unit
    "macs_full": "MACs, full scope",
    "macs_paper": "MACs, Eq. 9",
    "qk_macs": "  of QK^T",
    "av_macs": "  of A.V",
    "unread_macs": "  that nobody reads",
    "weight_bytes": "weight bytes",
    "map_bytes": "map bytes (bitmap, codes)",
    "activation_bytes": "activation bytes",
    "cycles": "cycles",
    "milliseconds": "milliseconds",
    "energy_uj_low": "energy uJ, low",
    "energy_uj": "energy uJ, nominal",
    "energy_uj_high": "energy uJ, high",
    "utilisation": "utilisation",
    "dram_bytes": "DRAM bytes moved",
    "rom_bytes": "ROM bytes moved",
    "sram_bytes": "SRAM bytes moved",
    "stored_map_bytes": "map bytes as stored",
}


def compared(
    rows: tuple[dict, dict], programs: tuple[Verified, Verified], hardware: Hardware | None, batch: int, encoding: str
) -> dict[str, Any]:
    """Figures of A and B, per image, and B - A; rows: of `eamsim cost`, their own masks."""
    sides = [flat(row, program, hardware, batch, encoding) for row, program in zip(rows, programs, strict=True)]
    return {"a": sides[0], "b": sides[1], "difference": {key: sides[1][key] - sides[0][key] for key in SHOWN if key in sides[0]}}


def flat(row: dict, program: Verified, hardware: Hardware | None, batch: int, encoding: str) -> dict[str, Any]:
    """The row with the chip's figures beside its own."""
    if hardware is None:
        return row
    estimate = evaluate(program, hardware, batch, encoding)
    on_chip = hardware_figures(estimate, evaluate(thawed(program), hardware, batch, encoding))
    energy = on_chip.pop("energy_uj")
    return row | on_chip | {"energy_uj_low": energy["low"], "energy_uj": energy["nominal"], "energy_uj_high": energy["high"]}


def comparison(result: dict[str, Any], names: tuple[str, str], hardware: Hardware | None, batch: int) -> tuple[str | Table, ...]:
    """A line a figure."""
    a, b, change = result["a"], result["b"], result["difference"]
    lines = [(SHOWN[key], number(a[key]), number(b[key]), signed(change[key]), percent(change[key], a[key])) for key in change]
    facts = [(name, a[name], b[name], "", "") for name in ("softmax", "granularity")]
    taus = [("tau", f"{a['tau']:.4g}", f"{b['tau']:.4g}", f"{b['tau'] - a['tau']:+.4g}", "")]
    head = () if hardware is None else (summary(hardware, batch), "")
    return (f"A: {names[0]}", f"B: {names[1]}", "", *head, table(("one image", "A", "B", "B - A", "%"), [*facts, *taus, *lines]))


def number(figure: float) -> str:
    if float(figure).is_integer():
        return f"{int(figure):,}"
    return f"{figure:,.4g}" if abs(figure) < 1 else f"{figure:,.3f}"


def signed(figure: float) -> str:
    return f"{'+' if figure > 0 else ''}{number(figure)}"


def percent(change: float, base: float) -> str:
    return f"{100 * change / base:+.2f}" if base else ""
