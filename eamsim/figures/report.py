"""The figures of `eamsim report`, as SVG that stands in the page and takes its colour of text: the one file that needs matplotlib."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from cost_model.chip.hardware import Array, Simd
from cost_model.work.counts import share
from eamsim.constraints import Verified
from eamsim.figures.compare import draw_growth, draw_sources
from eamsim.jobs.costs.findings import frozen_share, left_out

INK = "#010203"
"""Stands for the page's colour of text, light or dark: no figure uses it otherwise."""
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "eamsim",
    "text.parse_math": False,  # names come from files
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "none"),
}
# Okabe and Ito's colours, which stand on white and on dark grey alike.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#999999")


def draw(found: dict[str, Any], program: Verified, compute: Array | Simd) -> dict[str, Markup]:
    """The SVG of every figure by its name; those that a program has nothing for are left out."""
    figures: dict[str, Callable[[], Figure]] = {
        "layers": lambda: layers(found),
        "tau": lambda: against_tau(found),
        "batch": lambda: against_batch(found),
        "roofline": lambda: roofline(found),
    }
    if found["row"]["tau"]:
        figures |= {"masks": lambda: masks(program, compute), "encodings": lambda: encodings(found)}
    if found["accuracy"]:
        figures["accuracy"] = lambda: accuracy(found)
    if found["comparison"]:
        figures["comparison"] = lambda: comparison(found["comparison"])
    with matplotlib.rc_context(STYLE):
        return {name: svg(figure(), name) for name, figure in figures.items()}


