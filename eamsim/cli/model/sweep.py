"""`eamsim sweep`: accuracy of models over shares of frozen weights, variants and seeds, in units that survive an interruption."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table

from eamsim.cli.extras import import_reference
from eamsim.cli.inputs import Compensate, Data, Labels, compensates
from eamsim.cli.manifest import VERSIONED, described, made_by, make_folder, manifest_path, write_manifest
from eamsim.cli.output import LIMIT_HELP, Json, note, progress, table
from eamsim.cli.shares import decimal_share, parse_shares
from eamsim.cli.untrained import emit_measured
from eamsim.errors import UserError
from eamsim.files.origin import public_name
from eamsim.jobs import workers as places

if TYPE_CHECKING:
    from eamsim.jobs.sweep_table import Row

LEAST_STEP = Decimal("0.001")


def sweep(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Timm names, local-dir:DIR or hf-hub:ID.")],
    calib: Annotated[list[Path], typer.Option(help="Calibration images: folders, image files, .npz files. May be repeated.")],
    data: Data,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="A new folder for sweep.csv, its manifest and units/.")],
    labels: Labels = None,
    tau: Annotated[str, typer.Option(help="Shares to freeze: first:last:step, or numbers with commas between.")] = "0:0.9:0.1",
    variant: Annotated[
        str, typer.Option(help="What a frozen weight becomes (float mean or 4-bit code), and who chooses it (EAM or chance).")
    ] = "eam-fp32,eam-4bits,random-4bits",
    softmax: Annotated[str, typer.Option(help="Eq. 15 to the letter, or over unfrozen pairs alone.")] = "paper,renormalised",
    seeds: Annotated[str, typer.Option(help="Of random-4bits, one unit each.")] = "0,1,2",
    granularity: Annotated[
        str, typer.Option(metavar="weight|row|column|head|tile:RxC", help="As `eamsim build`; commas between.")
    ] = "weight",
    scope: Annotated[str, typer.Option(metavar="head|layer|model", help="As `eamsim build`; commas between.")] = "head",
    order: Annotated[str, typer.Option(metavar="entropy|variance|output", help="Of eam-*; as `eamsim build`.")] = "entropy",
    on: Annotated[Literal["engine", "fakequant"], typer.Option(help="What runs the 4-bit variants: integers, or torch.")] = "engine",
    images: Annotated[int | None, typer.Option("--limit", "--images", help=LIMIT_HELP, min=1)] = None,
    calib_images: Annotated[int, typer.Option(help="So many of --calib set the ranges of the quantisers.", min=1)] = 32,
    random_init: Annotated[int | None, typer.Option(metavar="SEED", help="Untrained weights of this seed.", min=0, max=2**63 - 1)] = None,
    compensate: Compensate = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue in DIR: finished units do not run again.")] = False,
    workers: Annotated[int | None, typer.Option(help="Processes, each with one thread; one per core unless given.", min=1)] = None,
    scheduler: Annotated[str | None, typer.Option(metavar="tcp://HOST:PORT", help="Run on this Dask cluster instead.")] = None,
    as_json: Json = False,
) -> None:
    """Accuracy over tau. Every combination of the choices as one unit of work, kept in DIR; then one table, DIR/sweep.csv."""
    taus, drawn = parse_range(tau), parse_seeds(seeds)
    if workers and scheduler:
        raise UserError("--workers and --scheduler: expected at most one of them, got both; a cluster has its own workers")
    check_folder(out, resume)
    import_reference("eamsim sweep")
    from eamsim.jobs.sweep import Choices, open_subject
    from eamsim.jobs.sweep import sweep as run_units
    from eamsim.jobs.sweep_table import write_sweep

    choices = Choices(taus, split(variant), split(softmax), split(granularity), split(scope), split(order), drawn, on)
    place = places.cluster(scheduler, "eamsim sweep") if scheduler else places.processes(workers or os.cpu_count() or 1)
    units = {spec: choices.units(public_name(spec)) for spec in models}
    if len(set(map(public_name, units))) < len(units):
        raise UserError("MODELS: expected models of different names, which the table tells them apart by; rename a folder")
    chosen: dict[str, Any] = {"random_init": random_init, "range_images": calib_images, "images": images, "labels": labels}
    chosen["compensated"] = compensates(compensate, random_init)
    subjects = [open_subject(spec, calib, data, **chosen) for spec in units]
    make_folder(out / "units")
    try:
        rows = [row for subject in subjects for row in run_units(subject, units[subject.spec], out / "units", place, progress, note)]
    except KeyboardInterrupt as stop:
        finished = len(list((out / "units").iterdir()))
        stop.add_note(f"{finished} finished units are kept in {out}; the same command with --resume continues")
        raise
    path = out / "sweep.csv"
    write_sweep(path, rows)
    origins = {public_name(subject.spec): subject.origin | subject.sources for subject in subjects}
    manifest = made_by(*VERSIONED)
    manifest |= {"models": origins, "units": len(rows), "untrained": random_init is not None, "output": described(path)}
    write_manifest(manifest_path(path), manifest)
    emit_measured(
        random_init is not None, manifest | {"rows": [asdict(row) for row in rows]}, as_json, row_table(rows), f"{path}: {len(rows)} units"
    )


def parse_range(text: str) -> list[float]:
    """`first:last:step`, both ends included, exact in decimals; or as `eamsim cost --tau`. Each share once; UserError otherwise."""
    if ":" not in text:
        return list(dict.fromkeys(parse_shares(text, "--tau")))
    try:
        first, last, step = map(decimal_share, text.split(":"))
        if 0 <= first <= last <= 1 and step >= LEAST_STEP:
            return [float(first + number * step) for number in range(int((last - first) / step) + 1)]
    except (ValueError, ArithmeticError):
        pass
    raise UserError(f"--tau: expected first:last:step within 0 to 1, the step at least {LEAST_STEP}, such as 0:0.9:0.1, got {text!r}")


def parse_seeds(text: str) -> list[int]:
    """Whole numbers with commas between; UserError otherwise."""
    try:
        return [int(part) for part in split(text)]
    except ValueError:
        raise UserError(f"--seeds: expected whole numbers with commas between, such as 0,1,2, got {text!r}") from None


def split(text: str) -> list[Any]:
    """The parts between commas, each once."""
    return list(dict.fromkeys(text.split(",")))


def check_folder(out: Path, resume: bool) -> None:
    """UserError unless `out` is new or empty, or with `resume` a folder of a sweep."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out: {out} is a file, expected a folder; choose another")
    if not out.exists() or not any(out.iterdir()):
        return
    if not resume:
        raise UserError(f"--out: {out} is not empty; continue the sweep in it with --resume, or choose a new folder")
    if not (out / "units").is_dir():
        raise UserError(f"--out: {out} holds no sweep to resume (no folder units); choose the folder of the sweep, or a new one")


def row_table(rows: Sequence[Row]) -> Table:
    """A line a row: what differs between the rows, and the fractions in %."""
    names = ("model", "variant", "runner", "softmax", "granularity", "scope", "order", "seed")
    shown = [name for name in names if len({getattr(row, name) for row in rows} - {"", None}) > 1] + ["tau"]
    lines = [["" if getattr(row, name) is None else getattr(row, name) for name in shown] for row in rows]
    if any(row.tau_with_excluded is not None for row in rows):
        shown.append("with excluded")
        lines = [[*line, f"{row.tau_with_excluded:.4g}" if row.tau_with_excluded else ""] for line, row in zip(lines, rows, strict=True)]
    percent = [[f"{row.top1:.2%}", f"{row.top5:.2%}"] for row in rows]
    return table((*shown, "top-1", "top-5"), [line + ends for line, ends in zip(lines, percent, strict=True)], keys=len(shown))
