"""The part of `eamsim cost` that knows a chip: cycles, energy and traffic per row, and whether freezing pays on it."""

from __future__ import annotations

from collections import Counter

from rich.table import Table

from cost_model.chip.hardware import Hardware
from eamsim.cli.output import table
from eamsim.jobs.costs.chip import summary, verdicts

NOTE = (
    "heads: as much frozen as whole heads, the most it can save. B*: the smallest batch with which freezing costs no more energy.",
    "use: multiplies that toggle, of those the time allows. Energies: all low, all nominal, all high figures of the description.",
    "QK^T saved: of its cycles, by skipping. balance: mean over longest row of needed scores in a block of the array's rows.",
    "stored bytes: of the maps as they are stored, with tags and row masses; map bytes: with one bit a weight instead.",
)


def hardware_report(rows: list[dict], dense: dict, hardware: Hardware, batch: int) -> tuple[str | Table, ...]:
    """The chip, a line per row with its bound, and what the figures come to."""
    lines = [("-", "-", "none", dense)]
    for row in rows:
        lines.append((row["softmax"], f"{row['tau']:.4g}", "scattered" if row["estimated"] else "its own", row["hardware"]))
        if "upper_bound" in row and row["tau"]:
            lines.append(("", "", "heads", row["upper_bound"]["hardware"]))
    names = ("softmax", "tau", "frozen")
    costs = table(
        (*names, "kcycles", "ms", "use %", "uJ low", "nominal", "high", "change %", "B*"),
        [cost_line(*row) for row in lines],
        keys=len(names),
    )
    levels = tuple(hardware.memories.levels)
    columns = (*names, "QK^T saved %", "balance %", *(f"{level.upper()} kB" for level in levels), "stored bytes", "stored as", "in")
    memory = table(columns, [memory_line(*row, levels) for row in lines], keys=len(names))
    return ("", summary(hardware, batch), "", costs, "", memory, "", *verdicts(rows, batch), "", *NOTE)


def cost_line(softmax: str, tau: str, frozen: str, on_chip: dict) -> tuple[str, ...]:
    """Time and energy of one row."""
    energies = (f"{on_chip['energy_uj'][level]:,.1f}" for level in ("low", "nominal", "high"))
    time = (f"{on_chip['cycles'] / 1e3:,.0f}", f"{on_chip['milliseconds']:,.3f}", f"{100 * on_chip['utilisation']:.1f}")
    pays = "never" if on_chip["break_even_batch"] is None else str(on_chip["break_even_batch"])
    return (softmax, tau, frozen, *time, *energies, f"{100 * on_chip['energy_change']:+.2f}", pays if on_chip["encodings"] else "-")


def memory_line(softmax: str, tau: str, frozen: str, on_chip: dict, levels: tuple[str, ...]) -> tuple[str, ...]:
    """Traffic and storage of one row."""
    moved = (f"{on_chip[f'{level}_bytes'] / 1e3:,.0f}" for level in levels)
    kinds = [name for name, _ in Counter(on_chip["encodings"]).most_common()]
    more = f" +{len(kinds) - 1}" if kinds[1:] else ""
    stored = (f"{on_chip['stored_map_bytes']:,}", f"{kinds[0]}{more}", on_chip["maps_in"]) if kinds else ("-", "-", "-")
    shares = (f"{100 * on_chip[name]:.1f}" for name in ("score_cycles_saved", "row_balance"))
    return (softmax, tau, frozen, *shares, *moved, *stored)
