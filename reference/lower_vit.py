"""A calibrated ViT as an integer program."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from eamsim.errors import UserError
from eamsim.program import (
    Attention,
    Embed,
    Epilogue,
    Frozen,
    Gather,
    Gelu,
    InputQuant,
    LayerNorm,
    Linear,
    Operation,
    Program,
    Raw,
    Requant,
    Residual,
    Softmax,
    Value,
)
from reference.fakequant import frozen_mass, on_grid
from reference.freeze import FrozenMap
from reference.lower import (
    DEFAULTS,
    LoweringConfig,
    exp2_table,
    gelu_index,
    gelu_table,
    log2,
    log2_table,
    over_sqrt2,
    ratio,
    ratios,
    round_half_up,
    score_ratio,
)
from reference.quantisers import Affine
from reference.repq import Calibrated
from reference.vit import Norm

LOGIT_BITS = 32


def lower(
    calibrated: Calibrated,
    frozen: Sequence[FrozenMap] | None = None,
    softmax: Softmax = "paper",
    config: LoweringConfig = DEFAULTS,
) -> Program:
    """The integer program of a model calibrated in `hardware` mode, one frozen map per block where there are any.

    Frozen means become codes of the block's own attention grid. Under `renormalised` a wholly frozen head loses its q and k
    columns. Raises UserError for a model calibrated `published` and where a constant does not fit its width.
    """
    if calibrated.mode != "hardware":
        raise UserError("lowering needs a model calibrated in 'hardware' mode; the published grid has 17 levels and fractional zero points")
    lowering = _Lowering(calibrated, config, softmax, _stream_exponents(calibrated, config))
    image = Value("image", (calibrated.model.preprocessing.height, calibrated.model.preprocessing.width, 3), 8)
    operations = [*lowering.embedding(image)]
    for i in range(len(calibrated.vit.blocks)):
        operations += lowering.block(i, operations[-1].out.name, None if frozen is None else frozen[i])
    operations += lowering.classifier(operations[-1].out.name)
    return Program(calibrated.model.name, image, tuple(operations), config.datapath)


def provenance(calibrated: Calibrated, config: LoweringConfig = DEFAULTS) -> dict[str, Any]:
    """Where a program comes from, for people and for the preparation of images, as JSON values; no interpreter reads it."""
    model = calibrated.model
    scales = {
        name: {"scale": quantiser.scale.item(), "zero": int(quantiser.zero), "bits": quantiser.bits}
        for name, quantiser in calibrated.activations.items()
    }
    return {
        "model": model.name,
        "preprocessing": asdict(model.preprocessing),
        "mean": list(model.mean),
        "std": list(model.std),
        "labels": None if model.label_names is None else list(model.label_names),
        "calibration": {"method": "RepQ-ViT", "mode": calibrated.mode, "images": calibrated.images},
        "lowering": asdict(config),
        "activations": scales,
        "attention": [asdict(quantiser) for quantiser in calibrated.attention],
        "stream_log2_scales": _stream_exponents(calibrated, config),
    }


def _stream_exponents(calibrated: Calibrated, config: LoweringConfig) -> dict[str, int]:
    """log2 of the scale of every residual value: large enough for `headroom` times its calibrated maximum, never decreasing."""
    largest = dict(calibrated.stream_max)
    largest["patch_embed"] = largest["embed"] = max(largest["patch_embed"], largest["embed"])
    limit = (1 << (config.residual_bits - 1)) - 1
    exponents, current = {}, -24
    for name, maximum in largest.items():
        needed = math.ceil(math.log2(config.headroom * maximum / limit)) if maximum > 0 else current
        current = exponents[name] = max(current, needed)
    return exponents | {"cls": current}


def _fraction(x: torch.Tensor) -> Fraction:
    return Fraction(x.item())


@dataclass(frozen=True)
class _Lowering:
    calibrated: Calibrated
    config: LoweringConfig
    softmax: Softmax
    stream_exponents: dict[str, int]

    def embedding(self, image: Value) -> list[Operation]:
        vit, activation = self.calibrated.vit, self.calibrated.activations["input"]
        patches = len(vit.position)
        height, width = image.shape[:2]
        p = vit.patch_size
        rows, columns = height // p, width // p
        indices = np.arange(height * columns, dtype=np.int32).reshape(rows, p, columns).transpose(0, 2, 1).ravel()
        scale = self.stream_scale("embed")
        return [
            InputQuant("image", Value("input", image.shape, activation.bits), self.input_table()),
            Gather("input", Value("patches", (patches, p * p * 3), activation.bits), indices, p * 3),
            self.linear("patch_embed", "patches", self.stream("patch_embed", patches), self.raw(scale)),
            Embed("patch_embed", self.stream("embed", patches + 1), self.constant(vit.prefix, scale), self.constant(vit.position, scale)),
        ]

    def input_table(self) -> np.ndarray:
        """The quantiser's own codes of the 256 pixel values: IEEE arithmetic that is the same everywhere, ties included."""
        pixels = self.calibrated.vit.normalise(torch.arange(256, dtype=torch.uint8)[:, None])
        return self.calibrated.activations["input"].codes(pixels).numpy().T.astype(np.uint8).copy()

    def block(self, i: int, x: str, frozen: FrozenMap | None) -> list[Operation]:
        block, tokens = self.calibrated.vit.blocks[i], len(self.calibrated.vit.position) + 1
        name = f"block{i}"
        middle, out = self.stream(f"{name}.attn.proj", tokens), self.stream(f"{name}.mlp.fc2", tokens)
        hidden = self.codes(f"{name}.mlp.fc1", f"{name}.mlp.fc1", tokens, len(block.fc1.bias))
        return [
            self.norm(f"{name}.norm1", x, tokens, block.norm1),
            *self.attention(i, tokens, frozen),
            self.linear(f"{name}.attn.proj", f"{name}.attn", middle, self.residual(x, middle.name)),
            self.norm(f"{name}.norm2", middle.name, tokens, block.norm2),
            self.linear(f"{name}.mlp.fc1", f"{name}.norm2", hidden, self.gelu(f"{name}.mlp.fc1")),
            self.linear(f"{name}.mlp.fc2", f"{name}.mlp.fc1", out, self.residual(middle.name, out.name)),
        ]

    def classifier(self, x: str) -> list[Operation]:
        vit = self.calibrated.vit
        channels, classes = vit.position.shape[1], len(vit.head.bias)
        cls = Gather(x, self.stream("cls", 1), np.zeros(1, np.int32), channels)
        logits = Value("head", (1, classes), LOGIT_BITS, signed=True)
        return [cls, self.norm("norm", "cls", 1, vit.norm), self.linear("head", "norm", logits, self.raw(None))]

    def attention(self, i: int, tokens: int, frozen: FrozenMap | None) -> list[Operation]:
        """The qkv projection without the columns of wholly frozen heads, and the attention itself."""
        name, vit, config = f"block{i}.attn", self.calibrated.vit, self.config
        heads, channels = vit.heads, vit.position.shape[1]
        q, k, v, out = (self.calibrated.activations[part] for part in (f"{name}.q", f"{name}.k", f"{name}.v", name))
        grid = self.calibrated.attention[i]
        scored = self.score_heads(frozen)
        columns = np.arange(3 * channels).reshape(3, heads, -1)
        columns = np.concatenate([columns[0, scored].ravel(), columns[1, scored].ravel(), columns[2].ravel()])
        qkv = self.codes(f"{name}.qkv", f"{name}.v", tokens, len(columns))
        score_multiplier, score_shift = ratio(
            score_ratio(_fraction(q.scale), _fraction(k.scale), channels // heads) * (1 << config.exponent_bits), config.multiplier_bits
        )
        top_power = grid.last_code // 2
        even, out_shift = ratio(
            Fraction(grid.scale) * _fraction(v.scale) / (_fraction(out.scale) * (1 << top_power)), config.multiplier_bits
        )
        return [
            self.linear(qkv.name, f"block{i}.norm1", qkv, self.requant((q, k, v), columns // channels), columns),
            Attention(
                x=qkv.name,
                out=self.codes(name, name, tokens, channels),
                heads=heads,
                windows=1,
                score_heads=tuple(scored),
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
                frozen=None if frozen is None else self.frozen(i, frozen),
            ),
        ]

    def score_heads(self, frozen: FrozenMap | None) -> list[int]:
        """The heads whose scores are needed."""
        heads = range(self.calibrated.vit.heads)
        if frozen is None or self.softmax == "paper":
            return list(heads)
        return [head for head in heads if not frozen.mask[head].all()]

    def frozen(self, i: int, frozen: FrozenMap) -> Frozen:
        grid = self.calibrated.attention[i]
        codes = np.where(frozen.mask, grid.codes(torch.from_numpy(frozen.mean)).numpy(), 0).astype(np.uint8)
        row_log2 = np.rint(-np.log2(1 - frozen_mass(on_grid(frozen, grid))) * (1 << self.config.exponent_bits))
        return Frozen(frozen.mask[None], codes[None], grid.bits, row_log2.astype(np.int32)[None])

    def norm(self, name: str, x: str, tokens: int, norm: Norm) -> LayerNorm:
        """gain = gamma / scale * 2^(shift - fraction_bits), offset = (beta / scale + zero) * 2^shift."""
        config, activation = self.config, self.calibrated.activations[name]
        scale, channels = activation.scale.double(), len(norm.gain)
        gain = (norm.gain.double() / scale).numpy()
        largest = float(np.abs(gain).max()) or 1.0
        shift = config.norm_fraction_bits + config.multiplier_bits - 1 - math.frexp(largest)[1]
        if shift < 0:
            raise UserError(f"{name}: a gain of {largest:.3g} steps does not fit {config.multiplier_bits} bits; calibrate on other images")
        eps = norm.eps * channels**2 / float(self.stream_scale(x)) ** 2
        return LayerNorm(
            x,
            self.codes(name, name, tokens, channels),
            np.rint(gain * 2.0 ** (shift - config.norm_fraction_bits)).astype(np.int32),
            np.rint(((norm.bias.double() / scale).numpy() + activation.zero.item()) * 2.0**shift).astype(np.int64),
            shift,
            max(1, round(eps)),
            config.norm_fraction_bits,
            config.reciprocal_bits,
        )

    def linear(
        self, name: str, x: str, out: Value, epilogue: Callable[[list[Fraction]], Epilogue], columns: np.ndarray | slice = slice(None)
    ) -> Linear:
        """The layer `name` on value x; columns: the output channels to keep, in order."""
        calibrated = self.calibrated
        weight, activation = calibrated.weights[name], calibrated.activations[calibrated.vit.sources[name]]
        bias = calibrated.bias_codes(name).numpy()[columns]
        if np.abs(bias).max() >= 1 << 31:
            raise UserError(f"{name}: a bias of {np.abs(bias).max():.3g} accumulator units leaves 32 bits; check the model's weights")
        return Linear(
            x,
            out,
            np.ascontiguousarray(weight.codes(calibrated.vit.denses[name].weight).numpy()[columns].T).astype(np.uint8),
            weight.bits,
            weight.zero.flatten().numpy()[columns].astype(np.uint8),
            int(activation.zero),
            bias.astype(np.int32),
            epilogue([Fraction(scale) for scale in calibrated.acc_scales(name).numpy()[columns].tolist()]),
        )

    def requant(self, targets: Sequence[Affine], target_of_channel: np.ndarray) -> Callable[[list[Fraction]], Epilogue]:
        chosen = [targets[index] for index in target_of_channel]

        def build(acc_scales: list[Fraction]) -> Requant:
            steps = [acc_scale / _fraction(target.scale) for acc_scale, target in zip(acc_scales, chosen, strict=True)]
            zero = np.array([int(target.zero) for target in chosen], np.int32)
            return Requant(*ratios(steps, Fraction(1), self.config.multiplier_bits), zero)

        return build

    def gelu(self, site: str) -> Callable[[list[Fraction]], Epilogue]:
        out, index_bits = self.calibrated.activations[site], self.config.gelu_index_bits
        step, index_zero = gelu_index(out.scale.item(), int(out.zero), out.bits, index_bits)
        table = gelu_table(Fraction(step), index_zero, index_bits, _fraction(out.scale), int(out.zero), out.bits)

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

    def codes(self, name: str, site: str, tokens: int, channels: int) -> Value:
        return Value(name, (tokens, channels), self.calibrated.activations[site].bits)

    def stream(self, name: str, tokens: int) -> Value:
        return Value(name, (tokens, self.calibrated.vit.position.shape[1]), self.config.residual_bits, signed=True)

    def stream_scale(self, name: str) -> Fraction:
        return Fraction(2) ** self.stream_exponents[name]

    def constant(self, x: torch.Tensor, scale: Fraction) -> np.ndarray:
        limit = 1 << (self.config.residual_bits - 1)
        return np.clip(np.rint(x.double().numpy() / float(scale)), -limit, limit - 1).astype(np.int32)
