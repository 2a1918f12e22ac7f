"""Odd folders of images: what is right of each and why, beside what torchvision's ImageFolder and timm's reader make of it."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from eamsim.errors import BadFile, UserError
from eamsim.inputs import datasets
from eamsim.inputs.datasets import LeftOut, find
from eamsim.inputs.images import Preprocessing, open_images

Classes = dict[str, int]  # the class, by position, of each file
SAME, REFUSES, UNSPECIFIED = "as we", "refuses", "in no certain order"
NFC, NFD = "\u00e9t\u00e9", "e\u0301te\u0301"


@dataclass(frozen=True)
class Row:
    """A folder (`a/` is an empty folder, `a -> b` a link, `a |` a pipe), what is right, what of it is left out and why, the others."""

    why: str
    holds: tuple[str, ...]
    right: Classes
    left_out: dict[str, int]
    torchvision: Classes | str
    timm: Classes | str


ROWS = {
    "plain": Row("a folder a class", ("cat/1.png", "dog/1.png"), {"cat/1.png": 0, "dog/1.png": 1}, {}, SAME, SAME),
    "one class": Row("one folder is one class", ("cat/1.png",), {"cat/1.png": 0}, {}, SAME, SAME),
    "stray": Row(
        "an image beside the class folders is of no class; timm makes one of it, and shifts all others",
        ("cat/1.png", "dog/1.png", "overview.png"),
        {"cat/1.png": 0, "dog/1.png": 1},
        {"image beside class folders": 1},
        SAME,
        {"overview.png": 0, "cat/1.png": 1, "dog/1.png": 2},
    ),
    "stray text": Row(
        "what is no image is none of the classes", ("cat/1.png", "README.txt"), {"cat/1.png": 0}, {"other suffix": 1}, SAME, SAME
    ),
    "hidden with images": Row(
        "editors keep copies in hidden folders; the others count them as a class",
        ("cat/1.png", ".ipynb_checkpoints/1.png"),
        {"cat/1.png": 0},
        {"hidden": 1},
        {".ipynb_checkpoints/1.png": 0, "cat/1.png": 1},
        {".ipynb_checkpoints/1.png": 0, "cat/1.png": 1},
    ),
    "hidden empty": Row("version control is no class", ("cat/1.png", ".git/"), {"cat/1.png": 0}, {"hidden": 1}, REFUSES, SAME),
    "hidden below a class": Row(
        "at any depth",
        ("cat/1.png", "cat/.thumbs/1.png"),
        {"cat/1.png": 0},
        {"hidden": 1},
        {"cat/1.png": 0, "cat/.thumbs/1.png": 0},
        {"cat/.thumbs/1.png": 0, "cat/1.png": 1},
    ),
    "hidden file": Row(
        "macOS writes ._1.png beside 1.png: metadata, no image",
        ("cat/1.png", "cat/._1.png"),
        {"cat/1.png": 0},
        {"hidden": 1},
        {"cat/1.png": 0, "cat/._1.png": 0},
        {"cat/1.png": 0, "cat/._1.png": 0},
    ),
    "empty folder": Row(
        "a class without images shifts no other class",
        ("bird/", "cat/1.png"),
        {"cat/1.png": 0},
        {"folder without images": 1},
        REFUSES,
        SAME,
    ),
    "folder of texts": Row(
        "nor does a folder of other files",
        ("annotations/1.xml", "cat/1.png"),
        {"cat/1.png": 0},
        {"folder without images": 1, "other suffix": 1},
        REFUSES,
        SAME,
    ),
    "numbers": Row(
        "2 comes before 10, as in timm; torchvision sorts text",
        ("1/1.png", "2/1.png", "10/1.png"),
        {"1/1.png": 0, "2/1.png": 1, "10/1.png": 2},
        {},
        {"1/1.png": 0, "10/1.png": 1, "2/1.png": 2},
        SAME,
    ),
    "numbers in names": Row(
        "also within a name",
        ("class9/1.png", "class10/1.png"),
        {"class9/1.png": 0, "class10/1.png": 1},
        {},
        {"class10/1.png": 0, "class9/1.png": 1},
        SAME,
    ),
    "padded numbers": Row("all agree", ("009/1.png", "010/1.png"), {"009/1.png": 0, "010/1.png": 1}, {}, SAME, SAME),
    "wnids": Row("all agree", ("n02/1.png", "n01/1.png"), {"n01/1.png": 0, "n02/1.png": 1}, {}, SAME, SAME),
    "case": Row(
        "order has no regard to case, as in timm",
        ("Zebra/1.png", "ant/1.png"),
        {"ant/1.png": 0, "Zebra/1.png": 1},
        {},
        {"Zebra/1.png": 0, "ant/1.png": 1},
        SAME,
    ),
    "case twins": Row("two names, two classes", ("Cat/1.png", "cat/1.png"), {"Cat/1.png": 0, "cat/1.png": 1}, {}, SAME, UNSPECIFIED),
    "nested": Row(
        "the class is the folder at the top; timm takes the one at the bottom",
        ("cat/a/1.png", "cat/b/1.png"),
        {"cat/a/1.png": 0, "cat/b/1.png": 0},
        {},
        SAME,
        {"cat/a/1.png": 0, "cat/b/1.png": 1},
    ),
    "splits": Row(
        "train and val are classes to a reader who is given the folder above, by name refused; timm looks for val itself",
        ("train/cat/1.png", "val/cat/1.png"),
        {"train/cat/1.png": 0, "val/cat/1.png": 1},
        {},
        SAME,
        {"val/cat/1.png": 0},
    ),
    "no classes": Row(
        "images alone are images without labels", ("1.png", "2.png"), {"1.png": -1, "2.png": -1}, {}, REFUSES, {"1.png": 0, "2.png": 0}
    ),
    "images beside an empty folder": Row(
        "no class folder holds an image",
        ("1.png", "cat/"),
        {"1.png": -1},
        {"folder without images": 1},
        REFUSES,
        {"1.png": 0},
    ),
    "upper case suffix": Row("a suffix has no case", ("cat/1.PNG",), {"cat/1.PNG": 0}, {}, SAME, SAME),
    "grey": Row("Pillow reads it, torchvision takes it", ("cat/1.pgm",), {"cat/1.pgm": 0}, {}, SAME, REFUSES),
    "other names of JPEG": Row(
        "the same bytes by another suffix",
        ("cat/1.jfif", "cat/2.jpe", "cat/3.jpg"),
        {"cat/1.jfif": 0, "cat/2.jpe": 0, "cat/3.jpg": 0},
        {},
        {"cat/3.jpg": 0},
        {"cat/3.jpg": 0},
    ),
    "webp": Row("torchvision takes it, timm does not", ("cat/1.webp",), {"cat/1.webp": 0}, {}, SAME, REFUSES),
    "unknown suffix": Row("not read, but said", ("cat/1.png", "cat/2.jxl", "cat/3"), {"cat/1.png": 0}, {"other suffix": 2}, SAME, SAME),
    "composed": Row("one form of the name", (f"{NFC}/1.png", "zoo/1.png"), {f"{NFC}/1.png": 1, "zoo/1.png": 0}, {}, SAME, SAME),
    "decomposed": Row(
        "as a Mac writes it; by name the same class", (f"{NFD}/1.png", "zoo/1.png"), {f"{NFD}/1.png": 0, "zoo/1.png": 1}, {}, SAME, SAME
    ),
    "not UTF-8": Row(
        "any bytes are a name",
        (os.fsdecode(b"caf\xe9/1.png"), "dog/1.png"),
        {os.fsdecode(b"caf\xe9/1.png"): 0, "dog/1.png": 1},
        {},
        SAME,
        SAME,
    ),
    "space and newline": Row("so are these", ("a b/1.png", "c\nd/1.png"), {"a b/1.png": 0, "c\nd/1.png": 1}, {}, SAME, SAME),
    "linked image": Row("links are followed", ("cat/1.png -> ../../kept/1.png",), {"cat/1.png": 0}, {}, SAME, SAME),
    "linked class": Row("also to a folder", ("cat -> ../kept", "dog/1.png"), {"cat/1.png": 0, "dog/1.png": 1}, {}, SAME, SAME),
    "linked folder below": Row(
        "at any depth",
        ("cat/1.png", "cat/more -> ../../kept"),
        {"cat/1.png": 0, "cat/more/1.png": 0},
        {},
        SAME,
        {"cat/1.png": 0, "cat/more/1.png": 1},
    ),
    "dangling link": Row(
        "content that was not fetched: the others list it, and fail when they come to it",
        ("cat/1.png", "cat/2.png -> no/such/key"),
        {"cat/1.png": 0},
        {"link that leads nowhere": 1},
        {"cat/1.png": 0, "cat/2.png": 0},
        {"cat/1.png": 0, "cat/2.png": 0},
    ),
    "link to itself": Row(
        "leads nowhere",
        ("cat/1.png", "cat/2.png -> 2.png"),
        {"cat/1.png": 0},
        {"link that leads nowhere": 1},
        {"cat/1.png": 0, "cat/2.png": 0},
        {"cat/1.png": 0, "cat/2.png": 0},
    ),
    "pipe": Row(
        "would be waited for without an end",
        ("cat/1.png", "cat/2.png |"),
        {"cat/1.png": 0},
        {"no regular file": 1},
        {"cat/1.png": 0, "cat/2.png": 0},
        {"cat/1.png": 0, "cat/2.png": 0},
    ),
    "folder named as an image": Row(
        "is a folder",
        ("cat/1.png", "cat/2.png/3.png"),
        {"cat/1.png": 0, "cat/2.png/3.png": 0},
        {},
        SAME,
        {"cat/2.png/3.png": 0, "cat/1.png": 1},
    ),
}


def save(path: Path) -> Path:
    """An image, whatever the suffix; of a suffix that Pillow cannot write, a text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    formats = {".jfif": "JPEG", ".jpe": "JPEG", ".pgm": "PPM"}
    if path.suffix in ("", ".jxl", ".txt", ".xml"):
        path.write_text("no image")
    else:
        Image.new("L" if path.suffix == ".pgm" else "RGB", (8, 8)).save(path, formats.get(path.suffix))
    return path


