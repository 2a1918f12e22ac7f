from pathlib import Path

import numpy as np
import pytest
from programs import operation
from same_taps import expect_engine_equals_golden

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")

from cost_model.models.architectures import SwinArchitecture, architecture  # noqa: E402
from cost_model.models.paper import estimate  # noqa: E402
from cost_model.work.counts import constant_share, count, frozen_share  # noqa: E402
from eamsim import engine, golden  # noqa: E402
from eamsim.constraints import verify  # noqa: E402
from eamsim.program import Attention, Gather, Linear, Pool, Requant  # noqa: E402
from reference.attention.freeze import FrozenMap  # noqa: E402
from reference.lowering.program import LoweringConfig, lower  # noqa: E402
from reference.models.load import as_model, load_model  # noqa: E402
from reference.quantisation.fakequant import predict, quantise_frozen  # noqa: E402
from reference.quantisation.precision import Precision  # noqa: E402
from reference.quantisation.repq import calibrate  # noqa: E402

CASES = [
    ("paper", 0, False),
    ("paper", 0.4, False),
    ("paper", 0.4, True),
    ("renormalised", 0.4, False),
    ("renormalised", 0.4, True),
    ("renormalised", 1, False),
]
HEADS, WINDOWS, TOKENS = (2, 2, 4, 4), (4, 4, 1, 1), 16
WIDE = LoweringConfig(
    residual_bits=20,
    multiplier_bits=20,
    reciprocal_bits=20,
    norm_fraction_bits=14,
    exponent_bits=10,
    log2_index_bits=10,
    gelu_index_bits=12,
)
SHARED = Path(__file__).parents[3] / "shared"


@pytest.fixture(scope="module")
def images():
    """Smooth patterns, so that neighbouring pixels agree as they do in photographs."""
    coarse = np.random.default_rng(1).integers(0, 256, (16, 4, 4, 3), dtype=np.uint8)
    return coarse.repeat(4, axis=1).repeat(4, axis=2)


