"""`eamsim trace`: what it exports, and how it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import eamsim, save_data, save_model

from eamsim import artifact, golden
from eamsim.constraints import Verified
from eamsim.files.origin import without_folders
from eamsim.traces.vectors import read_hex, read_manifest

USAGE = 2


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tmp_path / "m.eam"


@pytest.fixture
def program(model: Path) -> Verified:
    return save_model(model)


@pytest.fixture
def data(program: Verified, tmp_path: Path) -> Path:
    save_data(tmp_path / "d.npz", program, 4)
    return tmp_path / "d.npz"


def test_export_of_one_operation(model: Path, program: Verified, data: Path, tmp_path: Path):
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


@pytest.mark.parametrize("by", ["engine", "golden"])
def test_record_and_inspect(model: Path, program: Verified, data: Path, tmp_path: Path, by: str):
    out = tmp_path / "t.h5"
    done = eamsim("trace", "record", model, "--data", data, "--images", 3, "--batch", 2, "--by", by, "-o", out, "--json")
    assert done.code == 0
    manifest = json.loads(done.out)
    assert without_folders(manifest) == json.loads((tmp_path / "t.h5.json").read_text())
    assert manifest["output"]["sha256"] == artifact.sha256(out)
    expected: list[dict[str, np.ndarray]] = []
    for image in np.load(data)["images"][[0, 1, 2]]:
        expected.append({})
        golden.run(program, image, expected[-1])
    taps = json.loads(eamsim("trace", "inspect", out, "--json").out)["taps"]
    assert list(taps) == list(expected[0])
    for name, entry in taps.items():
        integers = np.stack([each[name] for each in expected])
        assert entry["range"] == [integers.min(), integers.max()]
        assert entry["elements"] == integers.size
        if entry["histogram"]:
            np.testing.assert_array_equal(entry["histogram"], np.bincount(integers.ravel(), minlength=1 << entry["bits"]))
        if "peak" in entry:
            assert entry["peak"] == np.abs(integers).max() <= entry["proven"]
    shown = eamsim("trace", "inspect", out)
    assert "accumulator" in shown.out
    assert "block0.attn.scores" in shown.out


@pytest.mark.slow
def test_the_engine_and_the_golden_interpreter_record_equal_digests(model: Path, data: Path, tmp_path: Path):
    command = ("trace", "record", model, "--data", data, "--images", 3, "--digests", "--batch", 2)
    assert eamsim(*command, "-o", tmp_path / "e.h5").code == 0
    assert eamsim(*command, "--by", "golden", "-o", tmp_path / "g.h5").code == 0
    done = eamsim("trace", "diff", tmp_path / "e.h5", tmp_path / "g.h5")
    assert (done.code, done.out.split(":")[0]) == (0, "equal")


def test_a_file_is_replaced_only_for_a_reason(model: Path, data: Path, tmp_path: Path):
    command = ("trace", "record", model, "--data", data, "--images", 1, "--digests", "-o", tmp_path / "t.h5")
    assert eamsim(*command).code == 0
    before = (tmp_path / "t.h5").read_bytes()
    done = eamsim(*command)
    assert (done.code, done.err.count("\n")) == (USAGE, 1)
    assert "t.h5 exists; say with --reason why" in done.err
    assert (tmp_path / "t.h5").read_bytes() == before
    assert eamsim(*command, "--reason", "retrained").code == 0
    shown = eamsim("trace", "inspect", tmp_path / "t.h5", "--taps", "head*")
    assert "reason: retrained" in shown.out
    assert "sha256 of image 0: " in shown.out


def test_record_refuses(model: Path, data: Path, tmp_path: Path):
    done = eamsim("trace", "record", model, "--data", data, "-o", tmp_path / "none" / "t.h5")
    assert done.code == USAGE
    assert "t.h5 cannot be written; choose a file in an existing, writable folder" in done.err


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
