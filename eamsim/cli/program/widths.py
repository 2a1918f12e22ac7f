"""`eamsim widths`: the narrowest datapath that keeps a program's accuracy, run on the integer engine, priced by the cost model."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from cost_model.chip.hardware import load
from eamsim import artifact
from eamsim.cli.inputs import Isa, Labels, ModelFile, load_engine
from eamsim.cli.manifest import check_output, described, file_line, made_by, manifest_path, write_manifest
from eamsim.cli.output import Json, Limit, Threads, note, progress, table
from eamsim.cli.shares import points_of
from eamsim.cli.untrained import emit_measured
from eamsim.constraints import Verified
from eamsim.datapath import KNOBS
from eamsim.errors import UserError
from eamsim.inputs.images import ImageSet, open_images
from eamsim.jobs.load import is_untrained, read_model
from eamsim.jobs.search.width_evaluator import BATCH, VIEWS, Key, WidthEvaluator
from eamsim.jobs.search.widths import Enough, Search, WidthTrial, mark, read_trials, write_trials
from eamsim.narrow import narrowed, proven_sums, sum_bits

if TYPE_CHECKING:
    from eamsim.engine import Engine

FORMAT = 3
"""Of a table that --resume continues; to be raised when the code begins to judge otherwise."""
PEAK_IMAGES = 256
NAMES = {
    "residual_bits": "residual stream",
    "multiplier_bits": "multipliers",
    "exponent_bits": "exponent fraction",
    "exp2_bits": "exponentials",
    "log2_index_bits": "logarithm index",
    "norm_fraction_bits": "LayerNorm fraction",
    "reciprocal_bits": "LayerNorm reciprocal",
    "gelu_index_bits": "GELU index",
    "accumulator_bits": "accumulators",
}


def widths(
    model: ModelFile,
    data: Annotated[
        list[Path], typer.Option(help="Images that judge: those of the calibration or others, not those of the test. May be repeated.")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="Y.eam", help="The program to write; beside it Y.eam.json and Y.eam.widths.csv.")
    ],
    labels: Labels = None,
    keep: Annotated[
        float,
        typer.Option(
            metavar="POINTS", help="Of top-1 that as many other images may lose, with a confidence of 95 %.", parser=points_of("--keep")
        ),
    ] = 0.5,
    hw: Annotated[str, typer.Option(metavar="H.yaml", help="The chip that prices widths: a description or a preset.")] = "small-npu",
    batch: Annotated[int, typer.Option(help="Images per fetch of the weights, for the price.", min=1)] = 1,
    limit: Limit = None,
    evaluations: Annotated[int, typer.Option(help="The most programs that are run.", min=2)] = 300,
    threads: Threads = None,
    isa: Isa = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue Y.eam.widths.csv: what it holds is not run again.")] = False,
    as_json: Json = False,
) -> None:
    """The narrowest datapath. Searches the widths of X.eam for the cheapest that keeps its accuracy, and writes that program."""
    check_output(out)
    hardware = load(hw)
    program, preprocessing, labelling, provenance = read_model(model)
    images = open_images(data, preprocessing, limit, replace(labelling, choice=labels, required=False))
    parent = artifact.sha256(model)
    digest = hashlib.sha256(f"{FORMAT} {parent} {images.sha256}".encode()).hexdigest()[:16]
    known = known_trials(table_path(out), digest) if resume else {}
    with progress("programs run, at most", evaluations) as advance:
        engines = partial(load_engine, threads=threads, isa=isa)
        evaluator = WidthEvaluator(program, images, hardware, batch, engines, table_path(out), digest, known, evaluations, advance)
        kept = search(evaluator, keep)
    trials = mark(list(evaluator.trials.values()), kept)
    chosen = next(trial for trial in trials if trial.chosen)
    write_trials(table_path(out), trials)
    result = narrowed(program, chosen.widths)
    sums = observed_sums(result, images.spread(PEAK_IMAGES), load_engine(result, threads, isa))
    found = {
        "from_sha256": parent,
        "keep": keep,
        "judged": {"images": len(images), "views": len(VIEWS), "sha256": images.sha256, "labelled": evaluator.labelled},
        "data": images.summary.json(),
        "hardware": {"name": hardware.name, "batch": batch},
        "default": summary(trials[0], evaluator),
        "chosen": summary(chosen, evaluator),
        "programs_run": len(trials),
        "sums": sums,
    }
    artifact.write(out, result, provenance | {"narrowed": {"from_sha256": parent, **asdict(chosen.widths)}})
    manifest = {**made_by("numpy"), **found, "untrained": is_untrained(provenance), "output": described(out)}
    write_manifest(manifest_path(out), manifest)
    lines = *report(trials, found, table_path(out)), file_line(manifest["output"])
    emit_measured(is_untrained(provenance), manifest, as_json, *lines)


def table_path(out: Path) -> Path:
    """Y.eam.widths.csv beside Y.eam."""
    return out.with_name(out.name + ".widths.csv")


def known_trials(path: Path, digest: str) -> dict[Key, WidthTrial]:
    """What an interrupted search has run; UserError if it was of another program or other images. None if there is no table."""
    trials = read_trials(path) if path.exists() else []
    if any(trial.search != digest for trial in trials):
        raise UserError(f"--resume: {path} belongs to another program or other images; give those, or leave --resume out")
    return {(trial.widths, trial.stage): trial for trial in trials}


def search(evaluator: WidthEvaluator, keep: float) -> list[WidthTrial]:
    """The trials that passed, the program as it came first; says where they are kept when interrupted."""
    found = Search(evaluator.start, max(proven_sums(evaluator.program).values()), keep, evaluator.cost, evaluator.measure)
    try:
        found.run()
    except Enough:
        note(f"stopped after {evaluator.evaluations} programs: the cheapest so far is taken; allow more --evaluations for a longer search")
    except KeyboardInterrupt as stop:
        kept = (
            f"kept in {evaluator.path}; the same command with --resume continues"
            if evaluator.path.exists()
            else "finished, and nothing is kept"
        )
        stop.add_note(f"{len(evaluator.trials)} trials are {kept}")
        raise
    return found.kept


def observed_sums(program: Verified, images: ImageSet, engine: Engine) -> dict[str, Any]:
    """By tap, the bits that its sums provably need, and those that these images make them need."""
    proven = proven_sums(program)
    observed = dict.fromkeys(proven, 1)
    for batch in images.batches(BATCH):
        _, taps = engine.run(batch, taps=lambda name: name in proven)
        for name, values in taps.items():
            observed[name] = max(observed[name], sum_bits((int(values.min()), int(values.max()))))
    return {
        "images": len(images),
        "bits": {name: {"proven": bits, "observed": observed[name]} for name, bits in proven.items()},
        "proven": max(proven.values()),
        "observed": max(observed.values()),
    }


def summary(trial: WidthTrial, evaluator: WidthEvaluator) -> dict[str, Any]:
    """Widths, accuracy and price, in three parts, of one datapath."""
    priced = evaluator.price(trial.widths)
    assert priced is not None
    parts = {name: energy.nominal_pj / 1e6 for name, energy in vars(priced).items() if name != "area_um2"}
    accuracy = {name: getattr(trial, name) for name in ("top1", "noise", "loss", "error", "bound")}
    return {
        "widths": asdict(trial.widths),
        **accuracy,
        "energy_uj": parts | {"total": trial.energy_uj},
        "area_um2": trial.area_um2,
        "cost": trial.cost,
    }


def report(trials: list[WidthTrial], found: dict[str, Any], path: Path) -> tuple[str | Table, ...]:
    """What was found, width by width, and the datapaths whose accuracy was tested, in that order."""
    base, chosen = trials[0], next(trial for trial in trials if trial.chosen)
    rows = [(NAMES[knob], getattr(base, knob), getattr(chosen, knob)) for knob in KNOBS]
    tested = [trial for trial in trials if trial.stage != "alone"]
    sums, judged = found["sums"], found["judged"]
    energy, area = chosen.energy_uj / base.energy_uj - 1, chosen.area_um2 / base.area_um2 - 1
    measure = "top-1" if judged["labelled"] else "agreement with the default"
    return (
        table(("bits", "default", "chosen"), rows),
        "",
        table(
            ("widths, in this order", "energy uJ", "area mm2", "cost", "noise", "lost", "at most", ""),
            [tested_line(each) for each in tested],
        ),
        "",
        f"lost: points of {measure} against the default, {judged['images']} images in {judged['views']} views; at most: of as many "
        f"others, with a confidence of 95 %. The first beyond {100 * found['keep']:g} ends the search",
        f"energy {energy:+.1%}, area {area:+.1%} on {found['hardware']['name']}; sums need {sums['proven']} bits, proven "
        f"({sums['observed']} seen on {sums['images']} images)",
        f"{path}: {len(trials)} trials; eamsim plot widths {path}",
    )


def tested_line(trial: WidthTrial) -> tuple[str, ...]:
    """One datapath."""
    bits = " ".join(f"{getattr(trial, knob):2}" for knob in KNOBS)
    priced = f"{trial.energy_uj:.1f}", f"{trial.area_um2 / 1e6:.3f}", f"{trial.cost:.3f}"
    said = "<- chosen" if trial.chosen else "" if trial.kept else "fails"
    return (bits, *priced, f"{trial.noise:.4f}", f"{100 * trial.loss:+.2f}", f"{100 * trial.bound:+.2f}", said)
