"""Post-training quantisation after RepQ-ViT (Li et al., ICCV 2023), as published and in a form that integers can hold."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from reference.models import Model
from reference.quantisers import Affine, LogSqrt2, search_affine, search_log
from reference.vit import Dense, Norm, Vit, forward

Mode = Literal["hardware", "published"]
INPUT_BITS = 8


@dataclass(frozen=True, eq=False)
class Calibrated:
    """A quantised model: the re-parametrised float network and all its quantisers.

    activations: per tensor, under the name of the quantised value (reference/vit.py); weights: per output channel, under the
    name of the layer's output; attention: one per block; stream_max: the largest magnitude seen in each residual value.
    """

    model: Model
    mode: Mode
    vit: Vit
    activations: dict[str, Affine]
    weights: dict[str, Affine]
    attention: tuple[LogSqrt2, ...]
    stream_max: dict[str, float]
    images: int

    @cached_property
    def quantised(self) -> Vit:
        """The network with quantised and dequantised weights; in `hardware` mode its biases are integers of the accumulator too."""
        vit = _quantise_weights(self.vit, self.weights)
        if self.mode == "published":
            return vit
        biases = {name: (self.bias_codes(name) * self.acc_scales(name)).float() for name in vit.denses}
        return vit.with_denses({name: replace(dense, bias=biases[name]) for name, dense in vit.denses.items()})

    def acc_scales(self, name: str) -> Tensor:
        """Scale of a linear layer's accumulator: float64 [out_channels], exact, being the product of two float32."""
        return self.activations[self.vit.sources[name]].scale.double() * self.weights[name].scale.flatten().double()

    def bias_codes(self, name: str) -> Tensor:
        """A linear layer's bias in units of its accumulator: float64 integers [out_channels]."""
        return torch.round(self.vit.denses[name].bias.double() / self.acc_scales(name))


def calibrate(model: Model, images: np.ndarray, mode: Mode = "hardware", weight_bits: int = 4, activation_bits: int = 4) -> Calibrated:
    """Find all quantisers on uint8 images [n, height, width, 3], all of which are held in memory at once.

    Ranges are collected in one forward pass whose weights and activations are already quantised, as in the published code;
    then LayerNorm outputs, quantised per channel, are re-parametrised to one scale and zero point (RepQ-ViT, Eq. 7-9), and
    the weights behind them are quantised anew. Attention and patches: `activation_bits` and INPUT_BITS.
    `published` keeps a fractional zero point and seventeen attention levels; `hardware` has neither.
    """
    ranges = _Ranges(mode, activation_bits)
    float_weights = _search_weights(model.vit, weight_bits, mode)
    forward(_quantise_weights(model.vit, float_weights), torch.from_numpy(images), ranges.site, ranges.attend)
    vit, activations = _reparametrise(model.vit, ranges.activations, mode)
    weights = _search_weights(vit, weight_bits, mode)
    return Calibrated(model, mode, vit, activations, weights, tuple(ranges.attention), ranges.stream_max, len(images))


class _Ranges:
    """Finds a quantiser for each value that passes, and passes it on quantised."""

    def __init__(self, mode: Mode, bits: int):
        self.hardware = mode == "hardware"
        self.bits = bits
        self.activations: dict[str, Affine] = {}
        self.attention: list[LogSqrt2] = []
        self.stream_max: dict[str, float] = {}
        self.v = torch.empty(0)

    def site(self, name: str, x: Tensor) -> Tensor:
        if name.endswith(("embed", "proj", "fc2")):
            self.stream_max[name] = x.abs().max().item()
            return x
        if name.endswith(("norm1", "norm2")):
            quantiser = search_affine(x, self.bits, contain_zero=False, channel_axis=x.ndim - 1)
        else:
            quantiser = search_affine(x, INPUT_BITS if name == "input" else self.bits, contain_zero=self.hardware)
        self.activations[name] = quantiser
        quantised = quantiser(x)
        if name.endswith("attn.v"):
            self.v = quantised
        return quantised

    def attend(self, block: int, scores: Tensor) -> Tensor:
        maps = scores.softmax(dim=-1)
        if self.hardware:
            candidates = [search_log(maps, self.bits, last_code_is_zero) for last_code_is_zero in (False, True)]
            quantiser = min(candidates, key=lambda candidate: ((candidate(maps) - maps) @ self.v).square().mean().item())
        else:
            quantiser = search_log(maps, self.bits, last_code_is_zero=True, extra_zero=True)
        self.attention.append(quantiser)
        return quantiser(maps)


def _reparametrise(vit: Vit, activations: dict[str, Affine], mode: Mode) -> tuple[Vit, dict[str, Affine]]:
    """Fold the per-channel quantisers of LayerNorm outputs into one per tensor: the norm's affine and the next weights absorb them."""
    activations, blocks = dict(activations), []
    for i, block in enumerate(vit.blocks):
        norm1, qkv, activations[f"block{i}.norm1"] = _fold(block.norm1, block.qkv, activations[f"block{i}.norm1"], mode)
        norm2, fc1, activations[f"block{i}.norm2"] = _fold(block.norm2, block.fc1, activations[f"block{i}.norm2"], mode)
        blocks.append(replace(block, norm1=norm1, qkv=qkv, norm2=norm2, fc1=fc1))
    return replace(vit, blocks=tuple(blocks)), activations


def _fold(norm: Norm, dense: Dense, per_channel: Affine, mode: Mode) -> tuple[Norm, Dense, Affine]:
    """RepQ-ViT, Eq. 7-9: x' = x / r - b, with r = scale / scale~ and b = min / r - min~, leaves the layer's output as it was."""
    scale, zero = per_channel.scale.flatten(), per_channel.zero.flatten()
    target = Affine(scale.mean(), zero.mean(), per_channel.bits)
    if mode == "hardware":  # before b is computed: the identity holds for any target
        target = replace(target, zero=target.zero.round().clamp(0, (1 << target.bits) - 1))
    r = scale / target.scale
    b = -zero * scale / r + target.zero * target.scale
    weight = dense.weight * r
    return Norm(norm.gain / r, norm.bias / r - b, norm.eps), Dense(weight, dense.bias + weight @ b), target


def _search_weights(vit: Vit, bits: int, mode: Mode) -> dict[str, Affine]:
    return {name: search_affine(dense.weight, bits, mode == "hardware", channel_axis=0) for name, dense in vit.denses.items()}


def _quantise_weights(vit: Vit, weights: dict[str, Affine]) -> Vit:
    return vit.with_denses({name: Dense(weights[name](dense.weight), dense.bias) for name, dense in vit.denses.items()})