def make(root: Path, holds: tuple[str, ...]) -> Path:
    save(root.parent / "kept/1.png")
    root.mkdir()
    for entry in holds:
        name, _, target = entry.partition(" -> ")
        path = root / name.removesuffix(" |")
        if target:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(target)
        elif entry.endswith("|"):
            os.mkfifo(path)
        elif entry.endswith("/"):
            path.mkdir()
        else:
            save(path)
    return root


def ours(root: Path) -> tuple[Classes, dict[str, int]]:
    left_out = LeftOut()
    source = find(root, left_out)
    numbers = [-1] * len(source.items) if source.numbers is None else source.numbers.tolist()
    paths = [os.path.relpath(str(path), root) for path in source.items]
    return dict(zip(paths, numbers, strict=True)), left_out.counts


def torchvision_reads(root: Path) -> Classes:
    folder = pytest.importorskip("torchvision.datasets").ImageFolder(root)
    return {str(Path(path).relative_to(root)): number for path, number in folder.samples}


def timm_reads(root: Path) -> Classes:
    data = pytest.importorskip("timm.data").create_dataset("", root=str(root))
    return {str(Path(path).relative_to(root)): number for path, number in data.reader.samples}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_what_is_right(tmp_path: Path, row: Row):
    assert ours(make(tmp_path / "d", row.holds)) == (row.right, row.left_out)


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize(("reader", "column"), [(torchvision_reads, "torchvision"), (timm_reads, "timm")])
def test_what_the_others_make_of_it(tmp_path: Path, row: Row, reader: Callable[[Path], Classes], column: str):
    root, expected = make(tmp_path / "d", row.holds), getattr(row, column)
    if expected == REFUSES:
        pytest.importorskip(column)
        with pytest.raises((FileNotFoundError, RuntimeError)):
            reader(root)
    elif expected == UNSPECIFIED:
        assert reader(root).keys() == row.right.keys()
    else:
        assert reader(root) == (row.right if expected == SAME else expected)


