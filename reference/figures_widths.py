"""What narrower datapaths lose: each width alone, and the front of the search."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from eamsim.width_search import Trial
from reference.figures import PAGE_INCHES, new_figure, style

TITLES = {
    "residual_bits": "residual stream",
    "multiplier_bits": "multipliers",
    "exponent_bits": "softmax: exponent fraction",
    "exp2_bits": "softmax: exponentials",
    "log2_index_bits": "softmax: index of logarithms",
    "norm_fraction_bits": "LayerNorm: fraction",
    "reciprocal_bits": "LayerNorm: reciprocal",
    "gelu_index_bits": "GELU: index",
}
COLUMNS = 3
LOSSES = -1.5, 3.0
"""Points shown; what loses more is on the upper edge."""
TOP1, PROBABILITY, CHOSEN = "#0072B2", "#D55E00", "black"


@style()
def widths_figure(trials: Sequence[Trial]) -> Figure:
    """Points lost against bits, a panel for each width, the others as in the program; last, what was tried jointly against its cost."""
    base, chosen = trials[0], next((trial for trial in trials if trial.chosen), None)
    figure = new_figure(PAGE_INCHES, 5.2)
    axes = figure.subplots(COLUMNS, COLUMNS, squeeze=False)
    for axis, (knob, title) in zip(axes.flat, TITLES.items(), strict=False):
        own = [trial for trial in trials if trial.stage == "alone" and _varies(trial, base, knob)]
        _draw_width(axis, knob, sorted([base, *own], key=lambda trial: getattr(trial, knob)), base, chosen)
        axis.set_title(title)
    for axis in axes[:, 0]:
        axis.set_ylabel("points lost")
    _draw_front(axes.flat[-1], trials, base)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def _varies(trial: Trial, base: Trial, knob: str) -> bool:
    """Whether this is the width that was tried: a fraction may follow its reciprocal, and is not the one then."""
    changed = [name for name in vars(base.widths) if getattr(trial, name) != getattr(base, name)]
    return changed == [knob] or (knob == "reciprocal_bits" and changed == ["norm_fraction_bits", knob])


def _draw_width(axis: Axes, knob: str, trials: Sequence[Trial], base: Trial, chosen: Trial | None) -> None:
    bits = [getattr(trial, knob) for trial in trials]
    axis.axhline(0, color="0.6", linewidth=0.6)
    for name, colour, label in (("top1", TOP1, "top-1"), ("probability", PROBABILITY, "mean probability of the right class")):
        axis.plot(bits, [_shown(100 * (getattr(base, name) - getattr(trial, name))) for trial in trials], "o-", color=colour, label=label)
    if chosen:
        axis.axvline(getattr(chosen, knob), color=CHOSEN, linestyle=":", linewidth=0.8, label="chosen")
    axis.set_ylim(*LOSSES)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("bits")
    axis.invert_xaxis()
    axis.grid(axis="y", color="0.9", linewidth=0.4)


def _draw_front(axis: Axes, trials: Sequence[Trial], base: Trial) -> None:
    for stage, colour, marker in (("alone", "0.6", "."), ("joint", TOP1, "o")):
        own = [trial for trial in trials if trial.stage == stage]
        axis.scatter(
            [trial.cost for trial in own],
            [_shown(100 * (base.top1 - trial.top1)) for trial in own],
            10,
            color=colour,
            marker=marker,
            label=stage,
        )
    for trial in trials:
        if trial.chosen:
            axis.scatter([trial.cost], [_shown(100 * (base.top1 - trial.top1))], 45, facecolors="none", edgecolors=CHOSEN, linewidths=0.8)
    axis.scatter([1], [0], 20, color=CHOSEN, marker="x", label="default")
    axis.set(title="all together", xlabel="energy x area, of the default's", ylim=LOSSES)
    axis.grid(color="0.9", linewidth=0.4)
    axis.legend(loc="upper right")


def _shown(loss: float) -> float:
    """Within the panel."""
    return min(max(loss, LOSSES[0]), LOSSES[1])
