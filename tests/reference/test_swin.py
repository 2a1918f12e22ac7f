import json
from dataclasses import replace
from importlib.util import find_spec
from shutil import which

import numpy as np
import pytest
from command_line import eamsim

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")

from safetensors.torch import save_file  # noqa: E402

from eamsim.cli.output import progress  # noqa: E402
from eamsim.errors import UserError  # noqa: E402
from eamsim.inputs.images import open_images  # noqa: E402
from eamsim.jobs.search.budget import make_rungs  # noqa: E402
from eamsim.jobs.sweep_table import read_sweep  # noqa: E402
from reference.attention.collect import attention_statistics, frozen_maps, maps_of, scores  # noqa: E402
from reference.attention.freeze import Freezing, FrozenMap  # noqa: E402
from reference.attention.statistics_file import read_statistics  # noqa: E402
from reference.models.load import as_model  # noqa: E402
from reference.models.swin import excluded_pairs, merging_order, window_order  # noqa: E402
from reference.quantisation.fakequant import collect_maps, predict  # noqa: E402
from reference.quantisation.precision import Precision  # noqa: E402
from reference.quantisation.repq import calibrate  # noqa: E402

SMALL = {"img_size": 16, "patch_size": 2, "window_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "num_classes": 5}
READERS = [*(name for name in ("onnxruntime", "onnx") if find_spec(name)), *(["c"] if which("cc") else [])]
"""Of the exports, besides golden and engine."""
SHIFTED = 1  # the block of four windows, three of which hold excluded pairs


def small_module(**changes):
    torch.manual_seed(0)
    module = timm.create_model("swin_tiny_patch4_window7_224", **(SMALL | changes))
    for name, parameter in module.named_parameters():
        torch.nn.init.uniform_(parameter, 0.5, 1.5) if "norm" in name and "weight" in name else torch.nn.init.normal_(parameter, std=0.3)
    return module.eval()


def random_images(count, size=16):
    return np.random.default_rng(1).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def model():
    return as_model(small_module(), "small")


@pytest.fixture(scope="module")
def calibrated(model):
    return calibrate(model, random_images(8))


@pytest.fixture(scope="module")
def images(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "images.npz"
    np.savez(path, images=random_images(12))
    return open_images([path], model.preprocessing)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"img_size": 32, "window_size": 2, "depths": [2, 2, 2], "num_heads": [1, 2, 4]},
        {"img_size": 24, "window_size": (3, 4), "depths": [3], "num_heads": [4]},
        {"img_size": 24, "window_size": (6, 12), "depths": [2], "num_heads": [2]},
        {"patch_size": 4, "window_size": 7, "qkv_bias": False, "mlp_ratio": 2.0},
    ],
)
def test_our_forward_pass_is_timms(changes):
    model = as_model(small_module(**changes), "small")
    images = random_images(3, model.preprocessing.height)
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (model.mean, model.std))

    with torch.inference_mode():
        expected = model.module((torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std)

    np.testing.assert_allclose(predict(model, images), expected, atol=1e-5 * expected.abs().max().item())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window_size": 3}, r"windows that do not divide the map \(8 x 8 tokens, windows of 3 x 3\)"),
        ({"img_size": 18, "window_size": 9}, r"the merging of a map of odd sides \(9 x 9 tokens\)"),
        ({"always_partition": True}, "always_partition"),
        ({"dynamic_img_size": True}, "a dynamic image size"),
        ({"global_pool": "max"}, "pooling by 'max'"),
        ({"num_classes": 0}, "a model without classifier"),
        ({"head_dim": 4}, "an attention width other than the model's"),
        ({"in_chans": 1}, "images of other than three channels"),
    ],
)
def test_features_a_plain_swin_does_not_have_are_refused_by_name(changes, message):
    with pytest.raises(UserError, match=f"^model 'odd': {message} is not supported; `eamsim models` lists what is, swin_tiny"):
        as_model(timm.create_model("swin_tiny_patch4_window7_224", **(SMALL | changes)), "odd")