def test_avif_is_taken_where_pillow_reads_it(tmp_path: Path):
    if not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    images = open_images([make(tmp_path / "d", ("cat/1.avif",))], Preprocessing(8, 8, 1.0, "bicubic"))
    assert (len(images), images.summary.left_out.counts) == (1, {})


def test_a_link_to_a_folder_above_is_not_followed_for_ever(tmp_path: Path):
    root = make(tmp_path / "d", ("cat/1.png", "cat/again -> ..", "dog/1.png"))
    assert ours(root) == ({"cat/1.png": 0, "dog/1.png": 1}, {"link to a folder above": 1})


def test_an_unreadable_folder_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root, scandir = make(tmp_path / "d", ("cat/1.png", "dog/1.png")), os.scandir

    def refuse(path: Path) -> object:
        if Path(path).name == "dog":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert ours(root) == ({"cat/1.png": 0}, {"unreadable folder": 1, "folder without images": 1})
    with pytest.raises(BadFile, match=r"dog: cannot be read \(Permission denied\)"):
        find(root / "dog", LeftOut())


def test_only_what_is_taken_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for number in range(20):
        save(tmp_path / f"cat/{number}.png")
    opened = []
    monkeypatch.setattr(Image, "open", lambda path, formats, real=Image.open: opened.append(path) or real(path, formats=formats))
    images = open_images([tmp_path], Preprocessing(8, 8, 1.0, "bicubic"), limit=3)
    assert opened == list(images.items)
    assert len(opened) == 3


