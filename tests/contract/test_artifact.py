"""The .eam file: what goes in comes out, equal programs make equal bytes, and no damaged or hostile file gets through."""

import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import get_args

import h5py
import numpy as np
import pytest
from eam_files import parts, write_version_1
from programs import Shape, random_program

from eamsim import artifact
from eamsim.artifact import ArtifactError, program_sha256, read, sha256, write
from eamsim.check import ProgramError
from eamsim.constraints import Verified
from eamsim.errors import UserError
from eamsim.program import Attention, Epilogue, InputQuant, LayerNorm, Linear, Operation, Value

VIT = Shape(1, freeze="scattered", softmax="renormalised", last_code_is_zero=True)
FITTED = dataclasses.replace(VIT, fitted=True, depth=3)
SWIN = Shape(2, windows=2, freeze="rows", biased=True, pooled=True, prefix=0)
PROVENANCE = {"command": "eamsim build ö", "scales": [0.1, 1e-300], "seed": None}
FORMAT_PAGE = Path(__file__).parents[2] / "docs" / "spec" / "format.md"


def assert_same(expected, got, where="program"):
    """Equal in every type, every number, and in dtype, shape and element of every array."""
    assert type(got) is type(expected), where
    if isinstance(expected, np.ndarray):
        assert got.dtype == expected.dtype, where
        assert not got.flags.writeable, where
        assert got.flags.c_contiguous, where
        np.testing.assert_array_equal(got, expected, err_msg=where, strict=True)
    elif dataclasses.is_dataclass(expected):
        for field in dataclasses.fields(expected):
            assert_same(getattr(expected, field.name), getattr(got, field.name), f"{where}.{field.name}")
    elif isinstance(expected, tuple):
        assert len(got) == len(expected), where
        for index, (one, other) in enumerate(zip(expected, got, strict=True)):
            assert_same(one, other, f"{where}[{index}]")
    else:
        assert got == expected, where


def small_program() -> Verified:
    """The worked example of docs/spec/format.md."""
    image = Value("image", (1, 2, 3), 8)
    table = np.zeros((3, 256), np.uint8)
    table[0, :2] = 5, 9
    return Verified("example", image, (InputQuant("image", Value("input", (1, 2, 3), 4), table),))


@pytest.fixture
def path(tmp_path):
    """A written VIT program."""
    path = tmp_path / "vit.eam"
    write(path, random_program(VIT), PROVENANCE)
    return path


@pytest.mark.parametrize(
    "shape", [VIT, FITTED, SWIN, dataclasses.replace(VIT, freeze="empty"), dataclasses.replace(VIT, freeze="all", softmax="paper")]
)
def test_a_program_and_its_provenance_come_back_as_they_were(tmp_path, shape):
    program = random_program(shape)

    write(tmp_path / "a.eam", program, PROVENANCE)
    got, provenance = read(str(tmp_path / "a.eam"))

    assert_same(program, got)
    assert provenance == PROVENANCE


@pytest.mark.parametrize("shape", [VIT, SWIN])
def test_version_1_is_read_and_has_the_same_program_sha256(tmp_path, shape):
    program = random_program(shape)
    write_version_1(tmp_path / "old.eam", program, PROVENANCE)
    got, provenance = read(tmp_path / "old.eam")

    assert_same(program, got)
    assert provenance == PROVENANCE
    with h5py.File(tmp_path / "old.eam") as file:
        manifest = file["manifest"]
        assert isinstance(manifest, h5py.Dataset)
        assert artifact.program_sha256(got) == hashlib.sha256(manifest[()].tobytes()).hexdigest()


def test_each_array_is_a_tensor_of_its_own_named_after_what_it_makes(tmp_path):
    program = random_program(VIT)
    write(tmp_path / "a.eam", program, {})
    _, tensors = parts(tmp_path / "a.eam")
    numbers, names = zip(*(name.split(".", 1) for name in sorted(tensors)), strict=True)

    assert [int(number) for number in numbers] == list(range(1, len(tensors) + 1))
    for op in program.operations:
        if isinstance(op, Linear):
            assert {f"{op.out.name}.{field}" for field in ("weight", "weight_zero", "bias", "epilogue.shift")} <= set(names)
            shift = tensors[f"{names.index(f'{op.out.name}.epilogue.shift') + 1:04}.{op.out.name}.epilogue.shift"]
            if shift.shape == op.epilogue.shift.shape:  # not so many bits that they are packed
                np.testing.assert_array_equal(shift, op.epilogue.shift)


