"""The trace file: what one interpreter published for some images, as integers or as digests alone. docs/spec/traces.md is the long form.

A sealed HDF5 file (eamsim/files/hdf5.py): what HDF5 wrote, where its arrays lie, and the SHA-256 of all that.

    /manifest      canonical JSON: {"format": "eam-trace", "version": 3, "program", "interpreter", "images", "taps", ...}
    /digests       uint8 [images, taps, 32]: SHA-256, in lanes, of the integers of one tap for one image in the tap's packing
    /image         uint8 [images, height, width, 3]: what went in
    /0001.input    [images, ...]: a tap that is kept, its place in the order of execution and its name, in the narrowest integers

The packing of a tap is the first of `eamsim.files.packing` that holds what no image can exceed: a digest of 4-bit codes is of nibbles.
SHA-256 in lanes: the packed bytes, filled up with zeros, as words of 32 bits dealt to LANES messages in turn; the digest is that of the
messages' digests, one after the other. Version 1 had the SHA-256 of the packed bytes themselves, which no processor here computes in the
time of a forward pass; versions 1 and 2 had no index behind what HDF5 wrote. Such traces are read, and compared as they are.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import TypeAdapter

from eamsim import artifact
from eamsim.arguments import expect_array, expect_images, expect_integer, expect_names, expect_path, expect_type
from eamsim.artifact import PathLike
from eamsim.constraints import Verified
from eamsim.errors import BadFile
from eamsim.files.container import Refused, canonical, parse_json
from eamsim.files.hdf5 import Tables
from eamsim.files.hdf5_write import Writer, writing
from eamsim.files.limits import TAP_BITS
from eamsim.files.packing import BITS, limits, pack
from eamsim.program import Value
from eamsim.tensors import Tap, taps

FORMAT, VERSION, VERSIONS = "eam-trace", 3, (1, 2, 3)
LANED, INDEXED = 2, 3
"""The first versions with digests in lanes, and with an index."""
MANIFEST, DIGESTS, IMAGE = "manifest", "digests", "image"
DIGEST_BYTES = 32
LANES = 16
HASH_THREADS = os.cpu_count() or 1
RECORD_AGAIN = "copy the file again or record it again with `eamsim trace record`"

Interpreter = Literal["engine", "golden"]


class TraceError(BadFile):
    """A trace that cannot be read or written; the message says where, what was expected and what came."""


@dataclass(frozen=True)
class TapEntry:
    """A tap in the manifest; stored: whether the file holds its integers."""

    name: str
    shape: tuple[int, ...]
    bits: int
    signed: bool
    low: int
    high: int
    packing: str
    stored: bool


@dataclass(frozen=True)
class TraceHeader:
    """The manifest: what ran (program_sha256 is `artifact.program_sha256`), on which images (names for people), and the taps in order.

    reason: why a committed trace was recorded, or empty.
    """

    format: str
    version: int
    program: str
    program_sha256: str
    interpreter: str
    versions: dict[str, str]
    reason: str
    images: tuple[str, ...]
    image_shape: tuple[int, int, int]
    taps: tuple[TapEntry, ...]

    @property
    def digest_version(self) -> int:
        """The first version that has such digests: only those of one version can be compared."""
        return min(self.version, LANED)


HEADER = TypeAdapter(TraceHeader)


def digest(integers: np.ndarray, packing: str, version: int = VERSION) -> bytes:
    """Of the packed integers, as that version of the format has it; ValueError where one does not fit, or it might pass wrapped."""
    low, high = limits(packing)
    if integers.size and not low <= integers.min() <= integers.max() <= high:
        raise ValueError(f"{integers.min()}..{integers.max()} does not fit {packing}")
    packed = pack(integers, packing)
    return hashlib.sha256(packed if version == 1 else lanes_of(packed)).digest()


def lanes_of(packed: bytes) -> bytes:
    """The digests of the lanes, one after the other. A message has the bytes of its words from the highest down, as SHA-256 reads them."""
    words = np.frombuffer(packed + bytes(-len(packed) % (4 * LANES)), "<u4").reshape(-1, LANES)
    return b"".join(hashlib.sha256(lane).digest() for lane in np.ascontiguousarray(words.T, ">u4"))


class Recorder:
    """An unfinished trace: `put` every tap of every image, in any order."""

    def __init__(self, file: Writer, program: Verified, names: Sequence[str], images: Sequence[str], stored: bool):
        declared = taps(program)
        expect_names("taps", names, declared)
        self.entries = {name: entry_of(declared[name], stored) for name in names}
        self.digests = np.zeros((len(images), len(names), DIGEST_BYTES), np.uint8)
        self._pool = ThreadPoolExecutor(HASH_THREADS)
        self._file, self._places = file, {name: index for index, name in enumerate(names)}
        self._image = program.image.shape
        file.declare(IMAGE, (len(images), *program.image.shape), np.dtype(np.uint8))
        for index, (name, entry) in enumerate(self.entries.items()):
            if stored:
                file.declare(dataset_name(index, name), (len(images), *entry.shape), dtype_of(entry.packing))

    def put_images(self, first: int, images: np.ndarray) -> None:
        """uint8 [batch, height, width, 3], the first of them number `first`; UserError for anything else, and for more than announced."""
        expect_images(images, self._image)
        self._expect_room(first, len(images))
        self._file.put_parts(IMAGE, first, images)

    def put(self, first: int, integers: dict[str, np.ndarray]) -> None:
        """Integers [batch, ...] by tap, of images from number `first` on; UserError as `put_images`.

        TraceError where one exceeds what is proven of its tap: its interpreter is wrong.
        """
        expect_type("integers", integers, dict)
        expect_names("integers", list(integers), self.entries)
        for name, batch in integers.items():
            expect_array(name, batch, "integer", ("batch", *self.entries[name].shape))
            self._expect_room(first, len(batch))
        jobs = [(name, image, part) for name, batch in integers.items() for image, part in enumerate(batch)]
        for (name, image, _), found in zip(jobs, self._pool.map(lambda job: self._digest(job[0], job[2]), jobs), strict=True):
            self.digests[first + image, self._places[name]] = np.frombuffer(found, np.uint8)
        for name, batch in integers.items():
            if self.entries[name].stored:
                self._file.put_parts(dataset_name(self._places[name], name), first, batch)

    def put_lanes(self, first: int, lanes: np.ndarray, extremes: np.ndarray) -> None:
        """All taps in their order, where the interpreter has hashed them: lanes uint8 [batch, taps, LANES * 32], as `lanes_of`.

        extremes: int64 [taps, 2], the least and the greatest integer of each tap. UserError and TraceError as `put`.
        """
        expect_array("lanes", lanes, "uint8", ("batch", len(self.entries), LANES * DIGEST_BYTES))
        expect_array("extremes", extremes, "int64", (len(self.entries), 2))
        self._expect_room(first, len(lanes))
        for entry, (low, high) in zip(self.entries.values(), extremes.tolist(), strict=True):
            if not entry.low <= low <= high <= entry.high:
                raise beyond(entry, f"{low}..{high}")
        found = b"".join(hashlib.sha256(row).digest() for rows in lanes for row in rows)
        self.digests[first : first + len(lanes)] = np.frombuffer(found, np.uint8).reshape(len(lanes), -1, DIGEST_BYTES)

    def _expect_room(self, first: int, images: int) -> None:
        expect_integer("first", first, 0, len(self.digests) - images)

    def _digest(self, name: str, integers: np.ndarray) -> bytes:
        entry = self.entries[name]
        try:
            return digest(integers, entry.packing)
        except ValueError as error:
            raise beyond(entry, str(error)) from None

    def check_finished(self) -> None:
        """TraceError names the first tap and image that was never put: its digest would be of nothing."""
        images, places = np.nonzero(~self.digests.any(axis=2))
        if len(images):
            raise TraceError(f"{list(self.entries)[places[0]]} of image {images[0]}: expected integers or their digest, got none")

    def close(self) -> None:
        self._pool.shutdown()


def beyond(entry: TapEntry, found: str) -> TraceError:
    return TraceError(f"{entry.name}: expected {entry.low}..{entry.high} as proven, got {found}; the interpreter that ran is wrong")


def entry_of(tap: Tap, stored: bool) -> TapEntry:
    value = tap.value
    return TapEntry(value.name, value.shape, value.bits, value.signed, *tap.bound, tap.packing, stored)


def dataset_name(index: int, tap: str) -> str:
    """The place in the order of execution, counted from 1, and the name without what HDF5 takes for a path."""
    return f"{index + 1:04}.{tap.replace('/', '_')}"


def dtype_of(packing: str) -> np.dtype:
    """The stored integers: packings below a byte take one."""
    return np.dtype(f"<{packing[0]}{max(BITS[packing] // 8, 1)}")


@contextlib.contextmanager
def recording(
    path: PathLike,
    program: Verified,
    names: Sequence[str],
    images: Sequence[str],
    interpreter: Interpreter,
    stored: bool,
    versions: dict[str, str],
    reason: str = "",
) -> Iterator[Recorder]:
    """A trace that replaces the file at `path` in one step once all is put; names: the taps, in program order.

    TraceError where something was not put, or there is no tap or image to put.
    """
    expect_path("path", path)
    path = Path(path)
    if not names or not images:
        raise TraceError(f"{path}: expected at least one tap and one image to record, got {len(names)} and {len(images)}")
    try:
        with writing(path) as file:
            recorder = Recorder(file, program, names, images, stored)
            try:
                yield recorder
            finally:
                recorder.close()
            recorder.check_finished()
            height, width, channels = program.image.shape
            entries, shape = tuple(recorder.entries.values()), (height, width, channels)
            ran = program.name, artifact.program_sha256(program)
            header = TraceHeader(FORMAT, VERSION, *ran, interpreter, versions, reason, tuple(images), shape, entries)
            file.put(MANIFEST, np.frombuffer(canonical(asdict(header)), np.uint8))
            file.put(DIGESTS, recorder.digests.reshape(-1))
    except OSError as error:
        raise TraceError(f"{path}: expected a writable file in an existing folder, got '{error.strerror or error}'") from None


class Trace:
    """A checked trace, open for reading."""

    def __init__(self, path: Path, file: Tables, header: TraceHeader, digests: np.ndarray):
        self.path, self.header, self.digests, self._file = path, header, digests, file
        self.entries = {entry.name: (index, entry) for index, entry in enumerate(header.taps)}

    def image(self, image: int) -> np.ndarray:
        """uint8 [height, width, 3]."""
        return self._part(IMAGE, image)

    def digest(self, name: str, image: int) -> str:
        return self.digests[image, self.entries[name][0]].tobytes().hex()

    def integers(self, name: str, image: int) -> np.ndarray | None:
        """int64 of the tap's shape, once they have their digest; None where the trace holds digests alone."""
        index, entry = self.entries[name]
        if not entry.stored:
            return None
        found = self._part(dataset_name(index, name), image).astype(np.int64)
        if digest(found, entry.packing, self.header.version).hex() != self.digest(name, image):
            raise TraceError(f"{self.path}: {name} of image {image}: expected the recorded SHA-256; {RECORD_AGAIN}")
        if not entry.low <= found.min() <= found.max() <= entry.high:
            raise TraceError(f"{self.path}: {name} of image {image}: expected {entry.low}..{entry.high}, got others; {RECORD_AGAIN}")
        return found

    def _part(self, dataset: str, index: int) -> np.ndarray:
        try:
            return self._file.take_part(dataset, index)
        except Refused as error:
            raise TraceError(f"{self.path}: {error}; {RECORD_AGAIN}") from None


