"""Every command on small random models: what it computes, what it prints where, and its exit code."""

import json
import os
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest
from command_line import LABELS, eamsim, save_data, save_model
from numpy.testing import assert_array_equal
from PIL import Image

from eamsim import engine, golden
from eamsim.cli import COMMANDS, imported, output
from eamsim.cli.machine import doctor
from eamsim.constraints import Verified
from eamsim.engine import isa
from eamsim.jobs.measure import label_ranks


@dataclass(frozen=True, eq=False)
class Case:
    model: Path
    data: Path
    program: Verified
    images: np.ndarray
    labels: np.ndarray

    @property
    def logits(self) -> np.ndarray:
        return np.stack([golden.run(self.program, image) for image in self.images])


@pytest.fixture
def case(tmp_path: Path) -> Case:
    model, data = tmp_path / "random.eam", tmp_path / "data.npz"
    program = save_model(model)
    return Case(model, data, program, *save_data(data, program))


@pytest.mark.slow
def test_run_prints_the_highest_logits(case: Case, tmp_path: Path):
    picture = tmp_path / "picture.png"
    Image.fromarray(case.images[3]).save(picture)
    done = eamsim("run", case.model, picture, case.data, "--top", "2", "--json")
    assert done.code == 0
    results = json.loads(done.out)["results"]
    assert [result["image"] for result in results] == [str(picture), *(f"{case.data}[{i}]" for i in range(9))]
    logits = case.logits
    for result, row in zip(results, [logits[3], *logits], strict=True):
        order = sorted(range(5), key=lambda c: (-row[c], c))[:2]
        assert result["classes"] == [{"class": c, "label": LABELS[c], "logit": row[c]} for c in order]


def test_run_prints_one_line_an_image(case: Case):
    done = eamsim("run", case.model, case.data, "--top", "1")
    best = case.logits.argmax(axis=1)
    lines = [f"{case.data}[{i}]: {LABELS[c]} ({case.logits[i, c]})" for i, c in enumerate(best)]
    assert done.out.splitlines() == lines


@pytest.mark.parametrize("batch", [1, 4, 32])
def test_eval_counts_hits(case: Case, batch: int):
    done = eamsim("eval", case.model, "--data", case.data, "--batch", batch, "--threads", "1", "--json")
    result = json.loads(done.out)
    assert done.code == 0
    assert result["images"] == 9
    assert result["top1"] == (case.logits.argmax(axis=1) == case.labels).mean()
    assert result["top5"] == 1
    assert result["images_per_second"] >= result["images_per_second_with_decoding"] > 0
    assert "evaluated: 9/9" in done.err


def test_label_ranks_break_ties_by_index():
    logits = np.array([[5, 7, 7, 1], [5, 7, 7, 1], [5, 7, 7, 1], [0, 0, 0, 0]])
    assert_array_equal(label_ranks(logits, np.array([1, 2, 3, 3])), [0, 1, 3, 3])


@pytest.mark.slow
def test_verify_compares_every_setting(case: Case):
    taps: dict[str, np.ndarray] = {}
    golden.run(case.program, case.images[0], taps)
    done = eamsim("verify", case.model, "--data", case.data, "--images", 5, "--batch", "1,2", "--json")
    assert done.code == 0
    expected = {"bit_exact": True, "interpreters": ["engine"], "taps": len(taps) + 1, "images": 5, "first_difference": None}
    found = json.loads(done.out)
    assert found.pop("data") == {"found": 9, "taken": 5, "left_out": {}, "labels": {"how": "not needed"}}
    assert found == expected
    runs = 5 * (1 + len(isa.detect()) * 2 * 2)
    assert f"runs compared: {runs}/{runs}" in done.err


def test_verify_claims_no_batch_that_it_had_no_images_for(case: Case):
    done = eamsim("verify", case.model, "--data", case.data, "--images", 2, "--isa", isa.detect()[0], "--threads", 1, "--batch", "1,3,8")
    assert done.code == 0
    assert done.out.endswith("threads 1; batches 1,2)\n")
    assert "--batch: 8 is more than the 2 images, so calls have 1, 2; see --images" in done.err


def test_verify_names_the_first_difference(case: Case, monkeypatch: pytest.MonkeyPatch):
    load = engine.Engine

    class Wrong:
        """An engine with one wrong integer in one image."""

        def __init__(self, *arguments: object, **settings: object):
            self.run_right = load(*arguments, **settings).run  # pyright: ignore[reportArgumentType]

        def run(self, images: np.ndarray, taps: bool = False) -> np.ndarray | tuple:
            logits, found = self.run_right(images, taps=True)
            found["block0.norm1"][np.all(images == case.images[4], axis=(1, 2, 3)), 2, 1] += 1
            return (logits, found) if taps else logits

    monkeypatch.setattr(engine, "Engine", Wrong)
    arguments = ("verify", case.model, "--data", case.data, "--images", "9", "--isa", isa.detect()[0], "--threads", "1", "--batch", "3")
    done = eamsim(*arguments, "--json")
    assert done.code == 1
    found = json.loads(done.out)["first_difference"]
    assert found.items() >= {"image": f"{case.data}[4]", "threads": 1, "batch": 3, "tap": "block0.norm1", "index": [2, 1]}.items()
    assert found["found"] == found["expected"] + 1
    done = eamsim(*arguments)
    assert done.code == 1
    assert f"NOT bit-exact: {case.data}[4] with {found['isa']}, 1 threads, batch 3: block0.norm1[2, 1]: expected" in done.out


