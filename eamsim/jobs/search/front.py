"""The table of a budget search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from eamsim.errors import BadFile
from eamsim.files.table import FLAG, read_table, write_table
from eamsim.jobs.search.budget import BudgetTrial

PARSERS: dict[str, Callable[[str], Any]] = {"granularity": str, "images": int, "pareto": FLAG, "chosen": FLAG}
"""Of the columns that are no fractions."""
ADVICE = "make the table again with `eamsim build`"


def write_front(path: Path, trials: Sequence[BudgetTrial]) -> None:
    """Replace the table in one step: a line a trial, fractions. Raises BadFile where it cannot be written."""
    write_table(path, BudgetTrial, trials, "build again")


def read_front(path: Path) -> list[BudgetTrial]:
    """The trials in the order of the file, at least one; BadFile names what is wrong and where."""
    trials = read_table(path, BudgetTrial, PARSERS, "a budget search", ADVICE)
    for number, trial in enumerate(trials, 1):
        if not (0 <= trial.macs_saved <= 1 and 0 <= trial.top1 <= 1):
            got = f"macs_saved {trial.macs_saved}, top1 {trial.top1}"
            raise BadFile(f"{path}: row {number}: expected fractions from 0 to 1, got {got}; {ADVICE}")
    return trials
