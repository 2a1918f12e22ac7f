"""Random crops of photographs, as networks are trained on them: which ones a step sees depends on the seed and its number alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import numpy as np
from PIL import Image

from eamsim.inputs.images import RESAMPLING, ImageSet, Preprocessing

LEAST_AREA = 0.35  # of the photograph
LOG_RATIO = math.log(4 / 3)  # of a crop's width to its height, to either side of the network's own
ATTEMPTS = 20  # then the largest square
CROPS, ORDER = 0, 1  # what a generator is for, in its seed


def random_crops(images: ImageSet, seed: int, step: int, count: int, part: int) -> Iterator[np.ndarray]:
    """`count` crops for the step of this number, `part` at a time: uint8 [part, height, width, 3].

    Every photograph comes once before one comes again, in a new order each time.
    """
    places = np.arange(step * count, (step + 1) * count)
    rounds = places // len(images)
    orders = {each: np.random.default_rng((seed, ORDER, each)).permutation(len(images)) for each in np.unique(rounds).tolist()}
    chosen = np.array([orders[each][place % len(images)] for each, place in zip(rounds.tolist(), places, strict=True)])
    crop = RandomCrop(**asdict(images.preprocessing), random=np.random.default_rng((seed, CROPS, step)))
    return replace(images.select(chosen), preprocessing=crop).batches(part)


@dataclass(frozen=True, kw_only=True)
class RandomCrop(Preprocessing):
    """A rectangle of at least LEAST_AREA, every second one mirrored, instead of the centre."""

    random: np.random.Generator

    def __call__(self, image: Image.Image) -> np.ndarray:
        """uint8 [height, width, 3]."""
        image = image.convert("RGB")
        wide, high = self._size(*image.size)
        left, top = (int(self.random.integers(room + 1)) for room in (image.width - wide, image.height - high))
        size = (self.width, self.height)
        pixels = np.asarray(image.resize(size, RESAMPLING[self.interpolation], box=(left, top, left + wide, top + high)))
        return pixels[:, ::-1] if self.random.random() < 0.5 else pixels

    def _size(self, width: int, height: int) -> tuple[int, int]:
        for _ in range(ATTEMPTS):
            area = width * height * self.random.uniform(LEAST_AREA, 1)
            ratio = math.exp(self.random.uniform(-LOG_RATIO, LOG_RATIO)) * self.width / self.height
            wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < wide <= width and 0 < high <= height:
                return wide, high
        return min(width, height), min(width, height)
