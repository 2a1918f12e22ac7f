"""What commands print: results on standard output, everything else on standard error; what comes from outside is escaped here."""

import io
import json
import logging
import sys
import textwrap
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Annotated, Any

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table
from rich.text import Text

from eamsim.cli.streams import escaped, patience
from eamsim.errors import BadFile
from eamsim.progress import Advance

stderr = Console(stderr=True, markup=False, emoji=False, highlight=False)
QUIET_SECONDS = 1.5
"""How long a stage says nothing at first: less than the command's heartbeat, which does not know how far it is."""
UNBOUNDED = 1 << 16
"""Columns of a console that wraps nothing."""

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output, everything else on standard error.")]
LIMIT_HELP = "At most so many images, evenly spaced over the data."
Limit = Annotated[int | None, typer.Option("--limit", help=LIMIT_HELP, min=1)]
Threads = Annotated[int | None, typer.Option(help="Threads of the engine; all cores unless given.", min=1)]


def note(message: str) -> None:
    """One line on standard error, never wrapped or styled."""
    stderr.print(escaped(message), soft_wrap=True)


class Notes(logging.Handler):
    """What the library says along the way, as notes."""

    def emit(self, record: logging.LogRecord) -> None:
        note(record.getMessage())


logging.getLogger("eamsim.data").addHandler(Notes())
logging.getLogger("eamsim.data").setLevel(logging.INFO)


def emit(result: dict[str, Any], as_json: bool, *lines: str | Table) -> None:
    """The result on standard output: as one JSON object, or as the given lines and tables; BadFile where it cannot be written.

    A text is one line, whatever it holds; on a terminal it is wrapped between words.
    """
    if sys.stdout is None:
        raise BadFile("standard output: is closed; leave it open, or send it to a file")
    try:
        print(json.dumps(result) if as_json else "\n".join(_rendered(lines)), flush=True)
    except BrokenPipeError:
        pass  # `| head` has read what it wanted
    except OSError as error:
        raise BadFile(f"standard output: cannot be written ({error.strerror}); free some space or write elsewhere") from error


def _rendered(lines: Sequence[str | Table]) -> Iterator[str]:
    width = Console().width
    for line in lines:
        if isinstance(line, Table):
            yield from fitted(line.columns, width)
        elif sys.stdout.isatty():
            yield from textwrap.wrap(escaped(line), width, break_long_words=False, break_on_hyphens=False) or [""]
        else:
            yield escaped(line)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], keys: int = 1) -> Table:
    """A plain table. The first `keys` columns name a row and are left-aligned, the others are right-aligned."""
    result = Table(box=None, pad_edge=False)
    for number, column in enumerate(columns):
        result.add_column(escaped(column), justify="left" if number < keys else "right")
    for row in rows:
        result.add_row(*map(escaped, row))
    return result


def fitted(columns: Sequence[Column], width: int) -> list[str]:
    """The lines of a table. Where it is too wide headers are broken between words; then it becomes several tables with the same keys;
    then, if the keys alone are too wide, a list. No cell and no word is split.
    """
    most = max(len(str(column.header).split()) for column in columns)
    for each in range(1, most + 1):
        if widest(lines := _drawn(columns, each)) <= width:
            return lines
    keys, others = ([column for column in columns if (column.justify == "left") is left] for left in (True, False))
    count = next((n for n in range(len(others) - 1, 0, -1) if widest(_drawn([*keys, *others[:n]], most)) <= width), 0)
    if count == 0:
        return _listed(columns)
    return [*_drawn([*keys, *others[:count]], most), "", *fitted([*keys, *others[count:]], width)]


def widest(lines: Sequence[str]) -> int:
    return max(map(cell_len, lines))


def _drawn(columns: Sequence[Column], most: int) -> list[str]:
    """The lines of a table with headers of at most so many lines."""
    drawn = Table(box=None, pad_edge=False)
    for column in columns:
        drawn.add_column(Text(_broken(str(column.header), most)), justify=column.justify, no_wrap=True, vertical="bottom")
    for row in zip(*(column.cells for column in columns), strict=True):
        drawn.add_row(*(Text(str(cell)) for cell in row))
    console = Console(file=io.StringIO(), width=UNBOUNDED, color_system=None)
    with console.capture() as text:
        console.print(drawn)
    return [line.rstrip() for line in text.get().splitlines()]


def _listed(columns: Sequence[Column]) -> list[str]:
    """A line a cell, a blank one between two rows."""
    wide = max(cell_len(str(column.header)) for column in columns)
    rows = zip(*([f"{column.header!s:<{wide}}  {cell}" if str(cell) else "" for cell in column.cells] for column in columns), strict=True)
    return [line for row in rows for line in (*filter(None, row), "")][:-1]


def _broken(header: str, most: int) -> str:
    """The narrowest of at most so many lines."""
    for width in range(max(map(len, header.split()), default=1), len(header)):
        lines = textwrap.wrap(header, width, break_long_words=False, break_on_hyphens=False)
        if len(lines) <= most:
            return "\n".join(lines)
    return header


class Rate(ProgressColumn):
    """Steps a second, of late."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:,.1f}/s")


@contextmanager
def progress(what: str, total: int) -> Iterator[Advance]:
    """Yields `advance(steps)`: a bar that moves on a terminal, otherwise plain lines, each tenth of the way and not too seldom."""
    if not stderr.is_terminal:
        with PlainProgress(what, total) as plain:
            yield plain.advance
        return
    speed, time = (BarColumn(), MofNCompleteColumn(), Rate()), (TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(SpinnerColumn(), TextColumn("{task.description}", markup=False), *speed, *time, console=stderr) as bar:
        task = bar.add_task(escaped(what), total=total)
        yield lambda steps: bar.advance(task, steps)


class PlainProgress:
    """Lines on standard error: each tenth of the way, and where that takes long, every few seconds."""

    def __init__(self, what: str, total: int):
        self.what, self.total, self.done = what, total, 0
        self.start = self.told = perf_counter()
        self.finished = threading.Event()

    def __enter__(self) -> "PlainProgress":
        self.thread = threading.Thread(target=self._beat, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.finished.set()
        self.thread.join()  # or it could write while Python ends

    def advance(self, steps: int) -> None:
        tenths, self.done = 10 * self.done // self.total, self.done + steps
        if 10 * self.done // self.total > tenths:
            self._tell(f"{self.done / (perf_counter() - self.start):,.1f}/s")

    def _beat(self) -> None:
        while not self.finished.wait(max(0.0, self.told + self._patience() - perf_counter())):
            if perf_counter() >= self.told + self._patience():
                self._tell(self._times())

    def _times(self) -> str:
        """How long it has taken, and will take at this pace."""
        past = perf_counter() - self.start
        left = f", {past * (self.total - self.done) / self.done:.0f} s left" if self.done else ""
        return f"{past:.0f} s{left}"

    def _patience(self) -> float:
        return patience(perf_counter() - self.start, QUIET_SECONDS)

    def _tell(self, pace: str) -> None:
        self.told = perf_counter()
        note(f"{self.what}: {self.done}/{self.total}, {pace}")
