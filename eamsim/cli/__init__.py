"""The command line: each command parses its options, calls the library and prints."""

import sys
from typing import Annotated

import typer

from eamsim import __version__
from eamsim.cli.bench import bench
from eamsim.cli.build import build
from eamsim.cli.cost import cost
from eamsim.cli.demo import demo
from eamsim.cli.doctor import doctor
from eamsim.cli.entropy import entropy
from eamsim.cli.evaluate import evaluate
from eamsim.cli.export import export
from eamsim.cli.hardware import app as chips
from eamsim.cli.output import note
from eamsim.cli.plot import app as plots
from eamsim.cli.report import report
from eamsim.cli.reproduce import reproduce
from eamsim.cli.run import run
from eamsim.cli.search import search
from eamsim.cli.sweep import sweep
from eamsim.cli.trace import app as traces
from eamsim.cli.verify import verify
from eamsim.cli.warmup import warmup
from eamsim.cli.widths import widths
from eamsim.errors import UserError

app = typer.Typer(
    name="eamsim",
    help="4-bit Vision Transformers with frozen attention maps, executed bit-exactly in integers.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
COMMANDS = {
    "demo": demo,
    "build": build,
    "run": run,
    "eval": evaluate,
    "verify": verify,
    "cost": cost,
    "report": report,
    "search": search,
    "entropy": entropy,
    "export": export,
    "widths": widths,
    "sweep": sweep,
    "bench": bench,
    "reproduce": reproduce,
    "doctor": doctor,
    "warmup": warmup,
}
for name, command in COMMANDS.items():
    app.command(name)(command)
app.add_typer(chips, name="hardware")
app.add_typer(plots, name="plot")
app.add_typer(traces, name="trace")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"eamsim {__version__}")
        raise typer.Exit


@app.callback()
def prepare(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """4-bit Vision Transformers with frozen attention maps, executed bit-exactly in integers."""


def main() -> None:
    """Run the command line; a UserError becomes one line on standard error and its exit code."""
    try:
        app(prog_name="eamsim")
    except UserError as error:
        note(f"error: {error}")
        sys.exit(error.exit_code)
