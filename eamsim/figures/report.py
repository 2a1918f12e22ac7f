"""The figures of `eamsim report`, as SVG that stands in the page and takes its colour of text: every mark says its numbers on hover."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.colors import to_hex, to_rgba
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


PANEL_INCHES, WIDE_INCHES = 4.4, 5.6
"""A third of a wide page, or all of a telephone; of a chart alone."""


class Chart:
    """One axis of its own: `tip` gives a mark the text that a browser shows beside the pointer, and a screen reader says."""

    def __init__(self, height: float = 2.9, width: float = PANEL_INCHES):
        self.figure = Figure((width, height), layout="constrained")
        self.axis = self.figure.subplots()
        self.tips: dict[str, str] = {}

    def tip(self, artist: Artist, text: str) -> None:
        artist.set_gid(f"tip{len(self.tips)}")
        self.tips[f"tip{len(self.tips)}"] = text

    def points(self, x: Iterable[float], y: Iterable[float], texts: Iterable[str], colour: str) -> None:
        """Marks that say their numbers."""
        for across, up, text in zip(x, y, texts, strict=True):
            (mark,) = self.axis.plot([across], [up], "o", color=colour, markersize=4)
            self.tip(mark, text)

    def svg(self, name: str) -> Markup:
        """The element, with its titles."""
        element = str(svg(self.figure, name))
        for gid, text in self.tips.items():
            element = element.replace(f'<g id="{name}-{gid}">', f'<g id="{name}-{gid}"><title>{escape(text)}</title>', 1)
        return Markup(element)


@dataclass(frozen=True)
class Drawing:
    """Panels that stand side by side where there is room, and one legend for all: label, colour, mark."""

    panels: list[Chart]
    legend: list[tuple[str, str, str]]


def draw(found: dict[str, Any], program: Verified, compute: Array | Simd) -> dict[str, dict[str, Any]]:
    """Of every figure by its name the SVG of its panels and its legend; those that a program has nothing for are left out."""
    figures: dict[str, Callable[[], Drawing]] = {
        "layers": lambda: layers(found),
        "timeline": lambda: timeline(found),
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
        drawn = {name: figure() for name, figure in figures.items()}
        return {
            name: {"panels": [panel.svg(f"{name}{n}") for n, panel in enumerate(each.panels)], "legend": each.legend}
            for name, each in drawn.items()
        }


def svg(figure: Figure, name: str) -> Markup:
    """One element without prologue, scalable, its identifiers those of no other figure."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    element = text.getvalue()[text.getvalue().index("<svg") :]
    element = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", element)
    element = re.sub(r' (width|height)="[0-9.]+pt"', "", element, count=2)
    return Markup(element.replace(INK, "currentColor").replace("<svg ", '<svg role="img" ', 1))


def palette(names: Iterable[str]) -> dict[str, str]:
    """A colour for each name, in their order; those that fit fewer names are easier to tell apart."""
    distinct = list(dict.fromkeys(names))
    colours = COLOURS if len(distinct) <= len(COLOURS) else [to_hex(colour) for colour in colormaps["tab20"].colors]  # pyright: ignore
    return dict(zip(distinct, cycle(colours), strict=False))


def layers(found: dict[str, Any]) -> Drawing:
    """MACs, energy and time of every block, stacked by part."""
    rows, panels = found["layers"], []
    blocks, colours = list(dict.fromkeys(row["block"] for row in rows)), palette(row["part"] for row in rows)
    for key, label, scale in (("macs", "million MACs", 1e6), ("energy_uj", "energy (µJ)", 1), ("cycles", "thousand cycles", 1e3)):
        panel = Chart()
        below = np.zeros(len(blocks))
        for row in rows:
            at, size = blocks.index(row["block"]), row[key] / scale
            (bar,) = panel.axis.bar([at], [size], bottom=below[at], color=colours[row["part"]], width=0.8)
            panel.tip(bar, f"{row['block']}, {row['part']}: {size:,.4g} {label}")
            below[at] += size
        panel.axis.set_ylabel(f"{label} per image")
        ticks = [block.removeprefix("block") for block in blocks]
        panel.axis.set_xticks(range(len(blocks)), ticks, rotation=90 if len(blocks) > 8 else 0)
        panel.axis.set_xlabel("block")
        panels.append(panel)
    return Drawing(panels, [(part, colour, "■") for part, colour in colours.items()])


