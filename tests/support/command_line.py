"""Runs the command line in this process, as `eamsim` on a terminal-less machine would."""

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from programs import Shape, random_images, random_program

from eamsim import artifact
from eamsim.cli import main
from eamsim.constraints import Verified

LABELS = ["ant", "bee", "cow", "dog", "elk"]


@dataclass(frozen=True)
class Finished:
    code: object
    out: str
    err: str


def eamsim(*arguments: object) -> Finished:
    """Exit code, standard output and standard error of `eamsim arguments...`."""
    out, err, code = io.StringIO(), io.StringIO(), None
    command = mock.patch.object(sys, "argv", ["eamsim", *map(str, arguments)])
    with redirect_stdout(out), redirect_stderr(err), command:
        try:
            main()
        except SystemExit as stop:
            code = stop.code
    return Finished(code, out.getvalue(), err.getvalue())


def forget_modules(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """As if these modules, and those below them, had never been imported, until the end of the test: their packages forget them too."""
    gone = [name for name in sys.modules if any(f"{name}.".startswith(f"{known}.") for known in names)]
    for name in gone:
        package, _, leaf = name.rpartition(".")
        if package:
            monkeypatch.delattr(sys.modules[package], leaf, raising=False)
    for name in gone:
        monkeypatch.delitem(sys.modules, name)


def save_model(path: Path, seed: int = 1, **changes: object) -> Verified:
    """A random model of 8 x 8 images and five classes at `path`; changes: of its provenance."""
    program = random_program(Shape(seed=seed, side=8))
    height, width, _ = program.image.shape
    preprocessing = {"height": height, "width": width, "crop_pct": 1.0, "interpolation": "bicubic"}
    artifact.write(path, program, {"preprocessing": preprocessing, "labels": LABELS} | changes)
    return program


def save_data(path: Path, program: Verified, count: int = 9) -> tuple[np.ndarray, np.ndarray]:
    """Random labelled images for the program, in an .npz at `path`."""
    images, labels = random_images(program, count, 0), np.arange(count) % len(LABELS)
    np.savez(path, images=images, labels=labels, classes=np.array(LABELS))
    return images, labels
