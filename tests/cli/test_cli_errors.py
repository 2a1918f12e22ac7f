"""Bad input ends in one line that names the trouble and in the right exit code: no traceback, no partial file."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Annotated, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import typer
from command_line import Finished, eamsim, forget_modules, save_data, save_model
from PIL import Image
from typer.models import CommandInfo, OptionInfo

from eamsim.cli import COMMANDS
from eamsim.engine import isa
from eamsim.files.origin import without_folders

USAGE, BAD_FILE, MISSING_EXTRA = 2, 3, 4


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_model(tmp_path / "m.eam")
    return tmp_path / "m.eam"


@pytest.fixture
def data(model: Path) -> Path:
    save_data(model.with_name("d.npz"), save_model(model))
    return model.with_name("d.npz")


def assert_refused(done: Finished, code: int, *texts: str) -> None:
    """One line `error: ...` on standard error with all the texts, and nothing on standard output."""
    (line,) = [line for line in done.err.splitlines() if not line.startswith("data: ")]  # what was taken before it failed
    assert line.startswith("error: ")
    for text in texts:
        assert text in done.err
    assert done.out == ""
    assert done.code == code


@pytest.mark.parametrize("command", ["run", "eval", "verify"])
def test_a_missing_or_damaged_model_file(command: str, model: Path, data: Path):
    source = [data] if command == "run" else ["--data", data]
    assert_refused(eamsim(command, model.with_name("gone.eam"), *source), BAD_FILE, "gone.eam")
    content = model.read_bytes()
    for damaged in (b"", b"not HDF5", content[: len(content) // 2], content[:2000] + b"\xff" * 64 + content[2064:]):
        model.write_bytes(damaged)
        assert_refused(eamsim(command, model, *source, "--json"), BAD_FILE, "m.eam")


@pytest.mark.parametrize("command", ["run", "eval", "verify"])
def test_missing_and_damaged_images(command: str, model: Path, tmp_path: Path):
    def attempt(source: Path) -> Finished:
        return eamsim(command, model, *([source] if command == "run" else ["--data", source]))

    assert_refused(attempt(tmp_path / "gone"), BAD_FILE, "gone: no such file or folder")
    (tmp_path / "empty").mkdir()
    assert_refused(attempt(tmp_path / "empty"), USAGE, "no images found")
    (tmp_path / "page.jpg").write_text("<html>404</html>")
    assert_refused(attempt(tmp_path / "page.jpg"), BAD_FILE, "page.jpg: not a readable image")
    (tmp_path / "d.npz").write_bytes(b"PK")
    assert_refused(attempt(tmp_path / "d.npz"), BAD_FILE, "d.npz: not a readable .npz")


def test_a_truncated_image_is_named_while_running(model: Path, tmp_path: Path):
    path = tmp_path / "cut.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:5000])
    assert_refused(eamsim("run", model, path), BAD_FILE, "cut.png: damaged image")


@pytest.mark.parametrize(
    ("provenance", "message"),
    [
        ({"preprocessing": None}, "its provenance lacks"),
        ({"preprocessing": {"height": 8, "width": 8}}, "its provenance lacks"),
        (
            {"preprocessing": {"height": 9, "width": 9, "crop_pct": 1.0, "interpolation": "bicubic"}},
            "gives 9 x 9 images, its program takes 8 x 8",
        ),
        ({"preprocessing": {"height": 8, "width": 8, "crop_pct": 0, "interpolation": "bicubic"}}, "crop_pct must be in (0, 1], got 0"),
        ({"preprocessing": [8, 8]}, "its provenance lacks what a model needs"),
        ({"preprocessing": {"height": 8.0, "width": 8, "crop_pct": 1.0, "interpolation": "bicubic"}}, "height: expected int, got 8.0"),
        (
            {"preprocessing": {"height": 8, "width": 8, "crop_pct": 1, "interpolation": "bicubic", "fill": 7}},
            "fill: expected tuple or list",
        ),
        (
            {"preprocessing": {"height": 8, "width": 8, "crop_pct": 1, "interpolation": "bicubic", "x": 1}},
            "unexpected keyword argument 'x'",
        ),
        ({"label_descriptions": {"ant": 5}}, "expected texts by label as label_descriptions"),
        ({"labels": ["one"]}, "expected 5 labels, got 1"),
        ({"labels": "abcde"}, "expected a list of texts as labels"),
        ({"labels": [0, 1, 2, 3, 4]}, "expected a list of texts as labels"),
    ],
)
def test_unusable_provenance(model: Path, data: Path, provenance: dict, message: str):
    save_model(model, **provenance)
    assert_refused(eamsim("run", model, data), BAD_FILE, "m.eam", message)


def test_eval_needs_labels_of_the_models_classes(model: Path, tmp_path: Path):
    images = np.zeros((2, 8, 8, 3), np.uint8)
    path = tmp_path / "d.npz"
    np.savez(path, images=images)
    assert_refused(eamsim("eval", model, "--data", path), USAGE, "expected labelled images")
    np.savez(path, images=images, labels=[0, 5])
    assert_refused(eamsim("eval", model, "--data", path), USAGE, "expected labels below the model's 5 classes, got 5")
    np.savez(path, images=images, labels=[0, 1], classes=np.array(["x", "y"]))
    assert_refused(eamsim("eval", model, "--data", path), USAGE, "class 'x' and 1 others of 2 are not among the model's 5 labels")
    np.savez(path, images=images, labels=[0, 1], classes=np.array(["ant", "y"]))
    assert_refused(eamsim("eval", model, "--data", path), USAGE, "class 'y' is not among the model's 5 labels")


@pytest.mark.parametrize("command", ["run", "eval", "verify"])
def test_an_unknown_instruction_set(model: Path, data: Path, command: str, monkeypatch):
    arguments = (command, model, data) if command == "run" else (command, model, "--data", data)
    assert_refused(eamsim(*arguments, "--isa", "z80"), USAGE, "z80", isa.detect()[0])
    monkeypatch.setenv("EAMSIM_ISA", "z81")
    assert_refused(eamsim(*arguments), USAGE, "z81", isa.detect()[0])


@pytest.mark.parametrize("counts", ["0", "1,", "a", "-1", "1.5", ""])
@pytest.mark.parametrize("option", ["--threads", "--batch"])
def test_verify_refuses_counts_that_are_none(model: Path, data: Path, option: str, counts: str):
    done = eamsim("verify", model, "--data", data, option, counts)
    assert_refused(done, USAGE, f"{option}: expected positive numbers", repr(counts))


@pytest.mark.parametrize(
    "arguments",
    [
        ("frobnicate",),
        ("eval", "m.eam"),
        ("eval", "m.eam", "--data", "d.npz", "--batch", "0"),
        ("eval", "m.eam", "--data", "d.npz", "--limit", "0"),
        ("run", "m.eam"),
        ("run", "m.eam", "d.npz", "--top", "0"),
        ("build", "deit_tiny_patch16_224", "-o", "x.eam"),
        ("build", "deit_tiny_patch16_224", "--calib", "d", "-o", "x.eam", "--softmax", "fast"),
        ("build", "deit_tiny_patch16_224", "--calib", "d", "-o", "x.eam", "--random-init", "-1"),
        ("build", "deit_tiny_patch16_224", "--calib", "d", "-o", "x.eam", "--random-init", str(2**64)),
        ("demo", "--threads", "0"),
    ],
)
def test_usage_errors_exit_with_2(arguments: tuple[str, ...]):
    done = eamsim(*arguments)
    assert done.code == USAGE
    assert "Usage: eamsim" in done.err
    assert "Traceback" not in done.err
    assert done.out == ""


NUMBERS_THAT_ARE_CHECKED_LATER = {"layer", "memory", "pad"}


def options(command: object) -> Iterator[tuple[str, OptionInfo]]:
    """Name and typer's option of each number that a command or one of its group takes."""
    if isinstance(command, typer.Typer):
        for each in (*command.registered_commands, *(group.typer_instance for group in command.registered_groups)):
            yield from options(each.callback if isinstance(each, CommandInfo) else each)
        return
    for name, hint in get_type_hints(command, include_extras=True).items():
        if get_origin(hint) is Annotated and {int, float} & {get_args(hint)[0], *get_args(get_args(hint)[0])}:
            yield from ((name, each) for each in hint.__metadata__ if isinstance(each, OptionInfo))


