"""Accuracy and speed of the engine on labelled images."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from eamsim.inputs.images import ImageSet
from eamsim.progress import Advance

if TYPE_CHECKING:
    from eamsim.engine import Engine


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
    rank = np.concatenate(ranks)
    return {
        "top1": float((rank < 1).mean()),
        "top5": float((rank < 5).mean()),
        "images": len(images),
        "images_per_second": len(images) / engine_seconds,
        "images_per_second_with_decoding": len(images) / (perf_counter() - start),
    }


def label_ranks(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many classes come before the label's: logits [n, classes], labels [n] -> int64 [n]; ties go to the lower class."""
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    earlier = np.arange(logits.shape[1]) < labels[:, None]
    return ((logits > own) | ((logits == own) & earlier)).sum(axis=1)