def test_windows_of_a_shifted_map_by_hand():
    order = window_order((4, 4), (2, 2), (1, 1))
    excluded = excluded_pairs((4, 4), (2, 2), (1, 1))

    assert order.tolist() == [[5, 6, 9, 10], [7, 4, 11, 8], [13, 14, 1, 2], [15, 12, 3, 0]]
    assert excluded is not None
    none, other_rows, other_columns = np.zeros((4, 4)), [[0, 0, 1, 1]] * 2 + [[1, 1, 0, 0]] * 2, [[0, 1, 0, 1], [1, 0, 1, 0]] * 2
    np.testing.assert_array_equal(excluded, [none, other_columns, other_rows, 1 - np.eye(4)])
    assert excluded_pairs((4, 4), (2, 2), (0, 0)) is None


def test_merged_neighbours_are_joined_column_by_column():
    assert merging_order((2, 4)).tolist() == [[0, 4, 1, 5], [2, 6, 3, 7]]


def test_maps_are_one_per_head_of_each_window_or_one_per_head(model):
    own, shared = maps_of(model.network, False), maps_of(model.network, True)

    assert [each.shape for each in own] == [(8, 16, 16), (8, 16, 16), (4, 16, 16), (4, 16, 16)]
    assert [each.shape for each in shared] == [(2, 16, 16), (2, 16, 16), (4, 16, 16), (4, 16, 16)]
    assert [each.per_image for each in shared] == [4, 1, 1, 1]
    assert [each.excluded is not None for each in own] == [False, True, False, False]


def test_windows_can_be_shared_by_a_swin_alone():
    vit = as_model(timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=4, embed_dim=24, depth=1, num_heads=2), "vit")

    with pytest.raises(UserError, match="--share-windows: expected a Swin, got a model without windows; leave it out"):
        maps_of(vit.network, True)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["hardware", "published"])
def test_reparametrisation_reaches_the_merging_and_leaves_the_float_network_as_it_was(model, mode):
    images = random_images(8)
    calibrated = calibrate(model, images, mode)
    before, after = (network(torch.from_numpy(images)) for network in (model.network, calibrated.network))

    np.testing.assert_allclose(after, before, atol=1e-3 * before.abs().max().item())
    assert calibrated.activations["block2.merge.norm"].scale.ndim == 0
    reductions = [network.layers["block2.merge.reduction"] for network in (model.network, calibrated.network)]
    assert not torch.equal(reductions[0].bias, reductions[1].bias)
    assert {"norm", "embed", "patch_embed"} <= calibrated.stream_max.keys()
    assert "pool" in calibrated.activations


@pytest.mark.slow
def test_fake_quantisation_with_many_bits_is_the_float_network(model):
    images = random_images(8)
    logits = predict(model, images)

    np.testing.assert_allclose(
        predict(calibrate(model, images, "hardware", Precision(weight_bits=14, activation_bits=14)), images),
        logits,
        atol=0.1 * np.abs(logits).max(),
    )


