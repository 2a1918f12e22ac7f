import json
import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from programs import operation

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")

from cost_model.work.counts import count  # noqa: E402
from cost_model.work.unread import unread_macs  # noqa: E402
from eamsim import golden  # noqa: E402
from eamsim.constraints import verify  # noqa: E402
from eamsim.errors import UserError  # noqa: E402
from eamsim.program import Attention, LayerNorm, Linear, Requant, Residual  # noqa: E402
from reference.attention.freeze import FrozenMap  # noqa: E402
from reference.lowering import constants as numbers  # noqa: E402
from reference.lowering.program import LoweringConfig, lower, provenance  # noqa: E402
from reference.models.load import as_model, load_model  # noqa: E402
from reference.quantisation.fakequant import predict, quantise_frozen  # noqa: E402
from reference.quantisation.levels import Levels  # noqa: E402
from reference.quantisation.precision import Precision  # noqa: E402
from reference.quantisation.quantisers import Affine  # noqa: E402
from reference.quantisation.repq import calibrate  # noqa: E402

BLOCKS, HEADS, TOKENS, CHANNELS = 2, 3, 17, 48
WIDE = LoweringConfig(
    keep_unread=True,
    residual_bits=20,
    multiplier_bits=20,
    reciprocal_bits=20,
    norm_fraction_bits=14,
    exponent_bits=12,
    log2_index_bits=14,
    gelu_index_bits=12,
)
SHARED = Path(__file__).parents[3] / "shared"


@pytest.fixture(scope="module")
def images():
    """Smooth patterns, so that neighbouring pixels agree as they do in photographs."""
    coarse = np.random.default_rng(1).integers(0, 256, (16, 4, 4, 3), dtype=np.uint8)
    return coarse.repeat(4, axis=1).repeat(4, axis=2)


@pytest.fixture(scope="module", params=["uniform", "fitted"])
def calibrated(request, images):
    torch.manual_seed(0)
    module = timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=4, embed_dim=CHANNELS, depth=BLOCKS, num_heads=HEADS, num_classes=7
    )
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    for name, parameter in module.named_parameters():
        if "norm" in name and name.endswith("weight"):
            torch.nn.init.uniform_(parameter, 0.5, 2)
    return calibrate(as_model(module.eval(), "small"), images, precision=Precision(request.param, weight_bits=8, activation_bits=5))


def attentions(program):
    return [op for op in program.operations if isinstance(op, Attention)]


@given(st.fractions(min_value=Fraction(1, 1 << 20), max_value=1 << 10), st.integers(4, 24))
def test_a_ratio_is_normalised_and_nearest(r, bits):
    if r >= Fraction(2) ** bits - Fraction(1, 2):
        with pytest.raises(UserError, match=rf"^here: .* more than a multiplier of {bits} bits holds"):
            numbers.ratio(r, bits, lambda: "here")
        return
    multiplier, shift = numbers.ratio(r, bits, str)

    assert multiplier >> (bits - 1) == 1 or shift == numbers.MAX_SHIFT
    assert abs(Fraction(multiplier, 1 << shift) - r) <= Fraction(1, 2 << shift)


def test_a_ratio_that_rounds_up_to_a_power_of_two():
    assert numbers.ratio(1 - Fraction(1, 1 << 30), 16, str) == (1 << 15, 15)


def test_a_tiny_ratio_keeps_what_the_largest_shift_leaves():
    assert numbers.ratio(Fraction(3, 1 << 40), 16, str) == (3, 40)


def test_over_sqrt2_is_correctly_rounded_for_every_multiplier():
    for multiplier in range(1 << 15, 1 << 16):
        odd = numbers.over_sqrt2(multiplier)
        assert (2 * odd - 1) ** 2 <= 2 * multiplier**2 < (2 * odd + 1) ** 2


def test_tables_are_the_nearest_integers():
    exp2 = 2.0 ** (15 - np.arange(256) / 256)
    log2 = 256 * np.log2(1 + np.arange(1024) / 1024)

    assert np.abs(numbers.exp2_table(8, 15) - exp2).max() <= 0.5
    assert np.abs(numbers.log2_table(10, 8) - log2).max() <= 0.5
    assert numbers.exp2_table(8, 15)[0] == 1 << 15


