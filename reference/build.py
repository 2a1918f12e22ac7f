"""The whole chain: float model -> RepQ-ViT -> entropy -> frozen maps -> integer program."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, assert_never

import numpy as np
from torch import Tensor, nn

from eamsim.errors import UserError
from eamsim.images import ImageSet, open_images
from eamsim.labels import Labelling
from eamsim.program import Softmax
from eamsim.progress import Progress, silent
from eamsim.verify import Verified
from reference.budget import Budget, make_rungs
from reference.budget_search import Bench, build_within, logit_scale
from reference.compensate import SETTINGS, compensate, most_images
from reference.entropy import AttentionStatistics, Summary, layer_bytes, layer_groups
from reference.fakequant import collect_attention
from reference.freeze import Freezing, FrozenMap, freeze
from reference.lower import lower, provenance, stream_remarks
from reference.maps import Maps
from reference.models import Model, load_model
from reference.networks import Network
from reference.output_change import OutputChange
from reference.repq import Calibrated, Mode, calibrate, calibration_steps
from reference.swin import Swin

log = logging.getLogger(__name__)

BATCH = 16
STATISTICS_BYTES = 4 << 30
"""At most so much for histograms, as `eamsim entropy` has it; more layers take more passes over the images."""


def build_program(
    spec: str,
    calib: Sequence[Path],
    progress: Progress,
    freezing: Freezing | Budget,
    *,
    softmax: Softmax = "paper",
    weights: str | None = None,
    random_init: int | None = None,
    allow_pickle: bool = False,
    limit: int | None = None,
    range_images: int = 32,
    entropy_from: Literal["quantised", "float"] = "quantised",
    share_windows: bool = False,
    compensated: bool = False,
    labels: str | None = None,
) -> tuple[Verified, dict[str, Any]]:
    """The integer program of a float model, its attention weights frozen as chosen or as a budget allows, and its provenance.

    spec, weights, random_init, allow_pickle: as `reference.models.load_model`; calib: as
    `eamsim.images.open_images`, of which at most `limit` images give the entropies and `range_images` the quantisers' ranges;
    share_windows: of a Swin, one map for all windows of a block instead of one for each; compensated: with weights and biases re-fitted
    by `reference.compensate`; labels: as `Labelling.choice`, for a budget. Raises UserError and BadFile.
    """
    model = load_model(spec, weights, random_init, allow_pickle)
    if isinstance(freezing, Budget):
        freezing.check(sum(block.heads for block in model.network.blocks))
    maps = maps_of(model.network, share_windows)
    judging = labelling(model, labels, required=False) if isinstance(freezing, Budget) else None  # else labels decide nothing
    images = open_images(calib, model.preprocessing, limit, judging)
    range_images = min(range_images, len(images))
    calibrated = calibrate_on(model, images, range_images, progress)
    compensation = None
    if compensated:
        calibrated, compensation = compensate_on(calibrated, images, progress)
    source = model if entropy_from == "float" else calibrated
    if isinstance(freezing, Budget):
        judged = open_images(freezing.validation, model.preprocessing, None, labelling(model, labels)) if freezing.validation else images
        program, choice = _within(freezing, calibrated, source, images, judged, progress, share_windows)
    else:
        change = OutputChange(source.network, maps) if freezing.order == "output" else None
        statistics = attention_statistics(source, images, progress, change, share_windows) if freezing.tau else None
        frozen = frozen_maps(statistics, freezing, change) if statistics else None
        program, choice = lower(calibrated, frozen, softmax), asdict(freezing) | {"softmax": softmax}
    origin = choice | {
        "entropy_from": entropy_from,
        "share_windows": share_windows,
        "compensation": compensation,
        "random_init": random_init,
        "model_sha256": parameters_sha256(model.module),
        "calibration_images": len(images),
        "calibration_sha256": images.sha256,
        "data": images.summary.json(),
    }
    return program, provenance(calibrated) | origin


def _within(
    budget: Budget,
    calibrated: Calibrated,
    source: Model | Calibrated,
    images: ImageSet,
    judged: ImageSet,
    progress: Progress,
    share_windows: bool,
) -> tuple[Verified, dict[str, Any]]:
    """The program that the search finds, and how it was found; the order is `output`."""
    change = OutputChange(source.network, maps_of(source.network, share_windows))
    statistics = attention_statistics(source, images, progress, change, share_windows)
    units = [Freezing(0, granularity, "model", "output") for granularity in budget.granularities]
    heads = [block.heads for block in source.network.blocks]
    rungs = make_rungs({each.granularity: scores(statistics, each, change) for each in units}, heads)
    dense = lower(calibrated, softmax="renormalised")
    bench = Bench(dense, calibrated.attention, means(statistics), logit_scale(calibrated, dense), rungs, budget.macs)
    program, found = build_within(bench, budget, images, judged, progress)
    judges = {"images": len(judged), "sha256": judged.sha256, "labelled": judged.labels is not None, "data": judged.summary.json()}
    settings = {name: getattr(budget, name) for name in ("keep_accuracy", "save_macs", "granularities", "evaluations")}
    return program, {"softmax": "renormalised", "order": "output", "budget": settings | {"judged": judges} | found}


def labelling(model: Model, choice: str | None = None, required: bool = True) -> Labelling:
    """How data's classes are found among the model's."""
    return Labelling(model.module.num_classes, model.label_names, model.label_descriptions, choice, required)


def calibrate_on(model: Model, images: ImageSet, range_images: int, progress: Progress = silent, mode: Mode = "hardware") -> Calibrated:
    """Quantisers from `range_images` of the images, evenly spaced."""
    pixels = np.concatenate(list(images.spread(range_images).batches(BATCH)))
    with progress("ranges", calibration_steps(model)) as advance:
        calibrated = calibrate(model, pixels, mode, advance=advance)
    for remark in stream_remarks(calibrated):
        log.warning("%s: %s", model.name, remark)
    return calibrated


def compensate_on(calibrated: Calibrated, images: ImageSet, progress: Progress) -> tuple[Calibrated, dict[str, Any]]:
    """Compensated on as many of the images, evenly spaced, as memory is meant for; and how, for the provenance."""
    chosen = images.spread(most_images(calibrated.network, next(images.batches(1))[0]))
    with progress("layers compensated", len(calibrated.denses)) as advance:
        found = compensate(calibrated, chosen.batches(BATCH), advance)
    return found, {"images": len(chosen), **SETTINGS}


def attention_statistics(
    model: Model | Calibrated,
    images: ImageSet,
    progress: Progress,
    change: OutputChange | None = None,
    share_windows: bool = False,
) -> Summary:
    """Entropies and means of every attention weight of every block, over all images; `change`, if given, is fed in the same passes."""
    maps = maps_of(model.network, share_windows)
    summary = Summary(dict(enumerate(maps)))
    for group in layer_groups([layer_bytes(each.shape, each.per_image * len(images)) for each in maps], STATISTICS_BYTES):
        name = "attention maps" if len(group) == len(maps) else f"attention maps, layers {group[0]}-{group[-1]}"
        with progress(name, len(images)) as advance:
            summary.take(_counted(model, images, {layer: maps[layer] for layer in group}, advance, change, share_windows))
    return summary


def _counted(
    model: Model | Calibrated,
    images: ImageSet,
    maps: dict[int, Maps],
    advance: Callable[[int], None],
    change: OutputChange | None,
    share_windows: bool,
) -> AttentionStatistics:
    """The statistics of some layers."""
    network = model.network
    statistics = AttentionStatistics(maps, len(images))

    def consume(block: int, found: Tensor, values: Tensor) -> None:
        if block not in maps:
            return
        if share_windows and isinstance(network, Swin):
            found, values = network.share(block, found), network.share(block, values)
        statistics.add(block, found.numpy())
        if change:
            change.add(block, found, values)

    for batch in images.batches(BATCH):
        collect_attention(model, [batch], consume)
        advance(len(batch))
    return statistics


def maps_of(network: Network, share_windows: bool) -> tuple[Maps, ...]:
    """The maps that are measured and frozen; UserError for windows shared where there are none."""
    if not share_windows:
        return network.maps
    if not isinstance(network, Swin):
        raise UserError("--share-windows: expected a Swin, got a model without windows; leave it out")
    return network.shared_maps


def frozen_maps(statistics: Summary, freezing: Freezing, change: OutputChange | None = None) -> list[FrozenMap]:
    """The chosen attention weights, block by block (Eq. 15); `change` is what the order `output` needs."""
    return freeze(scores(statistics, freezing, change), means(statistics), freezing)


def scores(statistics: Summary, freezing: Freezing, change: OutputChange | None = None) -> list[np.ndarray]:
    """What `freeze` looks for the lowest of, block by block: it depends on the order and the granularity alone.

    An excluded pair's is infinite: its weight is 0 anyway, and to freeze it would only swell the share.
    """
    found = []
    for block, maps in statistics.maps.items():
        score = _block_scores(block, statistics, freezing, change)
        found.append(score if maps.excluded is None else np.where(maps.excluded, np.inf, score))
    return found


def means(statistics: Summary) -> list[np.ndarray]:
    """The mean map of every block."""
    return list(statistics.mean.values())


def _block_scores(block: int, statistics: Summary, freezing: Freezing, change: OutputChange | None) -> np.ndarray:
    match freezing.order:
        case "entropy":
            return statistics.entropy[block]
        case "variance":
            return statistics.variance[block]
        case "random":
            return statistics.mean[block]  # for its shape
        case "output":
            if change is None:
                raise UserError("order: output needs the values too, got statistics of the maps alone; collect an OutputChange with them")
            whole_rows = freezing.granularity in ("row", "head")
            return change.rows(block, statistics.mean[block]) if whole_rows else change.weights(block, statistics.variance[block])
        case _:
            assert_never(freezing.order)


def parameters_sha256(module: nn.Module) -> str:
    """Digest of the names and values of all parameters, whatever file they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
