"""Whatever shows accuracy, masks or what they save of untrained weights says so in its first line, and in JSON."""

import json
import re
from importlib.resources import files
from pathlib import Path

import pytest
from command_line import eamsim, save_data, save_model

from eamsim import cli
from eamsim.cli.untrained import WARNING
from eamsim.jobs.load import is_untrained

SPACE = ("--rows", 8, "--columns", 8, "--sram", 4096, "--batch", 1, "--dataflow", "os", "--granularity", "own")
COMMANDS = {
    "eval": lambda model, folder: ("eval", model, "--data", folder / "data.npz"),
    "run": lambda model, folder: ("run", model, folder / "data.npz"),
    "cost": lambda model, folder: ("cost", model),
    "cost --hw": lambda model, folder: ("cost", model, "--hw", "small-npu"),
    "cost --compare": lambda model, folder: ("cost", "--compare", folder / "trained.eam", model),
    "search": lambda model, folder: ("search", model, *SPACE),
    "bench": lambda model, folder: ("bench", model, "--data", folder / "data.npz", "--batch", 1, "--rounds", 3, "--threads", 1),
    "widths": lambda model, folder: ("widths", model, "--data", folder / "data.npz", "-o", folder / "n.eam", "--evaluations", 2),
    "report": lambda model, folder: ("report", model, "--hw", "small-npu", "-o", folder / "r.html"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("untrained")
    program = save_model(path / "trained.eam", random_init=None)
    save_model(path / "untrained.eam", random_init=0)
    save_data(path / "data.npz", program)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_results_of_untrained_weights_say_so_first(name, folder):
    if name == "report":
        pytest.importorskip("matplotlib", reason="needs the extra 'plot'")
    for model, untrained in (("trained.eam", False), ("untrained.eam", True)):
        arguments = COMMANDS[name](folder / model, folder)
        finished = eamsim(*arguments)
        assert finished.code in (None, 0), finished.err
        assert finished.out.startswith(WARNING) == untrained
        assert json.loads(eamsim(*arguments, "--json").out)["untrained"] is untrained


def test_a_report_says_it_above_everything(folder):
    pytest.importorskip("matplotlib", reason="needs the extra 'plot'")
    pages = {}
    for name in ("trained", "untrained"):
        assert eamsim("report", folder / f"{name}.eam", "--hw", "small-npu", "-o", folder / "r.html").code in (None, 0)
        pages[name] = (folder / "r.html").read_text(encoding="utf-8").partition("<body>")[2]
    assert WARNING not in pages["trained"]
    assert WARNING in pages["untrained"].partition("<h1>")[0]


def test_a_seed_of_0_is_a_seed():
    assert is_untrained({"random_init": 0})
    assert not is_untrained({"random_init": None})
    assert not is_untrained({})


def test_every_command_with_random_weights_goes_through_the_one_door():
    sources = {path.name: path.read_text(encoding="utf-8") for path in Path(cli.__file__).parent.rglob("*.py")}
    random = {name for name, text in sources.items() if re.search(r"\brandom_init: Annotated", text)}
    assert random == {"bench.py", "build.py", "compare.py", "entropy.py", "sweep.py"}
    assert all("emit_measured(" in sources[name] and not re.search(r"(?<!_)\bemit\(", sources[name]) for name in random)


@pytest.mark.slow
def test_a_float_model_of_random_weights_says_so_wherever_it_is_opened(tmp_path):
    pytest.importorskip("timm", reason="needs the extra 'reference'")
    digits = Path(str(files("eamsim") / "data" / "digits"))
    opened = (f"local-dir:{digits}", "--calib", digits / "digits_calib.npz", "--random-init", 0, "--calib-images", 4)
    jobs = {
        tmp_path / "x.eam": ("build", *opened, "--limit", 8, "--tau", "20%", "-o", tmp_path / "x.eam"),
        tmp_path / "s.h5": ("entropy", *opened, "--limit", 8, "-o", tmp_path / "s.h5"),
        tmp_path / "sweep" / "sweep.csv": (
            *("sweep", *opened, "--data", digits / "digits_test.npz", "--limit", 8, "--variant", "eam-4bits", "--softmax", "paper"),
            *("--tau", "0", "--workers", 1, "-o", tmp_path / "sweep"),
        ),
    }
    for out, arguments in jobs.items():
        finished = eamsim(*arguments, "--json")
        assert finished.code in (None, 0), finished.err
        assert json.loads(finished.out)["untrained"] is True
        assert out.exists()
    assert json.loads((tmp_path / "s.h5.json").read_text())["random_init"] == 0
    assert eamsim("cost", tmp_path / "x.eam").out.startswith(WARNING)
    assert json.loads(eamsim("cost", tmp_path / "x.eam", "--json").out)["rows"][0]["tau"] == pytest.approx(0.2, abs=0.01)
