"""How the classes of data meet a model's: every way, every guess that is refused, and the option that decides."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from eamsim.errors import BadFile, UserError
from eamsim.inputs.images import ImageSet, Preprocessing, open_images
from eamsim.inputs.labels import BY_NAME, BY_ORDER, Labelling

PREPARE = Preprocessing(8, 8, 1.0, "bicubic")
LABELS = ["cat", "dog", "frog"]
NFC, NFD = "\u00e9t\u00e9", "e\u0301te\u0301"


def folder(root: Path, *classes: str) -> Path:
    """An ImageFolder with an image of each class."""
    for name in classes:
        (root / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(root / name / "1.png")
    return root


def arrays(path: Path, labels: list[int], classes: list[str] | None = None) -> Path:
    found: dict[str, Any] = {"images": np.zeros((len(labels), 8, 8, 3), np.uint8), "labels": np.array(labels)}
    if classes is not None:
        found["classes"] = np.array(classes)
    np.savez(path, **found)
    return path


def labelled(source: Path | list[Path], labels: list[str] | None, classes: int | None = None, **options) -> ImageSet:
    sources = source if isinstance(source, list) else [source]
    return open_images(sources, PREPARE, labelling=Labelling(classes or len(labels or ()), labels, **options))


@pytest.mark.parametrize(
    ("folders", "labels", "choice", "expected", "how"),
    [
        (("cat", "dog", "frog"), LABELS, None, [0, 1, 2], BY_NAME),
        (("cat", "dog", "frog"), ["frog", "cat", "dog"], None, [1, 2, 0], BY_NAME),  # another order
        (("dog",), LABELS, None, [1], BY_NAME),  # a subset
        (("cat", "dog", "horse"), LABELS, BY_NAME, [0, 1], BY_NAME),  # a superset, asked for
        (("Katze", "Hund", "Frosch"), LABELS, BY_ORDER, [0, 1, 2], BY_ORDER),  # another language, asked for
        (("1", "2", "10"), LABELS, BY_ORDER, [0, 1, 2], BY_ORDER),  # numbers, asked for
        ((NFD, "cat"), ["cat", NFC], None, [0, 1], BY_NAME),
        ((NFC,), ["cat", NFD], None, [1], BY_NAME),
        ((NFD,), ["cat", NFC], None, [1], BY_NAME),
        (("dog",), ["crane", "dog", "crane"], None, [1], BY_NAME),  # two labels of one name, and neither is used
    ],
)
def test_folders_meet_labels(tmp_path: Path, folders: tuple, labels: list, choice: str | None, expected: list, how: str):
    images = labelled(folder(tmp_path, *folders), labels, choice=choice)
    assert_array_equal(images.labels, expected)
    assert images.summary.labels == {"how": how, "classes": len(expected), "model_classes": len(labels)}


@pytest.mark.parametrize(
    ("folders", "labels", "choice", "message"),
    [
        (
            ("Katze", "Hund", "Frosch"),
            LABELS,
            None,
            r"class 'Frosch' \(did you mean 'frog'\?\) and 2 others of 3 are not .* --labels by-order",
        ),
        (("0", "1", "2"), LABELS, None, "class '0' and 2 others of 3 are not among the model's 3 labels: cat, dog, frog; pair by position"),
        (("cat", "horse"), LABELS, None, "class 'horse' is not among .* leave such images out with --labels by-name"),
        (("Cat",), LABELS, None, r"class 'Cat' \(did you mean 'cat'\?\) is not among"),
        (("horse",), LABELS, BY_NAME, "class 'horse' is not among the model's 3 labels"),
        (("cat", "dog"), LABELS, BY_ORDER, "expected the model's 3 classes, got 2: cat, dog; say which they are with --labels FILE"),
        (("crane", "dog"), ["crane", "dog", "crane"], None, r"class 'crane' is the name of 2 of the model's classes \(0, 2\)"),
        ((NFC, NFD), [NFC, "cat"], None, "two of its classes are called"),
        (("cat",), LABELS, "/no/such/file.txt", "file.txt: not a readable file of class names"),
        (("cat",), LABELS, "by-nmae", "by-nmae: not a readable file of class names .*--labels takes by-name, by-order or such a file"),
    ],
)
def test_a_guess_is_refused(tmp_path: Path, folders: tuple, labels: list, choice: str | None, message: str):
    with pytest.raises(UserError, match=message):
        labelled(folder(tmp_path, *folders), labels, choice=choice)


def test_images_of_no_class_of_the_model_are_said(tmp_path: Path):
    images = labelled(folder(tmp_path, "cat", "dog", "horse"), LABELS, choice=BY_NAME)
    assert [Path(name).parent.name for name in images.names] == ["cat", "dog"]
    assert images.summary.json()["left_out"]["class that the model has not"]["count"] == 1


def test_a_model_without_names_takes_as_many_classes_in_order(tmp_path: Path):
    folder(tmp_path / "d", "1", "2", "10")
    images = labelled(tmp_path / "d", None, 3)
    assert [Path(name).parent.name for name in images.names] == ["1", "2", "10"]
    assert_array_equal(images.labels, [0, 1, 2])
    with pytest.raises(UserError, match=r"expected the model's 4 classes, got 3: 1, 2, 10; the model has no label names; .* --labels FILE"):
        labelled(tmp_path / "d", None, 4)
    with pytest.raises(UserError, match="--labels by-name: the model has no label names"):
        labelled(tmp_path / "d", None, 3, choice=BY_NAME)


def test_two_sources_of_different_subsets(tmp_path: Path):
    sources = [folder(tmp_path / "a", "dog"), folder(tmp_path / "b", "cat", "frog"), arrays(tmp_path / "c.npz", [1, 1])]
    images = labelled(sources, LABELS)
    assert_array_equal(images.labels, [1, 0, 2, 1, 1])
    assert images.summary.labels == {"how": "by-name, by-number", "classes": 3, "model_classes": 3}


def test_descriptions_hold_names_that_labels_are_not(tmp_path: Path):
    descriptions = {"n01": "tench, crane", "n02": "goldfish, crane", "n03": "n01"}
    images = labelled(folder(tmp_path / "a", "n02", "tench", "n01"), ["n01", "n02", "n03"], descriptions=descriptions)
    assert_array_equal(images.labels, [0, 1, 0])  # n01, n02, tench: the label n01 before the synonym n01
    with pytest.raises(UserError, match=r"class 'crane' is the name of 2 of the model's classes \(0, 1\)"):
        labelled(folder(tmp_path / "b", "crane"), ["n01", "n02", "n03"], descriptions=descriptions)


NAMES = ["Katze", "Hund", "Frosch"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("names.txt", "Katze\nHund\nFrosch\n\n"),
        ("names.txt", "\ufeffKatze\r\nHund\r\nFrosch"),
        ("names.json", json.dumps(NAMES)),
        ("names.json", json.dumps({index: name for index, name in enumerate(NAMES)})),
        ("names.json", json.dumps({str(index): [f"n0{index}", name] for index, name in enumerate(NAMES)})),
        ("names.json", json.dumps({name: index for index, name in enumerate(NAMES)})),
        ("names.json", json.dumps([[name, f"n0{index}"] for index, name in enumerate(NAMES)])),
    ],
)
@pytest.mark.parametrize("labels", [None, LABELS])
def test_a_file_names_the_classes(tmp_path: Path, name: str, content: str, labels: list | None):
    (tmp_path / name).write_text(content, "utf-8", newline="")
    images = labelled(folder(tmp_path / "d", "Frosch", "Katze"), labels, 3, choice=str(tmp_path / name))
    assert_array_equal(images.labels, [2, 0])
    assert images.summary.labels["how"] == f"by {name}"  # without the folder it lies in


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("names.txt", "Katze\nHund", "expected names of the model's 3 classes, got 2"),
        ("names.txt", "", "expected names of classes: a line for each"),
        ("names.json", "{", "not a readable file of class names"),
        ("names.json", "3", "expected JSON"),
        ("names.json", '{"a": "b"}', "expected JSON"),
        ("names.json", "[1, 2, 3]", "expected names of classes"),
        ("names.json", '{"Katze": 3}', "expected names of the model's 3 classes, got class 3"),
        ("names.json", '{"Katze": -1}', "got class -1"),
        ("names.json", '{"Katze": true}', "expected"),
    ],
)
def test_a_wrong_file_of_names_is_refused(tmp_path: Path, name: str, content: str, message: str):
    (tmp_path / name).write_text(content)
    with pytest.raises(BadFile, match=message):
        labelled(folder(tmp_path / "d", "Katze"), None, 3, choice=str(tmp_path / name))


def test_numbers_are_the_models_own(tmp_path: Path):
    images = labelled(arrays(tmp_path / "d.npz", [2, 0]), LABELS)
    assert_array_equal(images.labels, [2, 0])
    assert images.summary.labels == {"how": "by-number", "classes": 2, "model_classes": 3}
    with pytest.raises(UserError, match="expected labels below the model's 3 classes, got 3"):
        labelled(arrays(tmp_path / "e.npz", [3]), LABELS)
    with pytest.raises(UserError, match=r"its labels are numbers without 'classes', so --labels by-name finds no names"):
        labelled(tmp_path / "d.npz", LABELS, choice=BY_NAME)


def test_minus_one_as_a_byte_is_no_class(tmp_path: Path):
    np.savez(tmp_path / "d.npz", images=np.zeros((2, 8, 8, 3), np.uint8), labels=np.array([0, -1]).astype(np.uint8))
    with pytest.raises(UserError, match="expected labels below the model's 3 classes, got 255"):
        labelled(tmp_path / "d.npz", LABELS)


def test_classes_of_an_npz(tmp_path: Path):
    unused = arrays(tmp_path / "a.npz", [1, 0], ["dog", "cat", "background"])
    assert_array_equal(labelled(unused, LABELS).labels, [0, 1])
    twice = arrays(tmp_path / "b.npz", [0, 1], ["crane", "crane"])
    assert_array_equal(labelled(twice, ["crane", "crane"]).labels, [0, 1])  # the model's own list
    assert_array_equal(labelled(twice, ["white crane", "crane"], choice=BY_ORDER).labels, [0, 1])
    with pytest.raises(BadFile, match=r"b\.npz: two of its classes are called 'crane'; rename one, or give --labels by-order"):
        labelled(twice, ["crane", "dog"])


def test_labels_that_nobody_needs_refuse_nothing(tmp_path: Path):
    images = open_images([folder(tmp_path, "cat", "holiday")], PREPARE)
    assert (len(images), images.labels, images.summary.labels) == (2, None, {"how": "not needed"})


def test_labels_that_are_not_required_say_why_there_are_none(tmp_path: Path):
    root = folder(tmp_path / "d", "cat", "holiday")
    images = labelled(root, LABELS, required=False)
    assert images.labels is None
    assert images.summary.labels["how"].startswith("none, since d: class 'holiday' is not among the model's 3 labels")
    with pytest.raises(UserError, match="expected the model's 3 classes, got 2"):
        labelled(root, LABELS, required=False, choice=BY_ORDER)


def test_images_alone_have_no_labels(tmp_path: Path):
    folder(tmp_path, "cat")
    with pytest.raises(UserError, match=r"cat: expected labelled images .* got images alone"):
        labelled(tmp_path / "cat", LABELS)
