"""The .eam file: one program in one HDF5 file. docs/format.md is the long form.

Three one-dimensional uint8 datasets in the root group, and nothing else; each is one chunk with a fletcher32 checksum:

    /manifest    canonical JSON: {"format": "eam", "version": 1, "data_bytes", "data_sha256", "program"}
    /data        one zero byte, then every array of the program, packed, back to back
    /provenance  canonical JSON: where the program came from; no interpreter reads it

A dataclass is {"kind": class name, field: ...} with every field, a tuple is a list, an array is
{"kind": "ndarray", "dtype", "shape", "packing", "offset"} in the order of the fields. Codes of frozen attention
weights are stored for the masked positions only. Equal programs and provenance make equal bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import math
import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np

from eamsim.container import Refused, canonical, create, expect_tree, opened, parse_json, put, replacing, take
from eamsim.errors import BadFile
from eamsim.packing import BITS, DTYPES, narrowest, pack, packed_bytes, unpack
from eamsim.program import Frozen, Program
from eamsim.verify import ProgramError, verify

FORMAT, VERSION = "eam", 1
LIMITS_BYTES = {"manifest": 16 << 20, "data": 2 << 30, "provenance": 16 << 20}
DECODED_LIMIT_BYTES = 2 << 30
MAX_AXES = 4
REBUILD = "copy the file again or rebuild it with `eamsim build`"

PathLike = str | os.PathLike[str]


class ArtifactError(BadFile):
    """An .eam file that cannot be read or written; the message says where, what was expected and what came."""


def write(path: PathLike, program: Program, provenance: dict[str, Any]) -> None:
    """Verify the program and replace the file at `path` in one step; a crash leaves the old file or the new one.

    provenance: anything JSON holds. Raises ProgramError, and ArtifactError where the file cannot be written.
    """
    verify(program)
    streams = _program_streams(program) | {"provenance": canonical(provenance)}
    for name, stream in streams.items():
        if len(stream) > LIMITS_BYTES[name]:
            raise ArtifactError(f"{path}: /{name}: expected at most {LIMITS_BYTES[name]} bytes, got {len(stream)}; use a smaller model")
    try:
        with replacing(Path(path)) as temporary:
            temporary.write_bytes(_container(streams))
    except OSError as error:
        reason = error.strerror or error
        raise ArtifactError(f"{path}: expected a writable file in an existing folder, got '{reason}'; choose another path") from None


def read(path: PathLike) -> tuple[Program, dict[str, Any]]:
    """The verified program and its provenance; raises ArtifactError on every damaged or foreign file."""
    try:
        streams = _read_streams(Path(path))
        program = _decode_manifest(streams["manifest"], streams.pop("data"))  # not kept while it is verified
        provenance = parse_json(streams["provenance"], "/provenance")
        verify(program)
    except Refused as error:
        raise ArtifactError(f"{path}: {error}; {error.advice or REBUILD}") from None
    except ProgramError as error:
        raise ArtifactError(f"{path}: {error}; {REBUILD}") from None
    return program, provenance


def sha256(path: PathLike) -> str:
    """SHA-256 of the whole file, in hexadecimal."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ArtifactError(f"{path}: expected a readable file, got '{error.strerror}'; check the path") from None


def program_sha256(program: Program) -> str:
    """SHA-256 of the manifest, which holds that of the data: equal for equal programs, wherever they come from."""
    return _digest(_program_streams(program)["manifest"])


def _digest(data: bytes | bytearray) -> str:
    return hashlib.sha256(data).hexdigest()


# The program as a JSON tree and a byte stream, driven by the dataclasses: a new operation needs no line here.


def _program_streams(program: Program) -> dict[str, bytes]:
    data = bytearray(1)
    tree = _encode(program, data)
    manifest = {"format": FORMAT, "version": VERSION, "data_bytes": len(data), "data_sha256": _digest(data), "program": tree}
    return {"manifest": canonical(manifest), "data": bytes(data)}


def _encode(item: object, data: bytearray) -> object:
    """The JSON tree of a program or a part of it; arrays are appended to `data`."""
    if isinstance(item, tuple):
        return [_encode(element, data) for element in item]
    if isinstance(item, np.ndarray):
        packing = narrowest(item)
        array = {"kind": "ndarray", "dtype": item.dtype.name, "shape": item.shape, "packing": packing, "offset": len(data)}
        data += pack(item, packing)
        return array
    if isinstance(item, str) and not item.isprintable():
        raise ArtifactError(f"{item!r}: expected printable text; choose another name")
    if isinstance(item, Frozen):
        item = dataclasses.replace(item, codes=item.codes[item.mask])
    if dataclasses.is_dataclass(item):
        fields = {field.name: _encode(getattr(item, field.name), data) for field in dataclasses.fields(item)}
        return {"kind": type(item).__name__, **fields}
    return item


def _decode_manifest(manifest: bytes, data: bytes) -> Program:
    tree = parse_json(manifest, "/manifest")
    if tree.get("format") != FORMAT:
        raise Refused("/manifest format", repr(FORMAT), tree.get("format"))
    if tree.get("version") != VERSION:
        raise Refused("/manifest version", VERSION, tree.get("version"), "use the eamsim that wrote it, or rebuild it with this one")
    decoder, program_tree = _Decoder(data), tree.pop("program", None)
    head = decoder.fields({"format": str, "version": int, "data_bytes": int, "data_sha256": str}, tree, "/manifest")
    if (head["data_bytes"], head["data_sha256"]) != (len(data), _digest(data)):
        raise Refused("/data", "the length and SHA-256 that the manifest states", f"{len(data)} bytes, {_digest(data)}")
    program = decoder.item(Program, program_tree, "program")
    if decoder.offset != len(data):
        raise Refused("/data", f"{decoder.offset} bytes of arrays", len(data))
    return program


