"""A program, its golden trace, and dumps that are compared with it."""

from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from types import ModuleType

import numpy as np
from command_line import Finished, eamsim

from eamsim import artifact, golden
from eamsim.constraints import Verified
from eamsim.traces import file as trace_file

DIGITS = Path(str(files("eamsim"))) / "data" / "digits"
PIXELS = np.load(DIGITS / "digits_test.npz")["images"][:2]
USAGE, BAD_FILE = 2, 3

Run = Callable[[Verified, np.ndarray, dict[str, np.ndarray]], np.ndarray]


def digits(**datapath: object) -> tuple[Verified, dict]:
    program, provenance = artifact.read(DIGITS / "digits.eam")
    return replace(program, datapath=replace(program.datapath, **datapath)), provenance  # pyright: ignore[reportArgumentType]


def runs(run: Run, program: Verified) -> dict[str, np.ndarray]:
    """[images, ...] by tap."""
    found: list[dict[str, np.ndarray]] = []
    for image in PIXELS:
        found.append({})
        run(program, image, found[-1])
    return {name: np.stack([each[name] for each in found]) for name in found[0]}


def faulty(old: str, new: str) -> Run:
    """A copy of the golden interpreter with one piece of its text replaced."""
    source = Path(golden.__file__).read_text()
    assert source.count(old) == 1
    copy = ModuleType("faulty")
    copy.__dict__["__name__"] = "eamsim.golden"
    exec(compile(source.replace(old, new), "faulty", "exec"), copy.__dict__)
    return copy.run


class Bench:
    """A program, its golden trace, and the dumps of others."""

    def __init__(self, folder: Path, **datapath: object):
        self.folder, (self.program, provenance) = folder, digits(**datapath)
        self.model, self.trace = folder / "p.eam", folder / "t.h5"
        artifact.write(self.model, self.program, provenance)
        self.golden = runs(golden.run, self.program)
        self.record(self.trace, stored=True)

    def record(self, path: Path, stored: bool) -> None:
        with trace_file.recording(path, self.program, list(self.golden), ["0", "1"], "golden", stored, {}) as recorder:
            recorder.put_images(0, PIXELS)
            recorder.put(0, self.golden)

    def against(self, found: dict[str, np.ndarray], *options: object) -> Finished:
        np.savez(self.folder / "found.npz", **found)  # pyright: ignore[reportArgumentType]
        return eamsim("trace", "diff", self.trace, self.folder / "found.npz", "--program", self.model, *options)


FAULTS = {  # text of golden, what it becomes, the tap that differs first, the cause
    "rounding": (
        "clip(round_shift(scaled, shift, datapath.rounding) + epilogue.zero, op.out)",
        "clip(round_shift(scaled, shift, 'floor') + epilogue.zero, op.out)",
        "block0.attn.qkv",
        "rounding floor instead of half_up",
    ),
    "swapped nibbles": (
        "weight = op.weight.astype(np.int64) - op.weight_zero",
        "weight = op.weight.astype(np.int64).reshape(-1, 2)[:, ::-1].reshape(op.weight.shape) - op.weight_zero",
        "patch_embed.acc",
        "nibble order of the weights (each pair swapped)",
    ),
    "missing zero point": ("operand = x - op.x_zero", "operand = x", "patch_embed.acc", "missing x_zero"),
    "missing zero point of keys": ("(k - op.k_zero)", "k", "block0.attn.scores", "missing k_zero"),
    "wrong shift": ("op.out_shift, datapath", "op.out_shift + 1, datapath", "block0.attn", "out_shift wrong by +1"),
    "wrong shift of a residual": (
        "shift - epilogue.exponent_change",
        "shift - epilogue.exponent_change - 1",
        "block0.attn.proj",
        "exponent_change wrong by +1",
    ),
    "sign extension": (
        "weight = op.weight.astype(np.int64) - op.weight_zero",
        "weight = (op.weight.astype(np.int64) ^ 8) - 8 - op.weight_zero",
        "patch_embed.acc",
        "weights sign-extended from 4 bits, which are unsigned",
    ),
    "transposed weights": (
        "weight = op.weight.astype(np.int64) - op.weight_zero",
        "weight = op.weight.T.reshape(op.weight.shape).astype(np.int64) - op.weight_zero",
        "patch_embed.acc",
        "transposed weights",
    ),
}
