"""What a trace records of the golden interpreter."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from eamsim import golden
from eamsim.constraints import Verified

Taps = dict[str, np.ndarray]


def golden_steps(program: Verified, images: np.ndarray) -> Iterator[Taps]:
    """All taps of one image after the other, as batches of one."""
    for image in images:
        found: Taps = {}
        golden.run(program, image, found)
        yield {name: integers[None] for name, integers in found.items()}
