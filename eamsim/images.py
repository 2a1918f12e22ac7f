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
from typing import Literal, get_args

import numpy as np
from numpy.lib.npyio import NpzFile
from PIL import Image

from eamsim.errors import BadFile, UserError

Interpolation = Literal["bicubic", "bilinear", "nearest", "box", "hamming", "lanczos"]
CropMode = Literal["center", "squash", "border"]
SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
WIDE_MODES = ("I", "F")  # 16 or 32 bits a pixel
RESAMPLING = {name: Image.Resampling[name.upper()] for name in get_args(Interpolation)}


@dataclass(frozen=True)
class Preprocessing:
    """timm's evaluation transform: resize, then cut height x width out of the centre.

    crop_mode: `center` covers height / crop_pct x width / crop_pct, `border` fits into it and fills up with the colour `fill`,
    `squash` resizes to it whatever the shape of the image. fill: RGB in 0..255. Raises UserError.
    """

    height: int
    width: int
    crop_pct: float
    interpolation: Interpolation
    crop_mode: CropMode = "center"
    fill: tuple[int, ...] = (0, 0, 0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "fill", tuple(self.fill))  # JSON has lists
        if self.height < 1 or self.width < 1:
            raise UserError(f"preprocessing: expected images of at least one pixel, got {self.height} x {self.width}")
        if not 0 < self.crop_pct <= 1:
            raise UserError(f"preprocessing: crop_pct must be in (0, 1], got {self.crop_pct}")
        for name, choices in (("interpolation", get_args(Interpolation)), ("crop_mode", get_args(CropMode))):
            if getattr(self, name) not in choices:
                raise UserError(f"preprocessing: {name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        if len(self.fill) != 3 or not all(type(value) is int and 0 <= value <= 255 for value in self.fill):
            raise UserError(f"preprocessing: fill must be three integers in 0..255, got {self.fill}")

    def __call__(self, image: Image.Image) -> np.ndarray:
        """uint8 [height, width, 3] of any image, equal to the last bit to what timm and torchvision make of it."""
        image = image.convert("RGB")
        size = self._resized(*image.size)
        if size != image.size:
            image = image.resize(size, RESAMPLING[self.interpolation])
        canvas = Image.new("RGB", (self.width, self.height), self.fill)
        canvas.paste(image, (_offset(image.width, self.width), _offset(image.height, self.height)))
        return np.asarray(canvas)

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) of the image before it is cropped, rounded as torchvision's Resize or timm's ResizeKeepRatio does."""
        target_width, target_height = (math.floor(side / self.crop_pct) for side in (self.width, self.height))
        if self.crop_mode == "squash":
            return target_width, target_height
        if self.crop_mode == "center" and target_width == target_height:
            short, target = min(width, height), target_width
            return (target if width == short else int(target * width / short), target if height == short else int(target * height / short))
        ratio = (max if self.crop_mode == "border" else min)(width / target_width, height / target_height)
        return round(width / ratio), round(height / ratio)


def _offset(side: int, wanted: int) -> int:
    """Where the image starts on its canvas: what is cut off before it is rounded to even, what is filled up before it down."""
    return (wanted - side) // 2 if wanted > side else -round((side - wanted) / 2)


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
