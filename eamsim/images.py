"""Images from disk to uint8 pixels, prepared as timm's evaluation transform prepares them, without torch."""

from __future__ import annotations

import hashlib
import math
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.lib.npyio import NpzFile
from PIL import Image

from eamsim.errors import BadFile, UserError

Interpolation = Literal["bicubic", "bilinear", "nearest"]
SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
WIDE_MODES = ("I", "F")  # 16 or 32 bits a pixel
RESAMPLING = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
}


@dataclass(frozen=True)
class Preprocessing:
    """Resize the short side to floor(size / crop_pct), then crop the centre to height x width (timm's `center` mode)."""

    height: int
    width: int
    crop_pct: float
    interpolation: Interpolation

    def __post_init__(self) -> None:
        if self.height != self.width or self.height < 1:
            raise UserError(f"preprocessing: expected square images, got {self.height} x {self.width}")
        if not 0 < self.crop_pct <= 1:
            raise UserError(f"preprocessing: crop_pct must be in (0, 1], got {self.crop_pct}")
        if self.interpolation not in RESAMPLING:
            raise UserError(f"preprocessing: interpolation must be one of {', '.join(RESAMPLING)}, got {self.interpolation!r}")

    def __call__(self, image: Image.Image) -> np.ndarray:
        """uint8 [height, width, 3] of any image, equal to the last bit to torchvision's Resize and CenterCrop."""
        image = image.convert("RGB")
        short_side = math.floor(self.height / self.crop_pct)
        scale = short_side / min(image.size)
        if scale != 1:
            width, height = (short_side if side == min(image.size) else int(short_side * side / min(image.size)) for side in image.size)
            image = image.resize((width, height), RESAMPLING[self.interpolation])
        left, top = round((image.width - self.width) / 2), round((image.height - self.height) / 2)
        return np.asarray(image.crop((left, top, left + self.width, top + self.height)))


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images that are decoded when a batch asks for them.

    items: a path or decoded pixels (uint8 [H, W, 3]) per image; names: what an error or a report calls each;
    labels: int64 [n] into `classes` (or into the model's own classes, where the data names none), or None.
    """

    items: tuple[Path | np.ndarray, ...]
    names: tuple[str, ...]
    preprocessing: Preprocessing
    labels: np.ndarray | None
    classes: tuple[str, ...] | None

    def __len__(self) -> int:
        return len(self.items)

    def spread(self, images: int) -> ImageSet:
        """At most so many images, evenly spaced, so that a folder sorted by class stays balanced."""
        if images >= len(self):
            return self
        chosen = np.arange(images) * len(self) // images
        return replace(
            self,
            items=tuple(self.items[i] for i in chosen),
            names=tuple(self.names[i] for i in chosen),
            labels=None if self.labels is None else self.labels[chosen],
        )

    def has_labels(self, classes: int) -> bool:
        """Whether there are labels, and they are of a model of so many classes."""
        if self.labels is None or (self.classes is not None and len(self.classes) != classes):
            return False
        return bool(self.labels.max() < classes)

    def batches(self, batch_size: int) -> Iterator[np.ndarray]:
        """uint8 [batch, height, width, 3] in order, the last one shorter; BadFile names the image that cannot be decoded."""
        for start in range(0, len(self), batch_size):
            yield np.stack([self._pixels(item) for item in self.items[start : start + batch_size]])

    def _pixels(self, item: Path | np.ndarray) -> np.ndarray:
        if isinstance(item, np.ndarray):
            return self.preprocessing(Image.fromarray(item))
        with open_image(item) as image, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on metadata, and on transparency, which is dropped anyway
            try:
                return self.preprocessing(image)
            except (OSError, ValueError, SyntaxError) as error:
                raise BadFile(f"{item}: damaged image ({error}); replace or remove it") from error

    @cached_property
    def sha256(self) -> str:
        """Digest of every source image, as stored, and of the labels, in order."""
        digest = hashlib.sha256()
        for item in self.items:
            data = item.read_bytes() if isinstance(item, Path) else item.tobytes()
            digest.update(hashlib.sha256(data).digest())
        if self.labels is not None:
            digest.update(self.labels.astype("<i8").tobytes())
        return digest.hexdigest()


def open_image(path: Path) -> Image.Image:
    """The image's header only (pixels are decoded on use); BadFile if it is missing, no image or suspiciously large."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(path, formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadFile(f"{path}: more than {Image.MAX_IMAGE_PIXELS} pixels; scale it down first") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise BadFile(f"{path}: not a readable image; expected one of {', '.join(FORMATS)}") from error
    if image.mode.startswith(WIDE_MODES):
        image.close()
        raise BadFile(f"{path}: expected 8 bits a channel, got the mode {image.mode}, which would saturate; convert it first")
    return image


def open_images(
    sources: Sequence[Path], preprocessing: Preprocessing, limit: int | None = None, labels: Sequence[str] | None = None
) -> ImageSet:
    """Everything in `sources`: image files, folders of images, ImageFolder layouts (one folder a class), `.npz` files.

    limit: at most so many images, evenly spaced (`ImageSet.spread`).
    labels: the model's label names; data whose class names are among them is labelled by name, other data by
    the order of its classes. Only headers are read here. Raises BadFile and UserError.
    """
    if limit is not None and limit < 1:
        raise UserError(f"the number of images must be at least 1, got {limit}")
    parts = [_open_source(Path(source), preprocessing) for source in sources]
    if not any(map(len, parts)):
        raise UserError(f"{', '.join(map(str, sources))}: no images found; give image files, a folder of images or an .npz")
    labelled = [part for part in parts if part.labels is not None]
    if len({part.classes for part in labelled}) > 1:
        raise UserError(f"{', '.join(map(str, sources))}: the sources name different classes; give them one by one")
    found, classes = None, None
    if len(labelled) == len(parts):
        found = np.concatenate([part.labels for part in labelled if part.labels is not None])
        found, classes = _to_model_labels(found, parts[0].classes, labels)
    items = tuple(item for part in parts for item in part.items)
    names = tuple(name for part in parts for name in part.names)
    images = ImageSet(items, names, preprocessing, found, classes)
    return images if limit is None else images.spread(limit)


def _to_model_labels(
    found: np.ndarray, classes: tuple[str, ...] | None, model_labels: Sequence[str] | None
) -> tuple[np.ndarray, tuple[str, ...] | None]:
    if classes is None or model_labels is None or not set(classes) & set(model_labels):
        return found, classes
    unknown = [name for name in classes if name not in model_labels]
    if unknown:
        raise UserError(f"class {unknown[0]!r} of the data is not among the model's {len(model_labels)} labels; rename or remove it")
    return np.array([model_labels.index(name) for name in classes], np.int64)[found], tuple(model_labels)


def _open_source(source: Path, preprocessing: Preprocessing) -> ImageSet:
    if source.is_dir():
        return _open_folder(source, preprocessing)
    if not source.exists():
        raise BadFile(f"{source}: no such file or folder")
    if source.suffix == ".npz":
        return _open_npz(source, preprocessing)
    return _from_paths([source], preprocessing)


def _open_folder(folder: Path, preprocessing: Preprocessing) -> ImageSet:
    own = _images_in(folder.iterdir())
    by_class = {path.name: _images_in(path.rglob("*")) for path in sorted(folder.iterdir()) if path.is_dir()}
    if own or not any(by_class.values()):
        return _from_paths(own, preprocessing)
    paths = [path for members in by_class.values() for path in members]
    labels = np.repeat(np.arange(len(by_class), dtype=np.int64), [len(members) for members in by_class.values()])
    return _from_paths(paths, preprocessing, labels, tuple(by_class))


def _images_in(paths: Iterable[Path]) -> list[Path]:
    return sorted(path for path in paths if path.suffix.lower() in SUFFIXES and path.is_file())


def _from_paths(
    paths: list[Path], preprocessing: Preprocessing, labels: np.ndarray | None = None, classes: tuple[str, ...] | None = None
) -> ImageSet:
    for path in paths:
        open_image(path).close()
    return ImageSet(tuple(paths), tuple(map(str, paths)), preprocessing, labels, classes)


def _open_npz(path: Path, preprocessing: Preprocessing) -> ImageSet:
    try:
        with path.open("rb") as file, NpzFile(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in ("images", "labels", "classes") if name in archive}
            present = sorted(archive)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise BadFile(f"{path}: not a readable .npz without pickled objects ({error})") from error
    if "images" not in arrays:
        raise BadFile(f"{path}: expected the array 'images' (and optionally 'labels', 'classes'), got {', '.join(present) or 'nothing'}")
    images = arrays["images"]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape[1:3]:
        raise BadFile(f"{path}: images must be uint8 [n, height, width, 3], got {images.dtype} {list(images.shape)}")
    labels, classes = arrays.get("labels"), arrays.get("classes")
    if classes is not None and (classes.dtype.kind != "U" or classes.ndim != 1):
        raise BadFile(f"{path}: classes must be text [classes], got {classes.dtype} {list(classes.shape)}")
    if labels is not None:
        _check_labels(path, labels, len(images), None if classes is None else len(classes))
        labels = labels.astype(np.int64)
    names = tuple(f"{path}[{index}]" for index in range(len(images)))
    return ImageSet(tuple(images), names, preprocessing, labels, None if classes is None else tuple(classes.tolist()))


def _check_labels(path: Path, labels: np.ndarray, images: int, classes: int | None) -> None:
    if labels.dtype.kind not in "iu" or labels.shape != (images,):
        raise BadFile(f"{path}: labels must be integers [{images}], got {labels.dtype} {list(labels.shape)}")
    if images and (labels.min() < 0 or (classes is not None and labels.max() >= classes)):
        raise BadFile(f"{path}: labels must be in 0..{'' if classes is None else classes - 1}, got {labels.min()}..{labels.max()}")
