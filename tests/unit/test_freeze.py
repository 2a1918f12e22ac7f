import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from eamsim.errors import UserError
from reference.freeze import freeze

ENTROPIES = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 7)).map(lambda shape: (shape[0], shape[1], shape[1])),
    elements=st.floats(0, 8, width=16),
)


@given(entropy=ENTROPIES, tau=st.floats(0, 1))
def test_every_head_freezes_exactly_the_rounded_count_of_its_lowest_entropies(entropy, tau):
    (frozen,) = freeze([entropy], [np.zeros_like(entropy)], tau)

    assert frozen.mask.dtype == np.bool_
    for mask, values in zip(frozen.mask, entropy, strict=True):
        assert mask.sum() == round(tau * values.size)
        if mask.any() and not mask.all():
            assert values[mask].max() <= values[~mask].min()


@given(entropy=ENTROPIES, tau=st.floats(0, 1), more=st.floats(0, 1))
def test_a_greater_tau_only_adds(entropy, tau, more):
    low, high = (freeze([entropy], [entropy], value)[0].mask for value in sorted((tau, more)))

    assert not (low & ~high).any()


def test_ties_are_frozen_in_the_order_of_their_index():
    entropy = np.array([[[2, 1, 1], [1, 0, 1], [1, 3, 1]]], np.float32)

    (frozen,) = freeze([entropy], [entropy], 4 / 9)

    np.testing.assert_array_equal(frozen.mask, np.array([[[0, 1, 1], [1, 1, 0], [0, 0, 0]]], np.bool_))


def test_heads_and_layers_are_thresholded_apart():
    entropy = [np.stack([np.full((4, 4), 8.0), np.zeros((4, 4))]), np.full((2, 4, 4), 5.0)]
    mean = [np.full((2, 4, 4), 0.25), np.full((2, 4, 4), 0.5)]

    first, second = freeze(entropy, mean, 0.5)

    np.testing.assert_array_equal(first.mask.sum(axis=(1, 2)), [8, 8])
    np.testing.assert_array_equal(second.mask.sum(axis=(1, 2)), [8, 8])
    assert first.mean.dtype == np.float32
    np.testing.assert_array_equal(first.mean, mean[0])
    np.testing.assert_array_equal(second.mean, mean[1])


@pytest.mark.parametrize(("tau", "expected"), [(0, False), (0.0, False), (1, True), (1.0, True)])
def test_the_ends_freeze_nothing_and_everything(tau, expected):
    entropy = np.random.default_rng(0).random((3, 5, 5))

    (frozen,) = freeze([entropy], [entropy], tau)

    np.testing.assert_array_equal(frozen.mask, np.full((3, 5, 5), expected))


@pytest.mark.parametrize("tau", [-0.001, 1.001, 20, float("nan"), float("inf")])
def test_a_tau_that_is_no_fraction_is_refused(tau):
    with pytest.raises(UserError, match=rf"tau: must be a fraction in \[0, 1\], got {tau}; write 0.2"):
        freeze([], [], tau)
