"""Figures 5 and 6 of the paper, and the Pareto front of a budget search: accuracy against what is frozen or saved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import cycle

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eamsim.figures.panels import Curve, Panel
from eamsim.figures.style import COLUMN_INCHES, PAGE_INCHES, new_figure, style
from eamsim.jobs.search.budget import BudgetTrial

COLOURS = {"eam-fp32": "#D55E00", "eam-4bits": "#0072B2", "random-4bits": "#666666"}  # Okabe and Ito: for any colour vision
MARKERS = {"eam-fp32": "s", "eam-4bits": "o", "random-4bits": "^"}
BASELINE_LINES = (("black", ":"), ("0.55", "-."), ("black", (0, (6, 2))))
PANELS_A_LINE = 3
FRONT_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
FRONT_MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # one more than colours: the pairs repeat late
LONG_NAME = 26
"""Letters of a granularity that fit into half a column."""


@style()
def accuracy_figure(panels: Sequence[Panel]) -> Figure:
    """Figures 5 and 6: top-1 against tau, a band from the lowest to the highest seed, baselines as horizontal lines.

    Colour and marker tell the variant, a filled marker the integer engine, dashes the renormalised softmax where a panel has both.
    """
    rows = math.ceil(len(panels) / PANELS_A_LINE)
    columns = math.ceil(len(panels) / rows)
    labels = {label for panel in panels for label in (*panel.baselines, *(curve.label for curve in panel.curves))}
    legend_columns = min(columns, 2)
    figure = new_figure(COLUMN_INCHES if columns == 1 else PAGE_INCHES, 2.2 * rows + 0.14 * math.ceil(len(labels) / legend_columns))
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, panel in zip(axes.flat, panels, strict=False):
        _draw_panel(axis, panel)
    for axis in axes.flat[max(len(panels) - columns, 0) : len(panels)]:
        axis.set_xlabel("frozen attention weights, \N{GREEK SMALL LETTER TAU} (%)")
    for axis in axes[:, 0]:
        axis.set_ylabel("top-1 accuracy (%)")
    handles = {label: handle for axis in axes.flat for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=legend_columns)
    return figure


def _draw_panel(axis: Axes, panel: Panel) -> None:
    for (label, top1), (colour, line) in zip(panel.baselines.items(), BASELINE_LINES, strict=False):
        axis.axhline(100 * top1, color=colour, linestyle=line, linewidth=0.8, label=label)
    both = len({curve.softmax for curve in panel.curves}) > 1
    for curve in panel.curves:
        _draw_curve(axis, curve, "--" if both and curve.softmax == "renormalised" else "-")
    axis.set_title(panel.title)
    axis.set_xlim(0, 100)
    axis.grid(axis="y", color="0.9", linewidth=0.4)


def _draw_curve(axis: Axes, curve: Curve, line: str) -> None:
    taus, mean, lowest, highest = ([100 * value for value in each] for each in (curve.taus, curve.mean, curve.lowest, curve.highest))
    colour = COLOURS[curve.variant]
    if lowest != highest:
        axis.fill_between(taus, lowest, highest, color=colour, alpha=0.25, linewidth=0)
    face = colour if curve.runner == "engine" else "white"
    axis.plot(taus, mean, line, color=colour, marker=MARKERS[curve.variant], markerfacecolor=face, label=curve.label)


@style()
def front_figure(trials: Sequence[BudgetTrial]) -> Figure:
    """Top-1 against MACs saved: a marker for each granularity, filled on the Pareto front, which steps follow; a ring for the chosen."""
    granularities = dict.fromkeys(trial.granularity for trial in trials)
    legend_columns = 1 if max(map(len, granularities)) > LONG_NAME else 2
    figure = new_figure(COLUMN_INCHES, 2.4 + 0.14 * len(granularities) / legend_columns)
    axis = figure.subplots()
    front, chosen = (_in_percent([trial for trial in trials if getattr(trial, flag)]) for flag in ("pareto", "chosen"))
    axis.plot(*front, color="0.6", drawstyle="steps-pre", label="Pareto front (filled)", zorder=1)
    axis.scatter(*chosen, 45, facecolors="none", edgecolors="black", linewidths=0.8, label="chosen", zorder=3)
    for granularity, colour, marker in zip(granularities, cycle(FRONT_COLOURS), cycle(FRONT_MARKERS), strict=False):
        own = [trial for trial in trials if trial.granularity == granularity]
        faces = [colour if trial.pareto else "white" for trial in own]
        axis.scatter(*_in_percent(own), 12, facecolors=faces, edgecolors=colour, linewidths=0.8, marker=marker, zorder=2)
        axis.scatter([], [], 12, color=colour, marker=marker, label=granularity)
    axis.set(title=f"{trials[0].images:,} images", xlabel="multiply-accumulates saved (%)", ylabel="top-1 accuracy (%)")
    axis.grid(color="0.9", linewidth=0.4)
    figure.legend(loc="outside lower center", ncols=legend_columns)
    return figure


def _in_percent(trials: Sequence[BudgetTrial]) -> tuple[list[float], list[float]]:
    """What each saves, and its top-1."""
    return [100 * trial.macs_saved for trial in trials], [100 * trial.top1 for trial in trials]
