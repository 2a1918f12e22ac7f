"""Programs of shapes alone: every array zero and without storage. They can be counted and not run."""

from __future__ import annotations

from functools import cache, lru_cache
from math import isqrt

import numpy as np

from cost_model.models.architectures import Architecture, BlockShape, Projection, SwinArchitecture
from eamsim.constraints import Verified
from eamsim.datapath import CODE_BITS, DEFAULT, LOGIT_BITS, PIXEL_BITS
from eamsim.program import (
    Attention,
    Embed,
    Epilogue,
    Gather,
    Gelu,
    InputQuant,
    LayerNorm,
    Linear,
    Operation,
    Pool,
    Raw,
    Requant,
    Residual,
    Value,
)


def zeros(shape: tuple[int, ...], dtype: type = np.int32) -> np.ndarray:
    """A read-only array of one zero, seen at every index."""
    return np.broadcast_to(dtype(0), shape)


@lru_cache(maxsize=1)
def skeleton(model: Architecture | SwinArchitecture) -> Verified:
    """A published architecture as a program on the default datapath, nothing frozen."""
    image = Value("image", (model.image, model.image, 3), PIXEL_BITS)
    embedding, *mergings, head = model.projections
    operations = _embedding(model, image, embedding)
    for number, layer in enumerate(model.layers):
        stream = operations[-1].out
        if stream.shape[1] != layer.width:
            operations += _merging(f"block{number}.merge", stream, mergings.pop(0), model)
        operations += _block(f"block{number}", operations[-1].out, layer, model)
    stream, d = operations[-1].out, head.in_channels
    if isinstance(model, SwinArchitecture):
        norm, classes = _residual("norm", stream.shape), _codes("pool", (1, d), model.code_bits)
        operations += [_norm(stream, norm), Pool(norm.name, classes, 0, 0, 0)]
    else:
        token, classes = _residual("cls", (1, d)), _codes("norm", (1, d), model.code_bits)
        operations += [_gather(stream, token, d), _norm(token, classes)]
    logits = Value("head", (1, head.out_channels), LOGIT_BITS, True)
    return Verified(model.name, image, (*operations, _linear(classes, logits, model.weight_bits)))


def _embedding(model: Architecture | SwinArchitecture, image: Value, embedding: Projection) -> list[Operation]:
    """From the image to the first block: the class token and positions of a ViT, the norm of a Swin."""
    codes, tokens, d = Value("input", image.shape, PIXEL_BITS), embedding.tokens, embedding.out_channels
    patches, projected = Value("patches", (tokens, embedding.in_channels), PIXEL_BITS), _residual("patch_embed", (tokens, d))
    stream = _residual("embed", (model.layers[0].tokens, d))
    position = Embed(projected.name, stream, zeros((stream.shape[0] - tokens, d)), zeros(projected.shape))
    return [
        InputQuant(image.name, codes, zeros((3, 256), np.uint8)),
        _gather(codes, patches, 3 * model.patch),
        _linear(patches, projected, model.weight_bits),
        _norm(projected, stream) if isinstance(model, SwinArchitecture) else position,
    ]


def _merging(name: str, stream: Value, merging: Projection, model: Architecture | SwinArchitecture) -> list[Operation]:
    """Four neighbours side by side, normalised and reduced."""
    joined = _residual(name, (merging.tokens, merging.in_channels))
    norm = _codes(f"{name}.norm", joined.shape, model.code_bits)
    out = _residual(f"{name}.reduction", (merging.tokens, merging.out_channels))
    return [_gather(stream, joined, stream.shape[1]), _norm(joined, norm), _linear(norm, out, model.weight_bits)]


