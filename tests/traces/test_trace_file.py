"""The trace file: what is put comes back, memory and files are guarded, no flipped bit passes.

EAMSIM_FLIPS sets the number of bits flipped, one at a time (1,000 once by hand; fewer in every run).
"""

import dataclasses
import hashlib
import json
import os
import struct
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from programs import Shape, random_images, random_program

from eamsim import artifact, golden
from eamsim.artifact import ArtifactError
from eamsim.files import hdf5_write
from eamsim.files.container import Refused, canonical
from eamsim.files.hdf5_index import index
from eamsim.files.packing import pack
from eamsim.tensors import taps
from eamsim.traces import file as trace_file
from eamsim.traces.file import TraceError, reading, recording

FLIPS = int(os.environ.get("EAMSIM_FLIPS", "60"))
PROGRAM = random_program(Shape(5, freeze="scattered"))
IMAGES = random_images(PROGRAM, 3, 0)
NAMES = [name for name in taps(PROGRAM) if name != "image"]


def golden_taps(image: np.ndarray) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    golden.run(PROGRAM, image, found)
    return found


def write(path: Path, stored: bool = True) -> None:
    with recording(path, PROGRAM, NAMES, ["a", "b", "c"], "golden", stored, {"eamsim": "0"}, "because") as recorder:
        recorder.put_images(0, IMAGES)
        for number, image in enumerate(IMAGES):
            recorder.put(number, {name: integers[None] for name, integers in golden_taps(image).items()})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write(tmp_path / "t.h5")
    return tmp_path / "t.h5"


def seal(path: Path) -> None:
    """Renew the last 32 bytes: damage that a forger would make, not an accident."""
    content = path.read_bytes()[: -trace_file.DIGEST_BYTES]
    path.write_bytes(content + hashlib.sha256(content).digest())


def everything(path: Path) -> list:
    with reading(path) as trace:
        return [trace.integers(name, image).tolist() for name in NAMES for image in range(3)]  # pyright: ignore


def test_every_integer_comes_back(path: Path):
    with reading(path) as trace:
        assert trace.header.reason == "because"
        assert trace.header.program_sha256 == artifact.program_sha256(PROGRAM)
        for number, image in enumerate(IMAGES):
            np.testing.assert_array_equal(trace.image(number), image)
            for name, integers in golden_taps(image).items():
                np.testing.assert_array_equal(trace.integers(name, number), integers)
                packed = pack(integers, trace.entries[name][1].packing)
                words = np.frombuffer(packed + bytes(-len(packed) % 64), "<u4")
                lanes = [hashlib.sha256(b"".join(int(word).to_bytes(4) for word in words[lane::16])).digest() for lane in range(16)]
                assert trace.digest(name, number) == hashlib.sha256(b"".join(lanes)).hexdigest()


def test_digests_alone_are_the_same_digests(path: Path, tmp_path: Path):
    write(tmp_path / "d.h5", stored=False)
    with reading(path) as full, reading(tmp_path / "d.h5") as digests:
        np.testing.assert_array_equal(full.digests, digests.digests)
        assert digests.integers("head", 0) is None
        np.testing.assert_array_equal(digests.image(2), IMAGES[2])


def test_equal_traces_are_equal_bytes(path: Path, tmp_path: Path):
    write(tmp_path / "again.h5")
    assert (tmp_path / "again.h5").read_bytes() == path.read_bytes()


def test_other_software_reads_the_integers(path: Path):
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["0001.input"][1], golden_taps(IMAGES[1])["input"])  # pyright: ignore


def test_an_interpreter_that_leaves_the_proven_range_is_not_recorded(tmp_path: Path):
    wrong = golden_taps(IMAGES[0])
    wrong["input"] = wrong["input"] + 256  # equal once wrapped to a byte
    with (
        pytest.raises(TraceError, match=r"^input: expected 0\.\.255 as proven, got \d+\.\.\d+ does not fit u8; the interpreter"),
        recording(tmp_path / "t.h5", PROGRAM, NAMES, ["a"], "golden", True, {}) as recorder,
    ):
        recorder.put(0, {name: integers[None] for name, integers in wrong.items()})
    assert list(tmp_path.iterdir()) == []


