"""Tuning: the float network teaches the quantised one end to end, straight through the rounding, on random crops without labels.

The student learns to give the teacher's logits and, every few blocks, its residual stream.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from eamsim import __version__
from eamsim.inputs.images import ImageSet
from eamsim.program import Softmax
from eamsim.progress import Advance, Progress
from reference.models import layers
from reference.models.load import Model
from reference.quantisation.fakequant import quantise_frozen
from reference.tuning.crops import random_crops
from reference.tuning.file import Start, TuningFile
from reference.tuning.student import BIAS_RATE, SCALE_RATE, WEIGHT_RATE, Student, in_float32

CROPS = 32  # a step of learning
PART = 8  # of them at once, which bounds memory
BETAS = (0.9, 0.99)
WARM_UP = 10  # steps
STREAM_EVERY = 3  # blocks, from the last one back
STREAM_WEIGHT = 1.0
WRITE_EVERY = 20  # times what a write takes: a twentieth of the time at most
SETTINGS = {
    "crops": CROPS,
    "weight_rate": WEIGHT_RATE,
    "scale_rate": SCALE_RATE,
    "bias_rate": BIAS_RATE,
    "betas": list(BETAS),
    "warm_up": WARM_UP,
    "stream_every": STREAM_EVERY,
    "stream_weight": STREAM_WEIGHT,
}


@dataclass(frozen=True)
class Tuning:
    """So many steps, kept in `file` on the way, from which they go on if they are to `resume`; seed: of the crops."""

    steps: int
    seed: int
    file: Path
    resume: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """For the provenance: all that decides beside the images."""
        machine = {"bfloat16": has_bfloat16(), "threads": torch.get_num_threads()}
        return {"steps": self.steps, "seed": self.seed, **SETTINGS, **machine}


def tune_on(
    tuning: Tuning,
    model: Model,
    images: ImageSet,
    softmax: Softmax,
    start: Callable[[], Start],
    identity: dict[str, Any],
    progress: Progress,
) -> Start:
    """What `start` gives, tuned; to resume takes it from the file. identity: all that determines the result, JSON values.

    Equal on one machine, interrupted or not. Raises BadFile and UserError for a file that cannot be continued.
    """
    threads = torch.get_num_threads()
    file = TuningFile(tuning.file, identity | _origin(model) | tuning.settings)
    begun, state = file.read(model) if tuning.resume else (start(), None)
    torch.set_num_threads(threads)  # Numba's threads change the number, and with it the order of sums
    frozen = begun.frozen and quantise_frozen(begun.calibrated, begun.frozen)
    lessons = Lessons(Student(begun.calibrated, frozen, softmax), images, tuning.steps, tuning.seed)
    if state:
        lessons.go_on(state)
    try:
        _learn(lessons, lambda: file.write(begun, lessons.state()), progress)
    except KeyboardInterrupt as stop:
        stop.add_note(f"what was learnt is kept in {tuning.file}; the same command with --resume continues")
        raise
    return replace(begun, calibrated=lessons.student.calibrated_now())


def _origin(model: Model) -> dict[str, Any]:
    """What decides beside parameters, images and settings."""
    return {
        "versions": {"eamsim": __version__, "numpy": np.__version__, "torch": str(torch.__version__)},
        "preprocessing": asdict(model.preprocessing),
        "mean": list(model.mean),
        "std": list(model.std),
        "heads": [block.heads for block in model.network.blocks],
    }


def _learn(lessons: Lessons, write: Callable[[], None], progress: Progress) -> None:
    next_write = 0.0
    with progress("crops taught", CROPS * (lessons.steps - lessons.done)) as advance:
        while lessons.done < lessons.steps:
            if (before := monotonic()) >= next_write:
                write()
                next_write = monotonic() + WRITE_EVERY * (monotonic() - before)
            lessons.step(advance)


class Lessons:
    """So many steps of learning, one after the other; `done` of them are over. What a step does depends on its number and the seed."""

    def __init__(self, student: Student, images: ImageSet, steps: int, seed: int):
        self.student, self.images, self.steps, self.seed, self.done = student, images, steps, seed, 0
        self.network = student.calibrated.network
        self.teacher = in_float32(student.calibrated.model.network)
        last = len(self.network.blocks) - 1
        self.streams = [f"block{i}.mlp.fc2" for i in range(last % STREAM_EVERY, last + 1, STREAM_EVERY)]
        groups = [{"params": [each], "lr": 0.0, "rate": student.rates[name]} for name, each in student.parameters.items()]
        self.optimiser = torch.optim.Adam(groups, betas=BETAS)

    def step(self, advance: Advance) -> float:
        """The next step; advance: called with the number of crops after each part. Returns the loss, a mean over the crops."""
        share = min(1.0, (self.done + 1) / WARM_UP) * (0.5 + 0.5 * math.cos(math.pi * self.done / self.steps))
        for group in self.optimiser.param_groups:
            group["lr"] = group["rate"] * share
        self.optimiser.zero_grad()
        self.student.begin()
        total = 0.0
        for pixels in random_crops(self.images, self.seed, self.done, CROPS, PART):
            loss = self.loss(torch.from_numpy(pixels)) * (len(pixels) / CROPS)
            loss.backward()
            total += loss.item()
            advance(len(pixels))
        self.student.end()
        self.optimiser.step()
        self.student.keep_within_reach()
        self.done += 1
        return total

    def loss(self, images: Tensor) -> Tensor:
        """How far the student is from its teacher on uint8 images [batch, height, width, 3]: a mean over them."""
        wanted: dict[str, Tensor] = {}
        found: dict[str, Tensor] = {}
        with torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16()):
            with torch.no_grad():
                steps = self.teacher.steps(images, lambda name, x: self._seen(wanted, name, x.float()), layers.softmax)
                target = layers.run(steps, self.teacher.layers)
            logits = self.student(images, lambda name, x: self._seen(found, name, x))
        loss = F.kl_div(logits.float().log_softmax(1), target.float().log_softmax(1), log_target=True, reduction="batchmean")
        for name in self.streams:
            loss = loss + STREAM_WEIGHT * self._error(found[name], wanted[name], name == self.streams[-1])
        return loss

    def _seen(self, streams: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
        if name in self.streams:
            streams[name] = x
        return x

    def _error(self, found: Tensor, wanted: Tensor, last: bool) -> Tensor:
        """Of the stream, in parts of its variance; of the few tokens too that are all that the head reads in the end."""
        rows = self.network.read
        if rows.stop is None:
            return relative_error(found, wanted)
        token = relative_error(found[:, rows], wanted[:, rows])
        return token if last else token + relative_error(found, wanted)

    def state(self) -> dict[str, Any]:
        """All that the steps to come depend on beside what the student started from."""
        return {"done": self.done, "parameters": self.student.parameters, "optimiser": self.optimiser.state_dict()}

    def go_on(self, state: dict[str, Any]) -> None:
        """From a state as `state` gave it."""
        self.done = state["done"]
        with torch.no_grad():
            for name, parameter in self.student.parameters.items():
                parameter.copy_(state["parameters"][name])
        self.optimiser.load_state_dict(state["optimiser"])


def relative_error(found: Tensor, wanted: Tensor) -> Tensor:
    return (found - wanted).square().mean() / wanted.var()


def has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16: several times as fast as float32, and exact enough to teach four bits."""
    return torch.cpu._is_avx512_bf16_supported()
