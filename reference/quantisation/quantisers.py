"""The two quantisers of RepQ-ViT (Li et al., ICCV 2023) and the search for their ranges."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from eamsim.choice import least
from eamsim.errors import UserError

PERCENTILES = (0.999, 0.9999, 0.99999)
SAMPLE_SIZE = 1 << 22  # values of a tensor that a range search looks at: enough for its rarest percentile, and sorted in half a second
LEAST_SCALE = 2.0**-16  # of the largest scale: a constant channel still needs a scale


def as_scale(x: Tensor) -> Tensor:
    """x to 24 bits: products of two scales are exact in float64, and its last bits, in which processors differ, end here."""
    return x.float().double()


@dataclass(frozen=True, eq=False)
class Affine:
    """`code = clip(round(x / scale) + zero, 0, 2^bits - 1)`; scale and zero broadcast against x.

    zero is an integer in the code range, except as published by RepQ-ViT, where it may be a fraction or lie outside.
    """

    scale: Tensor
    zero: Tensor
    bits: int

    @property
    def magnitude_bits(self) -> int:
        """A code less the zero point is below 2^magnitude_bits."""
        return self.bits

    @property
    def limits(self) -> Tensor:
        """Of one quantiser for a whole tensor, the least values of the codes from 1 on: float64 [2^bits - 1], exact."""
        return (torch.arange(1, 1 << self.bits, dtype=torch.float64) - self.zero - 0.5) * self.scale

    @property
    def reach(self) -> float:
        """More than any value that is not the last code's."""
        return (1 << self.bits) * self.scale.item()

    def codes(self, x: Tensor) -> Tensor:
        return (x / self.scale).round_().add_(self.zero).clamp_(0, (1 << self.bits) - 1)  # in place: half the time of a forward pass

    def decode(self, codes: Tensor) -> Tensor:
        return (codes - self.zero) * self.scale

    def steps(self, x: Tensor) -> Tensor:
        """x quantised, in steps of the scale: codes less the zero point."""
        return self.codes(x).sub_(self.zero)

    def __call__(self, x: Tensor) -> Tensor:
        """x quantised and dequantised."""
        return self.steps(x).mul_(self.scale)


@dataclass(frozen=True)
class LogSqrt2:
    """Code c in 0..2^bits - 1 stands for `scale * 2^(-c / 2)`, and the last code for 0 if `last_code_is_zero`.

    extra_zero: RepQ-ViT's published grid, which has a zero after its 2^bits powers and so needs one code too many.
    """

    scale: float
    bits: int
    last_code_is_zero: bool
    extra_zero: bool = False

    @property
    def last_code(self) -> int:
        return (1 << self.bits) - 1 + self.extra_zero

    def codes(self, x: Tensor) -> Tensor:
        return (x / self.scale).log2_().mul_(-2).round_().clamp_(0, self.last_code)

    def decode(self, codes: Tensor) -> Tensor:
        values = self.scale * torch.exp2(-codes / 2)
        return torch.where(codes == self.last_code, 0.0, values) if self.last_code_is_zero else values

    def __call__(self, x: Tensor) -> Tensor:
        """x quantised and dequantised."""
        return self.decode(self.codes(x))


def search_affine(x: Tensor, bits: int, contain_zero: bool, channel_axis: int | None = None) -> Affine:
    """The range of least mean squared error among those between the PERCENTILES and their mirror.

    contain_zero: widen each range to contain 0, so that the zero point is a code. channel_axis: one range per index of that
    axis, else one for the tensor. Large tensors are sampled with a fixed seed. Raises UserError where no error is finite.
    """
    rows = x.reshape(1, -1) if channel_axis is None else x.movedim(channel_axis, 0).flatten(1)
    rows = _sample(rows).sort(dim=1).values
    best = torch.full((len(rows), 1), torch.inf, dtype=torch.float64)
    scale, zero = torch.ones_like(best), torch.zeros_like(best)
    for percentile in PERCENTILES:
        low, high = _quantile(rows, 1 - percentile), _quantile(rows, percentile)
        if contain_zero:
            low, high = low.clamp(max=0), high.clamp(min=0)
        candidate = _affine(low, high, bits)
        error = (candidate(rows) - rows).square().mean(dim=1, keepdim=True)
        better = error < best
        best = torch.where(better, error, best)
        scale, zero = torch.where(better, candidate.scale, scale), torch.where(better, candidate.zero, zero)
    if not best.isfinite().all():
        raise UserError("ranges: expected values whose squared error is finite, got NaN, infinite or too large ones; check the weights")
    shape = [1] * x.ndim if channel_axis is not None else []
    if channel_axis is not None:
        shape[channel_axis] = len(rows)
    return Affine(scale.reshape(shape), zero.reshape(shape), bits)


def search_log(x: Tensor, bits: int, last_code_is_zero: bool, extra_zero: bool = False) -> LogSqrt2:
    """The log-sqrt2 quantiser whose scale, one of the PERCENTILES of x, has the least mean squared error; x in [0, 1].

    A percentile that is 0, or is in float32, cannot be a scale. Raises UserError where all of them are.
    """
    rows = _sample(x.reshape(1, -1)).sort(dim=1).values
    scales = [as_scale(_quantile(rows, percentile)).item() for percentile in PERCENTILES]
    candidates = [LogSqrt2(scale, bits, last_code_is_zero, extra_zero) for scale in scales]
    return least(candidates, lambda quantiser: (quantiser(rows) - rows).square().mean().item(), "attention weights")


def _affine(low: Tensor, high: Tensor, bits: int) -> Affine:
    scale = as_scale((high - low) / ((1 << bits) - 1))
    least = scale.max() * LEAST_SCALE
    scale = scale.clamp(min=least) if least > 0 else torch.ones_like(scale)
    return Affine(scale, torch.round(-low / scale), bits)


def _sample(rows: Tensor) -> Tensor:
    """At most SAMPLE_SIZE values in all: the same randomly chosen columns of every row."""
    wanted = max(1, SAMPLE_SIZE // len(rows))
    if rows.shape[1] <= wanted:
        return rows
    return rows[:, torch.randint(rows.shape[1], (wanted,), generator=torch.Generator().manual_seed(0))]


def _quantile(rows: Tensor, fraction: float) -> Tensor:
    """Quantile of sorted rows, linearly interpolated: [rows, 1]."""
    position = fraction * (rows.shape[1] - 1)
    left = int(position)
    right = min(left + 1, rows.shape[1] - 1)
    return torch.lerp(rows[:, left], rows[:, right], position - left)[:, None]
