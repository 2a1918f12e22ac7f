"""`eamsim plot`: the maps of Figures 1 to 4 are those of the statistics, and what cannot be drawn is refused."""

import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from command_line import eamsim
from map_files import TOKENS, write_maps
from numpy.testing import assert_array_equal

pytest.importorskip("matplotlib", reason="needs the extra 'plot'")

from eamsim.errors import UserError
from eamsim.figures import maps as figures_maps

DIGITS = Path(str(files("eamsim") / "data" / "digits"))


def images(figure) -> list[np.ndarray]:
    return [np.asarray(image.get_array()) for axis in figure.axes for image in axis.images]


def test_entropy_maps_are_those_of_the_file(tmp_path):
    statistics = write_maps(tmp_path / "stats.h5")
    entropy = statistics.entropy["quantised"]

    first_heads = images(figures_maps.class_entropy(statistics, "quantised", 3))
    whole = images(figures_maps.full_entropy(statistics, "quantised", [(2, 1), (0, 0)]))

    assert_array_equal(first_heads, [entropy[layer][head][0, 1:].reshape(3, 3) for layer, head in ((0, 0), (0, 1), (1, 0))])
    assert_array_equal(whole, [entropy[2][1], entropy[0][0]])


def test_maps_of_one_figure_share_their_scale(tmp_path):
    statistics = write_maps(tmp_path / "stats.h5")
    figure = figures_maps.class_entropy(statistics, "float", 6)

    assert len({image.get_clim() for axis in figure.axes for image in axis.images}) == 1


def test_without_a_choice_the_heads_of_least_and_greatest_mean_are_drawn(tmp_path):
    statistics = write_maps(tmp_path / "stats.h5")
    entropy = np.concatenate(statistics.entropy["float"])
    means = entropy.mean(axis=(1, 2))

    assert_array_equal(images(figures_maps.full_entropy(statistics, "float", [])), entropy[[means.argmin(), means.argmax()]])


def test_divergence_is_summed_up_over_the_patches_of_the_class_token(tmp_path):
    statistics = write_maps(tmp_path / "stats.h5")
    assert statistics.divergence
    rows = np.concatenate(statistics.divergence)[:, 0, 1:]

    figure = figures_maps.divergence(statistics, [(1, 0)])

    lines = {line.get_label(): line.get_ydata() for line in figure.axes[0].lines}
    assert_array_equal(lines["mean"], rows.mean(axis=1))
    assert_array_equal(lines["maximum"], rows.max(axis=1))
    assert_array_equal(images(figure), [rows[2].reshape(3, 3)])


def test_attention_lies_over_the_whole_image(tmp_path):
    rng = np.random.default_rng(0)
    maps = {name: rng.random((7, TOKENS, TOKENS)) for name in ("float", "quantised")}

    rows = {name: figures_maps.over_patches(weights, 7) for name, weights in maps.items()}
    figure = figures_maps.attention_over_image(np.zeros((30, 30, 3), np.uint8), rows, 4)

    overlays = [axis.images[1] for axis in figure.axes if len(axis.images) == 2]
    expected = [head[0, 1:].reshape(3, 3) for weights in maps.values() for head in weights]
    assert_array_equal([np.asarray(overlay.get_array()) for overlay in overlays], expected)
    assert {tuple(overlay.get_extent()) for overlay in overlays} == {(-0.5, 29.5, 29.5, -0.5)}


def test_without_a_class_token_the_mean_over_a_windows_queries_lies_where_its_tokens_are():
    """Two heads of a shifted map of 4 x 4 tokens in windows of 2 x 2, each pair of tokens worth the key's own number."""
    tokens = np.arange(16).reshape(4, 4)
    rolled = np.roll(tokens, (-1, -1), axis=(0, 1))
    order = rolled.reshape(2, 2, 2, 2).transpose(0, 2, 1, 3).reshape(4, 4)
    excluded = np.zeros((8, 4, 4), np.bool_)
    excluded[2:4, :2, 2:] = excluded[2:4, 2:, :2] = True
    keys = np.broadcast_to(order[:, None, :], (4, 4, 4)).repeat(2, axis=0)
    layer = np.where(excluded, 100, keys)  # what is excluded is not looked at

    assert_array_equal(figures_maps.over_patches(layer, 2, excluded), np.stack([tokens, tokens]))
    assert_array_equal(figures_maps.over_patches(keys, 2), np.roll(np.stack([tokens, tokens]), (-1, -1), axis=(1, 2)))


@pytest.mark.slow
def test_attention_of_the_digits_over_their_image(tmp_path):
    pytest.importorskip("timm", reason="needs the extra 'reference'")
    data = DIGITS / "digits_calib.npz"

    finished = eamsim("plot", "fig1", f"local-dir:{DIGITS}", "--image", data, "--index", 3, "--calib", data, "-o", tmp_path, "--json")

    assert finished.code == 0
    assert {"calibration_sha256", "command", "images_sha256", "model_sha256", "output", "versions"} == set(json.loads(finished.out))
    text = (tmp_path / "fig1.svg").read_text()
    for label in ("image", "attention weight", "layer 2", "head 3", "quantised"):
        assert f">{label}<" in text


STATISTICS_ERRORS = {
    "layer": (["fig3", "--layer", 3, "--head", 0], "--layer: expected 0 to 2, got 3"),
    "head": (["fig4", "--layer", 0, "--head", 2], "--head: expected 0 to 1, the heads of layer 0, got 2"),
    "pairs": (["fig3", "--layer", 1], "--layer and --head: expected one of each for every map, got 1 and 0"),
}


@pytest.mark.parametrize("case", STATISTICS_ERRORS)
def test_heads_that_do_not_exist_are_refused(tmp_path, case):
    write_maps(tmp_path / "stats.h5")
    (name, *options), message = STATISTICS_ERRORS[case]
    finished = eamsim("plot", name, tmp_path / "stats.h5", *options, "-o", tmp_path / "out")

    assert (finished.code, finished.out, finished.err) == (2, "", f"error: {message}\n")
    assert not (tmp_path / "out").exists()


def test_statistics_of_one_model_have_no_divergence_and_no_other_model(tmp_path):
    statistics = write_maps(tmp_path / "stats.h5", ("quantised",))

    with pytest.raises(UserError, match="hold no divergence, as only the quantised model was measured; measure with `eamsim ent"):
        figures_maps.divergence(statistics, [])
    with pytest.raises(UserError, match=r"--of: expected a model that was measured \(quantised\), got float; measure it"):
        figures_maps.class_entropy(statistics, "float", 6)


@pytest.mark.parametrize("tokens", [8, 12])
def test_maps_of_no_square_of_patches_are_refused(tmp_path, tokens):
    statistics = write_maps(tmp_path / "stats.h5", tokens=tokens)

    with pytest.raises(
        UserError, match=f"expected a class token and a square of patches, or square windows, got {tokens} tokens in 1 windows"
    ):
        figures_maps.class_entropy(statistics, "float", 6)
