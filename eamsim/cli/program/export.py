"""`eamsim export`: the program in the form of others, ONNX and C99, each a reading of docs/spec/datapath.md of its own."""

from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from eamsim import artifact
from eamsim.cli.inputs import ModelFile
from eamsim.cli.manifest import check_out, described, file_line, made_by, manifest_path, write_manifest
from eamsim.cli.output import Json, emit
from eamsim.constraints import Verified
from eamsim.errors import MissingExtra, UserError
from eamsim.exports import c99 as c_export
from eamsim.files.container import written
from eamsim.files.origin import without_folders


def export(
    model: ModelFile,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="X.onnx", help="Write an ONNX model of integer operators.")] = None,
    taps: Annotated[bool, typer.Option("--taps", help="Every tap is an output of the ONNX model, not the logits alone.")] = False,
    qdq: Annotated[bool, typer.Option("--qdq", help="The ONNX model in float with INT4 weights instead: approximate.")] = False,
    c: Annotated[Path | None, typer.Option("--c", metavar="DIR", help="Write a C99 program into this folder.")] = None,
    as_json: Json = False,
) -> None:
    """Program to ONNX or C99. Both compute golden's integers at every tap (`eamsim verify --with`); --qdq comes near its logits."""
    if out is None and c is None:
        raise UserError("eamsim export: expected -o X.onnx, --c DIR or both, got neither")
    if qdq and (out is None or taps):
        raise UserError("--qdq: expected -o X.onnx without --taps; the approximate model has logits alone")
    if out is not None:
        check_out(out, ".onnx")
    program, _ = artifact.read(model)
    manifest = made_by("numpy") | {"input": described(model)}
    files = []
    if out is not None:
        write_onnx(out, program, taps, qdq)
        files.append(described(out))
        manifest["versions"]["onnx"] = version("onnx")
        write_manifest(manifest_path(out), manifest | {"output": files[-1:]})
    if c is not None:
        files += c_export.export(program, c, lambda output: without_folders(manifest | {"output": output}))
    emit(manifest | {"output": files}, as_json, *map(file_line, files))


def write_onnx(out: Path, program: Verified, taps: bool, qdq: bool) -> None:
    """Replace the file at `out` in one step."""
    try:
        from eamsim.exports import onnx_integer as onnx_export
        from eamsim.exports import onnx_qdq
    except ModuleNotFoundError as error:
        raise MissingExtra("onnx", "eamsim export -o X.onnx") from error
    model = onnx_qdq.export(program) if qdq else onnx_export.export(program, taps)
    with written(out) as temporary:
        temporary.write_bytes(model.SerializeToString())
