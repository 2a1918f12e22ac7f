"""`eamsim trace export`: taps and constants as vectors for simulators."""

from pathlib import Path
from typing import Annotated, Literal, get_args

import numpy as np
import typer

from eamsim import golden
from eamsim.cli.inputs import ModelFile
from eamsim.cli.output import Json, emit, progress, table
from eamsim.cli.trace.origin import about, form
from eamsim.constraints import Verified
from eamsim.errors import UserError
from eamsim.files.origin import public_names
from eamsim.inputs.images import open_images
from eamsim.jobs.load import read_model
from eamsim.program import Operation
from eamsim.tensors import Tap, constants, matching, taps
from eamsim.traces import vectors
from eamsim.traces.vectors import Format, Layout, VectorTensor


def export(
    model: ModelFile,
    data: Annotated[list[Path], typer.Option("--data", help="Image files, folders of images, .npz files. May be repeated.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Write the vectors and manifest.json into this folder.")],
    images: Annotated[int, typer.Option(help="Images to run, evenly spaced over the data.", min=1)] = 1,
    operations: Annotated[
        str | None, typer.Option(metavar="PATTERNS", help="These operations: inputs, taps, outputs, constants. Such as block0.attn*,head")
    ] = None,
    tap_names: Annotated[
        str | None, typer.Option("--taps", metavar="PATTERNS", help="These taps. [default: all, unless --operations is given]")
    ] = None,
    formats: Annotated[str, typer.Option("--format", metavar="readmemh,npz,jsonl", help="With commas between.")] = "readmemh",
    word_bits: Annotated[
        int | None,
        typer.Option(help="Bits of a memory word, which holds as many elements as fit. [default: one element, of its width]", min=1),
    ] = None,
    first: Annotated[Literal["low", "high"], typer.Option(help="Where in a word its first element lies: low or high bits.")] = "low",
    transpose: Annotated[bool, typer.Option("--transpose", help="Exchange the last two axes.")] = False,
    tile: Annotated[str | None, typer.Option(metavar="RxC", help="Tile by tile of R rows and C columns.")] = None,
    pad: Annotated[int, typer.Option(help="What fills tiles up.")] = 0,
    as_json: Json = False,
) -> None:
    """Integers for simulators: $readmemh words, .npz or JSON lines. The golden interpreter runs; manifest.json describes every file."""
    chosen = parse_formats(formats)
    layout = Layout(word_bits, first, transpose, None if tile is None else parse_tile(tile), pad)
    program, preprocessing, *_ = read_model(model)
    declared, selected = taps(program), select_operations(program, operations)
    names = select_taps(program, declared, selected, tap_names if operations is not None else tap_names or "*")
    image_set = open_images(data, preprocessing, images)
    runs = []
    with progress("images run", len(image_set)) as advance:
        for batch in image_set.batches(1):
            found: dict[str, np.ndarray] = {program.image.name: batch[0].astype(np.int64)}
            golden.run(program, batch[0], found)
            runs.append({name: found[name] for name in names})
            advance(1)
    tensors = [VectorTensor("tap", declared[name].value, np.stack([run[name] for run in runs])) for name in names]
    for op in selected:
        tensors += [VectorTensor("constant", value, array.astype(np.int64)) for value, array in constants(op, program).values()]
    manifest = vectors.export(out, tensors, layout, chosen, about(model, program, image_set, public_names(image_set.names, data), selected))
    rows = [(entry["name"], entry["kind"], form(entry), entry["words"], entry["word_bits"]) for entry in manifest["tensors"]]
    size = sum(file["bytes"] for file in manifest["files"].values())
    emit(
        manifest,
        as_json,
        table(("tensor", "kind", "form", "words", "bits of a word"), rows),
        f"{out}: {len(rows)} tensors, {len(image_set)} images, {len(manifest['files'])} files, {size:,} bytes",
        f"{out / vectors.MANIFEST}: how they lie",
    )


def parse_formats(text: str) -> tuple[Format, ...]:
    known = get_args(Format)
    if unknown := [name for name in text.split(",") if name not in known]:
        raise UserError(f"--format: expected some of {', '.join(known)} with commas between, got {unknown[0]!r}")
    return tuple(name for name in known if name in text.split(","))


def parse_tile(text: str) -> tuple[int, int]:
    rows, _, columns = text.partition("x")
    if not all(part.isdecimal() and 0 < int(part) <= 1 << 16 for part in (rows, columns)):
        raise UserError(f"--tile: expected rows x columns such as 16x8, got {text!r}")
    return int(rows), int(columns)


def select_operations(program: Verified, patterns: str | None) -> list[Operation]:
    by_name = {op.out.name: op for op in program.operations}
    return [] if patterns is None else [by_name[name] for name in matching(by_name, patterns, "--operations")]


def select_taps(program: Verified, declared: dict[str, Tap], selected: list[Operation], patterns: str | None) -> list[str]:
    """Names in program order: what the patterns fit, and what the selected operations read and publish."""
    wanted = set() if patterns is None else set(matching(declared, patterns, "--taps"))
    inner = [name for name in declared if name not in program.values]
    for op in selected:
        wanted |= {*op.inputs, op.out.name, *(name for name in inner if name.rpartition(".")[0] == op.out.name)}
    return [name for name in declared if name in wanted]
