"""Compensation: what it promises layer by layer, on a small ViT and a small Swin."""

import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from command_line import eamsim
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")

from eamsim.errors import UserError  # noqa: E402
from reference.models.layers import run  # noqa: E402
from reference.models.load import as_model  # noqa: E402
from reference.quantisation import compensate as subject  # noqa: E402
from reference.quantisation.compensate import compensate, most_images  # noqa: E402
from reference.quantisation.fakequant import predict  # noqa: E402
from reference.quantisation.precision import Precision  # noqa: E402
from reference.quantisation.repq import calibrate  # noqa: E402
from reference.quantisation.rounding import DAMPING, inverse_factor, round_weights  # noqa: E402

DIGITS = Path(str(files("eamsim") / "data" / "digits"))
VIT = ("vit_tiny_patch16_224", {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 5})
SWIN = (
    "swin_tiny_patch4_window7_224",
    {"img_size": 16, "patch_size": 2, "window_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "num_classes": 5},
)


@pytest.fixture(scope="module", params=[VIT, SWIN], ids=["vit", "swin"])
def model(request):
    name, settings = request.param
    torch.manual_seed(0)
    module = timm.create_model(name, **settings)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return as_model(module.eval(), "small")


@pytest.fixture(scope="module")
def images():
    coarse = np.random.default_rng(1).integers(0, 256, (48, 8, 8, 3), dtype=np.uint8)
    return coarse.repeat(2, axis=1).repeat(2, axis=2)


@pytest.fixture(scope="module", params=["uniform", "fitted"])
def calibrated(request, model, images):
    return calibrate(model, images[:8], precision=Precision(request.param))


def compensated_in(calibrated, images, batch):
    return compensate(calibrated, [images[start : start + batch] for start in range(0, len(images), batch)], lambda steps: None)


@pytest.fixture(scope="module")
def compensated(calibrated, images):
    return compensated_in(calibrated, images, 16)


def moments_of(seed, channels, rows=200):
    inputs = np.random.default_rng(seed).normal(size=(rows, channels)) @ np.random.default_rng(seed + 1).normal(size=(channels, channels))
    return np.cov(inputs.T, bias=True).reshape(channels, channels)


@given(st.integers(0, 1000), st.integers(1, 12))
def test_the_factor_is_of_the_inverse(seed, channels):
    moments = moments_of(seed, channels) + np.eye(channels)
    factor = inverse_factor(moments)

    np.testing.assert_array_equal(np.tril(factor, -1), 0)
    np.testing.assert_allclose(factor.T @ factor @ moments, np.eye(channels), atol=1e-9)  # floats: an inverse has no exact digits


@given(st.integers(0, 1000), st.integers(1, 12), st.integers(2, 4))
def test_no_code_could_move_for_the_better(seed, channels, bits):
    """The end of the coordinate descent, or its last sweep: with so few channels it ends."""
    moments, weight = moments_of(seed, channels), np.random.default_rng(seed + 2).normal(size=(3, channels))
    codes, scale, zero = round_weights(weight, moments, bits)
    damped = moments + np.eye(channels) * DAMPING * moments.diagonal().mean()

    def errors(codes):
        left = weight - (codes - zero[:, None]) * scale[:, None]
        return (left @ damped * left).sum(axis=1)

    assert codes.min() >= 0
    assert codes.max() < 1 << bits
    np.testing.assert_array_equal(codes, codes.round())
    for channel in range(channels):
        for step in (-1, 1):
            moved = codes.copy()
            moved[:, channel] = np.clip(moved[:, channel] + step, 0, (1 << bits) - 1)
            assert (errors(moved) >= errors(codes) * (1 - 1e-9)).all()  # floats, summed in another order


@pytest.mark.slow
def test_rounding_together_beats_rounding_alone(calibrated):
    """On the layer's own moments the error is below that of the codes that calibration found."""
    moments = moments_of(3, 24)
    weight = calibrated.denses["block0.attn.proj"].weight[:, :16].numpy()
    moments = moments[:16, :16]
    alone = calibrated.weights["block0.attn.proj"](torch.from_numpy(weight)).numpy() - weight
    codes, scale, zero = round_weights(weight, moments, 4)
    together = (codes - zero[:, None]) * scale[:, None] - weight

    assert ((together @ moments) * together).sum() < 0.8 * ((alone @ moments) * alone).sum()


@pytest.mark.slow
def test_every_output_has_the_mean_of_the_float_network(calibrated, compensated, images):
    """Of the images it was compensated on, to half a unit of the accumulator, in which the bias is stored."""
    wanted, found = predict(calibrated.model, images).mean(axis=0), predict(compensated, images).mean(axis=0)
    unit = compensated.acc_scales("head").numpy()

    assert (np.abs(found - wanted) <= 0.5001 * unit).all()
    before = np.abs(predict(calibrated, images).mean(axis=0) - wanted)
    assert before.max() > unit.max()


def test_the_quantised_network_is_the_one_that_was_walked(compensated):
    """Weights and biases pass through the codes unchanged: what was fitted is what is lowered."""
    for name, dense in compensated.denses.items():
        np.testing.assert_array_equal(compensated.weights[name](dense.weight), dense.weight)


@pytest.mark.slow
def test_codes_do_not_depend_on_the_batches(calibrated, compensated, images):
    other = compensated_in(calibrated, images, 7)

    for name, dense in compensated.denses.items():
        np.testing.assert_array_equal(compensated.weights[name].codes(dense.weight), other.weights[name].codes(other.denses[name].weight))
        np.testing.assert_array_equal(compensated.bias_codes(name), other.bias_codes(name))


@pytest.mark.parametrize(
    ("bits", "parts"), [(4, (40, 60)), (8, (200, 200, 100)), (8, (400, 100)), (7, (500, 600))], ids=["few", "flushed", "wide", "levels"]
)
def test_sums_are_those_of_integers(bits, parts):
    """The covariance of the codes is exact, as Python's integers have it: also of more rows than float32 can add."""
    top, rng = 1 << bits, np.random.default_rng(4)
    moments, codes = subject._Moments(torch.ones(3, 3)), rng.integers(-top, top, (sum(parts), 3), endpoint=True)
    for part in map(torch.from_numpy, np.split(codes, np.cumsum(parts)[:-1])):
        moments.add(part.float(), part.double(), bits)
    n, columns = len(codes), codes.T.tolist()
    exact = [[n * sum(a * b for a, b in zip(x, y, strict=True)) - sum(x) * sum(y) for y in columns] for x in columns]

    np.testing.assert_array_equal(moments.covariance, np.array(exact) / n**2)


@pytest.mark.parametrize("out", [1, 7], ids=["outputs first", "inputs first"])
def test_the_layers_own_outputs(out):
    """Whichever product is taken first."""
    rng = np.random.default_rng(5)
    codes, values, weight = rng.integers(-7, 9, (50, 4)), rng.normal(size=(50, 4)), rng.normal(size=(out, 4))
    moments = subject._Moments(torch.from_numpy(weight))
    moments.add(torch.from_numpy(codes).float(), torch.from_numpy(values), 4)

    expected = np.cov(codes.T, weight @ values.T, bias=True)[:4, 4:]
    np.testing.assert_allclose(moments.own, expected, rtol=1e-9, atol=1e-12)


def test_accumulated_sums_are_exact():
    """In float32 or, where that could not hold them, in float64."""
    rng = np.random.default_rng(6)
    for channels in (8, 300):
        q, codes = rng.integers(-255, 256, (5, channels)), rng.integers(-255, 256, (3, channels))
        found = subject.accumulated(torch.from_numpy(q).float(), torch.from_numpy(codes).double(), 16)
        np.testing.assert_array_equal(found, q @ codes.T)


def test_a_network_that_stops_at_its_layers_is_the_network(model, images):
    pixels = torch.from_numpy(images[:3])
    asked = []

    class Layers(dict):
        def __getitem__(self, name):
            asked.append(name)
            return super().__getitem__(name)

    with torch.inference_mode():
        steps = model.network.steps(pixels, lambda name, x: x, lambda block, scores: scores.softmax(-1))
        found = run(steps, Layers(model.network.layers))
    np.testing.assert_array_equal(found, model.network(pixels))
    assert sorted(asked) == sorted(model.network.sources)


def test_memory_bounds_the_images(model, images, monkeypatch):
    assert most_images(model.network, images[0]) == subject.IMAGES
    monkeypatch.setattr(subject, "HELD_BYTES", 1 << 20)
    assert 1 <= most_images(model.network, images[0]) < subject.IMAGES


def test_the_published_form_has_nothing_to_compensate(model, images):
    with pytest.raises(UserError, match="hardware"):
        compensate(calibrate(model, images[:4], "published"), [images[:4]], lambda steps: None)


@pytest.mark.slow
@pytest.mark.parametrize(("options", "images"), [((), 24), (("--no-compensate",), None), (("--random-init", 0), None)])
def test_the_command_compensates_trained_weights_unless_told(tmp_path, options, images):
    arguments = ("--calib", DIGITS / "digits_calib.npz", "--limit", 24, "--tau", 0, "-o", tmp_path / "x.eam", "--json")
    found = json.loads(eamsim("build", f"local-dir:{DIGITS}", *arguments, *options).out)["compensation"]
    assert found == (images and {"images": images, **subject.SETTINGS})
