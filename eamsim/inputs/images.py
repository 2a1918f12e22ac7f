"""Images from disk to uint8 pixels, prepared as timm's evaluation transform prepares them, without torch."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from PIL import Image, features

from eamsim.arguments import expect_images, expect_integer, expect_type
from eamsim.errors import BadFile, UserError
from eamsim.files.limits import PIXELS
from eamsim.inputs.datasets import DataSummary, ImageSource, LeftOut, find, shown
from eamsim.inputs.labels import Labelling, matched

log = logging.getLogger("eamsim.data")
Interpolation = Literal["bicubic", "bilinear", "nearest", "box", "hamming", "lanczos"]
CropMode = Literal["center", "squash", "border"]
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP", *(["AVIF"] if features.check("avif") else []))
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
        for name, types in (("height", [int]), ("width", [int]), ("crop_pct", [int, float]), ("fill", [tuple, list])):
            expect_type(f"preprocessing: {name}", getattr(self, name), *types)
        object.__setattr__(self, "fill", tuple(self.fill))  # JSON has lists
        if self.height < 1 or self.width < 1:
            raise UserError(f"preprocessing: expected images of at least one pixel, got {self.height} x {self.width}")
        if not 0 < self.crop_pct <= 1:
            raise UserError(f"preprocessing: crop_pct must be in (0, 1], got {self.crop_pct}")
        if self.height * self.width > PIXELS * self.crop_pct**2:
            raise UserError(f"preprocessing: crop_pct {self.crop_pct} makes images of more than {PIXELS} pixels; expected about 0.9")
        for name, choices in (("interpolation", get_args(Interpolation)), ("crop_mode", get_args(CropMode))):
            if getattr(self, name) not in choices:
                raise UserError(f"preprocessing: {name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        if len(self.fill) != 3 or not all(type(value) is int and 0 <= value <= 255 for value in self.fill):
            raise UserError(f"preprocessing: fill must be three integers in 0..255, got {self.fill}")

    def __call__(self, image: Image.Image) -> np.ndarray:
        """uint8 [height, width, 3] of any image, equal to the last bit to what timm and torchvision make of it."""
        size = self._resized(*image.size)
        check_resized(image.size, size)  # before anything is decoded
        image = image.convert("RGB")
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
    labels: int64 [n], the model's class of each, or None where they were not asked for or there are none; numbers: int64 [n], the
    class of each as the sources count them, or None; summary: what was taken of the sources, and what was not.
    """

    items: tuple[Path | np.ndarray, ...]
    names: tuple[str, ...]
    preprocessing: Preprocessing
    labels: np.ndarray | None
    numbers: np.ndarray | None
    summary: DataSummary

    def __len__(self) -> int:
        return len(self.items)

    def spread(self, images: int) -> ImageSet:
        """At most so many images, evenly spaced, so that a folder sorted by class stays balanced."""
        expect_integer("images", images, 1)
        return self if images >= len(self) else self.select(evenly(len(self), images))

    def select(self, chosen: np.ndarray) -> ImageSet:
        """The images of these indices, in this order."""
        return replace(
            self,
            items=tuple(self.items[i] for i in chosen),
            names=tuple(self.names[i] for i in chosen),
            labels=None if self.labels is None else self.labels[chosen],
            numbers=None if self.numbers is None else self.numbers[chosen],
        )

    def batches(self, batch_size: int) -> Iterator[np.ndarray]:
        """uint8 [batch, height, width, 3] in order, the last one shorter; BadFile names the image that cannot be decoded."""
        expect_integer("batch_size", batch_size, 1)
        for start in range(0, len(self), batch_size):
            yield np.stack([self._pixels(item) for item in self.items[start : start + batch_size]])

    def _pixels(self, item: Path | np.ndarray) -> np.ndarray:
        if isinstance(item, np.ndarray):
            return self.preprocessing(Image.fromarray(item))
        with open_image(item) as image, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on metadata, and on transparency, which is dropped anyway
            try:
                return self.preprocessing(image)
            except UserError as error:
                raise BadFile(f"{shown(item)}: {error}") from error
            except (OSError, ValueError, SyntaxError) as error:
                raise BadFile(f"{shown(item)}: damaged image ({error}); replace or remove it") from error

    @cached_property
    def sha256(self) -> str:
        """Digest of every source image, as stored, and of the labels, in order.

        Of labels that decide nothing, as in a calibration, the sources' own numbers: so it has always been in the files written.
        """
        digest = hashlib.sha256()
        for item in self.items:
            data = item.read_bytes() if isinstance(item, Path) else item.tobytes()
            digest.update(hashlib.sha256(data).digest())
        labels = self.numbers if self.labels is None else self.labels
        if labels is not None:
            digest.update(labels.astype("<i8").tobytes())
        return digest.hexdigest()


