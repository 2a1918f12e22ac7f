"""What recording digests costs beside a plain run: python tests/benchmarks/trace_digests.py X.eam [ROUNDS]

One batch of 8 random images; the pieces take turns in one process. Prints medians of wall-clock and processor seconds, and of their ratios
to the plain run of the same round.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from eamsim import artifact, engine
from eamsim.files.packing import packed_bytes
from eamsim.tensors import taps
from eamsim.traces import file as trace_file

BATCH = 8


def main(model: Path, rounds: int) -> None:
    program, _ = artifact.read(model)
    loaded, declared = engine.Engine(program), taps(program)
    images = np.random.default_rng(0).integers(0, 256, (BATCH, *program.image.shape), np.uint8)
    names = [name for name in declared if name != program.image.name]
    outputs = [name for name in names if name in program.values]

    def stream() -> None:
        for _ in loaded.stream(images):
            pass

    def trace(run: bool = True) -> None:
        with trace_file.recording(Path(folder) / "t.h5", program, names, [""] * BATCH, "engine", False, {}) as recorder:
            if run:
                recorder.put_lanes(0, *loaded.digests(images, names))
            else:
                recorder.digests[:] = 1  # or the trace would be refused as unfinished

    with (
        tempfile.TemporaryDirectory() as folder,
        trace_file.recording(Path(folder) / "all.h5", program, names, [""] * BATCH, "engine", False, {}) as every,
        trace_file.recording(Path(folder) / "outputs.h5", program, outputs, [""] * BATCH, "engine", False, {}) as some,
    ):
        pieces: dict[str, Callable[[], object]] = {
            "plain run": lambda: loaded.run(images),
            "digests of all taps": lambda: every.put_lanes(0, *loaded.digests(images, names)),
            "digests of outputs": lambda: some.put_lanes(0, *loaded.digests(images, outputs)),
            "stream of all taps": stream,
            "trace opened and closed": lambda: trace(run=False),
            "whole trace of digests": trace,
        }
        seconds = {name: np.empty((rounds + 1, 2)) for name in pieces}
        for turn in range(rounds + 1):
            for name, piece in pieces.items():
                start = np.array([time.perf_counter(), time.process_time()])
                piece()
                seconds[name][turn] = [time.perf_counter(), time.process_time()] - start
    show(seconds)
    sizes = [(tap.value.size, packed_bytes(tap.value.size, tap.packing)) for tap in declared.values()]
    elements, packed = np.sum(sizes, axis=0) * BATCH
    print(f"{elements:,} integers, {packed:,} bytes packed")


def show(seconds: dict[str, np.ndarray]) -> None:
    """A line a piece, its medians and their ratios to a plain run's; the first turn of all warms up."""
    plain = seconds["plain run"][1:]
    for name, taken in seconds.items():
        wall, processor = np.median(taken[1:], axis=0)
        ratios = np.median(taken[1:] / plain, axis=0)
        print(f"{name:<24} {wall:.3f} s wall ({ratios[0]:.2f}) {processor:.3f} s processor ({ratios[1]:.2f})")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 9)
