"""Every file that a command takes, as what it never should be: exit code 3 (or 2) and one line, at once."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import eamsim, save_data, save_model

SECONDS = 60  # the machine may be busy; a FIFO waits for ever
NEEDS_PLOT = {"report sweep", "report compare", "table1", "fig5", "designs", "compare", "plot widths", "front"}
INPUTS: dict[str, tuple[str, Callable[[Path, Path], tuple]]] = {  # name of the file, and the command that reads it in a folder
    "program": ("x.eam", lambda at, x: ("run", x, at / "d.npz")),
    "old program": ("x.eam", lambda at, x: ("convert", x, "-o", at / "new.eam")),
    "program to price": ("x.eam", lambda at, x: ("cost", x)),
    "program to compare": ("x.eam", lambda at, x: ("cost", at / "m.eam", "--compare", x)),
    "image": ("x.png", lambda at, x: ("run", at / "m.eam", x)),
    "images": ("x.npz", lambda at, x: ("eval", at / "m.eam", "--data", x)),
    "labels": ("x.txt", lambda at, x: ("eval", at / "m.eam", "--data", at / "d.npz", "--labels", x)),
    "labels in JSON": ("x.json", lambda at, x: ("eval", at / "m.eam", "--data", at / "d.npz", "--labels", x)),
    "chip": ("x.yaml", lambda at, x: ("cost", at / "m.eam", "--hw", x)),
    "trials": ("y.eam.widths.csv", lambda at, x: ("widths", at / "m.eam", "--data", at / "d.npz", "-o", at / "y.eam", "--resume")),
    "trace": ("x.h5", lambda at, x: ("trace", "diff", at / "t.h5", x)),
    "dump": ("x.npz", lambda at, x: ("trace", "diff", at / "t.h5", x)),
    "dump in JSON lines": ("x.jsonl", lambda at, x: ("trace", "diff", at / "t.h5", x)),
    "manifest of vectors": ("v/manifest.json", lambda at, x: ("trace", "diff", at / "t.h5", at / "v")),
    "memory words": ("v/taps/head.hex", lambda at, x: ("trace", "diff", at / "t.h5", at / "v")),
    "report sweep": ("x.csv", lambda at, x: ("report", at / "m.eam", "--hw", "small-npu", "-o", at / "r.html", "--sweep", x)),
    "report compare": ("x.json", lambda at, x: ("report", at / "m.eam", "--hw", "small-npu", "-o", at / "r.html", "--compare", x)),
    "table1": ("x.csv", lambda at, x: ("plot", "table1", x, "-o", at / "p")),
    "fig5": ("x.csv", lambda at, x: ("plot", "fig5", x, "-o", at / "p")),
    "front": ("x.csv", lambda at, x: ("plot", "front", x, "-o", at / "p")),
    "plot widths": ("x.csv", lambda at, x: ("plot", "widths", x, "-o", at / "p")),
    "designs": ("x.csv", lambda at, x: ("plot", "designs", x, "-o", at / "p")),
    "compare": ("x.json", lambda at, x: ("plot", "compare", x, "-o", at / "p")),
}
CONTENTS = {
    "brackets": b"[" * 100_000,
    "objects": b'{"a":' * 100_000,
    "infinity": b'{"a": 1e400}',
    "a long number": b"9" * 5000,
    "an open quotation": b'a,b\n"' + b"x" * 200_000,
    "bytes": bytes(range(256)) * 10,
    "zeros": bytes(100),
    "nothing": b"",
}
FORMS: dict[str, Callable[[Path], object]] = {
    "FIFO": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "folder": Path.mkdir,
    **{name: lambda path, content=content: path.write_bytes(content) for name, content in CONTENTS.items()},
}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a program, its images, a trace and its vectors."""
    at = tmp_path_factory.mktemp("inputs")
    save_data(at / "d.npz", save_model(at / "m.eam"), 1)
    assert eamsim("trace", "record", at / "m.eam", "--data", at / "d.npz", "--by", "golden", "-o", at / "t.h5").code == 0
    assert eamsim("trace", "export", at / "m.eam", "--data", at / "d.npz", "--taps", "head", "-o", at / "v").code == 0
    return at


@pytest.mark.parametrize("name", INPUTS)
def test_no_input_hangs_a_command_or_ends_in_a_traceback(name: str, bench: Path, tmp_path: Path):
    if name in NEEDS_PLOT:
        pytest.importorskip("matplotlib", reason="needs the extra 'plot'")
    place, command = INPUTS[name]
    for form, make in FORMS.items():
        at = tmp_path / form
        shutil.copytree(bench, at)
        (at / place).unlink(missing_ok=True)
        make(at / place)
        before = sorted(at.rglob("*"))
        signal.alarm(SECONDS)  # whose default ends this process
        done = eamsim(*command(at, at / place))
        signal.alarm(0)
        errors = [line for line in done.err.splitlines() if line.startswith(("error: ", "internal error: "))]
        assert (len(errors), done.code in (2, 3), done.out) == (1, True, ""), f"{form}: {done}"
        assert sorted(at.rglob("*")) == before, form
