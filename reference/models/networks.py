"""timm's ViT and Swin as checked parameters, in float64: what differs from processor to processor there hardly ever moves a 4-bit code."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers.attention import Attention
from timm.layers.mlp import Mlp
from timm.layers.patch_embed import PatchEmbed
from timm.models.swin_transformer import PatchMerging, SwinTransformer, SwinTransformerBlock
from timm.models.vision_transformer import Block as TimmBlock
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from eamsim.errors import UserError
from reference.models.layers import Block, Dense, Norm, Pixels
from reference.models.swin import Merging, Swin, Windows, excluded_pairs, merging_order, window_order
from reference.models.vit import Vit

Network = Vit | Swin


def check_supported(module: nn.Module, name: str) -> VisionTransformer | SwinTransformer:
    """The module itself, if it is a plain ViT or Swin; UserError names the first feature that is not."""
    if type(module) is VisionTransformer:
        kind, example, unsupported = "ViT", "deit_tiny_patch16_224", _vit_features(module)
    elif type(module) is SwinTransformer:
        kind, example, unsupported = "Swin", "swin_tiny_patch4_window7_224", _swin_features(module)
    else:
        raise UserError(
            f"model {name!r}: {type(module).__name__} is not supported; expected a plain timm VisionTransformer or SwinTransformer,"
            " such as deit_tiny_patch16_224 or swin_tiny_patch4_window7_224"
        )
    unsupported |= _too_small(module.patch_embed)
    found = [feature for feature, present in unsupported.items() if present]
    if found:
        raise UserError(f"model {name!r}: {found[0]} is not supported; expected a plain {kind}, such as {example}")
    return module


def network_of(module: Any, mean: tuple[float, ...], std: tuple[float, ...]) -> Network:
    """The parameters of a supported module."""
    pixels = Pixels(module.patch_embed.patch_size[0], *(torch.tensor(values, dtype=torch.float64) for values in (mean, std)))
    return _swin(module, pixels) if isinstance(module, SwinTransformer) else _vit(module, pixels)


def _vit_features(module: VisionTransformer) -> dict[str, bool]:
    """What a plain ViT does not have -> whether this one has it."""
    features = {
        "a model without class token": not module.has_class_token,
        "register tokens": module.num_reg_tokens > 0,
        "a position table that leaves the class token out": module.pos_embed is None or module.no_embed_class,
        "a dynamic image size": module.dynamic_img_size,
        "padding of the image (dynamic_img_pad)": getattr(module.patch_embed, "dynamic_img_pad", False),
        "this patch embedding": not _plain_embed(module.patch_embed) or not isinstance(module.patch_embed.norm, nn.Identity),
        "a norm before the blocks (pre_norm)": not isinstance(module.norm_pre, nn.Identity),
        f"pooling by {module.global_pool!r}": module.global_pool != "token" or not isinstance(module.fc_norm, nn.Identity),
        "this final norm": not _plain_norm(module.norm),
        "a model without classifier": not isinstance(module.head, nn.Linear),
    }
    for block in module.blocks:
        features |= _vit_block_features(block)
    return features


def _vit_block_features(block: Any) -> dict[str, bool]:
    if type(block) is not TimmBlock or type(block.attn) is not Attention:
        return {f"a block of kind {type(block).__name__}": True}
    attn = block.attn
    return _block_features(block) | {
        "layer scale": not (isinstance(block.ls1, nn.Identity) and isinstance(block.ls2, nn.Identity)),
        "query and key norm (qk_norm)": not (isinstance(attn.q_norm, nn.Identity) and isinstance(attn.k_norm, nn.Identity)),
        "a norm inside attention": not isinstance(attn.norm, nn.Identity),
        "gated attention": attn.gate is not None,
        "an attention width other than the model's": attn.attn_dim != attn.qkv.in_features,
    }


def _block_features(block: Any) -> dict[str, bool]:
    mlp = block.mlp
    if type(mlp) is not Mlp:
        return {f"an MLP of kind {type(mlp).__name__}": True}
    return {
        "a norm inside the MLP": not isinstance(mlp.norm, nn.Identity),
        f"the activation {mlp.act}": not isinstance(mlp.act, nn.GELU) or mlp.act.approximate != "none",
        "this norm": not (_plain_norm(block.norm1) and _plain_norm(block.norm2)),
    }


def _swin_features(module: SwinTransformer) -> dict[str, bool]:
    """What a plain Swin does not have -> whether this one has it."""
    features = {
        "a dynamic image size": module.dynamic_img_size,
        "this patch embedding": not _plain_embed(module.patch_embed) or not _plain_norm(module.patch_embed.norm),
        f"pooling by {module.global_pool!r}": module.global_pool != "avg",
        "this final norm": not _plain_norm(module.norm),
        "a model without classifier": not isinstance(module.head.fc, nn.Linear),
    }
    for stage in module.layers:
        features |= _stage_features(stage)
    return features


def _stage_features(stage: Any) -> dict[str, bool]:
    merging, size = stage.downsample, stage.input_resolution  # of the map before it
    merges = type(merging) is PatchMerging
    features = {
        "this patch merging": not (_plain_norm(merging.norm) if merges else isinstance(merging, nn.Identity)),
        f"the merging of a map of {size[0]} x {size[1]} tokens": merges and any(extent % 2 for extent in size),
    }
    for block in stage.blocks:
        features |= _swin_block_features(block)
    return features


def _swin_block_features(block: Any) -> dict[str, bool]:
    if type(block) is not SwinTransformerBlock:
        return {f"a block of kind {type(block).__name__}": True}
    size: Any = block.input_resolution
    window = block.window_size
    cut = f"a map of {size[0]} x {size[1]} tokens in windows of {window[0]} x {window[1]}"
    return _block_features(block) | {
        cut: any(extent % side for extent, side in zip(size, window, strict=True)),
        "always_partition": block.always_partition,
        "an attention width other than the model's": block.attn.proj.in_features != block.attn.qkv.in_features,
    }


def _too_small(embed: Any) -> dict[str, bool]:
    size, patch = (" x ".join(map(str, each)) for each in (embed.img_size or (), embed.patch_size))
    return {f"an image of {size} pixels, less than one patch of {patch}": 0 in (embed.grid_size or ())}


def _plain_norm(norm: Any) -> bool:
    return isinstance(norm, nn.LayerNorm) and norm.weight is not None and norm.bias is not None


def _plain_embed(embed: Any) -> bool:
    return type(embed) is PatchEmbed and embed.proj.in_channels == 3 and embed.patch_size[0] == embed.patch_size[1]


def _vit(module: Any, pixels: Pixels) -> Vit:
    position = _float64(module.pos_embed[0])
    return Vit(
        pixels,
        patch_embed=_patch_embed(module.patch_embed.proj),
        prefix=_float64(module.cls_token[0]) + position[:1],
        position=position[1:],
        blocks=tuple(map(_block, module.blocks)),
        norm=_norm(module.norm),
        head=_dense(module.head),
    )


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
        _dense(block.attn.proj),
        _norm(block.norm2),
        _dense(block.mlp.fc1),
        _dense(block.mlp.fc2),
    )


def _patch_embed(conv: nn.Conv2d) -> Dense:
    return Dense(_float64(conv.weight).permute(0, 2, 3, 1).flatten(1), _bias(conv))


def _bias(layer: nn.Linear | nn.Conv2d) -> Tensor:
    return torch.zeros(layer.weight.shape[0], dtype=torch.float64) if layer.bias is None else _float64(layer.bias)


def _dense(layer: nn.Linear) -> Dense:
    return Dense(_float64(layer.weight), _bias(layer))


def _norm(layer: Any) -> Norm:
    return Norm(_float64(layer.weight), _float64(layer.bias), layer.eps)


def _float64(parameter: Tensor) -> Tensor:
    return parameter.detach().double()