def test_verify_checks_calls_without_taps(case: Case, monkeypatch: pytest.MonkeyPatch):
    right = engine.Engine.run

    def run(self: engine.Engine, images: np.ndarray, taps: bool = False) -> object:
        result = right(self, images, taps)
        return result if isinstance(result, tuple) else result + np.arange(5)

    monkeypatch.setattr(engine.Engine, "run", run)
    done = eamsim(
        "verify", case.model, "--data", case.data, "--images", "1", "--isa", isa.detect()[0], "--threads", "1", "--batch", "1", "--json"
    )
    assert done.code == 1
    found = json.loads(done.out)["first_difference"]
    assert (found["tap"], found["index"], found["elements"]) == ("logits without taps", [1], 4)


def test_demo_is_bit_exact():
    done = eamsim("demo", "--json")
    result = json.loads(done.out)
    assert done.code == 0
    assert result["bit_exact"] is True
    assert result["top1"] > 0.9
    assert result["images"] >= 200
    assert result["images_per_second"] > 0
    assert result["verified_images"] == 8
    assert {row["tau"] for row in result["cost"]} >= {0, 0.1, 0.5}


@pytest.mark.slow
def test_demo_rebuilds_from_the_float_checkpoint():
    pytest.importorskip("timm", reason="needs the extra 'reference'")
    done = eamsim("demo", "--from-float", "--threads", "1", "--json")
    result = json.loads(done.out)
    assert done.code == 0
    assert result["bit_exact"] is True
    assert result["top1"] > 0.9
    assert "attention maps: 1442/1442" in done.err


def test_demo_says_what_it_found_and_where_to_go():
    done = eamsim("demo", "--threads", "1")
    assert done.code == 0
    for text in ("bit-exact: engine and golden at", "held-out digits", "images/s", "renormalised", "eamsim build MODEL"):
        assert text in done.out
    assert "NOT" not in done.out


def test_doctor_reports_this_machine():
    done = eamsim("doctor", "--json")
    result = json.loads(done.out)
    assert done.code == 0
    assert result["instruction_sets"] == list(isa.detect())
    assert result["instruction_set"] == isa.select()
    assert result["packages"]["numpy"] == np.__version__
    assert "instruction sets" in eamsim("doctor").out


def test_doctor_knows_every_extra_and_what_it_lacks(monkeypatch: pytest.MonkeyPatch):
    declared = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    gone = {"onnx", "distributed", "openvino"}

    def known(name: str) -> str:
        if name in gone:
            raise PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(doctor, "version", known)
    result = json.loads(eamsim("doctor", "--json").out)
    assert result["extras"].keys() == declared["optional-dependencies"].keys()
    assert result["packages"].keys() >= {"numpy", "numba", "h5py", "pydantic", "llvmlite"}
    assert (result["missing"]["plot"], result["extras"]["plot"]) == ([], True)
    assert (result["missing"]["onnx"], result["extras"]["onnx"]) == (["onnx"], False)
    assert result["missing"]["cluster"] == ["distributed"]  # of dask[distributed]
    assert {"onnx", "openvino"} <= set(result["missing"]["bench"])
    assert "missing distributed: pip install 'eamsim[cluster]'" in eamsim("doctor").out


def test_models_lists_the_table_that_refuses():
    features = pytest.importorskip("reference.models.features")
    listed = json.loads(eamsim("models", "--json").out)["features"]
    assert [(row["feature"], row["ViT"], row["Swin"]) for row in listed] == [
        (feature.name, feature.supported.get("ViT"), feature.supported.get("Swin")) for feature in features.FEATURES
    ]
    lines = {line.strip() for line in eamsim("models").out.splitlines()}
    assert any(re.fullmatch(r"layer scale +✓", line) for line in lines)
    assert any(re.fullmatch(r"pooling by 'token' +✓ +-", line) for line in lines)


def test_version_and_help():
    done = eamsim("--version")
    assert (done.code, done.out) == (0, "eamsim 0.1.0\n")
    help_page = eamsim("--help").out
    for command in ("demo", "build", "run", "eval", "verify", "cost", "doctor"):
        assert command in help_page


