"""`eamsim trace diff`: the first differing integer of two traces, runs or dumps, what made it, and the likely cause."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from eamsim.cli.inputs import load_engine
from eamsim.cli.output import Json, emit, note, progress, table
from eamsim.constraints import Verified
from eamsim.errors import UserError
from eamsim.inputs.images import open_images
from eamsim.jobs.load import read_model
from eamsim.tensors import taps
from eamsim.traces.compare import Report, TapDifference, compare
from eamsim.traces.difference import Taps
from eamsim.traces.file import Interpreter, Trace
from eamsim.traces.first import First, first_of, golden_taps
from eamsim.traces.junit import write_junit
from eamsim.traces.sides import open_sides
from eamsim.traces.sources import RunSource

SHOWN_TAPS, SHOWN_NAMES, SHOWN_ERRORS = 12, 4, 2


def diff(
    expected: Annotated[Path, typer.Argument(metavar="A", help="What is right: a trace, a program to run, or a dump.")],
    found: Annotated[
        Path,
        typer.Argument(metavar="B", help="What is compared with it: T.h5, X.eam, a folder of .hex files, an .npz or a .jsonl."),
    ],
    data: Annotated[
        list[Path] | None, typer.Option("--data", help="Images for a program to run, where no trace has them. May be repeated.")
    ] = None,
    images: Annotated[int, typer.Option(help="So many of them, evenly spaced.", min=1)] = 1,
    by: Annotated[Interpreter, typer.Option(help="What runs a program.")] = "golden",
    program: Annotated[
        Path | None, typer.Option(metavar="X.eam", help="The program that both ran: for operands and causes, where neither is one.")
    ] = None,
    layout: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The vectors of `eamsim trace export` in whose layout .hex files lie.")
    ] = None,
    require: Annotated[
        list[str] | None,
        typer.Option(metavar="all|PATTERN", help="Fail unless these taps were compared, such as 'block0.*'. May be repeated."),
    ] = None,
    junit: Annotated[Path | None, typer.Option(metavar="F.xml", help="Write a test case for each tap, for CI.")] = None,
    as_json: Json = False,
) -> None:
    """First differing integer. Where two runs part: operation, tap, coordinate, what made it, the likely cause; exit code 1."""

    def run(path: Path, trace: Trace | None) -> tuple[Verified, RunSource]:
        return run_of(path, trace, data or [], images, by)

    with contextlib.ExitStack() as stack:
        opened = open_sides(stack, (expected, found), run, read_model(program)[0] if program else None, layout)
        if opened.different:
            note(f"{expected} and {found} are of different programs: {' and '.join(opened.different)}")
        for folder, names in opened.ignored.items():
            note(f"{folder}: not read: {len(names)} files that are no taps: {shown(names)}")
        with progress("images compared", opened.sides.expected.images) as advance:
            report = compare(opened.sides, require or [], advance)
        first = first_of(opened.sides, report)
    result = {
        "equal": report.equal,
        "images": report.images,
        "taps": len(report.names),
        "missing": sorted(report.only_expected + report.only_found),
        "only_expected": report.only_expected,
        "only_found": report.only_found,
        "required_missing": report.required_missing,
        "ignored_files": opened.ignored,
        "first_difference": first and asdict(first),
        "differing": [described(each) for each in report.differing],
    }
    if junit is not None:
        write_junit(junit, f"{expected} {found}", report, first)
    emit(result, as_json, *lines(report, first))
    raise typer.Exit(0 if report.equal else 1)


def run_of(path: Path, trace: Trace | None, data: list[Path], images: int, by: Interpreter) -> tuple[Verified, RunSource]:
    """The program of a file, run on the images of the trace, or else of the data."""
    program, preprocessing, *_ = read_model(path)
    if trace is not None:
        shape, count, pixels = trace.header.image_shape, len(trace.header.images), trace.image
        if shape != program.image.shape:
            raise UserError(f"{path}: takes images {program.image.shape}, the trace has {shape}; it is of another program")
    elif data:
        image_set = open_images(data, preprocessing, images)
        decoded = [batch[0] for batch in image_set.batches(1)]
        count, pixels = len(decoded), decoded.__getitem__
    else:
        raise UserError(f"{path}: expected images to run it on: a trace beside it, or --data")
    engine = load_engine(program, None, None) if by == "engine" else None

    def run(image: np.ndarray) -> Taps:
        if engine is None:
            return golden_taps(program, image)
        found = {name: integers[0] for name, integers in engine.run(image[None], taps=True)[1].items()}
        return {program.image.name: image.astype(np.int64)} | found

    return program, RunSource(run, {name: tap.value for name, tap in taps(program).items()}, pixels, count)


def described(each: TapDifference) -> dict[str, Any]:
    errors = sorted(each.errors.items(), key=lambda item: -item[1])
    greatest = max(map(abs, each.errors), default=None)
    facts = {"tap": each.tap, "images": each.images, "elements": each.elements, "of": each.of}
    return facts | {"greatest_error": greatest, "errors": errors, "shapes": each.shapes}


def lines(report: Report, first: First | None) -> Iterator[Any]:
    compared = f"{len(report.names)} taps" if report.taps == len(report.names) else f"{len(report.names)} of {report.taps} taps"
    if report.equal:
        yield f"equal: {compared} of {report.images} images"
    elif report.differing:
        yield f"NOT equal: {len(report.differing)} of {len(report.names)} taps differ"
    else:
        yield f"NOT equal: {compared} compared, which are equal, but not all that is required"
    if first is not None:
        yield from lines_of(first)
    for what, names in (
        ("only in A", report.only_expected),
        ("only in B", report.only_found),
        ("required", report.required_missing),
    ):
        if names:
            yield f"{what:<10} {len(names)} {'tap' if len(names) == 1 else 'taps'}, not compared: {shown(names)}"
    if report.differing:
        yield ""
        yield table(("tap", "images", "differ", "greatest", "most often"), [row(described(each)) for each in report.differing[:SHOWN_TAPS]])
    if len(report.differing) > SHOWN_TAPS:
        yield f"... and {len(report.differing) - SHOWN_TAPS} more taps (--json has all)"


def lines_of(first: First) -> Iterator[str]:
    place = "" if first.index is None else str(list(first.index))
    yield f"first      {first.tap}{place} of image {first.image}" + (f": {first.kind} {first.operation}" if first.kind else "")
    for name, number, digits in (("expected", first.expected, first.expected_hex), ("found", first.found, first.found_hex)):
        yield f"{name:<10} {number}" + (f" ({digits})" if digits else "")
    if first.operands:
        yield f"made of    {', '.join(f'{name} {number}' for name, number in first.operands.items())}"
    if first.likely_cause or first.tried:
        yield f"cause      {first.likely_cause or f'none of those known gives what was found ({first.tried} tried)'}"
    if first.not_tried and not (first.likely_cause and first.index is None):
        yield f"not tried  what {first.operation or first.tap} would give with known mistakes: {first.not_tried}"
    if first.inputs_not_compared:
        yield f"before     {', '.join(first.inputs_not_compared)}, which it reads, was not compared: the fault may lie there"


def shown(names: list[str]) -> str:
    return ", ".join(names[:SHOWN_NAMES]) + (", ..." if len(names) > SHOWN_NAMES else "")


def row(each: dict[str, Any]) -> tuple[object, ...]:
    if each["shapes"] is not None:
        return each["tap"], len(each["images"]), "shape", "?", ""
    errors = ", ".join(f"{error:+} x {count}" for error, count in each["errors"][:SHOWN_ERRORS])
    more = ", ..." if len(each["errors"]) > SHOWN_ERRORS else ""
    share = f"{each['elements']}/{each['of']}" if each["of"] else "?"
    return each["tap"], len(each["images"]), share, each["greatest_error"] or "?", errors + more
