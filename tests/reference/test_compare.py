"""The integers beside float and fake quantisation: numbers equal to plain NumPy, on a small ViT, a small Swin and trained networks."""

import json
from dataclasses import asdict, replace
from functools import cached_property
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from command_line import eamsim

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")

from eamsim import golden  # noqa: E402
from eamsim.engine import Engine  # noqa: E402
from eamsim.errors import BadFile, UserError  # noqa: E402
from eamsim.inputs.images import open_images  # noqa: E402
from eamsim.narrow import narrowed, widths_of  # noqa: E402
from eamsim.program import Linear  # noqa: E402
from eamsim.progress import unheard  # noqa: E402
from reference.attention.freeze import FrozenMap  # noqa: E402
from reference.crosscheck.compare import compare, decisions, paired, tap_names  # noqa: E402
from reference.crosscheck.noise_sources import NoiseSource, logits_with, noise_shares, sources_of  # noqa: E402
from reference.crosscheck.rebuild import rebuild  # noqa: E402
from reference.lowering.program import lower, provenance  # noqa: E402
from reference.models.load import as_model, load_model  # noqa: E402
from reference.quantisation.compensate import compensate  # noqa: E402
from reference.quantisation.fakequant import predict, quantise_frozen  # noqa: E402
from reference.quantisation.precision import Codes, Precision  # noqa: E402
from reference.quantisation.repq import calibrate  # noqa: E402

DIGITS = Path(str(files("eamsim") / "data" / "digits"))
VIT = ("vit_tiny_patch16_224", {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 5})
SWIN = (
    "swin_tiny_patch4_window7_224",
    {"img_size": 16, "patch_size": 2, "window_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "num_classes": 5},
)
CASES = [(VIT, None), (VIT, "paper"), (VIT, "renormalised"), (SWIN, None), (SWIN, "renormalised")]
CASES += [(VIT, None, True, "fitted"), (SWIN, "renormalised", False, "fitted")]

SHARED = Path(__file__).parents[3] / "shared"
TRAINED = {
    "deit_cifar10_d6": "cifar10_calib2500.npz",
    "swin_cifar10": "cifar10_calib2500.npz",
    "deit_tiny_imagenet": "imagenet_samples",
}


def images(count=6):
    coarse = np.random.default_rng(1).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return coarse.repeat(4, axis=1).repeat(4, axis=2)


class Case:
    """A calibrated model, its program (head 0 of each block wholly frozen, and some of the others), and both networks rebuilt."""

    def __init__(self, architecture, softmax, compensated=False, codes: Codes = "uniform"):
        torch.manual_seed(0)
        name, settings = architecture
        module = timm.create_model(name, **settings)
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        self.model = as_model(module.eval(), "small")
        self.calibrated = calibrate(self.model, images(), precision=Precision(codes))
        if compensated:
            self.calibrated = compensate(self.calibrated, [images(24)], unheard)
        self.frozen, self.softmax = (None if softmax is None else self._frozen()), softmax or "paper"
        self.program = lower(self.calibrated, self.frozen, self.softmax)
        self.provenance = provenance(self.calibrated)
        self.rebuilt = rebuild(self.program, self.provenance, self.model)

    def _frozen(self):
        rng, found = np.random.default_rng(2), []
        for block, maps in zip(self.model.network.blocks, self.model.network.maps, strict=True):
            mask = rng.random(maps.shape) < 0.3
            mask[:: block.heads] = True
            found.append(FrozenMap(mask, rng.dirichlet(np.ones(maps.shape[2]), maps.shape[:2])))
        return found

    def run(self, batch, program=None):
        taps = [{} for _ in batch]
        for image, found in zip(batch, taps, strict=True):
            golden.run(program or self.program, image, found)
        return {name: np.stack([np.asarray(each[name]) for each in taps]) for name in tap_names(self.rebuilt)}

    @cached_property
    def result(self):
        return self.compare()

    def compare(self, program=None, batch=2):
        rebuilt = self.rebuilt if program is None else rebuild(program, self.provenance, self.model)
        pixels = images()
        batches = [pixels[start : start + batch] for start in range(0, len(pixels), batch)]
        return compare(rebuilt, batches, lambda each: self.run(each, program), None, unheard)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join([case[0][0][:4], *map(str, case[1:])]))
def case(request):
    return Case(*request.param)


