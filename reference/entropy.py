"""Entropy and mean of every attention weight over images: the paper's Eq. 11-13, from exact 256-bin histograms."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numba import njit, prange

from eamsim.errors import UserError

BINS = 256
"""2^b of Eq. 12 with the paper's b = 8."""


class AttentionStatistics:
    """Histogram and mean of the attention weights of some layers, fed with their maps batch by batch.

    layers: the layers to hold, any subset of the model's, so that several passes can share the memory (512 bytes per attention
    weight, 1024 once `images` is 65,536 or more); shape: (heads, tokens, tokens); images: the most that any layer will be given.
    """

    def __init__(self, layers: Iterable[int], shape: tuple[int, int, int], images: int):
        counter = np.uint16 if images < 1 << 16 else np.uint32
        self.shape = shape
        self.capacity = images
        self.counts = {layer: np.zeros((*shape, BINS), counter) for layer in layers}
        self.sums = {layer: np.zeros(shape, np.float64) for layer in self.counts}
        self.seen = dict.fromkeys(self.counts, 0)

    @property
    def images(self) -> int:
        """Images every held layer has been given; the least, while a batch is on its way through the layers."""
        return min(self.seen.values())

    def add(self, layer: int, maps: np.ndarray) -> None:
        """Count one batch of a layer's attention maps: softmax values in [0, 1], float32 [batch, heads, tokens, tokens] (Eq. 11).

        A layer this object does not hold is passed over. Raises UserError for maps of another shape, for more images than
        announced, and for values outside [0, 1] or NaN (the layer's statistics are then unusable).
        """
        if layer not in self.counts:
            return
        if maps.dtype != np.float32 or maps.ndim != 4 or maps.shape[1:] != self.shape:
            raise UserError(f"layer {layer} attention maps: must be float32 {('batch', *self.shape)}, got {maps.dtype} {maps.shape}")
        self.seen[layer] += len(maps)
        if self.seen[layer] > self.capacity:
            raise UserError(f"layer {layer} attention maps: {self.seen[layer]} images, expected at most {self.capacity}; announce them all")
        valid = _count(
            np.ascontiguousarray(maps).reshape(len(maps), -1), self.counts[layer].reshape(-1, BINS), self.sums[layer].reshape(-1)
        )
        if not valid:
            raise UserError(f"layer {layer} attention maps: must lie in [0, 1], got a value outside or NaN; check the model's weights")

    def entropy(self, layer: int) -> np.ndarray:
        """H = -sum_k p(k) log2 p(k) of every attention weight in bits (Eq. 13): float32 [heads, tokens, tokens], in [0, 8].

        Raises UserError if the layer has been given no image.
        """
        out = np.empty(self.shape, np.float32)
        _entropy(self.counts[layer].reshape(-1, BINS), self._seen(layer), out.reshape(-1))
        return out

    def mean(self, layer: int) -> np.ndarray:
        """A^mu, the mean of every attention weight (Eq. 15): float32 [heads, tokens, tokens], in [0, 1], summed in float64.

        Raises UserError if the layer has been given no image.
        """
        return (self.sums[layer] / self._seen(layer)).astype(np.float32)

    def _seen(self, layer: int) -> int:
        if not self.seen[layer]:
            raise UserError(f"layer {layer} attention maps: must be of at least one image, got none; the calibration data are empty")
        return self.seen[layer]


@njit(parallel=True, cache=True)
def _count(maps, counts, sums):
    """Add maps [batch, weights] to counts [weights, 256] and sums [weights]; False if a value is outside [0, 1] or NaN.

    Scaling by 256 is exact in float32, so the bin of [k / 256, (k + 1) / 256) is its integer part; 1.0 joins bin 255 (Eq. 12).
    The sum stays in a register: added to memory image by image it waits for its own store.
    """
    outside = 0
    for weight in prange(maps.shape[1]):
        total = sums[weight]
        for image in range(maps.shape[0]):
            value = maps[image, weight]
            if value >= 0 and value <= 1:
                counts[weight, min(np.uint32(value * np.float32(BINS)), np.uint32(BINS - 1))] += 1
                total += value
            else:
                outside += 1
        sums[weight] = total
    return outside == 0


@njit(parallel=True, cache=True)
def _entropy(counts, images, out):
    """Eq. 13 of counts [weights, 256] as out [weights]; an empty bin adds nothing."""
    for weight in prange(len(counts)):
        total = 0.0
        for k in range(BINS):
            if counts[weight, k] > 0:
                p = counts[weight, k] / images
                total -= p * np.log2(p)
        out[weight] = total
