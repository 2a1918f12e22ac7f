"""Where the error of a quantised network is born: the noise of each kind of quantiser alone, the others off."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from eamsim.progress import Advance
from reference.crosscheck.rebuild import Rebuilt
from reference.models.swin import Swin
from reference.quantisation.fakequant import predict


@dataclass(frozen=True)
class NoiseSource:
    """Quantisers that belong together: sites (activations, attention maps), linear layers, a Swin's position biases, frozen maps."""

    name: str
    sites: frozenset[str] = frozenset()
    layers: frozenset[str] = frozenset()
    positions: bool = False
    frozen: bool = False


def sources_of(rebuilt: Rebuilt) -> list[NoiseSource]:
    """Each kind of site and of constant over all blocks, the frozen maps, then all activations and all constants but those maps."""
    sites = [*rebuilt.fake.activations, *(f"block{i}.attn.codes" for i in range(len(rebuilt.fake.attention)))]
    layers = list(rebuilt.fake.weights)
    found = [NoiseSource(f"activations {kind}", sites=names) for kind, names in _by_kind(sites).items()]
    found += [NoiseSource(f"weights {kind}", layers=names) for kind, names in _by_kind(layers).items()]
    swin = isinstance(rebuilt.model.network, Swin)
    if swin:
        found.append(NoiseSource("position biases", positions=True))
    if rebuilt.frozen is not None:
        found.append(NoiseSource("frozen maps", frozen=True))
    all_weights = NoiseSource("all weights", layers=frozenset(layers), positions=swin)
    return [*found, NoiseSource("all activations", sites=frozenset(sites)), all_weights]


def _by_kind(names: Iterable[str]) -> dict[str, frozenset[str]]:
    kinds: dict[str, set[str]] = {}
    for name in names:
        block, _, kind = name.partition(".")
        kinds.setdefault(kind if block.startswith("block") else name, set()).add(name)
    return {kind: frozenset(members) for kind, members in kinds.items()}


def noise_shares(rebuilt: Rebuilt, sources: Sequence[NoiseSource], batches: Iterable[np.ndarray], advance: Advance) -> list[dict[str, Any]]:
    """A row {source, share} for each: the squared change of the logits, as a share of the float network's squared logits.

    Both without the mean over each image's classes, which decides nothing. batches: uint8 [batch, height, width, 3]; advance: called
    with each batch's images for each source.
    """
    noise, signal = dict.fromkeys((source.name for source in sources), 0.0), 0.0
    for images in batches:
        own = rebuilt.float_logits(images)
        signal += _energy(own)
        for source in sources:
            noise[source.name] += _energy(logits_with(rebuilt, source, images) - own)
            advance(len(images))
    return [{"source": name, "share": each / signal if signal else None} for name, each in noise.items()]


def _energy(logits: np.ndarray) -> float:
    return float(np.square(logits - logits.mean(axis=1, keepdims=True)).sum())


def logits_with(rebuilt: Rebuilt, source: NoiseSource, images: np.ndarray) -> np.ndarray:
    """Logits float64 [batch, classes] of the float network with the quantisers of one source."""
    fake = rebuilt.fake
    grids = fake.activations | {f"block{i}.attn.codes": grid for i, grid in enumerate(fake.attention)}

    def see(name: str, x: Tensor) -> Tensor:
        return grids[name](x) if name in source.sites else x

    network, quantised = rebuilt.model.network.with_layers({name: fake.quantised.layers[name] for name in source.layers}), fake.quantised
    if source.positions and isinstance(network, Swin) and isinstance(quantised, Swin):
        network = replace(network, windows=quantised.windows)
    frozen = rebuilt.frozen if source.frozen else None
    return predict(replace(rebuilt.model, network=network), images, frozen, rebuilt.softmax, see)
