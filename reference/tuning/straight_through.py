"""The quantisers of activations as training sees them: quantised forward, straight through the rounding backward.

Each pass over a tensor is one plain loop, since a chain of torch's operations would take longer than the matrix products between.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from eamsim.compiled.compiler import kept, njit
from reference.quantisation.levels import Levels
from reference.quantisation.quantisers import Affine, LogSqrt2

REORDERED = {"reassoc", "nsz"}  # a sum of floats in as many parts as the processor has lanes: the same every time on one machine


class _Affine(torch.autograd.Function):
    """Of the input where it lies within the range; of the scale as LSQ has it (Esser et al., ICLR 2020)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: float, high: float) -> Tensor:
        x = x.float().contiguous()
        out = torch.empty_like(x)
        _affine(_flat(x), scale.item(), low, high, _flat(out))
        ctx.save_for_backward(x, scale)
        ctx.range = (low, high)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, scale = ctx.saved_tensors
        gradient = gradients[0].float().contiguous()
        inside = torch.empty_like(gradient)
        change = _affine_gradient(_flat(x), _flat(gradient), scale.item(), *ctx.range, _flat(inside))
        return inside, torch.full_like(scale, change), None, None


class _Powers(torch.autograd.Function):
    """Of the input everywhere: what softmax gives lies within the range."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, quantiser: LogSqrt2) -> Tensor:
        x = x.float().contiguous()
        out = torch.empty_like(x)
        last = quantiser.last_code
        _powers(_flat(x), quantiser.scale, last, quantiser.decode(torch.tensor(float(last))).item(), _flat(out))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0], None


def affine(quantiser: Affine, scale: Tensor, x: Tensor) -> Tensor:
    """x on the grid of a quantiser with this scale, float32 []; its zero point and its bits stay."""
    zero = quantiser.zero.item()
    return _Affine.apply(x, scale, -zero, (1 << quantiser.bits) - 1 - zero)  # pyright: ignore[reportReturnType]


def levels(quantiser: Levels, scale: Tensor, x: Tensor) -> Tensor:
    """x on the levels of a quantiser with this scale, float32 []; gradients as those of `affine`."""
    integers, limits = quantiser.levels.float(), (quantiser.limits / quantiser.scale).float()
    steps = x.float() / scale
    found = integers[torch.bucketize(steps.detach(), limits, right=True)]
    within = steps.clamp(integers[0].item(), integers[-1].item())
    return (within + (found - within).detach()) * scale


def powers(quantiser: LogSqrt2, x: Tensor) -> Tensor:
    """x, attention weights, on the grid of their quantiser, whose scale stays; float32."""
    return _Powers.apply(x, quantiser)  # pyright: ignore[reportReturnType]


def _flat(x: Tensor) -> np.ndarray:
    return x.detach().numpy().reshape(-1)


@kept(__file__)
@njit(nogil=True)
def _affine(x, scale, low, high, out):
    inverse, scale, low, high = np.float32(1 / scale), np.float32(scale), np.float32(low), np.float32(high)
    for i in range(len(x)):
        out[i] = min(max(np.rint(x[i] * inverse), low), high) * scale


@kept(__file__)
@njit(nogil=True, fastmath=REORDERED)
def _affine_gradient(x, gradient, scale, low, high, inside):
    """inside: the gradient of x; returns that of the scale."""
    inverse, low, high = np.float32(1 / scale), np.float32(low), np.float32(high)
    total = np.float64(0)
    for start in range(0, len(x), 4096):
        part = np.float32(0)
        for i in range(start, min(start + 4096, len(x))):
            steps = x[i] * inverse
            code = np.rint(steps)
            clipped = min(max(code, low), high)
            is_inside = clipped == code
            inside[i] = gradient[i] if is_inside else np.float32(0)
            part += gradient[i] * (code - steps if is_inside else clipped)
        total += part
    return total


@kept(__file__)
@njit(nogil=True)
def _powers(x, scale, last, last_value, out):
    """Code round(-2 log2(x / scale)) from the float's own bits: its exponent, and whether its fraction is past 2^(1/4) and 2^(3/4)."""
    inverse, even, odd, last = np.float32(1 / scale), np.float32(scale), np.float32(scale / np.sqrt(2.0)), np.int32(last)
    last_value = np.float32(last_value)
    for i in range(len(x)):
        bits = np.float32(x[i] * inverse).view(np.int32)
        fraction = np.int32(bits & np.int32(0x7FFFFF))
        past = np.int32(fraction >= np.int32(1587137)) + np.int32(fraction >= np.int32(5719225))
        code = np.int32(np.int32(2) * (np.int32(127) - np.int32(bits >> np.int32(23))) - past)
        code = min(max(code, np.int32(0)), last)
        power = np.int32((np.int32(127) - np.int32(code >> np.int32(1))) << np.int32(23)).view(np.float32)
        value = power * (odd if code & np.int32(1) else even)
        out[i] = last_value if code == last else value