def svg(figure: Figure, name: str) -> Markup:
    """One element without prologue, scalable, its identifiers those of no other figure."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    element = text.getvalue()[text.getvalue().index("<svg") :]
    element = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", element)
    element = re.sub(r' (width|height)="[0-9.]+pt"', "", element, count=2)
    return Markup(element.replace(INK, "currentColor").replace("<svg ", '<svg role="img" ', 1))


def panels(count: int, height: float = 2.6) -> tuple[Figure, np.ndarray]:
    figure = Figure((9, height), layout="constrained")
    return figure, figure.subplots(1, count, squeeze=False)[0]


def layers(found: dict[str, Any]) -> Figure:
    """MACs, energy and time of every block, stacked by part."""
    rows = found["layers"]
    blocks, parts = (list(dict.fromkeys(row[key] for row in rows)) for key in ("block", "part"))
    figure, axes = panels(3, 3.2)
    for axis, (key, label, scale) in zip(
        axes, [("macs", "million MACs", 1e6), ("energy_uj", "energy (µJ)", 1), ("cycles", "thousand cycles", 1e3)], strict=True
    ):
        below = np.zeros(len(blocks))
        for part, colour in zip(parts, COLOURS * 3, strict=False):
            sizes = np.array([sum(row[key] for row in rows if (row["block"], row["part"]) == (block, part)) for block in blocks]) / scale
            axis.bar(range(len(blocks)), sizes, bottom=below, color=colour, label=part, width=0.8)
            below += sizes
        axis.set_ylabel(f"{label} per image")
        axis.set_xticks(range(len(blocks)), [block.removeprefix("block") for block in blocks], rotation=90 if len(blocks) > 8 else 0)
        axis.set_xlabel("block")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(parts))
    return figure


def against_tau(found: dict[str, Any]) -> Figure:
    """What freezing a share tau changes, renormalised: MACs, energy, time, each with its ceiling, and stored maps."""
    figure = Figure((9, 4.8), layout="constrained")
    axes = figure.subplots(2, 2).ravel()
    taus = [100 * point["tau"] for point in found["curves"]]
    quantities = [
        ("MACs saved (%)", lambda x: 100 * x["macs_saved"]),
        ("energy change (%)", lambda x: 100 * x["energy_change"]),
        ("milliseconds per image", lambda x: x["milliseconds"]),
        ("stored maps (kB)", lambda x: x["stored_map_bytes"] / 1e3),
    ]
    for axis, (label, quantity) in zip(axes, quantities, strict=True):
        for kind, colour, line in (("scattered", COLOURS[0], "-"), ("heads", COLOURS[1], "--")):
            axis.plot(taus, [quantity(point[kind]) for point in found["curves"]], line, color=colour, label=KINDS[kind])
        axis.set_xlabel("frozen weights, τ (%)")
        axis.set_ylabel(label)
    ceiling = found["ceiling"]
    for axis, most in zip(axes, (100 * ceiling["macs_saved"], 100 * ceiling["energy_change"], ceiling["milliseconds"]), strict=False):
        axis.axhline(most, color=COLOURS[6], linestyle=":", label="all of QKᵀ, maps for nothing")
    axes[1].axhline(0, color=COLOURS[6], linewidth=0.8)
    handles, labels = axes[0].get_legend_handles_labels()
    if found["row"]["tau"]:
        own = 100 * found["row"]["tau"]
        saved = share(found["row"]["macs_saved_full"], found["row"]["macs_full"] + found["row"]["macs_saved_full"])
        values = (100 * saved, 100 * found["own"]["energy_change"], found["own"]["milliseconds"], found["own"]["stored_map_bytes"] / 1e3)
        for axis, value in zip(axes, values, strict=True):
            axis.plot([own], [value], "o", color=COLOURS[5], label="this program")
        handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4)
    return figure


KINDS = {"scattered": "scattered (estimate)", "heads": "whole heads (bound)"}


def against_batch(found: dict[str, Any]) -> Figure:
    """Energy against nothing frozen, by the batch that shares one fetch of the maps."""
    figure, (axis,) = panels(1)
    for (name, curve), colour in zip(found["batches"].items(), COLOURS, strict=False):
        axis.plot(curve["batches"], [100 * change for change in curve["energy_change"]], "o-", color=colour, label=name)
    axis.axhline(0, color=COLOURS[6], linewidth=0.8)
    axis.set_xscale("log", base=2)
    axis.set_xticks(curve["batches"], [str(batch) for batch in curve["batches"]])
    axis.set_xlabel("images in a batch")
    axis.set_ylabel("energy change (%)")
    axis.legend()
    return figure


def roofline(found: dict[str, Any]) -> Figure:
    """Operations below the roofs of each memory's bandwidth and of the multipliers; layers that are alike lie upon one another."""
    roof = found["roofline"]
    figure, axes = panels(len(roof["levels"]), 3.4)
    roles = dict.fromkeys(role(point["name"]) for level in roof["levels"].values() for point in level["points"])
    colours = dict(zip(roles, COLOURS * (len(roles) // len(COLOURS) + 1), strict=False))
    for axis, (name, level) in zip(axes, roof["levels"].items(), strict=True):
        for kind, colour in colours.items():
            points = [point for point in level["points"] if role(point["name"]) == kind]
            x, y = ([point[key] for point in points] for key in ("macs_per_byte", "macs_per_second"))
            axis.plot(x, np.array(y) / 1e9, "o", color=colour, label=kind)
        knee = roof["peak"] / level["bytes_per_second"]
        x = [point["macs_per_byte"] for point in level["points"]]
        reach = [min(*x, knee) / 10, knee, max(*x, knee) * 2]
        axis.loglog(reach, [reach[0] * level["bytes_per_second"] / 1e9, *2 * [roof["peak"] / 1e9]], color=INK, linewidth=1, label="roof")
        for scale in (axis.xaxis, axis.yaxis):
            scale.set_major_locator(LogLocator(subs=(1, 3)))
            scale.set_major_formatter("{x:g}")
            scale.set_minor_formatter(NullFormatter())
        axis.set_xlabel(f"MACs per byte of {name.upper()} traffic")
        axis.set_ylabel("GMAC/s")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=5)
    return figure


def role(name: str) -> str:
    """What an operation does in its block: its name without the block's."""
    block, _, rest = name.partition(".")
    return rest or block


def masks(program: Verified, compute: Array | Simd) -> Figure:
    """Every head's frozen weights, layers side by side, and what of them the core leaves out: the deeper, the more windows of a Swin."""
    ops = program.attentions
    heads = max(op.heads for op in ops)
    across = min(6 if heads <= 3 else 12, len(ops))
    down = -(-len(ops) // across) * heads
    figure = Figure((9, 0.3 + 8.4 / across * down), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False)
    computed, frozen, skipped = (np.array(to_rgba(colour)) for colour in ((0.5, 0.5, 0.5, 0.15), COLOURS[0], COLOURS[1]))
    for axis in grid.flat:
        axis.set_axis_off()
    for layer, op in enumerate(ops):
        of_frozen, of_skipped = frozen_share(op)[..., None], left_out(op, compute).mean(axis=0)[..., None]
        pictures = of_skipped * skipped + (1 - of_skipped) * (of_frozen * frozen + (1 - of_frozen) * computed)
        for head in range(op.heads):
            axis = grid[layer // across * heads + head, layer % across]
            axis.imshow(pictures[head], interpolation="none", aspect="equal" if op.rows == op.tokens else "auto")
            if head == 0:
                axis.set_title(op.out.name.partition(".")[0], fontsize=9)
            if layer % across == 0:
                axis.text(-0.05, 0.5, f"head {head}", transform=axis.transAxes, ha="right", va="center", rotation=90)
    return figure


def encodings(found: dict[str, Any]) -> Figure:
    """Bytes of all frozen maps under each encoding that can hold them."""
    sizes = {name: size for name, size in found["encodings"].items() if size is not None}
    figure, (axis,) = panels(1, 0.6 + 0.3 * len(sizes))
    axis.barh(list(sizes), [size / 1e3 for size in sizes.values()], color=[COLOURS[1] if name == "auto" else COLOURS[0] for name in sizes])
    axis.invert_yaxis()
    axis.set_xlabel("frozen maps (kB)")
    return figure


def accuracy(found: dict[str, Any]) -> Figure:
    """Top-1 against tau: a line for each variant and meaning of the softmax, the mean over seeds."""
    figure, (axis,) = panels(1, 3.2)
    rows = found["accuracy"]
    lines = dict.fromkeys((row["variant"], row["softmax"]) for row in rows if row["variant"] != "baseline")
    for (variant, softmax), colour in zip(lines, COLOURS, strict=False):
        chosen = [row for row in rows if (row["variant"], row["softmax"]) == (variant, softmax)]
        taus = sorted({row["tau"] for row in chosen})
        means = [100 * np.mean([row["top1"] for row in chosen if row["tau"] == tau]) for tau in taus]
        axis.plot([100 * tau for tau in taus], means, "o-", color=colour, label=f"{variant}, {softmax}")
    for row in rows:
        if row["variant"] == "baseline":
            axis.axhline(100 * row["top1"], color=COLOURS[6], linestyle=":", linewidth=0.8)
    axis.set_xlabel("frozen weights, τ (%)")
    axis.set_ylabel("top-1 (%), dotted: nothing frozen")
    axis.legend()
    return figure


def comparison(found: dict[str, Any]) -> Figure:
    """How the error grows against PyTorch, and where it is born."""
    figure, axes = panels(1 + bool(found["sources"]), 4.2)
    draw_growth(axes[0], found)
    if found["sources"]:
        draw_sources(axes[1], found)
    return figure