def test_q_is_scaled_before_its_quantiser(model):
    seen = {}
    model.network(torch.from_numpy(random_images(2)), lambda name, x: seen.setdefault(name, x))
    windows, block = model.network.windows[0], model.network.blocks[0]
    normalised = seen["block0.norm1"][:, windows.order]
    q = block.qkv(normalised)[..., :16].unflatten(3, (2, 8)).transpose(2, 3).flatten(1, 2)

    np.testing.assert_allclose(seen["block0.attn.q"], q / 8**0.5, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_relative_positions_are_integers_of_the_score_in_hardware_mode(calibrated):
    for i, windows in enumerate(calibrated.quantised.windows):
        codes = windows.logit_bias / calibrated.score_scale(i)
        np.testing.assert_allclose(codes, codes.round(), atol=1e-3)
        np.testing.assert_array_equal(codes.round(), calibrated.logit_bias_codes(i, calibrated.network.windows[i]))


def test_excluded_pairs_weigh_nothing(calibrated, model):
    """Not even where the grid's last code is no zero, nor where all other weights of a row are frozen."""
    grids = tuple(replace(grid, last_code_is_zero=False) for grid in calibrated.attention)
    frozen = [FrozenMap(np.zeros(maps.shape, bool), np.zeros(maps.shape)) for maps in model.network.maps]
    excluded = model.network.maps[SHIFTED].excluded
    frozen[SHIFTED] = FrozenMap(~excluded, np.full(excluded.shape, 1 / 16))
    contexts = {}

    def site(name, x):
        contexts[name] = x
        return x

    def attend(block, weights):
        return torch.from_numpy(np.full(weights.shape, 1 / 16))

    calibrated.network(torch.from_numpy(random_images(2)), site, attend)
    v, context = contexts["block1.attn.v"], contexts["block1.attn"]
    expected = (torch.from_numpy(~excluded).double() / 16 @ v).unflatten(1, (4, 2)).transpose(2, 3).reshape(context.shape)
    np.testing.assert_allclose(context[:, model.network.windows[SHIFTED].order.flatten()], expected, rtol=1e-5, atol=1e-6)
    for softmax in ("paper", "renormalised"):
        assert np.isfinite(predict(replace(calibrated, attention=grids), random_images(2), frozen, softmax)).all()


@pytest.mark.slow
@pytest.mark.parametrize("order", ["entropy", "variance", "output", "random"])
def test_excluded_pairs_are_never_frozen_and_do_not_count(calibrated, images, order):
    statistics = attention_statistics(calibrated, images, progress, [order])

    for maps, layer in zip(calibrated.network.maps, frozen_maps(statistics, Freezing(0.3, order=order)), strict=True):
        live = np.ones(maps.shape, bool) if maps.excluded is None else ~maps.excluded
        assert not (layer.mask & ~live).any()
        assert [int(mask.sum()) for mask in layer.mask] == [round(0.3 * int(each.sum())) for each in live]
    assert np.isinf(scores(statistics, Freezing(0.3))[SHIFTED]).sum() == calibrated.network.maps[SHIFTED].excluded.sum()


def test_everything_frozen_is_everything_but_the_excluded_pairs(calibrated, images):
    frozen = frozen_maps(attention_statistics(calibrated, images, progress), Freezing(1, "row"))

    np.testing.assert_array_equal(frozen[SHIFTED].mask, ~calibrated.network.maps[SHIFTED].excluded)


def test_shared_maps_are_measured_on_the_windows_without_excluded_pairs(calibrated, images):
    seen = {}
    collect_maps(calibrated, images.batches(12), lambda block, maps: seen.setdefault(block, maps.copy()))
    statistics = attention_statistics(calibrated, images, progress, maps=calibrated.network.shared_maps)

    for block, heads in enumerate((2, 2, 4, 4)):
        maps = seen[block].reshape(12, -1, heads, 16, 16)
        whole = maps[:, :1] if block == SHIFTED else maps
        np.testing.assert_allclose(statistics.mean[block], whole.mean(axis=(0, 1), dtype=np.float64), rtol=1e-6)
        assert statistics.samples[block] == 12 * whole.shape[1]


def test_a_shared_map_is_the_same_map_in_every_window(calibrated, images):
    shared = frozen_maps(attention_statistics(calibrated, images, progress, maps=calibrated.network.shared_maps), Freezing(0.4))
    repeated = [
        FrozenMap(*(np.tile(array, (maps.shape[0] // len(layer.mask), 1, 1)) for array in (layer.mask, layer.mean)))
        for layer, maps in zip(shared, calibrated.network.maps, strict=True)
    ]

    for softmax in ("paper", "renormalised"):
        found = predict(calibrated, random_images(3), shared, softmax)
        np.testing.assert_array_equal(found, predict(calibrated, random_images(3), repeated, softmax))


def test_the_output_of_shared_maps_changes_by_what_all_windows_change(calibrated, images):
    """The first block has no excluded pairs: freezing one map in all windows changes the sum of what freezing it in each would."""
    maps = calibrated.network.maps, calibrated.network.shared_maps
    own, shared = (attention_statistics(calibrated, images, progress, ["output"], each).change for each in maps)
    assert own is not None
    assert shared is not None
    frozen = np.full((2, 16, 16), 1 / 16)

    expected = own.rows(0, np.tile(frozen, (4, 1, 1))).reshape(4, 2, 16, 16).sum(axis=0)
    np.testing.assert_allclose(shared.rows(0, frozen), expected, rtol=1e-5)


@pytest.fixture
def folder(tmp_path):
    config = {"architecture": "swin_tiny_patch4_window7_224", "num_classes": 5, "model_args": SMALL}
    config["pretrained_cfg"] = {"input_size": [3, 16, 16], "mean": [0.5] * 3, "std": [0.25] * 3, "num_classes": 5}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(small_module().state_dict(), tmp_path / "model.safetensors")
    np.savez(tmp_path / "data.npz", images=random_images(8), labels=np.arange(8) % 5)
    return tmp_path


@pytest.mark.slow
def test_the_commands_take_a_swin(folder):
    source, data = f"local-dir:{folder}", folder / "data.npz"
    own, shared = folder / "own.eam", folder / "shared.eam"
    options = ("--calib", data, "--softmax", "renormalised", "--tau", "0.5")

    assert eamsim("build", source, *options, "-o", own).code == 0
    assert eamsim("build", source, *options, "--share-windows", "--granularity", "head", "--scope", "layer", "-o", shared).code == 0
    assert shared.stat().st_size < own.stat().st_size
    for path in (own, shared):
        verified = json.loads(eamsim("verify", path, "--data", data, "--images", "1", "--with", ",".join(READERS), "--json").out)
        assert verified["bit_exact"]
    for reader in ("engine", "golden"):
        assert eamsim("trace", "record", own, "--data", data, "--images", "1", "--by", reader, "-o", folder / f"{reader}.h5").code == 0
    assert json.loads(eamsim("trace", "diff", folder / "engine.h5", folder / "golden.h5", "--json").out)["equal"]
    (row,) = json.loads(eamsim("cost", own, "--json").out)["rows"]
    pairs, excluded = 2 * 8 * 256 + 2 * 4 * 256, 2 * (128 + 128 + 192)
    assert row["tau"] == pytest.approx(0.5, abs=0.001)
    assert row["tau_with_excluded"] == pytest.approx((0.5 * (pairs - excluded) + excluded) / pairs, abs=0.001)
    (row,) = json.loads(eamsim("cost", shared, "--json").out)["rows"]
    assert (row["granularity"], row["tau"]) == ("head", 0.5)
    assert row["macs_by_layer"]["qkv"] == (64 * 16**2 + 16 * 32**2) * 2 * 2  # of three projections the third, and half of the others


@pytest.mark.slow
def test_every_report_gives_tau_with_and_without_the_excluded_pairs(folder):
    source, data, swept = f"local-dir:{folder}", folder / "data.npz", folder / "sweep"
    pairs, excluded = 2 * 8 * 256 + 2 * 4 * 256, 2 * (128 + 128 + 192)

    built = json.loads(eamsim("build", source, "--calib", data, "--tau", "0.5", "-o", folder / "x.eam", "--json").out)["frozen"]
    assert built["tau"] == pytest.approx(0.5, abs=0.001)
    assert built["tau_with_excluded"] == pytest.approx(0.5 + 0.5 * excluded / pairs, abs=0.001)
    choices = ("--tau", "0,0.5", "--softmax", "paper", "--variant", "eam-4bits", "--on", "fakequant", "--workers", "1")
    assert eamsim("sweep", source, "--calib", data, "--data", data, *choices, "-o", swept).code == 0
    assert [(row.tau, row.tau_with_excluded) for row in read_sweep(swept / "sweep.csv")] == [
        (tau, pytest.approx(tau + (1 - tau) * excluded / pairs)) for tau in (0, 0, 0.5)
    ]


@pytest.mark.slow
def test_statistics_and_figures_of_a_swin(folder):
    source, data, out = f"local-dir:{folder}", folder / "data.npz", folder / "stats.h5"
    measured = json.loads(eamsim("entropy", source, "--calib", data, "-o", out, "--json").out)
    statistics = read_statistics(out)
    left_out = statistics.excluded[SHIFTED]

    assert (statistics.header.heads, statistics.header.excluded) == ((2, 2, 4, 4), (SHIFTED,))
    assert left_out is not None
    assert [(row["layer"], row["head"]) for row in measured["heads"]] == [
        (i, head) for i, heads in enumerate((2, 2, 4, 4)) for head in range(heads)
    ]
    bits = statistics.entropy["float"][SHIFTED][1::2][~left_out[1::2]]
    assert measured["heads"][3]["float"]["zero"] == (bits == 0).mean()
    assert measured["heads"][3]["excluded"] == pytest.approx((128 + 128 + 192) / 1024)
    figures = folder / "figures"
    for name in ("fig2", "fig3", "fig4"):
        assert eamsim("plot", name, out, "-o", figures).code == 0
    assert eamsim("plot", "fig1", source, "--image", data, "--layer", SHIFTED, "--calib", data, "-o", figures).code == 0
    assert sorted(path.name for path in figures.glob("*.png")) == ["fig1.png", "fig2.png", "fig3.png", "fig4.png"]


@pytest.mark.slow
@pytest.mark.parametrize("share", [(), ("--share-windows",)])
def test_a_budget_is_searched_over_the_heads_of_all_windows(folder, share):
    source, data, out = f"local-dir:{folder}", folder / "data.npz", folder / "x.eam"
    options = ("--granularity", "head,weight", "--save-macs", "8%", *share)
    found = json.loads(eamsim("build", source, "--calib", data, *options, "-o", out, "--json").out)
    (row,) = json.loads(eamsim("cost", out, "--json").out)["rows"]

    saved = row["macs_saved_full"] / (row["macs_saved_full"] + row["macs_full"])
    (chosen,) = (trial for trial in found["budget"]["trials"] if trial["chosen"])
    assert saved >= 0.08
    assert chosen["macs_saved"] == pytest.approx(saved)
    assert chosen["tau"] == pytest.approx(row["tau"])
    assert {(each["block"], each["head"]) for each in found["budget"]["heads"]} <= {
        (i, h) for i, n in enumerate((2, 2, 4, 4)) for h in range(n)
    }
    if not share:
        whole = [each for each in found["budget"]["heads"] if each["tau"] == 1]
        assert row["macs_by_layer"]["qkv"] == (64 * 16**2 + 16 * 32**2) * 2 * 3 - sum(
            (16384, 16384, 8192, 8192)[each["block"]] for each in whole
        )
    assert json.loads(eamsim("verify", out, "--data", data, "--images", "1", "--json").out)["bit_exact"]


def test_rungs_leave_excluded_pairs_out(calibrated, images):
    statistics = attention_statistics(calibrated, images, progress)
    rungs = make_rungs({name: scores(statistics, Freezing(0, name, "model")) for name in ("head", "row", "weight")}, (2, 2, 4, 4))
    live = ~calibrated.network.maps[SHIFTED].excluded

    assert [mask.shape for mask in rungs.masks[0]] == 4 * [(64, 16)] + 8 * [(16, 16)]
    for head in range(2):
        np.testing.assert_array_equal(rungs.masks[-1][2 + head], live[head::2].reshape(64, 16))
        assert not any((masks[2 + head] & ~live[head::2].reshape(64, 16)).any() for masks in rungs.masks)
    half = rungs.granularities.index("weight") + 1
    assert [int(rungs.masks[half][head].sum()) for head in (0, 4)] == [512, 128]
    assert ((rungs.shares >= 0) & (rungs.shares <= 1)).all()
