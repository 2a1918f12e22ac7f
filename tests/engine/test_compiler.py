"""The compiler: what is told of a compilation, an interrupt of it, and environments that Numba cannot work in."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numba
import pytest

from eamsim import engine
from eamsim.compiled.compiler import compile_kernel, functions_of, logged, njit

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "eamsim" / "data" / "digits"


@njit
def inner(a):
    return a + 1


@njit
def outer(a):
    return inner(inner(a)) * 2


def test_every_function_is_counted_once_and_only_where_something_is_compiled(caplog: pytest.LogCaptureFixture):
    shown = []

    @contextmanager
    def progress(what: str, total: int):
        shown.append((what, total))
        yield shown.append

    for _ in range(2):
        compile_kernel(outer, (numba.int64,), "of the test", progress)
    assert shown == [("functions compiled", 2), 1, 1]
    assert [record.name for record in caplog.records] == ["eamsim.engine"]
    assert "compiling the integer kernels (of the test): a minute or so, once for this machine and version, kept in /" in caplog.text
    compile_kernel(outer, (numba.int32,), "of the test", progress)
    assert shown[3:] == [("functions compiled", 2), 1, 1]
    assert outer(3) == 10


def test_python_tells_progress_by_the_engine_s_logger(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, "eamsim.engine"), logged("functions compiled", 3) as advance:
        advance(1)
        advance(2)
    assert caplog.messages == ["functions compiled: 3/3"]


def test_the_forward_pass_names_all_kinds_of_kernels():
    names = {function.__name__ for function in functions_of(engine.forward)}
    assert {"forward", "run_task", "linear", "attend", "layer_norm", "gather", "embed", "pool", "digest", "claim", "keep"} <= names
    assert "hash_integers" not in names  # compiled when digests are asked for


def child(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "eamsim", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | environment, cwd=ROOT)


VERIFY = ("verify", str(DIGITS / "digits.eam"), "--data", str(DIGITS / "digits_test.npz"), "--images", "1", "--isa", "portable")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("NUMBA_DISABLE_JIT", "1", "the engine needs Numba's compiler, found NUMBA_DISABLE_JIT=1; unset it"),
        ("NUMBA_NUM_THREADS", "0", "Numba does not start: Number of threads specified must be > 0; correct or unset what is set: "),
        ("NUMBA_NUM_THREADS", "many", "Numba does not start: Environment variable 'NUMBA_NUM_THREADS' is defined but its associated value"),
        ("NUMBA_OPT", "fast", "Numba does not start: Environment variable 'NUMBA_OPT' is defined but its associated value 'fast'"),
    ],
)
@pytest.mark.parametrize("command", [VERIFY, ("run", *VERIFY[1:2], VERIFY[3])])
def test_an_environment_that_numba_cannot_work_in_is_a_usage_error(command: tuple[str, ...], name: str, value: str, reason: str):
    done = child(*command, **{name: value})
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    *said, last = done.stderr.splitlines()
    assert last.startswith(f"error: {reason}")
    assert f"{name}=" in last or f"'{name}'" in last
    assert all(line.startswith(("data: ", "--batch: ")) for line in said)


def test_what_does_not_compile_does_not_look_at_it():
    done = child("cost", str(DIGITS / "digits.eam"), "--json", NUMBA_NUM_THREADS="0")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"]


def test_importing_compiles_and_writes_nothing(tmp_path: Path):
    code = "import eamsim.engine, reference.attention.entropy, reference.attention.divergence"
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "HOME": "/nowhere"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    assert not (tmp_path / "cache").exists()


def test_a_cold_demo_shows_the_compilation_first_and_ends_on_an_interrupt(tmp_path: Path):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "eamsim", "demo"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT)
    assert process.stderr is not None
    said = [process.stderr.readline()]
    while not said[-1].startswith("functions compiled") and said[-1]:  # a slow machine has a line for every silence before it
        said.append(process.stderr.readline())
    first, second = next(line for line in said if line.startswith("compiling")), said[-1]
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert first.startswith("compiling the integer kernels (")
    assert f"once for this machine and version, kept in {tmp_path / 'cache'}" in first
    assert re.match(r"functions compiled: [1-9]\d*/\d+", second)
    assert process.returncode == 130
    assert out == ""
    assert "Traceback" not in err
    assert not list((tmp_path / "cache").glob("*"))
