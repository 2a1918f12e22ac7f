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

from eamsim.arguments import expect_type
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
BATCH = 2  # images that are taken through a layer at once: what they need on the way stays in the caches
EXACT = 1 << 24  # float32 holds integers up to here, and so sums of them in whatever order they are taken
SETTINGS = {"ridge": RIDGE, "float_share": FLOAT_SHARE, "damping": DAMPING, "shrinks": list(SHRINKS), "sweeps": SWEEPS}
"""For the provenance: all that decides beside the images."""


def compensate(calibrated: Calibrated, batches: Iterable[np.ndarray], advance: Callable[[int], None]) -> Calibrated:
    """The same quantisers of activations and attention, with weights and biases that make up for them.

    batches: uint8 images [batch, height, width, 3]; what one layer reads is held in memory for all of them. advance: called with 1
    after each linear layer. Raises UserError for a model calibrated `published`, and for no images.
    """
    expect_type("calibrated", calibrated, Calibrated)
    if calibrated.mode != "hardware":
        raise UserError("compensation needs a model calibrated in 'hardware' mode, whose zero points are codes")
    images = [calibrated.model.tensor(batch) for batch in batches]
    with torch.inference_mode():
        walk = _Walk(calibrated, images)
        for _ in calibrated.denses:
            walk.step()
            advance(1)
    how = {"images": sum(map(len, images)), **SETTINGS}
    return replace(calibrated, network=calibrated.network.with_layers(walk.denses), weights=walk.weights, compensation=how)


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
    """Sums over the rows of one quantised value, in its steps: q are codes less the zero point, or levels, u what they were before.

    weight: float64 [out, in], in outputs a step, of the float layer that reads the value.
    """

    def __init__(self, weight: Tensor):
        out, channels = weight.shape
        self._weight, self._outputs_first = weight, 2 * out < channels  # whichever takes fewer multiplications
        self.rows = self._open = 0
        self.q = torch.zeros(channels, dtype=torch.float64)
        self._own_sum = torch.zeros(out if self._outputs_first else channels, dtype=torch.float64)
        self._own = torch.zeros(channels, len(self._own_sum), dtype=torch.float64)
        self._qq = torch.zeros(channels, channels, dtype=torch.float64)
        self._part = torch.zeros(channels, channels)

    def add(self, q: Tensor, u: Tensor, bits: int) -> None:
        """q: float32, integers of magnitudes up to 2^bits; u: float64; both [..., channels]."""
        q, u = q.flatten(0, -2), u.flatten(0, -2)
        wide, most = q.double(), EXACT >> 2 * bits
        own = u @ self._weight.T if self._outputs_first else u
        self.rows += len(q)
        self.q += wide.sum(0)
        self._own_sum += own.sum(0)
        self._own.addmm_(wide.T, own)
        if len(q) > most:
            self._qq.addmm_(wide.T, wide)
            return
        if self._open + len(q) > most:
            self._close()
        self._part.addmm_(q.T, q)
        self._open += len(q)

    def _close(self) -> None:
        self._qq += self._part
        self._part.zero_()
        self._open = 0

    @property
    def covariance(self) -> Tensor:
        """Of q: float64 [channels, channels], equal for equal codes on every processor."""
        self._close()
        return (self.rows * self._qq - self.q[:, None] * self.q) / self.rows**2

    @property
    def own(self) -> Tensor:
        """Covariance of q with the float layer's outputs on u: float64 [channels, out]."""
        found = self.cross(self._own, self._own_sum)
        return found if self._outputs_first else found @ self._weight.T

    def cross(self, products: Tensor, sums: Tensor) -> Tensor:
        """Covariance of q with what `products` [channels, n] and `sums` [n] were taken of."""
        return products / self.rows - self.q[:, None] * sums / self.rows**2


