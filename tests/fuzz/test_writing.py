"""No kill, no interruption and no full disk leaves a file half written or loses one that was there: a bounded run of both drivers.

EAMSIM_KILLS sets the kills of each signal and EAMSIM_SIZES the sizes of each disk, of all commands then; EAMSIM_SEED the first kill.
"""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from fuzz import full_disk, kills

KILLS, SIZES, SEED = (os.environ.get(f"EAMSIM_{name}") for name in ("KILLS", "SIZES", "SEED"))
QUICK = ("convert", "record", "vectors", "c", "layers", "junit", "hardware")  # which need no extra
GOOD = ("finished", "ended", "refused")
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, to start a hundred commands a minute")


def driven(script: str | None, *arguments: object) -> list[str]:
    """What it prints, a line a run."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", str(script), *map(str, arguments)]  # of Python on a fork beside threads, which wait
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, "\n".join([line for line in done.stdout.splitlines() if not line.endswith(GOOD)] + [done.stderr[-2000:]])
    return done.stdout.splitlines()


@pytest.mark.parametrize(("name", "share"), [("KILL", 2), ("INT", 2), ("TERM", 1)])
def test_no_kill_leaves_half_a_file_or_loses_one(name: str, share: int, tmp_path: Path):
    count = int(KILLS) if KILLS else share * len(QUICK)
    lines = driven(kills.__file__, name, SEED or 0, count, tmp_path, *(() if KILLS else QUICK))
    print(name, f"kills {SEED or 0}..{int(SEED or 0) + count - 1}", dict(Counter(line.rsplit(" ", 1)[1] for line in lines)))
    assert len(lines) == count


def test_no_full_disk_leaves_half_a_file_or_loses_one(tmp_path: Path):
    sizes = int(SIZES) if SIZES else 2
    lines = driven(full_disk.__file__, sizes, tmp_path, *(() if SIZES else QUICK))
    print("full disks", Counter(line.split()[0] for line in lines))
    assert len(lines) % sizes == 0
    assert len(lines) >= sizes * len(QUICK)


@pytest.mark.parametrize(
    ("left", "message"),
    [
        ({"x.eam": b"half"}, "x.eam is neither old nor whole"),
        ({}, "lost x.eam"),
        ({"x.eam": b"old", ".x.eam.01234567.tmp": b"half"}, "left .x.eam.01234567.tmp"),
        ({"x.eam": b"old", "core": b""}, "left core"),
    ],
)
def test_the_driver_sees_what_is_wrong(left: dict[str, bytes], message: str, tmp_path: Path):
    command, whole = kills.Command(("convert",), ("x.eam",)), object.__new__(kills.Whole)
    whole.files = {"x.eam": b"new"}
    kills.put(left, tmp_path)
    assert kills.faults(command, whole, tmp_path, {"x.eam": b"old"}, 2, 130, "interrupted") == [message]
