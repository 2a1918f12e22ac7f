"""The table of a budget search, as `reference.budget.write_front` writes it, read again."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from eamsim.errors import BadFile
from reference.budget import Trial

COLUMNS = [field.name for field in fields(Trial)]
FLAG = {"true": True, "false": False}.__getitem__
PARSERS: dict[str, Callable[[str], Any]] = {"granularity": str, "images": int, "pareto": FLAG, "chosen": FLAG}
"""Of the columns that are no fractions."""
ADVICE = "make the table again with `eamsim build`"


def read_front(path: Path) -> list[Trial]:
    """The trials in the order of the file, at least one; BadFile names what is wrong and where."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *lines = list(csv.reader(file, strict=True)) or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadFile(f"{path}: not a readable table of a budget search ({error}); {ADVICE}") from error
    if header != COLUMNS or not lines:
        got = f"{','.join(header)[:200]} and {len(lines)} rows"
        raise BadFile(f"{path}: expected the columns {','.join(COLUMNS)} and at least one row, got {got}; {ADVICE}")
    return [_trial(f"{path}: row {number}", line) for number, line in enumerate(lines, 1)]


def _trial(where: str, line: list[str]) -> Trial:
    try:
        trial = Trial(**{name: PARSERS.get(name, float)(text) for name, text in zip(COLUMNS, line, strict=True)})
    except (ValueError, KeyError) as error:
        raise BadFile(f"{where}: expected {', '.join(COLUMNS)}, got {','.join(line)[:200]}; {ADVICE}") from error
    if not (0 <= trial.macs_saved <= 1 and 0 <= trial.top1 <= 1):
        raise BadFile(f"{where}: expected fractions from 0 to 1, got macs_saved {trial.macs_saved}, top1 {trial.top1}; {ADVICE}")
    return trial
