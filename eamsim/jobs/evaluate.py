"""Accuracy of float and fake-quantised models and of integer programs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from eamsim import engine
from eamsim.constraints import Verified
from eamsim.jobs.measure import Accuracy, accuracy
from eamsim.program import Softmax
from reference.attention.freeze import FrozenMap
from reference.models.load import Model
from reference.quantisation.fakequant import predict
from reference.quantisation.repq import Calibrated


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
