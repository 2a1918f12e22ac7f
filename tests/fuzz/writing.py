"""Every command that writes files, on tiny models, in children of one process that has imported all: a hundred a minute.

A child is the command from its first own line on: `eamsim.__main__.entry`, in a folder and a session of its own.
"""

import importlib
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
from command_line import eamsim, save_data, save_model
from eam_files import write_version_1
from programs import Shape, random_program

from eamsim import __main__ as start
from eamsim import artifact
from eamsim.engine import Engine

OLD = b"what was there before\n"
SECONDS = 120
TORCH = ("torch", "timm", "eamsim.jobs.build")
SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Command:
    """outputs: what it leaves; kept: what it may leave unfinished, to be continued (a name that ends in / is a folder).

    resume: what to add to continue, or None where there is nothing to continue; needs: modules that are imported before it; replaces:
    whether it takes the name of a file that is there; share: how often it is taken, for one of those that take long.
    """

    arguments: tuple[object, ...]
    outputs: tuple[str, ...]
    resume: tuple[str, ...] | None = None
    kept: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    replaces: bool = True

    @property
    def share(self) -> int:
        return 1 if set(self.needs) & {*TORCH, "matplotlib.figure"} else 3


def commands(bench: Path) -> dict[str, Command]:
    """On the files of `prepare(bench)`."""
    model, data = bench / "m.eam", ("--data", bench / "d.npz")
    source = (f"local-dir:{bench / 'float'}", "--calib", bench / "calib.npz", "--calib-images", 4)
    build = ("build", *source, "--no-compensate")
    pair = ("x.eam", "x.eam.json")
    return {
        "convert": Command(("convert", bench / "old.eam", "-o", "x.eam"), pair),
        "record": Command(("trace", "record", model, *data, "--by", "golden", "--reason", "again", "-o", "t.h5"), ("t.h5", "t.h5.json")),
        "vectors": Command(
            ("trace", "export", model, *data, "--format", "readmemh,npz,jsonl", "--taps", "head,input", "-o", "v"),
            ("v/manifest.json", "v/taps/head.hex", "v/taps/input.hex", "v/tensors.npz", "v/tensors.jsonl"),
        ),
        "c": Command(("export", model, "--c", "c"), tuple(f"c/{name}" for name in ("manifest.json", "model.c", "program.bin", "stream.h"))),
        "onnx": Command(("export", model, "-o", "x.onnx"), ("x.onnx", "x.onnx.json"), needs=("onnx", "eamsim.exports.onnx_integer")),
        "widths": Command(
            ("widths", model, *data, "--keep", "20", "--evaluations", 12, "-o", "x.eam"),
            (*pair, "x.eam.widths.csv"),
            ("--resume",),
            ("x.eam.widths.csv",),
        ),
        "layers": Command(("cost", model, "--scalesim", "x.csv", "--zigzag", "x.yaml"), ("x.csv", "x.yaml", "x.csv.json", "x.yaml.json")),
        "search": Command(
            ("search", model, "--hw", "small-npu", "--rows", "4", "--granularity", "none,head", "-o", "x.csv"), ("x.csv", "x.csv.json")
        ),
        "junit": Command(("trace", "diff", model, model, *data, "--junit", "x.xml"), ("x.xml",)),
        "hardware": Command(("hardware", "copy", "small-npu", "x.yaml"), ("x.yaml",), replaces=False),
        "plot": Command(
            ("plot", "designs", bench / "designs.csv", "-o", "p"),
            tuple(f"p/designs.{kind}" for kind in ("png", "svg", "json")),
            needs=("matplotlib.figure", "eamsim.figures.designs"),
        ),
        "report": Command(
            ("report", model, "--hw", "small-npu", "--table", "x.csv", "-o", "x.html"),
            ("x.html", "x.csv", "x.html.json"),
            needs=("jinja2", "matplotlib.figure", "eamsim.jobs.costs.findings"),
        ),
        "build": Command((*build, "--tau", 0.3, "-o", "x.eam"), pair, needs=TORCH),
        "tune": Command(
            (*build, "--tau", 0.3, "--tune", 3, "-o", "x.eam"),
            pair,
            ("--resume",),
            ("x.eam.tuning",),
            needs=(*TORCH, "reference.tuning.tune"),
        ),
        "budget": Command(
            (*build, "--save-macs", "1%", "--granularity", "head", "--evaluations", 30, "-o", "x.eam"),
            (*pair, "x.eam.front.csv"),
            needs=(*TORCH, "eamsim.jobs.search.budget"),
        ),
        "entropy": Command(("entropy", *source, "-o", "x.h5"), ("x.h5", "x.h5.json"), (), ("x.h5.progress/",), needs=TORCH),
        "sweep": Command(
            ("sweep", *source, *data, "--tau", "0.2,0.5", "--variant", "eam-4bits", "--workers", 1, "-o", "s"),
            ("s/sweep.csv", "s/sweep.csv.json"),
            ("--resume",),
            ("s/units/",),
            needs=(*TORCH, "eamsim.jobs.sweep"),
            replaces=False,
        ),
    }


