"""The part of `eamsim widths` that prices and runs programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cost_model.chip.hardware import Hardware
from cost_model.price.widths import Price, price
from eamsim.check import ProgramError
from eamsim.constraints import Verified
from eamsim.datapath import Widths
from eamsim.inputs.images import ImageSet
from eamsim.jobs.search.widths import Enough, WidthTrial, paired_loss, unexplained, write_trials
from eamsim.narrow import narrowed, widths_of
from eamsim.progress import Advance

if TYPE_CHECKING:
    from eamsim.engine import Engine

Key = tuple[Widths, str]
"""Of a trial: its widths and its stage, as one width alone is run on fewer images."""
JUDGED = ("noise", "loss", "error", "top1", "images")
BATCH = 64
NOISE_IMAGES = 256
"""They give the noise of one width to some per cent."""
VIEWS = ((0, 0), *((down, right) for down in (-1, 0, 1) for right in (-1, 0, 1) if down or right))
"""An image as it is, and moved by one pixel in eight directions. Ties of four-bit codes break anew in each, so that nine views make a
loss that chance alone has made three times as small, at no label's cost."""


@dataclass
class WidthEvaluator:
    """Prices and runs a program at any widths; keeps every trial, in memory and in the table at `path`, as soon as it is done."""

    program: Verified
    images: ImageSet
    hardware: Hardware
    batch: int
    load: Callable[[Verified], Engine]
    path: Path
    digest: str
    known: dict[Key, WidthTrial]
    evaluations: int
    advance: Advance
    trials: dict[Key, WidthTrial] = field(default_factory=dict)
    prices: dict[Widths, Price | None] = field(default_factory=dict)

    @cached_property
    def start(self) -> Widths:
        return widths_of(self.program)

    @cached_property
    def labelled(self) -> bool:
        return self.images.labels is not None

    @cached_property
    def sample(self) -> ImageSet:
        """Those that show the noise of one width alone."""
        return self.images.spread(NOISE_IMAGES)

    @cached_property
    def base(self) -> tuple[np.ndarray, np.ndarray]:
        return self.run(self.program, self.images, VIEWS)

    @cached_property
    def base_sample(self) -> tuple[np.ndarray, np.ndarray]:
        return self.run(self.program, self.sample, VIEWS[:1])

    def price(self, widths: Widths) -> Price | None:
        """None where constants do not fit."""
        if widths not in self.prices:
            try:
                self.prices[widths] = price(narrowed(self.program, widths), self.hardware, self.batch)
            except ProgramError:
                self.prices[widths] = None
        return self.prices[widths]

    def cost(self, widths: Widths) -> float | None:
        """Energy x area, relative to the program as it came."""
        priced, base = self.price(widths), self.price(self.start)
        assert base is not None
        return None if priced is None else _product(priced) / _product(base)

    def measure(self, widths: Widths, stage: str) -> WidthTrial | None:
        """Runs the program unless it is known. Raises Enough."""
        key, priced, cost = (widths, stage), self.price(widths), self.cost(widths)
        if priced is None or cost is None or key in self.trials:
            return self.trials.get(key)
        if len(self.trials) == self.evaluations:
            raise Enough
        self.trials[key] = WidthTrial(
            **asdict(widths),
            stage=stage,
            energy_uj=priced.energy.nominal_pj / 1e6,
            area_um2=priced.area_um2,
            cost=cost,
            **self.judge(widths, stage),
            search=self.digest,
        )
        self.advance(1)
        write_trials(self.path, list((self.known | self.trials).values()))
        return self.trials[key]

    def judge(self, widths: Widths, stage: str) -> dict[str, Any]:
        """Noise, loss, error, top1 and images of a trial: of one width alone on the sample as it is, else on all images in all views."""
        if known := self.known.get((widths, stage)):
            return {name: getattr(known, name) for name in JUDGED}
        alone = stage == "alone"
        images, views, (logits, answers) = (self.sample, VIEWS[:1], self.base_sample) if alone else (self.images, VIEWS, self.base)
        truth = images.labels if self.labelled else answers
        found, ours = (logits, answers) if stage == "default" else self.run(narrowed(self.program, widths), images, views)
        right = ours == truth
        loss, error = paired_loss(right, answers == truth)
        noise = unexplained(found, logits)
        return dict(zip(JUDGED, (noise, loss, error, float(right[0].mean()), len(images)), strict=True))

    def run(self, program: Verified, images: ImageSet, views: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
        """Logits of the first view int32 [images, classes], and the answers int64 [views, images]; ties go to the lower class."""
        run = self.load(program).run
        logits: list[np.ndarray] = []
        answers: list[list[np.ndarray]] = []
        for batch in images.batches(BATCH):
            found = [run(moved(batch, *view)) for view in views]
            logits.append(found[0])
            answers.append([each.argmax(axis=1) for each in found])
        return np.concatenate(logits), np.concatenate(answers, axis=1)


def _product(priced: Price) -> float:
    return priced.energy.nominal_pj * priced.area_um2


def moved(batch: np.ndarray, down: int, right: int) -> np.ndarray:
    """Images [n, height, width, 3] moved by a pixel or none; the edge is repeated."""
    padded = np.pad(batch, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    return np.ascontiguousarray(padded[:, 1 - down : 1 - down + batch.shape[1], 1 - right : 1 - right + batch.shape[2]])