@pytest.mark.slow
def test_the_float_network_in_the_programs_units_is_the_float_network(case):
    np.testing.assert_allclose(case.rebuilt.float_logits(images()), predict(case.model, images()), rtol=1e-9)  # floats, another order


def test_the_rebuilt_quantisers_are_those_of_the_build(case):
    """Weights' and zero points' codes exactly; scales to what a multiplier of 16 bits holds, of the heads that the program has."""
    for name, dense in case.calibrated.denses.items():
        op = case.rebuilt.operations[name]
        found, wanted = case.rebuilt.fake.weights[name], case.calibrated.weights[name]
        rows = found.scale.flatten() != 1 if name.endswith("qkv") else slice(None)
        assert op.weight.shape[1] == len(found.scale[rows])
        codes = found.codes(case.rebuilt.fake.denses[name].weight)[rows]
        np.testing.assert_array_equal(codes, wanted.codes(dense.weight)[rows])
        np.testing.assert_array_equal(case.rebuilt.fake.bias_codes(name)[rows], case.calibrated.bias_codes(name)[rows])
        precision = 2.0**-14 if name != "head" else 0.1  # the head's common scale is fitted
        np.testing.assert_allclose(found.scale.flatten()[rows], wanted.scale.flatten()[rows], rtol=precision)


@pytest.mark.slow
def test_fake_quantisation_is_that_of_the_build(case):
    """The same decisions, and but for the fitted scale the same logits, of what was calibrated and what was read back."""
    frozen = None if case.frozen is None else quantise_frozen(case.calibrated, case.frozen)
    wanted, found = predict(case.calibrated, images(), frozen, case.softmax), case.rebuilt.fake_logits(images())
    assert np.corrcoef(wanted.ravel(), found.ravel())[0, 1] > 0.99  # a code at a tie may fall the other way


@pytest.mark.slow
def test_rows_equal_plain_numpy(case):
    expect_plain_numpy(case.rebuilt, case.provenance, images(), case.run(images()), case.result)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_rows_of_trained_networks_equal_plain_numpy(name):
    """Of two photographs, in the engine."""
    folder, data = SHARED / "models" / name, SHARED / "data" / TRAINED[name]
    if not (folder.exists() and data.exists()):
        pytest.skip(f"needs models/{name} and data/{data.name} of ../shared")
    model = load_model(f"local-dir:{folder}")
    pixels = next(iter(open_images([data], model.preprocessing).batches(2)))
    calibrated = calibrate(model, pixels)
    program, said = lower(calibrated), provenance(calibrated)
    rebuilt = rebuild(program, said, model)
    names, engine = tap_names(rebuilt), Engine(program)

    def run(batch):
        return engine.run(batch, taps=lambda each: each in names)[1]

    result = compare(rebuilt, [pixels[:1], pixels[1:]], run, None, unheard)
    expect_plain_numpy(rebuilt, said, pixels, run(pixels), result)


def expect_plain_numpy(rebuilt, provenance, pixels, taps, result):
    """The rows of the last block and the decisions, computed anew from all images at once."""
    rows = {row["value"]: row for row in result["values"]}
    own, seen = {}, {}
    rebuilt.float_logits(pixels, lambda name, x: own.setdefault(name, x))
    fake = rebuilt.fake_logits(pixels, lambda name, x: seen.setdefault(name, x))
    last = len(rebuilt.model.network.blocks) - 1
    for name in (f"block{last}.norm1", f"block{last}.mlp.fc1", f"block{last}.mlp.fc2"):
        code, grid = taps[name], provenance["activations"].get(name)
        code = code.reshape(len(code), -1, own[name].shape[-1])
        expected, found = (each[name].numpy()[:, : code.shape[1]] for each in (own, seen))
        if grid:
            top = (1 << grid["bits"]) - 1
            levels = np.array(grid["levels"] if "levels" in grid else np.arange(top + 1) - grid["zero"])
            value, other = levels[code] * grid["scale"], np.searchsorted(levels, np.rint(found / grid["scale"]))
            assert rows[name]["codes_differ"] == (other != code).mean()
            assert (rows[name]["at_low"], rows[name]["at_high"]) == ((code == 0).mean(), (code == top).mean())
        else:
            value = code * 2.0 ** provenance["stream_log2_scales"][name]
            assert rows[name]["codes_differ"] is None
        noise = ((value - expected) ** 2).sum()
        cosine = (value * expected).sum() / np.sqrt((value**2).sum() * (expected**2).sum())
        np.testing.assert_allclose(rows[name]["snr_db"], 10 * np.log10((expected**2).sum() / noise), rtol=1e-9)
        np.testing.assert_allclose(rows[name]["cosine"], cosine, rtol=1e-9)
    chosen = taps["head"].reshape(len(fake), -1).argmax(axis=1)
    assert result["decisions"]["fake"]["differ"] == (chosen != fake.argmax(axis=1)).mean()
    logits = rebuilt.float_logits(pixels)
    np.testing.assert_allclose(result["fake_logits_snr_db"], 10 * np.log10((logits**2).sum() / ((logits - fake) ** 2).sum()), rtol=1e-9)


