"""The designs of `eamsim search`: energy against latency, and which no other beats in energy, latency and area together."""

from __future__ import annotations

import csv
from itertools import cycle
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from eamsim.errors import BadFile
from eamsim.figures.curves import FRONT_COLOURS, FRONT_MARKERS
from eamsim.figures.style import COLUMN_INCHES, new_figure, style

NUMBERS = ("energy_uj", "latency_ms", "area_mm2")
SMALLEST, PER_MM2 = 4.0, 1.5


def read_designs(path: Path) -> dict[str, np.ndarray]:
    """Columns of a table of `eamsim search`: `NUMBERS` float64, granularity str, pareto bool; BadFile names what is wrong."""
    advice = "make it again with `eamsim search -o`"
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, strict=True))
        found = {name: np.array([float(row[name]) for row in rows]) for name in NUMBERS}
        flags = [{"True": True, "False": False}[row["pareto"]] for row in rows]
        found |= {"granularity": np.array([row["granularity"] for row in rows]), "pareto": np.array(flags, np.bool_)}
    except (OSError, UnicodeDecodeError, csv.Error, KeyError, TypeError, ValueError) as error:
        raise BadFile(f"{path}: not a readable table of designs ({type(error).__name__}: {error}); {advice}") from error
    if not found["pareto"].any():
        raise BadFile(f"{path}: expected designs on a Pareto front, got none of {len(rows)} rows; {advice}")
    return found


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
