"""A calibrated Swin Transformer as operations."""

from __future__ import annotations

from eamsim.program import Operation, Value
from reference.lowering.layers import Lowering
from reference.lowering.tokens import gather, pooling, stream_norm
from reference.models.swin import Swin


def swin_operations(lowering: Lowering, swin: Swin, image: Value) -> list[Operation]:
    """From the image to the logits."""
    operations = embedding(lowering, swin, image)
    for i in range(len(swin.blocks)):
        if i in swin.mergings:
            operations += merging(lowering, swin, i, operations[-1].out)
        operations += lowering.block(i, operations[-1].out, lambda x, i=i: window_attention(lowering, swin, i, x))
    norm = stream_norm(lowering, "norm", operations[-1].out, swin.norm)
    pool = pooling(lowering, "pool", norm.out)
    return [*operations, norm, pool, lowering.classifier(pool.out)]


def embedding(lowering: Lowering, swin: Swin, image: Value) -> list[Operation]:
    """From the image to the first block: patches, projected and normalised."""
    patches = lowering.patches(image)
    projected = lowering.stream("patch_embed", (patches[-1].out.shape[0], len(swin.patch_embed.bias)))
    linear = lowering.linear("patch_embed", patches[-1].out, projected, lowering.raw(lowering.stream_scale("patch_embed")))
    return [*patches, linear, stream_norm(lowering, "embed", projected, swin.embed)]


def merging(lowering: Lowering, swin: Swin, i: int, x: Value) -> list[Operation]:
    """Four neighbours side by side, normalised and reduced: the map that block i works on."""
    merging, name = swin.mergings[i], f"block{i}.merge"
    joined = gather(name, x, merging.order, (len(merging.order), 4 * x.shape[1]))
    norm = lowering.code_norm(f"{name}.norm", joined.out, merging.norm)
    out = lowering.stream(f"{name}.reduction", (len(merging.order), len(merging.reduction.bias)))
    return [joined, norm, lowering.linear(out.name, norm.out, out, lowering.raw(lowering.stream_scale(out.name)))]


def window_attention(lowering: Lowering, swin: Swin, i: int, x: Value) -> list[Operation]:
    """Tokens brought into the order of windows, their attention, and back; one window over the whole map is in order already."""
    windows = swin.windows[i]
    if len(windows.order) == 1:
        return lowering.attention(i, x, windows)
    partition = gather(f"block{i}.partition", x, windows.order, x.shape)
    attention = lowering.attention(i, partition.out, windows)
    return [partition, *attention, gather(f"block{i}.reverse", attention[-1].out, windows.order.flatten().argsort(), x.shape)]
