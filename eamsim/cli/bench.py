"""`eamsim bench`: the engine beside other runtimes, on the same images and threads, in one interleaved run."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.table import Table

from eamsim import artifact
from eamsim.cli.build import import_reference
from eamsim.cli.output import Json, Threads, emit, note, progress, table
from eamsim.cli.run import Isa, load_engine, read_model
from eamsim.cli.verify import parse_counts
from eamsim.errors import UserError
from eamsim.images import ImageSet, open_images
from eamsim.program import Program

if TYPE_CHECKING:
    from reference.models import Model

ROUNDS = 9
TURN = 0.2
CHILD = """
import re, sys
import numpy as np
from pathlib import Path
from eamsim import artifact, engine
runner = engine.load(artifact.read(Path(sys.argv[1]))[0], int(sys.argv[2]), sys.argv[3])
for _ in range(2):
    runner.run(np.zeros([int(extent) for extent in sys.argv[4:]], np.uint8))
print(1024 * int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]))
"""
"""Not getrusage: its maximum begins with what the parent held at the fork."""


def bench(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="X.eam, a timm name, local-dir:DIR or hf-hub:ID.")],
    data: Annotated[list[Path], typer.Option("--data", help="Images to run, and to calibrate with. May be repeated.")],
    batch: Annotated[str, typer.Option(help="Batch sizes, with commas between.")] = "1,8",
    against: Annotated[
        str, typer.Option(metavar="torch,onnxruntime,openvino", help="Runtimes to compare: torch in float32, the others in int8.")
    ] = "",
    random_init: Annotated[int | None, typer.Option(metavar="SEED", help="Untrained weights of this seed.", min=0, max=2**63 - 1)] = None,
    rounds: Annotated[int, typer.Option(help="Turns of each runtime, one after the other.", min=3)] = ROUNDS,
    threads: Threads = None,
    isa: Isa = None,
    profile: Annotated[bool, typer.Option("--profile", help="Time per kind of operation too.")] = False,
    as_json: Json = False,
) -> None:
    """Speed beside other runtimes. Same images, same threads, interleaved; medians, quartiles, ratios, share of the peak, memory."""
    from eamsim.engine.isa import select  # slow to import, like all of the engine
    from eamsim.engine.peak import peak_macs_per_second
    from eamsim.engine.team import usable_threads

    batches, peers = parse_counts("--batch", batch), [name for name in against.split(",") if name]
    threads, isa = threads or usable_threads(), select(isa)
    peak = peak_macs_per_second(isa, threads)
    results = []
    for spec in models:
        program, images, model = open_model(spec, data, random_init, bool(peers))
        for size in batches:
            note(f"{spec}, batch {size}")
            results.append(measure(program, images, model, size, peers, rounds, threads, isa, peak, profile))
    result = {"instruction_set": isa, "peak_gmacs_per_second": peak and peak / 1e9, "rounds": rounds, "results": results}
    profiles = [profile_table(each) for each in results if profile]
    emit(result, as_json, f"{isa}, {threads} threads, peak {(peak or 0) / 1e9:,.0f} GMAC/s", result_table(results), *profiles)


def open_model(spec: str, data: list[Path], random_init: int | None, with_peers: bool) -> tuple[Program, ImageSet, Model | None]:
    """A program, images for it, and the float model where there is one or peers need it."""
    if spec.endswith(".eam"):
        program, preprocessing, _ = read_model(Path(spec))
        if with_peers:
            raise UserError(f"--against: expected the name of a float model, got {spec}; peers are made from the float model")
        return program, open_images(data, preprocessing), None
    build_program = import_reference("eamsim bench MODEL")
    from reference.freeze import Freezing
    from reference.models import load_model

    program, _ = build_program(spec, data, progress, Freezing(0), random_init=random_init)
    model = load_model(spec, random_init=random_init)
    return program, open_images(data, model.preprocessing), model


def measure(
    program: Program,
    images: ImageSet,
    model: Model | None,
    size: int,
    peers: list[str],
    rounds: int,
    threads: int,
    isa: str,
    peak: float | None,
    profile: bool,
) -> dict[str, Any]:
    """One row of results: the keys of the table, milliseconds an image, ratios (others / eamsim) with their quartiles."""
    from cost_model.counts import count

    pixels = np.resize(np.concatenate(list(images.spread(min(size, len(images))).batches(size))), (size, *program.image.shape))
    engine = load_engine(program, threads, isa)
    calls: dict[str, Callable[[], Any]] = {"eamsim": lambda: engine.run(pixels)}
    if model is not None and peers:
        calls |= peer_calls(peers, model, pixels, threads)
    times = interleaved(calls, rounds, size)
    own = median(times["eamsim"])
    ratios = {name: [other / mine for other, mine in zip(times[name], times["eamsim"], strict=True)] for name in calls if name != "eamsim"}
    gmacs = count(program).macs.full / (own * 1e-3) / 1e9
    row = {
        "model": program.name,
        "batch": size,
        "threads": threads,
        "ms_per_image": {name: median(each) for name, each in times.items()},
        "ms_quartiles": {name: spread(each) for name, each in times.items()},
        "ratio": {name: median(each) for name, each in ratios.items()},
        "ratio_quartiles": {name: spread(each) for name, each in ratios.items()},
        "gmacs_per_second": gmacs,
        "peak_share": peak and gmacs * 1e9 / peak,
        "peak_memory_bytes": peak_memory_bytes(program, size, threads, isa),
    }
    return row | ({"profile_ms_per_image": {kind: 1e3 * s / size for kind, s in engine.profile(pixels).items()}} if profile else {})


def peer_calls(peers: list[str], model: Model, pixels: np.ndarray, threads: int) -> dict[str, Callable[[], Any]]:
    from reference.peers import load_peer

    mean, std = (np.array(values, np.float32)[:, None, None] for values in (model.mean, model.std))
    floats = np.ascontiguousarray((pixels.transpose(0, 3, 1, 2) / np.float32(255) - mean) / std, np.float32)

    def bound(name: str) -> Callable[[], Any]:
        call = load_peer(name, model.module, floats, threads)
        return lambda: call(floats)

    return {name: bound(name) for name in peers}


def interleaved(calls: Mapping[str, Callable[[], Any]], rounds: int, size: int) -> dict[str, list[float]]:
    """Milliseconds an image of every round, in which each runtime has one turn.

    A turn is TURN seconds of calls that do not count, since the others' threads spin on after their turn and the caches hold the
    others' weights, and as many that do.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
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


def peak_memory_bytes(program: Program, size: int, threads: int, isa: str) -> int:
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
            line = [row["model"], row["batch"], name, f"{ms:.2f}", between(row["ms_quartiles"][name])]
            if name == "eamsim":
                share = "" if row["peak_share"] is None else f"{row['peak_share']:.0%}"
                line += ["", "", f"{row['gmacs_per_second']:,.0f}", share, f"{row['peak_memory_bytes'] / 1e6:,.0f}"]
            else:
                line += [f"{row['ratio'][name]:.2f}", between(row["ratio_quartiles"][name]), "", "", ""]
            rows.append(line)
    return table(["model", "batch", "runtime", "ms", "quartiles", "ratio", "quartiles", "GMAC/s", "of peak", "MB"], rows)


def between(quartiles: list[float]) -> str:
    return "-".join(f"{each:.2f}" for each in quartiles)


def profile_table(row: dict[str, Any]) -> Table:
    total = sum(row["profile_ms_per_image"].values())
    rows = [[kind, f"{ms:.3f}", f"{ms / total:.0%}"] for kind, ms in sorted(row["profile_ms_per_image"].items(), key=lambda item: -item[1])]
    return table([f"{row['model']}, batch {row['batch']}", "ms per image", "share"], rows)