@contextlib.contextmanager
def reading(path: PathLike) -> Iterator[Trace]:
    """The trace at `path`; TraceError for every damaged or foreign file: a single flipped bit is found here."""
    path = Path(path)
    with contextlib.ExitStack() as stack:
        try:
            trace = checked(path, stack.enter_context(Tables(path, "a trace", sealed=True)))
        except Refused as error:
            raise TraceError(f"{path}: {error}; {error.advice or RECORD_AGAIN}") from None
        yield trace


def checked(path: Path, file: Tables) -> Trace:
    header = read_header(file.take_bytes(MANIFEST, 16 << 20))
    names = {IMAGE: ("u8", header.image_shape)}
    names |= {dataset_name(i, tap.name): (tap.packing, tap.shape) for i, tap in enumerate(header.taps) if tap.stored}
    file.expect([MANIFEST, DIGESTS, *names])
    if header.version >= INDEXED:
        file.expect_index()
    for name, (packing, shape) in names.items():
        file.expect_form(name, dtype_of(packing).str, (len(header.images), *shape), compressed=True)
    size = len(header.images) * len(header.taps) * DIGEST_BYTES
    digests = file.take(DIGESTS, "|u1", (size,))
    return Trace(path, file, header, digests.reshape(len(header.images), len(header.taps), DIGEST_BYTES))


