"""What accuracy is, and that of the engine, with its speed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from eamsim.arguments import described, expect_array
from eamsim.errors import UserError
from eamsim.inputs.images import ImageSet
from eamsim.progress import Advance

if TYPE_CHECKING:
    from eamsim.engine import Engine


@dataclass(frozen=True)
class Accuracy:
    """Fractions of `images` whose label is the highest, or among the five highest, of the logits; ties go to the lowest index."""

    top1: float
    top5: float
    images: int


def accuracy(logits: np.ndarray, labels: np.ndarray) -> Accuracy:
    """Of logits [images, classes], float or integer, against integer labels [images] below `classes`. Raises UserError."""
    if not isinstance(logits, np.ndarray) or logits.ndim != 2 or not len(logits) or np.isnan(logits).any():
        raise UserError(f"logits: expected numbers [images, classes] of at least one image, got {described(logits)}")
    expect_array("labels", labels, "integer", (len(logits),), 0, logits.shape[1] - 1, "give the class of every image that was run")
    return _within(label_ranks(logits, labels))


def measure(engine: Engine, images: ImageSet, batch_size: int, advance: Advance) -> dict:
    """Keys top1, top5 (fractions), images, images_per_second (engine alone, after warming up) and the same with decoding."""
    assert images.labels is not None
    engine.run(next(images.batches(batch_size)))
    ranks, engine_seconds, start = [], 0.0, perf_counter()
    for first, batch in enumerate(images.batches(batch_size)):
        called = perf_counter()
        logits = engine.run(batch)
        engine_seconds += perf_counter() - called
        ranks.append(label_ranks(logits, images.labels[first * batch_size :][: len(batch)]))
        advance(len(batch))
    return asdict(_within(np.concatenate(ranks))) | {
        "images_per_second": len(images) / engine_seconds,
        "images_per_second_with_decoding": len(images) / (perf_counter() - start),
    }


def label_ranks(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many classes come before the label's: logits [n, classes], labels [n] -> int64 [n]; ties go to the lower class."""
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    earlier = np.arange(logits.shape[1]) < labels[:, None]
    return ((logits > own) | ((logits == own) & earlier)).sum(axis=1)


def _within(rank: np.ndarray) -> Accuracy:
    return Accuracy(float((rank < 1).mean()), float((rank < 5).mean()), len(rank))
