"""The command line: each command parses its options, calls the library and prints."""

import os
import sys
from importlib import import_module
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup
from typer.main import get_command

from eamsim import __version__
from eamsim.cli.outcome import outcome

COMMANDS = {  # module and name of each in this package, and the first sentence of its help
    "demo": ("program.demo", "demo", "The whole job on embedded digits."),
    "build": ("model.build", "build", "Float model to .eam file."),
    "run": ("program.run", "run", "Classify images."),
    "eval": ("program.evaluate", "evaluate", "Accuracy and speed."),
    "verify": ("program.verify", "verify", "Engine == golden at every tap."),
    "compare": ("model.compare", "compare", "The integers against PyTorch, value by value."),
    "cost": ("chip.cost", "cost", "MACs and bytes of one image; on a chip, cycles and energy."),
    "models": ("model.models", "models", "What of timm's models is supported."),
    "report": ("page.report", "report", "One self-contained HTML page."),
    "search": ("chip.search", "search", "Price every design of a space."),
    "entropy": ("model.entropy", "entropy", "Entropy of attention weights."),
    "export": ("program.export", "export", "Program to ONNX or C99."),
    "convert": ("program.convert", "convert", "Old .eam file to this version's."),
    "widths": ("program.widths", "widths", "The narrowest datapath."),
    "sweep": ("model.sweep", "sweep", "Accuracy over tau."),
    "bench": ("program.bench", "bench", "Speed, beside other runtimes too."),
    "reproduce": ("model.reproduce", "reproduce", "The paper's own protocol."),
    "doctor": ("machine.doctor", "doctor", "What this machine has."),
    "warmup": ("machine.warmup", "warmup", "Compile the integer kernels now."),
    "hardware": ("chip.hardware", "app", "The chips that ship with eamsim: list, show, copy."),
    "plot": ("page.plot", "app", "The paper's figures, as PNG and SVG for a two-column paper."),
    "trace": ("trace.app", "app", "The integers at every tap: for simulators, for comparison."),
}


class LateGroup(TyperGroup):
    """Imports a command when it is called or completed; `--help` and `--version` need no more than the table."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, _, rest = super().resolve_command(ctx, args)
        return name, name and imported(name), rest


def imported(name: str) -> Any:
    """The command itself, with its options; its module is imported."""
    module, attribute, _ = COMMANDS[name]
    found = getattr(import_module(f"{__name__}.{module}"), attribute)
    if not isinstance(found, typer.Typer):
        group = typer.Typer(add_completion=False, rich_markup_mode=None)
        group.command(name)(found)
        found = group
    return get_command(found)


app = typer.Typer(
    name="eamsim",
    cls=LateGroup,
    help="4-bit Vision Transformers with frozen attention maps, executed bit-exactly in integers.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for name, (_, _, sentence) in COMMANDS.items():
    app.command(name, help=sentence)(lambda: None)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"eamsim {__version__}")
        raise typer.Exit


@app.callback()
def prepare(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", envvar="EAMSIM_DEBUG", help="Show the traceback of an error, before COMMAND: eamsim --debug run ...")
    ] = False,
) -> None:
    """4-bit Vision Transformers with frozen attention maps, executed bit-exactly in integers."""
    if debug:
        os.environ["EAMSIM_DEBUG"] = "1"


def main() -> NoReturn:
    """Run the command line; whatever ends it becomes one line on standard error and its exit code."""
    sys.exit(outcome(_run))


def _run() -> None:
    if "_EAMSIM_COMPLETE" in os.environ:  # the shell asks what may come next
        app(prog_name="eamsim")
    group = get_command(app)
    with group.make_context("eamsim", sys.argv[1:]) as context:
        group.invoke(context)
