"""Every field of a model's configuration is used, recorded, without effect, or refused by name."""

import dataclasses
import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import eamsim
from numpy.testing import assert_array_equal
from PIL import Image

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")

from local_models import VIT, save_model  # noqa: E402
from timm.data.config import resolve_data_config  # noqa: E402
from timm.data.dataset_info import CustomDatasetInfo  # noqa: E402
from timm.data.imagenet_info import ImageNetInfo  # noqa: E402
from timm.data.transforms_factory import create_transform  # noqa: E402
from timm.models import PretrainedCfg  # noqa: E402
from timm.models.swin_transformer import SwinTransformer  # noqa: E402
from timm.models.vision_transformer import VisionTransformer  # noqa: E402

from eamsim.errors import BadFile, UserError  # noqa: E402
from reference.models.config import MODEL_ARGS, PRETRAINED_CFG, TOP, labels_of  # noqa: E402
from reference.models.load import as_model, load_model  # noqa: E402

LABELS = ["ant", "bee", "cat", "dog", "eel"]
OTHER = {  # another value of every field than the small model has: what it does is told below
    "input_size": [3, 20, 20],
    "fixed_input_size": True,
    "interpolation": "bilinear",
    "crop_pct": 0.5,
    "crop_mode": "squash",
    "mean": [0.1, 0.2, 0.3],
    "std": [0.5, 0.6, 0.7],
    "num_classes": 6,
    "label_names": LABELS,
    "tag": "a1_in1k",
    "label_descriptions": {"ant": "an insect"},
    "test_input_size": [3, 32, 32],
    "test_crop_pct": 1.0,
    "architecture": "deit_tiny_patch16_224",
    "hf_hub_id": "someone/something",
    "license": "cc-by-4.0",
    "description": "a small one",
    "origin_url": "https://example.org",
    "paper_name": "A paper",
    "paper_ids": "arXiv:0000.00000",
    "notes": ["one"],
    "min_input_size": [3, 4, 4],
    "pool_size": [7, 7],
    "test_pool_size": [9, 9],
    "first_conv": "other",
    "classifier": "other",
    "url": "https://example.org/x.pth",
    "file": "/nowhere/x.pth",
    "state_dict": {"head.bias": [0]},
    "source": "url",
    "custom_load": True,
    "hf_hub_filename": "x.bin",
    "label_offset": 1,
}


def facts(model):
    """All of a model that its programs depend on."""
    weights = {name: tensor.numpy().tobytes() for name, tensor in model.module.state_dict().items()}
    return model.preprocessing, model.mean, model.std, model.label_names, weights


def test_the_tables_have_every_field_that_timm_has():
    assert PRETRAINED_CFG.keys() == {field.name for field in dataclasses.fields(PretrainedCfg)} == OTHER.keys()
    arguments = {name for kind in (VisionTransformer, SwinTransformer) for name in inspect.signature(kind.__init__).parameters}
    assert MODEL_ARGS.keys() == arguments - {"self"}


def test_timm_saves_no_field_at_the_top_that_the_table_lacks(tmp_path):
    module = timm.create_model("vit_tiny_patch16_224", **VIT)
    config = {"label_names": LABELS, "label_descriptions": dict.fromkeys(LABELS, "text")}
    timm.models.push_to_hf_hub.__globals__["save_config_for_hf"](module, tmp_path / "config.json", config)
    assert json.loads((tmp_path / "config.json").read_text()).keys() <= TOP.keys()


@pytest.mark.slow
@pytest.mark.parametrize("field", OTHER)
def test_every_field_does_what_the_table_says(tmp_path, field):
    save_model(tmp_path / "plain")
    top = {"num_classes": OTHER[field]} if field == "num_classes" else {}
    save_model(tmp_path / "other", cfg={field: OTHER[field]}, top=top)
    plain = load_model(f"local-dir:{tmp_path / 'plain'}")
    use, _ = PRETRAINED_CFG[field]
    if use == "refused" or field in {"input_size", "num_classes"}:  # these two contradict the model's arguments
        with pytest.raises(BadFile, match=field):
            load_model(f"local-dir:{tmp_path / 'other'}")
        return
    other = load_model(f"local-dir:{tmp_path / 'other'}")
    if field == "label_descriptions":
        assert other.label_descriptions == OTHER[field]
    elif use == "recorded" or field == "tag":
        assert other.config[field] == OTHER[field]
    used = use == "used" and field not in {"tag", "fixed_input_size"}  # which tell for 1,000 classes, and without img_size
    assert (facts(other) != facts(plain)) == used


