import json
import pickle
from functools import partial

import numpy as np
import pytest

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")

from safetensors.torch import save_file  # noqa: E402
from timm.layers.hybrid_embed import HybridEmbed  # noqa: E402
from timm.layers.mlp import SwiGLU  # noqa: E402

from eamsim.errors import BadFile, UserError  # noqa: E402
from reference.models.load import as_model, load_model  # noqa: E402
from reference.quantisation.fakequant import collect_maps, predict  # noqa: E402

SMALL = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 5}
LABELS = ["ant", "bee", "cat", "dog", "eel"]


def small_module(seed=0, **changes):
    torch.manual_seed(seed)
    module = timm.create_model("vit_tiny_patch16_224", **(SMALL | changes))
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module.eval()


@pytest.fixture
def folder(tmp_path):
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 5,
        "model_args": SMALL,
        "pretrained_cfg": {
            "input_size": [3, 16, 16],
            "mean": [0.5, 0.4, 0.3],
            "std": [0.2, 0.3, 0.4],
            "num_classes": 5,
            "label_names": LABELS,
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(small_module().state_dict(), tmp_path / "model.safetensors")
    return tmp_path


def random_images(count, size=16):
    return np.random.default_rng(1).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_our_forward_pass_is_timms(qkv_bias):
    model = as_model(small_module(qkv_bias=qkv_bias), "small")
    images = random_images(3)
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (model.mean, model.std))

    with torch.inference_mode():
        expected = model.module((torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std)

    np.testing.assert_allclose(predict(model, images), expected, atol=1e-5 * expected.abs().max().item())


def test_maps_are_collected_per_block_and_their_rows_sum_to_one():
    seen = []
    collect_maps(as_model(small_module(), "small"), [random_images(3), random_images(2)], lambda block, maps: seen.append((block, maps)))

    assert [(block, maps.shape) for block, maps in seen] == [
        (0, (3, 2, 17, 17)),
        (1, (3, 2, 17, 17)),
        (0, (2, 2, 17, 17)),
        (1, (2, 2, 17, 17)),
    ]
    for _, maps in seen:
        assert maps.dtype == np.float64
        np.testing.assert_allclose(maps.sum(axis=3), 1, rtol=1e-14)


def test_a_local_dir_brings_its_weights_preprocessing_and_labels(folder):
    model = load_model(f"local-dir:{folder}")

    assert model.label_names == tuple(LABELS)
    assert (model.mean, model.std) == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    assert (model.preprocessing.height, model.preprocessing.width) == (16, 16)
    np.testing.assert_array_equal(model.network.head.weight, small_module().head.weight.detach())


def test_weights_replace_those_of_the_folder(folder, tmp_path):
    save_file(small_module(seed=7).state_dict(), tmp_path / "other.safetensors")

    model = load_model(f"local-dir:{folder}", weights=str(tmp_path / "other.safetensors"))

    np.testing.assert_array_equal(model.network.head.weight, small_module(seed=7).head.weight.detach())


def test_random_init_repeats_and_leaves_torchs_generator_alone(folder):
    torch.manual_seed(3)
    first = load_model(f"local-dir:{folder}", random_init=5).network.head.weight
    after = torch.rand(1)
    torch.manual_seed(3)

    assert torch.rand(1) == after
    assert torch.equal(first, load_model(f"local-dir:{folder}", random_init=5).network.head.weight)
    assert not torch.equal(first, load_model(f"local-dir:{folder}", random_init=6).network.head.weight)


def test_a_pickle_needs_permission(folder, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(small_module(seed=2).state_dict(), path)

    with pytest.raises(UserError, match=r"weights\.pth: not a \.safetensors file; .*--allow-pickle"):
        load_model(f"local-dir:{folder}", weights=str(path))
    model = load_model(f"local-dir:{folder}", weights=str(path), allow_pickle=True)
    np.testing.assert_array_equal(model.network.head.weight, small_module(seed=2).head.weight.detach())


class Payload:
    def __reduce__(self):
        return exec, ("raise SystemExit('the pickle ran')",)


def test_a_pickle_cannot_run_code(folder, tmp_path):
    path = tmp_path / "evil.pth"
    path.write_bytes(pickle.dumps(Payload(), protocol=2))

    with pytest.raises(BadFile, match=r"evil\.pth: not a readable file of weights \(it holds more than tensors"):
        load_model(f"local-dir:{folder}", weights=str(path), allow_pickle=True)


def without_norm(state):
    del state["norm.weight"]


def with_another_tensor(state):
    state["extra"] = torch.zeros(1)


def with_nan(state):
    state["blocks.1.mlp.fc1.weight"][3, 4] = float("nan")


def with_another_shape(state):
    state["blocks.0.attn.proj.weight"] = torch.zeros(24, 12)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_norm, r"tensor norm\.weight is missing"),
        (with_another_tensor, "unknown tensor extra"),
        (with_nan, r"blocks\.1\.mlp\.fc1\.weight holds NaN or infinite values"),
        (with_another_shape, r"blocks\.0\.attn\.proj\.weight must be \[24, 24\], got \[24, 12\]"),
    ],
)
def test_weights_that_do_not_fit_name_the_tensor(folder, damage, message):
    state = {name: tensor.clone() for name, tensor in small_module().state_dict().items()}
    damage(state)
    save_file(state, folder / "model.safetensors")

    with pytest.raises(BadFile, match=message):
        load_model(f"local-dir:{folder}")


