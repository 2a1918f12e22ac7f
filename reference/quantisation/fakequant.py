"""Float and fake-quantised forward passes, with or without frozen attention maps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from eamsim.arguments import expect_choice, expect_length, expect_type
from eamsim.program import Softmax
from reference.attention.freeze import FrozenMap, expect_frozen
from reference.models.layers import Attend, Site, keep
from reference.models.load import Model
from reference.models.networks import Network
from reference.quantisation.quantisers import LogSqrt2
from reference.quantisation.repq import Calibrated

MAX_FROZEN_MASS = 1 - 2.0**-10  # a row that is not wholly frozen keeps some mass, and its logarithm stays finite


def predict(
    model: Model | Calibrated,
    images: np.ndarray,
    frozen: Sequence[FrozenMap] | None = None,
    softmax: Softmax = "paper",
    see: Site = keep,
) -> np.ndarray:
    """Logits float64 [batch, classes] of uint8 images [batch, height, width, 3].

    frozen: one map per block, whose values are used as they are (`quantise_frozen` puts them on the attention grid).
    softmax: `paper` is Eq. 15 to the letter; `renormalised` takes the softmax over the unfrozen pairs alone and scales it by
    what the frozen ones leave of 1.
    see: called with every value as its quantiser leaves it, and as `block3.attn.codes` with the attention weights, frozen ones
    among them; the network goes on with what it returns. Raises UserError.
    """
    network, site, quantise = _parts(model)
    expect_choice("softmax", softmax, get_args(Softmax))
    maps = [] if frozen is None else frozen_weights(frozen, network)

    def attend(block: int, scores: Tensor) -> Tensor:
        return see(f"block{block}.attn.codes", weigh(block, scores))

    def weigh(block: int, scores: Tensor) -> Tensor:
        if not maps:
            return quantise(block, scores.softmax(dim=-1))
        return maps[block].among(scores, lambda weights: quantise(block, weights), softmax)

    return network(_tensor(model, images), lambda name, x: see(name, site(name, x)), attend).numpy()


def collect_maps(model: Model | Calibrated, batches: Iterable[np.ndarray], consume: Callable[[int, np.ndarray], None]) -> None:
    """Call `consume(block, maps)` for every block of every batch of uint8 images [batch, height, width, 3].

    maps: the softmax of Eq. 11, float64 [batch, *Maps.shape], in a quantised model before it is put on the attention
    grid (the entropy of section 4.3 is that of the quantised network's maps, not of their sixteen codes).
    """
    collect_attention(model, batches, lambda block, maps, values: consume(block, maps.numpy()))


def collect_attention(model: Model | Calibrated, batches: Iterable[np.ndarray], consume: Callable[[int, Tensor, Tensor], None]) -> None:
    """As `collect_maps`, but `consume(block, maps, values)` sees what the maps are multiplied with too.

    values: V of Eq. 1 as the network uses it, float64 [batch, maps, tokens, head_dim].
    """
    network, site, quantise = _parts(model)
    values = torch.empty(0)

    def keep_values(name: str, x: Tensor) -> Tensor:
        nonlocal values
        x = site(name, x)
        if name.endswith("attn.v"):
            values = x
        return x

    def attend(block: int, scores: Tensor) -> Tensor:
        maps = scores.softmax(dim=-1)
        consume(block, maps, values)
        return quantise(block, maps)

    for images in batches:
        network(_tensor(model, images), keep_values, attend)


def quantise_frozen(calibrated: Calibrated, frozen: Sequence[FrozenMap]) -> list[FrozenMap]:
    """The maps with every mean on the attention grid of its block: what an integer program stores. Raises UserError."""
    expect_type("calibrated", calibrated, Calibrated)
    expect_length("frozen", frozen, len(calibrated.attention))
    return [on_grid(layer, grid) for layer, grid in zip(frozen, calibrated.attention, strict=True)]


def on_grid(frozen: FrozenMap, grid: LogSqrt2) -> FrozenMap:
    """One block's map with every mean replaced by its nearest value on the grid."""
    return FrozenMap(frozen.mask, grid(torch.from_numpy(frozen.mean)).numpy())


def frozen_mass(frozen: FrozenMap) -> np.ndarray:
    """F: the sum of each row's frozen values, at most MAX_FROZEN_MASS; float64 [maps, tokens]."""
    return np.where(frozen.mask, frozen.mean, 0).sum(axis=2).clip(max=MAX_FROZEN_MASS)


class FrozenWeights:
    """A block's frozen maps as tensors [maps, tokens, tokens], repeated for every window where windows share them."""

    def __init__(self, frozen: FrozenMap, maps: int, dtype: torch.dtype = torch.float64):
        remaining = (1 - frozen_mass(frozen))[:, :, None]
        mask, values, remaining = (torch.tensor(each).repeat(maps // len(each), 1, 1) for each in (frozen.mask, frozen.mean, remaining))
        self.mask, self.values, self.remaining = mask, values.to(dtype), remaining.to(dtype)

    def among(self, scores: Tensor, quantise: Callable[[Tensor], Tensor], softmax: Softmax) -> Tensor:
        """The attention weights of `scores` [batch, maps, tokens, tokens], quantised where they are not frozen."""
        if softmax == "paper":
            return torch.where(self.mask, self.values, quantise(scores.softmax(dim=-1)))
        scores = scores.masked_fill(self.mask, -torch.inf)
        nothing_left = (scores == -torch.inf).all(dim=-1, keepdim=True)  # of a row: its softmax would be, and pass back, NaN
        weights = scores.masked_fill(nothing_left, 0).softmax(dim=-1) * self.remaining
        return torch.where(self.mask, self.values, quantise(weights))


def frozen_weights(frozen: Sequence[FrozenMap], network: Network, dtype: torch.dtype = torch.float64) -> list[FrozenWeights]:
    """One per block, for the maps that the network has; UserError for others."""
    expect_length("frozen", frozen, len(network.blocks))
    for number, (layer, maps, block) in enumerate(zip(frozen, network.maps, network.blocks, strict=True)):
        expect_frozen(number, layer, maps.shape, block.heads)
    return [FrozenWeights(layer, each.shape[0], dtype) for layer, each in zip(frozen, network.maps, strict=True)]


def _tensor(model: Model | Calibrated, images: np.ndarray) -> Tensor:
    return (model if isinstance(model, Model) else model.model).tensor(images)


def _parts(model: Model | Calibrated) -> tuple[Network, Site, Attend]:
    """The network, what stands at its sites, and what is done to its attention weights; UserError for what is no model."""
    expect_type("model", model, Model, Calibrated)
    if isinstance(model, Model):
        return model.network, keep, lambda block, maps: maps

    def site(name: str, x: Tensor) -> Tensor:
        return model.activations[name](x) if name in model.activations else x

    return model.quantised, site, lambda block, maps: model.attention[block](maps)
