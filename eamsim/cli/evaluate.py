"""`eamsim eval`: accuracy and speed of the integer engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from eamsim.cli.output import Advance, Json, Limit, Threads, progress
from eamsim.cli.run import Isa, ModelFile, load_engine, read_model
from eamsim.cli.untrained import emit_measured, is_untrained
from eamsim.images import ImageSet, open_images
from eamsim.labels import HELP

if TYPE_CHECKING:
    from eamsim.engine import Engine

Data = Annotated[list[Path], typer.Option("--data", help="Labelled images: a folder with one folder a class, or an .npz. May be repeated.")]
Labels = Annotated[str | None, typer.Option("--labels", metavar="by-name|by-order|FILE", help=HELP)]


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


def measure(engine: Engine, images: ImageSet, batch_size: int, advance: Advance) -> dict:
    """Keys top1, top5 (fractions), images, images_per_second (engine alone, after warming up) and the same with decoding."""
    assert images.labels is not None
    engine.run(next(images.batches(batch_size)))
    ranks, engine_seconds, start = [], 0.0, perf_counter()
    for first, batch in enumerate(images.batches(batch_size)):
        called = perf_counter()
        logits = engine.run(batch)
        engine_seconds += perf_counter() - called
        ranks.append(label_ranks(logits, images.labels[first * batch_size :][: len(batch)]))
        advance(len(batch))
    rank = np.concatenate(ranks)
    return {
        "top1": float((rank < 1).mean()),
        "top5": float((rank < 5).mean()),
        "images": len(images),
        "images_per_second": len(images) / engine_seconds,
        "images_per_second_with_decoding": len(images) / (perf_counter() - start),
    }


def label_ranks(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many classes come before the label's: logits [n, classes], labels [n] -> int64 [n]; ties go to the lower class."""
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    earlier = np.arange(logits.shape[1]) < labels[:, None]
    return ((logits > own) | ((logits == own) & earlier)).sum(axis=1)
