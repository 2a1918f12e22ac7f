"""The designs of `eamsim search`: energy against latency, and which no other beats in energy, latency and area together."""

from __future__ import annotations

from itertools import cycle

import numpy as np
from matplotlib.figure import Figure

from eamsim.figures.curves import FRONT_COLOURS, FRONT_MARKERS
from eamsim.figures.style import COLUMN_INCHES, new_figure, style

SMALLEST, PER_MM2 = 4.0, 1.5


@style()
def designs_figure(designs: dict[str, np.ndarray]) -> Figure:
    """Both axes logarithmic: all designs grey, those on the front coloured by granularity, their size the area's."""
    granularities = dict.fromkeys(designs["granularity"].tolist())
    figure = new_figure(COLUMN_INCHES, 3.0)
    axis = figure.subplots()
    latency, energy = designs["latency_ms"], designs["energy_uj"]
    front = designs["pareto"]
    axis.scatter(latency[~front], energy[~front], 1, color="0.8", rasterized=True, label="beaten")
    for name, colour, marker in zip(granularities, cycle(FRONT_COLOURS), cycle(FRONT_MARKERS), strict=False):
        own = front & (designs["granularity"] == name)
        sizes = SMALLEST + PER_MM2 * designs["area_mm2"][own]
        axis.scatter(latency[own], energy[own], sizes, facecolors="none", edgecolors=colour, linewidths=0.6, marker=marker)
        axis.scatter([], [], 12, color=colour, marker=marker, label=f"front: {name} ({np.count_nonzero(own)})")
    axis.set(xscale="log", yscale="log", xlabel="latency of a batch (ms)", ylabel="energy per image (µJ)")
    axis.set_title(f"{len(front):,} designs; size: area, up to {designs['area_mm2'][front].max():.1f} mm2")
    axis.grid(color="0.9", linewidth=0.4)
    figure.legend(loc="outside lower center", ncols=2)
    return figure
