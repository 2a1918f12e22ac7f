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
from reference.freeze import Freezing, Order, Scope

VERSIONED = ("numpy", "torch", "timm", "h5py")


def build(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A timm name, local-dir:DIR or hf-hub:ID.")],
    calib: Annotated[list[Path], typer.Option(help="Calibration images: folders, image files, .npz files. May be repeated.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="X.eam", help="The file to write; X.eam.json beside it says how it was made.")
    ],
    tau: Annotated[float, typer.Option(help="Share of the attention weights to freeze, in [0, 1].")] = 0.2,
    granularity: Annotated[
        str, typer.Option(metavar="weight|row|column|head|tile:RxC", help="What is frozen as a whole: R x C is a tile of queries by keys.")
    ] = "weight",
    scope: Annotated[Scope, typer.Option(help="Freeze the share tau of every head, of every layer or of the model.")] = "head",
    order: Annotated[
        Order, typer.Option(help="What is frozen first: least entropy, variance or change of the output, or at random.")
    ] = "entropy",
    seed: Annotated[int, typer.Option(help="Of the order random.", min=0)] = 0,
    softmax: Annotated[Softmax, typer.Option(help="What freezing means: Eq. 15 to the letter, or over unfrozen pairs alone.")] = "paper",
    weights: Annotated[str | None, typer.Option(help="A .safetensors file, local-dir:DIR or hf-hub:ID.")] = None,
    random_init: Annotated[int | None, typer.Option(metavar="SEED", help="Untrained weights of this seed.", min=0, max=2**63 - 1)] = None,
    allow_pickle: Annotated[bool, typer.Option("--allow-pickle", help="Accept weights in a pickle (read with weights_only).")] = False,
    limit: Annotated[int | None, typer.Option(help="At most so many calibration images, evenly spaced.", min=1)] = None,
    calib_images: Annotated[int, typer.Option(help="So many of them set the ranges of the quantisers.", min=1)] = 32,
    entropy_from: Annotated[Literal["quantised", "float"], typer.Option(help="The maps whose entropy decides.")] = "quantised",
    as_json: Json = False,
) -> None:
    """Float model to .eam file. Calibrate (RepQ-ViT, 4 bits), measure entropies, freeze, lower to integers, write."""
    freezing = Freezing(tau, granularity, scope, order, seed)
    check_output(out)
    build_program = import_reference("eamsim build")

    program, provenance = build_program(
        model,
        calib,
        progress,
        freezing,
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
    write_manifest(manifest_path(out), manifest)
    emit(manifest, as_json, f"{out}: {output['bytes']:,} bytes, sha256 {output['sha256']}", f"next: eamsim eval {out} --data ...")


def check_output(out: Path) -> None:
    """UserError unless `out` can be an .eam file in an existing, writable folder: said before hours of work, not after."""
    if out.suffix != ".eam":
        raise UserError(f"--out: expected a name that ends in .eam, got {out}")
    for path in (out, manifest_path(out)):
        if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
            raise UserError(f"--out: {path} cannot be written; choose a file in an existing, writable folder")


def manifest_path(out: Path) -> Path:
    """X.eam.json beside X.eam."""
    return out.with_name(out.name + ".json")


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
    finally:
        unfinished.unlink(missing_ok=True)
