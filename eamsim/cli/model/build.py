"""`eamsim build`: a float model and calibration images in, an .eam file and its manifest out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table

from cost_model.work.counts import constant_share, count, frozen_share
from eamsim import artifact
from eamsim.cli.extras import import_reference
from eamsim.cli.inputs import Compensate, Labels, compensates
from eamsim.cli.manifest import (
    VERSIONED,
    check_output,
    check_writable,
    described,
    file_line,
    front_path,
    made_by,
    manifest_path,
    write_manifest,
)
from eamsim.cli.output import Json, Limit, progress, table
from eamsim.cli.shares import parse_share, points_of, share_of
from eamsim.cli.untrained import emit_measured
from eamsim.errors import UserError
from eamsim.jobs.load import is_untrained
from eamsim.jobs.search.budget import Budget, BudgetTrial
from eamsim.jobs.search.front import write_front
from eamsim.program import Softmax
from reference.attention.freeze import Freezing, Order, Scope
from reference.quantisation.precision import Precision

if TYPE_CHECKING:
    from reference.tuning.tune import Tuning


def build(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A timm name, local-dir:DIR or hf-hub:ID.")],
    calib: Annotated[list[Path], typer.Option(help="Calibration images: folders, image files, .npz files. May be repeated.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="X.eam", help="The file to write; X.eam.json beside it says how it was made.")
    ],
    tau: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Of the attention weights to freeze: 0.2 or 20%. [default: 0.2]", parser=share_of("--tau")),
    ] = None,
    granularity: Annotated[
        str | None,
        typer.Option(
            metavar="weight|row|column|head|tile:RxC",
            help="What is frozen as a whole: R x C is a tile of queries by keys. Several with commas between for a budget, and removed: "
            "heads may go. "
            "[default: weight; all for a budget]",
        ),
    ] = None,
    scope: Annotated[Scope | None, typer.Option(help="Freeze tau of every head, of every layer or of the model. [default: head]")] = None,
    order: Annotated[
        Order | None,
        typer.Option(
            help="What is frozen first: least entropy, variance, change of the output, or at random; kl: least change of the answers, "
            "of heads and of a budget's moves. [default: entropy; of a budget the labels' loss]"
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the order random, and of what --tune sees. [default: 0]", min=0)] = None,
    softmax: Annotated[
        Softmax | None,
        typer.Option(help="What freezing means: Eq. 15 to the letter, or over unfrozen pairs alone. [default: paper; not for a budget]"),
    ] = None,
    keep_accuracy: Annotated[
        float | None,
        typer.Option(
            metavar="POINTS",
            help="A budget instead of tau: save what costs at most so many points of top-1.",
            parser=points_of("--keep-accuracy"),
        ),
    ] = None,
    save_macs: Annotated[
        str | None, typer.Option(metavar="10%", help="A budget instead of tau: save this share of all MACs at the least loss found.")
    ] = None,
    validation: Annotated[
        list[Path] | None, typer.Option(help="Labelled images that judge a budget's masks. [default: the calibration images]")
    ] = None,
    evaluations: Annotated[int | None, typer.Option(help="The most programs a budget's search runs. [default: 300]", min=1)] = None,
    labels: Labels = None,
    weights: Annotated[str | None, typer.Option(help="A .safetensors file, local-dir:DIR or hf-hub:ID.")] = None,
    random_init: Annotated[int | None, typer.Option(metavar="SEED", help="Untrained weights of this seed.", min=0, max=2**63 - 1)] = None,
    allow_pickle: Annotated[bool, typer.Option("--allow-pickle", help="Accept weights in a pickle (read with weights_only).")] = False,
    image_size: Annotated[
        str | None, typer.Option(metavar="H,W", help="Build for images of another size than the model's own, as timm would.")
    ] = None,
    limit: Limit = None,
    calib_images: Annotated[int, typer.Option(help="So many of them set the ranges of the quantisers.", min=1)] = 32,
    entropy_from: Annotated[Literal["quantised", "float"], typer.Option(help="The maps whose entropy decides.")] = "quantised",
    codes: Annotated[
        Literal["uniform", "fitted"],
        typer.Option(help="What the codes after GELU stand for: an even grid, or sixteen fitted 8-bit levels, looked up in fc2."),
    ] = "uniform",
    bits: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=BITS",
            help="2 to 8 bits of a value (block0.mlp.fc1), 2 to 7 of a layer's weights (weight:block0.mlp.fc1) or of q, k and v; 4 unless "
            "given. * stands for any part of a name. May be repeated; the last that matches decides.",
        ),
    ] = None,
    compensate: Compensate = None,
    tune: Annotated[
        int | None,
        typer.Option(metavar="STEPS", help="Then let the float model teach the quantised one so many steps: 100 do most (minutes).", min=1),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted --tune, from X.eam.tuning.")] = False,
    share_windows: Annotated[bool, typer.Option("--share-windows", help="Of a Swin: one map for all windows of a block.")] = False,
    keep_unread: Annotated[
        bool, typer.Option("--keep-unread", help="Compute the rows of a ViT's last block that nothing reads, as published counts do.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Float model to .eam file. Calibrate (RepQ-ViT, 4 bits), compensate, measure entropies, freeze, lower to integers, write."""
    fixed = {"tau": tau, "scope": scope, "order": order, "seed": seed}
    budget = {"keep_accuracy": keep_accuracy, "save_macs": save_macs, "validation": validation, "evaluations": evaluations}
    freezing = chosen_freezing(given(fixed), given(budget), granularity, softmax)
    if labels and not isinstance(freezing, Budget):
        raise UserError("--labels: belongs to a budget, which judges by labels; leave it out")
    check_output(out)
    check_tuning(out, tune, resume, freezing)
    build_program = import_reference("eamsim build")
    tuning = chosen_tuning(out, tune, resume, freezing)
    program, provenance = build_program(
        model,
        calib,
        progress,
        freezing,
        softmax=softmax or "paper",
        weights=weights,
        random_init=random_init,
        allow_pickle=allow_pickle,
        image_size=None if image_size is None else parse_size(image_size),
        limit=limit,
        range_images=calib_images,
        entropy_from=entropy_from,
        share_windows=share_windows,
        compensated=compensates(compensate, random_init),
        precision=Precision(codes, parse_bits(bits or [])),
        labels=labels,
        tuning=tuning,
        keep_unread=keep_unread,
    )
    artifact.write(out, program, provenance)
    shares = {"tau": frozen_share(program), "tau_with_excluded": constant_share(program)}
    manifest = {**made_by(*VERSIONED), **provenance, "frozen": shares, "output": described(out)}
    front_path(out).unlink(missing_ok=True)  # of a budget built to this name before
    if tuning:
        tuning.file.unlink(missing_ok=True)
    found = write_trials(out, provenance["budget"]) if isinstance(freezing, Budget) else ()
    write_manifest(manifest_path(out), manifest)
    lines = (*found, frozen_line(shares), file_line(manifest["output"]), f"next: eamsim eval {out} --data ...")
    emit_measured(is_untrained(provenance), manifest, as_json, *lines)


