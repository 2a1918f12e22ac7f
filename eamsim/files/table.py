"""Tables as CSV, read and written in one way: a header, a line for each record, `true` and `false`; replaced in one step."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from math import isfinite
from pathlib import Path
from typing import Any, TextIO, TypeVar

from eamsim.errors import BadFile
from eamsim.files.container import written
from eamsim.files.limits import DUMP_BYTES
from eamsim.files.reading import read_text

Record = TypeVar("Record")
FLAG = {"true": True, "false": False}.__getitem__
"""Reads what is written of a bool."""


def write_table(path: Path, kind: type[Record], records: Sequence[Record], advice: str) -> None:
    """One line a dataclass of this kind. Raises BadFile where it cannot be written, and says what to do."""
    names = columns(kind)
    write_lines(path, [names, *([getattr(record, name) for name in names] for record in records)], f"free some space and {advice}")


def read_table(path: Path, kind: type[Record], parsers: Mapping[str, Callable[[str], Any]], what: str, advice: str) -> list[Record]:
    """The records in the order of the file, at least one; parsers: of the columns that are no floats. BadFile names what is wrong."""
    names = columns(kind)
    header, lines = read_lines(path, what, advice)
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


def write_lines(path: Path, lines: Iterable[Iterable[object]], advice: str) -> None:
    """The header and the records. Raises BadFile where it cannot be written, and says what to do."""
    with written(path, advice) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        _write(file, lines)


def read_lines(path: Path, what: str, advice: str) -> tuple[list[str], list[list[str]]]:
    """The header, empty if there is none, and the cells of every record as text. BadFile for what is no CSV."""
    try:
        header, *lines = list(csv.reader(io.StringIO(read_text(path, DUMP_BYTES), ""), strict=True)) or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadFile(f"{path}: not a readable table of {what} ({error}); {advice}") from error
    return header, lines


def csv_text(lines: Iterable[Iterable[object]]) -> str:
    """The header and the records as the text of a file."""
    text = io.StringIO()
    _write(text, lines)
    return text.getvalue()


def columns(kind: Any) -> list[str]:
    """Names of the fields of a dataclass."""
    return [field.name for field in fields(kind)]


def _number(text: str) -> float:
    """ValueError unless it is finite: a table is sorted and chosen from."""
    if not isfinite(number := float(text)):
        raise ValueError(f"expected a finite number, got {text}")
    return number


def _write(file: TextIO, lines: Iterable[Iterable[object]]) -> None:
    csv.writer(file, lineterminator="\n").writerows([_text(cell) for cell in line] for line in lines)


def _text(cell: object) -> object:
    return str(cell).lower() if isinstance(cell, bool) else cell
