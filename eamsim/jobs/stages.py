"""One model's accuracy at every stage of the chain, as a Markdown table: `python -m eamsim.jobs.stages MODEL --calib D --data D`.

A line a stage: float; RepQ-ViT as published and hardware-true, fake-quantised; the integers, as calibrated; finished .eam files, integers
and their fake quantisation; compensated; then EAM, integers and fake-quantised. A column for each --data. In brackets what is gained or
lost, in points, with the standard error of the pairs of the same images: of unfrozen integers and finished files against the integers as
calibrated, of weights that entropy froze against nothing frozen, of those frozen at random against these, of torch's lines against the
integers they simulate.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np

from eamsim.constraints import Verified
from eamsim.engine import Engine
from eamsim.errors import UserError
from eamsim.inputs.images import ImageSet, open_images
from eamsim.inputs.labels import HELP
from eamsim.jobs.build import labelling
from eamsim.jobs.load import read_model
from eamsim.jobs.measure import label_ranks
from eamsim.program import Softmax
from eamsim.progress import silent
from reference.attention.collect import attention_statistics, calibrate_on, compensate_on, frozen_maps, parameters_sha256
from reference.attention.freeze import Freezing, FrozenMap, Order, Scope
from reference.crosscheck.compare import paired
from reference.crosscheck.rebuild import rebuild
from reference.lowering.program import lower
from reference.models.load import Model, load_model
from reference.quantisation.fakequant import predict, quantise_frozen
from reference.quantisation.repq import Calibrated

BATCH = 50
MEANINGS: tuple[Softmax, ...] = ("paper", "renormalised")
Hits = list[np.ndarray]
"""Of each data set, bool [images]: whether the highest logit is the label's; ties go to the lowest index."""


@dataclass(frozen=True)
class StagePlan:
    """What is measured: choices of frozen weights; with random ones beside each, or not; torch's lines at these taus, on so many images.

    labels: how the classes of the data meet the model's, as `Labelling.choice`; programs: finished ones of the same model, a line each.
    """

    choices: Sequence[Freezing]
    random: bool
    fake_taus: Sequence[float]
    fake_images: int | None
    range_images: int
    entropy_images: int | None
    compensated: bool
    labels: str | None = None
    programs: Sequence[Path] = ()


@dataclass(frozen=True)
class Line:
    """A stage: hits of each data set, and those that they are held against, of the same images."""

    tau: float
    softmax: str
    stage: str
    hits: Hits
    against: Hits | None

    def cells(self) -> list[str]:
        """Of the table."""
        bases = self.against or [None] * len(self.hits)
        return [f"{self.tau:g}", self.softmax, self.stage, *(cell(*pair) for pair in zip(self.hits, bases, strict=True))]


def cell(hits: np.ndarray, base: np.ndarray | None) -> str:
    """Top-1 in %, and what it gains over `base`, with the standard error of the pairs."""
    if base is None:
        return f"{100 * hits.mean():.2f}"
    change = paired(hits, base)
    return f"{100 * hits.mean():.2f} ({100 * change['mean']:+.2f} \N{PLUS-MINUS SIGN} {100 * change['standard_error']:.2f})"


class Judges:
    """Labelled data sets, and the same evenly spaced but fewer for torch, which takes long."""

    def __init__(self, model: Model, data: Sequence[Path], fake_images: int | None, labels: str | None = None):
        self.all = [open_images([path], model.preprocessing, labelling=labelling(model, labels)) for path in data]
        self.few = [each.spread(min(fake_images or len(each), len(each))) for each in self.all]

    def integers(self, calibrated: Calibrated, frozen: list[FrozenMap] | None = None, softmax: Softmax = "paper") -> tuple[Hits, Hits]:
        """Of all images, and of the few among them."""
        return self.judged(lower(calibrated, frozen, softmax))

    def judged(self, program: Verified) -> tuple[Hits, Hits]:
        """Of all images, and of the few among them."""
        run = Engine(program).run
        return [hits(run, each) for each in self.all], [hits(run, each) for each in self.few]

    def torch(self, network: Model | Calibrated, frozen: list[FrozenMap] | None = None, softmax: Softmax = "paper") -> Hits:
        """Of the few images."""
        return self.hits(lambda batch: predict(network, batch, frozen, softmax))

    def hits(self, run: Callable[[np.ndarray], np.ndarray]) -> Hits:
        """Of the few images."""
        return [hits(run, each) for each in self.few]


def hits(run: Callable[[np.ndarray], np.ndarray], images: ImageSet) -> np.ndarray:
    """bool [images]; run: uint8 [batch, height, width, 3] -> logits [batch, classes]."""
    if images.labels is None:
        raise UserError("--data: expected labelled images, got images alone; give an ImageFolder or an .npz with labels")
    return label_ranks(np.concatenate([run(batch) for batch in images.batches(BATCH)]), images.labels) == 0


