"""Post-training quantisation after RepQ-ViT (Li et al., ICCV 2023), as published and in a form that integers can hold."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from eamsim.arguments import expect_choice, expect_type
from eamsim.choice import least
from eamsim.progress import Advance, unheard
from reference.models.layers import Dense, Norm, after_gelu_of
from reference.models.load import Model
from reference.models.networks import Network
from reference.models.swin import Swin, Windows
from reference.quantisation.levels import Grid, fit_levels
from reference.quantisation.precision import W4A4, Precision
from reference.quantisation.quantisers import Affine, LogSqrt2, as_scale, search_affine, search_log

Mode = Literal["hardware", "published"]


@dataclass(frozen=True, eq=False)
class Calibrated:
    """A quantised model: the re-parametrised float network and all its quantisers.

    activations: per tensor, under the name of the quantised value (the networks' `__call__` lists them); weights: per output
    channel, under the name of the layer's output; attention: one per block; stream_max: the largest magnitude seen in each value
    that is not quantised to codes; stream_least: the typical magnitude, the median over the channels, of its smallest token.
    compensation: how weights and biases were re-fitted, JSON values for the provenance, or None.
    """

    model: Model
    mode: Mode
    network: Network
    activations: dict[str, Grid]
    weights: dict[str, Affine]
    attention: tuple[LogSqrt2, ...]
    stream_max: dict[str, float]
    stream_least: dict[str, float]
    images: int
    compensation: dict[str, Any] | None = None

    @cached_property
    def denses(self) -> dict[str, Dense]:
        """Every linear layer of the float network under the name of its output value."""
        return _denses(self.network)

    @cached_property
    def quantised(self) -> Network:
        """The network with quantised and dequantised weights; in `hardware` mode its biases are integers of the accumulator too."""
        network = _quantise_weights(self.network, self.weights)
        if self.mode == "published":
            return network
        biases = {name: self.bias_codes(name) * self.acc_scales(name) for name in self.denses}
        network = network.with_layers({name: replace(dense, bias=biases[name]) for name, dense in _denses(network).items()})
        if isinstance(network, Swin):
            scaled = [self.logit_bias_codes(i, each) * self.score_scale(i) for i, each in enumerate(network.windows)]
            windows = [replace(each, logit_bias=bias) for each, bias in zip(network.windows, scaled, strict=True)]
            network = replace(network, windows=tuple(windows))
        return network

    def acc_scales(self, name: str) -> Tensor:
        """Scale of a linear layer's accumulator: float64 [out_channels], exact, being products of scales."""
        return self.activations[self.network.sources[name]].scale * self.weights[name].scale.flatten()

    def bias_codes(self, name: str) -> Tensor:
        """A linear layer's bias in units of its accumulator: float64 integers [out_channels]."""
        return torch.round(self.denses[name].bias / self.acc_scales(name))

    def score_scale(self, block: int) -> float:
        """Scale of the products of a block's q and k codes, exact."""
        return self.activations[f"block{block}.attn.q"].scale.item() * self.activations[f"block{block}.attn.k"].scale.item()

    def logit_bias_codes(self, block: int, windows: Windows) -> Tensor:
        """The relative position bias in units of the block's scores: float64 integers [heads, tokens, tokens]."""
        return torch.round(windows.logit_bias / self.score_scale(block))


def calibrate(
    model: Model,
    images: np.ndarray,
    mode: Mode = "hardware",
    precision: Precision = W4A4,
    advance: Advance = unheard,
) -> Calibrated:
    """Find all quantisers on uint8 images [n, height, width, 3], all of which are held in memory at once.

    Ranges are collected in one forward pass whose weights and activations are already quantised, as in the published code;
    then LayerNorm outputs, quantised per channel, are re-parametrised to one scale and zero point (RepQ-ViT, Eq. 7-9), and
    the weights behind them are quantised anew. advance: as often as `calibration_steps` says.
    `published` keeps a fractional zero point and seventeen attention levels; `hardware` has neither. `published` codes are uniform.
    Raises UserError.
    """
    expect_type("model", model, Model)
    pixels = model.tensor(images)
    expect_choice("mode", mode, get_args(Mode))
    expect_type("precision", precision, Precision)
    precision.check(_coded(model.network), model.network.sources)
    ranges = _Ranges(model.network, mode, precision, advance)
    float_weights = _search_weights(model.network, precision, mode, advance)
    _quantise_weights(model.network, float_weights)(pixels, ranges.site, ranges.attend)
    network, activations = _reparametrise(model.network, ranges.activations, mode)
    weights = _search_weights(network, precision, mode, advance)
    return Calibrated(
        model, mode, network, activations, weights, tuple(ranges.attention), ranges.stream_max, ranges.stream_least, len(images)
    )


def calibration_steps(model: Model) -> int:
    """How far `calibrate` advances in all: by each block, and twice by each linear layer."""
    return len(model.network.blocks) + 2 * len(_denses(model.network))


class _Ranges:
    """Finds a quantiser for each value that linear layers and attention read, and passes it on quantised."""

    def __init__(self, network: Network, mode: Mode, precision: Precision, advance: Advance):
        self.advance = advance
        self.per_channel = set(_folds(network).values())
        self.coded = set(_coded(network))
        self.after_gelu = after_gelu_of(network.blocks)
        self.hardware = mode == "hardware"
        self.precision = precision
        self.fitted = precision.codes == "fitted" and self.hardware
        self.activations: dict[str, Grid] = {}
        self.attention: list[LogSqrt2] = []
        self.stream_max: dict[str, float] = {}
        self.stream_least: dict[str, float] = {}
        self.v = torch.empty(0)

    def site(self, name: str, x: Tensor) -> Tensor:
        if self.fitted and name in self.after_gelu:
            quantiser = fit_levels(x, self.precision.of_value(name))
        elif name in self.per_channel:
            quantiser = search_affine(x, self.precision.of_value(name), contain_zero=False, channel_axis=x.ndim - 1)
        elif name in self.coded:
            quantiser = search_affine(x, self.precision.of_value(name), contain_zero=self.hardware)
        else:
            self.stream_max[name] = x.abs().max().item()
            typical = x.abs().median(dim=-1).values
            self.stream_least[name] = typical[typical > 0].min().item() if typical.any() else 0.0
            return x
        self.activations[name] = quantiser
        quantised = quantiser(x)
        if name.endswith("attn.v"):
            self.v = quantised
        return quantised

    def attend(self, block: int, scores: Tensor) -> Tensor:
        maps, excluded, bits = scores.softmax(dim=-1), scores == -torch.inf, self.precision.activation_bits
        if self.hardware:
            weights = maps[~excluded]
            candidates = [search_log(weights, bits, last_code_is_zero) for last_code_is_zero in (False, True)]

            def error(candidate: LogSqrt2) -> float:
                return ((candidate(maps) - maps).masked_fill(excluded, 0) @ self.v).square().mean().item()

            quantiser = least(candidates, error, f"block{block}.attn")
        else:
            quantiser = search_log(maps, bits, last_code_is_zero=True, extra_zero=True)
        self.attention.append(quantiser)
        self.advance(1)
        return quantiser(maps)


def _coded(network: Network) -> list[str]:
    """The sites whose values become codes: those that linear layers read, q, k and v, and others of the network's own."""
    parts = [f"block{i}.attn.{part}" for i in range(len(network.blocks)) for part in "qkv"]
    return [*dict.fromkeys(network.sources.values()), *parts, *network.coded]


def _denses(network: Network) -> dict[str, Dense]:
    return {name: layer for name, layer in network.layers.items() if isinstance(layer, Dense)}


def _norms(network: Network) -> dict[str, Norm]:
    return {name: layer for name, layer in network.layers.items() if isinstance(layer, Norm)}


def _folds(network: Network) -> dict[str, str]:
    """Linear layer -> the norm that it alone reads and is re-parametrised with; the head is not, as published."""
    norms = _norms(network)
    return {dense: source for dense, source in network.sources.items() if source in norms and dense != "head"}


def _reparametrise(network: Network, activations: dict[str, Grid], mode: Mode) -> tuple[Network, dict[str, Grid]]:
    """Fold the per-channel quantisers of LayerNorm outputs into one per tensor: the norm's affine and the next weights absorb them."""
    denses, norms, activations = _denses(network), _norms(network), dict(activations)
    for dense, norm in _folds(network).items():
        per_channel = activations[norm]
        assert isinstance(per_channel, Affine)
        norms[norm], denses[dense], activations[norm] = _fold(norms[norm], denses[dense], per_channel, mode)
    return network.with_layers(denses | norms), activations


def _fold(norm: Norm, dense: Dense, per_channel: Affine, mode: Mode) -> tuple[Norm, Dense, Affine]:
    """RepQ-ViT, Eq. 7-9: x' = x / r - b, with r = scale / scale~ and b = min / r - min~, leaves the layer's output as it was."""
    scale, zero = per_channel.scale.flatten(), per_channel.zero.flatten()
    target = Affine(as_scale(scale.mean()), zero.mean(), per_channel.bits)
    if mode == "hardware":  # before b is computed: the identity holds for any target
        target = replace(target, zero=target.zero.round().clamp(0, (1 << target.bits) - 1))
    r = scale / target.scale
    b = -zero * scale / r + target.zero * target.scale
    weight = dense.weight * r
    return Norm(norm.gain / r, norm.bias / r - b, norm.eps), Dense(weight, dense.bias + weight @ b), target


def _search_weights(network: Network, precision: Precision, mode: Mode, advance: Advance) -> dict[str, Affine]:
    found = {}
    for name, dense in _denses(network).items():
        found[name] = search_affine(dense.weight, precision.of_weights(name), mode == "hardware", channel_axis=0)
        advance(1)
    return found


def _quantise_weights(network: Network, weights: dict[str, Affine]) -> Network:
    return network.with_layers({name: Dense(weights[name](dense.weight), dense.bias) for name, dense in _denses(network).items()})
