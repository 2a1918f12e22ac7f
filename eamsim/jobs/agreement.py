"""Engine == golden at every tap, and what other readers of a program compute."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from eamsim import engine, golden
from eamsim.arguments import expect_integer, expect_type
from eamsim.constraints import Verified
from eamsim.engine.isa import detect
from eamsim.errors import MissingExtra, UserError
from eamsim.exports import c99 as c_export
from eamsim.inputs.images import ImageSet, in_memory
from eamsim.progress import Advance, Progress, silent
from eamsim.traces.difference import Taps, first_difference

UNTAPPED = "logits without taps"
Run = Callable[[np.ndarray], Taps]


def load_reader(name: str, program: Verified, folder: Path) -> Run:
    """The program exported, and what executes the export; the folder is for the files of `c`."""
    if name == "c":
        return c_export.runtime(program, folder)
    if name not in ("onnxruntime", "onnx"):
        raise UserError(f"--with: expected some of onnxruntime, onnx, c with commas between, got {name!r}")
    try:
        from eamsim.exports import onnx_integer as onnx_export

        model = onnx_export.export(program, taps=True)
        return onnx_export.runtime_onnxruntime(model) if name == "onnxruntime" else onnx_export.runtime_reference(model)
    except ModuleNotFoundError as error:
        raise MissingExtra("onnx", f"eamsim verify --with {name}") from error


def verify(
    program: Verified,
    images: ImageSet | np.ndarray,
    isas: Sequence[str | None] | None = None,
    threads: Sequence[int | None] = (None,),
    batches: Sequence[int] = (1, 3, 8),
    progress: Progress = silent,
    others: Mapping[str, Run] = MappingProxyType({}),
) -> dict[str, Any]:
    """Engine == golden at every tap of every image: golden runs once an image, the engine for each of the settings.

    images: opened ones, or uint8 [n, height, width, 3] as the program takes them; isas: all that this machine has unless given;
    others: more interpreters by name, compared too. Keys of the result: bit_exact, interpreters, taps, images, and
    first_difference, None or where and what.
    """
    images = in_memory(images) if isinstance(images, np.ndarray) else images
    expect_type("images", images, ImageSet)
    isas = detect() if isas is None else isas
    for name, settings in (("isas", isas), ("threads", threads), ("batches", batches)):
        expect_type(name, settings, list, tuple)
        if not settings:
            raise UserError(f"{name}: expected at least one, got none, which would compare nothing; leave it out for the default")
    for batch in batches:
        expect_integer("batches", batch, 1)
    with progress("runs compared", len(images) * (1 + len(others) + len(isas) * len(threads) * len(batches))) as advance:
        return _compared(program, images, isas, threads, batches, advance, progress, others)


def _compared(
    program: Verified,
    images: ImageSet,
    isas: Sequence[str | None],
    threads: Sequence[int | None],
    batches: Sequence[int],
    advance: Advance,
    progress: Progress,
    others: Mapping[str, Run],
) -> dict[str, Any]:
    engines = {(isa, count): engine.Engine(program, count, isa, progress) for isa, count in product(isas, threads)}
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
    engines: Mapping[tuple[str | None, int | None], engine.Engine], others: Mapping[str, Run], images: np.ndarray, batches: Sequence[int]
) -> Iterator[tuple[dict, int, Taps]]:
    """What ran, the image's index and its taps, for every engine and batch size and for every other interpreter."""
    for ((isa, count), runner), batch in product(engines.items(), batches):
        for index, found in enumerate(engine_taps(runner, images, batch)):
            yield {"interpreter": "engine", "isa": isa, "threads": count, "batch": batch}, index, found
    for name, run in others.items():
        for index, image in enumerate(images):
            yield {"interpreter": name}, index, run(image)


def without_logits(taps: Taps) -> Taps:
    """For an interpreter that publishes the taps in its only call."""
    return {name: integers for name, integers in taps.items() if name != UNTAPPED}


def golden_taps(program: Verified, image: np.ndarray, advance: Advance) -> Taps:
    """All taps, and last the logits, which `engine_taps` takes from a call that publishes no taps."""
    taps: Taps = {}
    logits = golden.run(program, image, taps)
    advance(1)
    return taps | {UNTAPPED: logits}


def engine_taps(runner: engine.Engine, images: np.ndarray, batch: int) -> Iterator[Taps]:
    """The same of the engine, image by image, from calls of at most `batch` images."""
    for start in range(0, len(images), batch):
        called = images[start : start + batch]
        untapped, (_, taps) = runner.run(called), runner.run(called, taps=True)
        for index, logits in enumerate(untapped):
            yield {name: integers[index] for name, integers in taps.items()} | {UNTAPPED: logits}
