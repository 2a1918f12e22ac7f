"""Accuracy of float and fake-quantised models and of integer programs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from eamsim import engine
from eamsim.arguments import described, expect_array
from eamsim.constraints import Verified
from eamsim.errors import UserError
from eamsim.program import Softmax
from reference.attention.freeze import FrozenMap
from reference.models.load import Model
from reference.quantisation.fakequant import predict
from reference.quantisation.repq import Calibrated


@dataclass(frozen=True)
class Accuracy:
    """Fractions of `images` whose label is the highest, or among the five highest, of the logits; ties go to the lowest index."""

    top1: float
    top5: float
    images: int


def accuracy(logits: np.ndarray, labels: np.ndarray) -> Accuracy:
    """Accuracy of logits [images, classes], float or integer, against integer labels [images] below `classes`. Raises UserError."""
    if not isinstance(logits, np.ndarray) or logits.ndim != 2 or not len(logits) or np.isnan(logits).any():
        raise UserError(f"logits: expected numbers [images, classes] of at least one image, got {described(logits)}")
    expect_array("labels", labels, "integer", (len(logits),), 0, logits.shape[1] - 1, "give the class of every image that was run")
    ranked = np.argsort(-logits, axis=1, kind="stable")[:, :5]
    hits = ranked == labels[:, None]
    return Accuracy(float(hits[:, 0].mean()), float(hits.any(axis=1).mean()), len(labels))


def evaluate(
    model: Model | Calibrated,
    batches: Iterable[np.ndarray],
    labels: np.ndarray,
    frozen: Sequence[FrozenMap] | None = None,
    softmax: Softmax = "paper",
) -> Accuracy:
    """Accuracy of `predict` over batches of uint8 images [batch, height, width, 3]."""
    return _accuracy([predict(model, images, frozen, softmax) for images in batches], labels)


def evaluate_program(program: Verified, batches: Iterable[np.ndarray], labels: np.ndarray, threads: int | None = None) -> Accuracy:
    """Accuracy of the integer engine over batches of uint8 images [batch, height, width, 3]; threads: as `engine.Engine`."""
    run = engine.Engine(program, threads).run
    return _accuracy([run(images) for images in batches], labels)


def _accuracy(logits: list[np.ndarray], labels: np.ndarray) -> Accuracy:
    return accuracy(np.concatenate(logits) if logits else np.empty((0, 0)), labels)