def lines(spec: str, calib: Sequence[Path], data: Sequence[Path], plan: StagePlan) -> Iterator[Line]:
    """A line as soon as it is measured."""
    model = load_model(spec)
    images = open_images(calib, model.preprocessing)
    judges = Judges(model, data, plan.fake_images, plan.labels)
    published, hardware = (calibrate_on(model, images, plan.range_images, mode=mode) for mode in ("published", "hardware"))
    base, few = judges.integers(hardware)
    if 0 in plan.fake_taus:
        yield Line(0, "-", "float", judges.torch(model), few)
        yield Line(0, "-", "RepQ-ViT as published, fake-quantised", judges.torch(published), few)
        yield Line(0, "-", "hardware-true, fake-quantised", judges.torch(hardware), few)
    yield Line(0, "-", "**integers**, as calibrated", base, None)
    for file in plan.programs:
        yield from finished(file, model, judges, base, plan.fake_taus)
    if plan.compensated:
        hardware = compensate_on(hardware, images)
        before, (base, few) = base, judges.integers(hardware)
        yield Line(0, "-", "**integers**, compensated", base, before)
        if 0 in plan.fake_taus:
            yield Line(0, "-", "compensated, fake-quantised", judges.torch(hardware), few)
    yield from eam(hardware, images, judges, plan, base)


def finished(file: Path, model: Model, judges: Judges, base: Hits, fake_taus: Sequence[float]) -> Iterator[Line]:
    """The lines of an .eam file: integers, against those as calibrated, and its own fake quantisation. UserError for another model's."""
    program, _, _, provenance = read_model(file)
    if provenance.get("model_sha256") != parameters_sha256(model.module):
        raise UserError(f"{file}: was built from other weights than those of {model.name}; give programs of that model")
    tau = provenance.get("tau", 0)
    softmax = provenance["softmax"] if tau else "-"
    found, few = judges.judged(program)
    yield Line(tau, softmax, f"**integers**, {file.stem}", found, base)
    if tau in fake_taus:
        fake = rebuild(program, provenance, model).fake_logits
        yield Line(tau, softmax, f"{file.stem}, fake-quantised", judges.hits(fake), few)


def eam(calibrated: Calibrated, images: ImageSet, judges: Judges, plan: StagePlan, base: Hits) -> Iterator[Line]:
    """The lines of frozen weights; base: the integers with nothing frozen."""
    if not plan.choices:
        return
    counted = images.spread(min(plan.entropy_images or len(images), len(images)))
    statistics = attention_statistics(calibrated, counted, silent, {choice.order for choice in plan.choices})
    for choice in plan.choices:
        frozen = frozen_maps(statistics, choice)
        drawn = frozen_maps(statistics, replace(choice, order="random")) if plan.random else None
        for softmax in MEANINGS:
            found, few = judges.integers(calibrated, frozen, softmax)
            yield Line(choice.tau, softmax, "**integers**", found, base)
            if drawn:
                yield Line(choice.tau, softmax, "**integers**, random", judges.integers(calibrated, drawn, softmax)[0], found)
            if choice.tau in plan.fake_taus:
                yield Line(choice.tau, softmax, "float means, fake-quantised", judges.torch(calibrated, frozen, softmax), few)
                on_grid = quantise_frozen(calibrated, frozen)
                yield Line(choice.tau, softmax, "4-bit means, fake-quantised", judges.torch(calibrated, on_grid, softmax), few)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--calib", type=Path, nargs="+", required=True)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="labelled sets, a column each")
    parser.add_argument("--tau", type=float, nargs="*", default=[0.1, 0.2, 0.3, 0.5])
    parser.add_argument("--random", action="store_true", help="weights frozen at random beside each choice (--seed)")
    parser.add_argument("--fake-tau", type=float, nargs="*", help="torch's lines at these taus alone (all unless given; 0: nothing frozen)")
    parser.add_argument("--fake-images", type=int, help="torch's lines on so many images of each set (all unless given)")
    parser.add_argument("--no-compensate", action="store_true")
    parser.add_argument("--programs", type=Path, nargs="*", default=[], help=".eam files of the model, a line each")
    parser.add_argument("--granularity", default="weight", metavar="weight|row|column|head|tile:RxC")
    parser.add_argument("--scope", default="head", choices=get_args(Scope))
    parser.add_argument("--order", default="entropy", choices=get_args(Order))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--calib-images", type=int, default=32)
    parser.add_argument("--entropy-images", type=int, help="entropies and means of so many calibration images (all unless given)")
    parser.add_argument("--labels", metavar="by-name|by-order|FILE", help=HELP)
    options = parser.parse_args()
    choices = [Freezing(tau, options.granularity, options.scope, options.order, options.seed) for tau in options.tau]
    fake_taus = [0, *options.tau] if options.fake_tau is None else options.fake_tau
    plan = StagePlan(
        choices,
        options.random,
        fake_taus,
        options.fake_images,
        options.calib_images,
        options.entropy_images,
        not options.no_compensate,
        options.labels,
        options.programs,
    )
    header = ("tau", "softmax", "top-1, %", *(path.stem for path in options.data))
    print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}", flush=True)
    for line in lines(options.model, options.calib, options.data, plan):
        print(f"| {' | '.join(line.cells())} |", flush=True)


if __name__ == "__main__":
    main()
