"""Accuracy of many choices of frozen weights: units of work that are found again by the hash of all that determines their result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, assert_never

import numpy as np
import torch

from eamsim import __version__
from eamsim.errors import UserError
from eamsim.files.container import canonical, written
from eamsim.files.limits import TEXT_BYTES
from eamsim.files.reading import read_bytes
from eamsim.inputs.images import ImageSet, open_images
from eamsim.jobs.build import labelling
from eamsim.jobs.evaluate import evaluate, evaluate_program
from eamsim.jobs.measure import Accuracy
from eamsim.jobs.sweep_table import Row, Runner, SweepUnit, Variant
from eamsim.jobs.workers import Workers, results
from eamsim.program import Softmax
from eamsim.progress import Progress
from reference.attention.collect import attention_statistics, means, parameters_sha256, quantise_on, scores
from reference.attention.freeze import Order, Scope, freeze
from reference.lowering.program import lower
from reference.models.load import Model, load_model
from reference.models.maps import excluded_share
from reference.quantisation.compensate import SETTINGS
from reference.quantisation.fakequant import quantise_frozen
from reference.quantisation.repq import Calibrated

BATCH = 50
FORMAT = 2
"""Of the files of units; to be raised when the code begins to give other results for equal choices."""


@dataclass(frozen=True)
class Choices:
    """What is swept: every combination that means something (`units`); runner: of the 4-bit variants."""

    taus: Sequence[float]
    variants: Sequence[Variant]
    softmaxes: Sequence[Softmax]
    granularities: Sequence[str]
    scopes: Sequence[Scope]
    orders: Sequence[Order]
    seeds: Sequence[int]
    runner: Runner

    def units(self, model: str) -> list[SweepUnit]:
        """The units of one model, in the order of the table; tau 0 is one baseline for each runner and one for the float model.

        Raises UserError for a choice that does not exist.
        """
        runners: dict[Variant, Runner] = {variant: "fakequant" if variant == "eam-fp32" else self.runner for variant in self.variants}
        baselines: tuple[Runner, ...] = ("float", *dict.fromkeys(runners.values())) if 0 in self.taus else ()
        units = [SweepUnit(model, "baseline", runner, "", "", "", "", None, 0.0) for runner in baselines]
        for variant, runner in runners.items():
            drawn = variant == "random-4bits"
            orders: Sequence[Order] = ("random",) if drawn else self.orders
            seeds = self.seeds if drawn else (None,)
            choices = product(self.softmaxes, self.granularities, self.scopes, orders, seeds, filter(None, self.taus))
            units += [SweepUnit(model, variant, runner, *choice) for choice in choices]
        return units


@dataclass(frozen=True, eq=False)
class Subject:
    """A float model, the images it is calibrated on (`range_images` of them set the ranges) and compensated or not, and its judges."""

    spec: str
    model: Model
    calibration: ImageSet
    range_images: int
    data: ImageSet
    compensated: bool = True

    @cached_property
    def origin(self) -> dict[str, Any]:
        """All that determines results besides the unit: contents, settings and versions, not names of files."""
        network = self.model.network
        heads = [block.heads for block in network.blocks]
        return {
            "format": FORMAT,
            "versions": {"eamsim": __version__, "numpy": np.__version__, "torch": torch.__version__},
            "model_sha256": parameters_sha256(self.model.module),
            "model_settings": [
                heads,
                network.pixels.patch_size,
                network.norm.eps,
                repr(network.read),
                network.mean,
                self.model.mean,
                self.model.std,
            ],
            "preprocessing": asdict(self.model.preprocessing),
            "calibration_sha256": self.calibration.sha256,
            "range_images": self.range_images,
            "compensation": SETTINGS if self.compensated else None,
            "data_sha256": self.data.sha256,
        }

    @property
    def sources(self) -> dict[str, Any]:
        """What was taken of the folders and files, for the manifest."""
        return {"calibration": self.calibration.summary.json(), "data": self.data.summary.json()}


@dataclass(frozen=True, eq=False)
class Prepared:
    """What all units of a model share; scores: what `freeze` looks for the lowest of, by order and granularity."""

    calibrated: Calibrated
    mean: list[np.ndarray]
    scores: dict[tuple[str, str], list[np.ndarray]]


def open_subject(
    spec: str,
    calib: Sequence[Path],
    data: Sequence[Path],
    *,
    random_init: int | None,
    range_images: int,
    images: int | None,
    labels: str | None = None,
    compensated: bool = True,
) -> Subject:
    """Load a model and find its images, at most so many of `data`; labels: as `Labelling.choice`, the rest as `build_program`."""
    model = load_model(spec, random_init=random_init)
    calibration = open_images(calib, model.preprocessing)
    labelled = open_images(data, model.preprocessing, images, labelling(model, labels))
    return Subject(spec, model, calibration, min(range_images, len(calibration)), labelled, compensated)


def sweep(
    subject: Subject, units: Sequence[SweepUnit], folder: Path, workers: Workers, progress: Progress, report: Callable[[str], None]
) -> list[Row]:
    """The rows of all units, in their order: read from `folder` where they are finished, run and stored there where not.

    A damaged file of a unit is reported, and the unit runs again. Raises UserError and BadFile.
    """
    files = {unit: _UnitFile(folder, unit, subject.origin) for unit in units}
    found = {unit: file.read(report) for unit, file in files.items()}
    pending = [unit for unit, accuracy in found.items() if accuracy is None]
    if pending:
        prepared = prepare(subject, pending, progress)
        with workers(run_unit, prepared, subject.data) as (submit, at_once), progress(f"units of {subject.spec}", len(found)) as advance:
            advance(len(found) - len(pending))
            for unit, accuracy in results(submit, pending, at_once):
                files[unit].write(accuracy)
                found[unit] = accuracy
                advance(1)
    excluded = excluded_share(subject.model.network.maps)
    return [_row(unit, accuracy, excluded) for unit, accuracy in found.items() if accuracy]


def prepare(subject: Subject, units: Sequence[SweepUnit], progress: Progress) -> Prepared:
    """Calibrate, and gather what decides about the frozen weights of these units; torch uses one thread."""
    freezings = {(unit.order, unit.granularity): unit.freezing for unit in units if unit.freezing}
    with one_torch_thread():
        calibrated = quantise_on(subject.model, subject.calibration, subject.range_images, progress, subject.compensated)
        if not freezings:
            return Prepared(calibrated, [], {})
        statistics = attention_statistics(calibrated, subject.calibration, progress, {each.order for each in freezings.values()})
        return Prepared(calibrated, means(statistics), {key: scores(statistics, each) for key, each in freezings.items()})


def run_unit(unit: SweepUnit, prepared: Prepared, data: ImageSet) -> Accuracy:
    """The accuracy of one unit, in one thread, so that it is the same wherever and beside whatever else it runs."""
    if data.labels is None:
        raise UserError("--data: expected labelled images, got images alone; give an ImageFolder or an .npz with labels")
    calibrated, batches, softmax = prepared.calibrated, data.batches(BATCH), unit.softmax or "paper"
    frozen = freeze(prepared.scores[unit.order, unit.granularity], prepared.mean, unit.freezing) if unit.freezing else None
    with one_torch_thread():
        match unit.runner:
            case "float":
                return evaluate(calibrated.model, batches, data.labels)
            case "fakequant":
                if frozen and unit.variant != "eam-fp32":
                    frozen = quantise_frozen(calibrated, frozen)
                return evaluate(calibrated, batches, data.labels, frozen, softmax)
            case "engine":
                return evaluate_program(lower(calibrated, frozen, softmax), batches, data.labels, threads=1)
            case _:
                assert_never(unit.runner)


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """The order in which torch adds floats depends on its threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _UnitFile:
    """One line of canonical JSON: the accuracy of a unit, its identity, and a digest of both; named after the identity's digest."""

    def __init__(self, folder: Path, unit: SweepUnit, origin: dict[str, Any]):
        self.unit = unit
        self.identity = origin | {name: value for name, value in asdict(unit).items() if name != "model"}
        self.path = folder / f"{_sha256(self.identity)}.json"

    def write(self, accuracy: Accuracy) -> None:
        """Store the result in one step; BadFile where that fails."""
        with written(self.path, "free some space, then continue with --resume") as temporary:
            temporary.write_bytes(self._content(accuracy))

    def read(self, report: Callable[[str], None]) -> Accuracy | None:
        """The stored result; None if there is none, or none but a damaged one, which is reported."""
        try:
            content = read_bytes(self.path, TEXT_BYTES)
            accuracy = Accuracy(**json.loads(content)["accuracy"])
            if content != self._content(accuracy):
                raise ValueError("its digest is of other contents")
            _row(self.unit, accuracy)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, RecursionError, UserError) as error:
            report(f"{self.path}: damaged ({error}); its unit runs again")
            return None
        return accuracy

    def _content(self, accuracy: Accuracy) -> bytes:
        body = {"accuracy": asdict(accuracy), "identity": self.identity}
        return canonical(body | {"sha256": _sha256(body)}) + b"\n"


def _row(unit: SweepUnit, accuracy: Accuracy, excluded: float = 0.0) -> Row:
    """excluded: the share of the attention weights that is 0 whatever the image."""
    constant = unit.tau + (1 - unit.tau) * excluded if excluded else None
    return Row(**asdict(unit), **asdict(accuracy), tau_with_excluded=constant)


def _sha256(tree: object) -> str:
    return hashlib.sha256(canonical(tree)).hexdigest()
