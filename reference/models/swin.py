"""The float Swin Transformer (Liu et al., ICCV 2021) as one short function over plain parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from reference.models.layers import (
    Attend,
    Block,
    Dense,
    Layer,
    Norm,
    Pixels,
    Request,
    Site,
    Steps,
    keep,
    layers_of,
    residuals_of,
    run,
    softmax,
    sources_of,
    with_layers_of,
)
from reference.models.maps import Maps

Extent = tuple[int, int]
"""(rows, columns)."""


@dataclass(frozen=True, eq=False)
class Windows:
    """How a map of tokens is cut into windows, each of which attends to itself alone.

    order: int64 [windows, tokens], the token of the map (row by row) at each place of each window, cyclic shift included;
    logit_bias: float64 [heads, tokens, tokens], the relative position bias, added to the scores of every window; excluded: bool
    [windows, tokens, tokens], the pairs of tokens that are neighbours through the shift alone, or None without shift.
    """

    order: Tensor
    logit_bias: Tensor
    excluded: Tensor | None

    @property
    def whole(self) -> Tensor:
        """The numbers of the windows in which no pair is excluded."""
        if self.excluded is None:
            return torch.arange(len(self.order))
        return (~self.excluded.any(dim=2).any(dim=1)).nonzero().flatten()


@dataclass(frozen=True, eq=False)
class Merging:
    """Four neighbouring tokens become one of twice the channels; order: int64 [tokens, 4], the neighbours as they are joined."""

    order: Tensor
    norm: Norm
    reduction: Dense


@dataclass(frozen=True, eq=False)
class Swin:
    """All parameters of a Swin Transformer; windows: of every block; mergings: by the number of the block they stand before."""

    pixels: Pixels
    patch_embed: Dense
    embed: Norm
    blocks: tuple[Block, ...]
    windows: tuple[Windows, ...]
    mergings: Mapping[int, Merging]
    norm: Norm
    head: Dense
    read: ClassVar[slice] = slice(None)  # the tokens that the classifier reads
    mean: ClassVar[str] = "after norm"  # of which it reads the mean, as a Vit may
    coded: ClassVar[tuple[str, ...]] = ()  # sites whose values are codes that neither linear layers nor attention read

    @property
    def maps(self) -> tuple[Maps, ...]:
        """The attention maps of every block: one for each head of each window."""
        found = []
        for block, windows in zip(self.blocks, self.windows, strict=True):
            count, tokens = windows.order.shape
            excluded = None if windows.excluded is None else windows.excluded.repeat_interleave(block.heads, dim=0).numpy()
            found.append(Maps((count * block.heads, tokens, tokens), excluded=excluded))
        return tuple(found)

    @property
    def shared_maps(self) -> tuple[Maps, ...]:
        """As `maps`, but one for each head: of all windows in which no pair is excluded, as `share` makes them."""
        found = []
        for block, windows in zip(self.blocks, self.windows, strict=True):
            tokens = windows.order.shape[1]
            found.append(Maps((block.heads, tokens, tokens), per_image=len(windows.whole), shared=True))
        return tuple(found)

    def share(self, i: int, x: Tensor) -> Tensor:
        """Maps or values of block i, [batch, windows * heads, ...], as a batch of windows: [batch * whole windows, heads, ...]."""
        return x.unflatten(1, (-1, self.blocks[i].heads))[:, self.windows[i].whole].flatten(0, 1)

    @property
    def layers(self) -> dict[str, Layer]:
        """Every layer under the name of its output value."""
        outer = {"patch_embed": self.patch_embed, "embed": self.embed, "norm": self.norm, "head": self.head}
        merging = {f"block{i}.merge.{name}": getattr(each, name) for i, each in self.mergings.items() for name in ("norm", "reduction")}
        return outer | layers_of(self.blocks) | merging

    @property
    def sources(self) -> dict[str, str]:
        """The site whose value each linear layer reads."""
        merging = {f"block{i}.merge.reduction": f"block{i}.merge.norm" for i in self.mergings}
        return {"patch_embed": "input", "head": "pool"} | sources_of(self.blocks) | merging

    @property
    def residuals(self) -> dict[str, str]:
        """The value of the residual stream that each of its sums is made with."""
        return residuals_of(self.blocks, {0: "embed"} | {i: f"block{i}.merge.reduction" for i in self.mergings})

    @property
    def moved(self) -> dict[str, str]:
        """The value of the residual stream that each value that a program has besides is a part of: the neighbours that are reduced."""
        return {f"block{i}.merge": f"block{i - 1}.mlp.fc2" for i in self.mergings}

    def with_layers(self, changed: Mapping[str, Layer]) -> Swin:
        """The same network with other layers under the names in `changed`."""
        layers = self.layers | dict(changed)
        mergings = {
            i: replace(each, norm=layers[f"block{i}.merge.norm"], reduction=layers[f"block{i}.merge.reduction"])
            for i, each in self.mergings.items()
        }
        outer = {name: layers[name] for name in ("patch_embed", "embed", "norm", "head")}
        return replace(self, blocks=with_layers_of(self.blocks, layers), mergings=mergings, **outer)

    @torch.inference_mode()
    def __call__(self, images: Tensor, site: Site = keep, attend: Attend = softmax) -> Tensor:
        """Logits float64 [batch, classes] of uint8 images [batch, height, width, 3].

        `site` is called with every value a quantiser may stand at, and with the residual stream, in the order of execution: input,
        patch_embed, embed, then per block merge.norm and merge.reduction where the map shrinks, norm1, attn.q (scaled already),
        attn.k, attn.v, attn, attn.proj, norm2, mlp.fc1, mlp.fc2, then norm and pool.
        """
        return run(self.steps(images, site, attend), self.layers)

    def steps(self, images: Tensor, site: Site, attend: Attend) -> Steps:
        """`__call__` with a stop at every linear layer."""
        patches = yield Request("patch_embed", site("input", self.pixels.patches(images)))
        x = site("embed", self.embed(site("patch_embed", patches)))
        for i, block in enumerate(self.blocks):
            if i in self.mergings:
                x = yield from self._merge(i, x, site)
            x = yield from block.steps(f"block{i}", x, site, lambda normalised, i=i: self._context(i, normalised, site, attend))
        return (yield Request("head", site("pool", site("norm", self.norm(x)).mean(dim=1))))

    def _merge(self, i: int, x: Tensor, site: Site) -> Steps:
        merging = self.mergings[i]
        normalised = site(f"block{i}.merge.norm", merging.norm(x[:, merging.order].flatten(2)))
        return site(f"block{i}.merge.reduction", (yield Request(f"block{i}.merge.reduction", normalised)))

    def _context(self, i: int, x: Tensor, site: Site, attend: Attend) -> Steps:
        """The heads' outputs A V side by side, every window by itself: [batch, tokens, channels]."""
        heads, windows = self.blocks[i].heads, self.windows[i]
        qkv = yield Request(f"block{i}.attn.qkv", x[:, windows.order])
        qkv = qkv.unflatten(3, (3, heads, -1)).permute(3, 0, 1, 4, 2, 5).flatten(2, 3)
        scaled = (qkv[0] * qkv.shape[-1] ** -0.5, qkv[1], qkv[2])  # q before its quantiser, as RepQ-ViT publishes it
        q, k, v = (site(f"block{i}.attn.{part}", value) for part, value in zip("qkv", scaled, strict=True))
        scores = q @ k.transpose(2, 3) + windows.logit_bias.repeat(len(windows.order), 1, 1)
        if windows.excluded is None:
            weights = attend(i, scores)
        else:
            excluded = windows.excluded.repeat_interleave(heads, dim=0)
            weights = attend(i, scores.masked_fill(excluded, -torch.inf)).masked_fill(excluded, 0)
        context = (weights @ v).unflatten(1, (-1, heads)).transpose(2, 3).reshape(x.shape)
        return context[:, windows.order.flatten().argsort()]


