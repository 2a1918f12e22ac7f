"""Table 1 of the paper: top-1 of the float model, of RepQ-ViT and of EAM in 4 bits, a column a model."""

from __future__ import annotations

from collections.abc import Sequence

from eamsim.errors import UserError
from eamsim.figures.panels import BASELINES, short_name, varying, words
from eamsim.jobs.sweep_table import Row

PRECISION = {"float": "32/32", "fakequant": "4/4", "engine": "4/4"}
CHOICE = ("softmax", "runner", "granularity", "scope", "order")


def table1(rows: Sequence[Row], taus: Sequence[float]) -> list[list[str]]:
    """The cells of the table, its header first: top-1 in % with two decimals, a dash where no row has the value.

    A line for each baseline, then one for each tau and each choice of eam-4bits; choices are named where they differ. Raises
    UserError where no row of eam-4bits has one of the taus.
    """
    models = list(dict.fromkeys(row.model for row in rows))
    eam = [row for row in rows if row.variant == "eam-4bits" and row.tau in taus]
    if not eam:
        expected = ", ".join(map(str, taus))
        raise UserError(f"sweep.csv: expected rows of eam-4bits at tau {expected}, got none; give other --tau, or run `eamsim sweep`")
    in_name = varying(eam, CHOICE)
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for runner, name in BASELINES.items():
        for row in (row for row in rows if row.variant == "baseline" and row.runner == runner):
            lines.setdefault((name, PRECISION[runner]), {})[row.model] = _percent(row)
    for row in sorted(eam, key=lambda row: row.tau):
        name = ", ".join(["EAM 4 bits", f"\N{GREEK SMALL LETTER TAU} = {100 * row.tau:g} %", *words(row, in_name)])
        lines.setdefault((name, PRECISION[row.runner]), {})[row.model] = _percent(row)
    images = {row.model: f"{row.images:,}" for row in rows}
    header = ["Method", "Prec. (W/A)", *map(short_name, models)]
    body = [[*names, *(line.get(model, "-") for model in models)] for names, line in lines.items()]
    return [header, *body, ["Images", "", *(images[model] for model in models)]]


def markdown(cells: Sequence[Sequence[str]]) -> str:
    """Cells as a Markdown table, the numbers right-aligned."""
    header, *body = cells
    rule = ["---", "---", *("---:" for _ in header[2:])]
    return "".join(f"| {' | '.join(line)} |\n" for line in (header, rule, *body))


def _percent(row: Row) -> str:
    return f"{100 * row.top1:.2f}"