def test_a_truncated_file_of_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])

    with pytest.raises(BadFile, match=r"model\.safetensors: not a readable file of weights"):
        load_model(f"local-dir:{folder}")


@pytest.mark.parametrize("config", ["{", "[]", "{}"])
def test_a_damaged_config(folder, config):
    (folder / "config.json").write_text(config)

    with pytest.raises(BadFile, match=r"config\.json: "):
        load_model(f"local-dir:{folder}")


@pytest.mark.parametrize(
    ("spec", "kind", "message"),
    [
        ("deit_tny_patch16_224", UserError, "did you mean deit_tiny_patch16_224"),
        ("no/such", UserError, "expected a timm name"),
        ("local-dir:/no/such", BadFile, r"/no/such/config\.json: no such file"),
    ],
)
def test_a_model_that_does_not_exist(spec, kind, message):
    with pytest.raises(kind, match=message):
        load_model(spec)


def test_missing_weights_name_the_choices():
    with pytest.raises(BadFile, match=r"/no/such\.safetensors: no such file; give --weights FILE, use local-dir:DIR"):
        load_model("deit_tiny_patch16_224", weights="/no/such.safetensors")


def test_weights_and_random_init_exclude_each_other():
    with pytest.raises(UserError, match="expected at most one of them, got both"):
        load_model("deit_tiny_patch16_224", weights="x.safetensors", random_init=0)


@pytest.mark.slow
def test_a_failed_download_names_the_offline_choices(monkeypatch):
    create = timm.create_model

    def offline(name, pretrained=False, **arguments):
        if pretrained:
            raise OSError("no route to host\nand a second line")
        return create(name, **arguments)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(UserError, match=r"cannot be downloaded \(no route to host\); give --weights FILE, .*--random-init SEED"):
        load_model("deit_tiny_patch16_224")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"qk_norm": True}, r"query and key norm \(qk_norm\)"),
        ({"scale_attn_norm": True}, "a norm inside attention"),
        ({"scale_mlp_norm": True}, "a norm inside the MLP"),
        ({"norm_layer": "rmsnorm"}, r"another norm than LayerNorm with gain and bias \(RmsNorm\)"),
        ({"mlp_layer": SwiGLU}, r"an MLP of another kind \(SwiGLU\)"),
        ({"global_pool": "map"}, "pooling by 'map'"),
        ({"global_pool": "avgmax"}, "pooling by 'avgmax'"),
        ({"final_norm": False}, "a model without final norm"),
        ({"num_classes": 0}, "a model without classifier"),
        ({"act_layer": "gelu_tanh"}, r"another activation than exact GELU \(GELUTanh\(\)\)"),
        (
            {"embed_layer": partial(HybridEmbed, backbone=torch.nn.Conv2d(3, 8, 2, 2))},
            "another patch embedding than one convolution of square patches",
        ),
        ({"in_chans": 1}, "images of other than three channels"),
        ({"img_size": 18, "dynamic_img_size": True, "dynamic_img_pad": True}, r"padding of the image \(dynamic_img_pad\)"),
        ({"img_size": 3}, r"an image smaller than a patch \(3 x 3 pixels, a patch 4 x 4\)"),
    ],
)
def test_features_that_are_not_supported_are_refused_by_name(changes, message):
    module = timm.create_model("vit_tiny_patch16_224", **(SMALL | changes))

    with pytest.raises(UserError, match=f"^model 'odd': {message} is not supported; `eamsim models` lists what is"):
        as_model(module, "odd")


@pytest.mark.slow
def test_other_architectures_are_not_supported():
    with pytest.raises(UserError, match="EfficientNet is not supported; expected a timm VisionTransformer or Swin"):
        load_model("efficientnet_b0", random_init=0)