def _block(name: str, stream: Value, layer: BlockShape, model: Architecture | SwinArchitecture) -> list[Operation]:
    (n, d), weight_bits = stream.shape, model.weight_bits

    def codes(part: str, channels: int = d) -> Value:
        return _codes(f"{name}.{part}", (n, channels), model.code_bits)

    norm1, norm2, windowed, back = map(codes, ("norm1", "norm2", "partition", "reverse"))
    qkv, context, hidden = codes("attn.qkv", 3 * d), codes("attn"), codes("mlp.fc1", 4 * d)
    middle, out = _residual(f"{name}.attn.proj", (n, d)), _residual(f"{name}.mlp.fc2", (n, d))
    is_split = len(layer.live) > 1
    return [
        _norm(stream, norm1),
        *([_gather(norm1, windowed, d)] if is_split else []),
        _linear(windowed if is_split else norm1, qkv, weight_bits, Requant(*_ratio(3 * d), zeros((3 * d,)))),
        _attention(qkv, context, layer, isinstance(model, SwinArchitecture)),
        *([_gather(context, back, d)] if is_split else []),
        _linear(back if is_split else context, middle, weight_bits, Residual(stream.name, *_ratio(d), 0)),
        _norm(middle, norm2),
        _linear(norm2, hidden, weight_bits, _gelu(4 * d)),
        _linear(hidden, out, weight_bits, Residual(middle.name, *_ratio(d), 0)),
    ]


def _codes(name: str, shape: tuple[int, ...], bits: int) -> Value:
    return Value(name, shape, bits)


def _residual(name: str, shape: tuple[int, ...]) -> Value:
    return Value(name, shape, DEFAULT.residual_bits, True)


def _ratio(channels: int) -> tuple[np.ndarray, np.ndarray]:
    return zeros((channels,)), zeros((channels,))


def _gelu(channels: int) -> Gelu:
    return Gelu(*_ratio(channels), 0, DEFAULT.gelu_index_bits, zeros((1 << DEFAULT.gelu_index_bits,), np.uint8))


def _gather(x: Value, out: Value, granule: int) -> Gather:
    """Granules in any order: it does not matter to a count."""
    return Gather(x.name, out, np.arange(out.size // granule, dtype=np.int32), granule)


def _linear(x: Value, out: Value, weight_bits: int, epilogue: Epilogue | None = None) -> Linear:
    channels = out.shape[1]
    weight, zero = zeros((x.shape[1], channels), np.uint8), zeros((channels,), np.uint8)
    return Linear(x.name, out, weight, weight_bits, zero, 0, zeros((channels,)), epilogue or Raw(*_ratio(channels)))


def _norm(x: Value, out: Value) -> LayerNorm:
    return LayerNorm(x.name, out, zeros((x.shape[1],)), zeros((x.shape[1],), np.int64), 0, 1)


def _attention(x: Value, out: Value, layer: BlockShape, is_biased: bool) -> Attention:
    """All windows of a layer; a Swin's have a position bias, and the shifted ones exclude pairs."""
    windows, tokens = len(layer.live), layer.window_tokens
    return Attention(
        x.name, out, layer.heads, windows, score_heads=tuple(range(layer.heads)), q_zero=0, k_zero=0, v_zero=0,
        score_multiplier=0, score_shift=0,
        exp2=_first(1 << DEFAULT.exponent_bits, 1 << DEFAULT.exp2_bits), exp2_bits=DEFAULT.exp2_bits,
        log2=zeros((1 << DEFAULT.log2_index_bits,)), log2_scale=0,
        attention_bits=CODE_BITS, last_code_is_zero=False, softmax="paper", multiplier_even=0, multiplier_odd=0, out_shift=0, out_zero=0,
        logit_bias=zeros((1, layer.heads, tokens, tokens)) if is_biased else None,
        excluded=_excluded(layer) if min(layer.live) < tokens**2 else None,
    )  # fmt: skip


@cache
def _first(size: int, number: int) -> np.ndarray:
    """int32 [size]: zeros after the one number."""
    return np.where(np.arange(size) == 0, number, 0).astype(np.int32)


@cache
def _excluded(layer: BlockShape) -> np.ndarray:
    """bool [windows, tokens, tokens]: pairs that a shift by half a window has brought together from opposite edges of the map."""
    windows, side = isqrt(len(layer.live)), isqrt(layer.window_tokens)
    behind = np.arange(side) >= side - side // 2
    along = np.arange(windows)[:, None] * 2 + (behind & (np.arange(windows) == windows - 1)[:, None])  # where a line of tokens is from
    origin = along[:, None, :, None] * 2 * windows + along[None, :, None, :]
    origin = origin.reshape(len(layer.live), layer.window_tokens)
    return origin[:, :, None] != origin[:, None, :]
