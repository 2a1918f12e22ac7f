from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from eamsim.errors import UserError
from reference.attention.freeze import Freezing, FrozenMap, chosen_masks, freeze, lowest

TAUS = st.floats(0, 1)
GRANULARITIES = st.one_of(
    st.sampled_from(["weight", "row", "column", "head"]),
    st.builds("tile:{}x{}".format, st.integers(1, 9), st.integers(1, 9)),
)


@st.composite
def layers(draw):
    """Scores of one to three layers of equal shape, with many ties."""
    heads, tokens = draw(st.integers(1, 4)), draw(st.integers(1, 7))
    layer = hnp.arrays(np.float32, (heads, tokens, tokens), elements=st.floats(0, 8, width=16))
    return draw(st.lists(layer, min_size=1, max_size=3))


@st.composite
def freezings(draw):
    granularity = draw(GRANULARITIES)
    scope = draw(st.sampled_from(["layer", "model"] if granularity == "head" else ["head", "layer", "model"]))
    return Freezing(draw(TAUS), granularity, scope, draw(st.sampled_from(["entropy", "random"])), draw(st.integers(0, 3)))


def masks(scores, freezing) -> np.ndarray:
    """bool [layers, heads, tokens, tokens]."""
    return np.stack(chosen_masks(scores, freezing))


def cut(layer, freezing: Freezing) -> list[np.ndarray]:
    """The units of one head's map [tokens, tokens], in the order of their index."""
    rows, columns = freezing.unit_shape(len(layer))
    return [layer[i : i + rows, j : j + columns] for i in range(0, len(layer), rows) for j in range(0, len(layer), columns)]


def groups(values, scope: str) -> list[np.ndarray]:
    """The maps [any, tokens, tokens] within which a scope chooses, from [layers, heads, tokens, tokens]."""
    match scope:
        case "head":
            return [head[None] for layer in values for head in layer]
        case "layer":
            return list(values)
    return [values.reshape(-1, *values.shape[2:])]


@pytest.mark.slow
@given(scores=layers(), freezing=freezings())
def test_units_are_frozen_whole_and_their_number_is_exact(scores, freezing):
    for group in groups(masks(scores, freezing), freezing.scope):
        units = [unit for head in group for unit in cut(head, freezing)]
        assert all(unit.all() == unit.any() for unit in units)
        frozen, sizes = sum(unit.all() for unit in units), {unit.size for unit in units}
        if len(sizes) == 1:
            assert frozen == round(freezing.tau * len(units))


@pytest.mark.slow
@given(scores=layers(), tau=TAUS, granularity=GRANULARITIES, scope=st.sampled_from(["layer", "model"]))
def test_no_frozen_unit_has_a_higher_mean_score_than_one_that_is_not(scores, tau, granularity, scope):
    freezing = Freezing(tau, granularity, scope)
    for group, values in zip(groups(masks(scores, freezing), scope), groups(np.stack(scores), scope), strict=True):
        frozen = [unit.all() for head in group for unit in cut(head, freezing)]
        means = [unit.mean(dtype=np.float64) for head in values for unit in cut(head, freezing)]
        highest = max((mean for mean, is_frozen in zip(means, frozen, strict=True) if is_frozen), default=0)
        least = min((mean for mean, is_frozen in zip(means, frozen, strict=True) if not is_frozen), default=8)
        assert highest <= least + 1e-12


@given(scores=layers(), freezing=freezings(), more=TAUS)
def test_a_greater_tau_only_adds(scores, freezing, more):
    choice = freezing.granularity, freezing.scope, freezing.order, freezing.seed
    low, high = (masks(scores, Freezing(tau, *choice)) for tau in sorted((freezing.tau, more)))

    assert not (low & ~high).any()


@given(sizes=hnp.arrays(np.int64, st.integers(1, 20), elements=st.integers(1, 9)), tau=TAUS)
def test_units_of_several_sizes_come_as_near_to_tau_as_their_order_allows(sizes, tau):
    frozen = lowest(np.arange(len(sizes)), sizes, tau)
    distances = [abs(Fraction(int(sizes[:count].sum()), int(sizes.sum())) - Fraction(tau)) for count in range(len(sizes) + 1)]

    assert not frozen[frozen.sum() :].any()
    assert float(distances[frozen.sum()] - min(distances)) < 1e-15


def test_of_two_numbers_equally_near_the_even_one_is_taken():
    scores = np.arange(4)

    np.testing.assert_array_equal([lowest(scores, np.array([3, 3, 3, 3]), tau).sum() for tau in (1 / 8, 3 / 8, 5 / 8)], [0, 2, 2])
    np.testing.assert_array_equal([lowest(scores, np.array([2, 4, 1, 1]), tau).sum() for tau in (1 / 8, 4 / 8, 5 / 8)], [0, 2, 2])


