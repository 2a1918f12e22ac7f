"""Sealed HDF5 files: any disk may fill up and any file may come in, and this process lives on."""

import hashlib
import os
import subprocess
import sys
from io import FileIO
from pathlib import Path
from typing import cast

import h5py
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from eamsim import artifact
from eamsim.errors import BadFile
from eamsim.files import hdf5
from eamsim.files.container import Refused
from eamsim.files.hdf5 import Tables, fletcher32
from eamsim.files.hdf5_write import Disk, writing
from eamsim.traces.file import reading

FULL_DISK = """
import resource, sys
from io import FileIO
from pathlib import Path
from typing import cast
import numpy as np
from eamsim.files.hdf5_write import writing
folder = Path(sys.argv[1])
def write():
    rng = np.random.default_rng(0)
    with writing(folder / "a.h5") as file:
        file.put("one", rng.integers(0, 99, 5000))
        for number in range(40):
            file.declare(f"{number}", (3, 500), np.dtype("<i4"))
            file.put_parts(f"{number}", 0, rng.integers(0, 9999, (3, 500)))
write()
size, failed = (folder / "a.h5").stat().st_size, 0
(folder / "a.h5").unlink()
for limit in [*range(0, size, size // 30), size - 1]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        write()
    except OSError as error:
        failed += error.strerror == "File too large"
    assert not list(folder.iterdir()), limit
print(failed, "of", len([*range(0, size, size // 30), size - 1]))
"""


def write(path):
    rng = np.random.default_rng(0)
    arrays = {
        "floats": rng.random((3, 5, 7)).astype("<f4"),
        "bytes": np.arange(11, dtype=np.uint8),
        "parts": rng.integers(-9, 999, (4, 30, 3)),
    }
    with writing(path) as file:
        file.put("floats", arrays["floats"])
        file.put("bytes", arrays["bytes"])
        file.declare("parts", (4, 30, 3), np.dtype("<i4"))
        for number in (2, 0):
            file.put_parts("parts", number, arrays["parts"][number : number + 2])
    return arrays


@pytest.fixture
def path(tmp_path):
    write(tmp_path / "a.h5")
    return tmp_path / "a.h5"


def without_index(path):
    """What HDF5 alone wrote, as it was before files had an index."""
    with h5py.File(path, "r+", libver=("v110", "v110")):
        pass


@pytest.mark.parametrize("is_old", [False, True])
def test_what_is_written_is_read_by_h5py_and_without_it(tmp_path, is_old):
    path = tmp_path / "a.h5"
    arrays = write(path)
    if is_old:
        without_index(path)

    with Tables(path, "a file") as tables:
        tables.expect(["floats", "bytes", "parts"])
        assert_array_equal(tables.take("floats", "<f4", (3, 5, 7)), arrays["floats"], strict=True)
        assert tables.take_bytes("bytes", 11) == arrays["bytes"].tobytes()
        tables.expect_form("parts", "<i4", (4, 30, 3), compressed=True)
        for number in range(4):
            assert_array_equal(tables.take_part("parts", number), arrays["parts"][number])
    with h5py.File(path) as file:
        for name, array in arrays.items():
            assert_array_equal(file[name], array)


def test_an_array_of_another_form_is_refused(path):
    with Tables(path, "a file") as tables:
        for form in (("<f8", (3, 5, 7)), ("<f4", (3, 35))):
            with pytest.raises(Refused, match="/floats dtype, shape, compressed: expected"):
                tables.take("floats", *form)
        with pytest.raises(Refused, match="/bytes: expected at most 10 bytes, got 11"):
            tables.take_bytes("bytes", 10)
        with pytest.raises(Refused, match="/: expected an array named more"):
            tables.take("more", "<f4", (1,))


def test_hdf5_starts_no_process_for_a_file_with_an_index(path, monkeypatch):
    monkeypatch.setattr(subprocess, "run", None)
    Tables(path, "a file").close()


def forge(path, index):
    """The file with another index, and the seal of that."""
    content = path.read_bytes()
    length, _ = hdf5.FOOTER.unpack(content[-hdf5.SEAL_BYTES - hdf5.FOOTER.size : -hdf5.SEAL_BYTES])
    content = content[: -hdf5.SEAL_BYTES - hdf5.FOOTER.size - length] + index + hdf5.FOOTER.pack(len(index), hdf5.MAGIC)
    path.write_bytes(content + hashlib.sha256(content).digest())


TABLE = '{"a":{"compressed":%s,"dtype":"%s","parts":[[%s,%s]],"shape":[%s]}}'


