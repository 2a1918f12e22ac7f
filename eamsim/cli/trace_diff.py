"""`eamsim trace diff`: the first differing integer of two traces, runs or dumps, what made it, and the likely cause."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from xml.etree import ElementTree

import numpy as np
import typer

from eamsim import artifact, golden, trace_file
from eamsim.cli.output import Json, emit, note, progress, table
from eamsim.cli.run import load_engine, read_model
from eamsim.container import replacing
from eamsim.diagnosis import likely_cause, operands, operation_of
from eamsim.errors import BadFile, UserError
from eamsim.images import open_images
from eamsim.program import Program
from eamsim.tensors import taps
from eamsim.trace import Taps
from eamsim.trace_diff import Report, TapDifference, compare, sha256
from eamsim.trace_file import Interpreter
from eamsim.trace_sources import Digest, RunSource, Source, TraceSource, read_dump

SHOWN_TAPS, SHOWN_ERRORS = 12, 2


@dataclass(frozen=True)
class Side:
    """One argument, opened. program_sha256: of the program that ran, where it is known."""

    path: Path
    source: Source
    program: Program | None = None
    program_sha256: str | None = None


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
    junit: Annotated[Path | None, typer.Option(metavar="F.xml", help="Write a test case for each tap, for CI.")] = None,
    as_json: Json = False,
) -> None:
    """First differing integer. Where two runs part: operation, tap, coordinate, what made it, the likely cause; exit code 1."""
    with contextlib.ExitStack() as stack:
        sides = open_sides(stack, (expected, found), data or [], images, by, layout)
        known = {side.program_sha256 for side in sides if side.program_sha256}
        if len(known) > 1:
            note(f"{expected} and {found} are of different programs: {' and '.join(sorted(sha[:12] for sha in known))}")
        with progress("images compared", sides[0].source.images) as advance:
            report = compare(sides[0].source, sides[1].source, advance)
        executed = read_model(program)[0] if program else sides[0].program or sides[1].program
        first = first_of(report, sides[0].source, sides[1].source, executed)
    result = {
        "equal": not report.differing,
        "images": report.images,
        "taps": len(report.names),
        "missing": report.missing,
        "first_difference": first,
        "differing": [described(each) for each in report.differing],
    }
    if junit is not None:
        write_junit(junit, f"{expected} {found}", report, first)
    if report.missing:
        note(f"in one of them alone, not compared: {len(report.missing)} taps: {', '.join(report.missing[:4])}, ...")
    emit(result, as_json, *lines(result))
    raise typer.Exit(1 if report.differing else 0)


def open_sides(
    stack: contextlib.ExitStack, paths: tuple[Path, Path], data: list[Path], images: int, by: Interpreter, layout: Path | None
) -> list[Side]:
    """Traces first: programs run on their images."""
    opened: dict[int, Side] = {}
    traced: TraceSource | None = None
    for index, path in enumerate(paths):
        if path.suffix == ".h5":
            trace = stack.enter_context(trace_file.reading(path))
            opened[index] = Side(path, TraceSource(trace), None, trace.header.program_sha256)
            traced = traced or TraceSource(trace)
    vectors = next((path for path in (layout, *paths) if path is not None and (path / "manifest.json").exists()), None)
    for index, path in enumerate(paths):
        if path.suffix == ".eam":
            opened[index] = run_side(path, traced, data, images, by)
        elif index not in opened:
            opened[index] = Side(path, read_dump(path, vectors))
    return [opened[0], opened[1]]


def run_side(path: Path, traced: TraceSource | None, data: list[Path], images: int, by: Interpreter) -> Side:
    program, preprocessing, labels = read_model(path)
    if traced is not None:
        shape, count, pixels = traced.trace.header.image_shape, traced.images, traced.trace.image
        if shape != program.image.shape:
            raise UserError(f"{path}: takes images {program.image.shape}, the trace has {shape}; it is of another program")
    elif data:
        image_set = open_images(data, preprocessing, images, labels)
        decoded = [batch[0] for batch in image_set.batches(1)]
        count, pixels = len(decoded), decoded.__getitem__
    else:
        raise UserError(f"{path}: expected images to run it on: a trace beside it, or --data")
    source = RunSource(interpreter(program, by), list(taps(program)), pixels, count)
    return Side(path, source, program, artifact.program_sha256(program))


def interpreter(program: Program, by: Interpreter) -> Callable[[np.ndarray], Taps]:
    """Image -> all taps, the image among them."""
    engine = load_engine(program, None, None) if by == "engine" else None

    def run(image: np.ndarray) -> Taps:
        found: Taps = {}
        if engine is None:
            golden.run(program, image, found)
        else:
            found = {name: integers[0] for name, integers in engine.run(image[None], taps=True)[1].items()}
        return {program.image.name: image.astype(np.int64)} | found

    return run


def first_of(report: Report, expected: Source, found: Source, program: Program | None) -> dict[str, Any] | None:
    """The first difference in program order, in its first image, with all that is known of it."""
    if not report.differing:
        return None
    tap = report.differing[0].tap
    image = report.differing[0].images[0]
    op = None if program is None else operation_of(program, tap)
    result: dict[str, Any] = {"tap": tap, "image": image, "operation": op and op.out.name, "kind": op and type(op).__name__}
    right = known_taps(expected, report.names, image)
    if tap not in right and program is not None:
        right = recovered(expected, tap, image, program, right, found)
    wrong = known_taps(found, report.names, image)
    if tap not in right or tap not in wrong:
        texts = [str(side.tap(tap, image)) if isinstance(side.tap(tap, image), Digest) else "integers" for side in (expected, found)]
        return result | {"index": None, "expected": texts[0], "found": texts[1], "operands": {}, "likely_cause": None}
    wrong[tap] = wrong[tap].reshape(right[tap].shape)
    index = tuple(int(i) for i in np.argwhere(right[tap] != wrong[tap])[0])
    numbers = int(right[tap][index]), int(wrong[tap][index])
    bits = 64 if program is None else taps(program)[tap].value.bits
    result |= {"index": index, "expected": numbers[0], "found": numbers[1]}
    result |= {f"{name}_hex": in_hex(number, bits) for name, number in zip(("expected", "found"), numbers, strict=True)}
    made_of = {} if program is None else operands(program, tap, index, right)
    cause = None if program is None else likely_cause(program, tap, right, wrong)
    return result | {"operands": made_of, "likely_cause": cause}


def known_taps(source: Source, names: list[str], image: int) -> Taps:
    """The taps of one image of which the source has integers."""
    found = {name: source.tap(name, image) for name in names}
    return {name: integers for name, integers in found.items() if isinstance(integers, np.ndarray)}


def recovered(expected: Source, tap: str, image: int, program: Program, right: Taps, found: Source) -> Taps:
    """Where the right side has digests alone: golden's integers, if they have the digest."""
    name = program.image.name
    pixels = next((side.tap(name, image) for side in (expected, found) if name in side.names), None)
    side = expected.tap(tap, image)
    if not isinstance(pixels, np.ndarray) or not isinstance(side, Digest):
        return right
    run = interpreter(program, "golden")(pixels.astype(np.uint8))
    return run if sha256(run[tap], side) == side.sha256 else right


