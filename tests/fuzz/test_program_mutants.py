"""Readers of programs refuse exactly what the verifier refuses: mutants of programs, each judged by the verifier and by every reader.

What it refuses, it refuses by the number of a constraint, and so does the file that holds it. What it accepts, every reader takes: golden
within the declared widths and bounds, C and the engine equal to golden at every tap, the engine unless it names one of its own limits.

EAMSIM_PROGRAM_MUTANTS sets their number, EAMSIM_SEED the first.
"""

import os
import re
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzz.program_mutants import mutant
from programs import Shape, random_images, random_program, unproved

from cost_model.chip.hardware import load
from cost_model.exports import scalesim_csv, zigzag_yaml
from cost_model.work.counts import count_operations
from cost_model.work.unread import unread_macs
from eamsim import artifact, engine, golden, tensors
from eamsim.artifact import ArtifactError
from eamsim.check import ProgramError
from eamsim.constraints import Verified, verify
from eamsim.datapath import FLOORS
from eamsim.errors import UserError
from eamsim.exports import c99, onnx_integer, onnx_qdq
from eamsim.jobs.costs.findings import findings
from eamsim.narrow import narrowed, widths_of
from eamsim.program import Program
from eamsim.traces.difference import first_difference

MUTANTS, SEED = int(os.environ.get("EAMSIM_PROGRAM_MUTANTS", "150")), int(os.environ.get("EAMSIM_SEED", "0"))
SLOW_READERS = 10  # of so many accepted mutants one is read by the readers that take long
CHIP = load("small-npu")
READERS: dict[str, Callable[[Any], object]] = {
    "golden": lambda program: golden.run(program, np.zeros((4, 4, 3), np.uint8)),
    "engine": engine.Engine,
    "onnx": onnx_integer.export,
    "qdq": onnx_qdq.export,
    "c": c99.encode,
    "counts": count_operations,
    "unread": unread_macs,
    "scalesim": scalesim_csv,
    "zigzag": zigzag_yaml,
    "report": lambda program: findings(program, CHIP, 1),
    "taps": tensors.taps,
    "narrow": lambda program: narrowed(program, FLOORS),
}


@pytest.fixture(scope="module")
def c_model(tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    """The C model, compiled once: it reads any program.bin beside it."""
    if shutil.which("cc") is None:
        return None
    folder = tmp_path_factory.mktemp("c")
    c99.runtime(random_program(Shape(seed=0)), folder)
    return folder / "model"


@pytest.mark.slow
def test_every_reader_refuses_exactly_what_the_verifier_refuses(tmp_path: Path, c_model: Path | None):
    found: Counter[str] = Counter()
    for number in range(SEED, SEED + MUTANTS):
        change, program = mutant(number)
        try:
            found[judged(program, number, tmp_path / "m.eam", c_model)] += 1
        except BaseException as error:
            error.add_note(f"mutant {number}: {change}")
            raise
    print(f"program mutants {SEED}..{SEED + MUTANTS - 1}", dict(found.most_common()))
    assert found["accepted"] >= MUTANTS // 10
    assert len(found) >= min(MUTANTS // 10, 20)


def judged(program: Program, number: int, path: Path, c_model: Path | None) -> str:
    """`accepted`, `limits of the engine`, or the constraint that refuses it."""
    forge(path, program)
    verdict = verified(program)
    if isinstance(verdict, str):
        for reader in READERS.values():
            with pytest.raises(ProgramError, match=r"pass verify\(program\)$"):
                reader(program)
        with suppress(ArtifactError):  # or what is wrong was lost in writing, such as codes that no mask shows
            assert not same(unproved(artifact.read(path)[0]), program)
        return verdict
    sha256 = artifact.program_sha256(verdict)
    assert artifact.program_sha256(artifact.read(path)[0]) == sha256
    assert artifact.program_sha256(narrowed(verdict, widths_of(verdict))) == sha256
    image = random_images(verdict, 2, number)[1]
    expected = run_golden(verdict, image)
    if c_model is not None:
        (c_model.parent / "program.bin").write_bytes(c99.encode(verdict))
        assert first_difference(expected, c99.run(c_model, image)) is None
    read_by_cost(verdict)
    if number % SLOW_READERS == 0:
        read_slowly(verdict, image, expected)
    return run_engine(verdict, image, expected)


def verified(program: Program) -> Verified | str:
    """The program with its proof, or the number of the constraint that it breaks."""
    try:
        return verify(program)
    except ProgramError as refusal:
        return re.findall(r" \[([CDP]\d+)\]: ", str(refusal))[0]


def forge(path: Path, program: Program) -> None:
    """The file that this program would be in, or other bytes where nothing can write it."""
    path.write_bytes(b"")
    forged = object.__new__(Verified)
    for name, item in vars(program).items():
        object.__setattr__(forged, name, item)
    with suppress(Exception):  # of a program that the verifier accepts, the file is read
        artifact.write(path, forged, {})


def same(one: Any, other: Any) -> bool:
    """In every class and every number."""
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if is_dataclass(one):
        return all(same(getattr(one, each.name), getattr(other, each.name)) for each in fields(one))
    return one == other


def run_golden(program: Verified, image: np.ndarray) -> dict[str, np.ndarray]:
    """Its taps: of the declared shapes, within the declared registers and bounds."""
    found: dict[str, np.ndarray] = {}
    golden.run(program, image, found)
    declared = tensors.taps(program)
    assert list(found) == [name for name in declared if name != program.image.name]
    for name, integers in found.items():
        tap = declared[name]
        assert integers.shape == tap.value.shape, name
        assert tap.value.low <= tap.bound[0] <= integers.min() <= integers.max() <= tap.bound[1] <= tap.value.high, name
    return found


def read_by_cost(program: Verified) -> None:
    count_operations(program)
    unread_macs(program)
    scalesim_csv(program)
    zigzag_yaml(program)
    for op in program.operations:
        tensors.constants(op, program)
    assert str(program)


def read_slowly(program: Verified, image: np.ndarray, expected: dict[str, np.ndarray]) -> None:
    """By onnxruntime, in float, and by the report, which says what it cannot freeze."""
    onnx_qdq.export(program)
    assert first_difference(expected, onnx_integer.runtime_onnxruntime(onnx_integer.export(program, taps=True))(image)) is None
    try:
        findings(program, CHIP, 1)
    except UserError as refusal:
        if "its heads lose or regain q and k only where" not in str(refusal):
            raise


def run_engine(program: Verified, image: np.ndarray, expected: dict[str, np.ndarray]) -> str:
    """Equal to golden at every tap, unless a limit of the README is named."""
    if program.datapath.rounding != "half_up":  # compiled apart, for minutes
        return "accepted"
    try:
        loaded = engine.Engine(program, threads=1)
    except ProgramError:
        raise
    except UserError:
        return "limits of the engine"
    logits, taps = loaded.run(image[None], taps=True)
    assert first_difference(expected, {name: array[0] for name, array in taps.items()}) is None
    np.testing.assert_array_equal(loaded.run(image[None]), logits)
    return "accepted"