def declares(tap: TapEntry) -> bool:
    """Whether the bound of a tap is one, and its width and its packing hold it."""
    if not 1 <= tap.bits <= 64:
        return False
    value, (least, greatest) = Value(tap.name, tap.shape, tap.bits, tap.signed), limits(tap.packing)
    return max(value.low, least) <= tap.low <= tap.high <= min(value.high, greatest)


def read_header(stream: bytes) -> TraceHeader:
    tree = parse_json(stream, "/manifest")
    if tree.get("format") != FORMAT or tree.get("version") not in VERSIONS:
        raise Refused(
            "/manifest",
            f"{FORMAT} {' or '.join(map(str, VERSIONS))}",
            (tree.get("format"), tree.get("version")),
            "use the eamsim that wrote it",
        )
    try:
        header = HEADER.validate_python(tree)
    except ValueError as error:
        raise Refused("/manifest", "the fields of a trace", " ".join(str(error).split())) from None
    names = {tap.name for tap in header.taps}
    if not header.images or not names or len(names) != len(header.taps):
        found = f"{len(header.images)} images and {len(header.taps)} taps of {len(names)} names"
        raise Refused("/manifest", "at least one image, and taps of as many names", found)
    for tap in header.taps:
        sized = len(tap.shape) >= 1 and all(extent > 0 for extent in tap.shape)
        if tap.packing not in BITS or not sized or Value(tap.name, tap.shape, tap.bits).size * BITS[tap.packing] > TAP_BITS:
            raise Refused(f"/manifest {tap.name}", "a packing and positive extents", (tap.packing, tap.shape))
        if not declares(tap):
            raise Refused(f"/manifest {tap.name}", "low and high within the width and the packing", tap)
    return header