def prepare(bench: Path) -> None:
    """A program, an old one, a float model, images, and the table of a search."""
    program = save_model(bench / "m.eam")
    save_data(bench / "d.npz", program, 6)
    write_version_1(bench / "old.eam", random_program(Shape(seed=1, side=8)), artifact.read(bench / "m.eam")[1])
    assert eamsim("search", bench / "m.eam", "--rows", "4", "--granularity", "none,head", "-o", bench / "designs.csv").code == 0
    np.savez(bench / "calib.npz", images=np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8))
    Engine(program, threads=1)  # its machine code is loaded, once for all children


def ready(command: Command, bench: Path) -> None:
    """All is imported that it needs; with torch a float model is there, and threads are single, which alone can be forked."""
    for name in command.needs:
        importlib.import_module(name)
    if "torch" in command.needs and not (bench / "float").exists():
        importlib.import_module("torch").set_num_threads(1)
        importlib.import_module("local_models").save_model(bench / "float")


def small_steps() -> None:
    """In the child: sweeps run in this process, and progress is saved at every step."""
    if "torch" in sys.modules:
        from eamsim.jobs import workers
        from reference.attention import measure
        from reference.tuning import tune

        workers.processes = lambda count, advice="": workers.here
        measure.SAVE_SECONDS = tune.WRITE_EVERY = 0


def run(
    arguments: tuple[object, ...],
    folder: Path,
    before: Callable[[], object] = lambda: None,
    watch: Callable[[int], object] = lambda pid: None,
) -> tuple[int, str]:
    """Exit code (negative: by a signal), and what was said; before: in the child; watch: beside it, given its id."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        _be(arguments, folder, before, write)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    os.close(write)
    signal.alarm(SECONDS)  # whose default ends this process: a child that hangs is a finding
    watch(pid)
    with os.fdopen(read, errors="replace") as pipe:
        said = pipe.read()
    status = os.waitpid(pid, 0)[1]
    signal.alarm(0)
    return os.waitstatus_to_exitcode(status), said


def _be(arguments: tuple[object, ...], folder: Path, before: Callable[[], object], pipe: int) -> NoReturn:
    code = 99
    try:
        os.setsid()
        os.chdir(folder)
        for number in (1, 2):
            os.dup2(pipe, number)
        os.close(pipe)
        sys.__stdout__ = sys.stdout = os.fdopen(1, "w", closefd=False)  # anew: they know whether they can seek; both kept, as at a start
        sys.__stderr__ = sys.stderr = os.fdopen(2, "w", closefd=False)
        sys.argv = ["eamsim", *map(str, arguments)]
        for each in SIGNALS:
            signal.signal(each, start.leave)  # as `entry` does first
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        small_steps()
        before()
        start.entry()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 98
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    finally:
        os._exit(code)


def contents(folder: Path) -> dict[str, bytes]:
    """Of every file below the folder, by its path."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def put(files: dict[str, bytes], folder: Path) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
