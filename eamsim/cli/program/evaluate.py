"""`eamsim eval`: accuracy and speed of the integer engine."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from eamsim.cli.inputs import Data, Isa, Labels, ModelFile, load_engine
from eamsim.cli.output import Json, Limit, Threads, progress
from eamsim.cli.untrained import emit_measured
from eamsim.inputs.images import open_images
from eamsim.jobs.load import is_untrained, read_model
from eamsim.jobs.measure import measure


def evaluate(
    model: ModelFile,
    data: Data,
    labels: Labels = None,
    limit: Limit = None,
    batch: Annotated[int, typer.Option(help="Images per call of the engine.", min=1)] = 32,
    threads: Threads = None,
    isa: Isa = None,
    as_json: Json = False,
) -> None:
    """Accuracy and speed. Top-1, top-5, and images per second of the engine alone and with decoding."""
    program, preprocessing, labelling, provenance = read_model(model)
    images = open_images(data, preprocessing, limit, replace(labelling, choice=labels))
    engine = load_engine(program, threads, isa)
    del program  # whose weights the engine has packed
    with progress("evaluated", len(images)) as advance:
        result = measure(engine, images, batch, advance)
    engine_speed, whole_speed = result["images_per_second"], result["images_per_second_with_decoding"]
    emit_measured(
        is_untrained(provenance),
        result | {"data": images.summary.json()},
        as_json,
        f"top-1 {result['top1']:.2%}, top-5 {result['top5']:.2%} of {result['images']} images",
        f"{engine_speed:,.0f} images/s in the engine, {whole_speed:,.0f} with reading and decoding",
    )
