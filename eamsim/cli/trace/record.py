"""`eamsim trace record` and `inspect`: the integers at every tap into a file, and what they have been."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from eamsim import __version__
from eamsim.cli.inputs import Isa, ModelFile, load_engine
from eamsim.cli.manifest import check_writable, described, manifest_path, write_manifest
from eamsim.cli.output import Json, Threads, emit, progress, table
from eamsim.cli.trace.origin import about, form
from eamsim.errors import UserError
from eamsim.files.origin import public_names
from eamsim.inputs.images import open_images
from eamsim.jobs.load import read_model
from eamsim.jobs.record import golden_steps
from eamsim.tensors import matching, taps
from eamsim.traces import file as trace_file
from eamsim.traces.file import Interpreter, Trace
from eamsim.traces.statistics import TapStatistics, is_sum, statistics

TraceFile = Annotated[Path, typer.Argument(metavar="T.h5", help="A trace made by `eamsim trace record`.")]
BARS = " ▁▂▃▄▅▆▇█"


def record(
    model: ModelFile,
    data: Annotated[list[Path], typer.Option("--data", help="Image files, folders of images, .npz files. May be repeated.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="T.h5", help="The trace to write; T.h5.json beside it says how it was made.")],
    images: Annotated[int, typer.Option(help="Images to record, evenly spaced over the data.", min=1)] = 8,
    tap_names: Annotated[str, typer.Option("--taps", metavar="PATTERNS", help="These taps, such as block0.attn*,*.acc")] = "*",
    digests: Annotated[bool, typer.Option("--digests", help="Keep the SHA-256 of every tap and image, not the integers.")] = False,
    by: Annotated[Interpreter, typer.Option(help="What runs: the engine, or the golden interpreter.")] = "engine",
    reason: Annotated[str, typer.Option(help="Why, to be kept in the trace. Asked for where a trace would be replaced.")] = "",
    batch: Annotated[int, typer.Option(help="Images per call of the engine.", min=1, max=16)] = 8,
    threads: Threads = None,
    isa: Isa = None,
    as_json: Json = False,
) -> None:
    """Taps into a trace. Every integer at every tap, or digests, for `trace diff`, `inspect` and `export`."""
    if out.exists() and not reason:
        raise UserError(f"--out: {out} exists; say with --reason why what it records has changed, or choose another name")
    check_writable("--out", out, manifest_path(out))
    program, preprocessing, *_ = read_model(model)
    names = [name for name in matching(taps(program), tap_names, "--taps") if name != program.image.name]
    if not names:
        raise UserError(f"--taps: expected taps that an operation publishes, got {tap_names!r}, the image, which every trace has; add one")
    image_set = open_images(data, preprocessing, images)
    image_names = public_names(image_set.names, data)
    versions = {"eamsim": __version__, "numpy": np.__version__}
    wanted = frozenset(names)
    engine = load_engine(program, threads, isa) if by == "engine" else None
    with (
        trace_file.recording(out, program, names, image_names, by, not digests, versions, reason) as recorder,
        progress("images recorded", len(image_set)) as advance,
    ):
        first = 0
        for pixels in image_set.batches(batch if engine else 1):
            recorder.put_images(first, pixels)
            if digests and engine is not None:
                recorder.put_lanes(first, *engine.digests(pixels, names))
            else:
                for step in golden_steps(program, pixels) if engine is None else engine.stream(pixels, wanted.__contains__):
                    recorder.put(first, {name: integers for name, integers in step.items() if name in wanted})
            first += len(pixels)
            advance(len(pixels))
    output = described(out)
    manifest = about(model, program, image_set, image_names, [])
    manifest |= {"interpreter": by, "taps": len(names), "reason": reason, "output": output}
    write_manifest(manifest_path(out), manifest)
    what = "digests" if digests else "integers"
    emit(
        manifest,
        as_json,
        f"{out}: {what} of {len(names)} taps, {len(image_set)} images, by {by}; {output['bytes']:,} bytes, sha256 {output['sha256']}",
        f"next: eamsim trace inspect {out}; eamsim trace diff {out} {model}",
    )


def inspect(
    trace: TraceFile,
    tap_names: Annotated[str, typer.Option("--taps", metavar="PATTERNS", help="These taps, such as block0.attn*,*.acc")] = "*",
    as_json: Json = False,
) -> None:
    """What a trace holds. Shapes, widths, ranges, histograms of codes, registers at their limits, sums against their proven bounds."""
    with trace_file.reading(trace) as recorded:
        header, names = recorded.header, matching(recorded.entries, tap_names, "--taps")
        found: dict[str, TapStatistics | None] = {}
        with progress("taps read", len(names)) as advance:
            for name in names:
                found[name] = statistics(recorded, name)
                advance(1)
        result = {
            "program": header.program,
            "program_sha256": header.program_sha256,
            "interpreter": header.interpreter,
            "reason": header.reason,
            "images": header.images,
            "taps": {name: facts_of(recorded, name, found[name]) for name in names},
        }
    count = len(header.images)
    head = f"{trace}: {header.program} ({header.program_sha256[:12]}) by {header.interpreter}, {count} images, {len(header.taps)} taps"
    emit(result, as_json, head, *([f"reason: {header.reason}"] if header.reason else []), *tables(result["taps"]))


def facts_of(trace: Trace, name: str, found: TapStatistics | None) -> dict[str, Any]:
    _, entry = trace.entries[name]
    facts = {"shape": entry.shape, "bits": entry.bits, "signed": entry.signed, "bound": (entry.low, entry.high)}
    if found is None:
        return facts | {"sha256": [trace.digest(name, image) for image in range(len(trace.header.images))]}
    reach = max(abs(entry.low), abs(entry.high))
    return facts | {
        "range": (found.low, found.high),
        "elements": found.elements,
        "at_low": found.at_low,
        "at_high": found.at_high,
        "histogram": found.histogram,
        **({"peak": found.peak, "proven": reach, "peak_share": found.peak / reach if reach else 0.0} if is_sum(name) else {}),
    }


def tables(entries: dict[str, dict[str, Any]]) -> Iterator[Any]:
    """The tree of taps, then the sums."""
    rows, sums = [], []
    for name, entry in entries.items():
        declared = form(entry)
        if "sha256" in entry:
            rows.append((name, declared, "", "", "", f"sha256 of image 0: {entry['sha256'][0][:16]}"))
            continue
        low, high = entry["range"]
        limits = [f"{entry[end] / entry['elements']:.2%}" if entry[end] else "-" for end in ("at_low", "at_high")]
        rows.append((name, declared, f"{low}..{high}", *limits, bars(entry["histogram"])))
        if "peak" in entry:
            bits = [f"{number:,} ({number.bit_length() + 1} bits)" for number in (entry["peak"], entry["proven"])]
            sums.append((name, *bits, f"{entry['peak_share']:.1%}", entry["bits"]))
    yield table(("tap", "form", "range", "at min", "at max", "codes"), rows)
    if sums:
        yield ""
        yield table(("sum", "greatest seen", "proven", "share", "accumulator"), sums)


def bars(histogram: tuple[int, ...]) -> str:
    """A bar for each code; of wide codes for each sixteenth of them."""
    counts = np.add.reduceat(histogram, np.arange(0, len(histogram), max(len(histogram) // 16, 1))) if histogram else np.zeros(0, int)
    return "".join(BARS[-(-8 * int(count) // max(int(counts.max()), 1))] for count in counts)
