"""A calibrated ViT as operations."""

from __future__ import annotations

from fractions import Fraction
from typing import assert_never

import numpy as np
import torch

from eamsim.program import Embed, Operation, Value
from reference.lowering.layers import Lowering
from reference.lowering.tokens import gather, pooling, reshaped, signed_mean, stream_norm
from reference.models.vit import Vit


def vit_operations(lowering: Lowering, vit: Vit, image: Value) -> list[Operation]:
    """From the image to the logits."""
    operations = embedding(lowering, vit, image)
    for i in range(len(vit.blocks)):
        operations += lowering.block(i, operations[-1].out, lambda x, i=i: lowering.attention(i, x))
    return operations + reading(lowering, vit, operations[-1].out)


def embedding(lowering: Lowering, vit: Vit, image: Value) -> list[Operation]:
    """From the image to the first block: the class token and its like before the patches, all with their positions."""
    patches = lowering.patches(image)
    scale = lowering.stream_scale("embed")
    projected = lowering.stream("patch_embed", tuple(vit.position.shape))
    embedded = lowering.stream("embed", (len(vit.prefix) + len(vit.position), vit.position.shape[1]))
    prefix, position = (constant(lowering, x, scale) for x in (vit.prefix, vit.position))
    return [
        *patches,
        lowering.linear("patch_embed", patches[-1].out, projected, lowering.raw(scale)),
        Embed(projected.name, embedded, prefix, position),
        *([] if vit.norm_pre is None else [stream_norm(lowering, "norm_pre", embedded, vit.norm_pre)]),
    ]


def reading(lowering: Lowering, vit: Vit, x: Value) -> list[Operation]:
    """From the last block to the logits."""
    rows = np.arange(x.shape[0])[vit.read]
    chosen: list[Operation] = [] if len(rows) == x.shape[0] else [gather(vit.chosen, x, rows, (len(rows), x.shape[1]))]
    tokens = chosen[-1].out if chosen else x
    match vit.mean:
        case "none":
            codes: list[Operation] = [lowering.code_norm("norm", tokens, vit.norm)]
            if len(rows) > 1:
                codes.append(reshaped("norm.joined", codes[-1].out, (1, tokens.size)))
        case "before norm":
            mean = signed_mean(lowering, tokens)
            codes = [*mean, lowering.code_norm("norm", mean[-1].out, vit.norm)]
        case "after norm":
            norm = stream_norm(lowering, "norm", tokens, vit.norm)
            codes = [norm, pooling(lowering, "pool", norm.out)]
        case _:
            assert_never(vit.mean)
    return [*chosen, *codes, lowering.classifier(codes[-1].out)]


def constant(lowering: Lowering, x: torch.Tensor, scale: Fraction) -> np.ndarray:
    """x in units of the residual stream."""
    limit = 1 << (lowering.config.residual_bits - 1)
    return np.clip(np.rint(x.numpy() / float(scale)), -limit, limit - 1).astype(np.int32)
