"""The search for the narrowest datapath: which widths are tried, in which order, and which of them is taken (docs/widths.md)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from eamsim.errors import BadFile
from eamsim.narrow import FLOORS, KNOBS, Widths
from eamsim.table import FLAG, read_table, write_table


@dataclass(frozen=True)
class Trial(Widths):
    """One datapath that was judged, a row of the table.

    stage: default, alone or joint; energy_uj: of an image; cost: energy x area, of the default's; top1: a fraction of
    `images`; probability: the mean that they give to the right class; pareto: none is as cheap and as accurate, and better in one;
    search: a digest of the program and the images.
    """

    stage: str
    energy_uj: float
    area_um2: float
    cost: float
    top1: float
    probability: float
    images: int
    search: str
    pareto: bool = False
    chosen: bool = False

    @property
    def widths(self) -> Widths:
        return Widths(**{name: getattr(self, name) for name in KNOBS})


INTEGERS = {name: int for name in (*KNOBS, "images")}
PARSERS: dict[str, Callable[[str], Any]] = {**INTEGERS, "stage": str, "search": str, "pareto": FLAG, "chosen": FLAG}

Measure = Callable[[Widths, str], Trial | None]
"""(widths, stage) -> the trial, or None where constants of the program do not fit such widths."""


LEAST_SAVING = 1e-3
"""Of the cost, by which a last bit less must pay for the run that tries it."""


class Enough(Exception):
    """As many programs as allowed were run."""


@dataclass(frozen=True)
class Search:
    """start: the widths of the program as it came; sums: bits that all its sums provably need; keep: top-1 that may be lost, a fraction.

    cost: of any widths, or None where they do not fit; cheap, as nothing is run.
    """

    start: Widths
    sums: int
    keep: float
    cost: Callable[[Widths], float | None]
    measure: Measure

    def run(self) -> None:
        """Measure: the default, each width alone, the cheapest combination predicted, then wider until it keeps, then narrower again."""
        base = self.measure(self.start, "default")
        assert base is not None
        alone = {knob: self.alone(knob, base) for knob in KNOBS}
        state = self.predicted(alone, base)
        trial = self.measure(state, "joint")
        while not self.keeps(trial, base):
            state, trial = self.wider(state, trial, base)
        while (narrower := self.narrower(state, base)) != state:
            state = narrower

    def keeps(self, trial: Trial | None, base: Trial) -> bool:
        """Whether a trial loses no more than allowed, by both measures."""
        return trial is not None and lost(trial, base) <= self.keep + 1e-9

    def alone(self, knob: str, base: Trial) -> dict[int, float]:
        """What is lost at each width of one knob that was tried; halving finds the narrowest that keeps."""
        settings = [*sorted(self.below(self.start, knob)), getattr(self.start, knob)]
        found, too_narrow, enough = {settings[-1]: 0.0}, -1, len(settings) - 1
        while enough - too_narrow > 1:
            middle = (too_narrow + enough) // 2
            trial = self.measure(with_width(self.start, knob, settings[middle]), "alone")
            if trial is not None:
                found[settings[middle]] = max(lost(trial, base), 0.0)
            too_narrow, enough = (too_narrow, middle) if self.keeps(trial, base) else (middle, enough)
        return found

    def below(self, widths: Widths, knob: str) -> list[int]:
        """The narrower settings of a knob, the next one first. Sums need what they need: their width is proven, not searched."""
        now = getattr(widths, knob)
        if knob == "accumulator_bits":
            return [self.sums] if self.sums < now else []
        return list(range(now - 1, getattr(FLOORS, knob) - 1, -1)) if now else []

    def predicted(self, alone: dict[str, dict[int, float]], base: Trial) -> Widths:
        """Each knob as narrow as it keeps alone; then, as long as the losses add up to too much, the one that gains most per cost wider."""
        levels = {knob: sorted(bits for bits, loss in losses.items() if loss <= self.keep) for knob, losses in alone.items()}

        def combined() -> Widths:
            narrow = Widths(**{knob: bits[0] for knob, bits in levels.items()})
            return with_width(narrow, "reciprocal_bits", narrow.reciprocal_bits)

        def gain(knob: str) -> float:
            now, wider = levels[knob][:2]
            dearer = (self.cost(replace(combined(), **{knob: wider})) or 0) - (self.cost(combined()) or 0)
            return (alone[knob][now] - alone[knob][wider]) / max(dearer, 1e-12)

        while sum(alone[knob][bits[0]] for knob, bits in levels.items()) > self.keep:
            best = max((knob for knob in KNOBS if len(levels[knob]) > 1), key=gain)
            levels[best] = levels[best][1:]
        return combined()

    def wider(self, state: Widths, trial: Trial | None, base: Trial) -> tuple[Widths, Trial | None]:
        """One knob a bit wider: the cheapest that keeps, else the one that gains most per cost."""
        moves = [with_width(state, knob, getattr(state, knob) + 1) for knob in KNOBS if getattr(state, knob) < getattr(self.start, knob)]
        found = {move: self.measure(move, "joint") for move in moves if move != state}
        kept = [move for move, result in found.items() if self.keeps(result, base)]
        if kept:
            best = min(kept, key=lambda move: self.cost(move) or 0)
            return best, found[best]
        now, cost = lost(trial, base) if trial else 1.0, self.cost(state) or 0

        def gain(move: Widths) -> float:
            result = found[move]
            return (now - (lost(result, base) if result else 1.0)) / max((self.cost(move) or 0) - cost, 1e-12)

        best = max(found, key=gain)
        return best, found[best]

    def narrower(self, state: Widths, base: Trial) -> Widths:
        """Each knob in turn a bit narrower, the greatest saving first, where that keeps and saves enough."""

        def move(knob: str) -> Widths:
            return with_width(state, knob, next(iter(self.below(state, knob)), getattr(state, knob)))

        def saving(knob: str) -> float:
            before, after = self.cost(state), self.cost(move(knob))
            return 1 - after / before if before and after else 0.0

        for knob in sorted(KNOBS, key=saving, reverse=True):
            if saving(knob) >= LEAST_SAVING and self.keeps(self.measure(narrower := move(knob), "joint"), base):
                state = narrower
        return state


def lost(trial: Trial, base: Trial) -> float:
    """Of top-1, the worse of the two measures: chance rarely flatters both."""
    return max(base.top1 - trial.top1, base.probability - trial.probability)


def with_width(widths: Widths, knob: str, bits: int) -> Widths:
    """One width changed; LayerNorm's fraction has at most one bit more than its reciprocal (docs/datapath.md, LayerNorm C5)."""
    changed = replace(widths, **{knob: bits})
    if knob == "norm_fraction_bits":
        return replace(changed, reciprocal_bits=max(changed.reciprocal_bits, bits - 1))
    return replace(changed, norm_fraction_bits=min(changed.norm_fraction_bits, changed.reciprocal_bits + 1))