def test_a_plain_image_costs_no_look_at_the_disk_and_no_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for number in range(20):
        save(tmp_path / f"cat/{number}.png")
    looked, kind = [], datasets._kind
    monkeypatch.setattr(datasets, "_kind", lambda entry: looked.append(entry.name) or kind(entry))
    found = find(tmp_path, LeftOut())
    assert looked == ["cat"]
    assert {type(item) for item in found.items} == {str}


def test_what_was_taken_is_kept_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    root = make(tmp_path / "d", ("cat/1.png", "cat/2.png", "dog/1.png", "overview.png", ".git/"))
    with caplog.at_level("INFO", "eamsim.data"):
        images = open_images([root], Preprocessing(8, 8, 1.0, "bicubic"), limit=2)
    assert images.summary.json() == {
        "found": 3,
        "taken": 2,
        "left_out": {
            "hidden": {"count": 1, "examples": [".git"]},
            "image beside class folders": {"count": 1, "examples": ["overview.png"]},
        },
        "labels": {"how": "not needed"},
    }
    assert caplog.messages == [
        "data: 2 of 3 images taken; left out: 1 x hidden (.git), 1 x image beside class folders (overview.png); labels: not needed"
    ]


def test_a_name_that_is_not_text_can_be_printed(tmp_path: Path):
    root = make(tmp_path / "d", (os.fsdecode(b"caf\xe9/1.png"), os.fsdecode(b"caf\xe9/2\xff.txt")))
    images = open_images([root], Preprocessing(8, 8, 1.0, "bicubic"))
    for name in (*images.names, str(images.summary)):
        assert name.encode()
    assert images.names[0].endswith(r"caf\xe9/1.png")


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ("photo.png", "expected a list of paths, got 'photo.png' alone"),
        ([np.zeros((8, 8, 3), np.uint8)], "expected paths of files and folders, got ndarray"),
        ([Image.new("RGB", (8, 8))], "expected paths of files and folders, got Image"),
        ([["a.png"]], "expected paths of files and folders, got list"),
        ([], "images: no images found"),
        ([Path("/dev/null")], "expected a regular file or a folder, got a stream or device"),
        ([Path("no\0thing")], "no such file or folder"),
    ],
)
def test_what_is_no_source_is_named(sources: list, message: str):
    with pytest.raises(UserError, match=message):
        open_images(sources, Preprocessing(8, 8, 1.0, "bicubic"))


def test_sources_that_lead_nowhere_or_hold_nothing_are_named(tmp_path: Path):
    (tmp_path / "gone.png").symlink_to("no/such/key")
    save(tmp_path / "full/1.png")
    save(tmp_path / "empty/1.jxl")
    prepare = Preprocessing(8, 8, 1.0, "bicubic")
    with pytest.raises(BadFile, match=r"gone\.png: a link to what does not exist"):
        open_images([tmp_path / "gone.png"], prepare)
    with pytest.raises(UserError, match=r"empty: no images found \(1 x other suffix \(1\.jxl\)\)"):
        open_images([tmp_path / "full", tmp_path / "empty"], prepare)


def test_an_image_that_cannot_be_opened_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = save(tmp_path / "1.png")
    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(BadFile, match=r"1\.png: cannot be read \(Permission denied\)"):
        open_images([path], Preprocessing(8, 8, 1.0, "bicubic"))
