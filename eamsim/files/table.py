"""Tables that searches leave behind: CSV with a header, a line for each record, replaced in one step."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar

from eamsim.errors import BadFile
from eamsim.files.container import written

Record = TypeVar("Record")
FLAG = {"true": True, "false": False}.__getitem__
"""Reads what `write_table` makes of a bool."""


def write_table(path: Path, kind: type[Record], records: Sequence[Record], advice: str) -> None:
    """One line a dataclass of this kind. Raises BadFile where it cannot be written, and says what to do."""
    with written(path, f"free some space and {advice}") as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns(kind))
        writer.writerows([[_text(getattr(record, name)) for name in columns(kind)] for record in records])


def read_table(path: Path, kind: type[Record], parsers: Mapping[str, Callable[[str], Any]], what: str, advice: str) -> list[Record]:
    """The records in the order of the file, at least one; parsers: of the columns that are no floats. BadFile names what is wrong."""
    names = columns(kind)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *lines = list(csv.reader(file, strict=True)) or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadFile(f"{path}: not a readable table of {what} ({error}); {advice}") from error
    if header != names or not lines:
        got = f"{','.join(header)[:200]} and {len(lines)} rows"
        raise BadFile(f"{path}: expected the columns {','.join(names)} and at least one row, got {got}; {advice}")
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(kind(**{name: parsers.get(name, _number)(text) for name, text in zip(names, line, strict=True)}))
        except (ValueError, KeyError) as error:
            raise BadFile(f"{path}: row {number}: expected {', '.join(names)}, got {','.join(line)[:200]}; {advice}") from error
    return records


def columns(kind: Any) -> list[str]:
    """Names of the fields of a dataclass."""
    return [field.name for field in fields(kind)]


def _number(text: str) -> float:
    """ValueError unless it is finite: a table is sorted and chosen from."""
    if not isfinite(number := float(text)):
        raise ValueError(f"expected a finite number, got {text}")
    return number


def _text(cell: object) -> object:
    return str(cell).lower() if isinstance(cell, bool) else cell
