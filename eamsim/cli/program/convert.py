"""`eamsim convert`: an .eam file of an older version in, the same program in this version's out."""

from pathlib import Path
from typing import Annotated

import typer

from eamsim import artifact
from eamsim.cli.manifest import check_output, described, file_line, made_by, manifest_path, write_manifest
from eamsim.cli.output import Json, emit


def convert(
    model: Annotated[Path, typer.Argument(metavar="OLD.eam", help="An .eam file of any version.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="NEW.eam", help="The file to write; NEW.eam.json beside it says from what.")],
    as_json: Json = False,
) -> None:
    """Old .eam file to this version's. The program and its program_sha256, which traces name, stay the same."""
    check_output(out)
    program, provenance = artifact.read(model)
    artifact.write(out, program, provenance)
    output = described(out)
    manifest = {
        **made_by(),
        "input": described(model),
        "program_sha256": artifact.program_sha256(program),
        "output": output,
    }
    write_manifest(manifest_path(out), manifest)
    emit(manifest, as_json, f"{file_line(output)}, program {manifest['program_sha256'][:12]}")
