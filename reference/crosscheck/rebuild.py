"""The fake-quantised network that a program was lowered from, read back from the program, its scales and the float model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, assert_never

import numpy as np
import torch
from torch import Tensor

from eamsim.constraints import Verified
from eamsim.errors import BadFile, UserError
from eamsim.program import Attention, Gelu, LayerNorm, Linear, Operation, Raw, Requant, Residual, Softmax
from reference.attention.freeze import FrozenMap
from reference.lowering.constants import gelu_index
from reference.models.layers import Dense, Norm, Site, keep
from reference.models.load import Model
from reference.models.swin import Swin
from reference.quantisation.fakequant import predict
from reference.quantisation.levels import Grid, Levels
from reference.quantisation.quantisers import Affine, LogSqrt2
from reference.quantisation.repq import Calibrated

Op = TypeVar("Op", LayerNorm, Linear, Attention)


@dataclass(frozen=True, eq=False)
class Rebuilt:
    """Two networks whose values are those of the program, in its units.

    model: the float network, its norms and the layers behind them re-parametrised as the program's are (RepQ-ViT, Eq. 7-9), which
    changes no logit; fake: the same with the program's weights and quantisers; frozen, softmax: the program's maps; operations: by
    the names of their outputs, those of `joined` among them; streams: the scale of each signed value, the logits' as `head`.
    """

    model: Model
    fake: Calibrated
    frozen: list[FrozenMap] | None
    softmax: Softmax
    operations: Mapping[str, Operation]
    streams: dict[str, float]

    def float_logits(self, images: np.ndarray, see: Site = keep) -> np.ndarray:
        """Of the float network, nothing frozen; arguments as those of `predict`."""
        return predict(self.model, images, see=see)

    def fake_logits(self, images: np.ndarray, see: Site = keep) -> np.ndarray:
        """Of the fake-quantised network, the program's maps frozen; arguments as those of `predict`."""
        return predict(self.fake, images, self.frozen, self.softmax, see)


