"""The table of `eamsim search`: a line for each design, a column for each of its `Points`."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import numpy as np

from eamsim.errors import BadFile
from eamsim.files.table import FLAG, read_lines, write_lines
from eamsim.jobs.search.designs import GOALS, Points

ADVICE = "make it again with `eamsim search -o`"


def write_designs(path: Path, points: Points) -> None:
    """Replace the table in one step. Raises BadFile where it cannot be written."""
    cells = [column.tolist() for column in points.values()]
    write_lines(path, chain([points], zip(*cells, strict=True)), "free some space, then run it again")


def read_designs(path: Path) -> Points:
    """What a figure shows of a table: GOALS float64, granularity str, pareto bool; BadFile names what is wrong."""
    header, lines = read_lines(path, "designs", ADVICE)
    try:
        cells = dict(zip(header, zip(*lines, strict=True), strict=True))
        found = {name: np.array(cells[name], np.float64) for name in GOALS}
        found |= {"granularity": np.array(cells["granularity"]), "pareto": np.array([FLAG(cell) for cell in cells["pareto"]])}
    except (KeyError, ValueError) as error:
        raise BadFile(f"{path}: not a readable table of designs ({type(error).__name__}: {error}); {ADVICE}") from error
    if not found["pareto"].any():
        raise BadFile(f"{path}: expected designs on a Pareto front, got none of {len(lines)} rows; {ADVICE}")
    return found
