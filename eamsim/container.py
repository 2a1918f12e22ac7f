"""Guarded HDF5 files: flat, checksummed datasets and nothing else, replaced in one step, read with suspicion.

Every dataset lies in the root group with a fletcher32 checksum, as one chunk, or as a compressed chunk for each of its first axis;
there are no attributes, no links but hard ones, no times, so equal contents make equal bytes (compressed: with one zlib). A reader names
the datasets it expects and refuses any other tree.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import reprlib
import secrets
import time
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

os.environ["HDF5_PLUGIN_PRELOAD"] = "::"  # before HDF5 starts: no file may make it load a foreign filter
import h5py

from eamsim.errors import UserError

Stored = Literal["unsigned bytes", "uint16", "uint32", "float32", "float64", "int8", "int16", "int32", "int64"]

STORED_TYPES: dict[str, Any] = {
    "unsigned bytes": h5py.h5t.STD_U8LE,
    "uint16": h5py.h5t.STD_U16LE,
    "uint32": h5py.h5t.STD_U32LE,
    "float32": h5py.h5t.IEEE_F32LE,
    "float64": h5py.h5t.IEEE_F64LE,
    "int8": h5py.h5t.STD_I8LE,
    "int16": h5py.h5t.STD_I16LE,
    "int32": h5py.h5t.STD_I32LE,
    "int64": h5py.h5t.STD_I64LE,
}
STALE_SECONDS = 3600  # no write lasts this long: an older temporary file was left by a crash
CHECKSUMMED_SUPERBLOCK = 3  # what libver v110 writes: HDF5's own structures carry checksums
CHECKSUM_ONLY = [h5py.h5z.FILTER_FLETCHER32]
COMPRESSED = [h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_FLETCHER32]
CHECKSUM_BYTES = 4

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 200
_short.maxlist = _short.maxdict = 20


class Refused(Exception):
    """What is wrong and where; the path is still missing. advice: what to do, if not what the file's format suggests."""

    def __init__(self, where: str, expected: object, got: object, advice: str | None = None):
        super().__init__(f"{where}: expected {expected}, got {_short.repr(got)}")
        self.advice = advice