def test_every_value_is_near_its_own(case):
    """A value laid beside another's, in another order of heads, windows or channels, would have no likeness to it at all."""
    for row in case.result["values"]:
        assert row["fake_snr_db"] is None or row["fake_snr_db"] > 3, row
    assert next(row for row in case.result["values"] if row["value"] == "input")["codes_differ"] == 0


@pytest.mark.slow
def test_batches_do_not_matter(case):
    one, all_at_once = case.result, case.compare(batch=6)
    for row, other in zip(one["values"], all_at_once["values"], strict=True):
        assert row["codes_differ"] == other["codes_differ"]
        assert row["snr_db"] == pytest.approx(other["snr_db"], rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [VIT, SWIN], ids=["vit", "swin"])
def test_a_planted_fault_is_seen_where_it_stands(architecture):
    case = Case(architecture, None)
    operations = list(case.program.operations)
    index = next(i for i, op in enumerate(operations) if op.out.name == "block1.mlp.fc2")
    fc2 = operations[index]
    assert isinstance(fc2, Linear)
    weight, read = fc2.weight.copy(), case.run(images())[fc2.x].astype(int)
    weight[np.abs(read - fc2.x_zero).sum(axis=(0, 1)).argmax(), 0] ^= 8  # one code, of the channel that counts most
    operations[index] = replace(fc2, weight=weight)
    healthy, faulty = case.result["values"], case.compare(replace(case.program, operations=tuple(operations)))["values"]
    changed = [(a["value"], a["snr_db"], b["snr_db"]) for a, b in zip(healthy, faulty, strict=True) if a["snr_db"] != b["snr_db"]]
    name, before, after = changed[0]
    assert name == "block1.mlp.fc2"
    assert after < before


@pytest.mark.slow
def test_compensated_programs_are_compared_with_their_own_weights():
    case = Case(VIT, None, compensated=True)
    for row in case.result["values"]:
        assert row["fake_snr_db"] is None or row["fake_snr_db"] > 3, row


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [VIT, SWIN], ids=["vit", "swin"])
def test_narrowed_programs_are_compared_in_their_own_units(architecture):
    """12 bits of residual stream and of multipliers, 6 of GELU's index: nearer to fake quantisation than any wrong power of two."""
    case = Case(architecture, "renormalised")
    widths = replace(widths_of(case.program), residual_bits=12, multiplier_bits=12, gelu_index_bits=6)
    case.program = narrowed(case.program, widths)
    case.rebuilt = rebuild(case.program, case.provenance | {"narrowed": asdict(widths)}, case.model)
    for row in case.result["values"]:
        assert row["fake_snr_db"] is None or row["fake_snr_db"] > 3, row
    stream, op = case.rebuilt.streams["block0.mlp.fc2"], case.rebuilt.operations["block0.mlp.fc2"]
    assert stream == 2.0 ** case.provenance["stream_log2_scales"]["block0.mlp.fc2"] * 16
    assert op.out.bits == 12


@pytest.mark.slow
def test_sources(case):
    """Nothing for a quantiser that is switched off; each of one source, as plain NumPy has it; both halves of all are among them."""
    sources = sources_of(case.rebuilt)
    off = NoiseSource("off")
    shares = {row["source"]: row["share"] for row in noise_shares(case.rebuilt, [off, *sources], [images()[:3], images()[3:]], unheard)}
    assert shares.pop("off") == 0
    assert min(shares.values()) > 0
    assert ("frozen maps" in shares) == (case.frozen is not None)
    own, found = case.rebuilt.float_logits(images()), logits_with(case.rebuilt, sources[-1], images())
    noise, signal = found - own - (found - own).mean(axis=1)[:, None], own - own.mean(axis=1)[:, None]
    assert shares["all weights"] == pytest.approx((noise**2).sum() / (signal**2).sum(), rel=1e-9)
    sites = set().union(*(source.sites for source in sources[:-2]))
    assert any(source.positions for source in sources[:-2]) == hasattr(case.model.network, "windows")
    assert (sites, set(case.rebuilt.fake.weights)) == (sources[-2].sites, set().union(*(source.layers for source in sources[:-2])))