def choose(trials: Sequence[Trial], keep: float) -> Trial:
    """The cheapest that loses no more than allowed; the first is the default, which loses nothing."""
    kept = [trial for trial in trials if lost(trial, trials[0]) <= keep + 1e-9]
    return min(kept, key=lambda trial: (trial.cost, -trial.probability))


def mark(trials: Sequence[Trial], chosen: Trial) -> list[Trial]:
    """The same trials with `pareto` (cost against top1) and `chosen` set."""
    costs, accuracies = np.array([[trial.cost, trial.top1] for trial in trials]).T

    def beaten(trial: Trial) -> bool:
        as_good = (costs <= trial.cost) & (accuracies >= trial.top1)
        return bool((as_good & ((costs < trial.cost) | (accuracies > trial.top1))).any())

    return [replace(trial, pareto=not beaten(trial), chosen=trial is chosen) for trial in trials]


def probabilities(logits: np.ndarray, scale: float) -> np.ndarray:
    """Softmax over the classes of scale x logits [images, classes]."""
    terms = np.exp(scale * (logits - logits.max(axis=1, keepdims=True)))
    return terms / terms.sum(axis=1, keepdims=True)


def fitted_scale(logits: np.ndarray, top1: float) -> float:
    """The scale at which the logits are as sure of their answers, on average, as they are right: integers say nothing of it."""
    low, high = -40.0, 10.0
    for _ in range(50):
        middle = (low + high) / 2
        sure = probabilities(logits, 2.0**middle).max(axis=1).mean()
        low, high = (middle, high) if sure < top1 else (low, middle)
    return 2.0**low


def write_trials(path: Path, trials: Sequence[Trial]) -> None:
    """Replace the table of a search. Raises BadFile where it cannot be written."""
    write_table(path, Trial, trials, "continue with --resume")


def read_trials(path: Path) -> list[Trial]:
    """The table of a search; BadFile names what is wrong and where."""
    advice = "make the table again with `eamsim widths`"
    trials = read_table(path, Trial, PARSERS, "a search for widths", advice)
    for number, trial in enumerate(trials, 1):
        if not (0 <= trial.top1 <= 1 and 0 <= trial.probability <= 1 and trial.images > 0 and trial.cost > 0):
            got = f"top1 {trial.top1}, probability {trial.probability}, images {trial.images}, cost {trial.cost}"
            raise BadFile(f"{path}: row {number}: expected fractions from 0 to 1, images and a cost, got {got}; {advice}")
    return trials
