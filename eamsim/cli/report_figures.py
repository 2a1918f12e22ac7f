"""The figures of `eamsim report`, as SVG that stands in the page and takes its colour of text: the one file that needs matplotlib."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from eamsim.cli.report import attentions, frozen_mask
from eamsim.program import Program

INK = "#010203"
"""Stands for the page's colour of text, light or dark: no figure uses it otherwise."""
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "eamsim",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "none"),
}
# Okabe and Ito's colours, which stand on white and on dark grey alike.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#999999")


def draw(found: dict[str, Any], program: Program) -> dict[str, Markup]:
    """The SVG of every figure by its name; those that a program has nothing for are left out."""
    figures: dict[str, Callable[[], Figure]] = {
        "layers": lambda: layers(found),
        "tau": lambda: against_tau(found),
        "batch": lambda: against_batch(found),
        "roofline": lambda: roofline(found),
    }
    if found["row"]["tau"]:
        figures |= {"masks": lambda: masks(found, program), "encodings": lambda: encodings(found)}
    if found["accuracy"]:
        figures["accuracy"] = lambda: accuracy(found)
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
    """What freezing a share tau changes, renormalised: MACs with their ceiling, energy, time, stored maps."""
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
    axes[0].axhline(100 * found["ceiling"], color=COLOURS[6], linestyle=":", label="all of QK$^T$, the ceiling of scattered weights")
    axes[1].axhline(0, color=COLOURS[6], linewidth=0.8)
    handles, labels = axes[0].get_legend_handles_labels()
    if found["row"]["tau"]:
        own = 100 * found["row"]["tau"]
        saved = found["row"]["macs_saved_full"] / (found["row"]["macs_full"] + found["row"]["macs_saved_full"])
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
    """Operations below the roofs of DRAM bandwidth and multipliers."""
    roof, (figure, (axis,)) = found["roofline"], panels(1, 3.2)
    x = np.array([point["macs_per_byte"] for point in roof["points"]])
    axis.loglog(x, [point["macs_per_second"] / 1e9 for point in roof["points"]], "o", color=COLOURS[0], alpha=0.6, label="an operation")
    reach = np.geomspace(min(x.min(), 1), max(x.max(), 10) * 2, 50)
    top = np.full(50, roof["peak"])
    if roof["bytes_per_second"] is not None:
        top = np.minimum(top, reach * roof["bytes_per_second"])
    axis.plot(reach, top / 1e9, color=COLOURS[5], label="DRAM bandwidth, then all multipliers")
    axis.set_xlabel("MACs per byte of DRAM traffic")
    axis.set_ylabel("GMAC/s")
    axis.legend()
    return figure


def masks(found: dict[str, Any], program: Program) -> Figure:
    """Every head's frozen weights (first window of a Swin), a row of pictures for each layer."""
    ops = attentions(program)
    columns = max(op.heads for op in ops)
    figure = Figure((9, 9 / columns * len(ops) if columns >= 6 else 1.5 * len(ops)), layout="constrained")
    grid = figure.subplots(len(ops), columns, squeeze=False)
    colours = ListedColormap([(0.5, 0.5, 0.5, 0.12), COLOURS[0]])
    for op, axes in zip(ops, grid, strict=True):
        for head, axis in enumerate(axes):
            axis.set_axis_off()
            if head < op.heads:
                axis.imshow(frozen_mask(op, head), cmap=colours, vmin=0, vmax=1, interpolation="nearest")
                if op is ops[0]:
                    axis.set_title(f"head {head}")
        axes[0].text(-0.05, 0.5, op.out.name.partition(".")[0], transform=axes[0].transAxes, ha="right", va="center")
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
