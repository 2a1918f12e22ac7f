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

import contextlib
import dataclasses
import glob
import hashlib
import io
import json
import math
import os
import reprlib
import secrets
import time
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np

os.environ["HDF5_PLUGIN_PRELOAD"] = "::"  # before HDF5 starts: no file may make it load a foreign filter
import h5py

from eamsim.errors import BadFile
from eamsim.packing import BITS, DTYPES, narrowest, pack, packed_bytes, unpack
from eamsim.program import Frozen, Program
from eamsim.verify import ProgramError, verify

FORMAT, VERSION = "eam", 1
LIMITS_BYTES = {"manifest": 16 << 20, "data": 2 << 30, "provenance": 16 << 20}
DECODED_LIMIT_BYTES = 2 << 30
STALE_SECONDS = 3600  # no write lasts this long: an older temporary file was left by a crash
MAX_AXES = 4
CHECKSUMMED_SUPERBLOCK = 3  # what libver v110 writes: HDF5's own structures carry checksums
CHECKSUM_ONLY = [h5py.h5z.FILTER_FLETCHER32]
REBUILD = "copy the file again or rebuild it with `eamsim build`"

PathLike = str | os.PathLike[str]

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 200
_short.maxlist = _short.maxdict = 20


class ArtifactError(BadFile):
    """An .eam file that cannot be read or written; the message says where, what was expected and what came."""


class _Refused(Exception):
    """What is wrong, where, and what to do; the path is still missing."""

    def __init__(self, where: str, expected: object, got: object, advice: str = REBUILD):
        super().__init__(f"{where}: expected {expected}, got {_short.repr(got)}; {advice}")


def write(path: PathLike, program: Program, provenance: dict[str, Any]) -> None:
    """Verify the program and replace the file at `path` in one step; a crash leaves the old file or the new one.

    provenance: anything JSON holds. Raises ProgramError, and ArtifactError where the file cannot be written.
    """
    verify(program)
    data = bytearray(1)
    tree = _encode(program, data)
    manifest = {"format": FORMAT, "version": VERSION, "data_bytes": len(data), "data_sha256": _digest(data), "program": tree}
    streams = {"manifest": _canonical(manifest), "data": bytes(data), "provenance": _canonical(provenance)}
    for name, stream in streams.items():
        if len(stream) > LIMITS_BYTES[name]:
            raise ArtifactError(f"{path}: /{name}: expected at most {LIMITS_BYTES[name]} bytes, got {len(stream)}; use a smaller model")
    try:
        _replace_file(Path(path), _container(streams))
    except OSError as error:
        reason = error.strerror or error
        raise ArtifactError(f"{path}: expected a writable file in an existing folder, got '{reason}'; choose another path") from None


def read(path: PathLike) -> tuple[Program, dict[str, Any]]:
    """The verified program and its provenance; raises ArtifactError on every damaged or foreign file."""
    try:
        streams = _read_streams(Path(path))
        program = _decode_manifest(streams["manifest"], streams["data"])
        provenance = _parse_json(streams["provenance"], "/provenance")
        verify(program)
    except _Refused as error:
        raise ArtifactError(f"{path}: {error}") from None
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


def _digest(data: bytes | bytearray) -> str:
    return hashlib.sha256(data).hexdigest()


