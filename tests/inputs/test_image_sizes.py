"""Images that are not square, and patches that do not divide them: as timm's convolution reads them, in floats and in integers."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

torch = pytest.importorskip("torch")
pytest.importorskip("timm")

from local_models import save_model  # noqa: E402

from eamsim import engine, golden  # noqa: E402
from eamsim.errors import UserError  # noqa: E402
from reference.lowering.program import lower  # noqa: E402
from reference.models.load import load_model  # noqa: E402
from reference.quantisation.fakequant import predict  # noqa: E402
from reference.quantisation.repq import calibrate  # noqa: E402

SIZES = [("vit", 18), ("vit", [16, 32]), ("vit", [19, 22]), ("vit", [5, 7]), ("swin", 17), ("swin", [16, 32]), ("swin", [33, 17])]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "size"), SIZES)
def test_every_size_is_read_as_timm_reads_it(tmp_path, kind, size):
    save_model(tmp_path, kind, args={"img_size": size})
    model = load_model(f"local-dir:{tmp_path}")
    height, width = (size, size) if isinstance(size, int) else size
    assert (model.preprocessing.height, model.preprocessing.width) == (height, width)
    images = np.random.default_rng(0).integers(0, 256, (4, height, width, 3), np.uint8)

    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (model.mean, model.std))
    with torch.inference_mode():
        expected = model.module((torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std)
    assert_allclose(predict(model, images), expected, atol=1e-5 * expected.abs().max().item())  # float32 against float64

    calibrated = calibrate(model, images)
    program = lower(calibrated)
    golden_logits = golden.run(program, images[0], taps := {})
    patches = calibrated.activations["input"].codes(model.network.pixels.patches(torch.from_numpy(images[:1])))[0]
    assert_array_equal(taps["patches"], patches)
    logits = engine.Engine(program).run(images)
    assert_array_equal(logits[0], golden_logits.ravel())


def test_an_image_smaller_than_a_patch_is_refused(tmp_path):
    save_model(tmp_path, args={"img_size": [3, 8]})
    with pytest.raises(UserError, match=r"an image smaller than a patch \(3 x 8 pixels, a patch 4 x 4\) is not supported"):
        load_model(f"local-dir:{tmp_path}")


def test_padding_is_refused_by_name(tmp_path):
    save_model(tmp_path, args={"img_size": 18, "dynamic_img_pad": True})
    with pytest.raises(UserError, match=r"padding of the image \(dynamic_img_pad\) is not supported"):
        load_model(f"local-dir:{tmp_path}")
