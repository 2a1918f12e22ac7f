"""Sealed HDF5 files, read without HDF5: it finds the arrays by an index behind them, which no byte of a stranger can make crash.

A file is what HDF5 wrote (eamsim/files/hdf5_write.py), which other software reads as it is, and then

    the index    canonical JSON: {name: {"dtype", "shape", "compressed", "parts": [[offset, bytes], ...]}}
    16 bytes     length of the index, unsigned 64 bits, little endian; `MAGIC`
    32 bytes     SHA-256 of all before them

An array that is not compressed is one part, its bytes and their fletcher32; a compressed one has a part for each index of its first
axis: zlib of the bytes of the part, all first bytes of its elements, then all second ones, ...; and a checksum. Files that older
versions wrote have no index; a process of its own, which may crash (eamsim/files/hdf5_index.py), asks HDF5 for it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, TypeAdapter

from eamsim.files.container import Refused
from eamsim.files.limits import INDEX_BYTES
from eamsim.files.reading import open_file

MAGIC = b"eamindex"
FOOTER = struct.Struct(f"<Q{len(MAGIC)}s")
SEAL_BYTES, CHECKSUM_BYTES = 32, 4
CHILD_SECONDS = 30
DEFLATE_RATIO = 1032
"""No deflated stream is longer than this many times its own length."""

Stored = Literal["|u1", "<u2", "<u4", "<f4", "<f8", "|i1", "<i2", "<i4", "<i8"]
Extent = Annotated[int, Field(ge=1, lt=1 << 40)]
Offset = Annotated[int, Field(ge=0, lt=1 << 62)]


@dataclass(frozen=True)
class Table:
    """Where an array lies; parts: (offset, bytes) in the file."""

    dtype: Stored
    shape: tuple[Extent, ...]
    compressed: bool
    parts: tuple[tuple[Offset, Offset], ...]

    @property
    def part_bytes(self) -> int:
        """Of the array, or of one index of its first axis if it is compressed."""
        return math.prod(self.shape[1:] if self.compressed else self.shape) * np.dtype(self.dtype).itemsize

    def fits(self, file_bytes: int) -> bool:
        """Whether every part is in the file, and as long as its array makes it."""
        if len(self.parts) != (self.shape[0] if self.compressed and self.shape else 1):
            return False
        lengths, expected = [length for _, length in self.parts], self.part_bytes
        inside = all(offset + length <= file_bytes for offset, length in self.parts)
        if self.compressed:
            return inside and all(length > CHECKSUM_BYTES and expected <= DEFLATE_RATIO * length for length in lengths)
        return inside and lengths == [expected + CHECKSUM_BYTES]


INDEX: TypeAdapter[dict[str, Table]] = TypeAdapter(dict[str, Table])


class Tables:
    """An open file whose seal and index are checked; Refused for what is wrong with it, here and on every access.

    what: such as "a trace"; sealed: whether a file without an index ends in a SHA-256 too.
    """

    def __init__(self, path: Path, what: str, sealed: bool = False):
        try:
            self._file = open_file(path)
        except OSError as error:
            raise Refused("file", what, error.strerror, "check the path") from None
        try:
            self._bytes = os.fstat(self._file.fileno()).st_size
            self._tables = self._index(sealed)
            if wrong := [name for name, table in self._tables.items() if not table.fits(self._bytes)]:
                raise Refused(f"/{wrong[0]}", "parts in the file, as long as the array makes them", self._tables[wrong[0]])
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Tables:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def expect(self, names: Collection[str]) -> None:
        """Refused unless the file holds exactly these arrays."""
        if wrong := self._tables.keys() ^ set(names):
            missing = sorted(wrong & set(names))
            raise Refused("/", f"the arrays {missing}", sorted(wrong - set(missing)))

    def expect_index(self) -> None:
        """Refused for a file without an index and a seal behind it: what newer versions wrote has lost its end."""
        if not self._is_indexed:
            raise Refused("the file's end", "an index and a SHA-256", "neither")

    def expect_form(self, name: str, dtype: str, shape: tuple[int, ...], compressed: bool) -> None:
        """Refused unless the array is exactly so."""
        table = self._table(name)
        found = (table.dtype, table.shape, table.compressed)
        if found != (dtype, shape, compressed):
            raise Refused(f"/{name} dtype, shape, compressed", (dtype, shape, compressed), found)

    def take(self, name: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        """An array that is not compressed, once it has this form and its checksum."""
        self.expect_form(name, dtype, shape, compressed=False)
        return self._take(name)

    def take_bytes(self, name: str, limit_bytes: int) -> bytes:
        """An array of unsigned bytes of any length up to a limit."""
        table = self._table(name)
        self.expect_form(name, "|u1", table.shape[:1], compressed=False)
        if table.part_bytes > limit_bytes:
            raise Refused(f"/{name}", f"at most {limit_bytes} bytes", table.part_bytes)
        return self._take(name).tobytes()

    def take_part(self, name: str, index: int) -> np.ndarray:
        """One index of the first axis of a compressed array whose form is checked."""
        table = self._table(name)
        dtype, inflate = np.dtype(table.dtype), zlib.decompressobj()
        try:
            content = inflate.decompress(self._read(*table.parts[index])[:-CHECKSUM_BYTES], table.part_bytes + 1)
        except zlib.error as error:
            raise Refused(f"/{name}[{index}]", f"{table.part_bytes} bytes, compressed", str(error)) from None
        if len(content) != table.part_bytes or not inflate.eof:
            raise Refused(f"/{name}[{index}]", f"{table.part_bytes} bytes, compressed", len(content))
        planes = np.frombuffer(content, np.uint8).reshape(dtype.itemsize, -1)
        return np.ascontiguousarray(planes.T).view(dtype).reshape(table.shape[1:])

    def _take(self, name: str) -> np.ndarray:
        table = self._table(name)
        stored = bytearray(self._read(*table.parts[0]))
        content, checksum = memoryview(stored)[:-CHECKSUM_BYTES], stored[-CHECKSUM_BYTES:]
        if int.from_bytes(checksum, "little") != fletcher32(content):
            raise Refused(f"/{name}", "the fletcher32 checksum behind it", bytes(checksum).hex())
        return np.frombuffer(content, table.dtype).reshape(table.shape)

    def _table(self, name: str) -> Table:
        if name not in self._tables:
            raise Refused("/", f"an array named {name}", sorted(self._tables))
        return self._tables[name]

    def _read(self, offset: int, length: int) -> bytes:
        self._file.seek(offset)  # each time: the process that HDF5 runs in has moved it
        content = self._file.read(length)
        while len(content) < length and (more := self._file.read(length - len(content))):
            content += more
        if len(content) != length:
            raise Refused("file", f"{length} bytes at {offset}", len(content))
        return content

    def _index(self, sealed: bool) -> dict[str, Table]:
        """From the file's end, or from HDF5 in a process of its own; Refused where the seal is not that of the content."""
        end = self._bytes - SEAL_BYTES - FOOTER.size
        length, magic = FOOTER.unpack(self._read(end, FOOTER.size)) if end > 0 else (0, b"")
        self._is_indexed = magic == MAGIC
        if not self._is_indexed:
            if sealed:
                self._check_seal()
            return self._ask_hdf5()
        self._check_seal()
        if length > min(INDEX_BYTES, end):
            raise Refused("the index", f"at most {min(INDEX_BYTES, end)} bytes", length)
        return parse_index(self._read(end - length, length))

    def _check_seal(self) -> None:
        content, left = hashlib.sha256(), max(self._bytes - SEAL_BYTES, 0)
        self._file.seek(0)
        while left and (block := self._file.read(min(left, 1 << 20))):
            content.update(block)
            left -= len(block)
        seal = self._file.read(SEAL_BYTES)
        if seal != content.digest():
            raise Refused("the last 32 bytes", "the SHA-256 of all before them", seal.hex())

    def _ask_hdf5(self) -> dict[str, Table]:
        self._file.seek(0)
        command = [sys.executable, "-P", str(Path(__file__).with_name("hdf5_index.py"))]
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}  # each thread would take memory, which is limited
        try:
            done = subprocess.run(command, stdin=self._file, capture_output=True, timeout=CHILD_SECONDS, env=environment)
        except subprocess.TimeoutExpired:
            raise Refused("HDF5", f"an answer within {CHILD_SECONDS} s", "none") from None
        if done.returncode:
            ended = signal.Signals(-done.returncode).name if done.returncode < 0 else done.stderr.decode(errors="replace").strip()[-200:]
            raise Refused("HDF5", "a whole, undamaged HDF5 file", f"a crash of its own process ({ended})")
        answer: dict[str, Any] = json.loads(done.stdout)
        if "refused" in answer:
            raise Refused(*answer["refused"])
        return parse_index(json.dumps(answer["index"]).encode())


def parse_index(stream: bytes) -> dict[str, Table]:
    try:
        return INDEX.validate_json(stream, strict=True)
    except ValueError as error:
        raise Refused("the index", "where every array lies", " ".join(str(error).split())) from None


def fletcher32(content: bytes | memoryview) -> int:
    """HDF5's checksum: sums, and sums of sums, of 16-bit words with their high byte first, in ones' complement."""
    words = np.frombuffer(bytes(content) + bytes(len(content) % 2) if len(content) % 2 else content, ">u2")
    low = high = 0
    for start in range(0, len(words), 1 << 16):
        block = words[start : start + (1 << 16)].astype(np.int64)
        high += low * len(block) + int((block * np.arange(len(block), 0, -1)).sum())
        low += int(block.sum())
    return _fold(high) << 16 | _fold(low)


def _fold(total: int) -> int:
    """Modulo 65535; a sum of anything but zeros never comes out as 0."""
    return total % 0xFFFF or (0xFFFF if total else 0)