def test_levels_make_version_3_and_every_other_program_stays_as_it_was(tmp_path):
    for name, shape in (("plain", VIT), ("fitted", FITTED)):
        write(tmp_path / f"{name}.eam", random_program(shape), {})
    (plain, _), (fitted, _) = parts(tmp_path / "plain.eam"), parts(tmp_path / "fitted.eam")

    assert (plain["version"], fitted["version"]) == (2, 3)
    linears = [[op for op in head["program"]["operations"] if op["kind"] == "Linear"] for head in (plain, fitted)]
    assert not any("levels" in op for op in linears[0])
    assert 0 < sum("levels" in op for op in linears[1]) < len(linears[1])


def test_queries_make_version_4_which_a_reader_of_version_3_refuses_by_name(tmp_path, monkeypatch):
    program = random_program(dataclasses.replace(FITTED, queries=2))
    write(tmp_path / "a.eam", program, {})
    assert parts(tmp_path / "a.eam")[0]["version"] == 4
    assert program_sha256(read(tmp_path / "a.eam")[0]) == program_sha256(program)

    monkeypatch.setattr("eamsim.files.tensor_file.VERSIONS", (2, 3))
    with pytest.raises(
        ArtifactError, match=r"format and version: expected 'eam' and one of \[2, 3\], got \('eam', 4\); use the eamsim that"
    ):
        read(tmp_path / "a.eam")


def test_the_shapes_above_hold_every_operation_epilogue_and_optional_field():
    operations = [op for shape in (VIT, FITTED, SWIN) for op in random_program(shape).operations]

    assert {op.levels is None for op in operations if isinstance(op, Linear)} == {False, True}
    assert {type(op) for op in operations} == set(get_args(Operation))
    assert {type(op.epilogue) for op in operations if isinstance(op, Linear)} == set(get_args(Epilogue))
    attentions = [op for op in operations if isinstance(op, Attention)]
    assert any(op.frozen is not None for op in attentions)
    assert any(op.frozen is None or op.logit_bias is None for op in attentions)
    assert any(op.logit_bias is not None and op.excluded is not None for op in attentions)


def test_the_manifest_is_the_one_printed_in_the_format_page(tmp_path):
    write(tmp_path / "a.eam", small_program(), {})

    head, tensors = parts(tmp_path / "a.eam")

    page = FORMAT_PAGE.read_text().split("```json\n")[1].split("```")[0]
    assert json.loads(page) == head
    assert list(tensors) == ["0001.input.table"]
    np.testing.assert_array_equal(tensors["0001.input.table"], np.array([5 | 9 << 4, *[0] * 383], np.uint8), strict=True)
    assert artifact.program_sha256(small_program()) in FORMAT_PAGE.read_text()


def test_equal_input_makes_equal_bytes_in_another_process_too(tmp_path):
    script = (
        "import sys; from programs import *; from eamsim.artifact import write;"
        f"write(sys.argv[1], random_program({SWIN!r}), {{'b': 1, 'a': 2}})"
    )
    write(tmp_path / "here.eam", random_program(SWIN), {"a": 2, "b": 1})
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", script, tmp_path / "there.eam"], check=True, env=environment)

    assert (tmp_path / "here.eam").read_bytes() == (tmp_path / "there.eam").read_bytes()
    assert sha256(tmp_path / "here.eam") == hashlib.sha256((tmp_path / "there.eam").read_bytes()).hexdigest()


def test_a_deit_tiny_stays_within_115_percent_of_its_4_bit_parameters(tmp_path):
    program = random_program(Shape(3, side=224, patch=16, heads=3, head_dim=64, hidden=768, depth=12))
    head = program.operations[-1]
    assert isinstance(head, Linear)
    arrays = {name: np.repeat(getattr(head, name), 200, axis=-1) for name in ("weight", "weight_zero", "bias")}
    ratio = {name: np.repeat(getattr(head.epilogue, name), 200) for name in ("multiplier", "shift")}
    epilogue = dataclasses.replace(head.epilogue, **ratio)
    head = dataclasses.replace(head, out=Value("head", (1, 1000), 32, True), epilogue=epilogue, **arrays)
    program = dataclasses.replace(program, operations=(*program.operations[:-1], head))

    write(tmp_path / "deit.eam", program, {})

    assert parameters(program) == 5_717_416
    assert (tmp_path / "deit.eam").stat().st_size <= 1.15 * parameters(program) / 2


