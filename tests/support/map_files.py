"""Files of statistics of random maps."""

from pathlib import Path

import numpy as np

from reference.attention.statistics_file import Statistics, StatisticsHeader, read_statistics, write_statistics

LAYERS, HEADS, TOKENS = 3, 2, 10


def write_maps(path: Path, sources=("float", "quantised"), tokens=TOKENS) -> Statistics:
    """Statistics of random maps at `path`."""
    rng = np.random.default_rng(0)
    header = StatisticsHeader(((HEADS, tokens, tokens),) * LAYERS, (HEADS,) * LAYERS, (), 50, sources, False, {}, "eamsim entropy")
    limits = {"entropy": 5, "mean": 1, "variance": 0.25, "divergence": 3}
    shape = (HEADS, tokens, tokens)
    layers = [
        {name: (rng.random(shape) * limits[name.rpartition(".")[2]]).astype(np.float32) for name in header.arrays(layer)}
        for layer in range(LAYERS)
    ]
    write_statistics(path, header, layers)
    return read_statistics(path)
