"""timm's ViT and Swin as checked parameters, in float64: what differs from processor to processor there hardly ever moves a 4-bit code."""

from __future__ import annotations

from typing import Any, cast

import torch
from timm.layers.layer_scale import LayerScale
from timm.models.deit import VisionTransformerDistilled
from timm.models.swin_transformer import PatchMerging, SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from eamsim.errors import UserError
from reference.models.features import Kind, refused
from reference.models.layers import Block, Dense, Norm, Pixels
from reference.models.swin import Merging, Swin, Windows, excluded_pairs, merging_order, window_order
from reference.models.vit import Vit

KINDS: dict[type[nn.Module], tuple[Kind, str]] = {
    VisionTransformer: ("ViT", "deit_tiny_patch16_224"),
    VisionTransformerDistilled: ("ViT", "deit_tiny_distilled_patch16_224"),
    SwinTransformer: ("Swin", "swin_tiny_patch4_window7_224"),
}
"""timm's classes, the kind of each, and a name that timm builds of it."""

Network = Vit | Swin


def check_supported(module: nn.Module, name: str) -> VisionTransformer | SwinTransformer:
    """The module itself, if this project has all that it has; UserError names the first feature that is not supported."""
    if type(module) not in KINDS:
        raise UserError(
            f"model {name!r}: {type(module).__name__} is not supported; expected a timm VisionTransformer or SwinTransformer,"
            " such as deit_tiny_patch16_224 or swin_tiny_patch4_window7_224"
        )
    kind, example = KINDS[type(module)]
    feature = refused(module, kind)
    if feature is not None:
        raise UserError(f"model {name!r}: {feature} is not supported; `eamsim models` lists what is, {example} for one")
    return cast(VisionTransformer | SwinTransformer, module)


def network_of(module: Any, mean: tuple[float, ...], std: tuple[float, ...]) -> Network:
    """The parameters of a supported module."""
    pixels = Pixels(module.patch_embed.patch_size[0], *(torch.tensor(values, dtype=torch.float64) for values in (mean, std)))
    return _swin(module, pixels) if isinstance(module, SwinTransformer) else _vit(module, pixels)


def _vit(module: Any, pixels: Pixels) -> Vit:
    prefix, position = _tokens(module)
    distilled, averaged = isinstance(module, VisionTransformerDistilled), module.global_pool == "avg"
    last = module.norm if _exists(module.norm) else module.fc_norm
    first = 0 if module.pool_include_prefix else len(prefix)
    return Vit(
        pixels,
        patch_embed=_patch_embed(module.patch_embed.proj),
        prefix=prefix,
        position=position,
        norm_pre=_norm(module.norm_pre) if _exists(module.norm_pre) else None,
        blocks=tuple(map(_block, module.blocks)),
        read=slice(first, None) if averaged else slice(0, 2 if distilled else 1),
        mean="none" if not averaged else "after norm" if last is module.norm else "before norm",
        norm=_norm(last),
        head=_both(_dense(module.head), _dense(module.head_dist)) if distilled else _dense(module.head),
    )


def _tokens(module: Any) -> tuple[Tensor, Tensor]:
    """`Vit.prefix` and `Vit.position`."""
    names = [name for name in ("cls_token", "dist_token", "reg_token") if getattr(module, name, None) is not None]
    channels, patches = module.embed_dim, module.patch_embed.num_patches
    prefix = torch.cat([torch.empty(0, channels, dtype=torch.float64), *(_float64(getattr(module, name)[0]) for name in names)])
    if module.pos_embed is None:
        return prefix, torch.zeros(patches, channels, dtype=torch.float64)
    position = _float64(module.pos_embed[0])
    own = len(position) - patches  # of the tokens before the patches
    return prefix + position[:own] if own else prefix, position[own:]


def _both(first: Dense, second: Dense) -> Dense:
    """The mean of two classifiers, of a token each, as one of both tokens side by side."""
    return Dense(torch.cat([first.weight, second.weight], dim=1) / 2, (first.bias + second.bias) / 2)


def _swin(module: Any, pixels: Pixels) -> Swin:
    blocks = [block for stage in module.layers for block in stage.blocks]
    mergings = {
        blocks.index(stage.blocks[0]): Merging(
            merging_order(stage.input_resolution), _norm(stage.downsample.norm), _dense(stage.downsample.reduction)
        )
        for stage in module.layers
        if isinstance(stage.downsample, PatchMerging)
    }
    return Swin(
        pixels,
        patch_embed=_patch_embed(module.patch_embed.proj),
        embed=_norm(module.patch_embed.norm),
        blocks=tuple(map(_block, blocks)),
        windows=tuple(map(_windows, blocks)),
        mergings=mergings,
        norm=_norm(module.norm),
        head=_dense(module.head.fc),
    )


def _windows(block: Any) -> Windows:
    cut = (block.input_resolution, block.window_size, block.shift_size)
    bias = _float64(block.attn.relative_position_bias_table)[block.attn.relative_position_index]
    return Windows(window_order(*cut), bias.permute(2, 0, 1).contiguous(), excluded_pairs(*cut))


def _block(block: Any) -> Block:
    return Block(
        block.attn.num_heads,
        _norm(block.norm1),
        _dense(block.attn.qkv),
        _scaled(_dense(block.attn.proj), getattr(block, "ls1", None)),
        _norm(block.norm2),
        _dense(block.mlp.fc1),
        _scaled(_dense(block.mlp.fc2), getattr(block, "ls2", None)),
    )


def _scaled(dense: Dense, scale: Any) -> Dense:
    """The layer with timm's LayerScale behind it, if there is one."""
    if not isinstance(scale, LayerScale):
        return dense
    gamma = _float64(scale.gamma)
    return Dense(dense.weight * gamma[:, None], dense.bias * gamma)


def _patch_embed(conv: nn.Conv2d) -> Dense:
    return Dense(_float64(conv.weight).permute(0, 2, 3, 1).flatten(1), _bias(conv))


def _bias(layer: nn.Linear | nn.Conv2d) -> Tensor:
    return torch.zeros(layer.weight.shape[0], dtype=torch.float64) if layer.bias is None else _float64(layer.bias)


def _dense(layer: nn.Linear) -> Dense:
    return Dense(_float64(layer.weight), _bias(layer))


def _norm(layer: Any) -> Norm:
    return Norm(_float64(layer.weight), _float64(layer.bias), layer.eps)


def _exists(layer: Any) -> bool:
    return not isinstance(layer, nn.Identity)


def _float64(parameter: Tensor) -> Tensor:
    return parameter.detach().double()
