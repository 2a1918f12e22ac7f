"""Tokens chosen or brought into another order, normalised and averaged: what stands between the blocks of a network."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from eamsim.program import Gather, LayerNorm, Linear, Operation, Pool, Raw, Value
from reference.lowering.layers import Lowering, fraction
from reference.models.layers import Norm


def gather(name: str, x: Value, order: np.ndarray | Tensor, shape: tuple[int, ...]) -> Gather:
    """The tokens of x in another order, or some of them."""
    return Gather(x.name, Value(name, shape, x.bits, x.signed), np.asarray(order).flatten().astype(np.int32), x.shape[1])


def reshaped(name: str, x: Value, shape: tuple[int, ...]) -> Gather:
    """The elements of x as they lie, in another shape."""
    return Gather(x.name, Value(name, shape, x.bits, x.signed), np.zeros(1, np.int32), x.size)


def stream_norm(lowering: Lowering, name: str, x: Value, norm: Norm) -> LayerNorm:
    """A norm whose output is as wide as the residual stream."""
    return lowering.norm(x, lowering.stream(name, x.shape), norm, float(lowering.stream_scale(name)))


def pooling(lowering: Lowering, name: str, x: Value) -> Pool:
    """The mean of all tokens as codes."""
    activation = lowering.calibrated.activations[name]
    mean = lowering.ratio(lambda: name, lowering.stream_scale(x.name) / (x.shape[0] * fraction(activation.scale)))
    return Pool(x.name, lowering.codes(name, name, (1, x.shape[1])), *mean, int(activation.zero))


def signed_mean(lowering: Lowering, x: Value) -> list[Operation]:
    """The mean of all tokens for a norm, which reads signed values: codes, each of which a Linear of one channel multiplies by 1."""
    mean = pooling(lowering, "mean", x)
    column = reshaped("mean.column", mean.out, (x.shape[1], 1))
    out = lowering.stream("mean.stream", column.out.shape)
    unit = fraction(lowering.calibrated.activations["mean"].scale) / lowering.stream_scale("pooled")
    multiplier, shift = (np.array([each], np.int32) for each in lowering.ratio(lambda: "mean", unit))
    one, none = np.ones((1, 1), np.uint8), np.zeros(1, np.uint8)
    same = Linear(column.out.name, out, one, 2, none, mean.zero, np.zeros(1, np.int32), Raw(multiplier, shift))
    return [mean, column, same, reshaped("pooled", out, (1, x.shape[1]))]