def parameters(program):
    """As timm counts them: weights, biases, LayerNorm gains and offsets, class token and position embedding."""
    linears = sum(op.weight.size + op.bias.size for op in program.operations if isinstance(op, Linear))
    norms = sum(op.gain.size + op.offset.size for op in program.operations if isinstance(op, LayerNorm))
    class_token, position = 192, 197 * 192
    return linears + norms + class_token + position


def test_frozen_maps_take_one_bit_per_element_and_four_per_frozen_element(tmp_path):
    shape = dataclasses.replace(VIT, side=32, softmax="paper")
    frozen = random_program(shape)
    write(tmp_path / "frozen.eam", frozen, {})
    (attention,) = (op for op in frozen.operations if isinstance(op, Attention))
    assert attention.frozen is not None
    bare = [dataclasses.replace(op, frozen=None) if isinstance(op, Attention) else op for op in frozen.operations]
    write(tmp_path / "bare.eam", dataclasses.replace(frozen, operations=tuple(bare)), {})

    map_bytes, row_bytes = attention.frozen.mask.size / 8 + attention.frozen.mask.sum() / 2, attention.frozen.row_log2.size * 2

    sizes = [sum(tensor.nbytes for tensor in parts(tmp_path / name)[1].values()) for name in ("bare.eam", "frozen.eam")]
    assert sizes[1] - sizes[0] <= map_bytes + row_bytes + 2


def refused(path, content, program):
    """Whether `read` refuses the content with one line; if it does not, nothing may have changed."""
    path.write_bytes(content)
    try:
        got, provenance = read(path)
    except ArtifactError as error:
        return str(error).startswith(f"{path}: ") and "\n" not in str(error)
    assert_same(program, got)
    assert provenance == PROVENANCE
    return False


def test_no_flipped_bit_is_silent(path):
    content, program, rng = path.read_bytes(), random_program(VIT), np.random.default_rng(0)
    count = 0
    for position in rng.integers(8 * len(content), size=300):
        flipped = bytearray(content)
        flipped[position // 8] ^= 1 << (position % 8)
        count += refused(path, flipped, program)

    assert count == 300


def test_no_truncation_is_silent(path):
    content, program, rng = path.read_bytes(), random_program(VIT), np.random.default_rng(1)

    for length in [0, 1, 8, len(content) - 1, *rng.integers(len(content), size=100)]:
        assert refused(path, content[:length], program)


def test_write_refuses_what_read_would_refuse_and_leaves_the_old_file(path):
    old, program = path.read_bytes(), random_program(VIT)

    with pytest.raises(ProgramError, match="P1"):
        write(path, dataclasses.replace(program, operations=()), {})
    with pytest.raises(ProgramError, match=r"P4\]: names must be printable, got 'two\\nlines'"):
        write(path, dataclasses.replace(program, name="two\nlines"), {})
    with pytest.raises(UserError, match=r"provenance: expected what JSON holds .*not JSON compliant"):
        write(path, program, {"scale": float("nan")})

    assert path.read_bytes() == old
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "folder.eam").mkdir()

    with pytest.raises(ArtifactError, match=r"a\.eam: expected a writable file in an existing folder, got 'No such file or directory'"):
        write(tmp_path / "none" / "a.eam", small_program(), {})
    with pytest.raises(ArtifactError, match=r"folder\.eam: expected a writable file in an existing folder, got 'Is a directory'"):
        write(tmp_path / "folder.eam", small_program(), {})

    assert [file.name for file in tmp_path.iterdir()] == ["folder.eam"]


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_writer_killed_at_the_worst_moment_leaves_the_old_file(path, moment):
    script = (
        "import os, signal, sys; from programs import *; from eamsim.artifact import write;"
        f"os.{moment} = lambda *_: os.kill(os.getpid(), signal.SIGKILL); write(sys.argv[1], random_program({SWIN!r}), {{}})"
    )
    old, environment = path.read_bytes(), os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run([sys.executable, "-c", script, path], env=environment)

    assert killed.returncode == -signal.SIGKILL
    assert path.read_bytes() == old
    (leftover,) = (file for file in path.parent.iterdir() if file != path)

    write(path, random_program(VIT), {})
    assert leftover.exists(), "a fresh temporary file may belong to a writer that is still alive"
    os.utime(leftover, (0, 0))
    write(path, random_program(VIT), {})
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_new_file_has_the_usual_permissions(tmp_path):
    (tmp_path / "plain").touch()
    write(tmp_path / "a.eam", small_program(), {})

    assert (tmp_path / "a.eam").stat().st_mode == (tmp_path / "plain").stat().st_mode
