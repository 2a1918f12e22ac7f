"""`eamsim verify`: engine == golden at every tap, for every instruction set, thread count and batch size.

On request, what others execute is compared as well: the ONNX export in two runtimes, and the C export once compiled.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from eamsim import c_export, golden
from eamsim.cli.output import Advance, Json, emit, note, progress
from eamsim.cli.run import ModelFile, load_engine, read_model
from eamsim.errors import MissingExtra, UserError
from eamsim.images import ImageSet, open_images
from eamsim.trace import Taps, first_difference
from eamsim.verify import Verified

if TYPE_CHECKING:
    from eamsim.engine import Engine

THREAD_COUNTS = "1" if os.cpu_count() == 1 else "1,2"
UNTAPPED = "logits without taps"

Run = Callable[[np.ndarray], Taps]


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

    thread_counts, asked = parse_counts("--threads", threads), parse_counts("--batch", batch)
    program, preprocessing, *_ = read_model(model)
    image_set = open_images(data, preprocessing, images)
    batches = sorted({min(size, len(image_set)) for size in asked})
    if max(asked) > len(image_set):
        note(f"--batch: {max(asked)} is more than the {len(image_set)} images, so calls have {', '.join(map(str, batches))}; see --images")
    names = instruction_sets.detect() if isa == "all" else [isa]
    with tempfile.TemporaryDirectory() as scratch:
        others = {name: load_reader(name, program, Path(scratch)) for name in with_.split(",") if with_}
        total = len(image_set) * (1 + len(others) + len(names) * len(thread_counts) * len(batches))
        with progress("runs compared", total) as advance:
            result = compare(program, image_set, names, thread_counts, batches, advance, others)
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


def parse_counts(option: str, text: str) -> list[int]:
    """The counts of "1,2,8"; UserError unless all are positive integers."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"{option}: expected positive numbers with commas between, such as 1,2, got {text!r}")
    return [int(part) for part in parts]


def load_reader(name: str, program: Verified, folder: Path) -> Run:
    """The program exported, and what executes the export; the folder is for the files of `c`."""
    if name == "c":
        return c_export.runtime(program, folder)
    if name not in ("onnxruntime", "onnx"):
        raise UserError(f"--with: expected some of onnxruntime, onnx, c with commas between, got {name!r}")
    try:
        from eamsim import onnx_export

        model = onnx_export.export(program, taps=True)
        return onnx_export.runtime_onnxruntime(model) if name == "onnxruntime" else onnx_export.runtime_reference(model)
    except ModuleNotFoundError as error:
        raise MissingExtra("onnx", f"eamsim verify --with {name}") from error


def compare(
    program: Verified,
    images: ImageSet,
    isas: Sequence[str | None],
    threads: Sequence[int | None],
    batches: Sequence[int],
    advance: Advance,
    others: Mapping[str, Run] = MappingProxyType({}),
) -> dict:
    """Keys bit_exact, interpreters, taps, images, first_difference (None, or where and what); golden runs once per image."""
    engines = {(isa, count): load_engine(program, count, isa) for isa, count in product(isas, threads)}
    result = {"bit_exact": True, "interpreters": ["engine", *others], "taps": 0, "images": len(images), "first_difference": None}
    done = 0
    for chunk in images.batches(max(batches)):
        expected = [golden_taps(program, image, advance) for image in chunk]
        result["taps"] = len(expected[0])
        for settings, index, found in runs(engines, others, chunk, batches):
            wanted = expected[index] if UNTAPPED in found else without_logits(expected[index])
            difference = first_difference(wanted, found)
            if difference is not None:
                first = {"image": images.names[done + index]} | settings | asdict(difference) | {"text": str(difference)}
                return result | {"bit_exact": False, "first_difference": first}
            advance(1)
        done += len(chunk)
    return result


def runs(
    engines: Mapping[tuple[str | None, int | None], Engine], others: Mapping[str, Run], images: np.ndarray, batches: Sequence[int]
) -> Iterator[tuple[dict, int, Taps]]:
    """What ran, the image's index and its taps, for every engine and batch size and for every other interpreter."""
    for ((isa, count), engine), batch in product(engines.items(), batches):
        for index, found in enumerate(engine_taps(engine, images, batch)):
            yield {"interpreter": "engine", "isa": isa, "threads": count, "batch": batch}, index, found
    for name, run in others.items():
        for index, image in enumerate(images):
            yield {"interpreter": name}, index, run(image)


def describe(found: dict) -> str:
    if found["interpreter"] != "engine":
        return found["interpreter"]
    return f"{found['isa']}, {found['threads']} threads, batch {found['batch']}"


def without_logits(taps: Taps) -> Taps:
    """For an interpreter that publishes the taps in its only call."""
    return {name: integers for name, integers in taps.items() if name != UNTAPPED}


def golden_taps(program: Verified, image: np.ndarray, advance: Advance) -> Taps:
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
