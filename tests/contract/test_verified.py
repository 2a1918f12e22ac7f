"""One door: every reader takes a proved program and nothing else, and no command proves twice what it read once."""

import ast
import copy
import pickle
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_line import eamsim, save_data, save_model
from programs import Shape, operation, random_program, unproved

from cost_model.chip.hardware import load
from cost_model.exports import layers, scalesim_csv, zigzag_yaml
from cost_model.models.variants import thawed
from cost_model.price.energy import evaluate, workload
from cost_model.work.counts import count, count_operations
from cost_model.work.ledger import ledger
from cost_model.work.unread import unread_macs
from eamsim import artifact, engine, golden, tensors
from eamsim import constraints as verify
from eamsim.check import ProgramError
from eamsim.constraints import Verified
from eamsim.exports import c99 as c_export
from eamsim.exports import onnx_integer as onnx_export
from eamsim.exports import onnx_qdq
from eamsim.narrow import narrowed, widths_of
from eamsim.program import Gather, Operation, Program
from eamsim.traces import file as trace_file

PLAIN = random_program(Shape(seed=0))
IMAGE = np.zeros(PLAIN.image.shape, np.uint8)
CHIP = load("small-npu")
DIGITS = Path(__file__).parents[2] / "eamsim/data/digits/digits.eam"

READERS: dict[str, Callable] = {
    "golden": lambda program: golden.run(program, IMAGE),
    "engine": engine.Engine,
    "tensors": tensors.taps,
    "onnx": onnx_export.export,
    "qdq": onnx_qdq.export,
    "c": lambda program: c_export.runtime(program, Path("never")),
    "artifact": lambda program: artifact.write("never.eam", program, {}),
    "narrow": lambda program: narrowed(program, widths_of(PLAIN)),
    "trace": lambda program: trace_file.recording("never.h5", program, ["head"], ["one"], "golden", True, {}).__enter__(),
    "count": count,
    "count_operations": count_operations,
    "workload": lambda program: workload(program, CHIP.compute),
    "evaluate": lambda program: evaluate(program, CHIP),
    "layers": lambda program: list(layers(program)),
    "scalesim": scalesim_csv,
    "zigzag": zigzag_yaml,
    "ledger": ledger,
    "thawed": thawed,
    "unread": unread_macs,
}


@pytest.mark.parametrize("reader", READERS)
def test_a_reader_refuses_a_program_that_nobody_proved(reader: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ProgramError, match=r"^program: expected eamsim\.constraints\.Verified, got Program; pass verify\(program\)$"):
        READERS[reader](unproved(PLAIN))
    assert not list(tmp_path.iterdir())


