"""Ctrl-C at any moment of any command: exit code 130, one line, no traceback, and no file that is half written.

EAMSIM_INTERRUPTS=200 pytest -m slow tests/cli/test_interrupts.py sends so many, at moments that EAMSIM_SEED chooses.
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eamsim import artifact

INTERRUPTS, SEED = int(os.environ.get("EAMSIM_INTERRUPTS", "12")), int(os.environ.get("EAMSIM_SEED", "0"))
DIGITS = Path(artifact.__file__).parent / "data" / "digits"
MODEL, CALIB, DATA = f"local-dir:{DIGITS}", DIGITS / "digits_calib.npz", DIGITS / "digits_test.npz"
COMMANDS = {  # and the seconds within which the interruption comes
    "run": (["run", DIGITS / "digits.eam", DATA], 4),
    "eval": (["eval", DIGITS / "digits.eam", "--data", DATA], 4),
    "verify": (["verify", DIGITS / "digits.eam", "--data", DATA, "--isa", "portable"], 6),
    "build": (["build", MODEL, "--calib", CALIB, "-o", "x.eam"], 12),
    "entropy": (["entropy", MODEL, "--calib", CALIB, "-o", "x.h5"], 12),
    "sweep": (["sweep", MODEL, "--calib", CALIB, "--data", DATA, "--tau", "0.5", "--workers", "2", "--images", "64", "-o", "s"], 16),
}
LEFT = ("x.eam", "x.h5", "x.h5.progress", "x.eam.json", "x.h5.json", "s")
EARLIEST = 0.05
PATIENCE = 60
NEEDS_REFERENCE = {"build", "entropy", "sweep"}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc, to know when the command has begun")
@pytest.mark.parametrize("number", range(INTERRUPTS))
def test_an_interruption_is_one_line_and_130(tmp_path: Path, number: int):
    name = list(COMMANDS)[number % len(COMMANDS)]
    if name in NEEDS_REFERENCE:
        pytest.importorskip("timm", reason="needs the extra 'reference'")
    arguments, latest = COMMANDS[name]
    delay = random.Random(f"{SEED} {number}").uniform(EARLIEST, latest)
    code, out, err, waited = interrupted(arguments, delay, tmp_path)
    told = f"{name} after {delay:.2f} s ended {waited:.1f} s later with {code}:\n{err}"
    assert code in (0, 130), told
    assert "Traceback" not in err, told
    assert "ignored" not in err, told
    assert (err.rstrip().splitlines() or [""])[-1].startswith("interrupted") == (code == 130), told
    assert code == 0 or out == "", told
    left = sorted(path.name for path in tmp_path.iterdir())
    assert set(left) <= set(LEFT), f"{told}{left}"
    if "x.eam" in left:
        artifact.read(tmp_path / "x.eam")
    if "x.h5" in left:
        from reference.attention.statistics_file import read_statistics

        read_statistics(tmp_path / "x.h5")


def interrupted(arguments: list, delay: float, folder: Path, signum: int = signal.SIGINT) -> tuple[int, str, str, float]:
    """Exit code, standard output, standard error, and the seconds from then to the end; as on a terminal, workers get it too."""
    command = [sys.executable, "-m", "eamsim", *map(str, arguments)]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    start = time.monotonic()
    while process.poll() is None and not (catches_sigterm(process.pid) and time.monotonic() - start > delay):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.01)
    sent = time.monotonic()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signum)
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err, time.monotonic() - sent


def catches_sigterm(pid: int) -> bool:
    """The first thing that the command does, and Python itself does not."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


SWALLOWED = """
import os, signal, sys, time
from eamsim import cli
from eamsim.cli.outcome import outcome

class Finalised:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)  # here the exception comes, and Python can only report it

def command():
    Finalised()
    time.sleep(30)

cli.main = lambda: sys.exit(outcome(command))
from eamsim.__main__ import entry
entry()
"""


def test_an_interruption_that_a_finaliser_swallows_comes_again():
    done = subprocess.run([sys.executable, "-c", SWALLOWED], capture_output=True, text=True, timeout=25, check=False)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


WHILE_IMPORTING = """
import contextlib, os, sys, time

class Importer:
    def find_spec(self, name, path=None, target=None):
        if name == "eamsim.cli":
            with contextlib.suppress(BaseException):  # as C code that imports does
                os.kill(os.getpid(), {signum})
                time.sleep(0.5)

sys.meta_path.insert(0, Importer())
sys.argv = ["eamsim", "--version"]
from eamsim.__main__ import entry
entry()
"""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_of_the_first_imports_is_one_line_too(signum: signal.Signals):
    script = WHILE_IMPORTING.format(signum=int(signum))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=25, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (128 + signum, "", "interrupted\n")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc, to know when the command has begun")
@pytest.mark.parametrize("delay", [0.05, 1.5])
def test_a_termination_ends_alike_with_143(tmp_path: Path, delay: float):
    code, out, err, _ = interrupted(COMMANDS["verify"][0], delay, tmp_path, signal.SIGTERM)
    assert code == 143 or (code == 0 and out), err
    assert "Traceback" not in err
    assert code == 0 or err.splitlines()[-1] == "interrupted"
