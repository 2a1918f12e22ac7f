"""What commands print: results on standard output, everything else on standard error."""

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from eamsim.errors import BadFile

stderr = Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output, everything else on standard error.")]
LIMIT_HELP = "At most so many images, evenly spaced over the data."
Limit = Annotated[int | None, typer.Option("--limit", help=LIMIT_HELP, min=1)]
Threads = Annotated[int | None, typer.Option(help="Threads of the engine; all cores unless given.", min=1)]
Advance = Callable[[int], None]


def note(message: str) -> None:
    """One line on standard error, never wrapped or styled."""
    stderr.print(message, markup=False, highlight=False, soft_wrap=True)


class Notes(logging.Handler):
    """What the library says along the way, as notes."""

    def emit(self, record: logging.LogRecord) -> None:
        note(record.getMessage())


logging.getLogger("eamsim.data").addHandler(Notes())
logging.getLogger("eamsim.data").setLevel(logging.INFO)


def emit(result: dict[str, Any], as_json: bool, *lines: str | Table) -> None:
    """The result on standard output: as one JSON object, or as the given lines and tables; BadFile where it cannot be written."""
    try:
        print(json.dumps(result) if as_json else _render(lines), flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python fails once more when it flushes at exit
        if not isinstance(error, BrokenPipeError):  # `| head` has read what it wanted
            raise BadFile(f"standard output: cannot be written ({error.strerror}); free some space or write elsewhere") from error


def _render(lines: Sequence[str | Table]) -> str:
    console = Console(width=max(Console().width, 100))  # rather wrapped by a narrow terminal than cropped
    with console.capture() as text:
        for line in lines:
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    return text.get().removesuffix("\n")


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """A plain table, every column but the first right-aligned."""
    result = Table(box=None, pad_edge=False)
    for number, column in enumerate(columns):
        result.add_column(column, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        result.add_row(*map(str, row))
    return result


class Rate(ProgressColumn):
    """Steps a second, of late."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:,.1f}/s")


@contextmanager
def progress(what: str, total: int) -> Iterator[Advance]:
    """Yields `advance(steps)`: a bar with steps a second on a terminal, otherwise a plain line each tenth of the way."""
    if stderr.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
        with Progress(*columns, console=stderr) as bar:
            task = bar.add_task(what, total=total)
            yield lambda steps: bar.advance(task, steps)
        return
    done, start = 0, perf_counter()

    def advance(steps: int) -> None:
        nonlocal done
        tenths, done = 10 * done // total, done + steps
        if 10 * done // total > tenths:
            note(f"{what}: {done}/{total}, {done / (perf_counter() - start):,.1f}/s")

    yield advance