def frozen_line(shares: dict[str, float]) -> str:
    """tau of the masks, and with the pairs that a Swin's shifted windows exclude."""
    tau, constant = shares["tau"], shares["tau_with_excluded"]
    excluded = f"; {constant:.2%} with the pairs that shifted windows exclude" if constant != tau else ""
    return f"frozen: {tau:.2%} of the attention weights{excluded}"


def parse_size(text: str) -> tuple[int, int]:
    """224,160 as height and width in pixels."""
    parts = text.split(",")
    if len(parts) != 2 or not all(part.isdecimal() and 0 < int(part) < 1 << 16 for part in parts):
        raise UserError(f"--image-size: expected height and width in pixels, such as 224,160, got {text!r}")
    return int(parts[0]), int(parts[1])


def parse_bits(texts: list[str]) -> dict[str, int]:
    """`block0.mlp.fc1=5` as a name and its bits; UserError for what is neither."""
    found = {}
    for text in texts:
        name, _, bits = text.rpartition("=")
        if not name or not bits.isdecimal():
            raise UserError(f"--bits: expected NAME=BITS such as block0.mlp.fc1=5 or weight:block*.attn.qkv=8, got {text!r}")
        found.pop(name, None)  # the last decides, among other patterns too
        found[name] = int(bits)
    return found