@pytest.mark.parametrize("x", [0, 0.25, -0.75, 3.0, -5.5, 11.5, 12.5, -40.0])
def test_gelu_by_its_series(x):
    assert float(numbers.gelu(Fraction(x))) == pytest.approx(x * (1 + math.erf(x / math.sqrt(2))) / 2, abs=1e-15)


@pytest.mark.parametrize(("scale", "zero"), [(0.05, 3), (0.4, 0), (0.02, 8)])
def test_the_gelu_index_covers_every_change_of_the_code(scale, zero):
    grid = Affine(torch.tensor(scale, dtype=torch.float64), torch.tensor(zero, dtype=torch.float64), 4)
    step, index_zero = numbers.gelu_index(grid.limits.tolist(), grid.reach, 8)
    table = numbers.gelu_table(Fraction(step), index_zero, 8, grid.limits.tolist())
    x = np.linspace(-20, 20, 20_001)
    exact = np.array([round(v * (1 + math.erf(v / math.sqrt(2))) / 2 / scale) for v in x]) + zero
    index = np.clip(np.rint(x / step) + index_zero, 0, 255).astype(int)

    assert np.abs(table[index] - np.clip(exact, 0, 15)).max() <= 1
    assert (table[index] == np.clip(exact, 0, 15)).mean() > 0.99
    assert (table[0], table[-1]) == (zero, 15)


