"""Tensors as files for simulators: `$readmemh` words, .npz or JSON lines, with a manifest; and back.

A memory word holds `lanes` elements, each in two's complement and sign-extended to `lane_bits`; bits of a word that no lane needs are
zero. A lane has at most 64 bits. Elements follow each other in C order, or tile by tile.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import TypeAdapter

from eamsim.errors import BadFile, UserError
from eamsim.files.container import replacing_all
from eamsim.files.limits import DUMP_BYTES, TEXT_BYTES
from eamsim.files.reading import read_bytes
from eamsim.program import Value

FORMAT, VERSION = "eam-vectors", 1
MANIFEST = "manifest.json"
WHOLE_FILES = {"npz": "tensors.npz", "jsonl": "tensors.jsonl"}
BLOCK_WORDS = 1 << 14
MAX_WORD_BITS = 4096
COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
ADDRESS = re.compile(r"@[0-9a-fA-F]+")
HEX_WORD = re.compile(r"[0-9a-fA-F][0-9a-fA-F_]*")
ENTRY_FILE = re.compile(r"(taps|constants)/[A-Za-z0-9_][A-Za-z0-9_.-]*\.hex")
PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")

Format = Literal["readmemh", "npz", "jsonl"]


@dataclass(frozen=True)
class Layout:
    """How the elements of a tensor lie in words.

    word_bits: width of a word, or of a part of a word where an element is wider; None: one element a word, as wide as the element.
    first: the end of the word in which its first element lies. transposed: the last two axes are exchanged before anything else.
    tile: rows x columns of the last two axes (a tensor of one axis is one row); tiles follow each other in C order, and so do the
    elements of each; what a tile has beyond the tensor is `pad`.
    """

    word_bits: int | None = None
    first: Literal["low", "high"] = "low"
    transposed: bool = False
    tile: tuple[int, int] | None = None
    pad: int = 0

    def lanes(self, value: Value) -> tuple[int, int, int]:
        """Bits of a word, lanes in it, bits of a lane: as many lanes as fit, spread evenly."""
        least = value.bits if self.word_bits is None else self.word_bits
        if not 1 <= least <= MAX_WORD_BITS:
            raise UserError(f"word: expected 1 to {MAX_WORD_BITS} bits, got {least}")
        word_bits = -(-value.bits // least) * least
        lanes = word_bits // value.bits
        return word_bits, lanes, min(word_bits // lanes, 64)

    def order(self, shape: tuple[int, ...]) -> np.ndarray:
        """int64 [elements]: for each element in the file its position in C order, -1 for padding."""
        positions = np.arange(np.prod(shape, dtype=np.int64)).reshape((1,) * (2 - len(shape)) + shape)
        if self.transposed:
            positions = positions.swapaxes(-1, -2)
        if self.tile is not None:
            (rows, columns), (height, width) = positions.shape[-2:], self.tile
            edge = [(0, 0)] * (positions.ndim - 2) + [(0, -rows % height), (0, -columns % width)]
            padded = np.pad(positions, edge, constant_values=-1)
            tiled = padded.reshape(*padded.shape[:-2], padded.shape[-2] // height, height, padded.shape[-1] // width, width)
            positions = tiled.swapaxes(-2, -3)
        return positions.ravel()


@dataclass(frozen=True)
class Entry:
    """A tensor in the manifest: its form, SHA-256 of its integers as little-endian int64 in C order, and its memory.

    shape: of one image; images: how many follow each other, each from a new word on, or None for a constant; words: of all of them.
    """

    name: str
    kind: Literal["tap", "constant"]
    images: int | None
    shape: tuple[int, ...]
    bits: int
    signed: bool
    integers_sha256: str
    file: str
    words: int
    word_bits: int
    lanes: int
    lane_bits: int


LAYOUT, ENTRIES = TypeAdapter(Layout), TypeAdapter(tuple[Entry, ...])


@dataclass(frozen=True, eq=False)
class VectorTensor:
    """What a file holds: of kind `tap` int64 [images, *shape], of kind `constant` [*shape]."""

    kind: Literal["tap", "constant"]
    value: Value
    integers: np.ndarray


def export(
    folder: Path, tensors: Iterable[VectorTensor], layout: Layout, formats: Iterable[Format], about: dict[str, Any]
) -> dict[str, Any]:
    """Write the tensors and last the manifest into the folder, made if need be, or nothing; returns the manifest.

    about: more keys of the manifest. Names of files are made from names of tensors and cannot leave the folder. BadFile where it
    cannot be written; UserError for a layout that does not fit a tensor.
    """
    formats, tensors = tuple(formats), list(tensors)
    for tensor in tensors:
        layout.lanes(tensor.value)
        if layout.tile is not None and not tensor.value.low <= layout.pad <= tensor.value.high:
            raise UserError(f"padding of {layout.pad}: expected what fits {tensor.value}; choose another")
    entries = [entry_of(tensor, name, layout) for tensor, name in zip(tensors, file_names(tensors), strict=True)]
    files = {}
    try:
        with replacing_all(folder) as place:
            last = place(MANIFEST)
            for tensor, entry in zip(tensors, entries, strict=True):
                if "readmemh" in formats:
                    files[entry.file] = write(place(entry.file), hex_lines(tensor.integers, tensor.value, layout))
            if "npz" in formats:
                arrays = {entry.file.removesuffix(".hex"): narrow(tensor) for tensor, entry in zip(tensors, entries, strict=True)}
                files[WHOLE_FILES["npz"]] = write(place(WHOLE_FILES["npz"]), npz(arrays))
            if "jsonl" in formats:
                files[WHOLE_FILES["jsonl"]] = write(place(WHOLE_FILES["jsonl"]), json_lines(tensors))
            manifest = {"format": FORMAT, "version": VERSION, **about, "layout": asdict(layout), "files": files}
            manifest["tensors"] = [asdict(entry) for entry in entries]
            write(last, [json.dumps(manifest, indent=1).encode()])
    except OSError as error:
        raise BadFile(f"{folder}: expected a writable folder, got '{error.strerror}'; choose another path") from error
    return manifest


def write(path: Path, parts: Iterable[bytes]) -> dict[str, Any]:
    """The file's length and SHA-256."""
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as file:
        for part in parts:
            file.write(part)
            digest.update(part)
            size += len(part)
    return {"bytes": size, "sha256": digest.hexdigest()}


