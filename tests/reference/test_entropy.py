import numpy as np
import pytest

from eamsim.errors import UserError
from reference.attention.entropy import AttentionStatistics, layer_bytes
from reference.models.maps import Maps

SHAPE = (2, 5, 5)
EDGES = np.arange(257) / 256


def numpy_counts(maps):
    """Histogram of every attention weight by numpy: [heads, tokens, tokens, 256] of maps [images, heads, tokens, tokens]."""
    flat = maps.reshape(len(maps), -1).T
    return np.stack([np.histogram(values, bins=256, range=(0, 1))[0] for values in flat]).reshape(*maps.shape[1:], 256)


def numpy_entropy(counts):
    """Eq. 13 of counts in float64."""
    p = counts / counts.sum(-1, keepdims=True)
    return -(p * np.log2(p, where=p > 0, out=np.zeros_like(p))).sum(-1)


def statistics(maps, batch=7):
    stats = AttentionStatistics({0: Maps(maps.shape[1:])}, len(maps))
    for start in range(0, len(maps), batch):
        stats.add(0, maps[start : start + batch])
    return stats


def special_maps():
    """600 images of 0, 1, every bin border and its two neighbours, and of random values of many magnitudes."""
    rng = np.random.default_rng(1)
    borders = np.concatenate([EDGES, np.nextafter(EDGES[1:], 0), np.nextafter(EDGES[:-1], 1)])
    maps = (rng.random((600, *SHAPE)) ** 6).reshape(600, -1)
    maps[:, 0] = np.resize(borders, 600)
    maps[:, 1] = np.resize(borders[::-1], 600)
    maps[:, 2], maps[:, 3], maps[:, 4] = 0, 1, np.finfo(np.float64).smallest_subnormal
    maps[:, 5] = np.resize(EDGES[:256], 600)
    maps[:, 6] = rng.integers(0, 2, 600)
    return maps.reshape(600, *SHAPE)


def test_histograms_equal_numpys_on_borders_and_random_values():
    maps = special_maps()

    counts = statistics(maps).counts[0]

    assert counts.dtype == np.uint16
    np.testing.assert_array_equal(counts, numpy_counts(maps))


@pytest.mark.slow
def test_a_border_opens_its_bin_and_one_joins_the_last():
    maps = np.broadcast_to(EDGES[:, None, None, None], (257, 1, 1, 1))

    expected = np.ones(256, np.int64)
    expected[255] = 2
    np.testing.assert_array_equal(statistics(maps).counts[0].ravel(), expected)


def test_entropy_is_equation_13():
    maps = special_maps()

    entropy = statistics(maps).entropy(0)

    assert entropy.dtype == np.float32
    # One float32 rounding, and sums of at most 256 float64 terms in another order.
    np.testing.assert_allclose(entropy, numpy_entropy(numpy_counts(maps)), rtol=2**-23, atol=1e-12)


def test_entropy_of_constant_half_and_uniform_weights_is_0_1_and_8_bits():
    maps = np.zeros((512, 1, 2, 2))
    maps[:, 0, 0, 1] = 0.7
    maps[::2, 0, 1, 0] = 1
    maps[:, 0, 1, 1] = np.resize(EDGES[:256], 512)

    np.testing.assert_array_equal(statistics(maps).entropy(0), np.array([[[0, 0], [1, 8]]], np.float32))


def test_mean_is_summed_in_float64():
    maps = special_maps()

    mean = statistics(maps).mean(0)

    assert mean.dtype == np.float32
    np.testing.assert_array_equal(mean, maps.mean(0).astype(np.float32))


def test_variance_is_that_of_the_population_in_float64():
    maps = special_maps()

    variance = statistics(maps).variance(0)

    assert variance.dtype == np.float32
    # One float32 rounding, and the difference of two float64 sums of 600 terms in [0, 1].
    np.testing.assert_allclose(variance, maps.var(axis=0), rtol=2**-23, atol=600 * 2**-53)


