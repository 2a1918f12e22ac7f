"""`eamsim bench`: models, thread counts and other runtimes in one interleaved run, on the same images."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeVar

import numpy as np
import typer
from rich.table import Table

from eamsim import artifact
from eamsim.cli.extras import import_reference
from eamsim.cli.inputs import Isa, load_engine, parse_counts
from eamsim.cli.output import Json, note, progress, table
from eamsim.cli.untrained import emit_measured
from eamsim.constraints import Verified
from eamsim.errors import UserError
from eamsim.inputs.images import ImageSet, open_images
from eamsim.jobs.load import is_untrained, read_model

if TYPE_CHECKING:
    from eamsim.engine import Engine
    from reference.models.load import Model

Name = TypeVar("Name")
ROUNDS = 9
TURN = 0.2
CHILD = """
import re, sys
import numpy as np
from pathlib import Path
from eamsim import artifact, engine
runner = engine.Engine(artifact.read(Path(sys.argv[1]))[0], int(sys.argv[2]), sys.argv[3])
for _ in range(2):
    runner.run(np.zeros([int(extent) for extent in sys.argv[4:]], np.uint8))
print(1024 * int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]))
"""
"""Not getrusage: its maximum begins with what the parent held at the fork."""


class BenchModel(NamedTuple):
    """What a MODEL is: a program, images for it, and the float model where there is one."""

    name: str
    program: Verified
    images: ImageSet
    model: Model | None
    untrained: bool


class Turn(NamedTuple):
    """One of those that run in turn: the number of the MODEL, threads, and `eamsim` or a peer."""

    model: int
    threads: int
    runtime: str = "eamsim"


def bench(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="X.eam, a timm name, local-dir:DIR or hf-hub:ID.")],
    data: Annotated[list[Path], typer.Option("--data", help="Images to run, and to calibrate with. May be repeated.")],
    batch: Annotated[str, typer.Option(help="Batch sizes, with commas between.")] = "1,8",
    against: Annotated[
        str, typer.Option(metavar="torch,onnxruntime,openvino", help="Runtimes to compare: torch in float32, the others in int8.")
    ] = "",
    random_init: Annotated[int | None, typer.Option(metavar="SEED", help="Untrained weights of this seed.", min=0, max=2**63 - 1)] = None,
    rounds: Annotated[int, typer.Option(help="Turns of each model, thread count and runtime.", min=3)] = ROUNDS,
    threads: Annotated[str | None, typer.Option(help="Thread counts, with commas between; all cores unless given.")] = None,
    isa: Isa = None,
    profile: Annotated[bool, typer.Option("--profile", help="Time per kind of operation too.")] = False,
    as_json: Json = False,
) -> None:
    """Speed, beside other runtimes too. Medians and quartiles of turns, ratios, share of the peak, memory.

    All MODELs, thread counts and runtimes of a batch size run in turn, on the same images.
    """
    from eamsim.engine.isa import select  # slow to import, like all of the engine
    from eamsim.engine.peak import peak_macs_per_second
    from eamsim.engine.team import usable_threads

    batches, peers = parse_counts("--batch", batch), [name for name in against.split(",") if name]
    counts, isa = parse_counts("--threads", threads) if threads else [usable_threads()], select(isa)
    if peers and all(spec.endswith(".eam") for spec in models):
        raise UserError(f"--against: expected the name of a float model, got {models[0]}; peers are made from the float model")
    opened = [open_model(spec, data, random_init) for spec in models]
    peaks = {count: peak_macs_per_second(isa, count) for count in counts}
    results = [row for size in batches for row in measure(opened, size, peers, rounds, peaks, isa, profile)]
    in_gmacs = {str(count): peak and peak / 1e9 for count, peak in peaks.items()}
    result = {"instruction_set": isa, "peak_gmacs_per_second": in_gmacs, "rounds": rounds, "results": results}
    result["data"] = opened[0].images.summary.json()  # of every MODEL
    title = ", ".join(f"{count}: {peak or 0:,.0f} GMAC/s" for count, peak in in_gmacs.items())
    beside = [first_table(results)] if len(opened) * len(counts) > 1 else []
    emit_measured(
        any(each.untrained for each in opened),
        result,
        as_json,
        f"{isa}, peak by threads {title}",
        result_table(results),
        *beside,
        *(profile_table(row) for row in results if profile),
    )


def open_model(spec: str, data: list[Path], random_init: int | None) -> BenchModel:
    if spec.endswith(".eam"):
        program, preprocessing, _, provenance = read_model(Path(spec))
        return BenchModel(Path(spec).name, program, open_images(data, preprocessing), None, is_untrained(provenance))
    build_program = import_reference("eamsim bench MODEL")
    from reference.attention.freeze import Freezing
    from reference.models.load import load_model

    as_calibrated = {"random_init": random_init, "compensated": False}  # no time depends on the weights
    program, provenance = build_program(spec, data, progress, Freezing(0), **as_calibrated)
    model = load_model(spec, random_init=random_init)
    return BenchModel(spec, program, open_images(data, model.preprocessing), model, is_untrained(provenance))


def measure(
    opened: list[BenchModel], size: int, peers: list[str], rounds: int, peaks: Mapping[int, float | None], isa: str, profile: bool
) -> list[dict[str, Any]]:
    """Rows of results of a batch size, one for each model and thread count: the keys of the tables.

    Milliseconds an image; ratios other / eamsim, and to the first row's time and multiply-accumulates; all with quartiles.
    """
    engines: dict[Turn, tuple[Engine, np.ndarray]] = {}
    calls: dict[Turn, Callable[[], Any]] = {}
    for n, (name, program, images, model, _) in enumerate(opened):
        pixels = np.resize(np.concatenate(list(images.spread(min(size, len(images))).batches(size))), (size, *program.image.shape))
        for threads in peaks:
            note(f"{name}, batch {size}, threads {threads}")
            engines[Turn(n, threads)] = engine, _ = load_engine(program, threads, isa), pixels
            calls[Turn(n, threads)] = partial(engine.run, pixels)
            if model is not None and peers:
                calls |= {Turn(n, threads, peer): call for peer, call in peer_calls(peers, model, pixels, threads).items()}
    times = interleaved(calls, rounds, size)
    rows = [row_of(turn, opened, size, times, peaks[turn.threads], isa) for turn in engines]
    if profile:
        for row, (engine, pixels) in zip(rows, engines.values(), strict=True):
            row["profile_ms_per_image"] = {kind: 1e3 * seconds / size for kind, seconds in engine.profile(pixels).items()}
    return rows


def row_of(
    turn: Turn, opened: list[BenchModel], size: int, times: Mapping[Turn, list[float]], peak: float | None, isa: str
) -> dict[str, Any]:
    from cost_model.work.counts import count

    program, own, first = opened[turn.model].program, times[turn], next(iter(times))
    beside = {runtime: each for (model, threads, runtime), each in times.items() if (model, threads) == turn[:2]}
    ratios = {name: ratio(each, own) for name, each in beside.items() if name != "eamsim"}
    macs, first_macs = (count(opened[number].program).macs.full for number in (turn.model, first.model))
    gmacs, to_first = macs / (median(own) * 1e-3) / 1e9, ratio(own, times[first])
    return {
        "model": opened[turn.model].name,
        "batch": size,
        "threads": turn.threads,
        "ms_per_image": {name: median(each) for name, each in beside.items()},
        "ms_quartiles": {name: spread(each) for name, each in beside.items()},
        "ratio": {name: median(each) for name, each in ratios.items()},
        "ratio_quartiles": {name: spread(each) for name, each in ratios.items()},
        "time_to_first": median(to_first),
        "time_to_first_quartiles": spread(to_first),
        "macs_to_first": macs / first_macs,
        "gmacs_per_second": gmacs,
        "peak_share": peak and gmacs * 1e9 / peak,
        "peak_memory_bytes": peak_memory_bytes(program, size, turn.threads, isa),
    }


def ratio(times: list[float], others: list[float]) -> list[float]:
    """Turn by turn."""
    return [one / other for one, other in zip(times, others, strict=True)]


def peer_calls(peers: list[str], model: Model, pixels: np.ndarray, threads: int) -> dict[str, Callable[[], Any]]:
    from eamsim.jobs.peers import load_peer

    mean, std = (np.array(values, np.float32)[:, None, None] for values in (model.mean, model.std))
    floats = np.ascontiguousarray((pixels.transpose(0, 3, 1, 2) / np.float32(255) - mean) / std, np.float32)

    def bound(name: str) -> Callable[[], Any]:
        call = load_peer(name, model.module, floats, threads)
        return lambda: call(floats)

    return {name: bound(name) for name in peers}


def interleaved(calls: Mapping[Name, Callable[[], Any]], rounds: int, size: int) -> dict[Name, list[float]]:
    """Milliseconds an image of every round, in which each call has one turn.

    A turn is TURN seconds of calls that do not count, since the others' threads spin on after their turn and the caches hold the
    others' weights, and as many that do.
    """
    times: dict[Name, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            mean_seconds(call)
            times[name].append(mean_seconds(call) * 1e3 / size)
    return times


def mean_seconds(call: Callable[[], Any]) -> float:
    """Of calls for TURN seconds, of one at least."""
    start, count = perf_counter(), 0
    while count == 0 or perf_counter() - start < TURN:
        call()
        count += 1
    return (perf_counter() - start) / count


def spread(values: list[float]) -> list[float]:
    """First and third quartile."""
    first, _, third = quantiles(values, n=4, method="inclusive")
    return [first, third]


def peak_memory_bytes(program: Verified, size: int, threads: int, isa: str) -> int:
    """Resident bytes at their highest, of a process that loads the program from its file and runs it; Python included."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "program.eam"
        artifact.write(path, program, {})
        command = [sys.executable, "-c", CHILD, str(path), str(threads), isa, *map(str, (size, *program.image.shape))]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def result_table(results: list[dict[str, Any]]) -> Table:
    """A line a runtime: milliseconds an image and the ratio to eamsim, each with its quartiles."""
    rows = []
    for row in results:
        for name, ms in row["ms_per_image"].items():
            line = [row["model"], row["batch"], row["threads"], name, f"{ms:.2f}", between(row["ms_quartiles"][name])]
            if name == "eamsim":
                share = "" if row["peak_share"] is None else f"{row['peak_share']:.0%}"
                line += ["", "", f"{row['gmacs_per_second']:,.0f}", share, f"{row['peak_memory_bytes'] / 1e6:,.0f}"]
            else:
                line += [f"{row['ratio'][name]:.2f}", between(row["ratio_quartiles"][name]), "", "", ""]
            rows.append(line)
    return table(["model", "batch", "threads", "runtime", "ms", "quartiles", "ratio", "quartiles", "GMAC/s", "of peak", "MB"], rows, keys=4)


def first_table(results: list[dict[str, Any]]) -> Table:
    """Each row's time and multiply-accumulates beside those of the first of its batch size."""
    rows = []
    for row in results:
        line = [row["model"], row["batch"], row["threads"], f"{row['ms_per_image']['eamsim']:.2f}", f"{row['time_to_first']:.4f}"]
        rows.append([*line, between(row["time_to_first_quartiles"], 4), f"{row['macs_to_first']:.4f}"])
    return table(["model", "batch", "threads", "ms", "time / first", "quartiles", "MACs / first"], rows, keys=3)


def between(quartiles: list[float], digits: int = 2) -> str:
    return "-".join(f"{each:.{digits}f}" for each in quartiles)


def profile_table(row: dict[str, Any]) -> Table:
    total = sum(row["profile_ms_per_image"].values())
    rows = [[kind, f"{ms:.3f}", f"{ms / total:.0%}"] for kind, ms in sorted(row["profile_ms_per_image"].items(), key=lambda item: -item[1])]
    return table([f"{row['model']}, batch {row['batch']}, threads {row['threads']}", "ms per image", "share"], rows)
