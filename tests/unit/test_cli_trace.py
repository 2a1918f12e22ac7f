"""`eamsim trace`: what it exports, and how it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import eamsim, save_data, save_model

from eamsim import golden
from eamsim.program import Program
from eamsim.vectors import read_hex, read_manifest

USAGE = 2


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tmp_path / "m.eam"


@pytest.fixture
def program(model: Path) -> Program:
    return save_model(model)


@pytest.fixture
def data(program: Program, tmp_path: Path) -> Path:
    save_data(tmp_path / "d.npz", program, 4)
    return tmp_path / "d.npz"


def test_export_of_one_operation(model: Path, program: Program, data: Path, tmp_path: Path):
    out = tmp_path / "v"
    done = eamsim("trace", "export", model, "--data", data, "--images", 2, "-o", out, "--operations", "block0.attn.proj", "--json")
    assert done.code == 0
    manifest, layout, entries = read_manifest(out)
    assert json.loads(done.out) == manifest
    taps = ["embed", "block0.attn", "block0.attn.proj.acc", "block0.attn.proj"]
    constants = [f"block0.attn.proj.{name}" for name in ("weight", "weight_zero", "bias", "multiplier", "shift")]
    assert [entry.name for entry in entries] == taps + constants
    assert manifest["operations"][0]["exponent_change"] == program.operations[7].epilogue.exponent_change  # pyright: ignore
    chosen = np.load(data)["images"][[0, 2]]
    for index, image in enumerate(chosen):
        expected: dict[str, np.ndarray] = {}
        golden.run(program, image, expected)
        for entry in entries[: len(taps)]:
            np.testing.assert_array_equal(read_hex(out / entry.file, entry, layout)[index], expected[entry.name])
    np.testing.assert_array_equal(read_hex(out / entries[4].file, entries[4], layout), program.operations[7].weight)  # pyright: ignore


def test_export_of_all_taps_in_tiles(model: Path, data: Path, tmp_path: Path):
    options = ("--word-bits", 64, "--first", "high", "--tile", "4x4", "--format", "readmemh,npz")
    done = eamsim("trace", "export", model, "--data", data, "-o", tmp_path / "v", *options)
    assert done.code == 0
    assert "image " in done.out
    assert (tmp_path / "v" / "tensors.npz").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--format", "vcd"), "--format: expected some of readmemh, npz, jsonl"),
        (("--tile", "4"), "--tile: expected rows x columns such as 16x8, got '4'"),
        (("--taps", "blok*"), "--taps: 'blok*' fits none of image, input"),
        (("--operations", "image"), "--operations: 'image' fits none of input, patches"),
    ],
)
def test_export_refuses(model: Path, data: Path, tmp_path: Path, options: tuple[str, ...], message: str):
    done = eamsim("trace", "export", model, "--data", data, "-o", tmp_path / "v", *options)
    assert done.code == USAGE
    assert message in done.err
    assert not (tmp_path / "v").exists()