def test_no_number_of_a_command_is_without_bounds():
    modules = {name: import_module(f"eamsim.cli.{module}") for name, (module, _, _) in COMMANDS.items()}
    found = [(command, *each) for command, (_, name, _) in COMMANDS.items() for each in options(getattr(modules[command], name))]
    assert len(found) > 40
    unbounded = {(command, name) for command, name, option in found if option.min is None and option.parser is None}
    assert {name for _, name in unbounded} == NUMBERS_THAT_ARE_CHECKED_LATER, unbounded
    seeds = [option for _, name, option in found if name == "random_init"]  # torch takes 64 bits
    assert {option.max for option in seeds} == {2**63 - 1}
    assert len(seeds) == 5


def build(tmp_path: Path, *arguments: object, out: str = "x.eam") -> Finished:
    """`eamsim build` with those arguments; whatever happens, nothing may be left beside what was there."""
    before = sorted(tmp_path.rglob("*"))
    done = eamsim("build", *arguments, "-o", tmp_path / out)
    assert sorted(tmp_path.rglob("*")) == before
    return done


@pytest.mark.parametrize("tau", ["-0.1", "1.01", "nan", "20", "many"])
def test_build_refuses_tau_outside_the_unit_interval(tmp_path: Path, tau: str):
    done = build(tmp_path, "deit_tiny_patch16_224", "--calib", tmp_path, "--tau", tau)
    assert_refused(done, USAGE, f"--tau: expected a share of the attention weights such as 10% or 0.1, got {tau!r}")


