"""The chain from Python: models and images in every form that a notebook holds, masks and quantisers of one's own."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra 'reference' is not installed")
timm = pytest.importorskip("timm", reason="the extra 'reference' is not installed")

from local_models import ARCHITECTURES  # noqa: E402
from PIL import Image  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

import cost_model  # noqa: E402
import eamsim  # noqa: E402
import reference  # noqa: E402
from eamsim.errors import UserError  # noqa: E402
from eamsim.program import Attention  # noqa: E402
from reference.quantisation.quantisers import Affine  # noqa: E402

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)


def own_module(kind: str = "vit"):
    torch.manual_seed(0)
    name, args = ARCHITECTURES[kind]
    return timm.create_model(name, **args)


@pytest.fixture(scope="module")
def quantised():
    return reference.quantise(own_module(), PIXELS)


def same(one, other) -> bool:
    a, b = reference.lower(one), reference.lower(other)
    return all(
        np.array_equal(x, y)
        for left, right in zip(a.operations, b.operations, strict=True)
        for x, y in zip(vars(left).values(), vars(right).values(), strict=True)
        if isinstance(x, np.ndarray)
    )


@pytest.mark.slow
def test_a_module_a_mask_and_a_verified_program(tmp_path: Path):
    module = own_module()
    q = reference.quantise(module, PIXELS)
    maps = reference.freeze(q, PIXELS, reference.Freezing(0.2))
    mine = maps[0].mask.copy()
    mine[0, :, 1:4] = True
    maps[0] = replace(maps[0], mask=mine)
    eamsim.save(tmp_path / "x.eam", reference.lower(q, maps, "renormalised"), reference.provenance(q))
    model = eamsim.load(tmp_path / "x.eam")
    attention = next(op for op in model.program.operations if isinstance(op, Attention))
    assert attention.frozen is not None
    np.testing.assert_array_equal(attention.frozen.mask[0], mine)
    assert eamsim.verify(model.program, PIXELS[:2])["bit_exact"]
    assert eamsim.Engine(model.program).run(PIXELS).shape == (6, 5)


@pytest.mark.slow
def test_every_form_of_images_gives_the_same_program(quantised, tmp_path: Path):
    for index, pixels in enumerate(PIXELS):
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (quantised.model.mean, quantised.model.std))
    unit = torch.from_numpy(PIXELS).permute(0, 3, 1, 2).float() / 255
    normalised, labels = (unit - mean) / std, torch.zeros(6, dtype=torch.long)
    forms = {
        "batches": [PIXELS[:4], PIXELS[4:]],
        "uint8 channels first": [torch.from_numpy(PIXELS).permute(0, 3, 1, 2)],
        "unit floats": [unit],
        "labelled dataset": TensorDataset(normalised, labels),
        "loader": DataLoader(TensorDataset(normalised, labels), batch_size=4),
    }
    for name, images in forms.items():
        assert same(reference.quantise(own_module(), images), quantised), name
    cropped = timm.data.create_transform(**timm.data.resolve_data_config({"input_size": (3, 16, 16)}, model=own_module()))
    seen = torch.stack([cropped(Image.fromarray(pixels)) for pixels in PIXELS])
    assert same(reference.quantise(own_module(), tmp_path), reference.quantise(own_module(), [seen]))  # a folder is prepared as timm does


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "images: expected at least 1, got 0"),
        (PIXELS.astype(np.float32) / 255, "images: expected uint8"),
        ([torch.randn(2, 3, 16, 16)], "images: expected floats that are k / 255"),
        ([3], "images: expected batches of pixels, got int"),
        ([torch.zeros(3, 16)], "images: expected batches of pixels, got Tensor"),
    ],
)
def test_images_that_cannot_be_told_are_refused(images, message):
    with pytest.raises(UserError, match=message):
        reference.quantise(own_module(), images)


@pytest.mark.slow
def test_quantisers_of_ones_own(quantised):
    old, weight = quantised.activations["block0.mlp.fc1"], quantised.weights["block0.mlp.fc1"]
    given = {"block0.mlp.fc1": Affine(old.scale * 2, old.zero, 4), "weight:block0.mlp.fc1": Affine(weight.scale * 1.5, weight.zero, 4)}
    own = reference.with_quantisers(quantised, given)
    assert own.activations["block0.mlp.fc1"].scale == (old.scale * 2).float()
    assert not same(own, quantised)
    assert same(reference.with_quantisers(own, {"block0.mlp.fc1": old, "weight:block0.mlp.fc1": weight}), quantised)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("block0.mlp.fc9", {}, "expected a quantised value"),
        ("weight:patch", {}, "expected a quantised value"),
        ("block0.mlp.fc1", {"bits": 8}, "expected 4 bits"),
        ("block0.mlp.fc1", {"scale": torch.ones(3)}, "expected 4 bits, scale"),
        ("block0.mlp.fc1", {"scale": torch.tensor(float("nan"))}, "finite scales"),
        ("block0.mlp.fc1", {"scale": torch.tensor(-1.0)}, "finite scales"),
        ("block0.mlp.fc1", {"zero": torch.tensor(0.5)}, r"whole zero points in 0\.\.15"),
        ("block0.mlp.fc1", {"zero": torch.tensor(16.0)}, r"whole zero points in 0\.\.15"),
    ],
)
def test_quantisers_that_no_program_can_have_are_refused(quantised, name, change, message):
    base = quantised.activations["block0.mlp.fc1"]
    with pytest.raises(UserError, match=message):
        reference.with_quantisers(quantised, {name: replace(base, **change)})


def test_what_help_shows():
    assert set(eamsim.__all__) <= set(dir(eamsim))
    assert set(reference.__all__) <= set(dir(reference))
    for package in (eamsim, reference, cost_model):
        for name in package.__all__:
            assert name == "__version__" or getattr(package, name).__doc__
        with pytest.raises(AttributeError, match="it has "):
            _ = package.nothing
