"""The parts of a calibrated network that ViT and Swin have in common, as operations of an integer program."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

import numpy as np
import torch

from eamsim.arguments import expect_integer, is_number
from eamsim.datapath import CEILINGS, FLOORS, KNOBS, LOGIT_BITS, Widths
from eamsim.errors import UserError
from eamsim.program import (
    Attention,
    Datapath,
    Epilogue,
    Gather,
    Gelu,
    InputQuant,
    LayerNorm,
    Linear,
    Operation,
    Overflow,
    Raw,
    Requant,
    Residual,
    Rounding,
    Softmax,
    Value,
)
from reference.lowering.constants import (
    Place,
    exp2_table,
    gelu_index,
    gelu_table,
    log2,
    log2_e,
    log2_table,
    over_sqrt2,
    ratio,
    ratios,
    round_half_up,
    sqrt,
)
from reference.models.layers import Norm
from reference.models.swin import Windows
from reference.quantisation.levels import Levels
from reference.quantisation.repq import Calibrated

OFFSET_BITS = 61  # of a norm's offset: with what is added to it, it stays within 63
Step = tuple[Fraction, int]
"""What one code stands for, and the zero point."""

MakeEpilogue = Callable[[str, list[Fraction]], Epilogue]
"""(name of the layer, what one unit of its sums stands for in each channel) -> what is done to the sums."""


MOST_HEADROOM = 1 << 16


@dataclass(frozen=True)
class LoweringConfig(Widths):
    """The datapath of the lowered program, its widths and rules. Raises UserError for what no program can have.

    headroom: how far beyond the largest calibrated value the residual stream reaches before it saturates; keep_unread: compute the
    rows that nothing reads, as published counts do.
    """

    headroom: float = 2.0
    rounding: Rounding = "half_up"
    overflow: Overflow = "error"
    keep_unread: bool = False

    def __post_init__(self) -> None:
        for name in KNOBS:
            expect_integer(name, getattr(self, name), getattr(FLOORS, name), getattr(CEILINGS, name))
        if not is_number(self.headroom) or not 1 <= self.headroom <= MOST_HEADROOM:
            raise UserError(f"headroom: expected 1 to {MOST_HEADROOM}, got {self.headroom!r}")

    @property
    def datapath(self) -> Datapath:
        return Datapath(self.rounding, self.multiplier_bits, self.accumulator_bits, self.overflow)


DEFAULTS = LoweringConfig()


def fraction(x: torch.Tensor) -> Fraction:
    """A scale, exactly."""
    return Fraction(x.item())


@dataclass(frozen=True)
class Lowering:
    """Makes operations out of layers; stream_exponents: log2 of the scale of every signed value, by name."""

    calibrated: Calibrated
    config: LoweringConfig
    softmax: Softmax
    stream_exponents: dict[str, int]

    def patches(self, image: Value) -> list[Operation]:
        """The image's codes, patch by patch."""
        activation, p = self.calibrated.activations["input"], self.calibrated.network.pixels.patch_size
        height, width = image.shape[:2]
        down, across = height // p, width // p
        run = math.gcd(p, width)  # pixels side by side that every row and every patch is made of: p where p divides the width
        rows = np.arange(height * width // run, dtype=np.int32).reshape(height, -1)[: down * p, : across * p // run]
        indices = rows.reshape(down, p, across, p // run).transpose(0, 2, 1, 3).ravel()
        return [
            InputQuant("image", Value("input", image.shape, activation.bits), self.input_table()),
            Gather("input", Value("patches", (down * across, p * p * 3), activation.bits), indices, run * 3),
        ]

    def input_table(self) -> np.ndarray:
        """The quantiser's own codes of the 256 pixel values: IEEE arithmetic that is the same everywhere, ties included."""
        pixels = self.calibrated.network.pixels.normalise(torch.arange(256, dtype=torch.uint8)[:, None])
        return self.calibrated.activations["input"].codes(pixels).numpy().T.astype(np.uint8).copy()

    def block(self, i: int, x: Value, attend: Callable[[Value], list[Operation]]) -> list[Operation]:
        """attend: normalised codes -> the operations that make the heads' outputs of them."""
        block, name, tokens = self.calibrated.network.blocks[i], f"block{i}", x.shape[0]
        norm1 = self.code_norm(f"{name}.norm1", x, block.norm1)
        mixed = attend(norm1.out)
        middle, out = self.stream(f"{name}.attn.proj", x.shape), self.stream(f"{name}.mlp.fc2", x.shape)
        norm2 = self.code_norm(f"{name}.norm2", middle, block.norm2)
        hidden = self.codes(f"{name}.mlp.fc1", f"{name}.mlp.fc1", (tokens, len(block.fc1.bias)))
        return [
            norm1,
            *mixed,
            self.linear(f"{name}.attn.proj", mixed[-1].out, middle, self.residual(x.name, middle.name)),
            norm2,
            self.linear(f"{name}.mlp.fc1", norm2.out, hidden, self.gelu(f"{name}.mlp.fc1")),
            self.linear(f"{name}.mlp.fc2", hidden, out, self.residual(middle.name, out.name)),
        ]

    def classifier(self, x: Value) -> Linear:
        head = self.calibrated.network.head
        return self.linear("head", x, Value("head", (1, len(head.bias)), LOGIT_BITS, signed=True), self.raw(None))

    def attention(self, i: int, x: Value, windows: Windows | None = None) -> list[Operation]:
        """The qkv projection and the attention itself, on tokens in the order of windows."""
        name, block, config = f"block{i}.attn", self.calibrated.network.blocks[i], self.config
        tokens, channels = x.shape
        q, k, v, out = (self.calibrated.activations[part] for part in (f"{name}.q", f"{name}.k", f"{name}.v", name))
        steps = [(fraction(each.scale), int(each.zero)) for each in (q, k, v)]
        if windows is not None:  # Swin scales q before its quantiser, a ViT the scores
            steps[0] = (steps[0][0] * sqrt(channels // block.heads), steps[0][1])
        grid = self.calibrated.attention[i]
        qkv = self.codes(f"{name}.qkv", f"{name}.v", (tokens, 3 * channels))
        score_multiplier, score_shift = self.score_ratio(i, qkv, 1 if windows is not None else channels // block.heads)
        even, out_shift = self.ratio(
            lambda: name, Fraction(grid.scale) * fraction(v.scale) / (fraction(out.scale) * (1 << grid.last_code // 2))
        )
        return [
            self.linear(qkv.name, x, qkv, self.requant([step for step in steps for _ in range(channels)])),
            Attention(
                x=qkv.name,
                out=self.codes(name, name, x.shape),
                heads=block.heads,
                windows=1 if windows is None else len(windows.order),
                score_heads=tuple(range(block.heads)),
                q_zero=int(q.zero),
                k_zero=int(k.zero),
                v_zero=int(v.zero),
                score_multiplier=score_multiplier,
                score_shift=score_shift,
                exp2=exp2_table(config.exponent_bits, config.exp2_bits),
                exp2_bits=config.exp2_bits,
                log2=log2_table(config.log2_index_bits, config.exponent_bits),
                log2_scale=round_half_up(log2(Fraction(grid.scale)) * (1 << config.exponent_bits)),
                attention_bits=grid.bits,
                last_code_is_zero=grid.last_code_is_zero,
                softmax=self.softmax,
                multiplier_even=even,
                multiplier_odd=over_sqrt2(even),
                out_shift=out_shift,
                out_zero=int(out.zero),
                logit_bias=None if windows is None else self.logit_bias(i, windows),
                excluded=None if windows is None or windows.excluded is None else windows.excluded.numpy(),
            ),
        ]

    def score_ratio(self, i: int, qkv: Value, head_dim: int) -> tuple[int, int]:
        """From q k^T to fractions of a binary exponent: what the scores are still to be divided by the root of is head_dim."""
        step = Fraction(self.calibrated.score_scale(i)) / sqrt(head_dim) * log2_e()
        return self.ratio(lambda: f"block{i}.attn, scores of {self.largest(qkv.name)}", step * (1 << self.config.exponent_bits))

    def logit_bias(self, i: int, windows: Windows) -> np.ndarray:
        """int32 [1, heads, tokens, tokens], a Swin's position bias in units of the scores."""
        codes = self.calibrated.logit_bias_codes(i, windows).numpy()
        return int32(codes, lambda head: f"block{i}.attn, head {head}", "its position bias")[None]

    def code_norm(self, name: str, x: Value, norm: Norm) -> LayerNorm:
        """A norm whose output is codes."""
        activation = self.calibrated.activations[name]
        return self.norm(x, self.codes(name, name, x.shape), norm, activation.scale.item(), int(activation.zero))

    def norm(self, x: Value, out: Value, norm: Norm, scale: float, zero: int = 0) -> LayerNorm:
        """gain = gamma / scale * 2^(shift - fraction_bits), offset = (beta / scale + zero) * 2^shift."""
        config, channels = self.config, len(norm.gain)
        gain, offset = (norm.gain / scale).numpy(), (norm.bias / scale).numpy() + zero
        channel = int(np.abs(gain).argmax())
        largest = float(abs(gain[channel])) or 1.0
        shift = config.norm_fraction_bits + config.multiplier_bits - 1 - math.frexp(largest)[1]
        shift = min(shift, OFFSET_BITS - math.frexp(float(np.abs(offset).max()))[1])
        if shift < 0:
            raise UserError(
                f"{out.name}, channel {channel}: its gain {float(norm.gain[channel]):.3g} is {largest:.3g} steps of its result, more than"
                f" {config.multiplier_bits} bits hold: it hardly varies beside one that is far too large; look at {self.largest(x.name)}"
            )
        eps = norm.eps * channels**2 / float(self.stream_scale(x.name)) ** 2
        return LayerNorm(
            x.name,
            out,
            np.rint(gain * 2.0 ** (shift - config.norm_fraction_bits)).astype(np.int32),
            np.rint(offset * 2.0**shift).astype(np.int64),
            shift,
            max(1, round(eps)),
            config.norm_fraction_bits,
            config.reciprocal_bits,
        )

    def linear(self, name: str, x: Value, out: Value, epilogue: MakeEpilogue) -> Linear:
        """The layer `name` on value x."""
        calibrated = self.calibrated
        weight, activation = calibrated.weights[name], calibrated.activations[calibrated.network.sources[name]]
        codes = weight.codes(calibrated.denses[name].weight)
        return Linear(
            x.name,
            out,
            np.ascontiguousarray(codes.numpy().T).astype(np.uint8),
            weight.bits,
            weight.zero.flatten().numpy().astype(np.uint8),
            int(activation.zero),
            int32(calibrated.bias_codes(name).numpy(), partial(self.channel, name), "its bias"),
            epilogue(name, [Fraction(scale) for scale in calibrated.acc_scales(name).tolist()]),
            activation.levels.numpy().astype(np.int32) if isinstance(activation, Levels) else None,
        )

    def channel(self, name: str, i: int) -> str:
        """Output channel i of the layer `name`, with what its sums are made of, for an error."""
        dense, source = self.calibrated.denses[name], self.calibrated.activations[self.calibrated.network.sources[name]]
        weights = dense.weight.abs().amax(dim=1)
        read = source.decode(torch.tensor([0, (1 << source.bits) - 1])).abs().max().item()
        return (
            f"{name}, channel {i} (weights up to {weights[i].item():.3g}, those of a typical channel up to {weights.median().item():.3g};"
            f" inputs up to {read:.3g})"
        )

    def largest(self, name: str) -> str:
        """`channel` with the largest weight, if `name` is that of a layer."""
        dense = self.calibrated.denses.get(name)
        return name if dense is None else self.channel(name, int(dense.weight.abs().amax(dim=1).argmax()))

    def ratio(self, place: Place, r: Fraction) -> tuple[int, int]:
        """Multiplier and shift that a whole value has in common."""
        return ratio(r, self.config.multiplier_bits, place)

    def ratios(self, name: str, acc_scales: list[Fraction], steps: list[Fraction] | Fraction) -> tuple[np.ndarray, np.ndarray]:
        """Multipliers and shifts of the layer `name`, from its sums to steps of each channel or of all."""
        each = steps if isinstance(steps, list) else [steps] * len(acc_scales)
        return ratios(acc_scales, each, self.config.multiplier_bits, partial(self.channel, name))

    def requant(self, targets: Sequence[Step]) -> MakeEpilogue:
        """targets: of every output channel."""
        steps, zeros = [step for step, _ in targets], np.array([zero for _, zero in targets], np.int32)
        return lambda name, acc_scales: Requant(*self.ratios(name, acc_scales, steps), zeros)

    def gelu(self, site: str) -> MakeEpilogue:
        out, index_bits = self.calibrated.activations[site], self.config.gelu_index_bits
        limits = out.limits.tolist()
        step, index_zero = gelu_index(limits, out.reach, index_bits)
        table = gelu_table(Fraction(step), index_zero, index_bits, limits)
        return lambda name, acc_scales: Gelu(*self.ratios(name, acc_scales, Fraction(step)), index_zero, index_bits, table)

    def residual(self, operand: str, out: str) -> MakeEpilogue:
        change = self.stream_exponents[out] - self.stream_exponents[operand]

        def build(name: str, acc_scales: list[Fraction]) -> Residual:
            multiplier, shift = self.ratios(name, acc_scales, self.stream_scale(out))
            if change > shift.min():  # C13
                raise UserError(
                    f"{self.channel(name, int(shift.argmin()))}: it brings a residual stream of at most"
                    f" {self.calibrated.stream_max[operand]:.3g} to {self.calibrated.stream_max[out]:.3g}, which no common scale holds;"
                    " look for a weight that is far too large"
                )
            return Residual(operand, multiplier, shift, change)

        return build

    def raw(self, scale: Fraction | None) -> MakeEpilogue:
        """scale None: logits, in 1/256 of the largest accumulator unit."""
        return lambda name, acc_scales: Raw(*self.ratios(name, acc_scales, scale or max(acc_scales) / 256))

    def codes(self, name: str, site: str, shape: tuple[int, ...]) -> Value:
        return Value(name, shape, self.calibrated.activations[site].bits)

    def stream(self, name: str, shape: tuple[int, ...]) -> Value:
        return Value(name, shape, self.config.residual_bits, signed=True)

    def stream_scale(self, name: str) -> Fraction:
        return Fraction(2) ** self.stream_exponents[name]


def int32(codes: np.ndarray, place: Callable[[int], str], what: str) -> np.ndarray:
    """Constants in units of sums, their channel or head the first axis; UserError if one leaves 32 bits."""
    largest = np.abs(codes).reshape(len(codes), -1).max(axis=1)
    i = int(largest.argmax())
    if largest[i] >= 1 << 31:
        raise UserError(
            f"{place(i)}: {what} is {largest[i]:.3g} units of its sums, beyond 32 bits;"
            " look for one that is far too large, or weights far too small"
        )
    return codes.astype(np.int32)