def given(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given."""
    return {name: value for name, value in options.items() if value is not None}


def chosen_freezing(fixed: dict[str, Any], budget: dict[str, Any], granularity: str | None, softmax: Softmax | None) -> Freezing | Budget:
    """What the options ask for, which are fields of Freezing or of Budget. UserError where they do not go together."""
    settings: dict[str, Any]
    if not budget.keys() & {"keep_accuracy", "save_macs"}:
        for name in budget:
            raise UserError(f"--{name}: belongs to a budget; give --keep-accuracy or --save-macs with it, or leave it out")
        settings = {"tau": 0.2} | fixed
        if granularity is not None:
            settings["granularity"] = granularity
        return Freezing(**settings)
    if fixed.get("order") == "kl":
        budget = budget | {"order": fixed.pop("order")}
    for name in fixed:
        raise UserError(f"--{name}: a budget chooses that itself; leave it out, or leave --keep-accuracy and --save-macs out")
    if softmax == "paper":
        raise UserError("--softmax: expected renormalised with a budget, got paper, under which freezing saves nothing; leave it out")
    settings = {"macs": lambda program: count(program).macs.full} | budget
    if "save_macs" in budget:
        settings["save_macs"] = parse_share(budget["save_macs"], "--save-macs", "all MACs")
        if not settings["save_macs"]:
            raise UserError("--save-macs: expected more than nothing, such as 10% or 0.1")
    if granularity is not None:
        settings["granularities"] = tuple(dict.fromkeys(granularity.split(",")))
    return Budget(**settings)


def write_trials(out: Path, found: dict[str, Any]) -> tuple[str | Table, ...]:
    """Write X.eam.front.csv; the lines that sum it up: the Pareto front, and by what its accuracy was judged."""
    trials, judged, path = [BudgetTrial(**trial) for trial in found["trials"]], found["judged"], front_path(out)
    write_front(path, trials)
    top1 = "top-1" if judged["labelled"] else "agreement with the model with nothing frozen"
    nothing = next(trial for trial in trials if trial.granularity == "none")
    shown = [trial for trial in trials if trial.pareto or trial.chosen]
    rows = [(each.granularity, f"{each.tau:.3f}", f"{each.macs_saved:.2%}", f"{each.top1:.2%}", "<-" * each.chosen) for each in shown]
    return (
        table(("Pareto front", "tau", "MACs saved", "top-1", "chosen"), rows),
        f"top-1: {top1}, on the {judged['images']} images that judged; nothing frozen: {nothing.top1:.2%}; on others it will differ",
        f"{path}: {len(trials)} trials; eamsim plot front {path}",
    )


def check_tuning(out: Path, tune: int | None, resume: bool, freezing: Freezing | Budget) -> None:
    """UserError where --tune and --resume do not go with the rest, or with what is beside `out`."""
    path = tuning_path(out)
    if resume and tune is None:
        raise UserError("--resume: continues an interrupted --tune; give --tune with the same number of steps, or leave it out")
    if tune is None:
        return
    if isinstance(freezing, Budget):
        raise UserError("--tune: expected --tau, got a budget, whose frozen maps are known only at its end; leave --tune out")
    check_writable("--tune", path)
    if resume and not path.exists():
        raise UserError(f"--resume: {path} does not exist, so there is nothing to continue; leave it out")
    if path.exists() and not resume:
        raise UserError(f"--tune: {path} holds an interrupted tuning; continue it with --resume, or remove it")


def chosen_tuning(out: Path, steps: int | None, resume: bool, freezing: Freezing | Budget) -> Tuning | None:
    """What --tune and --resume ask for, once `check_tuning` has let it pass."""
    from reference.tuning.tune import Tuning

    return Tuning(steps, freezing.seed, tuning_path(out), resume) if steps and isinstance(freezing, Freezing) else None


def tuning_path(out: Path) -> Path:
    """X.eam.tuning beside X.eam, while it is tuned."""
    return out.with_name(out.name + ".tuning")