def test_accuracies_have_the_standard_error_of_the_pairs():
    """Labels are the program's own decisions but for the first image's: it is right on all others, and each network where it agrees."""
    case = Case(VIT, None)
    chosen = case.run(images())["head"].reshape(6, -1).argmax(axis=1)
    labels = np.where(np.arange(6) == 0, (chosen + 1) % 5, chosen)
    result = compare(case.rebuilt, [images()], case.run, labels, unheard)
    right = {"program": np.arange(6) > 0}
    right |= {
        name: run(images()).argmax(axis=1) == labels
        for name, run in [("float", case.rebuilt.float_logits), ("fake", case.rebuilt.fake_logits)]
    }
    assert result["top1"] == {name: each.mean() for name, each in right.items()}
    assert result["top1_change"] == {name: paired(right["program"], right[name]) for name in ("float", "fake")}
    gained = paired(np.array([True, True, False, True]), np.array([True, False, True, False]))
    assert gained == {"mean": 0.25, "standard_error": pytest.approx(np.std([0, 1, -1, 1]) / 2)}


def test_decisions():
    program, other = np.array([[1.0, 3], [2, 1], [0, 1]]), np.array([[5.0, 1], [2, 1], [4, 2]])
    assert decisions(program, other) == {"differ": 2 / 3, "margin_mean": 3, "margin_max": 4}
    assert decisions(other, other) == {"differ": 0, "margin_mean": None, "margin_max": None}


@pytest.mark.slow
def test_what_cannot_be_rebuilt_is_refused_by_name():
    case = Case(VIT, None)
    with pytest.raises(BadFile, match="lacks the scales of its values"):
        rebuild(case.program, {}, case.model)
    with pytest.raises(UserError, match="give the model"):
        rebuild(case.program, case.provenance, Case(SWIN, None).model)


@pytest.mark.slow
def test_the_command(tmp_path):
    arguments = ["compare", DIGITS / "digits.eam", f"local-dir:{DIGITS}", "--data", DIGITS / "digits_test.npz", "--limit", "8"]
    done = eamsim(*arguments, "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert result["values"][-1]["value"] == "head"
    assert set(result["top1"]) == {"program", "float", "fake"}
    assert set(result["top1_change"]) == {"float", "fake"}
    pytest.importorskip("matplotlib", reason="needs the extra 'plot'")
    file, page = tmp_path / "c.json", tmp_path / "r.html"
    file.write_text(done.out)
    assert eamsim("plot", "compare", file, "-o", tmp_path).code == 0
    assert (tmp_path / "compare.svg").exists()
    assert eamsim("report", DIGITS / "digits.eam", "--hw", "small-npu", "--compare", file, "-o", page).code == 0
    assert f"decide otherwise than the float model on {result['decisions']['float']['differ']:.2%}" in page.read_text()
    assert 'id="figure-comparison"' in page.read_text()


@pytest.mark.parametrize("rows", [[], [{"value": "head", "snr_db": "loud"}], [{"value": "head"}]])
def test_what_is_no_comparison_is_refused(tmp_path, rows):
    pytest.importorskip("matplotlib", reason="needs the extra 'plot'")
    whole = {"images": 1, "values": rows, "decisions": {"float": {"differ": 0}, "fake": {"differ": 0}}, "top1": None}
    (tmp_path / "c.json").write_text(json.dumps(whole))
    done = eamsim("plot", "compare", tmp_path / "c.json", "-o", tmp_path)
    assert (done.code, "c.json: not a comparison" in done.err, "values" in done.err) == (3, True, True)


def test_the_command_refuses_another_model():
    other = ["compare", DIGITS / "digits.eam", f"local-dir:{DIGITS}", "--data", DIGITS / "digits_test.npz", "--random-init", "0"]
    done = eamsim(*other)
    assert (done.code, "other weights" in done.err) == (2, True)
