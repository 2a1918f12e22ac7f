"""A disk that fills up while a command writes: one line, exit 3, and nothing left."""

import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

DIGITS = Path(str(files("eamsim") / "data" / "digits"))
RUN = """
import resource, sys
limit = int(sys.argv.pop(1))
from eamsim.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
main()
"""
RECORD = ("trace", "record", DIGITS / "digits.eam", "--data", DIGITS / "digits_test.npz", "--images", 2, "--by", "golden", "-o", "t.h5")
ENTROPY = ("entropy", f"local-dir:{DIGITS}", "--calib", DIGITS / "digits_calib.npz", "--limit", 5, "--of", "float", "-o", "s.h5")
CONVERT = ("convert", DIGITS / "digits.eam", "-o", "x.eam")


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "limit"), [(RECORD, 0), (RECORD, 40 << 10), (ENTROPY, 4096), (CONVERT, 64 << 10)])
def test_a_full_disk_is_one_line_and_exit_3(tmp_path, arguments, limit):
    if arguments is ENTROPY:
        pytest.importorskip("timm", reason="needs the extra 'reference'")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", RUN, limit, *arguments]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, cwd=tmp_path)

    assert done.returncode == 3, done.stderr[-2000:]
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "File too large" in errors[0]
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
