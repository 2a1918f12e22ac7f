"""What recording digests costs beside a plain run: python tests/benchmarks/trace_digests.py X.eam [ROUNDS]

One batch of 8 random images; the pieces take turns in one process. Prints the least wall-clock and processor seconds of each.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from eamsim import artifact, engine, trace_file
from eamsim.packing import packed_bytes
from eamsim.tensors import taps

BATCH = 8


def main(model: Path, rounds: int) -> None:
    program, _ = artifact.read(model)
    loaded, declared = engine.load(program), taps(program)
    images = np.random.default_rng(0).integers(0, 256, (BATCH, *program.image.shape), np.uint8)
    names = [name for name in declared if name != program.image.name]
    outputs = frozenset(program.values)

    def stream(wanted: Callable[[str], bool] = lambda name: True) -> None:
        for _ in loaded.stream(images, wanted):
            pass

    def record(wanted: list[str], run: bool = True) -> None:
        with trace_file.recording(Path(folder) / "t.h5", program, wanted, [""] * BATCH, "engine", False, {}) as recorder:
            recorder.put_images(0, images)
            for step in loaded.stream(images, frozenset(wanted).__contains__) if run else ():
                recorder.put(0, step)

    pieces: dict[str, Callable[[], object]] = {
        "plain run": lambda: loaded.run(images),
        "stream of all taps": stream,
        "digests of all taps": lambda: record(names),
        "digests of outputs": lambda: record([name for name in names if name in outputs]),
        "trace opened and closed": lambda: record(names, run=False),
    }
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in pieces}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds + 1):
            for name, piece in pieces.items():
                wall, processor = time.perf_counter(), time.process_time()
                piece()
                seconds[name].append((time.perf_counter() - wall, time.process_time() - processor))
    for name, times in seconds.items():
        wall, processor = np.min(times[1:], axis=0)
        print(f"{name:<24} {wall:.3f} s wall {processor:.3f} s processor")
    sizes = [(tap.value.size, packed_bytes(tap.value.size, tap.packing)) for tap in declared.values()]
    elements, packed = np.sum(sizes, axis=0) * BATCH
    print(f"{elements:,} integers, {packed:,} bytes packed")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 5)
