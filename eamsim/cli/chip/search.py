"""`eamsim search`: which accelerator, for this model and these frozen maps? Every combination of the choices, and the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from cost_model.chip.arrays import TIME
from cost_model.chip.hardware import load
from cost_model.models.architectures import architecture
from cost_model.work.encodings import check_encoding
from eamsim import artifact
from eamsim.cli.manifest import check_out, described, made_by, manifest_path, write_manifest
from eamsim.cli.output import Json, progress, table
from eamsim.cli.shares import share_of
from eamsim.cli.untrained import emit_measured
from eamsim.errors import UserError
from eamsim.jobs import workers as places
from eamsim.jobs.load import is_untrained
from eamsim.jobs.search.design_table import write_designs
from eamsim.jobs.search.designs import GOALS, Points, Space, rows_of, variant
from eamsim.jobs.search.designs import search as run_search
from eamsim.program import Softmax

SIDES = "4,8,12,16,24,32,48,64"
ADVICE = "run it again"
SHOWN = 20


def search(
    model: Annotated[str, typer.Argument(metavar="MODEL|X.eam", help="As `eamsim cost`.")],
    hw: Annotated[str, typer.Option(metavar="H.yaml|PRESET", help="The chip whose array, SRAM and batch are varied.")] = "small-npu",
    rows: Annotated[str, typer.Option(help="Rows of the PE array, commas between.")] = SIDES,
    columns: Annotated[str, typer.Option(help="Columns of the PE array.")] = SIDES,
    dataflow: Annotated[str, typer.Option(help="What stays in a PE: outputs, weights or inputs.")] = "os,ws,is",
    sram: Annotated[str, typer.Option(metavar="KIB,...", help="SRAM sizes in KiB.")] = "256,512,1024,1536,2048,4096,8192",
    batch: Annotated[str, typer.Option(help="Images at a time.")] = "1,4,16",
    granularity: Annotated[
        str, typer.Option(metavar="none|weight|row|column|tile:RxC|head|own", help="Units frozen at random; own: an .eam file's masks.")
    ] = "none,weight,head",
    tau: Annotated[float, typer.Option(metavar="SHARE", help="What they freeze: 0.5 or 50%.", parser=share_of("--tau"))] = 0.5,
    softmax: Annotated[Softmax, typer.Option(help="What freezing means.")] = "renormalised",
    encoding: Annotated[str, typer.Option(help="How frozen maps are stored, as `eamsim cost`.")] = "auto",
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="X.csv", help="Write every point, and X.csv.json beside it.")] = None,
    workers: Annotated[int | None, typer.Option(help="So many processes of their own, for large spaces.", min=1)] = None,
    scheduler: Annotated[str | None, typer.Option(metavar="tcp://HOST:PORT", help="Run on this Dask cluster instead.")] = None,
    as_json: Json = False,
) -> None:
    """Price every design of a space. Names those that no other beats in energy, latency and area together."""
    if workers and scheduler:
        raise UserError("--workers and --scheduler: expected at most one of them, got both; a cluster has its own workers")
    check_encoding(encoding)
    if out is not None:
        check_out(out, ".csv")
    subject, provenance = artifact.read(model) if Path(model).suffix == ".eam" or Path(model).is_file() else (architecture(model), {})
    space = Space(
        hardware=load(hw),
        rows=positive("--rows", rows),
        columns=positive("--columns", columns),
        dataflows=[name for name in distinct(dataflow) if is_dataflow(name)],
        sram_bytes=[1024 * size for size in positive("--sram", sram, 1 << 30)],
        batches=positive("--batch", batch, 1 << 10),
        granularities=distinct(granularity),
        tau=tau,
        softmax=softmax,
        encoding=encoding,
    )
    space.check()
    for each in space.granularities:
        variant(subject, each, tau, softmax)  # named before the workers start
    started = perf_counter()
    if scheduler:
        place = places.cluster(scheduler, "eamsim search", ADVICE)
    else:
        place = places.processes(workers, ADVICE) if workers else places.here
    points = run_search(subject, space, place, progress)
    seconds = perf_counter() - started
    front = sorted(rows_of(points, points["pareto"]), key=lambda row: [row[goal] for goal in GOALS])
    count = len(points["pareto"])
    result = {"model": model, "hardware": space.hardware.name, "tau": tau, "softmax": softmax, "points": count}
    result |= {"left_out": len(space) - count, "seconds": seconds, "front": front, "best": best(points)}
    if out is not None:
        write_designs(out, points)
        result["output"] = described(out)
        write_manifest(manifest_path(out), made_by() | {"output": result["output"], "hardware": space.hardware.model_dump()})
    emit_measured(is_untrained(provenance), result, as_json, *report(result, front, out))


def distinct(text: str) -> list[Any]:
    """The parts between commas, each once."""
    return list(dict.fromkeys(text.split(",")))


def positive(option: str, text: str, most: int = 1 << 12) -> list[int]:
    """Whole numbers from 1 to `most`, each once; UserError otherwise."""
    parts = distinct(text)
    if all(part.isascii() and part.isdecimal() and 1 <= int(part[:12]) <= most for part in parts):
        return [int(part) for part in parts]
    raise UserError(f"{option}: expected whole numbers from 1 to {most:,} with commas between, such as 8,16,32, got {text[:60]!r}")


def is_dataflow(name: str) -> bool:
    """True; UserError for a name that is none."""
    if name not in TIME:
        raise UserError(f"--dataflow: expected {', '.join(TIME)} with commas between, got {name!r}")
    return True


def best(points: Points) -> dict[str, dict[str, Any]]:
    """Of each granularity the design with the least energy."""
    found = {}
    for name in dict.fromkeys(points["granularity"].tolist()):
        energy = np.where(points["granularity"] == name, points["energy_uj"], np.inf)
        (found[name],) = rows_of(points, np.arange(len(energy)) == energy.argmin())
    return found


def report(result: dict[str, Any], front: Sequence[dict[str, Any]], out: Path | None) -> tuple[str | Table, ...]:
    """The front, cheapest energy first; the cheapest design of each granularity; what the columns mean."""
    shown = front[:SHOWN]
    rest = "" if len(front) == len(shown) else f" (the first {SHOWN} by energy; --json and -o have all)"
    dropped = f", {result['left_out']:,} do not fit their memories" if result["left_out"] else ""
    title = f"{result['model']} on variants of {result['hardware']}: {result['points']:,} designs in {result['seconds']:.1f} s{dropped}."
    return (
        title,
        "",
        f"Pareto front of energy, latency and area: {len(front)} designs{rest}",
        "",
        point_table(shown),
        "",
        f"Least energy by granularity (tau {result['tau']:g}, {result['softmax']}; accuracy is no part of it):",
        "",
        point_table(list(result["best"].values())),
        "",
        "ms: of the whole batch; uJ: an image. mm2: multipliers, accumulators and SRAM, a proxy (cost_model/chip/area.py).",
        *([] if out is None else [f"{out}: {result['points']:,} points; eamsim plot designs {out}"]),
    )


def point_table(rows: Sequence[dict[str, Any]]) -> Table:
    """A line a design."""
    lines = []
    for row in rows:
        chosen = row["granularity"], row["dataflow"], f"{row['rows']} x {row['columns']}", f"{row['sram_bytes'] // 1024:,}", row["batch"]
        energies = (f"{row[name]:,.1f}" for name in ("energy_uj_low", "energy_uj", "energy_uj_high"))
        lines.append((*chosen, f"{row['latency_ms']:,.3f}", *energies, f"{row['area_mm2']:.3f}"))
    return table(("frozen", "flow", "array", "SRAM KiB", "batch", "ms", "uJ low", "nominal", "high", "mm2"), lines, keys=5)
