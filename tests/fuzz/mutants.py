"""Reads mutants of the three kinds of file and says what came of each; a process of its own, which a mutant may end.

    PYTHONPATH=tests:tests/support python tests/fuzz/mutants.py KIND FIRST COUNT FOLDER

A mutant is its kind and its number, from which everything follows. Prints `NUMBER OUTCOME`, the number before it reads, so that a
signal can be told from the last line. Outcomes: `refused`, `crashed its own process` (HDF5, in that of
eamsim/files/hdf5_index.py, so that it is refused), `equal`, `changed` (another content, though a checksum or a seal was not
renewed), `forged` (another content, where it was), or the foreign exception; `slow` after 5 seconds. Last: the peak memory in MiB.
"""

import hashlib
import json
import re
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from eam_files import parts, put_together, write_version_1
from fuzz import hdf5_checksums
from programs import Shape, random_images, random_program

from eamsim import artifact, golden
from eamsim.errors import BadFile
from eamsim.files import hdf5
from eamsim.files.container import canonical
from eamsim.tensors import taps
from eamsim.traces.file import reading, recording

SLOW_SECONDS = 5
PROGRAM = random_program(Shape(1, freeze="scattered", fitted=True))
OLD_PROGRAM = random_program(Shape(1, freeze="scattered"))  # what version 1 can hold
STATISTICS_IMAGES = 40
INTERESTING = (0, 1, 0x7F, 0x80, 0xFE, 0xFF)


def write_eam(path: Path) -> None:
    artifact.write(path, PROGRAM, {"seed": 1})


def read_eam(path: Path) -> object:
    program, provenance = artifact.read(path)
    return artifact.program_sha256(program), provenance


def write_trace(path: Path) -> None:
    """Six taps: an HDF5 file with more links keeps them in trees, which `hdf5_checksums` does not know."""
    image = random_images(PROGRAM, 1, 0)[0]
    found: dict[str, np.ndarray] = {}
    golden.run(PROGRAM, image, found)
    names = [name for name in taps(PROGRAM) if name != "image"][:4]
    with recording(path, PROGRAM, names, ["a"], "golden", True, {"eamsim": "0"}) as recorder:
        recorder.put_images(0, image[None])
        recorder.put(0, {name: found[name][None] for name in names})


def read_trace(path: Path) -> object:
    with reading(path) as trace:
        integers = {name: trace.integers(name, 0) for name in trace.entries}
        return (
            trace.header,
            trace.image(0).tobytes(),
            {name: None if array is None else array.tobytes() for name, array in integers.items()},
        )


def write_statistics(path: Path) -> None:
    from reference.attention import statistics_file

    rng, shape = np.random.default_rng(0), (2, 3, 3)
    header = statistics_file.StatisticsHeader((shape,), (2,), (), STATISTICS_IMAGES, ("float",), False, {"model": "m"}, "eamsim entropy m")
    arrays = {name: rng.random(shape).astype(np.float32) / 5 for name in header.arrays(0)}
    statistics_file.write_statistics(path, header, [arrays])


def read_statistics(path: Path) -> object:
    from reference.attention import statistics_file

    found = statistics_file.read_statistics(path)
    arrays = (found.entropy, found.mean, found.variance)
    return found.header, [array.tobytes() for by_source in arrays for layers in by_source.values() for array in layers]


def downgrade(path: Path, version: int) -> None:
    """To a version without an index; HDF5 cuts off what lies behind its own bytes."""
    with h5py.File(path, "r+", libver=("v110", "v110")) as file:
        tree = json.loads(file["manifest"][()].tobytes()) | {"version": version}  # pyright: ignore
        del file["manifest"]
        stream = np.frombuffer(canonical(tree), np.uint8)
        file.create_dataset("manifest", data=stream, chunks=stream.shape, fletcher32=True, track_times=False)


def write_old_eam(path: Path) -> None:
    write_version_1(path, OLD_PROGRAM, {"seed": 1})


def write_old_trace(path: Path) -> None:
    write_trace(path)
    downgrade(path, 2)
    content = path.read_bytes()
    path.write_bytes(content + hashlib.sha256(content).digest())


def write_old_statistics(path: Path) -> None:
    write_statistics(path)
    downgrade(path, 3)


def renew_eam(path: Path) -> None:
    """SHA-256 of the JSON and, in it, of the data."""
    head, tensors = parts(path)
    data = b"\0" + b"".join(tensors[name].tobytes() for name in sorted(tensors))
    put_together(path, head | {"data_bytes": len(data), "data_sha256": hashlib.sha256(data).hexdigest()}, tensors)


