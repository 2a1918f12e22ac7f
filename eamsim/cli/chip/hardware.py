"""`eamsim hardware`: the hardware descriptions that ship with the package, to be read and to start one's own from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cost_model.chip.hardware import load, preset_names, preset_text
from eamsim.cli.manifest import check_out, described
from eamsim.cli.output import Json, emit
from eamsim.errors import UserError
from eamsim.files.container import written

app = typer.Typer(
    help="The chips that ship with eamsim: list, show, copy.", no_args_is_help=True, add_completion=False, rich_markup_mode=None
)
Preset = Annotated[str, typer.Argument(metavar="PRESET", help="A name of `eamsim hardware list`.")]


@app.command("list")
def list_presets(as_json: Json = False) -> None:
    """The presets. Any of the names goes wherever a command takes --hw."""
    chips = [load(name) for name in preset_names()]
    rows = [{"name": chip.name, "kind": chip.compute.kind, "description": chip.description} for chip in chips]
    emit({"presets": rows}, as_json, *(f"{row['name']}: {row['description']}" for row in rows))


@app.command()
def show(name: Preset, as_json: Json = False) -> None:
    """The YAML of a preset."""
    text = preset_text(name)
    emit(load(name).model_dump(), as_json, *text.splitlines())


@app.command()
def copy(
    name: Preset,
    out: Annotated[Path, typer.Argument(metavar="H.yaml", help="A new file, to be changed and given as --hw.")],
    as_json: Json = False,
) -> None:
    """Write a preset as a file of your own."""
    text = preset_text(name)
    if check_out(out, ".yaml", "copy").exists():
        raise UserError(f"copy: {out} exists; choose a new file")
    with written(out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    emit({"preset": name, "output": described(out)}, as_json, f"{out}: change it, then give --hw {out}")
