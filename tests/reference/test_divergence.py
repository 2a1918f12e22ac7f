"""Eq. 14 against the formula written out, and its treatment of empty bins."""

import numpy as np
import pytest

from eamsim.errors import UserError
from reference.attention.divergence import divergence
from reference.attention.entropy import AttentionStatistics
from reference.models.maps import Maps

SHAPE = (2, 3, 3)


def statistics(maps, layer=0):
    stats = AttentionStatistics({layer: Maps(maps.shape[1:])}, len(maps))
    stats.add(layer, maps)
    return stats


def random_maps(images, seed, power):
    return np.random.default_rng(seed).random((images, *SHAPE)) ** power


def constant(value, images):
    return np.full((images, 1, 1, 1), value)


def direct(p_counts, q_counts):
    """KL(p || q) of two histograms in bits, term by term in Python's floats."""
    p_images, q_images, total = sum(p_counts), sum(q_counts), 0.0
    for p_count, q_count in zip(p_counts, q_counts, strict=True):
        if p_count:
            p, q = p_count / p_images, (q_count + 1 / 256) / (q_images + 1)
            total += p * np.log2(p / q)
    return total


@pytest.mark.parametrize(("float_images", "quantised_images"), [(40, 40), (300, 77)])
def test_divergence_is_equation_14(float_images, quantised_images):
    p, q = statistics(random_maps(float_images, 1, 4), 3), statistics(random_maps(quantised_images, 2, 3), 3)

    found = divergence(p, q, 3)

    pairs = zip(p.counts[3].reshape(-1, 256).tolist(), q.counts[3].reshape(-1, 256).tolist(), strict=True)
    expected = np.array([direct(*pair) for pair in pairs]).reshape(SHAPE)
    assert found.dtype == np.float32
    # One float32 rounding of at most 256 float64 terms.
    np.testing.assert_allclose(found, expected, rtol=2**-22)


def test_equal_histograms_hardly_diverge():
    maps = random_maps(500, 1, 4)

    found = divergence(statistics(maps), statistics(maps), 0)

    assert found.min() >= 0
    assert found.max() <= np.log2(1 + 1 / 500)


def test_a_bin_that_only_the_quantised_model_leaves_empty_costs_the_bound():
    found = divergence(statistics(constant(0.2, 63)), statistics(constant(0.8, 63)), 0)

    np.testing.assert_array_equal(found, np.float32(np.log2(256 * 64)))


def test_a_bin_that_only_the_float_model_leaves_empty_costs_nothing_itself():
    half = constant(0.2, 64)
    half[::2] = 0.8

    found = divergence(statistics(constant(0.2, 64)), statistics(half), 0)

    np.testing.assert_allclose(found, np.log2(65 / (32 + 1 / 256)), rtol=2**-23)


def test_no_images_are_refused():
    with pytest.raises(UserError, match="layer 0 attention maps: must be of at least one image, got none"):
        divergence(statistics(random_maps(4, 1, 1)), AttentionStatistics({0: Maps(SHAPE)}, 4), 0)
