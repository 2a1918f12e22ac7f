"""Eq. 6-9, the published totals, and the closed forms against counts of real programs of the same shape."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from programs import Shape, random_program

from cost_model.models.architectures import ARCHITECTURES, Architecture, architecture
from cost_model.models.paper import estimate
from cost_model.work.counts import count
from eamsim.constraints import Verified
from eamsim.errors import UserError
from eamsim.program import Attention, Frozen

TINY, SMALL, BASE = "deit_tiny_patch16_224", "deit_small_patch16_224", "deit_base_patch16_224"
TOTALS = {  # parameters (timm), Eq. 9 and full scope MACs, W4 bytes, map elements
    TINY: (5_717_416, 1_224_589_824, 1_253_683_200, 2_823_936, 1_397_124),
    SMALL: (22_050_664, 4_540_695_552, 4_598_882_304, 10_956_288, 2_794_248),
    BASE: (86_567_656, 17_447_454_720, 17_563_828_224, 43_146_240, 5_588_496),
}
PLAIN = TOTALS | {"vit_small_patch16_224": TOTALS[SMALL], "vit_base_patch16_224": TOTALS[BASE]}
SWIN = {
    "swin_tiny_patch4_window7_224": (28_288_354, 4_301_939_712, 4_490_566_656, 14_099_712, 2_189_712),
    "swin_small_patch4_window7_224": (49_606_258, 8_552_248_320, 8_740_875_264, 24_716_544, 3_572_688),
}
TOTALS = PLAIN | SWIN


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("softmax", ["paper", "renormalised"])
def test_published_totals(name, softmax):
    model, dense = architecture(name), estimate(architecture(name), 0, softmax)
    assert (model.parameters, dense.macs.paper, dense.macs.full, dense.weight_bytes, model.map_elements) == TOTALS[name]
    assert dense.macs.paper == sum(12 * layer.tokens * layer.width**2 + 2 * layer.pairs * layer.width for layer in model.layers)
    assert dense.map_bytes == 0


@pytest.mark.parametrize("name", PLAIN)
def test_eq_9_of_a_plain_vit(name):
    model = architecture(name)
    assert isinstance(model, Architecture)
    n, d = model.tokens, model.width
    assert estimate(model, 0, "paper").macs.paper == model.depth * (12 * n * d**2 + 2 * n**2 * d)


@pytest.mark.parametrize(("name", "percent"), [(TINY, 7.13), (SMALL, 3.89), (BASE, 2.04)])
def test_share_of_the_scores(name, percent):
    macs = estimate(architecture(name), 0, "paper").macs
    assert round(100 * macs.scores / macs.full, 2) == percent


def test_unknown_models_are_refused_with_the_known_names():
    with pytest.raises(
        UserError, match=r"cost: expected one of vit_small_patch16_224, .*swin_small_patch4_window7_224 or an \.eam file, got 'resnet50'"
    ):
        architecture("resnet50")


@given(st.sampled_from(sorted(PLAIN)), st.floats(0, 1))
def test_tau_saves_scores_of_the_renormalised_softmax_only(name, tau):
    model = architecture(name)
    assert isinstance(model, Architecture)
    dense, paper, renormalised = estimate(model, 0, "paper"), estimate(model, tau, "paper"), estimate(model, tau, "renormalised")
    frozen = round(tau * model.tokens**2)
    assert paper.macs == dense.macs
    assert dense.macs.scores - renormalised.macs.scores == model.depth * frozen * model.width
    assert renormalised.macs.attention_value == dense.macs.attention_value
    if frozen < model.tokens**2:
        assert renormalised.macs.qkv == dense.macs.qkv
    assert paper.map_bytes == renormalised.map_bytes


def test_tau_one_drops_the_q_and_k_projections():
    model = architecture(TINY)
    dense, frozen = estimate(model, 0, "renormalised"), estimate(model, 1, "renormalised")
    assert frozen.macs.scores == 0
    assert dense.macs.qkv == 3 * frozen.macs.qkv
    assert dense.weight_bytes - frozen.weight_bytes == 12 * 2 * 192**2 // 2


def test_map_bytes_of_a_bitmap_and_four_bit_codes():
    cost = estimate(architecture(TINY), 0.5, "paper")
    assert cost.mask_bytes == 12 * -(-3 * 197**2 // 8)
    assert cost.code_bytes == 12 * -(-3 * round(0.5 * 197**2) // 2)


SHAPE = Architecture("random", width=8, heads=2, depth=2, image=8, patch=2, classes=5)


def plain_vit(softmax: str = "paper", freeze: str = "none") -> Verified:
    return random_program(Shape(seed=3, side=8, patch=2, heads=2, head_dim=4, hidden=32, depth=2, softmax=softmax, freeze=freeze))


def with_scattered_masks(program: Verified, tau: float) -> Verified:
    """round(tau * tokens^2) random weights of each head frozen."""

    def freeze(op: Attention) -> Attention:
        order = np.random.default_rng(7).random((1, op.heads, op.tokens**2)).argsort(axis=-1).argsort(axis=-1)
        mask = (order < round(tau * op.tokens**2)).reshape(1, op.heads, op.tokens, op.tokens)
        return replace(op, frozen=Frozen(mask, mask.astype(np.uint8), 4, np.zeros(mask.shape[:3], np.int32)))

    return replace(program, operations=tuple(freeze(op) if isinstance(op, Attention) else op for op in program.operations))


@pytest.mark.parametrize("softmax", ["paper", "renormalised"])
@pytest.mark.parametrize("tau", [0.1, 0.37, 0.9])
def test_estimates_equal_counts_of_scattered_masks(tau, softmax):
    program = with_scattered_masks(plain_vit(softmax), tau)
    assert count(program) == estimate(SHAPE, tau, softmax)


@pytest.mark.parametrize("softmax", ["paper", "renormalised"])
@pytest.mark.parametrize(("tau", "freeze"), [(0, "none"), (1, "all")])
def test_estimates_equal_counts_at_both_ends(tau, freeze, softmax):
    program = plain_vit(softmax, freeze)
    assert count(program) == estimate(SHAPE, tau, softmax)


def test_a_program_of_deit_tiny_shape():
    program = random_program(Shape(seed=0, side=224, patch=16, heads=3, head_dim=64, hidden=768, depth=12))
    model = replace(architecture(TINY), name="random", classes=5)
    assert count(program) == estimate(model, 0, "paper")
    assert count(program).macs.full == 1_253_683_200 - 995 * 192