def test_a_trace_that_lacks_a_tap_of_an_image_is_not_kept(tmp_path: Path):
    found = {name: integers[None] for name, integers in golden_taps(IMAGES[0]).items()}
    with (
        pytest.raises(TraceError, match=f"^{NAMES[-1]} of image 1: expected integers or their digest, got none"),
        recording(tmp_path / "t.h5", PROGRAM, NAMES, ["a", "b"], "golden", True, {}) as recorder,
    ):
        recorder.put(0, {name: np.repeat(integers, 2 if name != NAMES[-1] else 1, 0) for name, integers in found.items()})
    for names, images in (([], ["a"]), (NAMES, [])):
        with (
            pytest.raises(TraceError, match="at least one tap and one image"),
            recording(tmp_path / "t.h5", PROGRAM, names, images, "golden", True, {}),
        ):
            pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tree: tree | {"images": []}, "0 images"),
        (lambda tree: tree | {"taps": []}, "0 taps of 0 names"),
        (lambda tree: tree | {"taps": [*tree["taps"], tree["taps"][0]]}, "taps of"),
    ],
)
def test_a_trace_of_nothing_or_of_one_name_twice_is_refused(path: Path, change, message: str):
    with h5py.File(path) as file:
        tree = json.loads(file["manifest"][:].tobytes())  # pyright: ignore
    with pytest.raises(Refused, match=message):
        trace_file.read_header(canonical(change(tree)))


def test_an_interpreter_that_hashes_beyond_the_proven_range_is_not_recorded(tmp_path: Path):
    bounds = [taps(PROGRAM)[name].bound for name in NAMES]
    lanes, last = np.zeros((1, len(NAMES), trace_file.LANES * trace_file.DIGEST_BYTES), np.uint8), bounds[-1][1]
    with recording(tmp_path / "t.h5", PROGRAM, NAMES, ["a"], "engine", False, {}) as recorder:
        recorder.put_lanes(0, lanes, np.array(bounds))
    bounds[-1] = (0, last + 1)
    with (
        pytest.raises(TraceError, match=rf"^{NAMES[-1]}: expected -?\d+\.\.{last} as proven, got 0\.\.{last + 1}; the interpreter"),
        recording(tmp_path / "u.h5", PROGRAM, NAMES, ["a"], "engine", False, {}) as recorder,
    ):
        recorder.put_lanes(0, lanes, np.array(bounds))
    assert [path.name for path in tmp_path.iterdir()] == ["t.h5"]


def test_no_flipped_bit_of_a_trace_passes(path: Path):
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for bit in rng.choice(len(content) * 8, FLIPS, replace=False):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(TraceError), reading(path):
            pass


@pytest.mark.slow
def test_behind_a_renewed_seal_no_flipped_bit_changes_an_integer(path: Path):
    content, expected = path.read_bytes(), everything(path)
    rng = np.random.default_rng(1)
    refused = 0
    for bit in rng.choice((len(content) - 32) * 8, FLIPS, replace=False):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        seal(path)
        try:
            assert everything(path) == expected
        except TraceError as error:
            refused += 1
            assert "\n" not in str(error)  # noqa: PT017
    assert refused


def test_no_flipped_bit_of_a_program_passes(tmp_path: Path):
    path = tmp_path / "p.eam"
    artifact.write(path, PROGRAM, {"seed": 1})
    content = path.read_bytes()
    rng = np.random.default_rng(2)
    for bit in rng.choice(len(content) * 8, FLIPS, replace=False):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(ArtifactError):
            artifact.read(path)


def edit_manifest(file, edit) -> None:
    tree = json.loads(file["manifest"][()].tobytes())
    edit(tree)
    del file["manifest"]
    stream = np.frombuffer(canonical(tree), np.uint8)
    file.create_dataset("manifest", data=stream, chunks=stream.shape, fletcher32=True)