def timeline(found: dict[str, Any]) -> Drawing:
    """One batch: a row for whole operations and one for each resource; its bars are as long as it works for an operation."""
    rows = found["timeline"]
    resources = ["operation", *(name for name in found["operations"][0]["cycles_by_resource"] if any(name in row["busy"] for row in rows))]
    colours, panel = palette(role(row["name"]) for row in rows), Chart(0.7 + 0.32 * len(resources), 3 * PANEL_INCHES)
    for row in rows:
        for at, resource in enumerate(resources):
            lasts = row["lasts"] if resource == "operation" else row["busy"].get(resource, 0)
            if lasts:
                (bar,) = panel.axis.barh([at], [lasts], left=row["start"], height=0.8, color=colours[role(row["name"])])
                bound = f", bound by {row['bound_by']}" if resource == "operation" else f", {lasts / row['lasts']:.0%} of its time"
                panel.tip(bar, f"{row['name']}, {resource}: {lasts:,.4g} ms from {row['start']:,.4g} ms{bound}")
    panel.axis.set_yticks(range(len(resources)), resources)
    panel.axis.invert_yaxis()
    panel.axis.set_xlabel("milliseconds")
    panel.axis.margins(x=0)
    return Drawing([panel], [(kind, colour, "■") for kind, colour in colours.items()])


def against_tau(found: dict[str, Any]) -> Drawing:
    """What freezing a share tau changes, renormalised: MACs, energy, time, each with its ceiling, and stored maps."""
    taus, ceiling = [100 * point["tau"] for point in found["curves"]], found["ceiling"]
    full = found["row"]["macs_full"] + found["row"]["macs_saved_full"]
    own = found["own"] | {"macs_saved": share(found["row"]["macs_saved_full"], full)}
    quantities: list[tuple[str, Callable[[dict], float], float | None]] = [
        ("MACs saved (%)", lambda x: 100 * x["macs_saved"], 100 * ceiling["macs_saved"]),
        ("energy change (%)", lambda x: 100 * x["energy_change"], 100 * ceiling["energy_change"]),
        ("milliseconds per image", lambda x: x["milliseconds"], ceiling["milliseconds"]),
        ("stored maps (kB)", lambda x: x["stored_map_bytes"] / 1e3, None),
    ]
    panels = []
    for label, quantity, most in quantities:
        panel = Chart(2.6)
        for kind, line in (("scattered", "-"), ("heads", "--")):
            y = [quantity(point[kind]) for point in found["curves"]]
            panel.axis.plot(taus, y, line, color=KINDS[kind][1])
            texts = [f"{KINDS[kind][0]}, τ {tau:.0f} %: {value:,.4g} {label}" for tau, value in zip(taus, y, strict=True)]
            panel.points(taus, y, texts, KINDS[kind][1])
        if most is not None:
            panel.tip(panel.axis.axhline(most, color=COLOURS[6], linestyle=":"), f"ceiling of scattered weights: {most:,.4g} {label}")
        if found["row"]["tau"]:
            tau, value = 100 * found["row"]["tau"], quantity(own)
            (mark,) = panel.axis.plot([tau], [value], "D", color=COLOURS[5], markersize=7)
            panel.tip(mark, f"this program, τ {tau:.1f} %: {value:,.4g} {label}")
        panel.axis.set_xlabel("frozen weights, τ (%)")
        panel.axis.set_ylabel(label)
        panels.append(panel)
    mine = [("this program", COLOURS[5], "◆")] if found["row"]["tau"] else []
    ceilings = [("all of QKᵀ, maps for nothing", COLOURS[6], "···")]
    return Drawing(panels, [*((label, colour, mark) for label, colour, mark in KINDS.values()), *ceilings, *mine])


KINDS = {"scattered": ("scattered (estimate)", COLOURS[0], "—"), "heads": ("whole heads (bound)", COLOURS[1], "╌")}


def against_batch(found: dict[str, Any]) -> Drawing:
    """Energy against nothing frozen, by the batch that shares one fetch of the maps."""
    panel, colours = Chart(2.9, WIDE_INCHES), palette(found["batches"])
    for name, curve in found["batches"].items():
        x, y = curve["batches"], [100 * change for change in curve["energy_change"]]
        panel.axis.plot(x, y, color=colours[name])
        panel.points(x, y, (f"{name}, batch {b}: {v:+.3g} % energy" for b, v in zip(x, y, strict=True)), colours[name])
        panel.axis.set_xscale("log", base=2)
        panel.axis.set_xticks(x, [str(batch) for batch in x])
    panel.axis.axhline(0, color=COLOURS[6], linewidth=0.8)
    panel.axis.set_xlabel("images in a batch")
    panel.axis.set_ylabel("energy change (%)")
    return Drawing([panel], [(name, colour, "●") for name, colour in colours.items()])


