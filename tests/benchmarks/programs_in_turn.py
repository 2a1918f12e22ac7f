"""Programs and thread counts in turn: python tests/benchmarks/programs_in_turn.py BATCH THREADS[,THREADS...] X.eam [Y.eam ...]

Random images of each program's size. Prints medians of ROUNDS turns in milliseconds an image, with quartiles, and time and MACs
beside those of the first line.
"""

import sys
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from cost_model.counts import count
from eamsim import artifact, engine
from eamsim.cli.bench import ROUNDS, between, interleaved, spread


def main(batch: int, threads: list[int], paths: list[Path]) -> None:
    calls, macs = {}, {}
    for path in paths:
        program, _ = artifact.read(path)
        images = np.random.default_rng(0).integers(0, 256, (batch, *program.image.shape), np.uint8)
        for number in threads:
            name = f"{path.name}, threads {number}"
            calls[name], macs[name] = partial(engine.load(program, number).run, images), count(program).macs.full
    times = interleaved(calls, ROUNDS, batch)
    first = next(iter(calls))
    for name, each in times.items():
        ratios = median(each) / median(times[first]), macs[name] / macs[first]
        print(f"{name:32} {median(each):8.3f} ms ({between(spread(each))})  time {ratios[0]:.4f}  MACs {ratios[1]:.4f}")


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    main(int(sys.argv[1]), [int(number) for number in sys.argv[2].split(",")], [Path(name) for name in sys.argv[3:]])