def test_build_refuses_an_unwritable_output(tmp_path: Path):
    assert_refused(build(tmp_path, "m", "--calib", tmp_path, out="x.bin"), USAGE, "--out: expected a name that ends in .eam")
    assert_refused(build(tmp_path, "m", "--calib", tmp_path, out="no/x.eam"), USAGE, "no/x.eam cannot be written")
    (tmp_path / "folder.eam").mkdir()
    assert_refused(build(tmp_path, "m", "--calib", tmp_path, out="folder.eam"), USAGE, "folder.eam cannot be written")
    (tmp_path / "x.eam.json").mkdir()
    assert_refused(build(tmp_path, "m", "--calib", tmp_path), USAGE, "x.eam.json cannot be written")


def in_shell(command: str, **environment: str) -> tuple[int, str]:
    """Exit code and standard error of a bash pipeline; `eamsim` in it is the command line in a process of its own."""
    script = f'set -o pipefail; eamsim() {{ {sys.executable} -m eamsim "$@"; }}; {command}'
    root = Path(__file__).parents[2]
    done = subprocess.run(["bash", "-c", script], cwd=root, env=os.environ | environment, capture_output=True, text=True, timeout=300)
    return done.returncode, re.sub(r"(?m)^working: \d+ s\n", "", done.stderr)  # as a busy machine makes a quick command say


def test_a_reader_that_leaves_early_is_no_error():
    for pipeline in ("eamsim cost deit_tiny_patch16_224 | true", "eamsim doctor --json | head -c 1", "eamsim --help | true"):
        assert in_shell(pipeline) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
