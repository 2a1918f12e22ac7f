import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")

from eamsim.errors import UserError  # noqa: E402
from eamsim.jobs.evaluate import evaluate  # noqa: E402
from eamsim.jobs.measure import accuracy  # noqa: E402
from reference.attention.freeze import FrozenMap  # noqa: E402
from reference.models.load import as_model  # noqa: E402
from reference.quantisation.fakequant import collect_maps, predict, quantise_frozen  # noqa: E402
from reference.quantisation.precision import Precision  # noqa: E402
from reference.quantisation.quantisers import Affine, LogSqrt2, search_affine, search_log  # noqa: E402
from reference.quantisation.repq import calibrate, calibration_steps  # noqa: E402

BLOCKS, HEADS, TOKENS = 2, 2, 17


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    module = timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=4, embed_dim=24, depth=BLOCKS, num_heads=HEADS, num_classes=5
    )
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return as_model(module.eval(), "small")


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)


@pytest.fixture(scope="module", params=["hardware", "published"])
def calibrated(request, model, images):
    return calibrate(model, images, request.param)


def test_calibration_says_how_far_it_is(model, images):
    steps = []
    calibrate(model, images, advance=steps.append)
    assert len(steps) > 2 * BLOCKS
    assert sum(steps) == calibration_steps(model)


def maps_of(value, fraction=1.0):
    mask = np.random.default_rng(2).random((HEADS, TOKENS, TOKENS)) < fraction
    return [FrozenMap(mask, np.full(mask.shape, value)) for _ in range(BLOCKS)]


def test_affine_codes_by_hand():
    quantiser = Affine(torch.tensor(0.5), torch.tensor(3.0), 4)

    np.testing.assert_array_equal(quantiser.codes(torch.tensor([-9.0, -1.5, 0.0, 0.74, 6.0, 7.0])), [0, 0, 3, 4, 15, 15])
    np.testing.assert_array_equal(quantiser(torch.tensor([-9.0, 0.0, 0.74])), [-1.5, 0, 0.5])


@given(low=st.floats(-8, 8, width=32), span=st.floats(0, 8, width=32), bits=st.integers(2, 8))
def test_a_range_that_must_contain_zero_has_a_code_for_it(low, span, bits):
    quantiser = search_affine(torch.linspace(low, low + span, 100), bits, contain_zero=True)

    assert quantiser.zero == quantiser.zero.round()
    assert 0 <= quantiser.zero < 1 << bits
    assert quantiser.scale > 0
    assert quantiser(torch.zeros(1)) == 0


def test_the_search_cuts_an_outlier_off_where_that_pays():
    bulk = torch.linspace(-1, 1, 100_000)
    quantiser = search_affine(torch.cat([bulk, torch.tensor([100.0])]), 4, contain_zero=True)

    assert quantiser.scale.item() == pytest.approx(2 / 15, rel=0.01)


def test_channels_have_ranges_of_their_own_and_a_constant_one_does_no_harm():
    x = torch.stack([torch.linspace(-1, 1, 50), torch.linspace(0, 30, 50), torch.full((50,), 0.25)])
    quantiser = search_affine(x, 8, contain_zero=False, channel_axis=0)

    assert quantiser.scale.shape == (3, 1)
    assert (quantiser(x) - x).abs().max(dim=1).values.tolist() == pytest.approx([0, 0, 0], abs=30 / 255)


@given(x=st.floats(2**-12, 1, width=32), scale=st.floats(0.125, 1, width=32), last_code_is_zero=st.booleans())
def test_a_log_code_is_the_nearest_in_the_logarithm(x, scale, last_code_is_zero):
    quantiser = LogSqrt2(scale, 4, last_code_is_zero)
    code = int(quantiser.codes(torch.tensor(x, dtype=torch.float64)))

    assert 0 <= code <= 15
    distance = abs(np.log2(x / scale) + code / 2)
    assert distance <= 0.25 + 1e-9 or code in (0, 15)


def test_the_grids_have_sixteen_levels_and_seventeen_as_published():
    codes = torch.arange(17, dtype=torch.float64)

    assert LogSqrt2(1.0, 4, False).decode(codes[:16])[-1].item() == pytest.approx(2**-7.5)
    assert LogSqrt2(1.0, 4, True).decode(codes[:16])[-1] == 0
    published = LogSqrt2(1.0, 4, True, extra_zero=True)
    assert published.decode(codes).tolist()[-2:] == [pytest.approx(2**-7.5), 0]
    assert published.codes(torch.tensor(0.0)) == 16


def test_the_log_search_takes_the_scale_of_least_error():
    maps = torch.cat([torch.full((999_000,), 0.125), torch.full((1_000,), 0.9)])

    assert search_log(maps, 4, True).scale in (pytest.approx(0.125), pytest.approx(0.9))


@pytest.mark.slow
def test_reparametrisation_leaves_the_float_network_as_it_was(model, images, calibrated):
    before, after = (network(torch.from_numpy(images)) for network in (model.network, calibrated.network))

    np.testing.assert_allclose(after, before, atol=1e-3 * before.abs().max().item())