def renew_parts(path: Path) -> None:
    """The fletcher32 behind every array that the index finds, and the seal; of a compressed part zlib has a checksum that stays."""
    content = bytearray(path.read_bytes())
    end = len(content) - hdf5.SEAL_BYTES - hdf5.FOOTER.size
    length, _ = hdf5.FOOTER.unpack_from(content, end)
    for table in hdf5.parse_index(bytes(content[end - length : end])).values():
        for offset, size in () if table.compressed else table.parts:
            checksum = hdf5.fletcher32(bytes(content[offset : offset + size - hdf5.CHECKSUM_BYTES]))
            struct.pack_into("<I", content, offset + size - hdf5.CHECKSUM_BYTES, checksum)
    path.write_bytes(content)
    renew_seal(path)


def renew_seal(path: Path) -> None:
    content = path.read_bytes()[: -hdf5.SEAL_BYTES]
    path.write_bytes(content + hashlib.sha256(content).digest())


def renew_hdf5(path: Path) -> None:
    content = bytearray(path.read_bytes())
    hdf5_checksums.renew(content)
    path.write_bytes(content)


def renew_old_trace(path: Path) -> None:
    renew_hdf5(path)
    renew_seal(path)


@dataclass(frozen=True)
class Kind:
    """How a file is written, read, and given the checksums of what it holds."""

    write: Callable[[Path], None]
    read: Callable[[Path], object]
    renew: Callable[[Path], None]
    body: Callable[[bytes], int] = lambda content: 0
    """Where the arrays begin, half of the mutants differ behind it alone: or hardly one would have a whole header."""


KINDS = {
    "eam": Kind(write_eam, read_eam, renew_eam, lambda content: 8 + int.from_bytes(content[:8], "little")),
    "trace": Kind(write_trace, read_trace, renew_parts),
    "statistics": Kind(write_statistics, read_statistics, renew_parts),
    "old-eam": Kind(write_old_eam, read_eam, renew_hdf5),
    "old-trace": Kind(write_old_trace, read_trace, renew_old_trace),
    "old-statistics": Kind(write_old_statistics, read_statistics, renew_hdf5),
}


def mutate(content: bytes, body: int, rng: np.random.Generator) -> bytes:
    """A few bytes changed, near headers as often as anywhere; now and then cut off, cut out, doubled."""
    mutant, size, first = bytearray(content), len(content), body if rng.random() < 0.5 else 0
    headers = [at for at in range(size - 4) if content[at : at + 4] in (b"OHDR", b"FADB", b"FAHD", b"TREE")]
    for _ in range(int(rng.integers(1, 5))):
        at = int(rng.integers(first, size))
        if headers and rng.random() < 0.5:
            at = min(int(rng.choice(headers)) + int(rng.integers(4, 120)), size - 1)
        mutant[at] = int(rng.choice(INTERESTING)) if rng.random() < 0.5 else mutant[at] ^ 1 << int(rng.integers(8))
    start, length = int(rng.integers(first, size)), int(rng.integers(1, 64))
    match int(rng.integers(20)):
        case 0:
            del mutant[start:]
        case 1:
            del mutant[start : start + length]
        case 2:
            mutant[start:start] = mutant[start : start + length]
    return bytes(mutant)


def outcome(kind: Kind, content: bytes, expected: Any, path: Path, rng: np.random.Generator) -> str:
    path.write_bytes(mutate(content, kind.body(content), rng))
    renewed = rng.random() < 0.5
    if renewed:
        try:
            kind.renew(path)
        except Exception:  # too damaged to be forged
            renewed = False
    started = time.monotonic()
    try:
        found = kind.read(path)
    except BadFile as error:
        result = "crashed its own process" if "a crash of its own process" in str(error) else "refused"
        if "\n" in str(error):
            result = f"several lines: {error!r}"
    except Exception as error:
        result = f"{type(error).__name__}: {error}"
    else:
        result = "equal" if found == expected else "forged" if renewed else "changed"
    return "slow" if time.monotonic() - started > SLOW_SECONDS else result


def main(name: str, first: int, count: int, folder: Path) -> None:
    kind, path = KINDS[name], folder / f"{name}.mutant"
    kind.write(path)
    content, expected = path.read_bytes(), kind.read(path)
    for number in range(first, first + count):
        print(number, end=" ", flush=True)
        print(outcome(kind, content, expected, path, np.random.default_rng(number)), flush=True)
    status = Path("/proc/self/status").read_text()  # not ru_maxrss, which counts the process that started this one
    print(int(re.findall(r"VmHWM:\s*(\d+) kB", status)[0]) // 1024)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