def _canonical(tree: object) -> bytes:
    return json.dumps(tree, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


# The program as a JSON tree and a byte stream, driven by the dataclasses: a new operation needs no line here.


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


def _parse_json(stream: bytes, where: str) -> dict[str, Any]:
    """An object in canonical form, which rules out duplicate keys, NaN and two spellings of one value."""
    try:
        tree = json.loads(stream)
        canonical = _canonical(tree)
    except (ValueError, RecursionError) as error:
        raise _Refused(where, "JSON", str(error)) from None
    if canonical != stream or not isinstance(tree, dict):
        raise _Refused(where, "a JSON object in canonical form (sorted keys, no spaces)", stream[:60])
    return tree


def _decode_manifest(manifest: bytes, data: bytes) -> Program:
    tree = _parse_json(manifest, "/manifest")
    if tree.get("format") != FORMAT:
        raise _Refused("/manifest format", repr(FORMAT), tree.get("format"))
    if tree.get("version") != VERSION:
        raise _Refused("/manifest version", VERSION, tree.get("version"), "use the eamsim that wrote it, or rebuild it with this one")
    decoder, program_tree = _Decoder(data), tree.pop("program", None)
    head = decoder.fields({"format": str, "version": int, "data_bytes": int, "data_sha256": str}, tree, "/manifest")
    if (head["data_bytes"], head["data_sha256"]) != (len(data), _digest(data)):
        raise _Refused("/data", "the length and SHA-256 that the manifest states", f"{len(data)} bytes, {_digest(data)}")
    program = decoder.item(Program, program_tree, "program")
    if decoder.offset != len(data):
        raise _Refused("/data", f"{decoder.offset} bytes of arrays", len(data))
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
                raise _Refused(where, "a list", tree)
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
        raise _Refused(where, " or ".join(choice.__name__ for choice in options or (hint,)), tree)

    def one_of(self, options: Iterable[str], tree: Any, where: str) -> str:
        if not isinstance(tree, str) or tree not in options:
            raise _Refused(where, f"one of {list(options)}", tree)
        return tree

    def scalar(self, tree: Any, where: str) -> Any:
        if isinstance(tree, int) and not -(1 << 63) <= tree < 1 << 63:
            raise _Refused(where, "an integer of 64 bits", tree)
        if isinstance(tree, str) and not tree.isprintable():
            raise _Refused(where, "printable text", tree)
        return tree

    def fields(self, hints: dict[str, Any], tree: dict[str, Any], where: str) -> dict[str, Any]:
        """Every named field and no other."""
        if sorted(tree) != sorted(hints):
            raise _Refused(where, f"the fields {sorted(hints)}", sorted(tree))
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
            raise _Refused(f"{where}.shape", f"at most {MAX_AXES} extents, none negative", shape)
        self.reserve(math.prod(max(extent, 1) for extent in shape) * np.dtype(dtype).itemsize, where)
        end = self.offset + packed_bytes(math.prod(shape), packing)
        if fields["offset"] != self.offset or end > len(self.data):
            raise _Refused(where, f"offset {self.offset} and an end within {len(self.data)} bytes", (fields["offset"], end))
        stored, self.offset = self.data[self.offset : end], end
        try:
            return unpack(stored, packing, shape, dtype)
        except ValueError as error:
            raise _Refused(where, f"a packing of {dtype}", str(error)) from None

    def spread_codes(self, frozen: Frozen, where: str) -> Frozen:
        """The masked positions' codes in the mask's shape, 0 elsewhere."""
        mask, stored = frozen.mask, frozen.codes
        count = int(np.count_nonzero(mask))
        if mask.dtype != np.bool_ or (stored.dtype, stored.shape) != (np.uint8, (count,)):
            got = f"{mask.dtype} mask, {stored.dtype} {stored.shape} codes"
            raise _Refused(where, f"a bool mask and one uint8 code for each of its {count} set elements", got)
        self.reserve(mask.size, where)
        codes = np.zeros(mask.shape, np.uint8)
        codes[mask] = stored
        return dataclasses.replace(frozen, codes=codes)

    def reserve(self, size_bytes: int, where: str) -> None:
        """Refuse before allocating: a bit-packed file may ask for far more memory than it has bytes."""
        self.decoded_bytes += size_bytes
        if self.decoded_bytes > DECODED_LIMIT_BYTES:
            raise _Refused(where, f"arrays of at most {DECODED_LIMIT_BYTES} bytes in all", self.decoded_bytes)


# The HDF5 container: three checksummed streams of bytes.


def _container(streams: dict[str, bytes]) -> bytes:
    image = io.BytesIO()
    with h5py.File(image, "w", libver=("v110", "v110")) as file:
        for name, stream in streams.items():
            array = np.frombuffer(stream, np.uint8)
            file.create_dataset(name, data=array, chunks=array.shape, fletcher32=True, track_times=False)
    return image.getvalue()


def _read_streams(path: Path) -> dict[str, bytes]:
    """The bytes of the three datasets, once the whole tree is known to be what `_container` makes."""
    try:
        if not path.is_file():
            raise _Refused("file", "an .eam file", "a folder or device" if path.exists() else "no such file", "check the path")
        with h5py.File(path, "r", locking=False) as file:
            _expect_tree(file)
            return {name: _read_stream(file[name], min(limit, path.stat().st_size)) for name, limit in LIMITS_BYTES.items()}
    except _Refused:
        raise
    except Exception as error:  # h5py passes HDF5's errors on as whatever built-in class fits best
        raise _Refused("HDF5", "a whole, undamaged HDF5 file", " ".join(str(error).split())) from None


def _expect_tree(file: h5py.File) -> None:
    links: dict[str, object] = {}
    file.visititems_links(lambda name, link: links.update({name: type(link).__name__}))
    expected = {name: "HardLink" for name in LIMITS_BYTES}
    if links != expected:
        raise _Refused("/", f"the links {expected}", links)
    superblock = file.id.get_create_plist().get_version()[0]
    if (superblock, file.userblock_size, list(file.attrs)) != (CHECKSUMMED_SUPERBLOCK, 0, []):
        got = f"superblock {superblock}, user block {file.userblock_size}, attributes {list(file.attrs)}"
        raise _Refused("/", f"superblock {CHECKSUMMED_SUPERBLOCK}, no user block, no attributes", got)


def _read_stream(dataset: Any, limit_bytes: int) -> bytes:
    """Bytes of one dataset after its form and its size are checked: chunked storage is neither external nor virtual."""
    if not isinstance(dataset, h5py.Dataset):
        raise _Refused(dataset.name, "a dataset", type(dataset).__name__)
    properties = dataset.id.get_create_plist()
    filters = [properties.get_filter(index)[0] for index in range(properties.get_nfilters())]
    is_bytes = dataset.id.get_type().equal(h5py.h5t.STD_U8LE)
    checks: list[tuple[str, Any, Any]] = [
        ("type", "unsigned bytes", "unsigned bytes" if is_bytes else str(dataset.dtype)),
        ("axes", 1, len(dataset.shape or ())),
        ("chunks", dataset.shape, dataset.chunks),
        ("greatest shape", dataset.shape, dataset.maxshape),
        ("filters", CHECKSUM_ONLY, filters),
        ("attributes", [], list(dataset.attrs)),
    ]
    for what, expected, got in checks:
        if expected != got:
            raise _Refused(f"{dataset.name} {what}", expected, got)
    if dataset.nbytes > limit_bytes:
        raise _Refused(str(dataset.name), f"at most {limit_bytes} bytes", dataset.nbytes)
    return dataset[()].tobytes()


def _replace_file(path: Path, content: bytes) -> None:
    """Write beside the target, flush to disk, rename; sweep what earlier crashes left."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with contextlib.suppress(FileNotFoundError):  # another writer swept it first
            if leftover.stat().st_mtime < time.time() - STALE_SECONDS:
                leftover.unlink()
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
