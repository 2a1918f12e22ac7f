"""What the statistics of the attention maps add to a float forward pass: DeiT-T at 224 px, 32 images a batch, in turn.

pytest tests/benchmarks/bench_entropy.py
"""

from time import perf_counter

import numpy as np

from reference.attention.entropy import AttentionStatistics
from reference.models.load import load_model
from reference.quantisation.fakequant import collect_maps

BATCH, ROUNDS = 32, 12


def test_overhead_of_the_statistics(benchmark):
    """The benchmark is the pass with statistics; `extra_info.overhead` its median share on top of the passes without, taken between."""
    model = load_model("deit_tiny_patch16_224", random_init=0)
    size = model.preprocessing.height
    images = np.random.default_rng(0).integers(0, 256, (BATCH, size, size, 3), np.uint8)
    statistics = AttentionStatistics(dict(enumerate(model.network.maps)), BATCH * (ROUNDS + 1))
    plain = []

    def without():
        start = perf_counter()
        collect_maps(model, [images], lambda layer, maps: None)
        plain.append(perf_counter() - start)

    benchmark.pedantic(lambda: collect_maps(model, [images], statistics.add), setup=without, rounds=ROUNDS, warmup_rounds=1)
    measured = benchmark.stats.stats.data
    benchmark.extra_info["overhead"] = float(np.median(np.divide(measured, plain[-len(measured) :]))) - 1
    print(f"\nstatistics add {benchmark.extra_info['overhead']:.1%}")