def roofline(found: dict[str, Any]) -> Drawing:
    """Operations below the roofs of each memory's bandwidth and of the multipliers; layers that are alike lie upon one another."""
    roof, panels = found["roofline"], []
    colours = palette(role(point["name"]) for level in roof["levels"].values() for point in level["points"])
    for name, level in roof["levels"].items():
        panel = Chart(3.2)
        x, y = ([point[key] for point in level["points"]] for key in ("macs_per_byte", "macs_per_second"))
        for point, across, up in zip(level["points"], x, y, strict=True):
            text = f"{point['name']}: {across:,.4g} MACs per byte of {name.upper()}, {up / 1e9:,.4g} GMAC/s"
            panel.points([across], [up / 1e9], [text], colours[role(point["name"])])
        knee = roof["peak"] / level["bytes_per_second"]
        reach = [min(*x, knee) / 10, knee, max(*x, knee) * 2]
        roofs = [reach[0] * level["bytes_per_second"] / 1e9, *2 * [roof["peak"] / 1e9]]
        (line,) = panel.axis.loglog(reach, roofs, color=INK, linewidth=1)
        panel.tip(line, f"roof: {level['bytes_per_second'] / 1e9:,.4g} GB/s, {roof['peak'] / 1e9:,.4g} GMAC/s")
        for scale in (panel.axis.xaxis, panel.axis.yaxis):
            scale.set_major_locator(LogLocator(subs=(1, 3)))
            scale.set_major_formatter("{x:g}")
            scale.set_minor_formatter(NullFormatter())
        panel.axis.set_xlabel(f"MACs per byte of {name.upper()} traffic")
        panel.axis.set_ylabel("GMAC/s")
        panels.append(panel)
    return Drawing(panels, [(kind, colour, "●") for kind, colour in colours.items()])


def role(name: str) -> str:
    """What an operation does in its block: its name without the block's."""
    block, _, rest = name.partition(".")
    return rest or block


def masks(program: Verified, compute: Array | Simd) -> Drawing:
    """Every head's frozen weights, layers side by side, and what of them the core leaves out: the deeper, the more windows of a Swin."""
    ops = program.attentions
    heads = max(op.heads for op in ops)
    across = min(6 if heads <= 3 else 12, len(ops))
    down = -(-len(ops) // across) * heads
    panel = Chart(0.3 + 8.4 / across * down, 9)
    panel.axis.remove()
    grid = panel.figure.subplots(down, across, squeeze=False)
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
    return Drawing([panel], [("frozen", COLOURS[0], "■"), ("not computed", COLOURS[1], "■"), ("computed", COLOURS[6], "■")])


def encodings(found: dict[str, Any]) -> Drawing:
    """Bytes of all frozen maps under each encoding that can hold them."""
    sizes = {name: size for name, size in found["encodings"].items() if size is not None}
    panel = Chart(0.6 + 0.3 * len(sizes), WIDE_INCHES)
    for name, size in sizes.items():
        (bar,) = panel.axis.barh([name], [size / 1e3], color=COLOURS[1] if name == "auto" else COLOURS[0])
        panel.tip(bar, f"{name}: {size:,} bytes")
    panel.axis.invert_yaxis()
    panel.axis.set_xlabel("frozen maps (kB)")
    return Drawing([panel], [])


def accuracy(found: dict[str, Any]) -> Drawing:
    """Top-1 against tau: a line for each variant, meaning of the softmax and granularity, the mean over seeds."""
    panel, rows = Chart(3.2, WIDE_INCHES), found["accuracy"]
    fields = ("variant", "softmax", "granularity") if len({row["granularity"] for row in rows} - {""}) > 1 else ("variant", "softmax")
    lines = dict.fromkeys(tuple(row[field] for field in fields) for row in rows if row["variant"] != "baseline")
    colours = palette(", ".join(line) for line in lines)
    for line in lines:
        label = ", ".join(line)
        chosen = [row for row in rows if tuple(row[field] for field in fields) == line]
        taus = sorted({row["tau"] for row in chosen})
        x, y = [100 * tau for tau in taus], [100 * float(np.mean([row["top1"] for row in chosen if row["tau"] == tau])) for tau in taus]
        panel.axis.plot(x, y, color=colours[label])
        panel.points(x, y, (f"{label}, τ {t:.0f} %: {v:.2f} %" for t, v in zip(x, y, strict=True)), colours[label])
    for row in rows:
        if row["variant"] == "baseline":
            line = panel.axis.axhline(100 * row["top1"], color=COLOURS[6], linestyle=":", linewidth=0.8)
            panel.tip(line, f"nothing frozen, {row['runner']}: {100 * row['top1']:.2f} %")
    panel.axis.set_xlabel("frozen weights, τ (%)")
    panel.axis.set_ylabel("top-1 (%), dotted: nothing frozen")
    return Drawing([panel], [(label, colour, "●") for label, colour in colours.items()])


def comparison(found: dict[str, Any]) -> Drawing:
    """How the error grows against PyTorch, and where it is born."""
    panels = [Chart(4.2, 1.5 * PANEL_INCHES)]
    draw_growth(panels[0].axis, found)
    if found["sources"]:
        panels.append(Chart(4.2, 1.5 * PANEL_INCHES))
        draw_sources(panels[1].axis, found)
    return Drawing(panels, [])
