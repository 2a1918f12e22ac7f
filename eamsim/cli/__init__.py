"""The command line: each command parses its options, calls the library and prints."""

import os
import sys
from typing import Annotated

import typer

from eamsim import __version__
from eamsim.cli.build import build
from eamsim.cli.cost import cost
from eamsim.cli.demo import demo
from eamsim.cli.doctor import cache_folder, doctor
from eamsim.cli.evaluate import evaluate
from eamsim.cli.output import note
from eamsim.cli.run import run
from eamsim.cli.verify import verify
from eamsim.errors import UserError

app = typer.Typer(
    name="eamsim",
    help="4-bit Vision Transformers with frozen attention maps, executed bit-exactly in integers.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for name, command in {"demo": demo, "build": build, "run": run, "eval": evaluate, "verify": verify, "cost": cost, "doctor": doctor}.items():
    app.command(name)(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"eamsim {__version__}")
        raise typer.Exit


@app.callback()
def prepare(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """4-bit Vision Transformers with frozen attention maps, executed bit-exactly in integers."""
    os.environ.setdefault("NUMBA_CACHE_DIR", str(cache_folder()))


def main() -> None:
    """Run the command line; a UserError becomes one line on standard error and its exit code."""
    try:
        app(prog_name="eamsim")
    except UserError as error:
        note(f"error: {error}")
        sys.exit(error.exit_code)
