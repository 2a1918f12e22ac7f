"""`eamsim verify`: engine == golden at every tap, for every instruction set, thread count and batch size."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from eamsim import golden
from eamsim.cli.output import Advance, Json, emit, progress
from eamsim.cli.run import ModelFile, load_engine, read_model
from eamsim.errors import UserError
from eamsim.images import ImageSet, open_images
from eamsim.program import Program
from eamsim.trace import Taps, first_difference

if TYPE_CHECKING:
    from eamsim.engine import Engine

THREAD_COUNTS = "1" if os.cpu_count() == 1 else "1,2"
UNTAPPED = "logits without taps"


def verify(
    model: ModelFile,
    data: Annotated[list[Path], typer.Option("--data", help="Image files, folders of images, .npz files. May be repeated.")],
    images: Annotated[int, typer.Option(help="Images to compare, evenly spaced over the data.", min=1)] = 8,
    isa: Annotated[str, typer.Option(envvar="EAMSIM_ISA", help="Instruction set, or `all` this machine has.")] = "all",
    threads: Annotated[str, typer.Option(help="Thread counts, with commas between.")] = THREAD_COUNTS,
    batch: Annotated[str, typer.Option(help="Batch sizes, with commas between.")] = "1,3,8",
    as_json: Json = False,
) -> None:
    """Engine == golden at every tap. Compares every integer; exit code 1 and the first that differs otherwise."""
    from eamsim.engine import isa as instruction_sets

    thread_counts, batches = parse_counts("--threads", threads), parse_counts("--batch", batch)
    program, preprocessing, labels = read_model(model)
    image_set = open_images(data, preprocessing, images, labels)
    names = instruction_sets.detect() if isa == "all" else [isa]
    runs = len(image_set) * (1 + len(names) * len(thread_counts) * len(batches))
    with progress("runs compared", runs) as advance:
        result = compare(program, image_set, names, thread_counts, batches, advance)
    found = result["first_difference"]
    settings = f"{', '.join(names)}; threads {threads}; batches {batch}"
    emit(
        result,
        as_json,
        f"bit-exact: engine == golden at all {result['taps']} taps of {result['images']} images ({settings})"
        if found is None
        else f"NOT bit-exact: {found['image']} with {found['isa']}, {found['threads']} threads, batch {found['batch']}: {found['text']}",
    )
    raise typer.Exit(0 if found is None else 1)


def parse_counts(option: str, text: str) -> list[int]:
    """The counts of "1,2,8"; UserError unless all are positive integers."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"{option}: expected positive numbers with commas between, such as 1,2, got {text!r}")
    return [int(part) for part in parts]


def compare(
    program: Program, images: ImageSet, isas: Sequence[str | None], threads: Sequence[int | None], batches: Sequence[int], advance: Advance
) -> dict:
    """Keys bit_exact, taps, images, first_difference (None, or where and what); golden runs once per image."""
    engines = {(isa, count): load_engine(program, count, isa) for isa, count in product(isas, threads)}
    taps = done = 0
    for chunk in images.batches(max(batches)):
        expected = [golden_taps(program, image, advance) for image in chunk]
        taps = len(expected[0])
        for ((isa, count), executable), batch in product(engines.items(), batches):
            for index, found in enumerate(engine_taps(executable, chunk, batch)):
                difference = first_difference(expected[index], found)
                if difference is not None:
                    where = {"image": images.names[done + index], "isa": isa, "threads": count, "batch": batch}
                    first = where | asdict(difference) | {"text": str(difference)}
                    return {"bit_exact": False, "taps": taps, "images": len(images), "first_difference": first}
                advance(1)
        done += len(chunk)
    return {"bit_exact": True, "taps": taps, "images": len(images), "first_difference": None}


def golden_taps(program: Program, image: np.ndarray, advance: Advance) -> Taps:
    """All taps, and last the logits, which `engine_taps` takes from a call that publishes no taps."""
    taps: Taps = {}
    logits = golden.run(program, image, taps)
    advance(1)
    return taps | {UNTAPPED: logits}


def engine_taps(engine: Engine, images: np.ndarray, batch: int) -> Iterator[Taps]:
    """The same of the engine, image by image, from calls of at most `batch` images."""
    for start in range(0, len(images), batch):
        called = images[start : start + batch]
        untapped, (_, taps) = engine.run(called), engine.run(called, taps=True)
        for index, logits in enumerate(untapped):
            yield {name: integers[index] for name, integers in taps.items()} | {UNTAPPED: logits}
