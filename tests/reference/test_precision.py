"""Bits by name: what they are given to, what is refused, and programs of several widths on every path."""

import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from command_line import eamsim
from local_models import save_model
from same_taps import expect_engine_equals_golden

torch = pytest.importorskip("torch")
pytest.importorskip("timm")

from eamsim import artifact  # noqa: E402
from eamsim.cli.model.build import parse_bits  # noqa: E402
from eamsim.engine import isa  # noqa: E402
from eamsim.errors import UserError  # noqa: E402
from eamsim.program import Linear  # noqa: E402
from reference.crosscheck.rebuild import rebuild  # noqa: E402
from reference.lowering.program import lower, provenance  # noqa: E402
from reference.models.load import load_model  # noqa: E402
from reference.quantisation.fakequant import predict  # noqa: E402
from reference.quantisation.precision import Precision  # noqa: E402
from reference.quantisation.repq import calibrate  # noqa: E402

DIGITS = Path(str(files("eamsim") / "data" / "digits"))
IMAGES = np.random.default_rng(5).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
SEVERAL = Precision(
    "fitted",
    {
        "*": 6,
        "*.mlp.fc1": 5,
        "*.attn.[qkv]": 4,
        "block1.norm1": 8,
        "block1.attn": 3,
        "input": 7,
        "weight:*": 5,
        "weight:block0.*": 7,
        "weight:head": 2,
    },
)


@pytest.fixture(scope="module", params=["vit", "swin"])
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    save_model(folder, request.param)
    return load_model(f"local-dir:{folder}")


def test_the_last_pattern_of_its_kind_decides():
    assert [SEVERAL.of_value(name) for name in ("norm", "block0.mlp.fc1", "block1.norm1", "block2.attn.q", "input")] == [6, 5, 8, 4, 7]
    assert [SEVERAL.of_weights(name) for name in ("patch_embed", "block0.mlp.fc1", "head")] == [5, 7, 2]
    assert [Precision().of_value("input"), Precision().of_value("norm"), Precision().of_weights("head")] == [8, 4, 4]


def test_every_quantiser_has_its_bits(model):
    calibrated = calibrate(model, IMAGES, precision=SEVERAL)
    assert {name: each.bits for name, each in calibrated.activations.items()} == {
        name: SEVERAL.of_value(name) for name in calibrated.activations
    }
    assert {name: each.bits for name, each in calibrated.weights.items()} == {name: SEVERAL.of_weights(name) for name in calibrated.weights}


@pytest.mark.slow
def test_programs_of_several_widths_are_equal_on_every_path(model):
    """Golden and engine at every tap, and fake quantisation read back decides as that of the build."""
    calibrated = calibrate(model, IMAGES, precision=SEVERAL)
    program = lower(calibrated)
    assert {op.weight_bits for op in program.operations if isinstance(op, Linear)} == {2, 5, 7}
    expect_engine_equals_golden(program, IMAGES, *isa.detect())
    fake = rebuild(program, provenance(calibrated), model).fake_logits(IMAGES)
    assert np.corrcoef(predict(calibrated, IMAGES).ravel(), fake.ravel())[0, 1] > 0.99


@pytest.mark.parametrize(
    ("bits", "message"),
    [
        ({"block0.mlp.fc3": 5}, r"bits, block0\.mlp\.fc3: expected a name or a pattern such as .* got one that matches none"),
        ({"weight:input": 5}, "bits, weight:input: expected a name or a pattern"),
        ({"block0.attn.codes": 3}, "bits, block0.attn.codes: expected a name or a pattern"),
        ({"*": 8}, r"bits, block0\.attn: expected at most 7 of q, k and v, which are signed, got q 8, k 8, v 8"),
        ({"*.attn.q": 5}, r"bits, block0\.attn: expected equal ones of q, k and v, which one layer writes, got q 5, k 4, v 4"),
    ],
)
def test_what_names_nothing_or_cannot_be_is_refused(model, bits, message):
    with pytest.raises(UserError, match=message):
        calibrate(model, IMAGES, precision=Precision(bits=bits))


@pytest.mark.parametrize("bits", [1, 9, 4.0, True])
def test_bits_are_2_to_8_and_of_weights_to_7(bits):
    for name, most in (("norm", 8), ("weight:head", 7)):
        with pytest.raises(UserError, match=rf"bits, {name}: expected an integer in 2\.\.{most}"):
            Precision(bits={name: bits})
    with pytest.raises(UserError, match=r"in 2\.\.7, got 8"):
        Precision(bits={"weight:head": 8})


def test_options():
    assert parse_bits(["*.mlp.fc1=5", "norm=3", "*.mlp.fc1=6"]) == {"norm": 3, "*.mlp.fc1": 6}
    for text in ("norm", "=5", "norm=", "norm=4.5", "norm=-1"):
        with pytest.raises(UserError, match="--bits: expected NAME=BITS"):
            parse_bits([text])


def test_the_command_records_them(tmp_path):
    options = ("--calib", DIGITS / "digits_calib.npz", "--limit", 16, "--tau", "0", "--no-compensate", "--json")
    done = eamsim("build", f"local-dir:{DIGITS}", *options, "--bits", "*.mlp.fc1=5", "--bits", "weight:head=7", "-o", tmp_path / "x.eam")
    assert json.loads(done.out)["bits"] == {"*.mlp.fc1": 5, "weight:head": 7}
    program, found = artifact.read(tmp_path / "x.eam")
    assert found["bits"] == {"*.mlp.fc1": 5, "weight:head": 7}
    assert {value.bits for name, value in program.values.items() if name.endswith("mlp.fc1")} == {5}
    assert {op.out.name: op.weight_bits for op in program.operations if isinstance(op, Linear)}["head"] == 7
    refused = eamsim("build", f"local-dir:{DIGITS}", *options, "--bits", "fc1=5", "-o", tmp_path / "y.eam")
    assert (refused.code, not (tmp_path / "y.eam").exists()) == (2, True)
    assert "bits, fc1: expected a name or a pattern" in refused.err