def test_images_are_prepared_as_timm_resolves_the_configuration(tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (41, 67, 3), np.uint8))
    for number, cfg in enumerate(
        [
            {"crop_mode": mode, "crop_pct": crop, "interpolation": how, "test_crop_pct": 1.0, "test_input_size": [3, 32, 32]}
            for mode in ("center", "squash", "border", None)
            for crop in (0.8, 1.0, None)  # 1.0: a border is filled
            for how in ("lanczos", None)
        ]
    ):
        folder = tmp_path / str(number)
        save_model(folder, args={"img_size": [16, 24]}, cfg=cfg)
        model = load_model(f"local-dir:{folder}")
        transform: Any = create_transform(**resolve_data_config({}, model=model.module), is_training=False, normalize=False)
        assert_array_equal(model.preprocessing(image), transform(image).permute(1, 2, 0), str(cfg))


def test_a_fixed_size_without_img_size_builds_for_input_size(tmp_path):
    save_model(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["model_args"]["img_size"]
    config["pretrained_cfg"] |= {"fixed_input_size": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_model(f"local-dir:{tmp_path}").preprocessing.height == 16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cfg": {"crop_mod": "squash"}}, r"'crop_mod' is no field timm knows \(did you mean 'crop_mode'\?\) of pretrained_cfg; correct"),
        ({"cfg": {"crop_mode": "centre"}}, "crop_mode must be one of center, squash, border, got 'centre'"),
        ({"cfg": {"interpolation": "random"}}, "interpolation must be one of .* got 'random'"),
        ({"cfg": {"crop_pct": 0}}, r"crop_pct must be in \(0, 1\], got 0"),
        ({"cfg": {"label_offset": 1}}, "label_offset 1 in pretrained_cfg is not supported; cut the extra classes"),
        ({"args": {"drop_rat": 0.1}}, r"'drop_rat' is no field timm knows \(did you mean 'drop_rate'\?\) of model_args"),
        ({"args": {"dtype": "float16"}}, "dtype 'float16' in model_args is not supported; the model is built in float32"),
        ({"top": {"num_classes": 7}}, "num_classes is 7, but 5 in model_args; correct one of them"),
        ({"top": {"global_pool": "avg"}}, "its config says pooling by 'avg', timm builds 'token' of it"),
        ({"cfg": {"input_size": [3, 32, 32]}}, "its input_size says images of 32 x 32, its model takes 16 x 16"),
        ({"cfg": {"label_names": LABELS[:4]}}, "label_names has 4 names, expected one for each of 5 classes"),
        ({"top": {"label_names": [*LABELS, "fly"]}}, "label_names has 6 names, expected one for each of 5 classes"),
        ({"top": {"label_names": {"0": "ant", "2": "cat"}}}, r"must name the classes 0\.\.4, each once, but index 1 is missing"),
        ({"top": {"label_names": {str(i): "x" for i in range(6)}}}, r"must name the classes 0\.\.4, each once, but it has 6 entries"),
        ({"top": {"label_names": {"ant": 0}}}, "label_names must be a list or index -> name"),
        ({"top": {"label_names": [1, 2, 3, 4, 5]}}, r"label_names must be texts, .*got \[1, 2, 3, 4, 5\]"),
        ({"top": {"label_names": "ant"}}, "label_names must be texts, .*got 'ant'"),
    ],
)
def test_what_cannot_be_right_is_refused_by_name(tmp_path, changes, message):
    cfg, top, args = (changes.get(part, {}) for part in ("cfg", "top", "args"))
    save_model(tmp_path, cfg=cfg, top=top)
    config = json.loads((tmp_path / "config.json").read_text())
    config["model_args"] |= args
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadFile, match=message):
        load_model(f"local-dir:{tmp_path}")


def test_a_field_that_timm_ignores_is_said(tmp_path, caplog):
    save_model(tmp_path, top={"label_name": LABELS, "num_features": 7})
    (remark,) = load_model(f"local-dir:{tmp_path}").remarks
    assert remark == "config.json: 'label_name' is no field timm knows (did you mean 'label_names'?); it has no effect"
    assert remark in caplog.text