def rebuild(program: Verified, provenance: Mapping[str, Any], model: Model) -> Rebuilt:
    """Both networks of a program; multipliers hold the scales of weights to `multiplier_bits`, so they are equal to about 2^-16.

    A signed value that `eamsim widths` has narrowed has lost low bits: its scale is so many powers of two larger. Raises UserError for
    a program that is not the model's; BadFile where the provenance lacks scales.
    """
    operations = {op.out.name: op for op in program.operations}
    operations |= {linear.out.name: linear for linear in joined(operations)}
    try:
        activations = {name: _grid(**each) for name, each in provenance["activations"].items()}
        grids = tuple(LogSqrt2(**each) for each in provenance["attention"])
        built_bits = provenance["lowering"]["residual_bits"]
        exponents = {name: each for name, each in provenance["stream_log2_scales"].items() if name in operations}
        streams = {name: 2.0 ** (each + built_bits - operations[name].out.bits) for name, each in exponents.items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise BadFile(f"{program.name}: its provenance lacks the scales of its values ({error}); build the program again") from error
    for i, block in enumerate(model.network.blocks):
        if (op := _operation(operations, f"block{i}.attn", Attention)).heads < block.heads:
            raise UserError(
                f"compare: {op.out.name} has {op.heads} of the model's {block.heads} heads: a program with removed heads has no fake"
                " quantisation here; check it with eamsim verify"
            )
    model = _in_units(model, operations, activations)
    reader = _Reader(model, operations, activations, streams)
    layers = {name: reader.dense(name, layer) for name, layer in model.network.layers.items() if isinstance(layer, Dense)}
    network = model.network.with_layers({name: dense for name, (dense, _) in layers.items()})
    weights = {name: quantiser for name, (_, quantiser) in layers.items()}
    attentions = [_operation(operations, f"block{i}.attn", Attention) for i in range(len(network.blocks))]
    softmax, images = attentions[0].softmax, provenance["calibration"]["images"]
    fake = Calibrated(model, "hardware", network, activations, weights, grids, {}, {}, images)
    frozen = [_frozen(op, grid) for op, grid in zip(attentions, grids, strict=True)]
    return Rebuilt(model, fake, frozen if any(op.frozen for op in attentions) else None, softmax, operations, streams)


def joined(operations: Mapping[str, Operation]) -> Iterator[Linear]:
    """The Linear NAME.qkv that the network has in place of those of q, and of k and v, of each Attention NAME with queries."""
    for name, op in operations.items():
        if isinstance(op, Attention) and op.queries is not None:
            parts = [_operation(operations, each, Linear) for each in (op.queries.operand, op.x)]
            of_q, of_kv = (each.epilogue for each in parts)
            assert isinstance(of_q, Requant)
            assert isinstance(of_kv, Requant)
            weight = np.concatenate([each.weight for each in parts], axis=1)
            yield replace(
                parts[1],
                out=replace(parts[1].out, name=f"{name}.qkv", shape=(parts[1].out.shape[0], weight.shape[1])),
                weight=weight,
                weight_zero=np.concatenate([each.weight_zero for each in parts]),
                bias=np.concatenate([each.bias for each in parts]),
                epilogue=Requant(*(np.concatenate(pair) for pair in zip(vars(of_q).values(), vars(of_kv).values(), strict=True))),
            )


def _grid(scale: float, bits: int, zero: int = 0, levels: Sequence[int] | None = None) -> Grid:
    step = torch.tensor(scale, dtype=torch.float64)
    if levels is not None:
        return Levels(step, torch.tensor(levels, dtype=torch.float64), bits)
    return Affine(step, torch.tensor(zero, dtype=torch.float64), bits)


def _operation(operations: Mapping[str, Operation], name: str, kind: type[Op]) -> Op:
    op = operations.get(name)
    if not isinstance(op, kind):
        raise UserError(f"compare: expected the {kind.__name__} {name} in the program, got none; give the model that it was built from")
    return op


def _in_units(model: Model, operations: Mapping[str, Operation], activations: Mapping[str, Grid]) -> Model:
    """The float model with x' = x / r - b after every norm whose codes a linear layer other than the head reads."""
    network, changed = model.network, {}
    for name, source in network.sources.items():
        norm, dense = network.layers.get(source), network.layers[name]
        if not isinstance(norm, Norm) or not isinstance(dense, Dense) or name == "head":
            continue
        op, codes = _operation(operations, source, LayerNorm), activations[source]
        if len(op.gain) != len(norm.gain):
            sizes = f"{len(op.gain)} channels in the program, {len(norm.gain)} in the model"
            raise UserError(f"compare: {source} has {sizes}; give the model that the program was built from")
        gain = torch.from_numpy(op.gain * 2.0 ** (op.fraction_bits - op.shift)) * codes.scale
        bias = (torch.from_numpy(op.offset * 2.0**-op.shift) - codes.zero) * codes.scale
        r = torch.where(gain * norm.gain != 0, norm.gain / gain, 1.0)
        b = norm.bias / r - bias
        changed[source] = replace(norm, gain=norm.gain / r, bias=bias)
        changed[name] = Dense(dense.weight * r, dense.bias + (dense.weight * r) @ b)
    return replace(model, network=network.with_layers(changed))


@dataclass(frozen=True)
class _Reader:
    """Reads linear layers; finds the scale of the logits on its way."""

    model: Model
    operations: Mapping[str, Operation]
    activations: Mapping[str, Grid]
    streams: dict[str, float]

    def dense(self, name: str, own: Dense) -> tuple[Dense, Affine]:
        """The program's layer and its quantiser; rows that the program left out (of wholly frozen heads) stay float, and are not read."""
        op = _operation(self.operations, name, Linear)
        x = self.activations[self.model.network.sources[name]]
        rows = self._rows(name, len(own.bias))
        if len(rows) != op.out.shape[1] or own.weight.shape[1] != len(op.weight):
            raise UserError(
                f"compare: {name} is {list(op.weight.shape)} in the program, not as in the model; give the model it was built from"
            )
        codes = torch.from_numpy(op.weight.T.astype(np.float64) - op.weight_zero[:, None])
        scales = torch.from_numpy(op.epilogue.multiplier * 2.0 ** -op.epilogue.shift.astype(np.float64)) / x.scale
        if name == "head":
            self.streams[name] = _logit_scale(codes * scales[:, None], own.weight)
        scales = scales * self._steps(name, op)
        scale, zero = (torch.full((len(own.bias), 1), start, dtype=torch.float64) for start in (1.0, 0.0))
        weight, bias = own.weight.clone(), own.bias.clone()
        scale[rows], zero[rows] = scales[:, None], torch.from_numpy(op.weight_zero.astype(np.float64))[:, None]
        weight[rows], bias[rows] = codes * scales[:, None], torch.from_numpy(op.bias.astype(np.float64)) * scales * x.scale
        return Dense(weight, bias), Affine(scale, zero, op.weight_bits)

    def _rows(self, name: str, channels: int) -> Tensor:
        rows = torch.arange(channels)
        return qkv_channels(_operation(self.operations, name.removesuffix(".qkv"), Attention), rows) if name.endswith(".qkv") else rows

    def _steps(self, name: str, op: Linear) -> Tensor | float:
        """What one unit of the epilogue's result stands for."""
        match op.epilogue:
            case Requant():
                block = name.removesuffix(".qkv")
                attention = _operation(self.operations, block, Attention)
                steps = [self.activations[f"{block}.{part}"].scale for part in "qkv"]
                if isinstance(self.model.network, Swin):  # whose q is scaled before its quantiser
                    steps[0] = steps[0] * math.sqrt(attention.head_dim)
                return qkv_channels(attention, torch.stack(steps).repeat_interleave(attention.out.shape[1]))
            case Gelu():
                codes = self.activations[name]
                return gelu_index(codes.limits.tolist(), codes.reach, op.epilogue.index_bits)[0]
            case Residual() | Raw():
                return self.streams[name]
            case _:
                assert_never(op.epilogue)


def qkv_channels(op: Attention, channels: Tensor) -> Tensor:
    """Those of all q, k and v that the program has."""
    q, k, v = channels.reshape(3, op.heads, op.head_dim)
    scored = list(op.score_heads)
    return torch.cat([q[scored].flatten(), k[scored].flatten(), v.flatten()])


def _logit_scale(weight: Tensor, own: Tensor) -> float:
    """What one unit of the logits stands for, which no file holds: it brings the program's head nearest to the float one."""
    return ((weight * own).sum() / weight.square().sum()).item()


def _frozen(op: Attention, grid: LogSqrt2) -> FrozenMap:
    shape = (op.heads if op.frozen is None else len(op.frozen.mask) * op.heads, op.tokens, op.tokens)
    if op.frozen is None:
        return FrozenMap(np.zeros(shape, bool), np.zeros(shape))
    codes = op.frozen.codes.astype(np.float64) * 2.0 ** (op.attention_bits - op.frozen.bits)
    mean = np.where(op.frozen.mask, grid.decode(torch.from_numpy(codes)).numpy(), 0)
    below = [(0, 0), (0, 0), (0, op.tokens - op.rows), (0, 0)]  # rows that the program does not compute, and nothing reads
    return FrozenMap(np.pad(op.frozen.mask, below).reshape(shape), np.pad(mean, below).reshape(shape))