def test_no_function_takes_an_unproved_program_but_those_that_prove_or_write_it():
    root, takes = Path(__file__).parents[2], set()
    for path in (*root.glob("eamsim/**/*.py"), *root.glob("cost_model/**/*.py"), *root.glob("reference/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.arg) and node.annotation is not None and re.search(r"\bProgram\b", ast.unparse(node.annotation)):
                takes.add(path.name)
    assert takes == {"constraints.py", "artifact.py", "frozen.py"}


@pytest.mark.parametrize("remade", [replace, copy.copy, copy.deepcopy, lambda program: pickle.loads(pickle.dumps(program))])
def test_what_is_made_of_a_proved_program_is_proved(remade: Callable):
    made = remade(PLAIN)
    assert type(made) is Verified
    assert made.bounds == PLAIN.bounds


def test_a_proof_cannot_go_out_of_date():
    patches = operation(PLAIN, "patches", Gather)
    with pytest.raises(ValueError, match="read-only"):
        patches.indices[0] = 1 << 20
    wrong = replace(patches, indices=np.full_like(patches.indices, 1 << 20))
    with pytest.raises(ProgramError, match=r"patches Gather \[C2\]: indices must lie in"):
        replace(PLAIN, operations=tuple(wrong if op is patches else op for op in PLAIN.operations))


@pytest.fixture
def proofs(monkeypatch):
    """Programs proved, and how often each of their operations was, while the test runs."""
    programs: list[Program] = []
    operations: Counter[Operation] = Counter()
    prove, verify_operation = verify.prove, verify.verify_operation

    def counted(check, op, values):
        operations[op] += 1
        return verify_operation(check, op, values)

    monkeypatch.setattr(verify, "prove", lambda program: programs.append(program) or prove(program))
    monkeypatch.setattr(verify, "verify_operation", counted)
    return programs, operations


def test_a_program_that_has_its_proof_is_returned_as_it_is(proofs):
    assert verify.verify(PLAIN) is PLAIN
    assert proofs[0] == []


COMMANDS = {
    "run": ("run", "m.eam", "d.npz"),
    "eval": ("eval", "m.eam", "--data", "d.npz"),
    "verify": ("verify", "m.eam", "--data", "d.npz", "--images", "2", "--batch", "2", "--with", "onnxruntime"),
    "cost": ("cost", "m.eam"),
    "search": ("search", "m.eam", "--granularity", "own", "--rows", "8", "--columns", "8", "--sram", "256", "--batch", "1"),
    "export": ("export", "m.eam", "-o", "m.onnx", "--taps"),
    "export --qdq": ("export", "m.eam", "-o", "m.onnx", "--qdq"),
    "export --c": ("export", "m.eam", "--c", "c"),
    "convert": ("convert", "m.eam", "-o", "n.eam"),
    "trace record": ("trace", "record", "m.eam", "--data", "d.npz", "-o", "t.h5", "--images", "2"),
    "trace record --by golden": ("trace", "record", "m.eam", "--data", "d.npz", "-o", "t.h5", "--images", "2", "--by", "golden"),
    "trace export": ("trace", "export", "m.eam", "--data", "d.npz", "-o", "vectors"),
    "trace diff": ("trace", "diff", "recorded.h5", "m.eam"),
    "bench": ("bench", "m.eam", "--data", "d.npz", "--rounds", "3", "--batch", "1"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_proves_the_program_that_it_reads_once(command: str, tmp_path: Path, monkeypatch, proofs):
    monkeypatch.chdir(tmp_path)
    program = save_model(tmp_path / "m.eam")
    save_data(tmp_path / "d.npz", program, 2)
    if command == "trace diff":
        assert eamsim("trace", "record", "m.eam", "--data", "d.npz", "-o", "recorded.h5").code == 0
    programs, operations = proofs
    programs.clear()
    operations.clear()

    done = eamsim(*COMMANDS[command])

    assert done.code == 0, done.err
    assert len(programs) == 1
    assert set(operations.values()) == {1}
    assert len(operations) == len(program.operations)


@pytest.mark.parametrize("command", [
    ("cost", DIGITS, "--hw", "small-npu", "--tau", "0,0.5"),
    ("report", DIGITS, "--hw", "small-npu", "-o", "r.html"),
    ("search", DIGITS, "--granularity", "own,row,head", "--rows", "8", "--columns", "8", "--sram", "256", "--batch", "1"),
    ("demo",),
], ids=lambda command: command[0])  # fmt: skip
def test_a_command_that_varies_a_program_proves_each_operation_once(command: tuple, tmp_path: Path, monkeypatch, proofs):
    monkeypatch.chdir(tmp_path)
    done = eamsim(*command)
    assert done.code == 0, done.err
    assert max(proofs[1].values()) == 1


WHAT_READS_ONCE = {
    "widths": ("widths", "m.eam", "--data", "d.npz", "-o", "y.eam", "--evaluations", "2"),
    "compare": (
        "compare",
        DIGITS,
        f"local-dir:{DIGITS.parent}",
        "--data",
        DIGITS.with_name("digits_test.npz"),
        "--limit",
        "2",
        "--sources",
    ),
}


@pytest.mark.parametrize("command", WHAT_READS_ONCE)
def test_a_command_that_makes_others_of_a_program_reads_it_once(command: str, tmp_path: Path, monkeypatch, proofs):
    if command == "compare":
        pytest.importorskip("timm", reason="needs the extra 'reference'")
    monkeypatch.chdir(tmp_path)
    save_data(tmp_path / "d.npz", save_model(tmp_path / "m.eam"), 9)
    proofs[0].clear()
    proofs[1].clear()
    reads = []
    original = artifact.read
    monkeypatch.setattr(artifact, "read", lambda path: reads.append(str(path)) or original(path))
    done = eamsim(*WHAT_READS_ONCE[command])
    assert done.code == 0, done.err
    assert reads == [str(WHAT_READS_ONCE[command][1])]
    assert set(proofs[1].values()) == {1}
