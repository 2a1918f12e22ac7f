"""The search for the narrowest datapath: which widths are tried, in which order, and which of them is taken (docs/guide/widths.md).

Two steps, so that no datapath is taken because chance flattered it. First an order of datapaths, each cheaper and noisier than the one
before, from what each width alone does to the logits: no label is read. Then accuracy is tested in that order, and the first datapath
that fails ends the search: fixed-sequence testing, which needs no correction for how many are tried (Angelopoulos, Bates, Candes,
Jordan and Lei, Learn then Test, arXiv 2110.01052).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from eamsim.datapath import FLOORS, KNOBS, Widths
from eamsim.errors import BadFile
from eamsim.files.table import FLAG, read_table, write_table

Z = 1.6449
"""Of the standard normal distribution 95 % lies below."""
HOPELESS = 0.1
"""Noise at which narrowing one width alone ends."""
STEP = 0.05
"""Of the cost: a datapath is tested if it saves as much against the one tested before."""


@dataclass(frozen=True, kw_only=True)
class WidthTrial(Widths):
    """One datapath that was run, a row of the table.

    stage: default, alone (one width, no test of accuracy) or joint; energy_uj: of an image; cost: energy x area, of the default's;
    noise: share of the logits' variance that the default's do not explain; loss, error: of accuracy against the default, a fraction, and
    the standard error of that of other images (`paired_loss`); top1: of the images as they are; kept: it passed the test; search: a digest
    of the program and the images.
    """

    stage: str
    energy_uj: float
    area_um2: float
    cost: float
    noise: float
    loss: float
    error: float
    top1: float
    images: int
    search: str
    kept: bool = False
    chosen: bool = False

    @property
    def widths(self) -> Widths:
        return Widths(**{name: getattr(self, name) for name in KNOBS})

    @property
    def bound(self) -> float:
        """What another set of as many images loses at most, with a confidence of 95 %."""
        return self.loss + Z * self.error


INTEGERS = {name: int for name in (*KNOBS, "images")}
PARSERS: dict[str, Callable[[str], Any]] = {**INTEGERS, "stage": str, "search": str, "kept": FLAG, "chosen": FLAG}

Measure = Callable[[Widths, str], WidthTrial | None]
"""(widths, stage) -> the trial, or None where constants of the program do not fit such widths."""


class Enough(Exception):
    """As many programs as allowed were run."""


@dataclass
class Search:
    """start: the widths of the program as it came; sums: bits that all its sums provably need; keep: accuracy that may be lost, a fraction.

    cost: of any widths, or None where they do not fit; cheap, as nothing is run. kept: what passed so far, the cheapest last.
    """

    start: Widths
    sums: int
    keep: float
    cost: Callable[[Widths], float | None]
    measure: Measure
    kept: list[WidthTrial] = field(default_factory=list)

    def run(self) -> None:
        """Measure each width alone, put datapaths in order, and test them until one fails."""
        self.accept(self.start, "default")
        alone = {knob: self.alone(knob) for knob in KNOBS}
        exact = replace(self.start, accumulator_bits=min(self.start.accumulator_bits, self.sums))
        if exact != self.start:
            self.accept(exact, "joint")  # the same integers, proven: nothing to test
        for widths in self.tested(self.chain(alone, exact)):
            trial = self.measure(widths, "joint")
            if trial is None or not trial.bound <= self.keep:  # nor a loss that is NaN
                return
            self.kept.append(trial)

    def accept(self, widths: Widths, stage: str) -> None:
        """What loses nothing."""
        trial = self.measure(widths, stage)
        assert trial is not None
        self.kept.append(trial)

    def alone(self, knob: str) -> dict[int, float]:
        """The noise of every width of one knob, the others as they came, from the narrowest that is not hopeless.

        The default's counts as much as that of a bit less: any other datapath breaks the ties of four-bit codes otherwise.
        """
        if knob == "accumulator_bits":
            return {self.sums: 0.0}
        found: dict[int, float] = {}
        for bits in range(getattr(self.start, knob) - 1, getattr(FLOORS, knob) - 1, -1):
            trial = self.measure(with_width(self.start, knob, bits), "alone")
            if trial is None or not trial.noise <= HOPELESS:
                break
            found[bits] = trial.noise
        return found | {getattr(self.start, knob): max(found.items(), default=(0, 0.0))[1]}

    def chain(self, alone: dict[str, dict[int, float]], exact: Widths) -> list[Widths]:
        """From the widest to the narrowest; built from there, each time by the next width that gains most (noise per cost)."""
        levels = {knob: useful(noise) for knob, noise in alone.items()}

        def combined() -> Widths:
            narrow = Widths(**{knob: bits[0] for knob, bits in levels.items()})
            return with_width(narrow, "reciprocal_bits", narrow.reciprocal_bits)

        def gain(knob: str) -> float:
            now, wider = levels[knob][:2]
            dearer = (self.cost(with_width(chain[0], knob, wider)) or 0) - (self.cost(chain[0]) or 0)
            return (alone[knob][now] - alone[knob][wider]) / max(dearer, 1e-12)

        chain = [combined()]
        while wider := [knob for knob in KNOBS if len(levels[knob]) > 1]:
            best = max(wider, key=gain)
            levels[best] = levels[best][1:]
            chain.insert(0, combined())
        return chain

    def tested(self, chain: list[Widths]) -> list[Widths]:
        """Those of the chain that each save enough against the one before; where constants do not fit, the chain ends."""
        last, found = self.kept[-1].cost, []
        for widths in chain:
            if (cost := self.cost(widths)) is None:
                break
            if cost <= (1 - STEP) * last:
                found.append(widths)
                last = cost
        return found


def useful(noise: dict[int, float]) -> list[int]:
    """Widths, the narrowest first, that are each less noisy than all narrower ones."""
    widths = sorted(noise)
    return [bits for at, bits in enumerate(widths) if all(noise[bits] < noise[narrower] for narrower in widths[:at])]


def with_width(widths: Widths, knob: str, bits: int) -> Widths:
    """One width changed; LayerNorm's fraction has at most one bit more than its reciprocal (docs/spec/datapath.md, LayerNorm C5)."""
    changed = replace(widths, **{knob: bits})
    if knob == "norm_fraction_bits":
        return replace(changed, reciprocal_bits=max(changed.reciprocal_bits, bits - 1))
    return replace(changed, norm_fraction_bits=min(changed.norm_fraction_bits, changed.reciprocal_bits + 1))


