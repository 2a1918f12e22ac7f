"""The parts of a calibrated network that ViT and Swin have in common, as operations of an integer program."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch

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
from reference.constants import exp2_table, gelu_index, gelu_table, log2, log2_e, log2_table, over_sqrt2, ratio, ratios, round_half_up, sqrt
from reference.layers import Norm
from reference.repq import Calibrated
from reference.swin import Windows

LOGIT_BITS = 32
Step = tuple[Fraction, int]
"""What one code stands for, and the zero point."""


@dataclass(frozen=True)
class LoweringConfig:
    """Widths of the lowered program (docs/datapath.md); all in bits.

    exponent_bits: fraction of the base-2 exponents of the softmax; log2_index_bits: index of its logarithm table;
    headroom: how far beyond the largest calibrated value the residual stream reaches before it saturates.
    """

    residual_bits: int = 16
    multiplier_bits: int = 16
    accumulator_bits: int = 32
    norm_fraction_bits: int = 12
    reciprocal_bits: int = 15
    exponent_bits: int = 8
    exp2_bits: int = 15
    log2_index_bits: int = 8
    gelu_index_bits: int = 8
    headroom: float = 2.0
    rounding: Rounding = "half_up"
    overflow: Overflow = "error"

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
        head_dim = channels // block.heads
        q, k, v, out = (self.calibrated.activations[part] for part in (f"{name}.q", f"{name}.k", f"{name}.v", name))
        steps = [(fraction(each.scale), int(each.zero)) for each in (q, k, v)]
        score_step = Fraction(self.calibrated.score_scale(i))
        if windows is None:  # a ViT scales the scores, Swin scales q before its quantiser
            score_step /= sqrt(head_dim)
        else:
            steps[0] = (steps[0][0] * sqrt(head_dim), steps[0][1])
        grid = self.calibrated.attention[i]
        qkv = self.codes(f"{name}.qkv", f"{name}.v", (tokens, 3 * channels))
        score_multiplier, score_shift = ratio(score_step * log2_e() * (1 << config.exponent_bits), config.multiplier_bits)
        even, out_shift = ratio(
            Fraction(grid.scale) * fraction(v.scale) / (fraction(out.scale) * (1 << grid.last_code // 2)), config.multiplier_bits
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
                logit_bias=None if windows is None else _int32(name, self.calibrated.logit_bias_codes(i, windows).numpy())[None],
                excluded=None if windows is None or windows.excluded is None else windows.excluded.numpy(),
            ),
        ]

    def code_norm(self, name: str, x: Value, norm: Norm) -> LayerNorm:
        """A norm whose output is codes."""
        activation = self.calibrated.activations[name]
        return self.norm(x, self.codes(name, name, x.shape), norm, activation.scale.item(), int(activation.zero))

    def norm(self, x: Value, out: Value, norm: Norm, scale: float, zero: int = 0) -> LayerNorm:
        """gain = gamma / scale * 2^(shift - fraction_bits), offset = (beta / scale + zero) * 2^shift."""
        config, channels = self.config, len(norm.gain)
        gain = (norm.gain / scale).numpy()
        largest = float(np.abs(gain).max()) or 1.0
        shift = config.norm_fraction_bits + config.multiplier_bits - 1 - math.frexp(largest)[1]
        if shift < 0:
            raise UserError(
                f"{out.name}: a gain of {largest:.3g} steps does not fit {config.multiplier_bits} bits; calibrate on other images"
            )
        eps = norm.eps * channels**2 / float(self.stream_scale(x.name)) ** 2
        return LayerNorm(
            x.name,
            out,
            np.rint(gain * 2.0 ** (shift - config.norm_fraction_bits)).astype(np.int32),
            np.rint(((norm.bias / scale).numpy() + zero) * 2.0**shift).astype(np.int64),
            shift,
            max(1, round(eps)),
            config.norm_fraction_bits,
            config.reciprocal_bits,
        )

    def linear(self, name: str, x: Value, out: Value, epilogue: Callable[[list[Fraction]], Epilogue]) -> Linear:
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
            _int32(name, calibrated.bias_codes(name).numpy()),
            epilogue([Fraction(scale) for scale in calibrated.acc_scales(name).tolist()]),
        )

    def requant(self, targets: Sequence[Step]) -> Callable[[list[Fraction]], Epilogue]:
        """targets: of every output channel."""

        def build(acc_scales: list[Fraction]) -> Requant:
            steps = [acc_scale / step for acc_scale, (step, _) in zip(acc_scales, targets, strict=True)]
            zero = np.array([zero for _, zero in targets], np.int32)
            return Requant(*ratios(steps, Fraction(1), self.config.multiplier_bits), zero)

        return build

    def gelu(self, site: str) -> Callable[[list[Fraction]], Epilogue]:
        out, index_bits = self.calibrated.activations[site], self.config.gelu_index_bits
        step, index_zero = gelu_index(out.scale.item(), int(out.zero), out.bits, index_bits)
        table = gelu_table(Fraction(step), index_zero, index_bits, fraction(out.scale), int(out.zero), out.bits)

        def build(acc_scales: list[Fraction]) -> Gelu:
            return Gelu(*ratios(acc_scales, Fraction(step), self.config.multiplier_bits), index_zero, index_bits, table)

        return build

    def residual(self, operand: str, out: str) -> Callable[[list[Fraction]], Epilogue]:
        change = self.stream_exponents[out] - self.stream_exponents[operand]
        scale = self.stream_scale(out)
        return lambda acc_scales: Residual(operand, *ratios(acc_scales, scale, self.config.multiplier_bits), change)

    def raw(self, scale: Fraction | None) -> Callable[[list[Fraction]], Epilogue]:
        """scale None: logits, in 1/256 of the largest accumulator unit."""
        return lambda acc_scales: Raw(*ratios(acc_scales, scale or max(acc_scales) / 256, self.config.multiplier_bits))

    def codes(self, name: str, site: str, shape: tuple[int, ...]) -> Value:
        return Value(name, shape, self.calibrated.activations[site].bits)

    def stream(self, name: str, shape: tuple[int, ...]) -> Value:
        return Value(name, shape, self.config.residual_bits, signed=True)

    def stream_scale(self, name: str) -> Fraction:
        return Fraction(2) ** self.stream_exponents[name]


def _int32(name: str, codes: np.ndarray) -> np.ndarray:
    """Biases in units of the accumulator; UserError if one leaves 32 bits."""
    largest = np.abs(codes).max()
    if largest >= 1 << 31:
        raise UserError(f"{name}: a bias of {largest:.3g} accumulator units leaves 32 bits; check the model's weights")
    return codes.astype(np.int32)
