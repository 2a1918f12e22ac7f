"""Calibration and attention statistics over an image set: what building, sweeps and measurements share."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection, Sequence
from typing import assert_never

import numpy as np
from torch import Tensor, nn

from eamsim.arguments import expect_integer
from eamsim.errors import UserError
from eamsim.inputs.images import ImageSet
from eamsim.progress import Progress, silent
from reference.attention.entropy import AttentionStatistics, AttentionSummary, layer_bytes, layer_groups
from reference.attention.freeze import Freezing, FrozenMap, Order, freeze
from reference.attention.output_change import OutputChange
from reference.lowering.program import stream_remarks
from reference.models.load import Model
from reference.models.maps import Maps
from reference.models.networks import Network
from reference.models.swin import Swin
from reference.quantisation.compensate import BATCH as AT_ONCE
from reference.quantisation.compensate import compensate, most_images
from reference.quantisation.fakequant import collect_attention
from reference.quantisation.precision import W4A4, Precision
from reference.quantisation.repq import Calibrated, Mode, calibrate, calibration_steps

log = logging.getLogger(__name__)

BATCH = 16
STATISTICS_BYTES = 4 << 30
"""At most so much for histograms, as `eamsim entropy` has it; more layers take more passes over the images."""


def calibrate_on(
    model: Model,
    images: ImageSet,
    range_images: int,
    progress: Progress = silent,
    mode: Mode = "hardware",
    precision: Precision = W4A4,
) -> Calibrated:
    """Quantisers from `range_images` of the images, evenly spaced."""
    expect_integer("range_images", range_images, 1)
    pixels = np.concatenate(list(images.spread(range_images).batches(BATCH)))
    with progress("ranges", calibration_steps(model)) as advance:
        calibrated = calibrate(model, pixels, mode, precision, advance)
    for remark in stream_remarks(calibrated):
        log.warning("%s: %s", model.name, remark)
    return calibrated


def compensate_on(calibrated: Calibrated, images: ImageSet, progress: Progress = silent) -> Calibrated:
    """Compensated on as many of the images, evenly spaced, as memory is meant for."""
    chosen = images.spread(most_images(calibrated.network, next(images.batches(1))[0]))
    with progress("layers compensated", len(calibrated.denses)) as advance:
        return compensate(calibrated, chosen.batches(AT_ONCE), advance)


def quantise_on(
    model: Model,
    images: ImageSet,
    range_images: int,
    progress: Progress = silent,
    compensated: bool = True,
    precision: Precision = W4A4,
) -> Calibrated:
    """Calibrated, and compensated if it is to be: what builds, sweeps and notebooks begin with."""
    calibrated = calibrate_on(model, images, range_images, progress, precision=precision)
    return compensate_on(calibrated, images, progress) if compensated else calibrated


def attention_statistics(
    model: Model | Calibrated,
    images: ImageSet,
    progress: Progress,
    orders: Collection[Order] = (),
    maps: Sequence[Maps] | None = None,
) -> AttentionSummary:
    """Entropies and means of every attention weight of every block, over all images, and what freezing in these orders needs besides.

    maps: of every block, as `maps_of`; the network's own unless given.
    """
    maps = model.network.maps if maps is None else maps
    summary = AttentionSummary(dict(enumerate(maps)), OutputChange(model.network, maps) if "output" in orders else None)
    for group in layer_groups([layer_bytes(each.shape, each.per_image * len(images)) for each in maps], STATISTICS_BYTES):
        name = "attention maps" if len(group) == len(maps) else f"attention maps, layers {group[0]}-{group[-1]}"
        with progress(name, len(images)) as advance:
            summary.take(_counted(model, images, {layer: maps[layer] for layer in group}, advance, summary.change))
    return summary


def _counted(
    model: Model | Calibrated,
    images: ImageSet,
    maps: dict[int, Maps],
    advance: Callable[[int], None],
    change: OutputChange | None,
) -> AttentionStatistics:
    """The statistics of some layers."""
    network = model.network
    statistics = AttentionStatistics(maps, len(images))

    def consume(block: int, found: Tensor, values: Tensor) -> None:
        if block not in maps:
            return
        if maps[block].shared and isinstance(network, Swin):
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


def frozen_maps(statistics: AttentionSummary, freezing: Freezing) -> list[FrozenMap]:
    """The chosen attention weights, block by block (Eq. 15)."""
    return freeze(scores(statistics, freezing), means(statistics), freezing)


def scores(statistics: AttentionSummary, freezing: Freezing) -> list[np.ndarray]:
    """What `freeze` looks for the lowest of, block by block: it depends on the order and the granularity alone.

    An excluded pair's is infinite: its weight is 0 anyway, and to freeze it would only swell the share.
    """
    found = []
    for block, maps in statistics.maps.items():
        score = _block_scores(block, statistics, freezing)
        found.append(score if maps.excluded is None else np.where(maps.excluded, np.inf, score))
    return found


def means(statistics: AttentionSummary) -> list[np.ndarray]:
    """The mean map of every block."""
    return list(statistics.mean.values())


def _block_scores(block: int, statistics: AttentionSummary, freezing: Freezing) -> np.ndarray:
    match freezing.order:
        case "entropy":
            return statistics.entropy[block]
        case "variance":
            return statistics.variance[block]
        case "random":
            return statistics.mean[block]  # for its shape
        case "output":
            if (change := statistics.change) is None:
                raise UserError("order: output needs the values too, got statistics of the maps alone; measure them for this order")
            whole_rows = freezing.granularity in ("row", "head")
            return change.rows(block, statistics.mean[block]) if whole_rows else change.weights(block, statistics.variance[block])
        case "kl":
            raise UserError("order: kl needs answers end to end, which `eamsim build` alone measures; take output here")
        case _:
            assert_never(freezing.order)


def parameters_sha256(module: nn.Module) -> str:
    """Digest of the names and values of all parameters, whatever file they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
