"""Where the integers part from fake quantisation in the small trained Swin: `pytest tests/benchmarks/bench_agreement.py -s`.

Of every 4-bit value, the share of codes that differ from fake quantisation, and their mean difference in codes: of the engine, of the
engine with finer constants, and of the same fake quantisation in float32. Photographs are calibration images.
"""

from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from eamsim import engine  # noqa: E402
from reference.lowering.program import LoweringConfig, lower  # noqa: E402
from reference.models.load import load_model  # noqa: E402
from reference.quantisation.repq import calibrate  # noqa: E402

SHARED = Path(__file__).parents[3] / "shared"
RANGES, COMPARED = slice(0, 2500, 79), slice(7, 2500, 25)  # no photograph in both
FINE = LoweringConfig(
    residual_bits=20,
    multiplier_bits=20,
    reciprocal_bits=20,
    norm_fraction_bits=14,
    exponent_bits=10,
    log2_index_bits=10,
    gelu_index_bits=12,
)


def in_single(part):
    """The same parameters in float32."""
    match part:
        case torch.Tensor():
            return part.float() if part.is_floating_point() else part
        case tuple():
            return tuple(map(in_single, part))
        case dict():
            return {key: in_single(value) for key, value in part.items()}
    if is_dataclass(part) and not isinstance(part, type):
        return replace(part, **{field.name: in_single(getattr(part, field.name)) for field in fields(part)})
    return part


def codes_of(network, activations, attention, images):
    """Of every quantised value but q, k and v, which the program holds in another order."""
    found = {}

    def site(name, x):
        if name not in activations:
            return x
        codes = activations[name].codes(x)
        if not name.endswith((".q", ".k", ".v")):
            found[name] = codes.double().numpy()
        return ((codes - activations[name].zero) * activations[name].scale).to(activations[name].scale)

    network(torch.from_numpy(images), site, lambda block, scores: attention[block](scores.softmax(dim=-1)))
    return found


@pytest.mark.skipif(not (SHARED / "models").is_dir(), reason="needs ../shared beside the repository")
def test_agreement_of_the_engine_with_fake_quantisation():
    photographs = np.load(SHARED / "data/cifar10_calib2500.npz")["images"]
    images = photographs[COMPARED]
    calibrated = calibrate(load_model(f"local-dir:{SHARED / 'models/swin_cifar10'}"), photographs[RANGES])
    double = codes_of(calibrated.quantised, calibrated.activations, calibrated.attention, images)
    single = codes_of(in_single(calibrated.quantised), in_single(calibrated.activations), calibrated.attention, images)
    taps = [engine.Engine(lower(calibrated, config=config)).run(images, taps=True)[1] for config in (LoweringConfig(), FINE)]

    print("\nvalue                    engine              finer               float32")
    for name, expected in double.items():
        stem = name.removesuffix(".attn")
        tap = f"{stem}.reverse" if f"{stem}.reverse" in taps[0] and stem != name else name.replace("input", "patches")
        others = [each[tap].reshape(expected.shape) - expected for each in taps] + [single[name] - expected]
        print(f"{name:20}", *(f"{np.mean(each != 0):10.3%} {each.mean():+.4f}" for each in others))
    assert np.array_equal(taps[0]["patches"].reshape(double["input"].shape), double["input"])