def test_interruption_exits_with_130(case: Case, monkeypatch: pytest.MonkeyPatch):
    def interrupt(*arguments: object, **settings: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "Engine", interrupt)
    assert eamsim("run", case.model, case.data).code == 130


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ZeroDivisionError("division by zero"), 70, "internal error: ZeroDivisionError: division by zero (test_cli_commands.py:"),
        (RecursionError("too deep"), 70, "internal error: RecursionError: too deep"),
        (EOFError("cut short"), 70, "internal error: EOFError: cut short"),
        (BrokenPipeError(32, "Broken pipe"), 3, "error: Broken pipe"),
        (MemoryError("8 GiB"), 70, "error: out of memory (8 GiB)"),
        (OSError(28, "No space left on device", "x.eam"), 3, "error: x.eam: No space left on device"),
    ],
)
def test_an_error_that_nobody_caught_is_never_a_mismatch(
    case: Case, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int, text: str
):
    def fail(*arguments: object, **settings: object) -> None:
        raise error

    monkeypatch.setattr(engine, "Engine", fail)
    done = eamsim("run", case.model, case.data)
    assert (done.code, done.out) == (code, "")
    assert done.err.splitlines()[-1].startswith(text)
    assert "Traceback" not in done.err
    monkeypatch.setenv("EAMSIM_DEBUG", "1")
    assert "Traceback" in eamsim("run", case.model, case.data).err


def test_debug_shows_the_traceback(case: Case, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("EAMSIM_DEBUG", "")
    assert "Traceback" not in eamsim("run", "gone.eam", case.data).err
    assert "Traceback" in eamsim("--debug", "run", "gone.eam", case.data).err


def test_an_error_made_of_an_interruption_is_one(case: Case, monkeypatch: pytest.MonkeyPatch):
    def interrupt(*arguments: object, **settings: object) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            error.add_note("half of it is kept")
            raise ImportError("initialisation of a module failed") from error

    monkeypatch.setattr(engine, "Engine", interrupt)
    done = eamsim("run", case.model, case.data)
    assert (done.code, done.err.splitlines()[-1]) == (130, "interrupted: half of it is kept")
    assert "ImportError" not in done.err


def python(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()


def test_the_command_line_needs_no_torch():
    modules = ", ".join(f"eamsim.cli.{module}" for module, _, _ in COMMANDS.values())
    found = python(f"import sys, {modules}; print(sorted({{'torch', 'timm', 'numba', 'sklearn'}} & set(sys.modules)))")
    assert found == "[]"


@pytest.mark.parametrize("option", ["--version", "--help", "-h"])
def test_version_and_help_import_nothing_heavy(option: str):
    heavy = {"numpy", "numba", "h5py", "yaml", "pydantic", "PIL", "rich", "cost_model", "reference"}
    script = f"import sys; sys.argv = ['eamsim', {option!r}]\nfrom eamsim.__main__ import entry\ntry: entry()\nexcept SystemExit: pass\n"
    assert python(f"{script}print(sorted({heavy} & set(sys.modules)))").splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", COMMANDS)
def test_the_table_of_commands_says_what_they_say(name: str):
    sentence = COMMANDS[name][2]
    text = " ".join(imported(name).help.split())
    assert (text + " ").startswith(sentence + " ")
    page = eamsim("--help").out
    assert re.search(rf"^  {name} +{re.escape(sentence)}$", page, re.MULTILINE)
    own = eamsim(name, "-h").out
    assert f"Usage: eamsim {name} " in own
    assert "--install-completion" not in own


@pytest.mark.parametrize(
    ("words", "expected"), [("eamsim ver", ["verify"]), ("eamsim build --keep-a", ["--keep-accuracy"]), ("eamsim trace d", ["diff"])]
)
def test_the_shell_completes(words: str, expected: list[str]):
    asked = {"_EAMSIM_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    done = subprocess.run([sys.executable, "-m", "eamsim"], env=os.environ | asked, capture_output=True, text=True, check=True)
    assert done.stdout.split() == expected


def test_kernels_are_cached_per_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    done = subprocess.run([sys.executable, "-m", "eamsim", "doctor", "--json"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["cache"] == str(tmp_path / "eamsim" / "numba")


def test_progress_on_a_terminal_is_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr(output.stderr, "_force_terminal", True)
    with output.progress("digits", 4) as advance:
        for _ in range(4):
            advance(1)
    captured = capsys.readouterr()
    assert "4/4" in captured.err
    assert captured.out == ""


def test_progress_elsewhere_is_a_line_each_tenth(capsys: pytest.CaptureFixture):
    with output.progress("digits", 200) as advance:
        for _ in range(100):
            advance(2)
    lines = capsys.readouterr().err.splitlines()
    assert [line.rpartition(", ")[0] for line in lines] == [f"digits: {done}/200" for done in range(20, 201, 20)]
    assert all(re.fullmatch(r"[\d,]+\.\d/s", line.rpartition(", ")[2]) for line in lines)
