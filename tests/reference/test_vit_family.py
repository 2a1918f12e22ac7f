"""Every feature of timm's ViT that is supported, in small networks that timm itself makes."""

import numpy as np
import pytest
from same_taps import expect_engine_equals_golden

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")

from cost_model.work.counts import count  # noqa: E402
from eamsim import golden  # noqa: E402
from eamsim.program import LayerNorm  # noqa: E402
from eamsim.progress import unheard  # noqa: E402
from reference.attention.freeze import FrozenMap  # noqa: E402
from reference.lowering.program import LoweringConfig, lower  # noqa: E402
from reference.models.load import as_model  # noqa: E402
from reference.quantisation.compensate import compensate  # noqa: E402
from reference.quantisation.fakequant import predict  # noqa: E402
from reference.quantisation.precision import Precision  # noqa: E402
from reference.quantisation.repq import calibrate  # noqa: E402

SHAPE = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 7}
VIT, DISTILLED = "vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"
AVERAGED = {"global_pool": "avg"}
FAMILIES = {
    "plain": (VIT, {}),
    "large patches": (VIT, {"img_size": 32, "patch_size": 8}),
    "qkv without bias": (VIT, {"qkv_bias": False}),
    "layer scale": (VIT, {"init_values": 0.1}),
    "pre-norm, as CLIP": (VIT, {"pre_norm": True}),
    "position table without class row, as DeiT-III": (VIT, {"no_embed_class": True, "init_values": 1e-6}),
    "no position table": (VIT, {"pos_embed": "none"}),
    "registers": (VIT, {"reg_tokens": 3}),
    "registers, as DINOv2": (VIT, {"reg_tokens": 4, "no_embed_class": True, "init_values": 1e-5}),
    "mean, class token apart": (VIT, AVERAGED),
    "mean with the class token": (VIT, AVERAGED | {"pool_include_prefix": True}),
    "mean without class token": (VIT, AVERAGED | {"class_token": False}),
    "mean beside registers": (VIT, AVERAGED | {"class_token": False, "reg_tokens": 1, "no_embed_class": True}),
    "mean of the normalised": (VIT, AVERAGED | {"class_token": False, "fc_norm": False}),
    "token with its norm behind": (VIT, {"fc_norm": True}),
    "distilled": (DISTILLED, {}),
    "height other than width": (VIT, {"img_size": (16, 24)}),
    "pixels that fill no patch": (VIT, {"img_size": (18, 23)}),
    "dynamic size": (VIT, {"dynamic_img_size": True, "dynamic_img_pad": True}),
}
EIGHT = Precision(bits={"*": 8, "block*.attn.[qkv]": 7}, weight_bits=8, activation_bits=5)  # of attention weights


@pytest.fixture(scope="module", params=FAMILIES.values(), ids=list(FAMILIES))
def model(request):
    name, changes = request.param
    torch.manual_seed(0)
    module = timm.create_model(name, **(SHAPE | changes)).eval()
    for name, parameter in module.named_parameters():
        if "norm" in name and name.endswith("weight"):
            torch.nn.init.uniform_(parameter, 0.5, 2)
        else:
            torch.nn.init.normal_(parameter, std=0.15)
    return as_model(module, "small")


