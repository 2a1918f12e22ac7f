"""How far quantisation moves the distribution of every attention weight: the paper's Eq. 14, from the histograms of Eq. 12."""

from __future__ import annotations

import numpy as np

from eamsim.arguments import expect_type
from eamsim.compiled.compiler import kept, njit, prange
from eamsim.errors import UserError
from reference.attention.entropy import BINS, AttentionStatistics

SMOOTHING = 1 / BINS
"""Count added to every bin of the quantised distribution: one image in all, spread evenly over the bins."""


def divergence(reference: AttentionStatistics, quantised: AttentionStatistics, layer: int) -> np.ndarray:
    """D_KL(p || q) = sum_k p(k) log2(p(k) / q(k)) of every attention weight in bits (Eq. 14): float32 [maps, tokens, tokens], >= 0.

    p is the reference's histogram as it is: an empty bin adds 0. q is (count + 1/256) / (images + 1), so that a bin that only the
    quantised model leaves empty costs log2(256 (images + 1)) bits at most, not infinity; equal histograms diverge by at most
    log2(1 + 1/images). Raises UserError if either layer has been given no image, and for layers of two shapes.
    """
    for statistics in (reference, quantised):
        expect_type("statistics", statistics, AttentionStatistics)
    images = [statistics.images_of(layer) for statistics in (reference, quantised)]
    shape = reference.maps[layer].shape
    if quantised.maps[layer].shape != shape:
        raise UserError(f"layer {layer}: expected maps of one shape, got {list(shape)} and {list(quantised.maps[layer].shape)}")
    out = np.empty(shape, np.float32)
    p_counts, q_counts = (statistics.counts[layer].reshape(-1, BINS) for statistics in (reference, quantised))
    _divergence(p_counts, images[0], q_counts, images[1], out.reshape(-1))
    return out


@kept(__file__)
@njit(parallel=True)
def _divergence(p_counts, p_images, q_counts, q_images, out):
    """Eq. 14 of two histograms [weights, 256] as out [weights]."""
    for weight in prange(len(out)):
        total = 0.0
        for k in range(BINS):
            if p_counts[weight, k] > 0:
                p = p_counts[weight, k] / p_images
                total += p * np.log2(p * (q_images + 1) / (q_counts[weight, k] + SMOOTHING))
        out[weight] = max(total, 0.0)  # the sum may round to less
