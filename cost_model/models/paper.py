"""Eq. 6-9 of the paper, and what they become when a share tau of every attention map is frozen.

The paper writes FLOPs for what are multiply-accumulates: every number here is in MACs, exact, for one image.
"""

from __future__ import annotations

from dataclasses import replace

from cost_model.models.architectures import Architecture, BlockShape, SwinArchitecture
from cost_model.work.counts import Cost, Macs
from cost_model.work.memory import packed_bytes
from eamsim.datapath import CODE_BITS, DEFAULT, PIXEL_BITS
from eamsim.program import Softmax

FROZEN_BITS = 4  # EAM_4bits


def estimate(model: Architecture | SwinArchitecture, tau: float, softmax: Softmax) -> Cost:
    """The cost of `model` if each map froze round(tau * its pairs) scattered weights: an estimate, exact wherever the masks do that.

    A map is a head's, or a head's in one window; excluded pairs are not frozen. `paper`: no score is saved, as the denominator of the
    softmax runs over all of them. `renormalised`: frozen scores (tau N^2 d) are not computed, and a wholly frozen head (tau = 1)
    needs no q and no k. A.V costs N^2 d in both.
    """
    outer = sum((Macs(**{each.layer: each.tokens * each.in_channels * each.out_channels}) for each in model.projections), Macs())
    weights = [packed_bytes(each.in_channels * each.out_channels, model.weight_bits) for each in model.projections]
    layers = [layer_cost(layer, tau, softmax, model.weight_bits) for layer in model.layers]
    rest = Cost(outer, outer, sum(weights), activation_bytes=activation_bytes(model))
    return sum(layers, rest)


def layer_cost(layer: BlockShape, tau: float, softmax: Softmax, weight_bits: int) -> Cost:
    """One Transformer layer of an estimate, without its activations."""
    n, d = layer.tokens, layer.width
    frozen = sum(round(tau * live) for live in layer.live)
    if frozen == sum(layer.live):
        frozen = layer.pairs  # excluded pairs too: nothing of the head is left
    saved = frozen if softmax == "renormalised" else 0
    qkv_channels = d if saved == layer.pairs else 3 * d
    macs = Macs(
        qkv=n * d * qkv_channels,
        scores=(layer.pairs - saved) * d,
        attention_value=layer.pairs * d,
        proj=n * d**2,
        fc1=4 * n * d**2,
        fc2=4 * n * d**2,
    )
    return Cost(
        macs,
        dense=replace(macs, qkv=3 * n * d**2, scores=layer.pairs * d),
        weight_bytes=sum(packed_bytes(size, weight_bits) for size in (d * qkv_channels, d**2, 4 * d**2, 4 * d**2)),
        mask_bytes=packed_bytes(layer.heads * layer.pairs, 1) if frozen else 0,
        code_bytes=packed_bytes(layer.heads * frozen, FROZEN_BITS),
    )


def activation_bytes(model: Architecture | SwinArchitecture) -> int:
    """The largest of the peaks: the image beside its codes, and in each layer fc2 between two residual streams."""
    peaks = [2 * packed_bytes(3 * model.image**2, PIXEL_BITS)]
    for layer in model.layers:
        residual = packed_bytes(layer.tokens * layer.width, DEFAULT.residual_bits)
        peaks.append(residual + packed_bytes(4 * layer.tokens * layer.width, CODE_BITS) + residual)
    return max(peaks)