def window_order(size: Extent, window: Extent, shift: Extent) -> Tensor:
    """`Windows.order` of a map of `size` tokens, rolled up and left by `shift` and cut into windows, row by row."""
    tokens = torch.arange(size[0] * size[1]).reshape(size).roll((-shift[0], -shift[1]), dims=(0, 1))
    down, across = size[0] // window[0], size[1] // window[1]
    return tokens.reshape(down, window[0], across, window[1]).transpose(1, 2).reshape(down * across, -1)


def excluded_pairs(size: Extent, window: Extent, shift: Extent) -> Tensor | None:
    """`Windows.excluded`: the pairs of which the roll has brought one token, not both, round an edge; None without shift."""
    if not any(shift):
        return None
    order = window_order(size, window, shift)
    wrapped = torch.stack([order // size[1] < shift[0], order % size[1] < shift[1]])
    return (wrapped[:, :, :, None] != wrapped[:, :, None, :]).any(dim=0)


def merging_order(size: Extent) -> Tensor:
    """`Merging.order` of a map of `size` tokens, both even: of every square its left column, then its right one."""
    tokens = torch.arange(size[0] * size[1]).reshape(size[0] // 2, 2, size[1] // 2, 2)
    return tokens.permute(0, 2, 3, 1).reshape(-1, 4)
