"""Weights in every form that timm loads, and what is wrong with the others."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")

from local_models import save_model  # noqa: E402

from eamsim.errors import BadFile  # noqa: E402
from reference.models.load import Model, load_model  # noqa: E402


def loaded(folder: Path, **options) -> Model:
    return load_model(f"local-dir:{folder}", **options)


def assert_same_weights(module, other):
    other = other.state_dict()
    assert module.state_dict().keys() == other.keys()
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, other[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["model.", "module.", "state_dict.", "_orig_mod.", "model.module."])
def test_a_prefix_of_every_name_is_dropped(tmp_path, prefix, caplog):
    module = save_model(tmp_path, change=lambda state: {prefix + name: tensor for name, tensor in state.items()})
    model = loaded(tmp_path)
    assert_same_weights(model.module, module)
    for remark in model.remarks:
        assert remark in caplog.text


def test_a_prefix_of_some_names_is_part_of_them(tmp_path):
    save_model(tmp_path, change=lambda state: state | {"model.extra": torch.zeros(1)})
    with pytest.raises(BadFile, match=r"unknown tensor model\.extra; remove it"):
        loaded(tmp_path)


def with_microsofts_names(state):
    """As Microsoft's and old timm's Swin: merging at the end of a stage, the classifier without `fc`, buffers."""
    renamed = {name.replace("head.fc.", "head.").replace("layers.1.downsample", "layers.0.downsample"): x for name, x in state.items()}
    return renamed | {
        "layers.0.blocks.0.attn.relative_position_index": torch.zeros(16, 16, dtype=torch.long),
        "layers.0.blocks.1.attn_mask": torch.zeros(4, 16, 16),
    }


def test_old_swin_names_and_buffers(tmp_path, caplog):
    module = save_model(tmp_path, "swin", change=with_microsofts_names)
    model = loaded(tmp_path)
    assert_same_weights(model.module, module)
    assert [remark.split(",")[0] for remark in model.remarks] == ["weights: 5 tensors were renamed", "weights: 2 tensors were dropped"]
    assert "relative_position_index" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(("here", "there"), [(16, 32), (32, 16), ([16, 32], 16), (16, [8, 64]), ([16, 64], 32), (32, [16, 64])])
def test_a_position_table_of_another_size_is_resampled_as_timm_does(tmp_path, here, there):
    save_model(tmp_path / "here", args={"img_size": here})
    save_model(tmp_path / "there", args={"img_size": there})
    model = loaded(tmp_path / "here", weights=f"local-dir:{tmp_path / 'there'}")
    expected = timm.create_model(f"local-dir:{tmp_path / 'there'}", pretrained=True, img_size=here)
    assert_same_weights(model.module, expected)
    (remark,) = model.remarks
    assert remark.startswith("weights: pos_embed [1, ")
    assert "was resampled from [1, " in remark


def test_a_swins_bias_tables_and_a_patch_of_another_size_are_resampled(tmp_path):
    save_model(tmp_path / "here", "swin", args={"img_size": 32, "patch_size": 4, "window_size": 2})
    save_model(tmp_path / "there", "swin", args={"img_size": 32})
    model = loaded(tmp_path / "here", weights=f"local-dir:{tmp_path / 'there'}")
    names = {remark.split()[1] for remark in model.remarks}
    assert names == {"patch_embed.proj.weight"} | {
        f"layers.{i}.blocks.{j}.attn.relative_position_bias_table" for i in range(2) for j in range(2)
    }


def test_weights_of_the_model_itself_leave_nothing_to_remark(tmp_path):
    for kind in ("vit", "swin"):
        module = save_model(tmp_path / kind, kind)
        model = loaded(tmp_path / kind)
        assert_same_weights(model.module, module)
        assert model.remarks == ()


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16, torch.float64])
def test_every_float_is_converted(tmp_path, kind):
    module = save_model(tmp_path, change=lambda state: {name: tensor.to(kind) for name, tensor in state.items()})
    assert_same_weights(loaded(tmp_path).module, module.to(kind).float())


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "named"), [(torch.int8, "int8"), (torch.bool, "bool"), (torch.complex64, "complex64")])
@pytest.mark.parametrize("name", ["blocks.1.mlp.fc2.weight", "pos_embed", "patch_embed.proj.weight"])
def test_what_is_no_float_is_refused_by_name(tmp_path, kind, named, name):
    save_model(tmp_path, change=lambda state: state | {name: state[name].to(kind)})
    with pytest.raises(BadFile, match=rf"{name.replace('.', '[.]')} holds {named}, expected floats"):
        loaded(tmp_path)


def test_integers_under_an_old_name_are_refused_too(tmp_path):
    def change(state):
        state = with_microsofts_names(state)
        return state | {"head.weight": state["head.weight"].to(torch.int8)}

    save_model(tmp_path, "swin", change=change)
    with pytest.raises(BadFile, match=r"head\.fc\.weight holds int8"):
        loaded(tmp_path)


def test_a_weight_too_large_for_its_type_names_that_cause(tmp_path):
    save_model(tmp_path, change=lambda state: state | {"head.bias": torch.full((5,), 1e6).half()})
    with pytest.raises(BadFile, match=r"head\.bias holds NaN or infinite values; .*float16 ends at 65504"):
        loaded(tmp_path)


def test_what_timms_conversion_cannot_take_is_refused(tmp_path):
    save_model(tmp_path, change=lambda state: state | {"pos_embed": torch.zeros(1, 12, 24)})
    with pytest.raises(BadFile, match=r"timm cannot fit its tensors to the model \("):
        loaded(tmp_path)


def test_an_entry_that_is_no_tensor(tmp_path):
    module = save_model(tmp_path)
    torch.save(dict(module.state_dict()) | {"epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(BadFile, match=r"w\.pth: epoch is of type int, expected tensors alone"):
        loaded(tmp_path, weights=str(tmp_path / "w.pth"), allow_pickle=True)


def test_averaged_weights_are_taken_and_said(tmp_path):
    module = save_model(tmp_path)
    last, averaged = module.state_dict(), {name: tensor / 2 for name, tensor in module.state_dict().items()}
    torch.save({"state_dict": last, "state_dict_ema": averaged}, tmp_path / "w.pth")
    torch.save({"state_dict": last}, tmp_path / "last.pth")
    model = loaded(tmp_path, weights=str(tmp_path / "w.pth"), allow_pickle=True)
    assert torch.equal(model.module.head.weight, averaged["head.weight"])
    assert [remark for remark in model.remarks if "(EMA)" in remark]
    assert loaded(tmp_path, weights=str(tmp_path / "last.pth"), allow_pickle=True).remarks == ()


@pytest.mark.parametrize("name", ["pytorch_model.pth", "model.pth"])
def test_a_folders_pickle_under_the_names_that_timm_looks_for(tmp_path, name):
    module = save_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(module.state_dict(), tmp_path / name)
    assert_same_weights(loaded(tmp_path, allow_pickle=True).module, module)
