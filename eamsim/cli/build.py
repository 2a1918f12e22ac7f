"""`eamsim build`: a float model and calibration images in, an .eam file and its manifest out."""

import json
import os
import shlex
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from eamsim import __version__, artifact
from eamsim.cli.output import Json, emit, progress
from eamsim.errors import BadFile, MissingExtra, UserError
from eamsim.program import Softmax

VERSIONED = ("numpy", "torch", "timm", "h5py")


def build(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A timm name, local-dir:DIR or hf-hub:ID.")],
    calib: Annotated[list[Path], typer.Option(help="Calibration images: folders, image files, .npz files. May be repeated.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="X.eam", help="The file to write; X.eam.json beside it says how it was made.")
    ],
    tau: Annotated[float, typer.Option(help="Share of every head's attention weights to freeze, in [0, 1].")] = 0.2,
    softmax: Annotated[Softmax, typer.Option(help="What freezing means: Eq. 15 to the letter, or over unfrozen pairs alone.")] = "paper",
    weights: Annotated[str | None, typer.Option(help="A .safetensors file, local-dir:DIR or hf-hub:ID.")] = None,
    random_init: Annotated[int | None, typer.Option(metavar="SEED", help="Untrained weights of this seed.")] = None,
    allow_pickle: Annotated[bool, typer.Option("--allow-pickle", help="Accept weights in a pickle (read with weights_only).")] = False,
    limit: Annotated[int | None, typer.Option(help="At most so many calibration images, evenly spaced.", min=1)] = None,
    calib_images: Annotated[int, typer.Option(help="So many of them set the ranges of the quantisers.", min=1)] = 32,
    entropy_from: Annotated[Literal["quantised", "float"], typer.Option(help="The maps whose entropy decides.")] = "quantised",
    as_json: Json = False,
) -> None:
    """Float model to .eam file. Calibrate (RepQ-ViT, 4 bits), measure entropies, freeze, lower to integers, write."""
    check_tau(tau)
    check_output(out)
    build_program = import_reference("eamsim build")

    program, provenance = build_program(
        model,
        calib,
        progress,
        tau=tau,
        softmax=softmax,
        weights=weights,
        random_init=random_init,
        allow_pickle=allow_pickle,
        limit=limit,
        range_images=calib_images,
        entropy_from=entropy_from,
    )
    artifact.write(out, program, provenance)
    output = {"file": str(out), "bytes": out.stat().st_size, "sha256": artifact.sha256(out)}
    versions = {"eamsim": __version__, "python": sys.version.split()[0], **{name: version(name) for name in VERSIONED}}
    manifest = {"command": shlex.join(["eamsim", *sys.argv[1:]]), "versions": versions, **provenance, "output": output}
    write_manifest(out.with_name(out.name + ".json"), manifest)
    emit(manifest, as_json, f"{out}: {output['bytes']:,} bytes, sha256 {output['sha256']}", f"next: eamsim eval {out} --data ...")


def check_tau(tau: float) -> None:
    """UserError unless 0 <= tau <= 1."""
    if not 0 <= tau <= 1:
        raise UserError(f"--tau: must be a fraction in [0, 1], got {tau}; write 0.2 to freeze 20 %")


def check_output(out: Path) -> None:
    """UserError unless `out` can be an .eam file in an existing, writable folder: said before hours of work, not after."""
    if out.suffix != ".eam":
        raise UserError(f"--out: expected a name that ends in .eam, got {out}")
    if out.is_dir() or not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        raise UserError(f"--out: {out} cannot be written; choose a file in an existing, writable folder")


def import_reference(feature: str) -> Any:
    """`reference.build.build_program`; MissingExtra where torch and timm are not installed."""
    try:
        from reference.build import build_program
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in {"eamsim", "reference"}:
            raise
        raise MissingExtra("reference", feature) from error
    return build_program


def write_manifest(path: Path, manifest: dict) -> None:
    """Replace the JSON file at `path` in one step."""
    unfinished = path.with_name(path.name + ".tmp")
    try:
        unfinished.write_text(json.dumps(manifest, indent=2) + "\n")
        os.replace(unfinished, path)
    except OSError as error:
        raise BadFile(f"{path}: cannot be written ({error.strerror}); free some space and build again") from error