def in_hex(number: int, bits: int) -> str:
    """Two's complement of the declared width; of more where it does not fit."""
    bits = bits if -(1 << (bits - 1)) <= number < 1 << bits else 64
    return f"0x{number & ((1 << bits) - 1):0{-(-bits // 4)}x}"


def described(each: TapDifference) -> dict[str, Any]:
    errors = sorted(each.errors.items(), key=lambda item: -item[1])
    greatest = max(map(abs, each.errors), default=None)
    return {"tap": each.tap, "images": each.images, "elements": each.elements, "of": each.of, "greatest_error": greatest, "errors": errors}


def lines(result: dict[str, Any]) -> Iterator[Any]:
    if result["equal"]:
        yield f"equal: {result['taps']} taps of {result['images']} images"
        return
    first, differing = result["first_difference"], result["differing"]
    yield f"NOT equal: {len(differing)} of {result['taps']} taps differ"
    place = "" if first["index"] is None else str(list(first["index"]))
    yield f"first      {first['tap']}{place} of image {first['image']}" + (
        f": {first['kind']} {first['operation']}" if first["kind"] else ""
    )
    for name in ("expected", "found"):
        yield f"{name:<10} {first[name]}" + (f" ({first[f'{name}_hex']})" if f"{name}_hex" in first else "")
    if first["operands"]:
        yield f"made of    {', '.join(f'{name} {number}' for name, number in first['operands'].items())}"
    yield f"cause      {first['likely_cause'] or 'none of those known gives what was found'}"
    yield ""
    yield table(("tap", "images", "differ", "greatest", "most often"), [row(each) for each in differing[:SHOWN_TAPS]])
    if len(differing) > SHOWN_TAPS:
        yield f"... and {len(differing) - SHOWN_TAPS} more taps (--json has all)"


def row(each: dict[str, Any]) -> tuple[object, ...]:
    errors = ", ".join(f"{error:+} x {count}" for error, count in each["errors"][:SHOWN_ERRORS])
    more = ", ..." if len(each["errors"]) > SHOWN_ERRORS else ""
    share = f"{each['elements']}/{each['of']}" if each["of"] else "?"
    return each["tap"], len(each["images"]), share, each["greatest_error"] or "?", errors + more


def write_junit(path: Path, name: str, report: Report, first: dict[str, Any] | None) -> None:
    """A test case for each tap, in the order of execution; the first difference in full."""
    differing = {each.tap: each for each in report.differing}
    suite = ElementTree.Element("testsuite", name=name, tests=str(len(report.names)), failures=str(len(differing)))
    for tap in report.names:
        case = ElementTree.SubElement(suite, "testcase", classname="eamsim.trace.diff", name=tap)
        if tap in differing:
            each = differing[tap]
            text = f"{each.elements} of {each.of} elements differ, in images {each.images}"
            failure = ElementTree.SubElement(case, "failure", message=text)
            if first is not None and tap == first["tap"]:
                failure.text = "\n".join(f"{key}: {value}" for key, value in first.items())
    try:
        with replacing(path) as temporary:
            ElementTree.ElementTree(suite).write(temporary, encoding="utf-8", xml_declaration=True)
    except OSError as error:
        raise BadFile(f"{path}: cannot be written ({error.strerror}); choose another path") from error
