"""Heads removed for good, by the shapes of the program."""

import pytest

from cost_model.models.architectures import ARCHITECTURES
from cost_model.models.skeleton import skeleton
from cost_model.models.variants import refrozen, thawed, whole_heads, without_heads
from cost_model.work.counts import count
from eamsim.unread import without_unread_rows

TINY = skeleton(ARCHITECTURES["deit_tiny_patch16_224"])


@pytest.mark.parametrize("program", [TINY, without_unread_rows(TINY)], ids=["published", "as built"])
def test_a_removed_head_costs_nothing_at_all(program):
    """Of 36 heads at tau 0.2 seven: their q, k and v, QK^T and A.V, and their rows of the projection."""
    thinner = without_heads(program, 0.2)
    assert thinner is not None
    assert sum(op.heads for op in thinner.attentions) == 36 - 7
    before, after = count(program).macs, count(thinner).macs
    full = count(TINY).macs
    if program is TINY:
        for part in ("qkv", "scores", "attention_value", "proj"):
            assert getattr(after, part) * 36 == getattr(before, part) * 29
    assert (after.fc1, after.fc2, after.head) == (before.fc1, before.fc2, before.head)
    assert after.full < count(refrozen(program, whole_heads(program, 0.2), "renormalised")).macs.full < full.full


def test_windows_keep_their_partitions():
    swin = skeleton(ARCHITECTURES["swin_tiny_patch4_window7_224"])
    thinner = without_heads(swin, 0.2)
    assert thinner is not None
    assert sum(op.heads for op in thinner.attentions) == 138 - 28


def test_one_head_of_each_layer_stays():
    thinner = without_heads(thawed(TINY), 1.0)
    assert thinner is not None
    assert {op.heads for op in thinner.attentions} == {1}


def test_a_program_with_nothing_frozen_is_returned_as_it_is():
    assert thawed(TINY) is TINY
