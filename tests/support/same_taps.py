"""The engine against the golden interpreter: logits and every tap, equal."""

import numpy as np

from eamsim import golden
from eamsim.constraints import Verified
from eamsim.engine import Engine


def expect_engine_equals_golden(program: Verified, images: np.ndarray, *isas: str) -> None:
    """On uint8 images [batch, height, width, 3], with one thread, on these instruction sets, or the best."""
    found = [Engine(program, threads=1, isa=isa).run(images, taps=True) for isa in isas or (None,)]
    for n, image in enumerate(images):
        taps: dict[str, np.ndarray] = {}
        wanted = golden.run(program, image, taps)
        for logits, values in found:
            np.testing.assert_array_equal(logits[n], wanted)
            assert values.keys() == taps.keys()
            for name, expected in taps.items():
                np.testing.assert_array_equal(values[name][n], expected, name)
