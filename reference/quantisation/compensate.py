"""Compensation: each layer re-fitted, in the order of execution, to what the layers before it have already lost.

Two networks walk through the calibration images side by side, the float one and the quantised one, and stop at every linear layer. Its
weights are pulled mildly towards the float network's output there (a ridge), rounded so that the errors of one channel cancel those of
another (`reference.quantisation.rounding`), and its bias then brings the mean of every output to the float network's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from eamsim.errors import UserError
from reference.models.layers import Dense, Request, Steps, keep, softmax
from reference.models.networks import Network
from reference.quantisation.quantisers import Affine
from reference.quantisation.repq import Calibrated
from reference.quantisation.rounding import DAMPING, SHRINKS, SWEEPS, round_weights

RIDGE = 0.01  # of the mean variance of a layer's inputs
FLOAT_SHARE = 0.3  # of the float network's output in the target; the rest is the layer's own, in float, on the inputs it has here
IMAGES = 512
HELD_BYTES = 4 << 30
SETTINGS = {"ridge": RIDGE, "float_share": FLOAT_SHARE, "damping": DAMPING, "shrinks": list(SHRINKS), "sweeps": SWEEPS}
"""For the provenance: all that decides beside the images."""


def compensate(calibrated: Calibrated, batches: Iterable[np.ndarray], advance: Callable[[int], None]) -> Calibrated:
    """The same quantisers of activations and attention, with weights and biases that make up for them.

    batches: uint8 images [batch, height, width, 3]; what one layer reads is held in memory for all of them. advance: called with 1
    after each linear layer. Raises UserError for a model calibrated `published`.
    """
    if calibrated.mode != "hardware":
        raise UserError("compensation needs a model calibrated in 'hardware' mode, whose zero points are codes")
    with torch.inference_mode():
        walk = _Walk(calibrated, map(torch.from_numpy, batches))
        for _ in calibrated.denses:
            walk.step()
            advance(1)
    return replace(calibrated, network=calibrated.network.with_layers(walk.denses), weights=walk.weights)


def most_images(network: Network, image: np.ndarray) -> int:
    """As many images as HELD_BYTES hold at the layer that reads most, at most IMAGES; image: uint8 [height, width, 3], any."""
    held = 0
    with torch.inference_mode():
        steps = network.steps(torch.from_numpy(image)[None], keep, softmax)
        request = next(steps)
        while request.name:
            both = 2 * sum(each.nbytes for each in request[1:] if each is not None)  # of the float and of the quantised network
            held = max(held, both)
            request = _next(steps, network.layers[request.name](request.x))
    return max(1, min(IMAGES, HELD_BYTES // held))


class _Moments:
    """Sums over the rows of one quantised value, in its steps: q are codes less the zero point, u what they were before they were codes."""

    def __init__(self, channels: int):
        self.rows = 0
        self.q, self.u = (torch.zeros(channels, dtype=torch.float64) for _ in range(2))
        self.qq, self.qu = (torch.zeros(channels, channels, dtype=torch.float64) for _ in range(2))

    def add(self, q: Tensor, u: Tensor, bits: int) -> None:
        q, u = q.flatten(0, -2), u.flatten(0, -2)
        exact = q.float() if len(q) << 2 * bits <= 1 << 24 else q  # integers that float32 holds, in whatever order they are summed
        self.rows += len(q)
        self.q += q.sum(0)
        self.u += u.sum(0)
        self.qq += (exact.T @ exact).double()
        self.qu += q.T @ u

    @property
    def covariance(self) -> Tensor:
        """Of q: float64 [channels, channels], equal for equal codes on every processor."""
        return (self.rows * self.qq - self.q[:, None] * self.q) / self.rows**2

    def cross(self, products: Tensor, sums: Tensor) -> Tensor:
        """Covariance of q with what `products` [channels, n] and `sums` [n] were taken of."""
        return products / self.rows - self.q[:, None] * sums / self.rows**2


class _Pair:
    """One batch in both networks, stopped at the same linear layer."""

    def __init__(self, walk: _Walk, images: Tensor):
        calibrated = walk.calibrated  # whose quantised form gives the student what it has beside linear layers, such as a Swin's biases
        self._teacher = calibrated.network.steps(images, keep, softmax)
        self._student = calibrated.quantised.steps(images, walk.site, walk.attend)
        self.teacher, self.student = next(self._teacher), next(self._student)

    def go_on(self, float_output: Tensor, quantised_output: Tensor) -> None:
        self.teacher, self.student = _next(self._teacher, float_output), _next(self._student, quantised_output)


def _next(steps: Steps, output: Tensor) -> Request:
    try:
        return steps.send(output)
    except StopIteration as done:
        return Request("", done.value)


class _Walk:
    """Both networks between two linear layers; denses, weights: those compensated so far, and as they were for the rest."""

    def __init__(self, calibrated: Calibrated, batches: Iterable[Tensor]):
        self.calibrated = calibrated
        self.denses, self.weights = dict(calibrated.denses), dict(calibrated.weights)
        self._moments: dict[str, _Moments] = {}
        self._read = set(calibrated.network.sources.values())
        self._pairs = [_Pair(self, images) for images in batches]

    def site(self, name: str, x: Tensor) -> Tensor:
        quantiser = self.calibrated.activations.get(name)
        if quantiser is None:
            return x
        if name not in self._read:
            return quantiser(x)
        u, zero = x / quantiser.scale, quantiser.zero
        q = u.round().clamp_(-zero, (1 << quantiser.bits) - 1 - zero)
        self._moments.setdefault(name, _Moments(x.shape[-1])).add(q, u, quantiser.bits)
        return q.mul_(quantiser.scale)

    def attend(self, block: int, scores: Tensor) -> Tensor:
        return self.calibrated.attention[block](scores.softmax(dim=-1))

    def step(self) -> None:
        """Compensate the linear layer at which all batches stand, and go on to the next."""
        name = self._pairs[0].teacher.name
        source = self.calibrated.network.sources[name]
        moments, scale, dense = self._moments.pop(source), self.calibrated.activations[source].scale, self.denses[name]
        outputs, products, sums = self._targets(dense)
        weight = dense.weight * scale
        if name != "head":  # whose inputs are as few as the images
            own = moments.cross(moments.qu, moments.u) @ weight.T
            target = FLOAT_SHARE * moments.cross(products / scale, sums) + (1 - FLOAT_SHARE) * own
            weight = ridge(weight, moments.covariance, target)
        bits = self.weights[name].bits
        found = round_weights((weight / scale).numpy(), moments.covariance.numpy(), bits)
        codes, step, zero = (torch.from_numpy(each).reshape(len(weight), -1) for each in found)
        self.weights[name] = quantiser = Affine(step, zero, bits)
        rounded = (codes - zero) * step
        self.denses[name] = Dense(rounded, (sums - rounded @ (moments.q * scale)) / moments.rows)
        unit = scale * quantiser.scale.flatten()
        bias = torch.round(self.denses[name].bias / unit) * unit  # as the integers have it
        for pair, output in zip(self._pairs, outputs, strict=True):
            pair.go_on(output, F.linear(pair.student.x, rounded, bias))

    def _targets(self, dense: Dense) -> tuple[list[Tensor], Tensor, Tensor]:
        """Of every batch the float layer's output; and of what the quantised one ought to be, products with its inputs and sums."""
        outputs, products, sums = [], torch.zeros_like(dense.weight.T), torch.zeros_like(dense.bias)
        for pair in self._pairs:
            outputs.append(dense(pair.teacher.x))
            target = outputs[-1]
            if pair.teacher.stream is not None and pair.student.stream is not None:  # what the stream has lost so far is made up for here
                target = target + pair.teacher.stream - pair.student.stream
            products += pair.student.x.flatten(0, -2).T @ target.flatten(0, -2)
            sums += target.flatten(0, -2).sum(0)
        return outputs, products, sums


def ridge(weight: Tensor, covariance: Tensor, target: Tensor) -> Tensor:
    """Weights [out, in] on their way to those whose outputs have the covariance `target` [in, out] with the inputs."""
    held = covariance + RIDGE * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=torch.float64)
    return weight + torch.linalg.solve(held, target - covariance @ weight.T).T
