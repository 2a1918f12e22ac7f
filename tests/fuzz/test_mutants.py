"""No file can crash, hang or change silently: mutants of the three kinds of file, of this version and of the one before.

EAMSIM_MUTANTS sets their number (of each kind; a tenth of it for older versions, which start a process each), EAMSIM_SEED the first.
"""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest
from fuzz import hdf5_checksums, mutants

MUTANTS, SEED = int(os.environ.get("EAMSIM_MUTANTS", "60")), int(os.environ.get("EAMSIM_SEED", "0"))
EXPECTED = {"refused", "crashed its own process", "equal", "forged"}
MEMORY_MIB = 1024


@pytest.mark.slow
@pytest.mark.parametrize("kind", mutants.KINDS)
def test_no_mutant_crashes_hangs_or_changes_silently(kind, tmp_path):
    if "statistics" in kind:
        pytest.importorskip("timm", reason="needs the extra 'reference'")
    count = max(MUTANTS // 10, 1) if kind.startswith("old") else MUTANTS
    command = [sys.executable, mutants.__file__, kind, str(SEED), str(count), tmp_path]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)

    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"{kind} ended with {done.returncode} at mutant {lines[-1:]}: {done.stderr[-500:]}"
    *outcomes, memory = lines
    found = [line.split(" ", 1) for line in outcomes]
    print(kind, f"mutants {SEED}..{SEED + count - 1}", dict(Counter(result for _, result in found)), memory, "MiB")
    assert [(number, result) for number, result in found if result not in EXPECTED] == []
    assert len(found) == count
    assert int(memory) < MEMORY_MIB


def test_the_forger_of_hdf5_renews_the_checksums_that_hdf5_wrote(tmp_path: Path):
    with h5py.File(tmp_path / "a.h5", "w", libver=("v110", "v110")) as file:
        for name in "abc":
            file.create_dataset(name, data=np.arange(9), chunks=(9,), fletcher32=True, track_times=False)
    content = bytearray((tmp_path / "a.h5").read_bytes())
    before = bytes(content)
    hdf5_checksums.renew(content)

    assert content == before
    content[9] ^= 1
    hdf5_checksums.renew(content)
    assert sum(one != other for one, other in zip(content, before, strict=True)) > 2
