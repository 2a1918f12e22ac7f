"""The float ViT as one short function over plain parameters, so that quantisers and frozen maps go in without hooks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

Site = Callable[[str, Tensor], Tensor]
"""Sees the value of a name (docs/datapath.md names them) and returns what the network continues with."""

Attend = Callable[[int, Tensor], Tensor]
"""(block, scores [batch, heads, tokens, tokens]) -> attention weights, same shape."""


@dataclass(frozen=True, eq=False)
class Dense:
    """A linear layer: weight float32 [out_channels, in_channels], bias float32 [out_channels]."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


@dataclass(frozen=True, eq=False)
class Norm:
    """LayerNorm over the last axis: gain and bias float32 [channels]."""

    gain: Tensor
    bias: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.gain.shape, self.gain, self.bias, self.eps)


@dataclass(frozen=True, eq=False)
class Block:
    """One pre-norm Transformer layer (paper, Eq. 1-5)."""

    norm1: Norm
    qkv: Dense
    proj: Dense
    norm2: Norm
    fc1: Dense
    fc2: Dense


@dataclass(frozen=True, eq=False)
class Vit:
    """All parameters of a plain ViT.

    patch_embed takes pixels in the order (row, column, channel) of a patch; prefix [1, channels] is the class token with its
    position, position [patches, channels] that of the patches; mean, std [3] normalise pixels in [0, 1].
    """

    patch_size: int
    heads: int
    mean: Tensor
    std: Tensor
    patch_embed: Dense
    prefix: Tensor
    position: Tensor
    blocks: tuple[Block, ...]
    norm: Norm
    head: Dense

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 pixels [..., 3], or [..., 1] for all three channels, as the network takes them: float32 [..., 3]."""
        return (pixels.float() / 255 - self.mean) / self.std

    @property
    def denses(self) -> dict[str, Dense]:
        """Every linear layer under the name of its output value."""
        named = {"patch_embed": self.patch_embed}
        for i, block in enumerate(self.blocks):
            named |= {
                f"block{i}.attn.qkv": block.qkv,
                f"block{i}.attn.proj": block.proj,
                f"block{i}.mlp.fc1": block.fc1,
                f"block{i}.mlp.fc2": block.fc2,
            }
        return named | {"head": self.head}

    @property
    def sources(self) -> dict[str, str]:
        """The site whose value each linear layer reads."""
        named = {"patch_embed": "input"}
        for i in range(len(self.blocks)):
            named |= {
                f"block{i}.attn.qkv": f"block{i}.norm1",
                f"block{i}.attn.proj": f"block{i}.attn",
                f"block{i}.mlp.fc1": f"block{i}.norm2",
                f"block{i}.mlp.fc2": f"block{i}.mlp.fc1",
            }
        return named | {"head": "norm"}

    def with_denses(self, denses: dict[str, Dense]) -> Vit:
        """The same network with other linear layers, named as in `denses`."""
        blocks = tuple(
            replace(
                block,
                qkv=denses[f"block{i}.attn.qkv"],
                proj=denses[f"block{i}.attn.proj"],
                fc1=denses[f"block{i}.mlp.fc1"],
                fc2=denses[f"block{i}.mlp.fc2"],
            )
            for i, block in enumerate(self.blocks)
        )
        return replace(self, patch_embed=denses["patch_embed"], blocks=blocks, head=denses["head"])


def keep(name: str, x: Tensor) -> Tensor:
    """The site that changes nothing."""
    return x


def softmax(block: int, scores: Tensor) -> Tensor:
    """Attention weights of Eq. 2."""
    return scores.softmax(dim=-1)


@torch.inference_mode()
def forward(vit: Vit, images: Tensor, site: Site = keep, attend: Attend = softmax) -> Tensor:
    """Logits float32 [batch, classes] of uint8 images [batch, height, width, 3].

    `site` is called with every value a quantiser may stand at, and with the residual stream, in the order of execution:
    input, patch_embed, embed, then per block norm1, attn.q, attn.k, attn.v, attn, attn.proj, norm2, mlp.fc1, mlp.fc2, then norm.
    """
    x = site("patch_embed", vit.patch_embed(site("input", _patches(vit, images))))
    x = site("embed", torch.cat([vit.prefix.expand(len(x), 1, -1), x + vit.position], dim=1))
    for i, block in enumerate(vit.blocks):
        x = site(f"block{i}.attn.proj", x + block.proj(site(f"block{i}.attn", _context(vit, i, x, site, attend))))
        hidden = F.gelu(block.fc1(site(f"block{i}.norm2", block.norm2(x))))
        x = site(f"block{i}.mlp.fc2", x + block.fc2(site(f"block{i}.mlp.fc1", hidden)))
    return vit.head(site("norm", vit.norm(x[:, 0])))


def _patches(vit: Vit, images: Tensor) -> Tensor:
    """Normalised pixels [batch, patches, patch_size * patch_size * 3], each patch in the order (row, column, channel)."""
    batch, height, width, _ = images.shape
    p = vit.patch_size
    return vit.normalise(images).reshape(batch, height // p, p, width // p, p, 3).transpose(2, 3).reshape(batch, -1, p * p * 3)


def _context(vit: Vit, i: int, x: Tensor, site: Site, attend: Attend) -> Tensor:
    """The heads' outputs A V side by side (Eq. 1-3): [batch, tokens, channels]."""
    batch, tokens, channels = x.shape
    block, head_dim = vit.blocks[i], channels // vit.heads
    qkv = block.qkv(site(f"block{i}.norm1", block.norm1(x))).reshape(batch, tokens, 3, vit.heads, head_dim)
    q, k, v = (site(f"block{i}.attn.{part}", value) for part, value in zip("qkv", qkv.permute(2, 0, 3, 1, 4), strict=True))
    context = attend(i, q @ k.transpose(2, 3) * head_dim**-0.5) @ v
    return context.transpose(1, 2).reshape(batch, tokens, channels)
