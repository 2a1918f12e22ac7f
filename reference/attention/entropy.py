"""Entropy, mean and variance of every attention weight over images: the paper's Eq. 11-13, from exact 256-bin histograms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from eamsim.arguments import expect_array, expect_integer, expect_type
from eamsim.compiled.compiler import kept, njit, prange
from eamsim.errors import UserError
from reference.models.maps import Maps

if TYPE_CHECKING:
    from reference.attention.output_change import OutputChange

BINS = 256
"""2^b of Eq. 12 with the paper's b = 8."""

BLOCK_WEIGHTS = 64
"""Attention weights that are counted together: the lines of their counters in use stay in the first-level cache."""


class AttentionStatistics:
    """Histogram, sum and sum of squares of the attention weights of some layers, fed with their maps batch by batch.

    maps: the layers to hold, any subset of the model's, so that several passes can share the memory (`layer_bytes`);
    images: the most that any layer will be given. Raises UserError.
    """

    def __init__(self, maps: Mapping[int, Maps], images: int):
        expect_type("maps", maps, Mapping)
        for each in maps.values():
            expect_type("maps", each, Maps)
        expect_integer("images", images, 1)
        self.maps = dict(maps)
        self.capacity = {layer: each.per_image * images for layer, each in maps.items()}
        self.counts = {layer: np.zeros((*each.shape, BINS), counter(self.capacity[layer])) for layer, each in maps.items()}
        self.sums = {layer: np.zeros(each.shape, np.float64) for layer, each in maps.items()}
        self.squares = {layer: np.zeros(each.shape, np.float64) for layer, each in maps.items()}
        self.seen = dict.fromkeys(maps, 0)

    @property
    def images(self) -> int:
        """Images every held layer has been given; the least, while a batch is on its way through the layers."""
        return min(seen // self.maps[layer].per_image for layer, seen in self.seen.items())

    def add(self, layer: int, maps: np.ndarray) -> None:
        """Count one batch of a layer's attention maps: softmax values in [0, 1], float64 [batch, maps, tokens, tokens] (Eq. 11).

        A layer this object does not hold is passed over; where windows share maps, the batch is one of windows. Raises UserError for
        maps of another shape, for more images than announced, and for values outside [0, 1] or NaN (the layer's statistics are then
        unusable).
        """
        if layer not in self.counts:
            return
        expect_array(f"layer {layer} attention maps", maps, "float64", ("batch", *self.maps[layer].shape))
        self.seen[layer] += len(maps)
        if self.seen[layer] > self.capacity[layer]:
            found, expected = self.seen[layer], self.capacity[layer]
            raise UserError(f"layer {layer} attention maps: {found} images, expected at most {expected}; announce them all")
        valid = _count(
            np.ascontiguousarray(maps).reshape(len(maps), -1),
            self.counts[layer].reshape(-1, BINS),
            self.sums[layer].reshape(-1),
            self.squares[layer].reshape(-1),
        )
        if not valid:
            raise UserError(f"layer {layer} attention maps: must lie in [0, 1], got a value outside or NaN; check the model's weights")

    def entropy(self, layer: int) -> np.ndarray:
        """H = -sum_k p(k) log2 p(k) of every attention weight in bits (Eq. 13): float32 [maps, tokens, tokens], in [0, 8].

        Raises UserError if the layer has been given no image.
        """
        images = self.images_of(layer)
        out = np.empty(self.maps[layer].shape, np.float32)
        _entropy(self.counts[layer].reshape(-1, BINS), images, out.reshape(-1))
        return out

    def mean(self, layer: int) -> np.ndarray:
        """A^mu, the mean of every attention weight (Eq. 15): float32 [maps, tokens, tokens], in [0, 1], summed in float64.

        Raises UserError if the layer has been given no image.
        """
        images = self.images_of(layer)
        return (self.sums[layer] / images).astype(np.float32)

    def variance(self, layer: int) -> np.ndarray:
        """Population variance of every attention weight: float32 [maps, tokens, tokens], in [0, 1/4], from sums in float64.

        Raises UserError if the layer has been given no image.
        """
        images = self.images_of(layer)
        variance = self.squares[layer] / images - (self.sums[layer] / images) ** 2
        return variance.clip(min=0).astype(np.float32)  # a constant weight's may round to less than 0

    def images_of(self, layer: int) -> int:
        """Images (or windows, where they share maps) a layer has been given; UserError if none, and for a layer that is not held."""
        if layer not in self.seen:
            raise UserError(f"layer: expected one of those held, {', '.join(map(str, self.maps))}, got {layer!r}")
        if not self.seen[layer]:
            raise UserError(f"layer {layer} attention maps: must be of at least one image, got none; the calibration data are empty")
        return self.seen[layer]


@dataclass(frozen=True)
class AttentionSummary:
    """What the freezing reads of the statistics, by layer, each float32 [maps, tokens, tokens] as `AttentionStatistics` has it.

    maps: what was measured; change: what the order `output` needs besides, if it was measured; samples: images (or windows, where they
    share maps) each layer was given.
    """

    maps: dict[int, Maps]
    change: OutputChange | None = None
    samples: dict[int, int] = field(default_factory=dict)
    entropy: dict[int, np.ndarray] = field(default_factory=dict)
    mean: dict[int, np.ndarray] = field(default_factory=dict)
    variance: dict[int, np.ndarray] = field(default_factory=dict)

    def take(self, statistics: AttentionStatistics) -> None:
        """The layers that these statistics hold, whose counters are needed no more."""
        for layer in statistics.maps:
            self.samples[layer] = statistics.images_of(layer)
            self.entropy[layer] = statistics.entropy(layer)
            self.mean[layer] = statistics.mean(layer)
            self.variance[layer] = statistics.variance(layer)


def layer_groups(needed: Sequence[int], memory_bytes: int) -> list[range]:
    """The layers, which need so many bytes each, in groups that take at most `memory_bytes`, or are of one layer that takes more."""
    groups = [range(0)]
    for layer in range(len(needed)):
        group = range(groups[-1].start, layer + 1)
        if len(group) == 1 or sum(needed[each] for each in group) <= memory_bytes:
            groups[-1] = group
        else:
            groups.append(range(layer, layer + 1))
    return groups


def counter(images: int) -> type[np.uint16 | np.uint32]:
    """The narrowest counter type that so many images cannot overflow."""
    return np.uint16 if images < 1 << 16 else np.uint32


def layer_bytes(shape: tuple[int, int, int], images: int) -> int:
    """Memory that AttentionStatistics takes per layer: 528 bytes an attention weight, 1040 for 65,536 images or more."""
    return math.prod(shape) * (BINS * np.dtype(counter(images)).itemsize + 2 * np.dtype(np.float64).itemsize)


# CPU time per DeiT-T image at batch 16 / 32 / 64: blocks of 64 weights 3.1 / 2.8 / 2.6 ms; rejected: weight by weight 3.2 / 3.9 / 5.5,
# blocks of 32 6.4 / 6.5 / 6.1, of 128 3.9 / 3.4 / 3.3, all bins of a block before any is counted 3.0 / 3.1 / 2.9 and more memory.
@kept(__file__)
@njit(parallel=True)
def _count(maps, counts, sums, squares):
    """Add maps [batch, weights] to counts [weights, 256], sums and squares [weights]; False if a value is outside [0, 1] or NaN.

    Scaling by 256 is exact, so the bin of [k / 256, (k + 1) / 256) is its integer part; 1.0 joins bin 255 (Eq. 12).
    The first inner loop is vectorised, the second is not; neighbours' counters do not wait for each other's stores.
    """
    outside = 0
    images, weights = maps.shape
    for number in prange((weights + BLOCK_WEIGHTS - 1) // BLOCK_WEIGHTS):
        block = slice(number * BLOCK_WEIGHTS, min((number + 1) * BLOCK_WEIGHTS, weights))
        block_counts, block_sums, block_squares = counts[block], sums[block], squares[block]
        bins = np.empty(len(block_sums), np.uint8)
        for image in range(images):
            values = maps[image, block]
            for weight in range(len(values)):
                value = values[weight]
                outside += not ((value >= 0) & (value <= 1))
                scaled = min(value * BINS, BINS - 1.0)
                bins[weight] = np.uint8(np.int32(scaled if scaled > 0 else 0.0))  # NaN too is given a bin
                block_sums[weight] += value
                block_squares[weight] += value * value
            for weight in range(len(values)):
                block_counts[weight, bins[weight]] += 1
    return outside == 0


@kept(__file__)
@njit(parallel=True)
def _entropy(counts, images, out):
    """Eq. 13 of counts [weights, 256] as out [weights]; an empty bin adds nothing."""
    for weight in prange(len(counts)):
        total = 0.0
        for k in range(BINS):
            if counts[weight, k] > 0:
                p = counts[weight, k] / images
                total -= p * np.log2(p)
        out[weight] = total
