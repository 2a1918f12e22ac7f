"""An error that is not finite chooses nothing: the helper, and everywhere an error picks a candidate."""

from math import inf, nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eamsim.choice import finite, least
from eamsim.errors import UserError


@given(st.lists(st.sampled_from([nan, inf, -inf, 0.0, 1.0, 2.0]), min_size=1))
def test_the_first_of_least_finite_error_is_taken(errors):
    usable = [number for number, error in enumerate(errors) if error in (0.0, 1.0, 2.0)]
    if not usable:
        with pytest.raises(UserError, match=r"^here: expected a candidate of finite error, got errors \["):
            least(range(len(errors)), errors.__getitem__, "here")
        return
    taken = least(range(len(errors)), errors.__getitem__, "here")
    assert (errors[taken], taken) == min((errors[number], number) for number in usable)


@pytest.mark.parametrize("error", [nan, inf, -inf])
def test_an_error_that_is_not_finite_is_refused(error):
    assert finite(0.5, "here") == 0.5
    with pytest.raises(UserError, match=r"^here: expected a finite error, got"):
        finite(error, "here")


@pytest.mark.parametrize("underflow", [0.0, 1e-50])
@pytest.mark.parametrize("last_code_is_zero", [False, True])
def test_a_saturated_softmax_has_a_scale(underflow, last_code_is_zero):
    torch = pytest.importorskip("torch", reason="needs the extra 'reference'")
    from reference.quantisation.quantisers import search_log

    weights = torch.full((1, 100_000), underflow, dtype=torch.float64)
    weights[0, :50] = 1  # of 2,000 keys one takes all: nine in a thousand percentiles are 0, or 0 in float32
    found = search_log(weights, 4, last_code_is_zero)
    assert found.scale == 1
    assert found.codes(weights)[0, :50].unique().tolist() == [0]


def test_weights_without_any_scale_are_refused():
    torch = pytest.importorskip("torch", reason="needs the extra 'reference'")
    from reference.quantisation.quantisers import search_log

    with pytest.raises(UserError, match=r"^attention weights: expected a candidate of finite error, got errors \[nan, nan, nan\]"):
        search_log(torch.zeros(1, 100, dtype=torch.float64), 4, False)


@pytest.mark.parametrize("value", [nan, inf, 1e300])
def test_a_range_of_values_that_have_no_error_is_refused(value):
    torch = pytest.importorskip("torch", reason="needs the extra 'reference'")
    from reference.quantisation.quantisers import search_affine

    values = torch.linspace(-1, 1, 1000, dtype=torch.float64)
    values[500] = value
    with pytest.raises(UserError, match=r"^ranges: expected values whose squared error is finite"):
        search_affine(values, 4, contain_zero=True)


@pytest.mark.parametrize("spoiled", [(0, 0), (1, 0), (1, 1)])
def test_a_budget_search_refuses_a_damage_that_is_no_number(spoiled):
    pytest.importorskip("torch", reason="needs the extra 'reference'")
    from eamsim.jobs.search.budget import Rungs, search

    masks = [[np.zeros((2, 2), bool)] * 2, [np.ones((2, 2), bool)] * 2]
    rungs = Rungs(("none", "head"), masks, np.array([[0.0, 0.0], [1.0, 1.0]]), start=0, heads=(2,))
    with pytest.raises(UserError, match=r"^budget: expected a finite error, got nan"):
        list(search(rungs, np.array([[0.0, 0.0], [1.0, 1.0]]), lambda state: nan if state == spoiled else 1.0))


def test_scores_that_are_no_numbers_are_refused():
    from reference.attention.freeze import Freezing, chosen_masks

    scores = [np.zeros((1, 3, 3)), np.full((1, 3, 3), np.inf)]
    scores[1][0, 1, 2] = nan
    with pytest.raises(UserError, match=r"^block1: expected a number as the score of every attention weight, got NaN"):
        chosen_masks(scores, Freezing(0.5))
