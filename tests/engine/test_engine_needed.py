"""What the engine leaves out of a renormalised softmax: the scores it does not compute, and that what stands for them changes nothing."""

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from programs import Shape, operation, random_images, random_program

from eamsim import engine
from eamsim.constraints import Verified
from eamsim.engine.ir.tile import PANEL
from eamsim.engine.kernels.needed import Group, first_group, group_at, groups_of
from eamsim.engine.plan import ATTEND, make_plan
from eamsim.program import Attention


def computed(program: Verified) -> np.ndarray:
    """bool [heads, tokens, panels]: what the plan's lists say of the only Attention's first window."""
    plan = make_plan(program)
    op, ints = plan.records[plan.records["kind"] == ATTEND].view(np.recarray)[0], plan.constants["ints"]
    found = np.zeros((op.heads, op.window_tokens, -(-op.window_tokens // PANEL)), bool)
    for head in range(op.heads):
        for top in range(0, op.window_tokens, op.block_rows):
            members, runs, following = group_at.py_func(first_group.py_func(op, 0, head, top, ints), ints)
            while len(members):
                for first, panels in runs.reshape(-1, 2):
                    found[head, top + members, first : first + panels] = True
                members, runs, following = group_at.py_func(following, ints)
    return found


def whole_panels(pairs: np.ndarray) -> np.ndarray:
    """Which panels of keys have any of these pairs, bool [..., tokens] -> [..., panels]."""
    padded = np.pad(pairs, [(0, 0)] * (pairs.ndim - 1) + [(0, -pairs.shape[-1] % PANEL)])
    return np.any(padded.reshape(*pairs.shape[:-1], -1, PANEL), axis=-1, keepdims=False)


@pytest.mark.parametrize(("freeze", "seed"), [("rows", 1), ("columns", 2), ("units", 1), ("units", 2), ("units", 4)])
def test_wholly_frozen_rows_columns_and_panels_are_not_computed(freeze, seed):
    program = random_program(Shape(seed, side=22, heads=3, head_dim=32, freeze=freeze, softmax="renormalised"))  # two blocks, 8 panels
    op = operation(program, "block0.attn", Attention)
    assert op.frozen is not None
    pairs, found = ~op.frozen.mask[0], computed(program)
    np.testing.assert_array_equal(found.any(axis=2), pairs.any(axis=2))
    keys = pairs.any(axis=1).sum(axis=1)
    assert (found.any(axis=1).sum(axis=1) == -(-keys // PANEL)).all()
    in_order = np.take_along_axis(pairs, np.argsort(~pairs.any(axis=1), axis=1, kind="stable")[:, None], axis=2)
    assert (found >= whole_panels(in_order)).all()
    assert found.sum() < 1.1 * whole_panels(in_order).sum() < 0.8 * found.size


@pytest.mark.parametrize(("freeze", "softmax"), [("none", "renormalised"), ("units", "paper")])
def test_a_softmax_over_all_pairs_needs_every_score(freeze, softmax):
    assert computed(random_program(Shape(1, side=22, freeze=freeze, softmax=softmax))).all()


@given(arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 6))))
def test_groups_hold_each_row_once_with_all_it_needs_at_no_greater_cost_than_one(needed):
    groups = groups_of(needed)
    assert sorted(np.concatenate([group.rows for group in groups]).tolist()) == list(range(len(needed)))
    for group in groups:
        assert (np.diff(group.rows) > 0).all()
        assert (needed[group.rows] <= group.panels).all()
        assert needed[group.rows].any() == group.panels.any()
    assert sum(group.cost for group in groups) <= Group(np.arange(len(needed)), needed.any(axis=0)).cost


@pytest.mark.parametrize("head_dim", [32, 5])
@examples(5, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), byte=st.sampled_from([0x7F, 0x80, 0xFF]))
def test_what_stands_for_scores_that_are_not_computed_changes_nothing(head_dim, seed, byte):
    program = random_program(Shape(seed, side=22, heads=2, head_dim=head_dim, freeze="units", softmax="renormalised"))
    images, loaded = random_images(program, 1, 3), engine.Engine(program, threads=1)
    _, expected = loaded.run(images, taps=True)
    for scratch in (loaded._memory[0].words.view(np.uint8), loaded._memory[0].bytes):
        scratch[:] = byte
    _, found = loaded.run(images, taps=True)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, name)