@pytest.mark.parametrize("option", ["", "--json"])
def test_a_full_disk_under_standard_output(option: str):
    code, err = in_shell(f"eamsim cost deit_tiny_patch16_224 {option} >/dev/full")
    assert (code, err) == (
        BAD_FILE,
        "error: standard output: cannot be written (No space left on device); free some space or write elsewhere\n",
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
def test_a_full_disk_under_help():
    code, err = in_shell("eamsim --help >/dev/full")
    assert code == BAD_FILE
    assert err.startswith("error: No space left on device")
    assert err.count("\n") == 1


def test_characters_that_the_terminal_has_not_are_escaped(model: Path, data: Path):
    save_model(model, labels=["é", "bee", "cow", "dog", "elk"])
    run = f"eamsim run {model} {data} --top 5"
    assert in_shell(rf"[ $({run} | grep -cF '\xe9') = 9 ]", PYTHONIOENCODING="ascii")[0] == 0
    assert in_shell(f"[ $({run} | grep -c é) = 9 ]", PYTHONIOENCODING="utf-8")[0] == 0
    assert in_shell("eamsim run gone-é.eam x.png", PYTHONIOENCODING="ascii")[1].startswith(r"error: gone-\xe9.eam: ")


@pytest.mark.slow
@pytest.mark.parametrize("gone", ["2>/dev/full", "2>&-", "2> >(true)"])
def test_progress_that_cannot_be_written_costs_nothing(model: Path, data: Path, gone: str):
    """Neither the result nor the exit code."""
    command = f"eamsim verify {model} --data {data} --images 2 --threads 1 --batch 1 --isa portable"
    assert in_shell(f"{command} {gone}")[0] == 0
    assert in_shell(f"set -e; [ $({command} --json {gone} | grep -c first_difference) = 1 ]")[0] == 0
    assert in_shell(f"eamsim run gone.eam {data} {gone}")[0] == BAD_FILE


@pytest.mark.parametrize("command", [("build", "m", "--calib", "d", "-o", "x.eam"), ("demo", "--from-float")])
def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]):
    forget_modules(monkeypatch, "reference", "eamsim.jobs")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert_refused(eamsim(*command), MISSING_EXTRA, "needs the extra 'reference': pip install 'eamsim[reference]'")