@cache
def _field_hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


class _Decoder:
    """Turns the JSON tree back into dataclasses, as their annotations say; arrays follow each other in `data`."""

    def __init__(self, data: bytes):
        self.data, self.offset, self.decoded_bytes = data, 1, 0

    def item(self, hint: Any, tree: Any, where: str) -> Any:
        """A value of the annotated type: a tuple, a literal, or one of a union's classes."""
        options = get_args(hint)
        if get_origin(hint) is tuple:
            if not isinstance(tree, list):
                raise Refused(where, "a list", tree)
            return tuple(self.item(options[0], element, f"{where}[{index}]") for index, element in enumerate(tree))
        if get_origin(hint) is Literal:
            return self.one_of(options, tree, where)
        for choice in options or (hint,):
            is_object = isinstance(tree, dict) and tree.get("kind") == choice.__name__
            if choice is np.ndarray and is_object:
                return self.array(tree, where)
            if dataclasses.is_dataclass(choice) and is_object:
                return self.dataclass(choice, tree, where)
            if type(tree) is choice:
                return self.scalar(tree, where)
        raise Refused(where, " or ".join(choice.__name__ for choice in options or (hint,)), tree)

    def one_of(self, options: Iterable[str], tree: Any, where: str) -> str:
        if not isinstance(tree, str) or tree not in options:
            raise Refused(where, f"one of {list(options)}", tree)
        return tree

    def scalar(self, tree: Any, where: str) -> Any:
        if isinstance(tree, int) and not -(1 << 63) <= tree < 1 << 63:
            raise Refused(where, "an integer of 64 bits", tree)
        if isinstance(tree, str) and not tree.isprintable():
            raise Refused(where, "printable text", tree)
        return tree

    def fields(self, hints: dict[str, Any], tree: dict[str, Any], where: str) -> dict[str, Any]:
        """Every named field and no other."""
        if sorted(tree) != sorted(hints):
            raise Refused(where, f"the fields {sorted(hints)}", sorted(tree))
        return {name: self.item(hint, tree[name], f"{where}.{name}") for name, hint in hints.items()}

    def dataclass(self, kind: type, tree: dict[str, Any], where: str) -> Any:
        fields = self.fields({"kind": str, **_field_hints(kind)}, tree, where)
        del fields["kind"]
        return self.spread_codes(kind(**fields), where) if kind is Frozen else kind(**fields)

    def array(self, tree: dict[str, Any], where: str) -> np.ndarray:
        hints = {"kind": str, "dtype": str, "shape": tuple[int, ...], "packing": str, "offset": int}
        fields = self.fields(hints, tree, where)
        dtype = self.one_of(DTYPES, fields["dtype"], f"{where}.dtype")
        packing = self.one_of(BITS, fields["packing"], f"{where}.packing")
        shape = fields["shape"]
        if len(shape) > MAX_AXES or min(shape, default=0) < 0:
            raise Refused(f"{where}.shape", f"at most {MAX_AXES} extents, none negative", shape)
        self.reserve(math.prod(max(extent, 1) for extent in shape) * np.dtype(dtype).itemsize, where)
        end = self.offset + packed_bytes(math.prod(shape), packing)
        if fields["offset"] != self.offset or end > len(self.data):
            raise Refused(where, f"offset {self.offset} and an end within {len(self.data)} bytes", (fields["offset"], end))
        stored, self.offset = self.data[self.offset : end], end
        try:
            return unpack(stored, packing, shape, dtype)
        except ValueError as error:
            raise Refused(where, f"a packing of {dtype}", str(error)) from None

    def spread_codes(self, frozen: Frozen, where: str) -> Frozen:
        """The masked positions' codes in the mask's shape, 0 elsewhere."""
        mask, stored = frozen.mask, frozen.codes
        count = int(np.count_nonzero(mask))
        if mask.dtype != np.bool_ or (stored.dtype, stored.shape) != (np.uint8, (count,)):
            got = f"{mask.dtype} mask, {stored.dtype} {stored.shape} codes"
            raise Refused(where, f"a bool mask and one uint8 code for each of its {count} set elements", got)
        self.reserve(mask.size, where)
        codes = np.zeros(mask.shape, np.uint8)
        codes[mask] = stored
        return dataclasses.replace(frozen, codes=codes)

    def reserve(self, size_bytes: int, where: str) -> None:
        """Refuse before allocating: a bit-packed file may ask for far more memory than it has bytes."""
        self.decoded_bytes += size_bytes
        if self.decoded_bytes > DECODED_LIMIT_BYTES:
            raise Refused(where, f"arrays of at most {DECODED_LIMIT_BYTES} bytes in all", self.decoded_bytes)


# The HDF5 container: three checksummed streams of bytes.


def _container(streams: dict[str, bytes]) -> bytes:
    image = io.BytesIO()
    with create(image) as file:
        for name, stream in streams.items():
            put(file, name, np.frombuffer(stream, np.uint8))
    return image.getvalue()


def _read_streams(path: Path) -> dict[str, bytes]:
    """The bytes of the three datasets, once the whole tree is known to be what `_container` makes."""
    with opened(path, "an .eam file") as file:
        expect_tree(file, LIMITS_BYTES)
        return {name: take(file[name], "unsigned bytes", 1, limit).tobytes() for name, limit in LIMITS_BYTES.items()}
