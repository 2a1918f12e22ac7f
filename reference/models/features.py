"""What of timm's ViT and Swin is supported: one table, which refuses a feature by its name and lists them all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from timm.layers.attention import Attention
from timm.layers.layer_scale import LayerScale
from timm.layers.mlp import Mlp
from timm.layers.patch_embed import PatchEmbed
from timm.models.swin_transformer import PatchMerging, SwinTransformerBlock
from timm.models.vision_transformer import Block
from torch import nn

Kind = Literal["ViT", "Swin"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Found = bool | str
"""Whether a module has the feature, or what it has of it in words; "" if nothing."""


@dataclass(frozen=True)
class Feature:
    """Something that models of some kinds may have.

    supported: by kind, whether this project has it too; present: given a module of a kind that it is not supported for, whether it has
    it; examined in the order of the table, so that later ones may rely on what earlier ones refuse.
    """

    name: str
    supported: dict[Kind, bool]
    present: Callable[[Any], Found] = lambda module: False


BOTH: dict[Kind, bool] = {"ViT": True, "Swin": True}
NEITHER: dict[Kind, bool] = {"ViT": False, "Swin": False}
OF_VIT: dict[Kind, bool] = {"ViT": True}
NOT_OF_VIT: dict[Kind, bool] = {"ViT": False}
OF_SWIN: dict[Kind, bool] = {"Swin": True}
NOT_OF_SWIN: dict[Kind, bool] = {"Swin": False}


def refused(module: Any, kind: Kind) -> str | None:
    """The first feature of the module that is not supported, in words."""
    for feature in FEATURES:
        if not feature.supported.get(kind, True) and (found := feature.present(module)):
            return feature.name if found is True else f"{feature.name} ({found})"
    return None


def blocks_of(module: Any) -> list[Any]:
    """Of a ViT or of all stages of a Swin."""
    return list(module.blocks) if hasattr(module, "blocks") else [block for stage in module.layers for block in stage.blocks]


def _any_block(test: Callable[[Any], Found]) -> Callable[[Any], Found]:
    return lambda module: next((found for block in blocks_of(module) if (found := test(block))), False)


def _is(module: Any) -> bool:
    """Whether there is a layer, where timm puts an Identity for none."""
    return not isinstance(module, nn.Identity)


def _other_norm(norm: Any) -> Found:
    if isinstance(norm, nn.LayerNorm | nn.Identity):
        return "no gain or bias" if isinstance(norm, nn.LayerNorm) and (norm.weight is None or norm.bias is None) else ""
    return type(norm).__name__


def _norms(module: Any) -> list[Any]:
    outer = [getattr(module, name, nn.Identity()) for name in ("norm_pre", "norm", "fc_norm")]
    merging = [stage.downsample.norm for stage in getattr(module, "layers", ()) if isinstance(stage.downsample, PatchMerging)]
    return [*outer, *merging, *(norm for block in blocks_of(module) for norm in (block.norm1, block.norm2))]


def _other_embed(module: Any) -> Found:
    embed = module.patch_embed
    if type(embed) is not PatchEmbed or embed.patch_size[0] != embed.patch_size[1]:
        return True
    is_vit = hasattr(module, "blocks")
    return _is(embed.norm) if is_vit else not isinstance(embed.norm, nn.LayerNorm) or bool(_other_norm(embed.norm))


def _too_small(module: Any) -> Found:
    embed = module.patch_embed
    size, patch = (" x ".join(map(str, each)) for each in (embed.img_size or (), embed.patch_size))
    return f"{size} pixels, a patch {patch}" if 0 in (embed.grid_size or ()) else ""


def _padded(module: Any) -> bool:
    embed = module.patch_embed
    return embed.dynamic_img_pad and any(extent % side for extent, side in zip(embed.img_size, embed.patch_size, strict=True))


def _other_block(block: Any) -> Found:
    known = type(block) is SwinTransformerBlock or (type(block) is Block and type(block.attn) is Attention)
    return "" if known else f"{type(block).__name__} of {type(block.attn).__name__}" if hasattr(block, "attn") else type(block).__name__


def _other_mlp(block: Any) -> Found:
    return "" if type(block.mlp) is Mlp else type(block.mlp).__name__


def _other_activation(block: Any) -> Found:
    act = block.mlp.act
    return "" if isinstance(act, nn.GELU) and act.approximate == "none" else str(act)


def _other_scale(block: Any) -> Found:
    return any(_is(each) and type(each) is not LayerScale for each in (block.ls1, block.ls2))


def _uneven_windows(block: Any) -> Found:
    size, window = block.input_resolution, block.window_size
    cut = f"{size[0]} x {size[1]} tokens, windows of {window[0]} x {window[1]}"
    return cut if any(extent % side for extent, side in zip(size, window, strict=True)) else ""


def _odd_merging(module: Any) -> Found:
    sizes = [stage.input_resolution for stage in module.layers if isinstance(stage.downsample, PatchMerging)]
    return next((f"{size[0]} x {size[1]} tokens" for size in sizes if any(extent % 2 for extent in size)), "")


def _other_width(block: Any) -> bool:
    return block.attn.proj.in_features != block.attn.qkv.in_features


def _without_classifier(module: Any) -> bool:
    return not isinstance(getattr(module.head, "fc", module.head), nn.Linear)


def _pooling(kind: str, supported: dict[Kind, bool]) -> Feature:
    return Feature(f"pooling by {kind!r}", supported, lambda module: module.global_pool == kind)


FEATURES = (
    Feature("images of any height and width", BOTH),
    Feature("another patch embedding than one convolution of square patches", NEITHER, _other_embed),
    Feature("an image smaller than a patch", NEITHER, _too_small),
    Feature("images of other than three channels", NEITHER, lambda module: module.patch_embed.proj.in_channels != 3),
    Feature("a dynamic image size", {"ViT": True, "Swin": False}, lambda module: module.dynamic_img_size),
    Feature("padding of the image (dynamic_img_pad)", NOT_OF_VIT, _padded),
    Feature("a class token", OF_VIT),
    Feature("a model without class token", OF_VIT),
    Feature("register tokens", OF_VIT),
    Feature("a distillation token with a classifier of its own", OF_VIT),
    Feature("a position table", OF_VIT),
    Feature("a position table that leaves the class token out (no_embed_class)", OF_VIT),
    Feature("a model without position table", OF_VIT),
    Feature("a norm before the blocks (pre_norm)", OF_VIT),
    Feature("a block of another kind", NEITHER, _any_block(_other_block)),
    Feature(
        "another norm than LayerNorm with gain and bias",
        NEITHER,
        lambda module: next((found for norm in _norms(module) if (found := _other_norm(norm))), ""),
    ),
    Feature("qkv with bias or without", BOTH),
    Feature("layer scale", OF_VIT),
    Feature("another layer scale than timm's", NOT_OF_VIT, _any_block(_other_scale)),
    Feature("query and key norm (qk_norm)", NOT_OF_VIT, _any_block(lambda block: _is(block.attn.q_norm) or _is(block.attn.k_norm))),
    Feature("a norm inside attention", NOT_OF_VIT, _any_block(lambda block: _is(block.attn.norm))),
    Feature("gated attention", NOT_OF_VIT, _any_block(lambda block: block.attn.gate is not None)),
    Feature("an attention width other than the model's", NEITHER, _any_block(_other_width)),
    Feature("an MLP of another kind", NEITHER, _any_block(_other_mlp)),
    Feature("a norm inside the MLP", NEITHER, _any_block(lambda block: _is(block.mlp.norm))),
    Feature("another activation than exact GELU", NEITHER, _any_block(_other_activation)),
    Feature("windows, shifted or not, that divide the map", OF_SWIN),
    Feature("windows that do not divide the map", NOT_OF_SWIN, _any_block(_uneven_windows)),
    Feature("the merging of a map of odd sides", NOT_OF_SWIN, _odd_merging),
    Feature("always_partition", NOT_OF_SWIN, _any_block(lambda block: block.always_partition)),
    _pooling("token", {"ViT": True, "Swin": False}),
    _pooling("avg", BOTH),
    *(_pooling(kind, NEITHER) for kind in ("avgmax", "max", "map", "prr", "")),
    Feature("a norm behind the pooling (fc_norm)", OF_VIT),
    Feature("a model without final norm", NOT_OF_VIT, lambda module: not _is(module.norm) and not _is(module.fc_norm)),
    Feature("a model without classifier", NEITHER, _without_classifier),
)
