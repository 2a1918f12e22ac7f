"""How every figure looks and is written: sizes and type of a two-column paper, PNG and SVG whose bytes depend on the data alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from eamsim.files.container import written

COLUMN_INCHES, PAGE_INCHES = 3.4, 7.0
DOTS_PER_INCH = 300
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same on every machine
    "font.size": 7,
    "axes.titlesize": 7,
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.axisbelow": True,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1,
    "lines.markersize": 3.5,
    "legend.frameon": False,
    "figure.dpi": DOTS_PER_INCH,
    "savefig.dpi": DOTS_PER_INCH,
    "svg.fonttype": "none",  # text stays text: it can be searched and edited
    "svg.hashsalt": "eamsim",  # identifiers are random without one
}


@contextmanager
def style() -> Iterator[None]:
    """Matplotlib's settings while a figure is drawn or saved; a decorator too."""
    with matplotlib.rc_context(STYLE):
        yield


def new_figure(width_inches: float, height_inches: float) -> Figure:
    """An empty figure whose parts make room for one another."""
    return Figure((width_inches, height_inches), layout="constrained")


@style()
def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write NAME.png (300 dots per inch) and NAME.svg; equal figures make equal bytes. Raises BadFile where they cannot be written."""
    paths = [folder / f"{name}.png", folder / f"{name}.svg"]
    for path, metadata in zip(paths, (None, {"Date": None}), strict=True):
        with written(path) as temporary:
            figure.savefig(temporary, format=path.suffix[1:], metadata=metadata)
    return paths
