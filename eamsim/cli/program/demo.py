"""`eamsim demo`: the whole job on the embedded model and the embedded held-out digits, offline, without torch."""

from __future__ import annotations

import tempfile
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated

import typer

from eamsim import artifact
from eamsim.cli.chip.cost_tables import saving_table
from eamsim.cli.extras import import_reference
from eamsim.cli.inputs import load_engine
from eamsim.cli.output import Json, Threads, emit, progress
from eamsim.constraints import Verified
from eamsim.inputs.images import open_images
from eamsim.jobs.costs.rows import MEANINGS, estimated_rows, own_row
from eamsim.jobs.load import read_model
from eamsim.jobs.measure import measure
from reference.attention.freeze import Freezing

VERIFIED_IMAGES, BATCH = 8, 32
TAUS = [0, 0.1, 0.2, 0.5, 0.9]
NEXT = (
    "next:",
    "  eamsim doctor                                       what this machine has",
    "  eamsim cost deit_tiny_patch16_224 --tau 0,0.2,0.5   what freezing saves",
    "  pip install 'eamsim[reference]'                     for your own float model:",
    "  eamsim build MODEL --calib IMAGES --tau 0.2 -o X.eam",
    "  eamsim eval X.eam --data IMAGES; eamsim verify X.eam --data IMAGES",
)


def demo(
    from_float: Annotated[
        bool, typer.Option("--from-float", help="Rebuild the model from its float checkpoint first (needs [reference]).")
    ] = False,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """The whole job on embedded digits. The integer engine on held-out digits, checked against golden; what it costs."""
    with as_file(files("eamsim") / "data" / "digits") as digits, tempfile.TemporaryDirectory() as scratch:
        model = rebuild(digits, Path(scratch) / "digits.eam") if from_float else digits / "digits.eam"
        result, program = run_and_verify(model, digits / "digits_test.npz", threads)
    rows = [own_row(program), *estimated_rows(program, TAUS, MEANINGS)]
    found = result["first_difference"]
    verdict = "bit-exact" if found is None else f"NOT bit-exact ({found['image']}: {found['text']})"
    emit(
        result | {"cost": rows},
        as_json,
        f"{verdict}: engine and golden at {result['taps']} taps of {result['verified_images']} images",
        f"accuracy: {result['top1']:.2%} of {result['images']} held-out digits",
        f"speed: {result['images_per_second']:,.0f} images/s",
        saving_table(rows),
        *NEXT,
    )
    raise typer.Exit(0 if found is None else 1)


def run_and_verify(model: Path, data: Path, threads: int | None) -> tuple[dict, Verified]:
    """Accuracy and speed over all of `data`, agreement with golden on some of it, and the program."""
    from eamsim.jobs.agreement import verify

    program, preprocessing, labelling, _ = read_model(model)
    digits = open_images([data], preprocessing, labelling=labelling)
    engine = load_engine(program, threads, None)
    with progress("digits classified", len(digits)) as advance:
        accuracy = measure(engine, digits, BATCH, advance)
    some = digits.spread(VERIFIED_IMAGES)
    agreement = verify(program, some, [None], [threads], [BATCH], progress)
    return agreement | {"verified_images": len(some)} | accuracy, program


def rebuild(digits: Path, model: Path) -> Path:
    """Build the demo's model anew: float checkpoint -> RepQ -> entropy -> freeze -> integers, as the one that ships was made."""
    build_program = import_reference("eamsim demo --from-float")
    calib = [digits / "digits_calib.npz"]
    program, provenance = build_program(f"local-dir:{digits}", calib, progress, Freezing(0.2), softmax="renormalised", compensated=False)
    artifact.write(model, program, provenance)
    return model
