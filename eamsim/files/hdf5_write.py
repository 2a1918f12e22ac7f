"""Writes the sealed HDF5 files that eamsim/files/hdf5.py reads.

Every array is a dataset in the root group with a fletcher32 checksum, as one chunk, or as a compressed chunk for each index of its first
axis; there are no attributes, no times, so equal contents make equal bytes (compressed: with one zlib).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from eamsim.files.container import canonical, replacing
from eamsim.files.hdf5 import FOOTER, MAGIC
from eamsim.files.hdf5_index import index


class Disk:
    """The file that HDF5 writes to. Any write that fails crashes HDF5, so it never sees one: from the first on, memory takes them.

    failure: the first one, for whoever must not believe that all went well.
    """

    def __init__(self, file: FileIO):
        self.failure: Exception | None = None
        self._file, self._kept = file, list[tuple[int, bytes]]()
        self._position = self._size = 0

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = offset + (0, self._position, self._size)[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def flush(self) -> None:
        pass

    def truncate(self, size: int) -> int:
        self._try(lambda: self._file.truncate(size))
        self._size = size
        return size

    def write(self, data: Any) -> int:
        content = memoryview(data).cast("B")
        self._try(lambda: self._write(content))
        if self.failure is not None:
            self._kept.append((self._position, bytes(content)))
        self._position += len(content)
        self._size = max(self._size, self._position)
        return len(content)

    def read(self, size: int) -> bytes:
        """h5py takes what can read and seek for a file."""
        found = bytearray(size)
        self.readinto(found)
        return bytes(found)

    def readinto(self, buffer: Any) -> int:
        found = memoryview(buffer).cast("B")
        found[:] = bytes(len(found))
        self._try(lambda: self._read(found))
        for start, content in self._kept:
            first, last = max(start, self._position), min(start + len(content), self._position + len(found))
            if first < last:
                found[first - self._position : last - self._position] = content[first - start : last - start]
        self._position += len(found)
        return len(found)

    def _try(self, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception as error:  # a closed file's ValueError too: nothing may reach HDF5
            self.failure = self.failure or error

    def _write(self, content: memoryview) -> None:
        if self.failure is not None:
            return
        self._file.seek(self._position)
        while content:
            content = content[self._file.write(content) :]

    def _read(self, found: memoryview) -> None:
        self._file.seek(self._position)
        content = self._file.read(len(found))
        found[: len(content)] = content


class Writer:
    """Arrays into an unfinished file, in any order; OSError as soon as the disk fails.

    HDF5 runs in a thread of its own, where no Ctrl-C can raise KeyboardInterrupt inside `Disk`: that crashes it too.
    """

    def __init__(self, disk: Disk):
        self._disk, self._thread = disk, ThreadPoolExecutor(1)
        self._file: h5py.File = self._run(lambda: h5py.File(disk, "w", libver=("v110", "v110")))

    def put(self, name: str, array: np.ndarray) -> None:
        """An array that is not empty, as one chunk."""
        self._run(lambda: self._file.create_dataset(name, data=array, chunks=array.shape, fletcher32=True, track_times=False))

    def declare(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
        """A compressed array for `put_parts`."""
        options = {"compression": "gzip", "compression_opts": 1, "shuffle": True, "fletcher32": True, "track_times": False}
        self._run(lambda: self._file.create_dataset(name, shape, dtype, chunks=(1, *shape[1:]), **options))

    def put_parts(self, name: str, first: int, parts: np.ndarray) -> None:
        """[parts, ...] of a declared array, the first of them number `first`."""

        def put() -> None:
            dataset = self._file[name]
            assert isinstance(dataset, h5py.Dataset)
            dataset[first : first + len(parts)] = parts

        self._run(put)

    def finish(self) -> dict[str, Any]:
        """Nothing more comes: the index."""

        def close() -> dict[str, Any]:
            self._file.flush()
            return index(self._file)

        return self._run(close)

    def close(self) -> None:
        self._thread.submit(self._file.close).result()
        self._thread.shutdown()

    def _run(self, call: Callable[[], Any]) -> Any:
        result = self._thread.submit(call).result()
        if self._disk.failure is not None:
            raise self._disk.failure
        return result


@contextmanager
def writing(path: Path) -> Iterator[Writer]:
    """A file that replaces the one at `path` in one step once all is put; OSError where that fails."""
    with replacing(path) as temporary, temporary.open("w+b", buffering=0) as file:
        disk = Disk(file)
        writer = Writer(disk)
        try:
            yield writer
            found = canonical(writer.finish())
        finally:
            writer.close()
        if disk.failure is not None:
            raise disk.failure
        seal(file, found)


def seal(file: FileIO, index: bytes) -> None:
    """Append the index and the SHA-256 of all before it."""
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256")
    footer = index + FOOTER.pack(len(index), MAGIC)
    digest.update(footer)
    left = memoryview(footer + digest.digest())
    while left:
        left = left[file.write(left) :]