def forge(path: Path, change) -> None:
    """Change the HDF5 part of a trace and give it the index and the seal of what it is then."""
    with h5py.File(path, "r+", libver=("v110", "v110")) as file:
        change(file)
        found = canonical(index(file))
    with path.open("r+b", buffering=0) as stream:
        stream.seek(0, os.SEEK_END)
        hdf5_write.seal(stream, found)


def test_a_stream_that_inflates_without_end_is_refused(path: Path):
    bomb = zlib.compress(bytes(1 << 24)) + struct.pack("<I", 0)
    forge(path, lambda file: file["0001.input"].id.write_direct_chunk((0,) * 4, bomb))
    with reading(path) as trace, pytest.raises(TraceError, match=r"/0001.input\[0\]: expected 48 bytes, compressed, got 49"):
        trace.integers("input", 0)


CONTRADICTIONS = [{"low": -1}, {"high": 256}, {"high": -1}, {"bits": 7}, {"bits": 0}, {"bits": 1 << 60}, {"signed": True}]


@pytest.mark.slow
@pytest.mark.parametrize("change", CONTRADICTIONS)
def test_a_header_that_contradicts_itself_is_refused(path: Path, change: dict):
    forge(path, lambda file: edit_manifest(file, lambda tree: tree["taps"][0].update(change)))
    with pytest.raises(TraceError, match="/manifest input: expected low and high within the width and the packing"), reading(path):
        pass


def test_integers_outside_the_bound_in_the_header_are_refused(path: Path):
    forge(path, lambda file: edit_manifest(file, lambda tree: tree["taps"][0].update(high=0)))
    with reading(path) as trace, pytest.raises(TraceError, match=r"input of image 0: expected 0\.\.0, got others"):
        trace.integers("input", 0)


@pytest.mark.parametrize(("version", "expected"), [(1, 1), (2, 2), (3, 2)])
def test_digests_in_lanes_can_be_compared_whatever_the_version(path: Path, version: int, expected: int):
    with reading(path) as trace:
        assert dataclasses.replace(trace.header, version=version).digest_version == expected


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: tree["images"].pop(),
        lambda tree: tree["image_shape"].reverse(),
        lambda tree: tree["taps"][0]["shape"].append(1),
    ],
)
def test_images_and_shapes_other_than_those_of_the_data_are_refused(path: Path, change):
    forge(path, lambda file: edit_manifest(file, change))
    with pytest.raises(TraceError, match="dtype, shape, compressed: expected"), reading(path):
        pass


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.create_dataset("more", data=1), "/more filters: expected"),
        (lambda file: file.pop("0002.patches"), r"/: expected the arrays \['0002.patches'\], got \[\]"),
        (lambda file: None, "the file's end: expected an index and a SHA-256, got 'neither'"),
        (lambda file: file["head" if "head" in file else "0001.input"].attrs.update(x=1), "attributes: expected"),
    ],
)
def test_another_tree_is_refused(path: Path, change, message: str):
    with h5py.File(path, "r+", libver=("v110", "v110")) as file:
        change(file)
    path.write_bytes(path.read_bytes() + bytes(32))
    seal(path)
    with pytest.raises(TraceError, match=message), reading(path):
        pass


def test_what_is_no_trace(tmp_path: Path):
    with (
        pytest.raises(TraceError, match=r"none\.h5: file: expected a trace, got 'No such file or directory'; check the path"),
        reading(tmp_path / "none.h5"),
    ):
        pass
    (tmp_path / "text.h5").write_text("no trace")
    with (
        pytest.raises(TraceError, match=r"text\.h5: the last 32 bytes: expected the SHA-256 of all before them"),
        reading(tmp_path / "text.h5"),
    ):
        pass
    artifact.write(tmp_path / "p.eam", PROGRAM, {})
    with pytest.raises(TraceError, match=r"p\.eam: the last 32 bytes"), reading(tmp_path / "p.eam"):
        pass
