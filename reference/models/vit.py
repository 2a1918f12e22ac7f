"""The float ViT as one short function over plain parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, assert_never

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

Mean = Literal["none", "before norm", "after norm"]
"""How the classifier reads tokens: each normalised, one after the other; the mean of them, normalised; the mean of the normalised."""


@dataclass(frozen=True, eq=False)
class Vit:
    """All parameters of a ViT.

    patch_embed takes pixels in the order (row, column, channel) of a patch; prefix [tokens, channels] are the class token and its like
    with their positions, position [patches, channels] that of the patches; norm_pre: of all of them before the blocks, if there is
    one; read: the tokens that the classifier reads, in the way of `mean`.
    """

    pixels: Pixels
    patch_embed: Dense
    prefix: Tensor
    position: Tensor
    norm_pre: Norm | None
    blocks: tuple[Block, ...]
    read: slice
    mean: Mean
    norm: Norm
    head: Dense

    @property
    def maps(self) -> tuple[Maps, ...]:
        """The attention maps of every block: one for each head."""
        tokens = len(self.prefix) + len(self.position)
        return tuple(Maps((block.heads, tokens, tokens)) for block in self.blocks)

    @property
    def layers(self) -> dict[str, Layer]:
        """Every layer under the name of its output value."""
        before = {} if self.norm_pre is None else {"norm_pre": self.norm_pre}
        return {"patch_embed": self.patch_embed, **before, **layers_of(self.blocks), "norm": self.norm, "head": self.head}

    @property
    def sources(self) -> dict[str, str]:
        """The site whose value each linear layer reads."""
        return {"patch_embed": "input", **sources_of(self.blocks), "head": "pool" if self.mean == "after norm" else "norm"}

    @property
    def coded(self) -> tuple[str, ...]:
        """Sites whose values are codes that neither linear layers nor attention read."""
        return ("mean",) if self.mean == "before norm" else ()

    @property
    def residuals(self) -> dict[str, str]:
        """The value of the residual stream that each of its sums is made with."""
        return residuals_of(self.blocks, {0: "embed" if self.norm_pre is None else "norm_pre"})

    @property
    def chosen(self) -> str:
        """The name of the value that holds the tokens that are read, where these are not all."""
        return "cls" if self.mean == "none" else "tokens"

    @property
    def moved(self) -> dict[str, str]:
        """The value of the residual stream that each value that a program has besides is a part of."""
        return {self.chosen: f"block{len(self.blocks) - 1}.mlp.fc2"}

    def with_layers(self, changed: Mapping[str, Layer]) -> Vit:
        """The same network with other layers under the names in `changed`."""
        layers = self.layers | dict(changed)
        outer = {name: layers[name] for name in ("patch_embed", "norm_pre", "norm", "head") if name in layers}
        return replace(self, blocks=with_layers_of(self.blocks, layers), **outer)

    @torch.inference_mode()
    def __call__(self, images: Tensor, site: Site = keep, attend: Attend = softmax) -> Tensor:
        """Logits float64 [batch, classes] of uint8 images [batch, height, width, 3].

        `site` is called with every value a quantiser may stand at, and with the residual stream, in the order of execution:
        input, patch_embed, embed, norm_pre, then per block norm1, attn.q, attn.k, attn.v, attn, attn.proj, norm2, mlp.fc1, mlp.fc2, then
        norm; of a mean before the norm mean and pooled, its codes and what they stand for, after it pool.
        """
        return run(self.steps(images, site, attend), self.layers)

    def steps(self, images: Tensor, site: Site, attend: Attend) -> Steps:
        """`__call__` with a stop at every linear layer."""
        x = site("patch_embed", (yield Request("patch_embed", site("input", self.pixels.patches(images)))))
        x = site("embed", torch.cat([self.prefix.expand(len(x), -1, -1), x + self.position], dim=1))
        if self.norm_pre is not None:
            x = site("norm_pre", self.norm_pre(x))
        for i, block in enumerate(self.blocks):
            x = yield from block.steps(f"block{i}", x, site, lambda normalised, i=i: self._context(i, normalised, site, attend))
        return (yield Request("head", self._read(x[:, self.read], site)))

    def _read(self, x: Tensor, site: Site) -> Tensor:
        """What the classifier reads of tokens [batch, tokens, channels]: float64 [batch, in_channels]."""
        match self.mean:
            case "none":
                return site("norm", self.norm(x).flatten(1))
            case "before norm":
                return site("norm", self.norm(site("pooled", site("mean", x.mean(dim=1)))))
            case "after norm":
                return site("pool", site("norm", self.norm(x)).mean(dim=1))
            case _:
                assert_never(self.mean)

    def _context(self, i: int, x: Tensor, site: Site, attend: Attend) -> Steps:
        """The heads' outputs A V side by side (Eq. 1-3): [batch, tokens, channels]."""
        batch, tokens, channels = x.shape
        heads = self.blocks[i].heads
        qkv = (yield Request(f"block{i}.attn.qkv", x)).reshape(batch, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = (site(f"block{i}.attn.{part}", value) for part, value in zip("qkv", qkv, strict=True))
        context = attend(i, q @ k.transpose(2, 3) * q.shape[-1] ** -0.5) @ v
        return context.transpose(1, 2).reshape(batch, tokens, channels)
