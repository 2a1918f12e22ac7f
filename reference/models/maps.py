"""Which attention maps a block has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Maps:
    """The attention maps of one block.

    shape: (maps, tokens, tokens), a map for each head, or for each head of each window, the windows one after the other; per_image:
    samples that an image gives of each map; shared: by all windows of a Swin, each a sample; excluded: bool of that shape, the pairs of
    tokens that take no part, whose attention weight is 0 whatever the image, or None.
    """

    shape: tuple[int, int, int]
    per_image: int = 1
    shared: bool = False
    excluded: np.ndarray | None = None


def excluded_share(maps: Sequence[Maps]) -> float:
    """The pairs that take no part, as a share of all attention weights of these blocks."""
    excluded = sum(int(each.excluded.sum()) for each in maps if each.excluded is not None)
    return excluded / sum(math.prod(each.shape) for each in maps)
