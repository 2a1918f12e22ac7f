"""What `trace diff` compares: traces, runs of a program, dumps of a simulator, all as taps by image."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from eamsim.errors import BadFile, UserError
from eamsim.npz import read_npz
from eamsim.trace import Taps
from eamsim.trace_file import Trace
from eamsim.vectors import MANIFEST, Entry, read_hex, read_manifest

PREFIX, CONSTANTS = "taps/", "constants/"


@dataclass(frozen=True)
class Digest:
    """A tap of which only this is known: SHA-256 of its integers in a packing (eamsim/packing.py), as a version of traces has it."""

    sha256: str
    packing: str
    version: int


class Source(Protocol):
    """Taps of some images; names: those it has, in the order of execution where it knows it."""

    @property
    def names(self) -> Sequence[str]: ...

    @property
    def images(self) -> int: ...

    def tap(self, name: str, image: int) -> np.ndarray | Digest:
        """int64 of one image, or their digest."""
        ...


class TraceSource:
    """A trace; its image counts as a tap, or different pictures would look like a wrong interpreter."""

    def __init__(self, trace: Trace, image_name: str = "image"):
        self.trace, self.image_name = trace, image_name
        self.names, self.images = (image_name, *trace.entries), len(trace.header.images)

    def tap(self, name: str, image: int) -> np.ndarray | Digest:
        if name == self.image_name:
            return self.trace.image(image).astype(np.int64)
        integers = self.trace.integers(name, image)
        if integers is not None:
            return integers
        return Digest(self.trace.digest(name, image), self.trace.entries[name][1].packing, self.trace.header.version)


class RunSource:
    """A program's run on uint8 images, image by image; run: all taps of one, the image among them."""

    def __init__(self, run: Callable[[np.ndarray], Taps], names: Sequence[str], images: Callable[[int], np.ndarray], count: int):
        self.names, self.images, self._run, self._image_of = names, count, run, images
        self._last: tuple[int, Taps] = (-1, {})

    def tap(self, name: str, image: int) -> np.ndarray:
        if self._last[0] != image:
            self._last = image, self._run(self._image_of(image))
        return self._last[1][name]


class DumpSource:
    """What a simulator wrote: int64 [images, ...] by tap."""

    def __init__(self, path: Path, taps: Taps):
        counts = {len(integers) for integers in taps.values()}
        if len(counts) != 1:
            raise BadFile(f"{path}: expected taps of one number of images, got {sorted(counts)}")
        self.names, self.images, self._taps = tuple(taps), counts.pop(), taps

    def tap(self, name: str, image: int) -> np.ndarray:
        return self._taps[name][image]


def read_dump(path: Path, layout_of: Path | None) -> DumpSource:
    """An .npz, .jsonl or folder of .hex files (in the layout of its manifest, or of the export at `layout_of`); BadFile otherwise."""
    if path.is_dir():
        return DumpSource(path, read_folder(path, path if (path / MANIFEST).exists() else layout_of))
    if path.suffix == ".npz":
        return DumpSource(path, read_arrays(path))
    if path.suffix == ".jsonl":
        return DumpSource(path, read_json_lines(path))
    raise UserError(f"{path}: expected a trace (.h5), a program (.eam), a folder of .hex files, an .npz or a .jsonl")


def read_folder(path: Path, layout_of: Path | None) -> Taps:
    """Those taps of the export whose file is there, as `taps/NAME.hex` or `NAME.hex`."""
    if layout_of is None:
        raise UserError(f"{path}: expected {MANIFEST} in it; or give the exported vectors with --layout DIR")
    _, layout, entries = read_manifest(layout_of)
    found = {entry.name: (file, entry) for entry in entries if entry.kind == "tap" for file in places(path, entry) if file.is_file()}
    if not found:
        raise BadFile(f"{path}: expected .hex files named as in {layout_of / MANIFEST}, got none")
    return {name: read_hex(file, entry, layout) for name, (file, entry) in found.items()}


def places(folder: Path, entry: Entry) -> tuple[Path, Path]:
    return folder / Path(entry.file).name, folder / entry.file


def read_arrays(path: Path) -> Taps:
    """The arrays of an .npz; constants, of which an export has some, are no taps."""
    arrays = read_npz(path, lambda name: not name.startswith(CONSTANTS))
    taps = {name.removeprefix(PREFIX): array for name, array in arrays.items()}
    if len(taps) != len(arrays):
        raise BadFile(f"{path}: expected each tap once, got some both with and without {PREFIX!r} before the name; leave one out")
    for name, array in taps.items():
        if array.dtype.kind not in "iub":
            raise BadFile(f"{path}: {name}: expected integers, got {array.dtype} {list(array.shape)}; write it as int64")
        if not array.ndim:
            raise BadFile(f"{path}: {name}: expected [images, ...], got a single number; write an array")
        if array.dtype == np.uint64 and array.size and array.max() >= 1 << 63:
            raise BadFile(f"{path}: {name}: expected integers below 2^63, got {array.max()}; write signed integers as int64")
    return {name: array.astype(np.int64) for name, array in taps.items()}


def read_json_lines(path: Path) -> Taps:
    """Lines {"name", "integers", "image" (0 where there is none)}; other keys are not looked at."""
    images: dict[str, dict[int, np.ndarray]] = {}
    try:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            item = json.loads(line)
            if item.get("kind", "tap") != "tap":
                continue
            integers = np.array(item["integers"])
            if integers.dtype.kind != "i":
                raise ValueError(f"line {number}: integers expected, got {integers.dtype}")
            images.setdefault(item["name"], {})[int(item.get("image", 0))] = integers.astype(np.int64)
        return {name: np.stack([parts[image] for image in range(len(parts))]) for name, parts in images.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadFile(f"{path}: expected a line for each tap and image, got {' '.join(str(error).split()):.200}") from error
