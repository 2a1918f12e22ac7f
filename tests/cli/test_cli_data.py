"""The options for data of the commands: what was taken is said and kept, labels are found as asked, and nobody else needs them."""

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import LABELS, eamsim, save_data, save_model
from PIL import Image

DIGITS = Path(__file__).parents[2] / "eamsim/data/digits"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "m.eam"
    program = save_model(path, label_descriptions={"cow": "cow, cattle"})
    save_data(path.with_name("d.npz"), program, 20)
    return path


def photographs(root: Path, model: Path, names: list[str]) -> Path:
    """The images of the data beside the model as an ImageFolder, its classes called so, and an image beside the class folders."""
    data = np.load(model.with_name("d.npz"))
    for index, (image, label) in enumerate(zip(data["images"], data["labels"], strict=True)):
        (root / names[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(root / names[label] / f"{index:02}.png")
    Image.fromarray(data["images"][0]).save(root / "overview.png")
    return root


def top1(*arguments: object) -> tuple[float, dict]:
    done = eamsim("eval", *arguments, "--isa", "portable", "--threads", 1, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    return found["top1"], found["data"]


def test_folders_have_the_accuracy_of_the_same_images_in_an_npz(tmp_path: Path, model: Path):
    expected, _ = top1(model, "--data", model.with_name("d.npz"))
    found, data = top1(model, "--data", photographs(tmp_path, model, LABELS))
    assert found == expected
    assert data == {
        "found": 20,
        "taken": 20,
        "left_out": {"image beside class folders": {"count": 1, "examples": ["overview.png"]}},
        "labels": {"how": "by-name", "classes": 5, "model_classes": 5},
    }


def test_another_order_needs_names_and_gets_them_from_a_file(tmp_path: Path, model: Path):
    names = ["Ameise", "Biene", "Kuh", "Hund", "Elch"]
    root = photographs(tmp_path / "d", model, names)
    refused = eamsim("eval", model, "--data", root)
    assert refused.code == 2
    assert "class 'Ameise' and 4 others of 5 are not among the model's 5 labels" in refused.err
    (tmp_path / "names.txt").write_text("\n".join(names))
    expected, _ = top1(model, "--data", model.with_name("d.npz"))
    assert top1(model, "--data", root, "--labels", tmp_path / "names.txt")[0] == expected
    assert top1(model, "--data", root, "--labels", "by-order")[1]["labels"]["how"] == "by-order"


def test_a_description_is_a_name(tmp_path: Path, model: Path):
    expected, _ = top1(model, "--data", model.with_name("d.npz"))
    root = photographs(tmp_path, model, [{"cow": "cattle"}.get(name, name) for name in LABELS])
    assert top1(model, "--data", root)[0] == expected


@pytest.mark.parametrize("command", [("run",), ("verify", "--images", 2, "--isa", "portable", "--threads", 1, "--batch", 1)])
def test_who_needs_no_labels_takes_folders_of_any_name(tmp_path: Path, model: Path, command: tuple):
    root = photographs(tmp_path, model, ["ant", "holiday", "beach", "dog", "x"])
    name, *options = command
    done = eamsim(name, model, *(() if name == "run" else ("--data",)), root, *options, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["data"]["labels"] == {"how": "not needed"}
    assert "image beside class folders (overview.png); labels: not needed" in done.err


@pytest.mark.slow
def test_a_build_keeps_what_it_calibrated_on(tmp_path: Path):
    pytest.importorskip("timm")
    images = np.load(DIGITS / "digits_calib.npz")["images"][:6]
    for index, image in enumerate(images):
        (tmp_path / f"d/{index % 3}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / f"d/{index % 3}/{index}.png")
    Image.fromarray(images[0]).save(tmp_path / "d/overview.png")
    done = eamsim("build", f"local-dir:{DIGITS}", "--calib", tmp_path / "d", "--tau", 0, "-o", tmp_path / "x.eam")
    assert done.code == 0, done.err
    manifest = json.loads((tmp_path / "x.eam.json").read_text())
    assert manifest["calibration_images"] == 6
    assert manifest["data"]["left_out"] == {"image beside class folders": {"count": 1, "examples": ["overview.png"]}}
    refused = eamsim("build", f"local-dir:{DIGITS}", "--calib", tmp_path / "d", "--labels", "by-order", "-o", tmp_path / "y.eam")
    assert (refused.code, "--labels: belongs to a budget" in refused.err) == (2, True)


@pytest.mark.parametrize("command", ["record", "export"])
def test_the_manifest_of_a_trace_keeps_what_was_taken(tmp_path: Path, model: Path, command: str):
    root = photographs(tmp_path / "d", model, LABELS)
    out = tmp_path / ("t.h5" if command == "record" else "v")
    options = ("--by", "golden", "--digests") if command == "record" else ("--operations", "head")
    done = eamsim("trace", command, model, "--data", root, "--images", 2, "-o", out, *options, "--json")
    assert done.code == 0, done.err
    left_out = {"image beside class folders": {"count": 1, "examples": ["overview.png"]}}
    expected = {"found": 20, "taken": 2, "left_out": left_out, "labels": {"how": "not needed"}}
    kept = json.loads((tmp_path / ("t.h5.json" if command == "record" else "v/manifest.json")).read_text())
    assert json.loads(done.out)["data"] == kept["data"] == expected