@pytest.fixture(scope="module")
def calib(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("calib") / "c.npz"
    np.savez(path, images=np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8))
    return path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A random ViT of one small block in the layout of timm's `local-dir:`."""
    timm, safetensors = pytest.importorskip("timm"), pytest.importorskip("safetensors.torch")
    size = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 3}
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    network = timm.create_model("deit_tiny_patch16_224", **size)
    safetensors.save_file(network.state_dict(), folder / "model.safetensors")
    pretrained = {"input_size": [3, 16, 16], "crop_pct": 1.0, "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.5] * 3}
    config = {
        "architecture": "deit_tiny_patch16_224",
        "num_classes": 3,
        "model_args": size,
        "pretrained_cfg": pretrained | {"num_classes": 3},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_build_writes_the_model_and_its_manifest(tmp_path: Path, calib: Path, checkpoint: Path):
    out = tmp_path / "x.eam"
    done = eamsim("build", f"local-dir:{checkpoint}", "--calib", calib, "--tau", "0.5", "-o", out, "--json")
    assert done.code == 0
    manifest = json.loads(done.out)
    assert json.loads((tmp_path / "x.eam.json").read_text()) | {"untrained": False} == without_folders(manifest)
    assert manifest["output"]["bytes"] == out.stat().st_size
    assert manifest["tau"] == 0.5
    assert eamsim("verify", out, "--data", calib, "--images", "2", "--batch", "2").code == 0
    first = out.read_bytes()
    assert eamsim("build", f"local-dir:{checkpoint}", "--calib", calib, "--tau", "0.5", "-o", out).code == 0
    assert out.read_bytes() == first


def test_build_refuses_wrong_models_and_weights(tmp_path: Path, calib: Path, checkpoint: Path):
    torch, safetensors = pytest.importorskip("torch"), pytest.importorskip("safetensors.torch")
    source, weights = f"local-dir:{checkpoint}", checkpoint / "model.safetensors"

    def attempt(*arguments: object) -> Finished:
        return build(tmp_path, *arguments, "--calib", calib)

    assert_refused(attempt("deit_tinny_patch16_224"), USAGE, "deit_tinny_patch16_224", "deit_tiny_patch16_224")
    assert_refused(attempt(f"local-dir:{tmp_path}/gone"), BAD_FILE, "gone")
    assert_refused(attempt(source, "--weights", tmp_path / "gone.safetensors"), BAD_FILE, "gone.safetensors")
    assert_refused(attempt(source, "--weights", weights, "--random-init", "1"), USAGE, "--random-init")
    torch.save({}, tmp_path / "pickle.pth")
    assert_refused(attempt(source, "--weights", tmp_path / "pickle.pth"), USAGE, "pickle.pth", "--allow-pickle")
    good = safetensors.load_file(weights)
    for changed, text in (
        ({"head.weight": torch.zeros(4, 16)}, "head.weight"),
        ({"norm.bias": torch.full((16,), torch.nan)}, "norm.bias"),
        ({"stranger": torch.zeros(1)}, "stranger"),
    ):
        safetensors.save_file(good | changed, weights)
        assert_refused(attempt(source), BAD_FILE, "model.safetensors", text)
    weights.write_bytes(weights.read_bytes()[:1000])
    assert_refused(attempt(source), BAD_FILE, "model.safetensors")


def test_build_refuses_bad_calibration_data(tmp_path: Path, checkpoint: Path):
    def attempt(data: Path, *options: object) -> Finished:
        return build(tmp_path, f"local-dir:{checkpoint}", "--calib", data, *options)

    assert_refused(attempt(tmp_path / "gone"), BAD_FILE, "gone: no such file or folder")
    (tmp_path / "empty").mkdir()
    assert_refused(attempt(tmp_path / "empty"), USAGE, "no images found")
    path = tmp_path / "cut.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:5000])
    assert_refused(attempt(path), BAD_FILE, "cut.png: damaged image")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": "grey"}, "does not say how to prepare images (could not convert string to float"),
        ({"std": [0.5, 0.5]}, "expected three finite means and three positive stds"),
        ({"std": [0, 1, 1]}, "expected three finite means and three positive stds"),
        ({"crop_pct": 0}, "crop_pct must be in (0, 1], got 0"),
        ({"interpolation": "magic"}, "interpolation must be one of"),
    ],
)
def test_build_refuses_a_wrong_preprocessing(tmp_path: Path, calib: Path, checkpoint: Path, changes: dict, message: str):
    config = json.loads((checkpoint / "config.json").read_text())
    config["pretrained_cfg"] |= changes
    (checkpoint / "config.json").write_text(json.dumps(config))
    assert_refused(build(tmp_path, f"local-dir:{checkpoint}", "--calib", calib), BAD_FILE, "checkpoint", message)


@pytest.mark.parametrize("changes", [{"architecture": 5}, {"architecture": "no_such_net"}, {"model_args": None}, {"pretrained_cfg": []}])
def test_build_refuses_a_wrong_config(tmp_path: Path, calib: Path, checkpoint: Path, changes: dict):
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | changes))
    assert_refused(build(tmp_path, f"local-dir:{checkpoint}", "--calib", calib), BAD_FILE, "checkpoint", "cannot be built")


@pytest.mark.parametrize("content", [b"", b"abc" * 50, b"\x80\x04\x95."])
def test_build_refuses_a_damaged_pickle(tmp_path: Path, calib: Path, checkpoint: Path, content: bytes):
    weights = tmp_path / "w.pth"
    weights.write_bytes(content)
    done = build(tmp_path, f"local-dir:{checkpoint}", "--calib", calib, "--weights", weights, "--allow-pickle")
    assert_refused(done, BAD_FILE, "w.pth: not a readable file of weights")


def test_build_refuses_what_it_cannot_lower_before_a_download(tmp_path: Path, calib: Path):
    assert_refused(build(tmp_path, "resnet18", "--calib", calib), USAGE, "ResNet is not supported; expected a timm")