def in_memory(pixels: np.ndarray, labels: np.ndarray | None = None) -> ImageSet:
    """Images that are prepared already, as a set: uint8 [n, height, width, 3], and int64 [n] classes of the model; UserError."""
    expect_images(pixels, ("height", "width", 3), 1)
    as_they_are = Preprocessing(*pixels.shape[1:3], crop_pct=1.0, interpolation="bicubic")
    names = tuple(f"image {index}" for index in range(len(pixels)))
    return ImageSet(tuple(pixels), names, as_they_are, labels, labels, DataSummary(len(pixels), len(pixels), LeftOut(), {"how": "given"}))


def evenly(count: int, wanted: int) -> np.ndarray:
    """So many of `count` indices, evenly spaced, the first among them: int64 [wanted]."""
    return np.arange(wanted) * count // wanted


def check_resized(size: tuple[int, int], resized: tuple[int, int]) -> None:
    """UserError where a thin image would be resized beyond memory, since its long side grows with the short one, or to nothing."""
    if not 0 < resized[0] * resized[1] <= PIXELS:
        (width, height), (wide, high) = size, resized
        raise UserError(f"its {width} x {height} pixels would be resized to {wide} x {high}, of at most {PIXELS}; crop it first")


def open_image(path: Path) -> Image.Image:
    """The image's header only (pixels are decoded on use); BadFile if it is missing, no image or suspiciously large."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(path, formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadFile(f"{shown(path)}: more than {Image.MAX_IMAGE_PIXELS} pixels; scale it down first") from error
    except (OSError, ValueError, SyntaxError) as error:
        if isinstance(error, OSError) and error.errno:
            raise BadFile(f"{shown(path)}: cannot be read ({os.strerror(error.errno)}); allow it, or leave it out") from error
        raise BadFile(f"{shown(path)}: not a readable image; expected one of {', '.join(FORMATS)}") from error
    if image.mode.startswith(WIDE_MODES):
        image.close()
        raise BadFile(f"{shown(path)}: expected 8 bits a channel, got the mode {image.mode}, which would saturate; convert it first")
    return image


def check_headers(items: Sequence[Path | np.ndarray]) -> None:
    """BadFile for the first file that is no image."""
    for item in items:
        if isinstance(item, Path):
            open_image(item).close()


def _found(sources: Sequence[Path], left_out: LeftOut) -> list[ImageSource]:
    if isinstance(sources, str | Path):
        raise UserError(f"images: expected a list of paths, got {str(sources)!r} alone; put it in a list")
    found = [find(source, left_out) for source in sources]
    empty = next((source.name for source in found if not source.items), None if found else "images")
    if empty is not None:
        missed = f" ({left_out})" if left_out.counts else ""
        raise UserError(f"{empty}: no images found{missed}; give image files, a folder of images or an .npz")
    alone = [source.items[0] for source in found if len(source.items) == 1]  # what is no image has no labels to ask for either
    check_headers([Path(item) for item in alone if isinstance(item, str)])
    return found


def open_images(
    sources: Sequence[Path], preprocessing: Preprocessing, limit: int | None = None, labelling: Labelling | None = None
) -> ImageSet:
    """The images of all sources, in order; docs/guide/data.md says what a source may be, what is taken of it, and how labels are found.

    limit: at most so many images, evenly spaced (`ImageSet.spread`); labelling: the model's classes, where labels are asked for.
    The header of each image that is taken is read here, its pixels when a batch asks for them. One line on the logger `eamsim.data`
    says what was taken. Raises BadFile and UserError.
    """
    if limit is not None:
        expect_integer("limit", limit, 1)
    left_out = LeftOut()
    found = _found(sources, left_out)
    items = tuple(item for source in found for item in source.items)
    names = tuple(name for source in found for name in source.names)
    numbers = [source.numbers for source in found if source.numbers is not None]
    labels, how = matched(found, labelling)
    chosen = np.arange(len(items))
    if labels is not None:
        for index in np.flatnonzero(labels < 0):
            left_out.add("class that the model has not", names[index])
        chosen = np.flatnonzero(labels >= 0)
    if limit is not None and limit < len(chosen):
        chosen = chosen[evenly(len(chosen), limit)]
    summary = DataSummary(len(items), len(chosen), left_out, how)
    taken = tuple(Path(item) if isinstance(item, str) else item for item in map(items.__getitem__, chosen))
    check_headers(taken)
    log.info("%s", summary)
    return ImageSet(
        taken,
        tuple(names[i] for i in chosen),
        preprocessing,
        None if labels is None else labels[chosen],
        np.concatenate(numbers)[chosen] if len(numbers) == len(found) else None,
        summary,
    )
