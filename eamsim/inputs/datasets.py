"""Which images a source holds, and of which class the source says each is: one rule for every command (docs/guide/data.md)."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from operator import attrgetter
from pathlib import Path
from stat import S_IFDIR, S_ISDIR, S_ISREG
from typing import Any

import numpy as np
from PIL import features

from eamsim.errors import BadFile, UserError
from eamsim.inputs.npz import read_npz

NETPBM = {".pbm", ".pgm", ".pnm", ".ppm"}
SUFFIXES = NETPBM | {".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
SUFFIXES |= {".avif"} if features.check("avif") else set()
"""What is taken from folders: all that torchvision's ImageFolder takes, and more that Pillow reads."""
IMAGE_NAME = re.compile(rf"[^.].*({'|'.join(map(re.escape, sorted(SUFFIXES)))})", re.IGNORECASE | re.ASCII | re.DOTALL).fullmatch
BY_NAME = attrgetter("name")
EXAMPLES = 3


@dataclass
class LeftOut:
    """What was seen and not taken: by reason the number, and the first names, relative to their source."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, name: str) -> None:
        self.counts[reason] = self.counts.get(reason, 0) + 1
        examples = self.examples.setdefault(reason, [])
        if len(examples) < EXAMPLES:
            examples.append(name)

    def __str__(self) -> str:
        return ", ".join(
            f"{count} x {reason} ({', '.join(self.examples[reason])}{', ...' if count > EXAMPLES else ''})"
            for reason, count in self.counts.items()
        )


@dataclass(frozen=True)
class DataSummary:
    """Of a data set: the images found, those taken of them, what was left out, and how labels were found (JSON values)."""

    found: int
    taken: int
    left_out: LeftOut
    labels: dict[str, Any]

    def json(self) -> dict[str, Any]:
        """The key `data` of results and manifests."""
        left_out = {reason: {"count": count, "examples": self.left_out.examples[reason]} for reason, count in self.left_out.counts.items()}
        return {"found": self.found, "taken": self.taken, "left_out": left_out, "labels": self.labels}

    def __str__(self) -> str:
        met = "{how}, {classes} of {model_classes} classes" if "classes" in self.labels else "{how}"
        left_out = self.left_out if self.left_out.counts else "nothing"
        return f"data: {self.taken:,} of {self.found:,} images taken; left out: {left_out}; labels: {met.format_map(self.labels)}"


@dataclass(frozen=True, eq=False)
class ImageSource:
    """The images of one source, in order.

    items: a path as text or decoded pixels (uint8 [H, W, 3]) per image; names: what an error or a report calls each;
    numbers: int64 [n], the class of each as the source counts its classes, or None; classes: their names in that order, composed
    (NFC), or None where the source has numbers alone.
    """

    name: str
    items: tuple[str | np.ndarray, ...]
    names: tuple[str, ...]
    numbers: np.ndarray | None = None
    classes: tuple[str, ...] | None = None


def shown(path: Path | str) -> str:
    """The path as text that can be printed and stored, whatever bytes its names hold."""
    text = str(path)
    return text if text.isascii() else os.fsencode(text).decode("utf-8", "backslashreplace")


def composed(name: str) -> str:
    """One form for names that look alike: file systems and archives store é as one character or as two (Unicode NFC)."""
    return unicodedata.normalize("NFC", name)


def natural(name: str) -> list[Any]:
    """The key that sorts 2 before 10, and without regard to case, as timm does: text and numbers in turn."""
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"(\d+)", name.lower()))]


def find(path: Path, left_out: LeftOut) -> ImageSource:
    """The images at `path`: an image file, a folder of images, a folder with a folder for each class, or an `.npz`.

    No image file is opened. Raises BadFile for what is missing or cannot be read, UserError for what is none of these.
    """
    if not isinstance(path, Path):
        raise UserError(f"images: expected paths of files and folders, got {type(path).__name__}; pixels go to engine.run directly")
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            raise BadFile(f"{shown(path)}: cannot be read ({error.strerror}); allow it, or give another file or folder") from error
        reason = "a link to what does not exist" if path.is_symlink() else "no such file or folder"
        raise BadFile(f"{shown(path)}: {reason}; give image files, folders of images or .npz files") from error
    except ValueError as error:
        raise BadFile(f"{str(path)!r}: no such file or folder ({error})") from error
    if S_ISDIR(mode):
        return _folder(path, left_out)
    if not S_ISREG(mode):
        raise BadFile(f"{shown(path)}: expected a regular file or a folder, got a stream or device; save it to a file first")
    match path.suffix.lower():
        case ".npz":
            return _arrays(path)
        case ".npy":
            raise BadFile(f"{shown(path)}: expected an .npz, got an .npy; store it with numpy.savez(FILE, images=...)")
    return _of_files(path, [str(path)])


def _of_files(source: Path, paths: list[str], numbers: np.ndarray | None = None, classes: tuple[str, ...] | None = None) -> ImageSource:
    names = paths if all(map(str.isascii, paths)) else map(shown, paths)
    return ImageSource(shown(source), tuple(paths), tuple(names), numbers, classes)


def _folder(root: Path, left_out: LeftOut) -> ImageSource:
    """Class folders, where there are any with images; else the images directly in `root`, without classes."""
    walk = _Walk(str(root), left_out)
    try:
        entries = walk.entries(walk.root)
    except OSError as error:
        raise BadFile(f"{shown(root)}: cannot be read ({error.strerror}); allow it, or give another folder") from error
    own = [path for path, is_folder in entries if not is_folder]
    classes, members = [], []
    for folder in sorted((path for path, is_folder in entries if is_folder), key=natural):  # a stable order: of equals, as text
        if paths := list(walk.below(folder, [walk.root])):
            classes.append(composed(shown(os.path.basename(folder))))
            members.append(paths)
        else:
            walk.leave("folder without images", folder)
    if not classes:
        return _of_files(root, own)
    for path in own:
        walk.leave("image beside class folders", path)
    numbers = np.repeat(np.arange(len(classes), dtype=np.int64), list(map(len, members)))
    return _of_files(root, list(chain.from_iterable(members)), numbers, tuple(classes))


class _Walk:
    """Looks through the folder `root`, and says what it leaves out.

    Paths are text, since a Path takes ten times as long to make, and a plain image is taken by the first test, without a look at the disk.
    """

    def __init__(self, root: str, left_out: LeftOut):
        self.root, self.left_out = root, left_out

    def leave(self, reason: str, path: str) -> None:
        self.left_out.add(reason, shown(os.path.relpath(path, self.root)))

    def entries(self, folder: str) -> list[tuple[str, bool]]:
        """The images and folders in it, sorted by name, links followed, and whether each is a folder."""
        with os.scandir(folder) as found:
            entries = sorted(found, key=BY_NAME)
        taken = []
        for entry in entries:
            if IMAGE_NAME(entry.name) and _is_plain(entry):
                taken.append((entry.path, False))
                continue
            kind = _kind(entry)
            if entry.name.startswith("."):
                self.leave("hidden", entry.path)
            elif kind is None:
                self.leave("link that leads nowhere", entry.path)
            elif S_ISDIR(kind):
                taken.append((entry.path, True))
            elif not S_ISREG(kind):
                self.leave("no regular file", entry.path)
            elif not IMAGE_NAME(entry.name):
                self.leave("other suffix", entry.path)
            else:
                taken.append((entry.path, False))
        return taken

    def below(self, folder: str, above: Sequence[str]) -> Iterator[str]:
        """The images in it and, at any depth, in its folders, sorted by path; above: the folders that lead to it."""
        try:
            if any(os.path.samefile(folder, each) for each in above):
                self.leave("link to a folder above", folder)
                return
            entries = self.entries(folder)
        except OSError:
            self.leave("unreadable folder", folder)
            return
        for path, is_folder in entries:
            if is_folder:
                yield from self.below(path, [*above, folder])
            else:
                yield path


def _is_plain(entry: os.DirEntry[str]) -> bool:
    """Whether it is a file and no link, without a look at the disk."""
    try:
        return entry.is_file(follow_symlinks=False)
    except OSError:
        return False


def _kind(entry: os.DirEntry[str]) -> int | None:
    """The mode bits of what it is or links to; None where that cannot be reached. A plain folder costs no look at the disk."""
    try:
        if entry.is_dir(follow_symlinks=False):
            return S_IFDIR
        return entry.stat().st_mode
    except OSError:
        return None


def _arrays(path: Path) -> ImageSource:
    """`images` uint8 [n, height, width, 3], and optionally `labels` [n] and `classes`; BadFile if they are anything else."""
    name = shown(path)
    arrays = read_npz(path, lambda name: name in ("images", "labels", "classes"))
    if "images" not in arrays:
        present = ", ".join(sorted(read_npz(path))) or "nothing"
        raise BadFile(f"{name}: expected the array 'images' (and optionally 'labels', 'classes'), got {present}")
    images, labels, classes = arrays["images"], arrays.get("labels"), arrays.get("classes")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape[1:3]:
        raise BadFile(f"{name}: images must be uint8 [n, height, width, 3], got {images.dtype} {list(images.shape)}")
    if classes is not None and (classes.dtype.kind != "U" or classes.ndim != 1):
        raise BadFile(f"{name}: classes must be text [classes], got {classes.dtype} {list(classes.shape)}")
    if labels is not None:
        _check_labels(name, labels, len(images), None if classes is None else len(classes))
        labels = labels.astype(np.int64)
    names = tuple(f"{name}[{index}]" for index in range(len(images)))
    words = None if labels is None or classes is None else tuple(map(composed, classes.tolist()))
    return ImageSource(name, tuple(images), names, labels, words)


def _check_labels(name: str, labels: np.ndarray, images: int, classes: int | None) -> None:
    if labels.dtype.kind not in "iu" or labels.shape != (images,):
        raise BadFile(f"{name}: labels must be integers [{images}], got {labels.dtype} {list(labels.shape)}")
    if not images:
        return
    low, high = int(labels.min()), int(labels.max())  # of Python, since an unsigned array may hold what int64 cannot
    if low < 0 or high >= (1 << 31 if classes is None else classes):
        raise BadFile(f"{name}: labels must be in 0..{'' if classes is None else classes - 1}, got {low}..{high}")