@pytest.mark.slow
def test_the_program_is_valid_and_shaped_as_documented(calibrated):
    program = lower(calibrated, config=LoweringConfig(keep_unread=True))
    verify(program)

    assert [op.out.name for op in program.operations] == [
        "input", "patches", "patch_embed", "embed",
        *(f"block{i}.{name}" for i in range(BLOCKS) for name in ("norm1", "attn.qkv", "attn", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")),
        "cls", "norm", "head",
    ]  # fmt: skip
    assert str(program.values["block1.attn.proj"]) == "block1.attn.proj: i16[17, 48]"
    assert str(program.values["patches"]) == "patches: u8[16, 48]"
    assert str(program.output) == "head: i32[1, 7]"
    weights = [op.weight_bits for op in program.operations if isinstance(op, Linear)]
    assert weights == [8] * (2 + 4 * BLOCKS)


@pytest.mark.slow
def test_fitted_codes_are_levels_of_the_layer_that_reads_them(calibrated):
    program = lower(calibrated, config=LoweringConfig(keep_unread=True))
    for op in program.operations:
        if isinstance(op, Linear):
            grid = calibrated.activations[calibrated.network.sources[op.out.name]]
            if isinstance(grid, Levels):
                assert op.x.endswith(".mlp.fc1")
                assert op.levels is not None
                assert (op.levels.dtype, op.levels.tolist(), op.x_zero) == (np.int32, grid.levels.tolist(), 0)
            else:
                assert (op.levels, op.x_zero) == (None, int(grid.zero))
    fitted = [name for name, grid in calibrated.activations.items() if isinstance(grid, Levels)]
    assert fitted in ([], [f"block{i}.mlp.fc1" for i in range(BLOCKS)])


@pytest.mark.slow
def test_the_residual_exponent_never_falls(calibrated):
    epilogues = [op.epilogue for op in lower(calibrated).operations if isinstance(op, Linear)]

    assert all(epilogue.exponent_change >= 0 for epilogue in epilogues if isinstance(epilogue, Residual))


@pytest.mark.slow
def test_with_wide_constants_the_first_block_is_that_of_fake_quantisation(calibrated, images):
    """Only values that happen to lie at a tie may differ, and what follows from them."""
    program, differing = lower(calibrated, config=WIDE), {}
    sites = fake_quantised_codes(calibrated, images)
    for image in range(len(images)):
        taps = {}
        golden.run(program, images[image], taps)
        for name, codes in sites.items():
            expected = codes[image].numpy()
            differing.setdefault(name, []).append((tap_of(taps, name, expected.shape) != expected).mean())

    assert np.max(differing["input"]) == 0
    for name, allowed in {"norm1": 0.002, "attn.q": 0.004, "attn.k": 0.004, "attn.v": 0.004, "attn": 0.02, "norm2": 0.06}.items():
        assert np.mean(differing[f"block0.{name}"]) <= allowed, name


def fake_quantised_codes(calibrated, images):
    codes = {}

    def site(name, x):
        if name not in calibrated.activations:
            return x
        codes[name] = calibrated.activations[name].codes(x)
        return calibrated.activations[name](x)

    calibrated.quantised(torch.from_numpy(images), site, lambda block, scores: calibrated.attention[block](scores.softmax(dim=-1)))
    return codes


def tap_of(taps, name, shape):
    """The integers of a site, in its shape: q, k and v [heads, tokens, head_dim] are parts of one tap."""
    if name[-2:] in (".q", ".k", ".v"):
        parts = taps[f"{name[:-1]}qkv"].reshape(TOKENS, 3, HEADS, -1)
        return parts[:, "qkv".index(name[-1])].swapaxes(0, 1)
    return taps["patches" if name == "input" else name].reshape(shape)


@pytest.mark.slow
@pytest.mark.parametrize("softmax", ["paper", "renormalised"])
@pytest.mark.parametrize("fraction", [0, 0.3, 1])
def test_integer_logits_follow_fake_quantisation(calibrated, images, softmax, fraction):
    mask = np.random.default_rng(4).random((HEADS, TOKENS, TOKENS)) < fraction
    frozen = [FrozenMap(mask, np.full(mask.shape, 1 / TOKENS)) for _ in range(BLOCKS)] if fraction else None
    program = lower(calibrated, frozen, softmax)
    verify(program)

    expected = predict(calibrated, images, None if frozen is None else quantise_frozen(calibrated, frozen), softmax)
    logits = np.stack([golden.run(program, image) for image in images])
    assert centred_correlation(logits, expected) > 0.9


@pytest.mark.slow
def test_frozen_maps_stay_their_callers_and_may_be_read_only(calibrated, images):
    """A program's arrays are read-only, those that it was made of are not; PyTorch warns of arrays that are."""
    mask = np.random.default_rng(4).random((HEADS, TOKENS, TOKENS)) < 0.3
    frozen = [FrozenMap(mask, np.full(mask.shape, 1 / TOKENS))] * BLOCKS
    lower(calibrated, frozen)
    assert mask.flags.writeable
    expected = predict(calibrated, images[:2], quantise_frozen(calibrated, frozen))
    mask.setflags(write=False)
    np.testing.assert_array_equal(predict(calibrated, images[:2], quantise_frozen(calibrated, frozen)), expected)


def centred_correlation(x, y):
    """Of what tells the images apart, the mean of every class aside."""
    return np.corrcoef((x - x.mean(axis=0)).ravel(), (y - y.mean(axis=0)).ravel())[0, 1]


@pytest.mark.slow
def test_a_wholly_frozen_head_loses_its_q_and_k_columns_when_renormalised(calibrated):
    mask = np.zeros((HEADS, TOKENS, TOKENS), bool)
    mask[1] = True
    frozen = [FrozenMap(mask, np.full(mask.shape, 0.05))] * BLOCKS
    whole, renormalised, paper = lower(calibrated), lower(calibrated, frozen, "renormalised"), lower(calibrated, frozen, "paper")
    head_dim = CHANNELS // HEADS

    assert [op.score_heads for op in attentions(renormalised)] == [(0, 2)] * BLOCKS
    assert [op.score_heads for op in attentions(paper)] == [(0, 1, 2)] * BLOCKS
    assert renormalised.values["block0.attn.qkv"].shape == (TOKENS, 3 * CHANNELS - 2 * head_dim)
    kept = np.delete(np.arange(3 * CHANNELS), np.r_[head_dim : 2 * head_dim, CHANNELS + head_dim : CHANNELS + 2 * head_dim])
    before, after = (operation(program, "block0.attn.qkv", Linear) for program in (whole, renormalised))
    assert isinstance(before.epilogue, Requant)
    assert isinstance(after.epilogue, Requant)
    np.testing.assert_array_equal(after.weight, before.weight[:, kept])
    np.testing.assert_array_equal(after.epilogue.zero, before.epilogue.zero[kept])


@pytest.mark.parametrize("softmax", ["paper", "renormalised"])
@pytest.mark.parametrize("fraction", [0, 0.3, 1])
def test_of_the_last_block_the_class_row_alone_is_computed_frozen_and_counted(calibrated, images, softmax, fraction):
    mask = np.random.default_rng(4).random((HEADS, TOKENS, TOKENS)) < fraction
    mask[1] |= fraction > 0
    frozen = [FrozenMap(mask, np.full(mask.shape, 1 / TOKENS))] * BLOCKS if fraction else None
    whole, program = (lower(calibrated, frozen, softmax, LoweringConfig(keep_unread=keep)) for keep in (True, False))
    for image in images[:4]:
        np.testing.assert_array_equal(golden.run(program, image), golden.run(whole, image))

    op, before = (attentions(each)[-1] for each in (program, whole))
    assert (op.rows, op.tokens, unread_macs(program)) == (1, TOKENS, {})
    assert op.score_heads == (before.score_heads or (0,))
    if frozen:
        assert op.frozen is not None
        assert before.frozen is not None
        for each in ("mask", "codes", "row_log2"):
            np.testing.assert_array_equal(getattr(op.frozen, each), getattr(before.frozen, each)[:, :, :1])
    lost = count(whole).macs.full - count(program).macs.full
    assert lost >= sum(unread_macs(whole).values()) * (fraction < 1)  # wholly frozen, q and k of one head stay


def test_a_map_of_unread_rows_alone_freezes_nothing(calibrated):
    mask = np.ones((HEADS, TOKENS, TOKENS), bool)
    mask[:, 0] = False
    frozen = FrozenMap(mask, np.full(mask.shape, 1 / TOKENS))
    nothing = FrozenMap(np.zeros_like(mask), np.zeros(mask.shape))
    program = lower(calibrated, [*[nothing] * (BLOCKS - 1), frozen], "renormalised")
    assert attentions(program)[-1].frozen is None
    assert count(program).macs == count(lower(calibrated)).macs


def test_frozen_codes_and_row_logarithms_by_hand(calibrated):
    mask = np.zeros((HEADS, TOKENS, TOKENS), bool)
    mask[0, 0, :3] = True
    mask[0, 1] = True
    mean = np.zeros(mask.shape)
    grid = replace(calibrated.attention[0], scale=0.5, last_code_is_zero=True)
    mean[0, 0, :2] = 0.5, 0.27
    mean[0, 1] = 0.5
    program = lower(replace(calibrated, attention=(grid,) * BLOCKS), [FrozenMap(mask, mean)] * BLOCKS, "renormalised")
    frozen = attentions(program)[0].frozen

    assert frozen is not None
    assert frozen.codes[0, 0, 0, :4].tolist() == [0, 2, 31, 0]
    assert frozen.row_log2[0, 0, 0] == round(256 * math.log2(1 / (1 - 0.75)))
    assert frozen.row_log2[0, 0, 1] == 2560  # the mass is capped at 1 - 2^-10
    assert not frozen.row_log2[0, 1:].any()


def test_widths_are_those_of_the_configuration(calibrated):
    config = LoweringConfig(
        residual_bits=12, multiplier_bits=12, norm_fraction_bits=10, exponent_bits=6, gelu_index_bits=7, rounding="half_even"
    )
    program = lower(calibrated, config=config)
    verify(program)

    assert program.datapath.rounding == "half_even"
    assert program.values["embed"].bits == 12
    assert {op.fraction_bits for op in program.operations if isinstance(op, LayerNorm)} == {10}
    assert {op.fraction_bits for op in attentions(program)} == {6}


def test_the_provenance_is_plain_json(calibrated):
    described = json.loads(json.dumps(provenance(calibrated)))

    prepared = {"height": 16, "width": 16, "crop_pct": 0.9, "interpolation": "bicubic", "crop_mode": "center", "fill": [0, 0, 0]}
    assert described["preprocessing"] == prepared
    assert described["labels"] is None
    assert described["calibration"] == {"method": "RepQ-ViT", "mode": "hardware", "images": 16}


def test_a_published_calibration_cannot_be_lowered(calibrated):
    with pytest.raises(UserError, match="needs a model calibrated in 'hardware' mode"):
        lower(replace(calibrated, mode="published"))


@pytest.mark.skipif(not (SHARED / "models").is_dir(), reason="needs ../shared beside the repository")
def test_a_trained_model_decides_as_its_fake_quantisation_does():
    model = load_model(f"local-dir:{SHARED / 'models/deit_cifar10_d6'}")
    photographs = np.load(SHARED / "data/cifar10_calib2500.npz")["images"]
    calibrated = calibrate(model, photographs[:32])
    program = lower(calibrated)
    verify(program)
    held_out = photographs[2000:2016]

    decisions = [int(golden.run(program, image).argmax()) for image in held_out]
    assert np.mean(predict(calibrated, held_out).argmax(axis=1) == decisions) >= 0.8
