"""The one door for files from outside, its table of limits, and that nobody goes round it."""

import ast
import os
import re
from pathlib import Path

import pytest
from PIL import Image

from eamsim.files import limits
from eamsim.files.reading import open_file, read_bytes, read_text

ROOT = Path(__file__).parents[2]
OPENERS = {"open", "read_text", "read_bytes"}
OTHER_FILES = {  # that read or write what is no file from outside, or go through the door
    "eamsim/files/reading.py": "the door",
    "eamsim/files/hdf5_index.py": "its standard input, which eamsim/files/hdf5.py opened by the door",
    "eamsim/files/hdf5_write.py": "writes",
    "eamsim/files/container.py": "writes",
    "eamsim/files/table.py": "writes",
    "eamsim/traces/vectors.py": "writes",
    "eamsim/cli/chip/search.py": "writes",
    "reference/tuning/file.py": "writes",
    "eamsim/cli/streams.py": "the null device",
    "eamsim/cli/machine/doctor.py": "/proc",
    "eamsim/cli/program/bench.py": "/proc, in the text of a child",
    "eamsim/cli/page/report.py": "templates of the package",
    "eamsim/exports/c99.py": "sources of the package",
    "cost_model/chip/hardware.py": "presets of the package",
    "cost_model/validation.py": "published designs of the package",
    "eamsim/compiled/compiler.py": "sources of the package",
    "eamsim/compiled/kernel_cache.py": "a folder of the user's own",
    "eamsim/inputs/images.py": "images, which `find` has looked at, by Pillow; their bytes for a digest",
}


def test_a_file_is_read_whole(tmp_path: Path):
    path = tmp_path / "a"
    path.write_bytes(b"\xc3\xa9\r\n")
    assert read_bytes(path, 4) == b"\xc3\xa9\r\n"
    assert read_text(path, 4) == "é\r\n"
    path.write_bytes(b"\xff")
    with pytest.raises(UnicodeDecodeError):
        read_text(path, 4)


def test_what_might_never_end_or_is_too_large_is_refused_before_a_byte_is_read(tmp_path: Path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero")):
        with pytest.raises(OSError, match="not a regular file"):
            open_file(path)
    with pytest.raises(IsADirectoryError):
        open_file(tmp_path)
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(OSError, match="1,099,511,627,776 bytes, of at most 10"):
        read_bytes(tmp_path / "sparse", 10)


def test_nobody_opens_a_file_from_outside_by_another_door():
    found = set()
    for path in (each for folder in ("eamsim", "cost_model", "reference") for each in (ROOT / folder).rglob("*.py")):
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        if any(isinstance(call, ast.Attribute) and call.attr in OPENERS for call in calls) or any(
            isinstance(call, ast.Name) and call.id == "open" for call in calls
        ):
            found.add(path.relative_to(ROOT).as_posix())
    assert found - OTHER_FILES.keys() == set()


def test_security_shows_every_limit():
    table = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", (ROOT / "SECURITY.md").read_text(), re.MULTILINE))
    held = {name: value for name, value in vars(limits).items() if name.isupper()}
    numbers = {name: value.values() if isinstance(value, dict) else [value] for name, value in held.items()}
    shown = {name: ", ".join(f"{number:,}" for number in each) for name, each in numbers.items()}
    assert table == shown
    assert limits.PIXELS == Image.MAX_IMAGE_PIXELS
