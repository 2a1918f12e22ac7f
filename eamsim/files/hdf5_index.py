"""Where the arrays of an HDF5 file lie: the one place where HDF5 reads a file, and a program of its own for files that others wrote.

    python hdf5_index.py < FILE

HDF5 can be crashed by a file, so `eamsim.files.hdf5` never lets it read in its own process: it runs this one, under limits, and reads the
bytes itself. Prints {"index": ...}, as `index` returns it, or {"refused": [where, expected, got]}.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from typing import Any

CPU_SECONDS, MEMORY_BYTES = 20, 2 << 30

if __name__ == "__main__":
    limits = {resource.RLIMIT_CPU: CPU_SECONDS, resource.RLIMIT_AS: MEMORY_BYTES, resource.RLIMIT_FSIZE: 0, resource.RLIMIT_CORE: 0}
    for kind, limit in limits.items():
        resource.setrlimit(kind, (limit, limit))

os.environ["HDF5_PLUGIN_PRELOAD"] = "::"  # before HDF5 starts: no file may make it load a foreign filter
import h5py  # noqa: E402

STORED_TYPES: dict[str, Any] = {
    "|u1": h5py.h5t.STD_U8LE,
    "<u2": h5py.h5t.STD_U16LE,
    "<u4": h5py.h5t.STD_U32LE,
    "<f4": h5py.h5t.IEEE_F32LE,
    "<f8": h5py.h5t.IEEE_F64LE,
    "|i1": h5py.h5t.STD_I8LE,
    "<i2": h5py.h5t.STD_I16LE,
    "<i4": h5py.h5t.STD_I32LE,
    "<i8": h5py.h5t.STD_I64LE,
}
CHECKSUMMED_SUPERBLOCK = 3  # what libver v110 writes: HDF5's own structures carry checksums
CHECKSUM_ONLY = [h5py.h5z.FILTER_FLETCHER32]
COMPRESSED = [h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_FLETCHER32]


class Unlike(Exception):
    """(where, expected, got): the file is not one of those that `eamsim.files.hdf5_write` makes."""


def index(file: h5py.File) -> dict[str, dict[str, Any]]:
    """Name -> dtype, shape, compressed, parts [[offset, bytes], ...] of every dataset; Unlike for anything but flat, chunked datasets."""
    links: dict[str, str] = {}
    file.visititems_links(lambda name, link: links.update({name: type(link).__name__}))
    if strange := {name: kind for name, kind in links.items() if kind != "HardLink"}:
        raise Unlike("/", "hard links alone", strange)
    superblock = file.id.get_create_plist().get_version()[0]
    if (superblock, file.userblock_size, list(file.attrs)) != (CHECKSUMMED_SUPERBLOCK, 0, []):
        got = f"superblock {superblock}, user block {file.userblock_size}, attributes {list(file.attrs)}"
        raise Unlike("/", f"superblock {CHECKSUMMED_SUPERBLOCK}, no user block, no attributes", got)
    return {name: _table(file[name]) for name in links}


def _table(dataset: Any) -> dict[str, Any]:
    if not isinstance(dataset, h5py.Dataset):
        raise Unlike(dataset.name, "a dataset", type(dataset).__name__)
    properties, shape = dataset.id.get_create_plist(), dataset.shape or ()
    dtype = next((name for name, stored in STORED_TYPES.items() if dataset.id.get_type().equal(stored)), None)
    filters = [properties.get_filter(number)[0] for number in range(properties.get_nfilters())]
    compressed = filters == COMPRESSED
    whole = (1, *shape[1:]) if compressed else shape
    checks: list[tuple[str, bool, Any, Any]] = [
        ("type", dtype is not None, f"one of {list(STORED_TYPES)}", dataset.dtype),
        ("filters", compressed or filters == CHECKSUM_ONLY, f"{CHECKSUM_ONLY} or {COMPRESSED}", filters),
        ("chunks", dataset.chunks == whole, whole, dataset.chunks),
        ("greatest shape", dataset.maxshape == shape, shape, dataset.maxshape),
        ("attributes", not list(dataset.attrs), [], list(dataset.attrs)),
    ]
    for what, is_right, expected, got in checks:
        if not is_right:
            raise Unlike(f"{dataset.name} {what}", expected, got)
    chunks = [dataset.id.get_chunk_info(number) for number in range(dataset.id.get_num_chunks())]
    parts = {chunk.chunk_offset[0]: [chunk.byte_offset, chunk.size] for chunk in chunks if not chunk.filter_mask}
    return {"dtype": dtype, "shape": list(shape), "compressed": compressed, "parts": [parts[start] for start in sorted(parts)]}


def main() -> None:
    try:
        with h5py.File(open(0, "rb", buffering=0), "r") as file:
            answer: dict[str, Any] = {"index": index(file)}
    except Unlike as error:
        answer = {"refused": [*map(str, error.args)]}
    except Exception as error:  # h5py passes HDF5's errors on as whatever built-in class fits best
        answer = {"refused": ["HDF5", "a whole, undamaged HDF5 file", " ".join(str(error).split())]}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