def entry_of(tensor: VectorTensor, name: str, layout: Layout) -> Entry:
    value, images = tensor.value, len(tensor.integers) if tensor.kind == "tap" else None
    word_bits, lanes, lane_bits = layout.lanes(value)
    words = -(-len(layout.order(value.shape)) // lanes) * (1 if images is None else images)
    digest = hashlib.sha256(tensor.integers.astype("<i8").tobytes()).hexdigest()
    form = (value.shape, value.bits, value.signed, digest)
    return Entry(value.name, tensor.kind, images, *form, f"{tensor.kind}s/{name}.hex", words, word_bits, lanes, lane_bits)


def file_names(tensors: Iterable[VectorTensor]) -> list[str]:
    """The tensors' names, those that could be a path, hidden or someone else's (in a file system without case) with a digest."""
    taken: set[tuple[str, str]] = set()
    names = []
    for tensor in tensors:
        name = tensor.value.name
        if not PLAIN.fullmatch(name) or (tensor.kind, name.casefold()) in taken:
            digest = hashlib.sha256(name.encode()).hexdigest()[:16]
            name = f"_{re.sub('[^A-Za-z0-9]', '_', name)[:100]}-{digest}"
        taken.add((tensor.kind, name.casefold()))
        names.append(name)
    return names


def hex_lines(integers: np.ndarray, value: Value, layout: Layout) -> Iterator[bytes]:
    """Lines of a word each, as many hexadecimal digits as it has nibbles, in blocks."""
    word_bits, lanes, lane_bits = layout.lanes(value)
    order = layout.order(value.shape)
    for image in integers.reshape(-1, value.size):
        elements = np.where(order < 0, layout.pad, image[order])
        for start in range(0, len(elements), BLOCK_WORDS * lanes):
            block = elements[start : start + BLOCK_WORDS * lanes]
            yield hex_words(
                np.append(block, np.zeros(-len(block) % lanes, np.int64)).reshape(-1, lanes), word_bits, lane_bits, layout.first
            )


def hex_words(elements: np.ndarray, word_bits: int, lane_bits: int, first: str) -> bytes:
    """The lines of int64 [words, lanes]."""
    elements = elements[:, ::-1] if first == "high" else elements
    bits = np.zeros((len(elements), -(-word_bits // 8) * 8), np.uint8)
    bits[:, : elements.shape[1] * lane_bits] = (elements[:, :, None] >> np.arange(lane_bits) & 1).reshape(len(elements), -1)
    words = np.packbits(bits, axis=1, bitorder="little")[:, ::-1]
    digits = np.frombuffer(words.tobytes().hex().encode(), np.uint8).reshape(len(elements), -1)[:, -((word_bits + 3) // 4) :]
    return np.insert(digits, digits.shape[1], ord("\n"), axis=1).tobytes()


def npz(arrays: dict[str, np.ndarray]) -> list[bytes]:
    image = io.BytesIO()
    np.savez_compressed(image, allow_pickle=False, **arrays)
    return [image.getvalue()]


def narrow(tensor: VectorTensor) -> np.ndarray:
    """In the narrowest NumPy integers that hold the declared width, of its sign."""
    size = next(size for size in (8, 16, 32, 64) if tensor.value.bits <= size)
    return tensor.integers.astype(f"{'i' if tensor.value.signed or size == 64 else 'u'}{size // 8}")


def json_lines(tensors: Iterable[VectorTensor]) -> Iterator[bytes]:
    """An object a line: of a tap for each image, of a constant one."""
    for tensor in tensors:
        head = {"name": tensor.value.name, "kind": tensor.kind, "bits": tensor.value.bits, "signed": tensor.value.signed}
        parts = [({}, tensor.integers)] if tensor.kind == "constant" else [({"image": i}, part) for i, part in enumerate(tensor.integers)]
        for image, integers in parts:
            yield json.dumps(head | image | {"integers": integers.tolist()}).encode() + b"\n"


# And back: what a simulator wrote in the layout of an export.


def read_manifest(folder: Path) -> tuple[dict[str, Any], Layout, tuple[Entry, ...]]:
    """The whole manifest, its layout and its tensors; BadFile if it is not one of ours."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(read_bytes(path, TEXT_BYTES))
        if (manifest["format"], manifest["version"]) != (FORMAT, VERSION):
            raise BadFile(f"{path}: expected {FORMAT} {VERSION}, got {manifest['format']!r:.40} {manifest['version']!r:.40}; export again")
        layout, entries = LAYOUT.validate_python(manifest["layout"]), ENTRIES.validate_python(manifest["tensors"])
    except OSError as error:
        raise BadFile(f"{path}: expected a readable manifest, got '{error.strerror}'; eamsim trace export makes one") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadFile(f"{path}: expected a manifest of eamsim trace export, got {' '.join(str(error).split()):.200}") from error
    for entry in entries:
        if not ENTRY_FILE.fullmatch(entry.file) or not 1 <= entry.bits <= 64 or min(entry.shape, default=1) < 0:
            raise BadFile(
                f"{path}: {entry.name!r:.80}: expected a file in taps or constants and a width of 1 to 64 bits, got {entry!r:.200}"
            )
    return manifest, layout, entries


def read_hex(path: Path, entry: Entry, layout: Layout) -> np.ndarray:
    """int64 [images, *shape], or [*shape] of a constant, from a `$readmemh` or `$writememh` file.

    Addresses and comments are as Verilog has them. BadFile names a word that is missing, undefined or too wide. Padding is not looked at.
    """
    value, images = Value(entry.name, entry.shape, entry.bits, entry.signed), 1 if entry.images is None else entry.images
    word_bits, lanes, lane_bits = layout.lanes(value)
    order = layout.order(entry.shape)
    words, size = memory_words(path, -(-len(order) // lanes) * images, word_bits), -(-word_bits // 8)
    stored = np.frombuffer(b"".join(word.to_bytes(size, "little") for word in words), np.uint8).reshape(-1, size)
    blocks = [lanes_of(stored[start : start + BLOCK_WORDS], lanes, lane_bits) for start in range(0, len(stored), BLOCK_WORDS)]
    elements = np.concatenate([np.empty((0, lanes), np.int64), *blocks])
    elements = (elements[:, ::-1] if layout.first == "high" else elements).reshape(images, -1)[:, : len(order)]
    if entry.signed:
        elements = elements << (64 - lane_bits) >> (64 - lane_bits)
    result = np.empty((images, value.size), np.int64)
    result[:, order[order >= 0]] = elements[:, order >= 0]
    return result.reshape(entry.shape if entry.images is None else (images, *entry.shape))


def lanes_of(words: np.ndarray, lanes: int, lane_bits: int) -> np.ndarray:
    """int64 [words, lanes], the low lane first, of little-endian words uint8 [words, bytes]."""
    bits = np.unpackbits(words, axis=1, bitorder="little")[:, : lanes * lane_bits]
    return (bits.reshape(len(words), lanes, lane_bits).astype(np.int64) << np.arange(lane_bits)).sum(axis=2)


def memory_words(path: Path, count: int, word_bits: int) -> list[int]:
    """The first words of a memory file; BadFile names one that is missing, undefined or too wide."""
    try:
        text = read_bytes(path, DUMP_BYTES).decode("ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise BadFile(f"{path}: expected a readable text of hexadecimal words ({error})") from error
    words: list[int | None] = [None] * count
    address = 0
    for token in COMMENT.sub(" ", text).split():
        if ADDRESS.fullmatch(token):
            address = int(token[1:], 16)
        elif not HEX_WORD.fullmatch(token):
            raise BadFile(
                f"{path}: word {address}: expected hexadecimal digits, got {token!r:.80} (x or z: never written by the simulation)"
            )
        else:
            if address >= count or int(token, 16) >> word_bits:
                raise BadFile(f"{path}: word {address}: expected {count} words of {word_bits} bits, got {token:.80} here")
            words[address] = int(token, 16)
            address += 1
    if None in words:
        raise BadFile(f"{path}: word {words.index(None)}: expected {count} words, got none here")
    return [word for word in words if word is not None]
