"""The whole chain: float model -> RepQ-ViT -> entropy -> frozen maps -> integer program."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, assert_never

import numpy as np
from torch import Tensor, nn

from eamsim.errors import UserError
from eamsim.images import ImageSet, open_images
from eamsim.program import Program, Softmax
from reference.entropy import AttentionStatistics
from reference.fakequant import collect_attention
from reference.freeze import Freezing, FrozenMap, freeze
from reference.lower_vit import lower, provenance
from reference.models import Model, load_model
from reference.output_change import OutputChange
from reference.repq import Calibrated, Mode, calibrate

BATCH = 16

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""(what, total) -> a context that yields `advance(steps)`."""


def build_program(
    spec: str,
    calib: Sequence[Path],
    progress: Progress,
    freezing: Freezing,
    *,
    softmax: Softmax = "paper",
    weights: str | None = None,
    random_init: int | None = None,
    allow_pickle: bool = False,
    limit: int | None = None,
    range_images: int = 32,
    entropy_from: Literal["quantised", "float"] = "quantised",
) -> tuple[Program, dict[str, Any]]:
    """The integer program of a float model, its attention weights frozen as chosen, and its provenance.

    spec, weights, random_init, allow_pickle: as `reference.models.load_model`; calib: as
    `eamsim.images.open_images`, of which at most `limit` images give the entropies and `range_images` the quantisers' ranges.
    Raises UserError and BadFile.
    """
    model = load_model(spec, weights, random_init, allow_pickle)
    images = open_images(calib, model.preprocessing, limit)
    range_images = min(range_images, len(images))
    with progress("ranges", range_images) as advance:
        calibrated = calibrate_on(model, images, range_images)
        advance(range_images)
    source = model if entropy_from == "float" else calibrated
    change = OutputChange(source.vit) if freezing.order == "output" else None
    frozen = frozen_maps(attention_statistics(source, images, progress, change), freezing, change) if freezing.tau else None
    origin = asdict(freezing) | {
        "softmax": softmax,
        "entropy_from": entropy_from,
        "random_init": random_init,
        "model_sha256": parameters_sha256(model.module),
        "calibration_images": len(images),
        "calibration_sha256": images.sha256,
    }
    return lower(calibrated, frozen, softmax), provenance(calibrated) | origin


def calibrate_on(model: Model, images: ImageSet, range_images: int, mode: Mode = "hardware") -> Calibrated:
    """Quantisers from `range_images` of the images, evenly spaced."""
    return calibrate(model, np.concatenate(list(images.spread(range_images).batches(BATCH))), mode)


def attention_statistics(
    model: Model | Calibrated, images: ImageSet, progress: Progress, change: OutputChange | None = None
) -> AttentionStatistics:
    """Histograms and means of every attention weight of every block, over all images; `change`, if given, is fed in the same pass."""
    vit = model.vit
    tokens = len(vit.prefix) + len(vit.position)
    statistics = AttentionStatistics(range(len(vit.blocks)), (vit.heads, tokens, tokens), len(images))

    def consume(block: int, maps: Tensor, values: Tensor) -> None:
        statistics.add(block, maps.numpy())
        if change:
            change.add(block, maps, values)

    with progress("attention maps", len(images)) as advance:
        for batch in images.batches(BATCH):
            collect_attention(model, [batch], consume)
            advance(len(batch))
    return statistics


def frozen_maps(statistics: AttentionStatistics, freezing: Freezing, change: OutputChange | None = None) -> list[FrozenMap]:
    """The chosen attention weights, block by block (Eq. 15); `change` is what the order `output` needs."""
    blocks = statistics.counts
    scores = [_scores(block, statistics, freezing, change) for block in blocks]
    return freeze(scores, [statistics.mean(block) for block in blocks], freezing)


def _scores(block: int, statistics: AttentionStatistics, freezing: Freezing, change: OutputChange | None) -> np.ndarray:
    match freezing.order:
        case "entropy":
            return statistics.entropy(block)
        case "variance":
            return statistics.variance(block)
        case "random":
            return statistics.mean(block)  # for its shape
        case "output":
            if change is None:
                raise UserError("order: output needs the values too, got statistics of the maps alone; collect an OutputChange with them")
            whole_rows = freezing.granularity in ("row", "head")
            return change.rows(block, statistics.mean(block)) if whole_rows else change.weights(block, statistics.variance(block))
        case _:
            assert_never(freezing.order)


def parameters_sha256(module: nn.Module) -> str:
    """Digest of the names and values of all parameters, whatever file they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
