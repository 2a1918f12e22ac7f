import dataclasses
import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from command_line import eamsim
from same_taps import expect_engine_equals_golden

torch = pytest.importorskip("torch")
pytest.importorskip("timm")

from cost_model.work.counts import count  # noqa: E402
from eamsim import artifact, engine  # noqa: E402
from eamsim.cli.output import progress  # noqa: E402
from eamsim.errors import UserError  # noqa: E402
from eamsim.inputs.images import open_images  # noqa: E402
from eamsim.program import Attention  # noqa: E402
from reference.attention.collect import attention_statistics, calibrate_on, frozen_maps  # noqa: E402
from reference.attention.freeze import Freezing  # noqa: E402
from reference.lowering.program import LoweringConfig, lower  # noqa: E402
from reference.models.load import load_model  # noqa: E402
from reference.quantisation.fakequant import collect_attention  # noqa: E402

DIGITS = Path(str(files("eamsim") / "data" / "digits"))
CHOICES = [
    Freezing(0.3, "weight", order="output"),
    Freezing(0.3, "row", "model", "output"),
    Freezing(0.3, "column", order="variance"),
    Freezing(0.3, "tile:3x4", "layer", "output"),
    Freezing(0.3, "tile:4x4", order="random", seed=1),
    Freezing(0.3, "head", "model", "output"),
]


@pytest.fixture(scope="module")
def measured():
    """The calibrated digits model, its statistics, what freezing changes, and the maps and values both were made from."""
    model = load_model(f"local-dir:{DIGITS}")
    images = open_images([DIGITS / "digits_calib.npz"], model.preprocessing, 48)
    calibrated = calibrate_on(model, images, 32)
    statistics = attention_statistics(calibrated, images, progress, ["output"])
    seen = []
    collect_attention(calibrated, images.batches(48), lambda block, maps, values: seen.append((maps, values)))
    return calibrated, statistics, statistics.change, seen


def contributions(calibrated, block: int, values):
    """V W of every head: [images, heads, tokens, channels]."""
    weight = calibrated.network.blocks[block].proj.weight.unflatten(1, (calibrated.network.blocks[0].heads, -1))
    return torch.einsum("nhjc,ohc->nhjo", values, weight)


@pytest.mark.slow
def test_layers_one_at_a_time_give_the_same(measured, monkeypatch):
    calibrated, whole, change, _ = measured
    images = open_images([DIGITS / "digits_calib.npz"], calibrated.model.preprocessing, 48)
    monkeypatch.setattr("reference.attention.collect.STATISTICS_BYTES", 1)

    statistics = attention_statistics(calibrated, images, progress, ["output"])

    assert len(whole.maps) > 1
    assert statistics.samples == whole.samples
    for block in whole.maps:
        for name in ("entropy", "mean", "variance"):
            np.testing.assert_array_equal(getattr(statistics, name)[block], getattr(whole, name)[block])
        assert statistics.change is not None
        np.testing.assert_array_equal(statistics.change.rows(block, whole.mean[block]), change.rows(block, whole.mean[block]))


def test_rows_are_the_exact_mean_squared_change(measured):
    calibrated, statistics, change, seen = measured
    rng = np.random.default_rng(0)
    for block, (maps, values) in enumerate(seen):
        frozen = statistics.mean[block] + rng.normal(0, 0.01, statistics.maps[0].shape)
        difference = (maps - torch.from_numpy(frozen)) @ contributions(calibrated, block, values)
        expected = difference.square().sum(dim=3).mean(dim=0).numpy()
        if block == len(seen) - 1:
            expected[:, 1:] = 0

        np.testing.assert_allclose(change.rows(block, frozen).sum(axis=2), expected, rtol=1e-3, atol=1e-6 * expected.max())
        np.testing.assert_array_equal(np.ptp(change.rows(block, frozen), axis=2), 0)


def test_weights_are_the_variance_times_the_mean_squared_norm_of_what_they_multiply(measured):
    calibrated, statistics, change, seen = measured
    for block, (maps, values) in enumerate(seen):
        norm = contributions(calibrated, block, values).square().sum(dim=3).mean(dim=0).numpy()
        expected = maps.var(dim=0, correction=0).numpy() * norm[:, None, :]
        if block == len(seen) - 1:
            expected[:, 1:] = 0

        np.testing.assert_allclose(change.weights(block, statistics.variance[block]), expected, rtol=1e-2, atol=1e-5 * expected.max())


@pytest.mark.slow
def test_rows_of_the_last_block_that_nothing_reads_are_frozen_for_free(measured):
    calibrated, statistics, _, _ = measured
    unread = (statistics.maps[0].shape[1] - 1) / statistics.maps[0].shape[1] / len(calibrated.network.blocks)
    frozen = frozen_maps(statistics, Freezing(unread, "row", "model", "output"))

    assert [layer.mask.mean() for layer in frozen[:-1]] == [0] * (len(frozen) - 1)
    images = np.concatenate(list(open_images([DIGITS / "digits_test.npz"], calibrated.model.preprocessing, 8).batches(8)))
    every_row = LoweringConfig(keep_unread=True)
    dense, lighter = lower(calibrated, config=every_row), lower(calibrated, frozen, "renormalised", every_row)
    np.testing.assert_array_equal(engine.Engine(lighter, threads=1).run(images), engine.Engine(dense, threads=1).run(images))
    assert count(lighter).macs.scores < count(dense).macs.scores


@pytest.mark.slow
@pytest.mark.parametrize("softmax", ["paper", "renormalised"])
@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: f"{choice.granularity}-{choice.order}")
def test_every_granularity_runs_bit_exactly(measured, choice, softmax):
    calibrated, statistics, _, _ = measured
    program = lower(calibrated, frozen_maps(statistics, choice), softmax)
    images = np.concatenate(list(open_images([DIGITS / "digits_test.npz"], calibrated.model.preprocessing, 2).batches(2)))
    expect_engine_equals_golden(program, images)
    if choice.granularity == "head":
        kept = sum(len(op.score_heads) for op in program.operations if isinstance(op, Attention))
        heads = len(calibrated.network.blocks) * calibrated.network.blocks[0].heads
        # A wholly frozen Attention whose q has rows of its own keeps one head's.
        spared = sum(op.queries is not None and op.frozen is not None and op.frozen.mask.all() for op in program.attentions)
        assert kept == (heads if softmax == "paper" else heads - round(choice.tau * heads) + spared)


@pytest.mark.slow
def test_the_command_takes_every_choice_and_records_it(tmp_path: Path):
    out = tmp_path / "x.eam"
    source = ("build", f"local-dir:{DIGITS}", "--calib", DIGITS / "digits_calib.npz", "--limit", 32, "-o", out, "--json")
    choice = {"tau": 0.5, "granularity": "head", "scope": "layer", "order": "output", "seed": 7, "softmax": "renormalised"}

    refused = eamsim(*source, "--granularity", "head")
    assert (refused.code, "choose heads within a layer or the model" in refused.err) == (2, True)
    done = eamsim(*source, *(word for name, value in choice.items() for word in (f"--{name}", value)))
    assert done.code == 0
    manifest = json.loads(done.out)
    assert manifest | choice == manifest
    for op in artifact.read(out)[0].operations:
        if isinstance(op, Attention):
            assert len(op.score_heads) == op.heads - round(0.5 * op.heads)


def test_the_order_output_needs_the_values(measured):
    with pytest.raises(
        UserError, match="order: output needs the values too, got statistics of the maps alone; measure them for this order"
    ):
        frozen_maps(dataclasses.replace(measured[1], change=None), Freezing(0.2, order="output"))