class _Pair:
    """One batch in both networks, stopped at the same linear layer; what the student reads there are integers, `quantiser.steps`."""

    def __init__(self, walk: _Walk, images: Tensor):
        calibrated = walk.calibrated  # whose quantised form gives the student what it has beside linear layers, such as a Swin's biases
        self._teacher = calibrated.network.steps(images, keep, softmax)
        self._student = calibrated.quantised.steps(images, walk.site, walk.attend)
        self.teacher, self.student = next(self._teacher), next(self._student)

    def answer(self, dense: Dense) -> Tensor:
        """The float layer's output, which takes the place of what the layer reads, and what the quantised one's ought to be."""
        output, lost = dense(self.teacher.x), 0
        if self.teacher.stream is not None and self.student.stream is not None:
            lost = self.teacher.stream - self.student.stream  # by the stream so far: it is made up for here
        self.teacher = self.teacher._replace(x=output)
        return output + lost

    def go_on(self, output: Tensor) -> None:
        self.teacher, self.student = _next(self._teacher, self.teacher.x), _next(self._student, output)


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
        self._readers = {source: name for name, source in calibrated.network.sources.items()}
        self._pairs = [_Pair(self, images) for images in batches]
        if not self._pairs:
            raise UserError("batches: expected at least one image, got none; give some to compensate on")

    def site(self, name: str, x: Tensor) -> Tensor:
        """Of what a linear layer reads the quantiser's steps, float32; of other values what the quantiser makes of them."""
        quantiser = self.calibrated.activations.get(name)
        if quantiser is None:
            return x
        if name not in self._readers:
            return quantiser(x)
        q = quantiser.steps(x).float()
        if name not in self._moments:
            self._moments[name] = _Moments(self.denses[self._readers[name]].weight * quantiser.scale)
        self._moments[name].add(q, x / quantiser.scale, quantiser.magnitude_bits)
        return q

    def attend(self, block: int, scores: Tensor) -> Tensor:
        return self.calibrated.attention[block](scores.softmax(dim=-1))

    def step(self) -> None:
        """Compensate the linear layer at which all batches stand, and go on to the next."""
        name = self._pairs[0].teacher.name
        source = self.calibrated.network.sources[name]
        moments, read, dense = self._moments.pop(source), self.calibrated.activations[source], self.denses[name]
        products, sums = self._targets(dense)
        weight = dense.weight * read.scale
        if name != "head":  # whose inputs are as few as the images
            target = FLOAT_SHARE * moments.cross(products, sums) + (1 - FLOAT_SHARE) * moments.own
            weight = ridge(weight, moments.covariance, target)
        bits = self.weights[name].bits
        found = round_weights((weight / read.scale).numpy(), moments.covariance.numpy(), bits)
        codes, step, zero = (torch.from_numpy(each).reshape(len(weight), -1) for each in found)
        self.weights[name] = Affine(step, zero, bits)
        unit = read.scale * step.flatten()
        bias = sums / moments.rows - (codes - zero) @ (moments.q / moments.rows) * unit
        self.denses[name] = Dense((codes - zero) * step, bias)
        for pair in self._pairs:
            pair.go_on((accumulated(pair.student.x, codes - zero, read.magnitude_bits + bits) + torch.round(bias / unit)) * unit)

    def _targets(self, dense: Dense) -> tuple[Tensor, Tensor]:
        """Of what the quantised layer's outputs ought to be the products with its codes and the sums."""
        products, sums = torch.zeros_like(dense.weight.T), torch.zeros_like(dense.bias)
        for pair in self._pairs:
            target = pair.answer(dense).flatten(0, -2)
            products.addmm_(pair.student.x.flatten(0, -2).double().T, target)
            sums += target.sum(0)
        return products, sums


def accumulated(q: Tensor, codes: Tensor, bits: int) -> Tensor:
    """Sums over the channels of q [..., in] (float32) by codes [out, in], integers of less than `bits` bits together: float64, exact."""
    exact = torch.float32 if q.shape[-1] << bits <= EXACT else torch.float64
    return F.linear(q.to(exact), codes.to(exact)).double()


def ridge(weight: Tensor, covariance: Tensor, target: Tensor) -> Tensor:
    """Weights [out, in] on their way to those whose outputs have the covariance `target` [in, out] with the inputs."""
    held = covariance + RIDGE * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=torch.float64)
    return weight + torch.linalg.solve(held, target - covariance @ weight.T).T
