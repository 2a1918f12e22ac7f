"""The .eam file: one program, its arrays in a safetensors file (eamsim/files/tensor_file.py). docs/spec/format.md is the long form.

A dataclass is {"kind": class name, field: ...} with every field, a tuple is a list, an array is
{"kind": "ndarray", "dtype", "shape", "packing", "offset"} in the order of the fields. Codes of frozen attention
weights are stored for the masked positions only. Equal programs and provenance make equal bytes.

Version 1 was an HDF5 file with three streams of bytes: `manifest`, as `program_sha256` still digests it, `data`, `provenance`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import numpy as np

from eamsim.arguments import expect_path, expect_type, field_hints
from eamsim.check import ProgramError
from eamsim.constraints import Verified, expect_verified, verify
from eamsim.errors import BadFile, UserError
from eamsim.files.container import Refused, canonical, parse_json, replacing
from eamsim.files.hdf5 import Tables
from eamsim.files.limits import DECODED_BYTES, EAM_BYTES
from eamsim.files.packing import BITS, DTYPES, narrowest, pack, packed_bytes, stored_form, unpack
from eamsim.files.reading import open_file, read_bytes
from eamsim.files.tensor_file import FORMAT, VERSIONS, Form, from_bytes, to_bytes
from eamsim.program import Attention, Frozen, Linear, Program

VERSION_1, HDF5_SIGNATURE = 1, b"\x89HDF\r\n\x1a\n"
LATER_FIELDS: dict[type, dict[str, int]] = {Linear: {"levels": 3}, Attention: {"queries": 4}}
"""Fields with the version that brought them: left out where they are None, so that programs without them stay what they were."""
MAX_AXES = 4
REBUILD = "copy the file again or rebuild it with `eamsim build`"

PathLike = str | os.PathLike[str]
Array = tuple[str, str, tuple[int, ...]]
"""Where in the program, packing, shape."""


class ArtifactError(BadFile):
    """An .eam file that cannot be read or written; the message says where, what was expected and what came."""


def write(path: PathLike, program: Verified, provenance: dict[str, Any]) -> None:
    """Replace the file at `path` in one step; a crash leaves the old file or the new one.

    provenance: anything JSON holds. Raises ProgramError, UserError, and ArtifactError where the file cannot be written.
    """
    expect_path("path", path)
    expect_verified(program)
    encoder = _Encoder(program)
    sizes = {"manifest": encoder.manifest_stream, "data": encoder.data, "provenance": _stored(provenance)}
    for name, stream in sizes.items():
        if len(stream) > EAM_BYTES[name]:
            raise ArtifactError(f"{path}: {name}: expected at most {EAM_BYTES[name]} bytes, got {len(stream)}; use a smaller model")
    try:
        with replacing(Path(path)) as temporary:
            temporary.write_bytes(to_bytes(encoder.version, encoder.manifest, provenance, encoder.tensors()))
    except OSError as error:
        reason = error.strerror or error
        raise ArtifactError(f"{path}: expected a writable file in an existing folder, got '{reason}'; choose another path") from None


def read(path: PathLike) -> tuple[Verified, dict[str, Any]]:
    """The program and its provenance; raises ArtifactError on every damaged or foreign file."""
    expect_path("path", path)
    try:
        decoded, provenance = _read(Path(path))
        program = verify(decoded)
    except Refused as error:
        raise ArtifactError(f"{path}: {error}; {error.advice or REBUILD}") from None
    except ProgramError as error:
        raise ArtifactError(f"{path}: {error}; {REBUILD}") from None
    return program, provenance


def _stored(provenance: dict[str, Any]) -> bytes:
    expect_type("provenance", provenance, dict)
    try:
        return canonical(provenance)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"provenance: expected what JSON holds (no NaN, no arrays), got other values ({error}); convert them") from error


def sha256(path: PathLike) -> str:
    """SHA-256 of the whole file, in hexadecimal."""
    try:
        with open_file(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ArtifactError(f"{path}: expected a readable file, got '{error.strerror}'; check the path") from None


def program_sha256(program: Program) -> str:
    """SHA-256 of the manifest of version 1, which holds that of the data: equal for equal programs, whatever file they come from."""
    return _digest(_Encoder(program).manifest_stream)


def _digest(data: bytes | bytearray) -> str:
    return hashlib.sha256(data).hexdigest()


def _read(path: Path) -> tuple[Program, dict[str, Any]]:
    """Of any version."""
    try:
        content = read_bytes(path, sum(EAM_BYTES.values()))
    except OSError as error:
        raise Refused("file", "an .eam file", error.strerror, "check the path") from None
    if content.startswith(HDF5_SIGNATURE):
        return _read_version_1(path)
    version, manifest, provenance, forms, data = from_bytes(content)
    program, expected = _decode({"format": FORMAT, "version": VERSION_1} | manifest, data, version)
    if forms != expected:
        wrong = next(name for name in forms | expected if forms.get(name) != expected.get(name))
        raise Refused(f"tensor {wrong}", expected.get(wrong, "no such tensor"), forms.get(wrong, "none"))
    return program, provenance


def _read_version_1(path: Path) -> tuple[Program, dict[str, Any]]:
    with Tables(path, "an .eam file") as tables:
        tables.expect(EAM_BYTES)
        streams = {name: tables.take_bytes(name, limit) for name, limit in EAM_BYTES.items()}
    program, _ = _decode(parse_json(streams["manifest"], "/manifest"), streams["data"], VERSION_1)
    return program, parse_json(streams["provenance"], "/provenance")


def _tensor_forms(program: Program, arrays: list[Array]) -> dict[str, Form]:
    """Name -> dtype and shape of the stored arrays: their number, the value that their operation makes, and the fields they are in."""
    forms = {}
    for number, (where, packing, shape) in enumerate(arrays, 1):
        place = re.fullmatch(r"program\.operations\[(\d+)\](.*)", where)
        name = f"{program.operations[int(place[1])].out.name}{place[2]}" if place else where
        forms[f"{number:04}.{name}"] = stored_form(packing, shape)
    return forms


# The program as a JSON tree and a byte stream, driven by the dataclasses: a new operation needs no line here.


class _Encoder:
    """The manifest and the data of a program, its arrays in them, and the first version that has all its fields."""

    def __init__(self, program: Program):
        self.version = VERSIONS[0]
        self.data, self.arrays, self._program = bytearray(1), list[Array](), program
        tree = self.item(program, "program")
        self.manifest = {"data_bytes": len(self.data), "data_sha256": _digest(self.data), "program": tree}

    @property
    def manifest_stream(self) -> bytes:
        return canonical({"format": FORMAT, "version": VERSION_1} | self.manifest)

    def tensors(self) -> dict[str, np.ndarray]:
        """Views of the data."""
        found, offset = {}, 1
        for name, (dtype, shape) in _tensor_forms(self._program, self.arrays).items():
            found[name] = np.frombuffer(self.data, dtype, math.prod(shape), offset).reshape(shape)
            offset += found[name].nbytes
        return found

    def item(self, item: object, where: str) -> object:
        """The JSON tree of a program or a part of it; arrays are appended to the data."""
        if isinstance(item, tuple):
            return [self.item(element, f"{where}[{index}]") for index, element in enumerate(item)]
        if isinstance(item, np.ndarray):
            packing = narrowest(item)
            array = {"kind": "ndarray", "dtype": item.dtype.name, "shape": item.shape, "packing": packing, "offset": len(self.data)}
            self.data += pack(item, packing)
            self.arrays.append((where, packing, item.shape))
            return array
        if isinstance(item, Frozen):
            item = dataclasses.replace(item, codes=item.codes[item.mask])
        if dataclasses.is_dataclass(item):
            kind: Any = Program if isinstance(item, Program) else type(item)  # the proof is not stored: who reads proves
            later = LATER_FIELDS.get(kind, {})
            fields = {field.name: getattr(item, field.name) for field in dataclasses.fields(kind)}
            fields = {name: part for name, part in fields.items() if part is not None or name not in later}
            self.version = max(self.version, *(later.get(name, 0) for name in fields), 0)
            return {"kind": kind.__name__, **{name: self.item(part, f"{where}.{name}") for name, part in fields.items()}}
        return item


def _decode(tree: dict[str, Any], data: bytes, version: int) -> tuple[Program, dict[str, Form]]:
    """The program of a manifest in a file of this version, and the tensors that one which is no HDF5 file holds of it."""
    if tree.get("format") != FORMAT:
        raise Refused("/manifest format", repr(FORMAT), tree.get("format"))
    if tree.get("version") != VERSION_1:
        raise Refused("/manifest version", VERSION_1, tree.get("version"), "use the eamsim that wrote it, or rebuild it with this one")
    decoder, program_tree = _Decoder(data), tree.pop("program", None)
    head = decoder.fields({"format": str, "version": int, "data_bytes": int, "data_sha256": str}, tree, "/manifest")
    if (head["data_bytes"], head["data_sha256"]) != (len(data), _digest(data)):
        raise Refused("/data", "the length and SHA-256 that the manifest states", f"{len(data)} bytes, {_digest(data)}")
    program = decoder.item(Program, program_tree, "program")
    needed = max(decoder.version, min(version, VERSIONS[0]))
    if version != needed:
        raise Refused("the version", f"{needed}, the first with all fields of its program", version)
    if decoder.offset != len(data):
        raise Refused("/data", f"{decoder.offset} bytes of arrays", len(data))
    return program, _tensor_forms(program, decoder.arrays)


class _Decoder:
    """Turns the JSON tree back into dataclasses, as their annotations say; arrays follow each other in `data`."""

    def __init__(self, data: bytes):
        self.data, self.offset, self.decoded_bytes, self.arrays = data, 1, 0, list[Array]()
        self.version = VERSION_1

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
        hints = {"kind": str, **field_hints(kind)}
        for name, version in LATER_FIELDS.get(kind, {}).items():
            if name not in tree:
                del hints[name]
            elif tree[name] is None:
                raise Refused(f"{where}.{name}", "to be left out where it is null", None)
            else:
                self.version = max(self.version, version)
        fields = self.fields(hints, tree, where)
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
        self.arrays.append((where, packing, shape))
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
        if self.decoded_bytes > DECODED_BYTES:
            raise Refused(where, f"arrays of at most {DECODED_BYTES} bytes in all", self.decoded_bytes)
