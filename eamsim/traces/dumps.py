"""Dumps of simulators: an .npz, JSON lines or a folder of memory files, read, and checked against the taps that are known."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eamsim.errors import BadFile, UserError
from eamsim.files.limits import DUMP_BYTES
from eamsim.files.reading import read_text
from eamsim.inputs.npz import read_npz
from eamsim.program import Value
from eamsim.traces.difference import Taps
from eamsim.traces.sources import DumpSource
from eamsim.traces.vectors import MANIFEST, Entry, read_hex, read_manifest

TAPS, CONSTANTS = "taps", "constants"
SHOWN = 3


@dataclass(frozen=True)
class Dump:
    """int64 [images, ...] by tap, as they were written; ignored: what else lies in the folder."""

    path: Path
    taps: Taps
    ignored: tuple[str, ...] = ()


def read_dump(path: Path, layout_of: Path | None) -> Dump:
    """An .npz, .jsonl or folder of .hex files (in the layout of its manifest, or of the export at `layout_of`); BadFile otherwise."""
    if path.is_dir():
        dump = read_folder(path, path if (path / MANIFEST).exists() else layout_of)
    elif path.suffix == ".npz":
        dump = Dump(path, read_arrays(path))
    elif path.suffix == ".jsonl":
        dump = Dump(path, read_json_lines(path))
    else:
        raise UserError(f"{path}: expected a trace (.h5), a program (.eam), a folder of .hex files, an .npz or a .jsonl")
    if not dump.taps:
        raise BadFile(f"{path}: expected taps, got none")
    return dump


def checked(dump: Dump, known: Mapping[str, Value], known_by: str) -> DumpSource:
    """The dump as a source; known: every tap that the other side or the program has, with its shape for one image.

    BadFile for names that nobody knows, a tap without its axis of images, no images, or not as many of one tap as of another.
    """
    if unknown := [name for name in dump.taps if name not in known]:
        shown = ", ".join(suggestion(name, known) for name in unknown[:SHOWN]) + (", ..." if len(unknown) > SHOWN else "")
        raise BadFile(
            f"{dump.path}: expected the names of taps, got {len(unknown)} of {len(dump.taps)} that {known_by} does not have: {shown}; "
            "rename them or leave them out, or say with --program which program has them"
        )
    for name, integers in dump.taps.items():
        if integers.size == known[name].size and len(integers) != 1:
            raise BadFile(
                f"{dump.path}: {name}: expected [images, ...], got {list(integers.shape)}: one image without the axis of images; "
                f"write {list((1, *known[name].shape))}, in NumPy array[None]"
            )
    counts = {len(integers): name for name, integers in dump.taps.items()}
    if len(counts) != 1:
        (one, name), (two, other) = list(counts.items())[:2]
        raise BadFile(f"{dump.path}: expected taps [images, ...] of equally many images, got {one} of {name} and {two} of {other}")
    if 0 in counts:
        raise BadFile(f"{dump.path}: expected at least one image, got taps of none")
    return DumpSource(dump.taps)


def suggestion(name: str, known: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    return f"{name!r:.80}" + (f" (did you mean {close[0]}?)" if close else "")


def read_folder(path: Path, layout_of: Path | None) -> Dump:
    """Those taps of the export whose file is there, as `taps/NAME.hex` or `NAME.hex`; BadFile for memories that are none of them."""
    if layout_of is None:
        raise UserError(f"{path}: expected {MANIFEST} in it; or give the exported vectors with --layout DIR")
    _, layout, entries = read_manifest(layout_of)
    by_file = entries_by_file(layout_of, entries)
    found: dict[str, Path] = {}
    others: list[Path] = []
    for file in [*sorted(path.iterdir()), *(sorted((path / TAPS).iterdir()) if (path / TAPS).is_dir() else ())]:
        if file.name in found:
            raise BadFile(f"{path}: expected one file for each tap, got {found[file.name]} and {file}; remove one")
        if file.name in by_file and file.is_file():
            found[file.name] = file
        else:
            others.append(file)
    for file in others:
        if file.suffix == ".hex" or (f"{file.stem}.hex" in by_file and f"{file.stem}.hex" not in found):
            raise BadFile(
                f"{file}: expected NAME.hex as in {layout_of / MANIFEST}, got {suggestion(file.name, by_file)}; rename or remove it"
            )
    if not found:
        raise BadFile(f"{path}: expected .hex files named as in {layout_of / MANIFEST}, got none")
    ours = {MANIFEST, TAPS, CONSTANTS}
    ignored = tuple(str(file.relative_to(path)) for file in others if file.name not in ours)
    return Dump(path, {by_file[name].name: read_hex(file, by_file[name], layout) for name, file in found.items()}, ignored)


def entries_by_file(folder: Path, entries: tuple[Entry, ...]) -> dict[str, Entry]:
    """The taps of an export by the name of their file; BadFile where a tap or a file is there twice, or a tap has no images."""
    taps = [entry for entry in entries if entry.kind == "tap"]
    by_file = {Path(entry.file).name: entry for entry in taps}
    if len(by_file) != len(taps) or len({entry.name for entry in taps}) != len(taps) or not all(entry.images for entry in taps):
        raise BadFile(f"{folder / MANIFEST}: expected a file of its own and at least one image for each tap; export again")
    return by_file


def read_arrays(path: Path) -> Taps:
    """The arrays of an .npz; constants, of which an export has some, are no taps."""
    arrays = read_npz(path, lambda name: not name.startswith(f"{CONSTANTS}/"))
    taps = {name.removeprefix(f"{TAPS}/"): array for name, array in arrays.items()}
    if len(taps) != len(arrays):
        raise BadFile(f"{path}: expected each tap once, got some both with and without '{TAPS}/' before the name; leave one out")
    for name, array in taps.items():
        if array.dtype.kind not in "iub":
            raise BadFile(f"{path}: {name}: expected integers, got {array.dtype} {list(array.shape)}; write it as int64")
        if not array.ndim:
            raise BadFile(f"{path}: {name}: expected [images, ...], got a single number; write an array")
        if array.dtype == np.uint64 and array.size and array.max() >= 1 << 63:
            raise BadFile(f"{path}: {name}: expected integers below 2^63, got {array.max()}; write signed integers as int64")
    return {name: array.astype(np.int64) for name, array in taps.items()}


def read_json_lines(path: Path) -> Taps:
    """Lines {"name", "integers", "image" (0 where there is none)}; lines of the kind "constant", and other keys, are not looked at."""
    images: dict[str, dict[int, np.ndarray]] = {}
    try:
        for number, line in enumerate(read_text(path, DUMP_BYTES).splitlines(), 1):
            item = json.loads(line)
            if item.get("kind", "tap") != "constant":
                put_line(f"line {number}", item, images)
        for name, parts in images.items():
            if parts.keys() != set(range(len(parts))):
                raise ValueError(f"{name} of the images {', '.join(map(str, sorted(parts)))}, which do not count from 0 on")
            if len({part.shape for part in parts.values()}) != 1:
                raise ValueError(f"{name} of one shape in one image and of another in another")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadFile(f"{path}: expected a line for each tap and image, got {' '.join(str(error).split()):.200}") from error
    return {name: np.stack([parts[image] for image in range(len(parts))]) for name, parts in images.items()}


def put_line(where: str, item: dict[str, Any], images: dict[str, dict[int, np.ndarray]]) -> None:
    """The integers of one line to those of its tap; ValueError, which says where, for what is no tap or there already."""
    name, image, integers = item["name"], item.get("image", 0), np.array(item["integers"])
    if item.get("kind", "tap") != "tap":
        raise ValueError(f"{where}: neither a tap nor a constant, but {item['kind']!r:.40}")
    if type(image) is not int or not isinstance(name, str):
        raise ValueError(f"{where}: the name {name!r:.80} and the image {image!r:.40}, not a text and a number")
    if integers.dtype.kind != "i":
        raise ValueError(f"{where}: {integers.dtype} instead of integers")
    if image in images.setdefault(name, {}):
        raise ValueError(f"{where}: {name} of image {image} a second time")
    images[name][image] = integers.astype(np.int64)