@pytest.mark.parametrize(
    "index",
    [
        b"",
        b"{",
        b"[" * 100_000,
        b'{"a":1}',
        b'{"a":{"compressed":false,"dtype":"|u1","parts":[[0,5]],"shape":[1],"more":0}}'[:-1],
        *(
            (TABLE % values).encode()
            for values in [
                ("false", "|O8", 0, 5, 1),
                ("false", "|u1", 0, 4, 1),
                ("false", "|u1", 0, 9, 1 << 39),
                ("false", "|u1", 1 << 61, 5, 1),
                ("false", "|u1", -1, 5, 1),
                ("false", "|u1", 0, -5, 1),
                ("false", "|u1", 0, "5.0", 1),
                ("false", "|u1", 0, 4, 0),
                ("false", "|u1", 0, 5, "1,1,1,1,1,1,1,1,2"),
                ("true", "|u1", 0, 50, f"1,{1 << 30}"),
                ("true", "|u1", 0, 50, "2,1"),
                ("true", "|u1", 0, 3, "1,1"),
                ("true", "|u1", 0, 3, ""),
            ]
        ),
    ],
)
def test_an_index_that_leads_nowhere_is_refused(path, index):
    forge(path, index)
    with pytest.raises(Refused, match=r"the index: expected where|parts in the file, as long"):
        Tables(path, "a file")


@pytest.mark.parametrize("length", [0, 1, 40, 80, 500])
def test_short_files_are_refused(path, length):
    for content in (path.read_bytes()[:length], path.read_bytes()[-length:] if length else b""):
        path.write_bytes(content)
        with pytest.raises(Refused):
            Tables(path, "a file", sealed=True)


@pytest.mark.parametrize("words", [0, 1, 2, 3, 359, 360, 361, 70_001])
@pytest.mark.parametrize("fill", [0, 0xFF, None])
def test_fletcher32_is_that_of_hdf5(tmp_path, words, fill):
    array = (
        np.random.default_rng(words).integers(0, 256, words + 1).astype(np.uint8) if fill is None else np.full(words + 1, fill, np.uint8)
    )
    with h5py.File(tmp_path / "a.h5", "w") as file:
        dataset = file.create_dataset("a", data=array, chunks=array.shape, fletcher32=True)
        _, stored = dataset.id.read_direct_chunk((0,))
    assert fletcher32(array.tobytes()) == int.from_bytes(stored[-4:], "little")


def test_a_full_disk_is_an_error_at_every_size_and_leaves_nothing(tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", FULL_DISK, tmp_path], capture_output=True, text=True, env=environment)

    assert done.returncode == 0, done.stderr[-2000:]
    failed, _, limits = done.stdout.split()
    assert failed == limits


class Failing:
    """A raw file that takes so many bytes and no more."""

    def __init__(self, left):
        self.left, self.content, self.position = left, bytearray(), 0

    def seek(self, position):
        self.position = position

    def write(self, data):
        taken = min(len(data), self.left)
        if not taken:
            raise OSError(28, "No space left on device")
        self.left -= taken
        self.content[self.position :] = bytes(max(self.position - len(self.content), 0))
        self.content[self.position : self.position + taken] = data[:taken]
        self.position += taken
        return taken

    def read(self, length):
        return bytes(self.content[self.position : self.position + length])


def test_what_the_disk_did_not_take_is_read_back_from_memory():
    disk = Disk(cast(FileIO, Failing(7)))
    for text in (b"01234", b"56789", b"abcde"):
        disk.write(text)
    disk.seek(3)
    found = bytearray(9)

    assert disk.readinto(found) == 9
    assert found == b"3456789ab"
    assert (disk.seek(0, 2), str(disk.failure)) == (15, "[Errno 28] No space left on device")


def test_an_exception_while_writing_leaves_nothing_and_hdf5_closed(tmp_path):
    def interrupted():
        with writing(tmp_path / "a.h5") as file:
            file.put("one", np.arange(9))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_crashes_hdf5_is_refused(path, monkeypatch, tmp_path):
    without_index(path)
    for code, message in (
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", r"got 'a crash of its own process \(SIGSEGV\)'"),
        ("raise MemoryError", r"a crash of its own process \(.*MemoryError\)"),
    ):
        (tmp_path / "hdf5_index.py").write_text(code)
        with monkeypatch.context() as patch:
            patch.setattr(hdf5, "__file__", str(tmp_path / "hdf5.py"))
            with pytest.raises(Refused, match=message):
                Tables(path, "a file")


def test_hdf5_that_does_not_end_is_given_up(path, monkeypatch, tmp_path):
    without_index(path)
    (tmp_path / "hdf5_index.py").write_text("while True: pass")
    monkeypatch.setattr(hdf5, "CHILD_SECONDS", 0.5)
    monkeypatch.setattr(hdf5, "__file__", str(tmp_path / "hdf5.py"))
    with pytest.raises(Refused, match=r"HDF5: expected an answer within 0\.5 s"):
        Tables(path, "a file")


CRASHES = sorted((Path(__file__).parents[2] / "../shared/cases").resolve().glob("0[12]_hdf5*/*crash*"))


@pytest.mark.skipif(not CRASHES, reason="the files that crash HDF5 are in ../shared/cases, which is absent")
@pytest.mark.parametrize("crash", CRASHES, ids=lambda path: path.name)
def test_files_that_crashed_hdf5_are_refused(crash):
    """By HDF5's crash or by what it found; either way in the process that is there for that."""
    with pytest.raises(BadFile):
        artifact.read(crash) if crash.suffix == ".eam" else read_trace(crash)


def read_trace(path):
    with reading(path) as trace:
        for name in trace.entries:
            trace.integers(name, 0)
