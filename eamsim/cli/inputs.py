"""Arguments and options that several commands share, and what opens them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eamsim.cli.output import progress
from eamsim.constraints import Verified
from eamsim.errors import UserError
from eamsim.inputs.labels import HELP

if TYPE_CHECKING:
    from eamsim.engine import Engine

ModelFile = Annotated[Path, typer.Argument(metavar="X.eam", help="A model built by `eamsim build`.")]
Isa = Annotated[str | None, typer.Option(help="Instruction set of the engine (see `eamsim doctor`); the best unless given.")]
Weights = Annotated[str | None, typer.Option(help="A .safetensors file, local-dir:DIR or hf-hub:ID.")]
FigureFolder = Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="The folder for the files and their manifest, NAME.json.")]


def load_engine(program: Verified, threads: int | None, isa: str | None) -> Engine:
    """`eamsim.engine.Engine`, imported late as Numba takes its time, which shows a first compilation."""
    from eamsim import engine

    return engine.Engine(program, threads=threads, isa=isa, progress=progress)


Data = Annotated[list[Path], typer.Option("--data", help="Labelled images: a folder with one folder a class, or an .npz. May be repeated.")]
Labels = Annotated[str | None, typer.Option("--labels", metavar="by-name|by-order|FILE", help=HELP)]
Compensate = Annotated[
    bool | None,
    typer.Option(
        "--compensate/--no-compensate",
        help="Re-fit weights and biases, layer by layer, to what quantisation has lost, or leave them as RepQ-ViT has them. "
        "[default: compensate, but for --random-init]",
        show_default=False,
    ),
]


def compensates(choice: bool | None, random_init: int | None) -> bool:
    """Untrained weights have no accuracy that would be worth the minutes."""
    return random_init is None if choice is None else choice


def parse_counts(option: str, text: str) -> list[int]:
    """The counts of "1,2,8"; UserError unless all are positive integers."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"{option}: expected positive numbers with commas between, such as 1,2, got {text!r}")
    return [int(part) for part in parts]