def test_hardware_zero_points_are_codes_and_published_ones_are_not_always(calibrated):
    norms = [calibrated.activations[f"block{i}.norm{j}"] for i in range(BLOCKS) for j in (1, 2)]
    quantisers = [*calibrated.activations.values(), *calibrated.weights.values()]
    are_codes = [bool(((q.zero == q.zero.round()) & (q.zero >= 0) & (q.zero < 1 << q.bits)).all()) for q in quantisers]

    assert all(norm.scale.ndim == 0 for norm in norms)
    assert all(are_codes) == (calibrated.mode == "hardware")
    assert all(grid.last_code == (15 if calibrated.mode == "hardware" else 16) for grid in calibrated.attention)
    assert calibrated.activations["input"].bits == 8


@pytest.mark.slow
def test_calibration_repeats(model, images):
    first, second = (calibrate(model, images) for _ in range(2))

    np.testing.assert_array_equal(predict(first, images), predict(second, images))


@pytest.mark.slow
def test_fake_quantisation_with_many_bits_is_the_float_network(model, images):
    logits = predict(model, images)
    wide = calibrate(model, images, precision=Precision(weight_bits=14, activation_bits=14))

    np.testing.assert_allclose(predict(wide, images), logits, atol=0.05 * np.abs(logits).max())


def test_an_empty_mask_changes_nothing(calibrated, images):
    plain = predict(calibrated, images)

    for softmax in ("paper", "renormalised"):
        np.testing.assert_array_equal(predict(calibrated, images, maps_of(0.1, fraction=0), softmax), plain)


def test_a_wholly_frozen_map_is_its_mean_under_both_meanings(model, images):
    frozen = maps_of(1 / TOKENS)
    uniform = model.network(torch.from_numpy(images), attend=lambda block, scores: torch.full_like(scores, 1 / TOKENS))

    for softmax in ("paper", "renormalised"):
        np.testing.assert_allclose(predict(model, images, frozen, softmax), uniform, rtol=1e-5)


def test_the_renormalised_rows_keep_their_mass(model, images):
    frozen, seen = maps_of(0.02, fraction=0.3), {}
    expected, scored = predict(model, images, frozen, "renormalised"), []

    def attend(block, scores):
        mask = torch.from_numpy(frozen[block].mask)
        weights = torch.where(mask, 0.0, scores.exp())
        weights = weights / weights.sum(dim=-1, keepdim=True) * (1 - 0.02 * mask.sum(dim=-1, keepdim=True))
        seen[block] = torch.where(mask, 0.02, weights)
        scored.append(scores)
        return seen[block]

    np.testing.assert_allclose(model.network(torch.from_numpy(images), attend=attend), expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(seen[1].sum(dim=-1), 1, rtol=1e-5)


def test_the_paper_meaning_keeps_the_whole_softmax(model, images):
    frozen = maps_of(0.3, fraction=0.3)

    def attend(block, scores):
        return torch.where(torch.from_numpy(frozen[block].mask), 0.3, scores.softmax(dim=-1))

    np.testing.assert_array_equal(model.network(torch.from_numpy(images), attend=attend), predict(model, images, frozen, "paper"))


def test_quantised_means_lie_on_the_grid_of_their_block(calibrated):
    for layer, grid in zip(quantise_frozen(calibrated, maps_of(0.07)), calibrated.attention, strict=True):
        assert layer.mean.dtype == np.float64
        values = grid.decode(torch.arange(grid.last_code + 1).double()).numpy()
        np.testing.assert_allclose(layer.mean, values[np.abs(layer.mean[..., None] - values).argmin(axis=-1)], rtol=2**-51)


def test_maps_of_a_quantised_model_are_taken_before_the_grid(calibrated, images):
    maps = []
    collect_maps(calibrated, [images], lambda block, layer: maps.append(layer))

    np.testing.assert_allclose(maps[0].sum(axis=3), 1, rtol=1e-5)
    assert len(np.unique(maps[0])) > 100


def test_accuracy_breaks_ties_by_the_lowest_index():
    logits = np.array([[1, 3, 3, 0, 0, 0, 0], [9, 8, 7, 6, 5, 4, 3], [0, 0, 0, 0, 0, 0, 0]])

    result = accuracy(logits, np.array([1, 5, 4]))

    assert (result.top1, result.top5, result.images) == (1 / 3, 2 / 3, 3)


def test_evaluate_counts_over_batches(model, images):
    labels = predict(model, images).argmax(axis=1)
    labels[0] = (labels[0] + 1) % 5

    assert evaluate(model, [images[:5], images[5:]], labels).top1 == 7 / 8


def test_evaluate_refuses_an_empty_set(model):
    with pytest.raises(UserError, match=r"logits: expected numbers .* of at least one image, got float64"):
        evaluate(model, [], np.array([], np.int64))