def test_a_configuration_without_parts(tmp_path):
    module = save_model(tmp_path / "a")
    old = {"architecture": "vit_tiny_patch16_224", "input_size": [3, 224, 224], "num_classes": 1000, "labels": ["x"] * 1000}
    (tmp_path / "a/config.json").write_text(json.dumps(old | {"crop_pct": 0.7}))
    model = load_model(f"local-dir:{tmp_path / 'a'}", random_init=0)
    assert model.label_names == ("x",) * 1000
    assert model.preprocessing.crop_pct == 0.7
    assert module.num_classes == 5


def test_label_names_by_index_are_put_in_order(tmp_path):
    names = {str(index): f"name{index}" for index in reversed(range(12))}
    save_model(tmp_path, args={"num_classes": 12}, top={"label_names": names})
    model = load_model(f"local-dir:{tmp_path}")
    info = CustomDatasetInfo(vars(model.module)["pretrained_cfg"]["label_names"])
    assert model.label_names == tuple(info.index_to_label_name(index) for index in range(12))


@pytest.mark.slow
def test_a_model_of_imagenet_1k_has_timms_names():
    model = load_model("deit_tiny_patch16_224", random_init=0)
    assert model.label_names == tuple(ImageNetInfo("imagenet-1k").label_names())
    assert model.label_descriptions is not None
    assert model.label_descriptions["n01440764"].startswith("tench")


@pytest.mark.parametrize("cfg", [{}, {"tag": None}, {"tag": "in22k"}, {"tag": "in12k"}])
def test_a_thousand_other_classes_have_no_names(cfg):
    assert labels_of(cfg, 1000) == (None, None)
    assert labels_of({"tag": "ms_in22k_ft_in1k"}, 1001) == (None, None)
    assert labels_of({"tag": "ms_in22k_ft_in1k"}, 1000)[0] is not None


def test_a_module_without_configuration():
    with pytest.raises(UserError, match=r"has no pretrained_cfg, .*make it by timm\.create_model"):
        as_model(VisionTransformer(**VIT), "bare")


def test_the_reference_manual_lists_the_tables():
    text = (Path(__file__).parents[2] / "docs/guide/models.md").read_text()
    for title, table in (("config.json", TOP), ("pretrained_cfg", PRETRAINED_CFG), ("model_args", MODEL_ARGS)):
        section = text.split(f"## {title}\n")[1].split("\n## ")[0]
        rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| `")]
        listed = {name.strip("` "): (use, why) for names, use, why in rows for name in names.split(", ")}
        assert listed == table


@pytest.mark.parametrize("args", [{}, {"reg_tokens": 2, "no_embed_class": True}, {"img_size": [16, 24]}])
def test_another_image_size_is_what_timm_makes_of_the_model(tmp_path, args):
    module = save_model(tmp_path / "model", args=args)
    module.set_input_size((24, 32))

    model = load_model(f"local-dir:{tmp_path / 'model'}", image_size=(24, 32))

    assert (model.preprocessing.height, model.preprocessing.width) == (24, 32)
    assert any("pos_embed" in remark and "resampled" in remark for remark in model.remarks)
    images = torch.rand(2, 3, 24, 32)
    with torch.inference_mode():
        torch.testing.assert_close(model.module(images), module(images))


def test_another_image_size_is_built_and_compared(tmp_path):
    save_model(tmp_path / "model")
    np.savez(tmp_path / "images.npz", images=np.random.default_rng(0).integers(0, 256, (4, 24, 32, 3), dtype=np.uint8))
    model, data, built = f"local-dir:{tmp_path / 'model'}", tmp_path / "images.npz", tmp_path / "x.eam"

    done = eamsim("build", model, "-o", built, "--calib", data, "--image-size", "24,32")
    assert done.code == 0, done.err
    assert eamsim("compare", built, model, "--data", data).code == 0
    wrong = eamsim("build", model, "-o", built, "--calib", data, "--image-size", "24x32")
    assert (wrong.code, "expected height and width in pixels, such as 224,160, got '24x32'" in wrong.err) == (2, True)