def test_a_constant_weight_has_no_variance():
    variance = statistics(np.full((1000, 1, 3, 3), 0.7)).variance(0)

    assert variance.min() >= 0
    assert variance.max() <= 1000 * 2**-53


@pytest.mark.parametrize("tokens", [1, 8, 9, 16])
def test_weights_beyond_whole_blocks_are_counted(tokens):
    maps = np.random.default_rng(3).random((3, 1, tokens, tokens))

    stats = statistics(maps, batch=2)

    np.testing.assert_array_equal(stats.counts[0], numpy_counts(maps))
    np.testing.assert_array_equal(stats.squares[0], (maps**2).sum(axis=0))


def test_memory_is_what_layer_bytes_says():
    for images in (65_535, 65_536):
        stats = AttentionStatistics({0: Maps(SHAPE)}, images)
        assert layer_bytes(SHAPE, images) == sum(kept[0].nbytes for kept in (stats.counts, stats.sums, stats.squares))


def test_the_size_of_the_batches_changes_nothing():
    maps = special_maps()

    one, many = statistics(maps, batch=600), statistics(maps, batch=23)

    assert one.images == many.images == 600
    np.testing.assert_array_equal(one.counts[0], many.counts[0])
    np.testing.assert_array_equal(one.sums[0], many.sums[0])
    np.testing.assert_array_equal(one.squares[0], many.squares[0])


def test_maps_of_any_memory_order_are_counted():
    maps = np.random.default_rng(2).random((3, 19, 19, 3)).transpose(0, 3, 1, 2)

    np.testing.assert_array_equal(statistics(maps).counts[0], numpy_counts(maps))


def test_a_subset_of_the_layers_ignores_the_others():
    maps = special_maps()
    stats = AttentionStatistics({1: Maps(SHAPE), 3: Maps(SHAPE)}, 600)
    for layer in range(4):
        stats.add(layer, maps[: 100 * layer])

    assert list(stats.counts) == [1, 3]
    assert stats.images == 100
    np.testing.assert_array_equal(stats.counts[3].sum(-1), np.full(SHAPE, 300))


@pytest.mark.slow
@pytest.mark.parametrize(("images", "counter"), [(65_535, np.uint16), (65_536, np.uint32)])
def test_counters_are_as_wide_as_the_images_need(images, counter):
    stats = AttentionStatistics({0: Maps((1, 1, 1))}, images)
    stats.add(0, np.full((images, 1, 1, 1), 0.5))

    assert stats.counts[0].dtype == counter
    assert stats.counts[0][0, 0, 0, 128] == images


@pytest.mark.parametrize("value", [np.nan, -0.001, np.nextafter(1, 2), np.inf])
def test_values_that_are_no_softmax_are_refused(value):
    maps = np.full((2, *SHAPE), value)

    with pytest.raises(UserError, match=r"layer 0 attention maps: must lie in \[0, 1\], got a value outside or NaN"):
        AttentionStatistics({0: Maps(SHAPE)}, 2).add(0, maps)


@pytest.mark.parametrize("maps", [np.zeros((1, 2, 5, 4)), np.zeros((2, 5, 5)), np.zeros((1, *SHAPE), np.float32)])
def test_maps_of_another_shape_or_type_are_refused(maps):
    with pytest.raises(UserError, match=r"layer 0 attention maps: expected float64 \[batch, 2, 5, 5\], got float"):
        AttentionStatistics({0: Maps(SHAPE)}, 2).add(0, maps)


def test_more_images_than_announced_are_refused():
    stats = AttentionStatistics({0: Maps(SHAPE)}, 3)

    with pytest.raises(UserError, match="layer 0 attention maps: 4 images, expected at most 3"):
        stats.add(0, np.zeros((4, *SHAPE)))


@pytest.mark.parametrize("method", ["entropy", "mean", "variance"])
def test_statistics_of_no_image_are_refused(method):
    with pytest.raises(UserError, match="layer 0 attention maps: must be of at least one image, got none"):
        getattr(AttentionStatistics({0: Maps(SHAPE)}, 3), method)(0)