def canonical(tree: object) -> bytes:
    """JSON in the one form that is accepted: ASCII, sorted keys, no spaces, no NaN."""
    return json.dumps(tree, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def parse_json(stream: bytes, where: str) -> dict[str, Any]:
    """An object in canonical form, which rules out duplicate keys, NaN and two spellings of one value; Refused otherwise."""
    try:
        tree = json.loads(stream)
        expected = canonical(tree)
    except (ValueError, RecursionError) as error:
        raise Refused(where, "JSON", str(error)) from None
    if expected != stream or not isinstance(tree, dict):
        raise Refused(where, "a JSON object in canonical form (sorted keys, no spaces)", stream[:60])
    return tree


def create(file: Any) -> h5py.File:
    """A new HDF5 file for `put`, at a path or in a binary buffer."""
    return h5py.File(file, "w", libver=("v110", "v110"))


def put(file: h5py.File, name: str, array: np.ndarray) -> None:
    """Store an array that is not empty as one checksummed chunk."""
    file.create_dataset(name, data=array, chunks=array.shape, fletcher32=True, track_times=False)


@contextlib.contextmanager
def opened(path: Path, what: str) -> Iterator[h5py.File]:
    """The file at `path`, open for `expect_tree` and `take`; Refused for all that is wrong with it. what: "an .eam file"."""
    try:
        if not path.is_file():
            raise Refused("file", what, "a folder or device" if path.exists() else "no such file", "check the path")
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except (Refused, UserError):
        raise
    except Exception as error:  # h5py passes HDF5's errors on as whatever built-in class fits best
        raise Refused("HDF5", "a whole, undamaged HDF5 file", " ".join(str(error).split())) from None


def expect_tree(file: h5py.File, names: Collection[str]) -> None:
    """Refused unless the file holds exactly these datasets, by hard links, and no attribute."""
    links: dict[str, object] = {}
    file.visititems_links(lambda name, link: links.update({name: type(link).__name__}))
    expected = {name: "HardLink" for name in names}
    wrong = {name for name, _ in links.items() ^ expected.items()}
    if wrong:
        missing = {name: expected[name] for name in sorted(wrong & expected.keys())}
        raise Refused("/", f"the links {missing}", {name: links[name] for name in sorted(wrong & links.keys())})
    superblock = file.id.get_create_plist().get_version()[0]
    if (superblock, file.userblock_size, list(file.attrs)) != (CHECKSUMMED_SUPERBLOCK, 0, []):
        got = f"superblock {superblock}, user block {file.userblock_size}, attributes {list(file.attrs)}"
        raise Refused("/", f"superblock {CHECKSUMMED_SUPERBLOCK}, no user block, no attributes", got)


def put_parts(file: h5py.File, name: str, shape: tuple[int, ...], dtype: np.dtype) -> h5py.Dataset:
    """A dataset to be filled part by part: one shuffled, compressed and checksummed chunk for each index of the first axis."""
    options = {"compression": "gzip", "compression_opts": 1, "shuffle": True, "fletcher32": True}
    return file.create_dataset(name, shape, dtype, chunks=(1, *shape[1:]), track_times=False, **options)


def check_form(dataset: Any, stored: str, shape: tuple[int | None, ...], chunks: tuple[int, ...] | None, filters: list[int]) -> None:
    """Refused unless the dataset is chunked, which is neither external nor virtual storage, and exactly so. None: any extent."""
    if not isinstance(dataset, h5py.Dataset):
        raise Refused(dataset.name, "a dataset", type(dataset).__name__)
    properties = dataset.id.get_create_plist()
    found = [properties.get_filter(index)[0] for index in range(properties.get_nfilters())]
    is_stored = dataset.id.get_type().equal(STORED_TYPES[stored])
    got_shape = dataset.shape or ()
    checks: list[tuple[str, Any, Any]] = [
        ("type", stored, stored if is_stored else str(dataset.dtype)),
        ("axes", len(shape), len(got_shape)),
        ("shape", tuple(got if extent is None else extent for extent, got in zip(shape, got_shape, strict=False)), got_shape),
        ("chunks", dataset.shape if chunks is None else chunks, dataset.chunks),
        ("greatest shape", dataset.shape, dataset.maxshape),
        ("filters", filters, found),
        ("attributes", [], list(dataset.attrs)),
    ]
    for what, expected, got in checks:
        if expected != got:
            raise Refused(f"{dataset.name} {what}", expected, got)


def take_part(dataset: Any, index: int) -> np.ndarray:
    """One part of a dataset of `put_parts` whose form is checked. HDF5 would inflate without a limit; its own checksum is passed over."""
    shape, itemsize = dataset.shape[1:], dataset.dtype.itemsize
    size_bytes = int(np.prod(shape, dtype=np.int64)) * itemsize
    inflate = zlib.decompressobj()
    try:
        skipped_filters, stored = dataset.id.read_direct_chunk((index, *(0 for _ in shape)))
        content = inflate.decompress(bytes(stored[:-CHECKSUM_BYTES]), size_bytes + 1)
    except Exception as error:  # h5py passes HDF5's errors on as whatever built-in class fits best
        raise Refused(f"{dataset.name}[{index}]", f"{size_bytes} bytes, compressed", str(error)) from None
    if skipped_filters or len(content) != size_bytes or not inflate.eof:
        raise Refused(f"{dataset.name}[{index}]", f"{size_bytes} bytes, compressed", len(content))
    planes = np.frombuffer(content, np.uint8).reshape(itemsize, -1)
    return np.ascontiguousarray(planes.T).view(dataset.dtype).reshape(shape)


def take(dataset: Any, stored: Stored, axes: int, limit_bytes: int) -> np.ndarray:
    """The array of one dataset after its form and its size are checked."""
    check_form(dataset, stored, (None,) * axes, None, CHECKSUM_ONLY)
    limit_bytes = min(limit_bytes, Path(dataset.file.filename).stat().st_size)  # a file cannot hold more than its own size
    if dataset.nbytes > limit_bytes:
        raise Refused(str(dataset.name), f"at most {limit_bytes} bytes", dataset.nbytes)
    return dataset[()]


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside the target, flushed to disk and renamed if all goes well; sweeps what earlier crashes left.

    A link stays, and what it leads to is replaced. OSError for a FIFO or a device, which a rename would do away with.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, "Not a regular file")
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with contextlib.suppress(FileNotFoundError):  # another writer swept it first
            if leftover.stat().st_mtime < time.time() - STALE_SECONDS:
                leftover.unlink()
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
