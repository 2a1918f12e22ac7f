"""Image sources, preprocessing equal to timm's, and every way a source can be wrong."""

from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from eamsim.errors import BadFile, UserError
from eamsim.inputs.images import Interpolation, Preprocessing, open_images
from eamsim.inputs.labels import Labelling

SMALL = Preprocessing(8, 8, 1.0, "bicubic")
PHOTOGRAPHS = Path(__file__).parents[3] / "shared/data/imagenet_samples"


def pixels(seed: int, height: int = 8, width: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def save(path: Path, seed: int, height: int = 8, width: int = 8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(seed, height, width)).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An ImageFolder of the classes cat (1 image) and dog (2), and a file that is no image."""
    save(tmp_path / "dog/b.png", 2)
    save(tmp_path / "dog/a.png", 1)
    save(tmp_path / "cat/z.PNG", 0)
    (tmp_path / "dog/notes.txt").write_text("not an image")
    return tmp_path


def test_image_folder_is_labelled_by_sorted_class(folder: Path):
    images = open_images([folder], SMALL, labelling=Labelling(2, None))
    assert_array_equal(images.labels, [0, 1, 1])
    assert [Path(name).name for name in images.names] == ["z.PNG", "a.png", "b.png"]
    batches = list(images.batches(2))
    assert [len(batch) for batch in batches] == [2, 1]
    assert_array_equal(np.concatenate(batches), [pixels(0), pixels(1), pixels(2)])


def test_class_names_are_mapped_to_the_models_labels(folder: Path):
    assert_array_equal(open_images([folder], SMALL, labelling=Labelling(3, ["dog", "frog", "cat"])).labels, [2, 0, 0])
    with pytest.raises(UserError, match=r"class 'dog' is not among the model's 2 labels: cat, frog; .* --labels by-order"):
        open_images([folder], SMALL, labelling=Labelling(2, ["cat", "frog"]))


def test_plain_folders_and_files_have_no_labels(folder: Path):
    images = open_images([folder / "dog", folder / "cat/z.PNG"], SMALL)
    assert images.labels is None
    assert images.numbers is None
    assert_array_equal(next(images.batches(3)), [pixels(1), pixels(2), pixels(0)])


def test_npz_is_read_with_labels_and_classes(tmp_path: Path):
    stack = np.stack([pixels(seed) for seed in range(4)])
    np.savez(tmp_path / "d.npz", images=stack, labels=np.array([1, 0, 1, 0], np.uint8), classes=np.array(["cat", "dog"]))
    images = open_images([tmp_path / "d.npz"], SMALL, labelling=Labelling(2, ["dog", "cat"]))
    assert_array_equal(images.labels, [0, 1, 0, 1])
    assert images.labels is not None
    assert images.labels.dtype == np.int64
    assert_array_equal(next(images.batches(4)), stack)
    assert images.names[3].endswith("d.npz[3]")


def test_limit_is_spread_evenly(tmp_path: Path):
    np.savez(tmp_path / "d.npz", images=np.zeros((10, 8, 8, 3), np.uint8), labels=np.arange(10))
    assert_array_equal(open_images([tmp_path / "d.npz"], SMALL, limit=4).numbers, [0, 2, 5, 7])
    assert len(open_images([tmp_path / "d.npz"], SMALL, limit=99)) == 10


def test_npz_and_files_give_the_same_pixels(tmp_path: Path):
    prepare = Preprocessing(8, 8, 0.9, "bilinear")
    save(tmp_path / "a.png", 5, 13, 21)
    np.savez(tmp_path / "a.npz", images=pixels(5, 13, 21)[None])
    (from_file,), (from_npz,) = (list(open_images([tmp_path / name], prepare).batches(1)) for name in ("a.png", "a.npz"))
    assert_array_equal(from_file, from_npz)
    assert from_file.shape == (1, 8, 8, 3)


def test_sha256_depends_on_pixels_and_labels(tmp_path: Path):
    stack = np.zeros((2, 8, 8, 3), np.uint8)

    def digest(images: np.ndarray, labels: list[int]) -> str:
        np.savez(tmp_path / "d.npz", images=images, labels=labels)
        return open_images([tmp_path / "d.npz"], SMALL).sha256

    assert digest(stack, [0, 1]) == digest(stack.copy(), [0, 1])
    assert len({digest(stack, [0, 1]), digest(stack, [1, 0]), digest(stack + 1, [0, 1])}) == 3


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str):
    path = tmp_path / "a.tiff"
    Image.fromarray(pixels(3)).convert(mode).save(path)
    assert next(open_images([path], SMALL).batches(1)).shape == (1, 8, 8, 3)


@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="needs ../shared/data/imagenet_samples")
@pytest.mark.parametrize(("size", "crop_pct", "interpolation"), [(224, 0.9, "bicubic"), (224, 0.875, "bilinear"), (96, 1.0, "nearest")])
def test_preprocessing_equals_timm(size: int, crop_pct: float, interpolation: Interpolation):
    pytest.importorskip("torch")
    create_transform = pytest.importorskip("timm.data").create_transform
    transform = create_transform((3, size, size), interpolation=interpolation, crop_pct=crop_pct, normalize=False)
    paths = sorted(PHOTOGRAPHS.rglob("*.jpg"))[::200]
    found = next(open_images(paths, Preprocessing(size, size, crop_pct, interpolation)).batches(len(paths)))
    for path, image in zip(paths, found, strict=True):
        assert_array_equal(image, transform(Image.open(path).convert("RGB")).permute(1, 2, 0).numpy())


@pytest.mark.parametrize(("shape"), [(8, 20), (20, 8), (7, 7), (9, 100), (33, 32)])
def test_preprocessing_equals_torchvision_on_odd_shapes(shape: tuple[int, int]):
    transforms = pytest.importorskip("torchvision.transforms")
    image = Image.fromarray(pixels(1, *shape))
    bicubic = transforms.InterpolationMode.BICUBIC
    expected = transforms.Compose([transforms.Resize(9, bicubic), transforms.CenterCrop(8)])(image)
    assert_array_equal(Preprocessing(8, 8, 0.875, "bicubic")(image), np.asarray(expected))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((8, 0, 1.0, "bicubic"), "at least one pixel, got 8 x 0"),
        ((8, 8, 1.5, "bicubic"), r"crop_pct must be in \(0, 1\], got 1.5"),
        ((8, 8, 1.0, "cubic"), "interpolation must be one of bicubic, bilinear, nearest, box, hamming, lanczos, got 'cubic'"),
    ],
)
def test_bad_preprocessing_is_refused(arguments: tuple, message: str):
    with pytest.raises(UserError, match=message):
        Preprocessing(*arguments)


def test_missing_empty_and_foreign_sources_are_refused(tmp_path: Path):
    with pytest.raises(BadFile, match="gone: no such file or folder"):
        open_images([tmp_path / "gone"], SMALL)
    with pytest.raises(UserError, match="no images found; give image files"):
        open_images([tmp_path], SMALL)
    (tmp_path / "a.jpg").write_text("<html>404</html>")
    with pytest.raises(BadFile, match=r"a\.jpg: not a readable image; expected one of BMP"):
        open_images([tmp_path], SMALL)


def test_limit_below_one_is_refused(folder: Path):
    with pytest.raises(UserError, match="limit: expected an integer of at least 1, got 0"):
        open_images([folder], SMALL, limit=0)


def test_sources_of_different_classes_meet_by_name(folder: Path, tmp_path: Path):
    np.savez(tmp_path / "d.npz", images=np.zeros((1, 8, 8, 3), np.uint8), labels=np.zeros(1, int), classes=np.array(["frog"]))
    images = open_images([folder, tmp_path / "d.npz"], SMALL, labelling=Labelling(3, ["cat", "dog", "frog"]))
    assert_array_equal(images.labels, [0, 1, 1, 2])


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_truncated_image_is_named(tmp_path: Path, suffix: str):
    path = save(tmp_path / f"a.{suffix}", 0, 64, 64)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BadFile, match=rf"a\.{suffix}: damaged image"):
        list(open_images([path], SMALL).batches(1))


def test_a_decompression_bomb_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    with pytest.raises(BadFile, match=r"z\.PNG: more than 40 pixels"):
        open_images([folder], SMALL)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(BadFile, match=r"z\.PNG: more than 10 pixels"):
        open_images([folder], SMALL)


IMAGES = np.zeros((2, 8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": IMAGES}, "expected the array 'images' .* got pictures"),
        ({"images": IMAGES.astype(np.float32)}, r"images must be uint8 \[n, height, width, 3\], got float32 \[2, 8, 8, 3\]"),
        ({"images": IMAGES[..., 0]}, r"got uint8 \[2, 8, 8\]"),
        ({"images": IMAGES, "labels": np.zeros(3, int)}, r"labels must be integers \[2\], got int64 \[3\]"),
        ({"images": IMAGES, "labels": np.zeros(2)}, r"labels must be integers \[2\], got float64"),
        ({"images": IMAGES, "labels": np.array([0, -1])}, r"labels must be in 0\.\., got -1\.\.0"),
        ({"images": IMAGES, "labels": np.array([0, 2**64 - 1], np.uint64)}, r"labels must be in 0\.\., got 0\.\.18446744073709551615"),
        ({"images": IMAGES, "labels": np.array([0, 2**63], np.uint64), "classes": np.array(["a", "b"])}, r"labels must be in 0\.\.1, got"),
        ({"images": IMAGES, "labels": np.array([0, 2]), "classes": np.array(["a", "b"])}, r"labels must be in 0\.\.1, got 0\.\.2"),
        ({"images": IMAGES, "classes": np.array([1, 2])}, r"classes must be text"),
        ({"images": np.array([{}], object)}, r"not a readable \.npz without pickled objects"),
    ],
)
def test_a_wrong_npz_is_refused(tmp_path: Path, arrays: dict, message: str):
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(BadFile, match=message):
        open_images([tmp_path / "d.npz"], SMALL)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"text", b"\x93NUMPY"])
def test_a_damaged_npz_is_refused(tmp_path: Path, content: bytes):
    (tmp_path / "d.npz").write_bytes(content)
    with pytest.raises(BadFile, match=r"d\.npz: not a readable \.npz"):
        open_images([tmp_path / "d.npz"], SMALL)


def test_an_array_alone_is_told_what_to_do(tmp_path: Path):
    np.save(tmp_path / "d.npy", IMAGES)
    with pytest.raises(BadFile, match=r"d\.npy: expected an \.npz, got an \.npy; store it with numpy\.savez"):
        open_images([tmp_path / "d.npy"], SMALL)


def test_an_npz_has_a_suffix_of_any_case(tmp_path: Path):
    np.savez(tmp_path / "d.npz", images=IMAGES)
    (tmp_path / "d.npz").rename(tmp_path / "D.NPZ")
    assert len(open_images([tmp_path / "D.NPZ"], SMALL)) == 2


def test_a_thin_image_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    Image.new("RGB", (1, 60_000)).save(tmp_path / "thin.png")
    images = open_images([tmp_path / "thin.png"], Preprocessing(224, 224, 0.9, "bicubic"))
    monkeypatch.setattr(PngImageFile, "load", None)
    with pytest.raises(BadFile, match=r"thin\.png: its 1 x 60000 pixels would be resized to 248 x 14880000, of at most .*; crop it first"):
        next(images.batches(1))


@pytest.mark.parametrize("crop_pct", [1e-5, 1e-300])
def test_a_crop_of_almost_nothing_is_refused(crop_pct: float):
    with pytest.raises(UserError, match=f"crop_pct {crop_pct} makes images of more than"):
        Preprocessing(32, 32, crop_pct, "bicubic")


def test_wide_pixels_are_refused_rather_than_saturated(tmp_path):
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8)).save(tmp_path / "depth.png")
    with pytest.raises(BadFile, match=r"depth\.png: expected 8 bits a channel, got the mode I;16"):
        open_images([tmp_path / "depth.png"], Preprocessing(8, 8, 1.0, "bicubic"))


def test_a_palette_with_transparency_is_read_without_a_warning(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    picture = Image.fromarray(pixels).convert("P")
    picture.save(tmp_path / "p.png", transparency=bytes(range(256)))
    (batch,) = open_images([tmp_path / "p.png"], Preprocessing(8, 8, 1.0, "bicubic")).batches(1)
    np.testing.assert_array_equal(batch[0], np.asarray(picture.convert("RGB")))
