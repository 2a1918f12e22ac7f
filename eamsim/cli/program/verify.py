"""`eamsim verify`: engine == golden at every tap, for every instruction set, thread count and batch size.

On request, what others execute is compared as well: the ONNX export in two runtimes, and the C export once compiled.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from eamsim.cli.inputs import ModelFile, parse_counts
from eamsim.cli.output import Json, emit, note, progress
from eamsim.inputs.images import open_images
from eamsim.jobs.load import read_model

THREAD_COUNTS = "1" if os.cpu_count() == 1 else "1,2"


def verify(
    model: ModelFile,
    data: Annotated[list[Path], typer.Option("--data", help="Image files, folders of images, .npz files. May be repeated.")],
    images: Annotated[int, typer.Option(help="Images to compare, evenly spaced over the data.", min=1)] = 8,
    isa: Annotated[str, typer.Option(envvar="EAMSIM_ISA", help="Instruction set, or `all` this machine has.")] = "all",
    threads: Annotated[str, typer.Option(help="Thread counts, with commas between.")] = THREAD_COUNTS,
    batch: Annotated[str, typer.Option(help="Batch sizes, with commas between.")] = "1,3,8",
    with_: Annotated[
        str, typer.Option("--with", metavar="onnxruntime,onnx,c", help="Compare these readers of the export too, with commas between.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Engine == golden at every tap. Compares every integer; exit code 1 and the first that differs otherwise."""
    from eamsim.engine import isa as instruction_sets
    from eamsim.jobs import agreement

    thread_counts, asked = parse_counts("--threads", threads), parse_counts("--batch", batch)
    program, preprocessing, *_ = read_model(model)
    image_set = open_images(data, preprocessing, images)
    batches = sorted({min(size, len(image_set)) for size in asked})
    if max(asked) > len(image_set):
        note(f"--batch: {max(asked)} is more than the {len(image_set)} images, so calls have {', '.join(map(str, batches))}; see --images")
    names = instruction_sets.detect() if isa == "all" else [isa]
    with tempfile.TemporaryDirectory() as scratch:
        others = {name: agreement.load_reader(name, program, Path(scratch)) for name in with_.split(",") if with_}
        result = agreement.verify(program, image_set, names, thread_counts, batches, progress, others)
    found = result["first_difference"]
    settings = f"{', '.join(names)}; threads {threads}; batches {','.join(map(str, batches))}"
    emit(
        result | {"data": image_set.summary.json()},
        as_json,
        f"bit-exact: {' == '.join(result['interpreters'])} == golden at all {result['taps']} taps of {result['images']} images ({settings})"
        if found is None
        else f"NOT bit-exact: {found['image']} with {describe(found)}: {found['text']}",
    )
    raise typer.Exit(0 if found is None else 1)


def describe(found: dict) -> str:
    if found["interpreter"] != "engine":
        return found["interpreter"]
    return f"{found['isa']}, {found['threads']} threads, batch {found['batch']}"