def paired_loss(right: np.ndarray, base: np.ndarray) -> tuple[float, float]:
    """Accuracy lost against a base, and the standard error of what another set of as many images, seen once, loses; fractions.

    right, base: bool [views, images], whether an answer is right. Views of an image are no images of their own: d_i is the mean over them
    of what image i loses, s_i that of its square. loss = sum d / (n + 2); error^2 = (sum d^2 + sum s + 2 - 2 (sum d)^2 / (n + 2)) /
    (n + 2)^2: the squared errors of this loss and of one view of the other set, by the interval Wald + 2 for matched pairs, which does
    not vanish where nothing was seen to be lost (Agresti and Min, Statistics in Medicine 24, 2005).
    """
    lost = base.astype(np.float64) - right
    mean, images = lost.mean(axis=0), right.shape[1] + 2
    squares = (mean**2).sum() + (lost**2).mean(axis=0).sum() + 2 - 2 * mean.sum() ** 2 / images
    return float(mean.sum() / images), float(np.sqrt(squares) / images)


def unexplained(logits: np.ndarray, base: np.ndarray) -> float:
    """1 - r^2, r the correlation of logits [images, classes] with the base's, an image's mean taken off: their unit does not matter."""
    ours, theirs = (each - each.mean(axis=1, keepdims=True) for each in (logits, base))
    power = (ours**2).sum() * (theirs**2).sum()
    return float(1 - (ours * theirs).sum() ** 2 / power) if power else float((logits != base).any())


def mark(trials: Sequence[WidthTrial], kept: Sequence[WidthTrial]) -> list[WidthTrial]:
    """The same trials with `kept` and `chosen`, the last that was kept, set."""
    return [replace(trial, kept=trial in kept, chosen=trial == kept[-1]) for trial in trials]


def write_trials(path: Path, trials: Sequence[WidthTrial]) -> None:
    """Replace the table of a search. Raises BadFile where it cannot be written."""
    write_table(path, WidthTrial, trials, "continue with --resume")


def read_trials(path: Path) -> list[WidthTrial]:
    """The table of a search; BadFile names what is wrong and where."""
    advice = "make the table again with `eamsim widths`"
    trials = read_table(path, WidthTrial, PARSERS, "a search for widths", advice)
    for number, trial in enumerate(trials, 1):
        if not (0 <= trial.top1 <= 1 and 0 <= trial.noise <= 1 and trial.error >= 0 and trial.images > 0 and trial.cost > 0):
            got = f"top1 {trial.top1}, noise {trial.noise}, error {trial.error}, images {trial.images}, cost {trial.cost}"
            raise BadFile(f"{path}: row {number}: expected fractions from 0 to 1, images and a cost, got {got}; {advice}")
    return trials
