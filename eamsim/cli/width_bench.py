"""The part of `eamsim widths` that prices and runs programs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cost_model.hardware import Hardware
from cost_model.width_price import Price, price
from eamsim.cli.evaluate import label_ranks
from eamsim.cli.output import Advance
from eamsim.images import ImageSet
from eamsim.narrow import Widths, narrowed, widths_of
from eamsim.program import Program
from eamsim.verify import ProgramError
from eamsim.width_search import Enough, Trial, fitted_scale, probabilities, write_trials

if TYPE_CHECKING:
    from eamsim.engine import Engine

BATCH = 64


@dataclass
class Bench:
    """Prices and runs a program at any widths; keeps every trial, in memory and in the table at `path`, as soon as it is done."""

    program: Program
    images: ImageSet
    hardware: Hardware
    batch: int
    load: Callable[[Program], Engine]
    path: Path
    digest: str
    known: dict[Widths, Trial]
    evaluations: int
    advance: Advance
    trials: dict[Widths, Trial] = field(default_factory=dict)
    prices: dict[Widths, Price | None] = field(default_factory=dict)

    @cached_property
    def start(self) -> Widths:
        return widths_of(self.program)

    @cached_property
    def labelled(self) -> bool:
        return self.images.has_labels(self.program.output.size)

    @cached_property
    def truth(self) -> tuple[np.ndarray, float | None]:
        """Labels, and the scale that makes probabilities of logits; without labels the program's first answers, and no scale."""
        logits = self.logits(self.program)
        if not self.labelled:
            return logits.argmax(axis=1), None
        assert self.images.labels is not None
        return self.images.labels, fitted_scale(logits, share_right(logits, self.images.labels))

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

    def measure(self, widths: Widths, stage: str) -> Trial | None:
        """Runs the program on all images unless it is known. Raises Enough."""
        priced, cost = self.price(widths), self.cost(widths)
        if priced is None or cost is None or widths in self.trials:
            return self.trials.get(widths)
        if len(self.trials) == self.evaluations:
            raise Enough
        top1, probability = self.judge(widths)
        self.trials[widths] = Trial(
            **asdict(widths),
            stage=stage,
            energy_uj=priced.energy.nominal_pj / 1e6,
            area_um2=priced.area_um2,
            cost=cost,
            top1=top1,
            probability=probability,
            images=len(self.images),
            search=self.digest,
        )
        self.advance(1)
        write_trials(self.path, list((self.known | self.trials).values()))
        return self.trials[widths]

    def judge(self, widths: Widths) -> tuple[float, float]:
        """Top-1, and the mean probability of the right class."""
        if widths in self.known:
            return self.known[widths].top1, self.known[widths].probability
        labels, scale = self.truth
        logits = self.logits(narrowed(self.program, widths))
        right = share_right(logits, labels)
        return right, right if scale is None else float(probabilities(logits, scale)[np.arange(len(labels)), labels].mean())

    def logits(self, program: Program) -> np.ndarray:
        """float64 [images, classes], in the unit of the program as it came: narrow multipliers may have made it coarser."""
        run, finer = self.load(program).run, self.program.output.bits - program.output.bits
        return np.concatenate([run(batch) for batch in self.images.batches(BATCH)]) * 2.0**finer


def _product(priced: Price) -> float:
    return priced.energy.nominal_pj * priced.area_um2


def share_right(logits: np.ndarray, labels: np.ndarray) -> float:
    """Top-1, a fraction; ties go to the lower class."""
    return float((label_ranks(logits, labels) < 1).mean())