def swin():
    torch.manual_seed(0)
    shape = {"img_size": 16, "patch_size": 2, "window_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "num_classes": 7}
    module = timm.create_model("swin_tiny_patch4_window7_224", **shape)
    for name, parameter in module.named_parameters():
        if "norm" in name and name.endswith("weight"):
            torch.nn.init.uniform_(parameter, 0.5, 2)
        else:
            torch.nn.init.normal_(parameter, std=0.5 if "position" in name else 0.15)
    return as_model(module.eval(), "small")


@pytest.fixture(scope="module")
def calibrated(images):
    return calibrate(swin(), images, precision=Precision(weight_bits=8, activation_bits=5))


@pytest.fixture(scope="module")
def four_bits(images):
    return calibrate(swin(), images)


def random_maps(calibrated, fraction, shared=False, value=1 / TOKENS):
    """Scattered weights, none of an excluded pair."""
    rng, frozen = np.random.default_rng(4), []
    for maps, heads in zip(calibrated.network.maps, HEADS, strict=True):
        mask = rng.random((heads, TOKENS, TOKENS) if shared else maps.shape) < fraction
        if maps.excluded is not None and not shared:
            mask &= ~maps.excluded
        frozen.append(FrozenMap(mask, np.full(mask.shape, value)))
    return frozen


def attentions(program):
    return [op for op in program.operations if isinstance(op, Attention)]


@pytest.fixture(scope="module")
def program(calibrated):
    return lower(calibrated)


@pytest.mark.slow
def test_the_program_is_valid_and_shaped_as_documented(program):
    verify(program)

    def block(i, moved):
        before, after = (("partition",), ("reverse",)) if moved else ((), ())
        names = ("norm1", *before, "attn.qkv", "attn", *after, "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
        return [f"block{i}.{name}" for name in names]

    merge = ["block2.merge", "block2.merge.norm", "block2.merge.reduction"]
    assert [op.out.name for op in program.operations] == [
        "input", "patches", "patch_embed", "embed", *block(0, True), *block(1, True), *merge, *block(2, False), *block(3, False),
        "norm", "pool", "head",
    ]  # fmt: skip
    assert str(program.values["block1.mlp.fc2"]) == "block1.mlp.fc2: i16[64, 16]"
    assert str(program.values["block2.merge"]) == "block2.merge: i16[16, 64]"
    assert str(program.values["norm"]) == "norm: i16[16, 32]"
    assert str(program.values["pool"]) == "pool: u5[1, 32]"
    assert [op.windows for op in attentions(program)] == list(WINDOWS)
    assert [op.excluded is not None for op in attentions(program)] == [False, True, False, False]
    assert operation(program, "pool", Pool).multiplier >> 15 == 1


def test_partition_and_reverse_undo_each_other(program):
    for i in range(2):
        partition, reverse = (operation(program, f"block{i}.{name}", Gather).indices for name in ("partition", "reverse"))
        np.testing.assert_array_equal(partition[reverse], np.arange(64))


def test_q_is_quantised_after_it_is_scaled(calibrated, program):
    """head_dim is 8: an accumulator unit is 1 / sqrt(8) of q's step more than it is of k's."""
    epilogue = operation(program, "block0.attn.qkv", Linear).epilogue
    assert isinstance(epilogue, Requant)
    ratio = epilogue.multiplier / 2.0**epilogue.shift
    q, k = (calibrated.activations[f"block0.attn.{part}"].scale.item() for part in "qk")
    scales = calibrated.acc_scales("block0.attn.qkv").numpy()

    np.testing.assert_allclose(ratio[:16], scales[:16] / (q * 8**0.5), rtol=2**-15)
    np.testing.assert_allclose(ratio[16:32], scales[16:32] / k, rtol=2**-15)


@pytest.mark.slow
@pytest.mark.parametrize(("softmax", "fraction", "shared"), CASES)
def test_the_engine_equals_golden_at_every_tap(four_bits, images, softmax, fraction, shared):
    program = lower(four_bits, random_maps(four_bits, fraction, shared), softmax)
    expect_engine_equals_golden(program, images[:2])


@pytest.mark.slow
@pytest.mark.parametrize(("softmax", "fraction", "shared"), CASES)
def test_integer_logits_follow_fake_quantisation(calibrated, images, softmax, fraction, shared):
    frozen, images = random_maps(calibrated, fraction, shared), images[:8]
    program = lower(calibrated, frozen, softmax)
    verify(program)

    expected = predict(calibrated, images, quantise_frozen(calibrated, frozen), softmax)
    logits = np.stack([golden.run(program, image) for image in images])
    centred = [(x - x.mean(axis=0)).ravel() for x in (logits, expected)]
    assert np.corrcoef(*centred)[0, 1] > 0.9


@pytest.mark.slow
def test_with_wide_constants_the_first_blocks_are_those_of_fake_quantisation(calibrated, images):
    """Only values that happen to lie at a tie may differ, and what follows from them."""
    program, codes, differing = lower(calibrated, config=WIDE), {}, {}

    def site(name, x):
        if name not in calibrated.activations:
            return x
        codes[name] = calibrated.activations[name].codes(x)
        return calibrated.activations[name](x)

    images = images[:4]
    calibrated.quantised(torch.from_numpy(images), site, lambda block, scores: calibrated.attention[block](scores.softmax(dim=-1)))
    for n, image in enumerate(images):
        taps = {}
        golden.run(program, image, taps)
        found = {"input": "patches", "block0.attn": "block0.reverse", "block1.attn": "block1.reverse"}
        for name in ("input", "block0.norm1", "block0.attn", "block0.norm2", "block1.norm1", "block1.attn"):
            differing.setdefault(name, []).append((taps[found.get(name, name)] != codes[name][n].numpy()).mean())

    allowed = {"input": 0, "block0.norm1": 0.002, "block0.attn": 0.02, "block0.norm2": 0.06, "block1.norm1": 0.06, "block1.attn": 0.15}
    for name, most in allowed.items():
        assert np.mean(differing[name]) <= most, name


@pytest.mark.slow
def test_a_head_frozen_in_all_windows_loses_its_q_and_k_when_renormalised(four_bits):
    frozen = random_maps(four_bits, 0)
    excluded = four_bits.network.maps[1].excluded
    for window in range(4):
        frozen[1].mask[2 * window + 1] = ~excluded[2 * window + 1]
    frozen[0].mask[1] = True  # in one window of four
    program = lower(four_bits, frozen, "renormalised")
    verify(program)

    assert [op.score_heads for op in attentions(program)] == [(0, 1), (0,), (0, 1, 2, 3), (0, 1, 2, 3)]
    assert program.values["block1.attn.qkv"].shape == (64, 2 * 8 + 16)
    assert [op.score_heads for op in attentions(lower(four_bits, frozen, "paper"))] == [(0, 1), (0, 1), (0, 1, 2, 3), (0, 1, 2, 3)]
    live = 4 * 256 - int(excluded[0::2].sum())
    pairs = sum(windows * heads * 256 for windows, heads in zip(WINDOWS, HEADS, strict=True))
    assert frozen_share(program) == pytest.approx((live + 256) / (pairs - int(excluded.sum())))
    assert constant_share(program) == pytest.approx((live + 256 + int(excluded.sum())) / pairs)


@pytest.mark.slow
def test_a_shared_map_is_stored_once(four_bits):
    frozen = attentions(lower(four_bits, random_maps(four_bits, 0.5, shared=True)))[0].frozen
    own = attentions(lower(four_bits, random_maps(four_bits, 0.5)))[0].frozen

    assert frozen is not None
    assert own is not None
    assert (frozen.mask.shape, own.mask.shape) == ((1, 2, 16, 16), (4, 2, 16, 16))


@pytest.mark.slow
@pytest.mark.parametrize("softmax", ["paper", "renormalised"])
@pytest.mark.parametrize("tau", [0, 0.3, 1])
def test_estimates_equal_counts(four_bits, tau, softmax):
    """With round(tau * live pairs) weights of every map frozen."""
    frozen = []
    for maps in four_bits.network.maps:
        live = np.ones(maps.shape, bool) if maps.excluded is None else ~maps.excluded
        order = np.where(live, np.random.default_rng(5).random(maps.shape), np.inf).reshape(len(live), -1).argsort(axis=1).argsort(axis=1)
        mask = order < np.array([[round(tau * int(each.sum()))] for each in live])
        frozen.append(FrozenMap(mask.reshape(maps.shape), np.full(maps.shape, 0.03)))
    shape = SwinArchitecture("small", width=16, heads=(2, 4), depths=(2, 2), window=4, image=16, patch=2, classes=7)

    assert count(lower(four_bits, frozen if tau else None, softmax)) == estimate(shape, tau, softmax)
    assert shape.parameters == sum(parameter.numel() for parameter in four_bits.model.module.parameters())


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "swin_small_patch4_window7_224"])
def test_published_shapes_are_timms(name):
    with torch.device("meta"):
        module = timm.create_model(name)

    assert architecture(name).parameters == sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.skipif(not (SHARED / "models").is_dir(), reason="needs ../shared beside the repository")
def test_a_trained_model_decides_as_its_fake_quantisation_does():
    model = load_model(f"local-dir:{SHARED / 'models/swin_cifar10'}")
    photographs = np.load(SHARED / "data/cifar10_calib2500.npz")["images"]
    calibrated = calibrate(model, photographs[:16])
    held_out = photographs[2000:2050]

    decisions = engine.Engine(lower(calibrated)).run(held_out).argmax(axis=1)
    assert np.mean(predict(calibrated, held_out).argmax(axis=1) == decisions) >= 0.8
