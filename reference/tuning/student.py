"""A calibrated network as parameters that learn, in float32, and back again.

Weights move in steps of their own grids and end as codes; biases, norms and scales move too. Zero points, the attention grids, the
codes of the input and frozen maps stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from eamsim.errors import UserError
from eamsim.program import Softmax
from reference.attention.freeze import FrozenMap
from reference.models.layers import Dense, Layer, Norm, Site, run
from reference.models.networks import Network
from reference.models.swin import Swin
from reference.quantisation.fakequant import frozen_weights
from reference.quantisation.levels import Levels
from reference.quantisation.quantisers import as_scale
from reference.quantisation.repq import Calibrated
from reference.tuning.straight_through import affine, levels, powers

WEIGHT_RATE = 0.03  # a step of learning, in steps of the weight's grid
SCALE_RATE = 0.003  # in parts of the scale
BIAS_RATE = 0.001  # in parts of what an output typically is
REACH = 3.0  # a scale stays within this factor of where it started


class Student:
    """The quantised network, learning; its linear layers' weights are quantised once a step, by `begin`.

    parameters: float32 under the name of a layer or a value and what it is of it: `.weight` [out, in] in steps of its grid, `.step`
    [out, 1] of that grid as a factor of the step it had, `.bias`, `.gain`, and `.scale` [] of codes. rates: how far each moves.
    """

    def __init__(self, calibrated: Calibrated, frozen: Sequence[FrozenMap] | None, softmax: Softmax):
        if calibrated.mode != "hardware":
            raise UserError("tuning needs a model calibrated in 'hardware' mode, whose zero points are codes")
        self.calibrated = calibrated
        self.softmax: Softmax = softmax
        self.network = in_float32(calibrated.network)
        self.frozen = [] if frozen is None else frozen_weights(frozen, calibrated.network, torch.float32)
        self.parameters: dict[str, Tensor] = {}
        self.rates: dict[str, float] = {}
        self._weights: dict[str, Tensor] = {}
        for name, layer in calibrated.network.layers.items():
            self._learn_dense(name, layer) if isinstance(layer, Dense) else self._learn_norm(name, layer)
        for name, quantiser in calibrated.activations.items():
            if name != "input":
                self._learn(f"{name}.scale", quantiser.scale.reshape(()), SCALE_RATE * quantiser.scale.item())

    def _learn(self, name: str, start: Tensor, rate: float) -> None:
        self.parameters[name] = _copied(start, torch.float32).requires_grad_()
        self.rates[name] = rate

    def _learn_dense(self, name: str, dense: Dense) -> None:
        source = self.calibrated.activations[self.calibrated.network.sources[name]]
        typical = source.scale.item() * 2 ** (source.magnitude_bits - 2) * dense.weight.norm(dim=1).square().mean().sqrt().item()
        self._learn(f"{name}.weight", dense.weight / self.calibrated.weights[name].scale, WEIGHT_RATE)
        self._learn(f"{name}.step", torch.ones(len(dense.weight), 1), SCALE_RATE)
        self._learn(f"{name}.bias", dense.bias, BIAS_RATE * typical)

    def _learn_norm(self, name: str, norm: Norm) -> None:
        typical = norm.gain.square().mean().sqrt().item()
        self._learn(f"{name}.gain", norm.gain, BIAS_RATE * typical)
        self._learn(f"{name}.bias", norm.bias, BIAS_RATE * typical)

    def begin(self) -> None:
        """Quantise the weights: what `__call__` computes with until `end`."""
        with torch.no_grad():
            self._weights = {name: self._codes(name) * self._step(name) for name in self.calibrated.weights}
        for weight in self._weights.values():
            weight.requires_grad_()

    def __call__(self, images: Tensor, see: Site) -> Tensor:
        """Logits float32 [batch, classes] of uint8 images [batch, height, width, 3]; see: as in `predict`, without attention weights."""
        layers = self._layers(self._weights)
        steps = self.network.with_layers(layers).steps(images, lambda name, x: see(name, self._site(name, x)), self._attend)
        return run(steps, layers)

    def end(self) -> None:
        """Bring the gradients of the quantised weights to the parameters."""
        for name, weight in self._weights.items():
            gradient, grid = weight.grad, self.calibrated.weights[name]
            assert gradient is not None
            learnt, codes = self.parameters[f"{name}.weight"], self._codes(name)
            learnt.grad = torch.where(codes == learnt.detach().round(), gradient * self._step(name), 0.0)
            self.parameters[f"{name}.step"].grad = (gradient * codes * grid.scale.float()).sum(dim=1, keepdim=True)

    def keep_within_reach(self) -> None:
        """Scales stay positive, whatever happens."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                start = self._start(name)
                if start is not None:
                    parameter.clamp_(start / REACH, start * REACH)

    def _start(self, name: str) -> float | None:
        value, _, kind = name.rpartition(".")
        if kind == "scale":
            return self.calibrated.activations[value].scale.item()
        return 1.0 if kind == "step" else None

    def calibrated_now(self) -> Calibrated:
        """What was learnt so far, as it is lowered: weights on their grids, scales of 24 bits."""
        with torch.no_grad():
            layers = self._layers({name: self._codes(name).double() * as_scale(self._step(name)) for name in self.calibrated.weights})
            weights = {name: replace(grid, scale=as_scale(self._step(name))) for name, grid in self.calibrated.weights.items()}
            scales = {name: self.parameters[f"{name}.scale"] for name in self.calibrated.activations if name != "input"}
            activations = dict(self.calibrated.activations)
            for name, scale in scales.items():
                activations[name] = replace(activations[name], scale=as_scale(scale).reshape(activations[name].scale.shape).clone())
            network = self.calibrated.network.with_layers({name: in_type(layer, torch.float64) for name, layer in layers.items()})
        return replace(self.calibrated, network=network, activations=activations, weights=weights)

    def _layers(self, weights: Mapping[str, Tensor]) -> dict[str, Layer]:
        own, found = self.parameters, {}
        for name, layer in self.network.layers.items():
            if isinstance(layer, Dense):
                found[name] = Dense(weights[name], own[f"{name}.bias"])
            else:
                found[name] = Norm(own[f"{name}.gain"], own[f"{name}.bias"], layer.eps)
        return found

    def _codes(self, name: str) -> Tensor:
        """Of a layer's weights, less the zero points: float32 integers [out, in]."""
        grid = self.calibrated.weights[name]
        zero = grid.zero.float()
        return self.parameters[f"{name}.weight"].detach().round().clamp(-zero, (1 << grid.bits) - 1 - zero)

    def _step(self, name: str) -> Tensor:
        """float32 [out, 1]."""
        return self.calibrated.weights[name].scale.float() * self.parameters[f"{name}.step"].detach()

    def _site(self, name: str, x: Tensor) -> Tensor:
        quantiser = self.calibrated.activations.get(name)
        if quantiser is None:
            return x
        if name == "input":
            return quantiser(x).float()
        scale = self.parameters[f"{name}.scale"]
        return levels(quantiser, scale, x) if isinstance(quantiser, Levels) else affine(quantiser, scale, x)

    def _attend(self, block: int, scores: Tensor) -> Tensor:
        scores = scores.float()
        if not self.frozen:
            return self._quantise(block, scores.softmax(dim=-1))
        return self.frozen[block].among(scores, lambda weights: self._quantise(block, weights), self.softmax)

    def _quantise(self, block: int, weights: Tensor) -> Tensor:
        return powers(self.calibrated.attention[block], weights)


def in_float32(network: Network) -> Network:
    """The network for pixels that its site `input` makes float32."""
    network = network.with_layers({name: in_type(layer, torch.float32) for name, layer in network.layers.items()})
    if isinstance(network, Swin):
        return replace(network, windows=tuple(replace(each, logit_bias=each.logit_bias.float()) for each in network.windows))
    return replace(network, prefix=network.prefix.float(), position=network.position.float())


def in_type(layer: Layer, dtype: torch.dtype) -> Layer:
    """The layer, copied, with parameters of this type."""
    if isinstance(layer, Dense):
        return Dense(_copied(layer.weight, dtype), _copied(layer.bias, dtype))
    return Norm(_copied(layer.gain, dtype), _copied(layer.bias, dtype), layer.eps)


def _copied(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.detach().to(dtype, copy=True)
