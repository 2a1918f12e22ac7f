"""What narrower datapaths do: the noise of each width alone, and the accuracy of those that were tested."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from eamsim.figures.style import PAGE_INCHES, new_figure, style
from eamsim.jobs.search.widths import HOPELESS, WidthTrial, Z

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
NOISE, KEPT, FAILED, CHOSEN = "#D55E00", "#0072B2", "0.5", "black"


@style()
def widths_figure(trials: Sequence[WidthTrial]) -> Figure:
    """Noise against bits, a panel for each width, the others as in the program; last, the loss of what was tested against its cost."""
    base, chosen = trials[0], next((trial for trial in trials if trial.chosen), None)
    figure = new_figure(PAGE_INCHES, 5.2)
    axes = figure.subplots(COLUMNS, COLUMNS, squeeze=False)
    for axis, (knob, title) in zip(axes.flat, TITLES.items(), strict=False):
        own = [trial for trial in trials if trial.stage == "alone" and _varies(trial, base, knob)]
        _draw_width(axis, knob, sorted(own, key=lambda trial: getattr(trial, knob)), chosen)
        axis.set_title(title)
    for axis in axes[:, 0]:
        axis.set_ylabel("noise of the logits (%)")
    _draw_tested(axes.flat[-1], [trial for trial in trials if trial.stage != "alone"])
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


def _varies(trial: WidthTrial, base: WidthTrial, knob: str) -> bool:
    """Whether this is the width that was tried: a fraction may follow its reciprocal, and is not the one then."""
    changed = [name for name in vars(base.widths) if getattr(trial, name) != getattr(base, name)]
    return changed == [knob] or (knob == "reciprocal_bits" and changed == ["norm_fraction_bits", knob])


def _draw_width(axis: Axes, knob: str, trials: Sequence[WidthTrial], chosen: WidthTrial | None) -> None:
    bits = [getattr(trial, knob) for trial in trials]
    axis.plot(bits, [100 * trial.noise for trial in trials], "o-", color=NOISE, label="variance that the default's logits do not explain")
    if chosen:
        axis.axvline(getattr(chosen, knob), color=CHOSEN, linestyle=":", linewidth=0.8, label="chosen")
    axis.set_ylim(0, 100 * HOPELESS)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("bits")
    axis.invert_xaxis()
    axis.grid(axis="y", color="0.9", linewidth=0.4)


def _draw_tested(axis: Axes, trials: Sequence[WidthTrial]) -> None:
    """Bars reach to what is lost at most, with a confidence of 95 %."""
    axis.axhline(0, color="0.6", linewidth=0.6)
    for kept, colour, label in ((True, KEPT, "kept"), (False, FAILED, "fails")):
        own = [trial for trial in trials if trial.kept == kept]
        places, losses = [trial.cost for trial in own], [100 * trial.loss for trial in own]
        above = [100 * Z * trial.error for trial in own]
        axis.errorbar(places, losses, [[0] * len(own), above], fmt="o", markersize=3, linewidth=0.8, color=colour, label=label)
    for trial in trials:
        if trial.chosen:
            axis.scatter([trial.cost], [100 * trial.loss], 45, facecolors="none", edgecolors=CHOSEN, linewidths=0.8)
    axis.set(title="tested together", xlabel="energy x area, of the default's", ylabel="points lost, and at most")
    axis.invert_xaxis()
    axis.grid(color="0.9", linewidth=0.4)
    axis.legend(loc="upper left")
