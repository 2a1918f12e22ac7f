"""The two arguments of `trace diff`, opened: what each holds, and which program may explain it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from eamsim import artifact
from eamsim.constraints import Verified
from eamsim.errors import UserError
from eamsim.program import Value
from eamsim.tensors import taps
from eamsim.traces import file as trace_file
from eamsim.traces.compare import Sides
from eamsim.traces.dumps import Dump, checked, read_dump
from eamsim.traces.file import IMAGE, Trace
from eamsim.traces.sources import DUMP_BITS, RunSource, TapSource, TraceSource
from eamsim.traces.vectors import MANIFEST

Run = Callable[[Path, Trace | None], tuple[Verified, RunSource]]


@dataclass(frozen=True)
class OpenedSides:
    """The sides; different: the first digits of the programs that ran, where they are not one; ignored: files that were not read."""

    sides: Sides
    different: tuple[str, ...]
    ignored: dict[str, list[str]]


def open_sides(
    stack: contextlib.ExitStack, paths: tuple[Path, Path], run: Run, program: Verified | None = None, layout: Path | None = None
) -> OpenedSides:
    """Traces first, since programs run on their images, then dumps, whose names and shapes the others know.

    run: a program's file, run on the images of a trace if there is one. program: what both ran, where neither side is one. UserError
    where the trace to compare with is of another.
    """
    traces = {path: stack.enter_context(trace_file.reading(path)) for path in paths if path.suffix == ".h5"}
    trace = next(iter(traces.values()), None)
    ran = {path: run(path, trace) for path in paths if path.suffix == ".eam"}
    hashes = {path: opened.header.program_sha256 for path, opened in traces.items()}
    hashes |= {path: artifact.program_sha256(executed) for path, (executed, _) in ran.items()}
    own, why = explaining(paths, program, {path: executed for path, (executed, _) in ran.items()}, hashes)
    named = program or next((executed for executed, _ in ran.values()), None)
    image = named.image.name if named else IMAGE
    sources: dict[Path, TapSource] = {path: source for path, (_, source) in ran.items()}
    sources |= {path: TraceSource(opened, image) for path, opened in traces.items()}
    dumps = {path: read_dump(path, layout_among(paths, layout)) for path in paths if path not in sources}
    known = known_taps(paths, named, sources, dumps)
    known_by = ", ".join(map(str, sources)) or (str(paths[0]) if program is None else "the program")
    sources |= {path: checked(dump, known, known_by) for path, dump in dumps.items()}
    different = tuple(sorted({sha[:12] for sha in hashes.values()})) if len({*hashes.values()}) > 1 else ()
    ignored = {str(path): list(dump.ignored) for path, dump in dumps.items() if dump.ignored}
    return OpenedSides(Sides(sources[paths[0]], sources[paths[1]], known, image, own, why), different, ignored)


def explaining(
    paths: tuple[Path, Path], given: Verified | None, ran: Mapping[Path, Verified], hashes: Mapping[Path, str]
) -> tuple[Verified | None, str]:
    """The program to explain the expected side by, or None and why there is none; UserError where the given one is of neither."""
    right = hashes.get(paths[0], hashes.get(paths[1]))
    if given is not None:
        sha = artifact.program_sha256(given)
        if right is not None and sha != right:
            raise UserError(f"--program: expected program {right[:12]} as in {next(iter(hashes))}, got {sha[:12]}; give the one that ran")
        return given, ""
    candidates = [program for path, program in ran.items() if hashes[path] == right]
    if candidates:
        return candidates[0], ""
    return None, f"{paths[1]} is of another program" if ran else "no program is given; see --program"


def layout_among(paths: tuple[Path, Path], layout: Path | None) -> Path | None:
    return next((path for path in (layout, *paths) if path is not None and (path / MANIFEST).exists()), None)


def known_taps(
    paths: tuple[Path, Path], program: Verified | None, sources: Mapping[Path, TapSource], dumps: Mapping[Path, Dump]
) -> dict[str, Value]:
    """Every tap in the order of execution: of the program, of traces and runs, and only where there is neither of the expected dump."""
    known: dict[str, Value] = {} if program is None else {name: tap.value for name, tap in taps(program).items()}
    for source in sources.values():
        known |= {name: source.value(name) for name in source.names if name not in known}
    return known or {name: Value(name, array.shape[1:], DUMP_BITS, True) for name, array in dumps[paths[0]].taps.items()}