@pytest.fixture(scope="module")
def images(model):
    """Smooth patterns, so that neighbouring pixels agree as they do in photographs."""
    size = model.preprocessing
    coarse = np.random.default_rng(1).integers(0, 256, (16, -(-size.height // 4), -(-size.width // 4), 3), dtype=np.uint8)
    return np.ascontiguousarray(coarse.repeat(4, axis=1).repeat(4, axis=2)[:, : size.height, : size.width])


@pytest.fixture(scope="module")
def calibrated(model, images):
    return calibrate(model, images)


@pytest.fixture(scope="module")
def logits(model, images):
    """timm's own, in float64."""
    mean, std = (torch.tensor(values, dtype=torch.float64).reshape(3, 1, 1) for values in (model.mean, model.std))
    module = model.module.double()
    with torch.inference_mode():
        found = module((torch.from_numpy(images).permute(0, 3, 1, 2).double() / 255 - mean) / std).numpy()
    module.float()
    return found


def random_maps(calibrated, fraction):
    rng = np.random.default_rng(4)
    masks = [rng.random(maps.shape) < fraction for maps in calibrated.network.maps]
    return [FrozenMap(mask, np.full(mask.shape, 1 / mask.shape[2])) for mask in masks]


def test_the_float_network_is_timms(model, images, logits):
    np.testing.assert_allclose(predict(model, images), logits, atol=1e-10 * np.abs(logits).max())


@pytest.mark.slow
@pytest.mark.parametrize(("fraction", "softmax"), [(0, "paper"), (0.4, "paper"), (0.4, "renormalised"), (1, "renormalised")])
def test_the_engine_equals_golden_at_every_tap(calibrated, images, fraction, softmax):
    program = lower(calibrated, random_maps(calibrated, fraction) if fraction else None, softmax)
    expect_engine_equals_golden(program, images[:2])


@pytest.mark.slow
def test_with_wide_codes_the_integers_follow_timms_logits(model, images, logits):
    """What is left is of attention weights, powers of the square root of 1/2; a row or a mean that is another's leaves nothing alike."""
    calibrated = calibrate(model, images, precision=EIGHT)
    program = lower(calibrated)
    integers = np.stack([golden.run(program, image).ravel() for image in images])

    assert centred_correlation(integers, predict(calibrated, images)) > 0.99
    assert centred_correlation(integers, logits) > 0.97


def centred_correlation(x, y):
    return np.corrcoef(*((each - each.mean(axis=0)).ravel() for each in (x, y)))[0, 1]


@pytest.mark.slow
@pytest.mark.parametrize("fraction", [0, 0.4])
def test_rows_that_nothing_reads_change_nothing(calibrated, images, fraction):
    """All of them are computed with keep_unread; otherwise, where they come after those that are read, none in the last block."""
    maps, read = random_maps(calibrated, fraction), calibrated.network.read
    short, whole = (lower(calibrated, maps, "renormalised", LoweringConfig(keep_unread=keep)) for keep in (False, True))

    np.testing.assert_array_equal(golden.run(short, images[0]), golden.run(whole, images[0]))
    rows = short.values["block1.mlp.fc2"].shape[0]
    assert rows == (read.stop or calibrated.network.maps[1].shape[1])
    assert (count(short).macs.full < count(whole).macs.full) == (read.stop is not None)


@pytest.mark.slow
def test_compensation_follows_the_float_network(calibrated, images, logits):
    assert error(compensate(calibrated, [images], unheard), images, logits) < error(calibrated, images, logits)


def error(calibrated, images, logits):
    return float(np.square(predict(calibrated, images) - logits).mean())


@pytest.mark.slow
def test_macs_are_those_of_torch(calibrated):
    """A mean before a norm takes one multiplication a channel besides, by 1: it makes signed values of its codes."""
    from torch.utils.flop_counter import FlopCounterMode

    module, size = calibrated.model.module, calibrated.model.preprocessing
    with FlopCounterMode(display=False) as flops, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        module(torch.zeros(1, 3, size.height, size.width))
    program = lower(calibrated, config=LoweringConfig(keep_unread=True))
    extra = SHAPE["embed_dim"] if "mean.stream" in program.values else 0
    assert count(program).macs.full - extra == flops.get_total_flops() // 2


def test_the_mean_before_a_norm_keeps_eight_bits():
    torch.manual_seed(0)
    model = as_model(timm.create_model(VIT, **(SHAPE | AVERAGED)).eval(), "small")
    program = lower(calibrate(model, np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)))

    names = [op.out.name for op in program.operations]
    assert names[names.index("block1.mlp.fc2") + 1 :] == ["tokens", "mean", "mean.column", "mean.stream", "pooled", "norm", "head"]
    assert [str(program.values[name]).split(": ")[1] for name in ("tokens", "mean", "pooled", "norm")] == [
        "i16[16, 24]", "u8[1, 24]", "i16[1, 24]", "u4[1, 24]",
    ]  # fmt: skip
    assert isinstance(next(op for op in program.operations if op.out.name == "norm"), LayerNorm)
