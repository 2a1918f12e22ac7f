"""A calibrated ViT as operations."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import torch

from eamsim.program import Embed, Gather, Operation, Value
from reference.lowering.layers import Lowering
from reference.models.vit import Vit


def vit_operations(lowering: Lowering, vit: Vit, image: Value) -> list[Operation]:
    """From the image to the logits."""
    operations = embedding(lowering, vit, image)
    for i in range(len(vit.blocks)):
        operations += lowering.block(i, operations[-1].out, lambda x, i=i: lowering.attention(i, x))
    last = operations[-1].out
    token = Gather(last.name, lowering.stream("cls", (1, last.shape[1])), np.zeros(1, np.int32), last.shape[1])
    norm = lowering.code_norm("norm", token.out, vit.norm)
    return [*operations, token, norm, lowering.classifier(norm.out)]


def embedding(lowering: Lowering, vit: Vit, image: Value) -> list[Operation]:
    """From the image to the first block: the class token before the patches, all with their positions."""
    patches = lowering.patches(image)
    scale = lowering.stream_scale("embed")
    projected = lowering.stream("patch_embed", tuple(vit.position.shape))
    embedded = lowering.stream("embed", (len(vit.prefix) + len(vit.position), vit.position.shape[1]))
    prefix, position = (constant(lowering, x, scale) for x in (vit.prefix, vit.position))
    return [
        *patches,
        lowering.linear("patch_embed", patches[-1].out, projected, lowering.raw(scale)),
        Embed(projected.name, embedded, prefix, position),
    ]


def constant(lowering: Lowering, x: torch.Tensor, scale: Fraction) -> np.ndarray:
    """x in units of the residual stream."""
    limit = 1 << (lowering.config.residual_bits - 1)
    return np.clip(np.rint(x.numpy() / float(scale)), -limit, limit - 1).astype(np.int32)
