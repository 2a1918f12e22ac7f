"""Weights that no integers of these widths hold: layer, channel and cause are named, or the loss is said and recorded."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")

from local_models import VIT  # noqa: E402

from eamsim.errors import UserError  # noqa: E402
from eamsim.inputs.images import Preprocessing, open_images  # noqa: E402
from reference.attention.collect import calibrate_on  # noqa: E402
from reference.lowering.layers import LoweringConfig  # noqa: E402
from reference.lowering.program import lower, provenance, stream_remarks  # noqa: E402
from reference.models.load import as_model  # noqa: E402
from reference.quantisation.repq import calibrate  # noqa: E402

IMAGES = np.random.default_rng(1).integers(0, 256, (16, 4, 4, 3), np.uint8).repeat(4, axis=1).repeat(4, axis=2)


def model(name: str, change):
    """A small ViT one of whose parameters was changed in place."""
    torch.manual_seed(0)
    module = timm.create_model("vit_tiny_patch16_224", **VIT).eval()
    for layer, parameter in module.named_parameters():
        torch.nn.init.normal_(parameter, std=0.1)
        if "norm" in layer and layer.endswith("weight"):
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    with torch.no_grad():
        change(dict(module.named_parameters())[name])
    return as_model(module, "small")


def row_3(factor):
    return lambda parameter: parameter[3:4].mul_(factor)


def row_0(factor):
    return lambda parameter: parameter[:1].mul_(factor)


def everything(factor):
    return lambda parameter: parameter.mul_(factor)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("blocks.0.attn.qkv.weight", row_3(1e9), r"^block0\.attn, scores of block0\.attn\.qkv, channel 3 \(weights up to .*e\+08, "),
        ("blocks.0.attn.proj.weight", row_0(1e9), r"^block0\.norm2, channel \d+: its .* look at block0\.attn\.proj, channel 0 \(weights"),
        ("blocks.1.attn.proj.weight", everything(1e9), r"^block1\.attn\.proj, channel \d+ \(weights up to .* which no common scale holds"),
        ("blocks.0.mlp.fc1.weight", row_3(1e9), r"^block0\.mlp\.fc2, channel \d+ \(.*inputs up to .*e\+0.\): it brings a residual"),
        ("blocks.0.mlp.fc2.weight", row_3(1e9), r"^block0\.mlp\.fc2, channel 3 \(weights up to .*e\+08, .* which no common scale holds"),
        ("blocks.0.mlp.fc1.bias", row_3(1e10), r"^block0\.mlp\.fc1, channel 3 \(.*: its bias is .* units of its sums, beyond 32 bits"),
        ("head.weight", everything(1e-12), r"^head, channel \d \(weights up to .*e-13, .*: its bias is .* or weights far too small"),
    ],
)  # fmt: skip
def test_layer_channel_and_cause_are_named(name, change, message):
    calibrated = calibrate(model(name, change), IMAGES)
    with pytest.raises(UserError, match=message) as refused:
        lower(calibrated)
    assert "[C" not in str(refused.value)
    assert "calibrate on" not in str(refused.value)


def test_a_multiplier_too_narrow_names_layer_and_channel():
    message = r"^head, channel \d+ \(weights up to .*: one unit of its sums is .* of its result, more than a multiplier of 8 bits holds"
    with pytest.raises(UserError, match=message):
        lower(calibrate(model("head.weight", everything(1)), IMAGES), config=LoweringConfig(multiplier_bits=8))


def test_a_norm_of_next_to_nothing_keeps_what_fits():
    lower(calibrate(model("norm.weight", everything(1e-12)), IMAGES))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("pos_embed", lambda parameter: parameter.view(-1)[30:31].fill_(1e6)),
        ("pos_embed", everything(1e6)),
        ("patch_embed.proj.weight", row_3(1e9)),
        ("patch_embed.proj.weight", everything(1e9)),
    ],
)
def test_a_residual_that_its_bits_cannot_hold_is_said_and_recorded(name, change, caplog, tmp_path):
    np.savez(tmp_path / "c.npz", images=IMAGES)
    calibrated = calibrate_on(model(name, change), open_images([tmp_path / "c.npz"], Preprocessing(16, 16, 1.0, "bicubic")), 8)
    (remark,) = provenance(calibrated)["remarks"]
    assert "16 bits hold values up to" in remark
    assert "the program loses what is in it" in remark
    assert remark in caplog.text


def test_a_residual_that_fits_is_no_remark():
    assert stream_remarks(calibrate(model("head.weight", everything(1)), IMAGES)) == ()