def test_ties_are_frozen_in_the_order_of_their_index():
    entropy = np.array([[[2, 1, 1], [1, 0, 1], [1, 3, 1]]], np.float32)

    np.testing.assert_array_equal(masks([entropy], Freezing(4 / 9))[0], np.array([[[0, 1, 1], [1, 1, 0], [0, 0, 0]]], np.bool_))


def test_tiles_at_the_edges_are_smaller_and_scored_by_their_mean():
    entropy = np.full((1, 5, 5), 4.0)
    entropy[0, 4, 4] = 1  # in a tile of two weights
    entropy[0, 2:4, 3:5] = 2
    expected = np.zeros((1, 5, 5), np.bool_)
    expected[0, 4, 3:5] = True

    np.testing.assert_array_equal(masks([entropy], Freezing(2 / 25, "tile:2x3"))[0], np.zeros_like(expected))  # 0 is nearer than 4
    entropy[0, 4, 3:5] = 0
    np.testing.assert_array_equal(masks([entropy], Freezing(2 / 25, "tile:2x3"))[0], expected)
    expected[0, 2:4, 3:5] = True
    np.testing.assert_array_equal(masks([entropy], Freezing(6 / 25, "tile:2x3"))[0], expected)


@pytest.mark.parametrize(("scope", "counts"), [("head", [[8, 8], [8, 8]]), ("layer", [[0, 16], [16, 0]]), ("model", [[0, 0], [16, 16]])])
def test_the_scope_decides_what_competes(scope, counts):
    entropy = [np.stack([np.full((4, 4), level) for level in levels]) for levels in ((8.0, 6.0), (3.0, 5.0))]

    np.testing.assert_array_equal(masks(entropy, Freezing(0.5, scope=scope)).sum(axis=(2, 3)), counts)


def test_the_mean_map_is_kept_whole():
    mean = np.random.default_rng(0).random((2, 4, 4))

    (frozen,) = freeze([mean], [mean], Freezing(0.5, "row"))

    assert isinstance(frozen, FrozenMap)
    assert (frozen.mask.dtype, frozen.mean.dtype) == (np.bool_, np.float64)
    np.testing.assert_array_equal(frozen.mean, mean)


@pytest.mark.parametrize("granularity", ["weight", "row", "column", "tile:3x3"])
def test_random_orders_depend_on_the_seed_alone(granularity):
    def drawn(seed: int, scores: np.ndarray) -> np.ndarray:
        return masks([scores, scores], Freezing(0.5, granularity, order="random", seed=seed))

    zeros, ones = np.zeros((3, 8, 8)), np.arange(192.0).reshape(3, 8, 8)
    np.testing.assert_array_equal(drawn(0, zeros), drawn(0, ones))
    assert (drawn(0, zeros) != drawn(1, zeros)).any()
    assert (drawn(0, zeros)[0] != drawn(0, zeros)[1]).any()


@pytest.mark.parametrize(("tau", "expected"), [(0, False), (0.0, False), (1, True), (1.0, True)])
@pytest.mark.parametrize("granularity", ["weight", "row", "column", "tile:2x3", "tile:9x9"])
def test_the_ends_freeze_nothing_and_everything(tau, expected, granularity):
    entropy = np.random.default_rng(0).random((3, 5, 5))

    np.testing.assert_array_equal(masks([entropy], Freezing(tau, granularity))[0], np.full((3, 5, 5), expected))


@pytest.mark.parametrize("tau", [-0.001, 1.001, 20, float("nan"), float("inf")])
def test_a_tau_that_is_no_fraction_is_refused(tau):
    with pytest.raises(UserError, match=rf"tau: must be a fraction in \[0, 1\], got {tau}; write 0.2"):
        Freezing(tau)


@pytest.mark.parametrize("granularity", ["", "token", "tile", "tile:0x4", "tile:4", "tile:4x-1", "tile:4x4x4", "16x16", "tile:1 x1"])
def test_a_granularity_that_does_not_exist_is_refused(granularity):
    with pytest.raises(UserError, match="granularity: must be weight, row, column, head or tile:RxC such as tile:16x16, got '"):
        Freezing(0.5, granularity)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scope": "block"}, "scope: must be one of head, layer, model, got 'block'"),
        ({"order": "size"}, "order: must be one of entropy, variance, output, kl, random, got 'size'"),
        ({"seed": -1}, "seed: expected an integer of at least 0, got -1"),
        ({"granularity": "head"}, "scope: a head holds no other head to choose from, .*; choose heads within a layer or the model"),
    ],
)
def test_other_choices_that_do_not_exist_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        Freezing(0.5, **changes)
