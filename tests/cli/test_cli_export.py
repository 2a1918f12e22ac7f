"""`eamsim export` and `eamsim verify --with`: what they write and compare, and how they refuse."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import eamsim, forget_modules, save_data, save_model

from eamsim import artifact, golden
from eamsim.constraints import Verified
from eamsim.engine import isa
from eamsim.errors import UserError
from eamsim.exports import c99 as c_export
from eamsim.exports import onnx_integer as onnx_export
from eamsim.files.origin import without_folders
from eamsim.traces.difference import Taps

USAGE, BAD_FILE, MISSING_EXTRA = 2, 3, 4
needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_model(tmp_path / "m.eam")
    return tmp_path / "m.eam"


@pytest.fixture
def program(model: Path) -> Verified:
    return artifact.read(model)[0]


@pytest.fixture
def data(program: Verified, tmp_path: Path) -> Path:
    save_data(tmp_path / "d.npz", program, 2)
    return tmp_path / "d.npz"


@pytest.mark.parametrize("taps", [False, True])
def test_onnx(model: Path, program: Verified, tmp_path: Path, taps: bool):
    out = tmp_path / "m.onnx"
    done = eamsim("export", model, "-o", out, *(["--taps"] if taps else []), "--json")
    assert done.code == 0
    manifest = json.loads(done.out)
    assert manifest["output"] == [{"file": str(out), "bytes": out.stat().st_size, "sha256": artifact.sha256(out)}]
    assert manifest["input"]["sha256"] == artifact.sha256(model)
    assert json.loads((tmp_path / "m.onnx.json").read_text()) == without_folders(manifest)
    image, expected = np.full(program.image.shape, 7, np.uint8), {}
    logits = golden.run(program, image, expected)
    found = onnx_export.runtime_onnxruntime(onnx.load(out))(image)
    assert list(found) == (list(expected) if taps else ["head"])
    np.testing.assert_array_equal(found["head"].ravel(), logits)


def test_c(model: Path, tmp_path: Path):
    folder = tmp_path / "c"
    for _ in range(2):  # a folder that exists is written over
        done = eamsim("export", model, "--c", folder)
        assert done.code == 0
        names = [*c_export.SOURCES, "program.bin"]
        assert [line.split(":")[0] for line in done.out.splitlines()] == [str(folder / name) for name in names]
    assert sorted(path.name for path in folder.iterdir()) == sorted([*names, "manifest.json"])
    output = json.loads((folder / "manifest.json").read_text())["output"]
    assert [entry["sha256"] for entry in output] == [artifact.sha256(folder / name) for name in names]


def test_export_refuses(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for arguments, code, text in (
        ([], USAGE, "expected -o X.onnx, --c DIR or both, got neither"),
        (["-o", tmp_path / "m.txt"], USAGE, "--out: expected a name that ends in .onnx"),
        (["-o", tmp_path / "gone" / "m.onnx"], USAGE, "m.onnx cannot be written"),
        (["--qdq", "--c", tmp_path / "c"], USAGE, "--qdq: expected -o X.onnx without --taps"),
        (["--qdq", "--taps", "-o", tmp_path / "m.onnx"], USAGE, "--qdq: expected -o X.onnx without --taps"),
        (["--c", model], BAD_FILE, "m.eam: expected a writable folder, got 'Not a directory'"),
    ):
        done = eamsim("export", model, *arguments)
        assert (done.code, done.out) == (code, "")
        assert text in done.err
    forget_modules(monkeypatch, *(f"eamsim.exports.{module}" for module in ("onnx_integer", "onnx_graph", "onnx_qdq")))
    monkeypatch.setitem(sys.modules, "onnx", None)
    done = eamsim("export", model, "-o", tmp_path / "m.onnx")
    assert done.code == MISSING_EXTRA
    assert done.err == "error: eamsim export -o X.onnx needs the extra 'onnx': pip install 'eamsim[onnx]'\n"
    assert [path.name for path in tmp_path.iterdir()] == ["m.eam"]


ONE_ENGINE = ("--isa", isa.detect()[-1], "--threads", "1", "--batch", "2")


def test_qdq_is_marked_as_approximate(model: Path, tmp_path: Path):
    assert eamsim("export", model, "--qdq", "-o", tmp_path / "m.onnx").code == 0
    properties = {item.key: item.value for item in onnx.load(tmp_path / "m.onnx").metadata_props}
    assert properties == {"arithmetic": "approximate: float32 with quantise-dequantise pairs, not equal to the program"}


@needs_compiler
def test_verify_with_others(model: Path, program: Verified, data: Path):
    done = eamsim("verify", model, "--data", data, *ONE_ENGINE, "--with", "onnxruntime,onnx,c", "--json")
    assert done.code == 0
    result = json.loads(done.out)
    assert (result["bit_exact"], result["interpreters"]) == (True, ["engine", "onnxruntime", "onnx", "c"])
    assert "runs compared: 10/10" in done.err


def test_verify_names_the_interpreter_that_differs(model: Path, program: Verified, data: Path, monkeypatch: pytest.MonkeyPatch):
    def runtime(program: Verified, folder: Path):
        def run(image: np.ndarray) -> Taps:
            taps: Taps = {}
            golden.run(program, image, taps)
            taps["block0.norm1"][1, 2] += 1
            return taps

        return run

    monkeypatch.setattr(c_export, "runtime", runtime)
    done = eamsim("verify", model, "--data", data, *ONE_ENGINE, "--with", "c", "--json")
    assert done.code == 1
    result = json.loads(done.out)
    found = result["first_difference"]
    assert (result["bit_exact"], found["interpreter"], found["tap"], found["index"]) == (False, "c", "block0.norm1", [1, 2])
    assert found["image"] == f"{data}[0]"
    done = eamsim("verify", model, "--data", data, *ONE_ENGINE, "--with", "c")
    assert f"NOT bit-exact: {data}[0] with c: block0.norm1[1, 2]: expected" in done.out


def test_verify_refuses(model: Path, data: Path, monkeypatch: pytest.MonkeyPatch):
    done = eamsim("verify", model, "--data", data, "--with", "c,tvm")
    assert (done.code, done.out) == (USAGE, "")
    assert "--with: expected some of onnxruntime, onnx, c with commas between, got 'tvm'" in done.err
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    done = eamsim("verify", model, "--data", data, "--with", "onnxruntime")
    assert (done.code, done.out) == (MISSING_EXTRA, "")
    assert "eamsim verify --with onnxruntime needs the extra 'onnx'" in done.err
    monkeypatch.setenv("PATH", "")
    done = eamsim("verify", model, "--data", data, "--with", "c")
    assert (done.code, done.out) == (USAGE, "")
    assert "expected a C compiler named cc, gcc or clang, got none" in done.err


@needs_compiler
def test_a_c_model_that_fails_is_reported(program: Verified, tmp_path: Path):
    run = c_export.runtime(program, tmp_path)
    with (tmp_path / "program.bin").open("ab") as file:
        file.write(b"0")
    with pytest.raises(UserError, match=r"model: expected exit code 0, got 3: error: .*program\.bin: damaged: its SHA-256"):
        run(np.zeros(program.image.shape, np.uint8))
