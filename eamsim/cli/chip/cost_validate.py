"""`eamsim cost --validate`: published designs beside what the cost model makes of them, as a Markdown page (docs/results/chips.md)."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from cost_model.validation import WITHIN, Comparison, compared, designs

HEAD = (
    "# Published designs, and what the cost model makes of them",
    "",
    "`eamsim cost --validate` makes this page from the descriptions in `cost_model/published`: one image, nothing frozen, at the widths of "
    "the design.",
    "What no source gives is chosen, and said below: where that is the array's size or clock, agreement says that its use is about right, "
    "and no more.",
    "Figures are from the abstracts, tables and code named; tables quoted by other works are named as such.",
    "Energies are nominal; their low and high readings spread fourfold.",
    "",
)
NOT_MODELLED = (
    "## Looked for, and not modelled",
    "",
    "- VAQF (Sun et al., 2022, arXiv 2201.06618, abstract): DeiT-Base with binary weights at 24 images/s on a ZCU102; no source that was "
    "found gives its parallel degrees, without which 24 images/s fit any array.",
    "- Arm Ethos-U: cycles are published for small convolutional networks (Vela's page on its estimates), and DeiT-Tiny runs on an "
    "Ethos-U85-256 in ExecuTorch's examples, but no source that was found gives its cycles.",
    "- The 154 GOp/s of Deeploy + ITA: no source that was found gives the clock.",
    "- ME-ViT, P2-ViT, TATAA, SSR: their tables of frame rates were not found.",
)


def validation(as_json: bool) -> tuple[Any, ...]:
    """What `emit` takes: every comparison, and the page."""
    shown = [(design, list(compared(design))) for design in designs()]
    rows = [row for _, each in shown for row in each]
    result = {"rows": [asdict(row) | {"ratio": row.ratio, "agrees": row.agrees} for row in rows]}
    agreeing = sum(row.agrees for row in rows)
    lines = [*HEAD, f"{agreeing} of {len(rows)} figures of {len(shown)} designs agree within {WITHIN:g}x.", ""]
    lines += ["| design | network | quantity | published | modelled | ratio | |", "|---|---|---|---|---|---|---|"]
    lines += [f"| {' | '.join(cells(row))} |" for row in rows]
    for design, compared_figures in shown:
        lines += ["", f"**{design.hardware.name}** ({design.hardware.description})", ""]
        lines += [f"- {design.title}, {design.year}: {design.where}. <{design.url}>", f"- Chosen: {design.chosen}."]
        lines += [f"- {row.quantity}: {row.where}." for row in compared_figures]
    return result, as_json, *lines, "", *NOT_MODELLED


def cells(row: Comparison) -> tuple[str, ...]:
    """One line of the table."""
    model = row.model.removesuffix("_patch16_224").replace("_", "-")
    verdict = "within 2x" if row.agrees else "further"
    return (
        row.design,
        model,
        row.quantity,
        f"{row.published:,.4g}",
        f"{row.modelled:,.4g}",
        f"{row.ratio:.2f}",
        "; ".join(filter(None, (verdict, row.reason))),
    )
