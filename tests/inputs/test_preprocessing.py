"""Images prepared as timm's evaluation transform prepares them, to the last bit."""

import itertools
from typing import get_args

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from eamsim.errors import UserError
from eamsim.inputs.images import CropMode, Interpolation, Preprocessing

MEAN = (0.485, 0.456, 0.406)
FILL = tuple(round(255 * value) for value in MEAN)
SHAPES = [(8, 20), (20, 8), (7, 7), (9, 100), (33, 32), (1, 5), (48, 96), (97, 41), (16, 8), (30, 31)]


@pytest.mark.parametrize("crop_mode", get_args(CropMode))
@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 9), (8, 16), (21, 10)])
def test_every_crop_mode_equals_timm(crop_mode: CropMode, height: int, width: int):
    pytest.importorskip("torch")
    create_transform = pytest.importorskip("timm.data").create_transform
    random = np.random.default_rng(0)
    for shape, crop_pct in itertools.product(SHAPES, (1.0, 0.9, 0.875, 0.33)):
        image = Image.fromarray(random.integers(0, 256, (*shape, 3), np.uint8))
        settings = {"interpolation": "bicubic", "crop_pct": crop_pct, "crop_mode": crop_mode}
        expected = create_transform((3, height, width), mean=MEAN, normalize=False, **settings)(image)
        found = Preprocessing(height, width, **settings, fill=FILL)(image)
        assert_array_equal(found, expected.permute(1, 2, 0), f"{shape} {settings}")


@pytest.mark.parametrize("interpolation", get_args(Interpolation))
@pytest.mark.parametrize("crop_mode", get_args(CropMode))
def test_every_interpolation_equals_timm(interpolation: Interpolation, crop_mode: CropMode):
    pytest.importorskip("torch")
    create_transform = pytest.importorskip("timm.data").create_transform
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (37, 52, 3), np.uint8))
    settings = {"interpolation": interpolation, "crop_pct": 0.9, "crop_mode": crop_mode}
    expected = create_transform((3, 12, 20), mean=MEAN, normalize=False, **settings)(image)
    assert_array_equal(Preprocessing(12, 20, **settings, fill=FILL)(image), expected.permute(1, 2, 0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"height": 0}, "expected images of at least one pixel, got 0 x 8"),
        ({"crop_pct": 1.5}, r"crop_pct must be in \(0, 1\], got 1.5"),
        ({"crop_pct": 0}, r"crop_pct must be in \(0, 1\], got 0"),
        ({"crop_mode": "centre"}, "crop_mode must be one of center, squash, border, got 'centre'"),
        ({"interpolation": "random"}, "interpolation must be one of bicubic, bilinear, .*got 'random'"),
        ({"fill": (0, 0)}, r"fill must be three integers in 0..255, got \(0, 0\)"),
        ({"fill": (0, 0, 256)}, "fill must be three integers in 0..255"),
        ({"fill": 0}, "fill: expected tuple or list, got 0"),
        ({"height": 8.0}, r"height: expected int, got 8\.0"),
        ({"width": "8"}, "width: expected int, got '8'"),
        ({"crop_pct": True}, "crop_pct: expected int or float, got True"),
    ],
)
def test_what_timm_does_not_do_is_refused_by_name(changes: dict, message: str):
    with pytest.raises(UserError, match=message):
        Preprocessing(**({"height": 8, "width": 8, "crop_pct": 1.0, "interpolation": "bicubic"} | changes))


def test_a_fill_from_json_is_the_same():
    assert Preprocessing(8, 8, 1.0, "bicubic", "border", [1, 2, 3]) == Preprocessing(8, 8, 1.0, "bicubic", "border", (1, 2, 3))  # type: ignore[arg-type]
