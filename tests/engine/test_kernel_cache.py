"""Compiled kernels between processes: where they are kept, what is not executed, what happens where they cannot be kept."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from eamsim.compiled import kernel_cache

KERNEL = """
import logging, sys
from eamsim.compiled.compiler import kept, njit

@kept(__file__)
@njit
def add(a, b):
    return a + b + ADDED

print(add(1, 2), sum(add.stats.cache_hits.values()), sum(add.stats.cache_misses.values()))
"""


@pytest.fixture(autouse=True)
def _forgotten_folder():
    kernel_cache.folder.cache_clear()
    yield
    kernel_cache.folder.cache_clear()


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The path of a cache folder that does not exist yet."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def add(folder: Path, added: int = 0, limit: int | None = None) -> tuple[str, str]:
    """Standard output and error of a process that adds 1, 2 and `added` by a kept kernel; limit: of the files it writes, in KiB."""
    script = folder / "kernel.py"
    script.write_text(KERNEL.replace("ADDED", str(added)))
    command = f'ulimit -f {limit or "unlimited"}; exec "$0" "$1"'
    done = subprocess.run(["bash", "-c", command, sys.executable, str(script)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr


def spoil(cache: Path, how: str) -> None:
    (path,) = cache.glob("*.kernel")
    content = path.read_bytes()
    changed = bytes([content[-100] ^ 1])
    path.write_bytes(
        {"emptied": b"", "truncated": content[:-7], "garbage": os.urandom(500), "bit": content[:-100] + changed + content[-99:]}[how]
    )


def test_the_folder_is_private_and_another_process_loads_what_it_holds(cache: Path, tmp_path: Path):
    assert add(tmp_path) == ("3 0 1", "")
    assert cache.stat().st_mode & 0o777 == 0o700
    assert [path.stat().st_mode & 0o777 for path in cache.iterdir()] == [0o600]
    assert add(tmp_path) == ("3 1 0", "")


@pytest.mark.slow
def test_changed_sources_and_changed_options_of_numba_are_compiled_anew(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    add(tmp_path)
    assert add(tmp_path, added=4) == ("7 0 1", "")
    monkeypatch.setenv("NUMBA_BOUNDSCHECK", "1")
    assert add(tmp_path, added=4) == ("7 0 1", "")
    monkeypatch.setenv("NUMBA_NUM_THREADS", "1")  # changes no machine code
    assert add(tmp_path, added=4) == ("7 1 0", "")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["emptied", "truncated", "garbage", "bit"])
def test_a_damaged_file_is_compiled_again_and_mended(cache: Path, tmp_path: Path, how: str):
    add(tmp_path)
    spoil(cache, how)
    out, err = add(tmp_path)
    assert out == "3 0 1"
    assert "damaged" in err
    assert err.count("\n") == 1
    assert add(tmp_path) == ("3 1 0", "")


def test_a_read_only_folder_is_read(cache: Path, tmp_path: Path):
    add(tmp_path)
    cache.chmod(0o500)
    assert add(tmp_path) == ("3 1 0", "")


def test_on_a_full_disk_what_is_compiled_runs(cache: Path, tmp_path: Path):
    out, err = add(tmp_path, limit=1)
    assert out == "3 0 1"
    assert f"{cache} cannot be written (File too large); kernels are compiled anew at every start; set NUMBA_CACHE_DIR" in err
    assert not list(cache.iterdir())


class Planted:
    """A pickle that leaves a file where it is loaded."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.slow
@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777])
def test_a_folder_that_others_can_write_is_not_used(cache: Path, tmp_path: Path, mode: int):
    add(tmp_path)
    (path,) = cache.glob("*.kernel")
    kernel_cache.write(path.name, pickle.dumps(Planted(tmp_path / "executed")))
    cache.chmod(mode)
    out, err = add(tmp_path)
    assert out == "3 0 1"
    assert f"kernel cache: {cache} belongs to another user, or others can write to it: it is not used (chmod 700, or delete it)" in err
    assert not (tmp_path / "executed").exists()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give a folder to another user")
def test_a_folder_that_another_user_owns_is_not_used(cache: Path, tmp_path: Path):
    add(tmp_path)
    os.chown(cache, 12345, -1)
    out, err = add(tmp_path)
    assert out == "3 0 1"
    assert f"kernel cache: {cache} belongs to another user" in err


def test_a_folder_or_a_file_of_another_user_is_not_used(cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    kernel_cache.write("a", b"content")
    assert kernel_cache.read("a") == b"content"
    (cache / "a").chmod(0o666)  # as a file that was put there before the folder was closed
    assert kernel_cache.read("a") is None
    owner = os.stat_result((0o40700, *cache.stat()[1:4], os.geteuid() + 1, *cache.stat()[5:]))
    monkeypatch.setattr(Path, "stat", lambda self, **options: owner)
    kernel_cache.folder.cache_clear()
    assert kernel_cache.folder().is_temporary
    assert "belongs to another user" in caplog.text


def test_without_a_usable_folder_a_temporary_one_says_what_it_costs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "file").touch()
    for value, reason in ((str(tmp_path / "file" / "cache"), "Not a directory"), ("relative", "expected an absolute path, got relative")):
        monkeypatch.setenv("NUMBA_CACHE_DIR", value)
        kernel_cache.folder.cache_clear()
        caplog.clear()
        path, is_temporary = kernel_cache.folder()
        assert is_temporary
        assert path is not None
        assert path.is_dir()
        assert reason in caplog.text
        assert "kernels are compiled anew at every start; set NUMBA_CACHE_DIR" in caplog.text


NOBODY = """
import pwd, sys
def nobody(uid):
    raise KeyError(uid)
pwd.getpwuid = nobody
from eamsim.cli import main
sys.argv = ["eamsim", *sys.argv[1:]]
main()
"""


def test_a_user_whom_nobody_knows_has_a_temporary_folder(tmp_path: Path):
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", NOBODY, *arguments], capture_output=True, text=True, env={"PATH": os.environ["PATH"]})

    cost = run("cost", "deit_tiny_patch16_224", "--tau", "0", "--json")
    assert (cost.returncode, cost.stderr) == (0, "")
    doctor = run("doctor", "--json")
    assert doctor.returncode == 0, doctor.stderr
    assert json.loads(doctor.stdout)["cache_is_temporary"]
    assert "home directory" in doctor.stderr
