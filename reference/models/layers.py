"""The layers that ViT and Swin have in common, as plain parameters, so that quantisers and frozen maps go in without hooks."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

Site = Callable[[str, Tensor], Tensor]
"""Sees the value of a name (docs/spec/datapath.md names them) and returns what the network continues with."""

Attend = Callable[[int, Tensor], Tensor]
"""(block, scores [batch, maps, tokens, tokens]) -> attention weights, same shape; the score of an excluded pair is -inf."""

BLOCK_LAYERS = {"norm1": "norm1", "qkv": "attn.qkv", "proj": "attn.proj", "norm2": "norm2", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
"""Field of a Block -> name of the layer in its block, which is that of its output value."""

BLOCK_SOURCES = {"attn.qkv": "norm1", "attn.proj": "attn", "mlp.fc1": "norm2", "mlp.fc2": "mlp.fc1"}
"""Linear layer of a block -> the site whose value it reads."""


def keep(name: str, x: Tensor) -> Tensor:
    """The site that changes nothing."""
    return x


def softmax(block: int, scores: Tensor) -> Tensor:
    """Attention weights of Eq. 2."""
    return scores.softmax(dim=-1)


@dataclass(frozen=True, eq=False)
class Dense:
    """A linear layer: weight float64 [out_channels, in_channels], bias float64 [out_channels]."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


@dataclass(frozen=True, eq=False)
class Norm:
    """LayerNorm over the last axis: gain and bias float64 [channels]."""

    gain: Tensor
    bias: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.gain.shape, self.gain, self.bias, self.eps)


Layer = Dense | Norm


class Request(NamedTuple):
    """What a network asks for while it runs: the linear layer `name` applied to x, which is then added to `stream`, if there is one."""

    name: str
    x: Tensor
    stream: Tensor | None = None


Steps = Generator[Request, Tensor, Tensor]
"""A network on a batch, which stops at every linear layer and goes on with the layer's output that it is sent."""


def run(steps: Steps, layers: Mapping[str, Layer]) -> Tensor:
    """What a network returns when its own layers answer."""
    request = next(steps)
    while True:
        try:
            request = steps.send(layers[request.name](request.x))
        except StopIteration as done:
            return done.value


@dataclass(frozen=True, eq=False)
class Block:
    """One pre-norm Transformer layer (paper, Eq. 1-5)."""

    heads: int
    norm1: Norm
    qkv: Dense
    proj: Dense
    norm2: Norm
    fc1: Dense
    fc2: Dense

    def steps(self, name: str, x: Tensor, site: Site, context: Callable[[Tensor], Steps]) -> Steps:
        """x + MSA(LN(x)), then x + MLP(LN(x)), on x [batch, tokens, channels]; context: LN(x) -> the heads' A V side by side."""
        mixed = site(f"{name}.attn", (yield from context(site(f"{name}.norm1", self.norm1(x)))))
        x = site(f"{name}.attn.proj", x + (yield Request(f"{name}.attn.proj", mixed, x)))
        hidden = site(f"{name}.mlp.fc1", F.gelu((yield Request(f"{name}.mlp.fc1", site(f"{name}.norm2", self.norm2(x))))))
        return site(f"{name}.mlp.fc2", x + (yield Request(f"{name}.mlp.fc2", hidden, x)))


@dataclass(frozen=True, eq=False)
class Pixels:
    """How an image becomes patches, squares of patch_size pixels a side; mean, std [3] normalise pixels in [0, 1]."""

    patch_size: int
    mean: Tensor
    std: Tensor

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 pixels [..., 3], or [..., 1] for all three channels, as the network takes them: float64 [..., 3]."""
        return (pixels.double() / 255 - self.mean) / self.std

    def patches(self, images: Tensor) -> Tensor:
        """Normalised pixels [batch, patches, patch_size * patch_size * 3], each patch in the order (row, column, channel).

        Pixels to the right and below that fill no patch are left out, as a convolution leaves them out.
        """
        batch, p = len(images), self.patch_size
        down, across = images.shape[1] // p, images.shape[2] // p
        pixels = self.normalise(images[:, : down * p, : across * p])
        return pixels.reshape(batch, down, p, across, p, 3).transpose(2, 3).reshape(batch, -1, p * p * 3)


def layers_of(blocks: Sequence[Block]) -> dict[str, Layer]:
    """Every layer of the blocks under its name, such as `block3.attn.qkv`."""
    return {f"block{i}.{name}": getattr(block, field) for i, block in enumerate(blocks) for field, name in BLOCK_LAYERS.items()}


def with_layers_of(blocks: Sequence[Block], layers: Mapping[str, Layer]) -> tuple[Block, ...]:
    """The blocks with their layers from `layers`, named as in `layers_of`."""
    return tuple(
        replace(block, **{field: layers[f"block{i}.{name}"] for field, name in BLOCK_LAYERS.items()}) for i, block in enumerate(blocks)
    )


def sources_of(blocks: Sequence[Block]) -> dict[str, str]:
    """The site whose value each linear layer of the blocks reads."""
    return {f"block{i}.{name}": f"block{i}.{source}" for i in range(len(blocks)) for name, source in BLOCK_SOURCES.items()}


def after_gelu_of(blocks: Sequence[Block]) -> set[str]:
    """The sites whose values GELU has made."""
    return {f"block{i}.mlp.fc1" for i in range(len(blocks))}


def residuals_of(blocks: Sequence[Block], entries: Mapping[int, str]) -> dict[str, str]:
    """The value of the residual stream that each sum of the blocks is made with; entries: what a block reads if not the one before it."""
    found, last = {}, ""
    for i in range(len(blocks)):
        middle, out = f"block{i}.attn.proj", f"block{i}.mlp.fc2"
        found |= {middle: entries.get(i, last), out: middle}
        last = out
    return found
