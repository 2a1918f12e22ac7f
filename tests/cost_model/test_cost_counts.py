"""Counts of random programs equal loops over their masks and values; hand-made cases pin the meaning of each field."""

from dataclasses import replace
from math import ceil

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from programs import FREEZES, Shape, random_program, unproved

from cost_model.models.variants import refrozen, scattered, thawed, whole_heads
from cost_model.work.counts import Cost, Macs, computed_scores, count, count_operations, frozen_share, granularity, linear_layers
from cost_model.work.memory import constant_bytes, live_bytes, packed_bytes
from eamsim.constraints import Verified
from eamsim.errors import UserError
from eamsim.program import Attention, Linear, Residual


@st.composite
def programs(draw) -> Verified:
    windows = draw(st.sampled_from([1, 4]))
    shape = Shape(
        seed=draw(st.integers(0, 2**32 - 1)),
        heads=draw(st.integers(1, 3)),
        head_dim=draw(st.sampled_from([1, 5])),
        depth=draw(st.integers(1, 2)),
        prefix=1 if windows == 1 else 0,
        windows=windows,
        queries=draw(st.sampled_from([0, 0, 1, 3])),
        weight_bits=draw(st.integers(2, 7)),
        activation_bits=draw(st.integers(2, 8)),
        residual_bits=draw(st.sampled_from([10, 16])),
        freeze=draw(st.sampled_from(FREEZES)),
        frozen_bits=draw(st.integers(1, 4)),
        softmax=draw(st.sampled_from(["paper", "renormalised"])),
        biased=draw(st.booleans()),
        pooled=draw(st.booleans()),
    )
    return random_program(shape)


def attentions(program: Verified) -> list[Attention]:
    return [op for op in program.operations if isinstance(op, Attention)]


def looped_attention(op: Attention) -> tuple[int, int]:
    """MACs of QK^T and A.V, one pair of tokens after the other."""
    scores = products = 0
    for window, head, row, column in np.ndindex(op.windows, op.heads, op.rows, op.tokens):
        frozen = op.frozen is not None and op.frozen.mask[window % len(op.frozen.mask), head, row, column]
        scores += 0 if frozen and op.softmax == "renormalised" else op.head_dim
        products += op.head_dim
    return scores, products


@examples(60)
@given(programs())
def test_macs_equal_loops(program):
    expected = Macs()
    for op in program.operations:
        if isinstance(op, Linear):
            rows, columns = op.out.shape
            looped = sum(1 for _ in np.ndindex(rows, columns, len(op.weight)))
            expected += Macs(**{linear_layers(program)[op.out.name]: looped})
        elif isinstance(op, Attention):
            scores, products = looped_attention(op)
            expected += Macs(scores=scores, attention_value=products)
    assert count(program).macs == expected


@examples(60)
@given(programs())
def test_layers_follow_the_data_flow(program):
    names = {
        "qkv": "qkv",
        "q": "qkv",
        "kv": "qkv",
        "proj": "proj",
        "fc1": "fc1",
        "fc2": "fc2",
        "head": "head",
        "patch_embed": "patch_embedding",
    }
    assert linear_layers(program) == {name: names[name.split(".")[-1]] for name in linear_layers(program)}


@examples(60)
@given(programs())
def test_bytes_equal_loops(program):
    linears = [op for op in program.operations if isinstance(op, Linear)]
    maps = [op.frozen for op in attentions(program) if op.frozen is not None]
    cost = count(program)
    assert cost.weight_bytes == sum(ceil(op.weight.size * op.weight_bits / 8) for op in linears)
    assert cost.mask_bytes == sum(np.packbits(frozen.mask).size for frozen in maps)
    assert cost.code_bytes == sum(ceil(frozen.bits * sum(map(int, frozen.mask.flat)) / 8) for frozen in maps)
    assert cost.map_bytes == cost.mask_bytes + cost.code_bytes


@examples(60)
@given(programs())
def test_live_values_by_definition(program):
    operations = program.operations
    made = {program.image.name: -1} | {op.out.name: position for position, op in enumerate(operations)}
    for position, op in enumerate(operations):
        read_later = {name for later in operations[position:] for name in later.inputs}
        alive = [name for name in made if made[name] == position or (made[name] < position and name in read_later)]
        expected = sum(ceil(program.values[name].size * program.values[name].bits / 8) for name in alive)
        assert live_bytes(program)[op.out.name] == expected
    assert count(program).activation_bytes == max(live_bytes(program).values())


@examples(60)
@given(programs())
def test_dense_sets_the_masks_aside(program):
    dense = count(program).dense
    assert dense == count(thawed(program)).macs
    assert dense.scores == dense.attention_value
    if all(op.queries is None for op in attentions(program)):
        assert dense.qkv == 3 * dense.proj  # of a block whose proj has as many rows and columns


def frozen_program(freeze: str, softmax: str = "renormalised", windows: int = 1) -> Verified:
    return random_program(Shape(seed=1, heads=3, freeze=freeze, softmax=softmax, windows=windows, prefix=int(windows == 1)))


def test_operations_add_up_to_the_program():
    program = frozen_program("scattered")
    ledger = count_operations(program)
    assert list(ledger) == [op.out.name for op in program.operations]
    assert sum(ledger.values(), Cost()) == count(program)
    assert ledger["block0.norm1"].macs == Macs()
    assert ledger["block0.attn.qkv"].macs == Macs(qkv=5 * 12 * 36)


def test_addition_sums_work_and_keeps_the_larger_peak():
    total = Cost(Macs(qkv=1, head=2), Macs(qkv=3), 3, 4, 5, 60) + Cost(Macs(qkv=10), Macs(qkv=10), 30, 40, 50, 6)
    assert total == Cost(Macs(qkv=11, head=2), Macs(qkv=13), 33, 44, 55, 60)


def test_the_paper_softmax_computes_every_score():
    for freeze in FREEZES:
        (op,) = attentions(frozen_program(freeze, "paper"))
        assert computed_scores(op) == 3 * 5 * 5


@pytest.mark.parametrize("freeze", ["heads", "all"])
def test_a_frozen_head_needs_neither_q_nor_k(freeze):
    cost, dense = count(frozen_program(freeze)), count(frozen_program("none")).macs
    frozen = cost.macs
    heads = {"heads": 1, "all": 3}[freeze]
    tokens, head_dim, width = 5, 4, 12
    assert dense.qkv - frozen.qkv == heads * 2 * tokens * width * head_dim
    assert dense.scores - frozen.scores == heads * tokens**2 * head_dim
    assert frozen.attention_value == dense.attention_value
    assert cost.dense == dense


def test_windows_share_a_map():
    (op,) = attentions(frozen_program("scattered", windows=4))
    assert op.frozen is not None
    shared = replace(op, frozen=replace(op.frozen, mask=op.frozen.mask[:1]))
    assert computed_scores(shared) == 4 * int(np.sum(~op.frozen.mask[0]))


@pytest.mark.parametrize(
    ("freeze", "unit"),
    [
        ("none", "weight"),
        ("empty", "weight"),
        ("scattered", "weight"),
        ("rows", "row"),
        ("columns", "column"),
        ("heads", "head"),
        ("all", "head"),
    ],
)
def test_granularity_is_read_off_the_masks(freeze, unit):
    assert granularity(frozen_program(freeze)) == unit


def test_frozen_share_of_the_real_masks():
    assert frozen_share(frozen_program("none")) == 0
    assert frozen_share(frozen_program("all")) == 1
    assert frozen_share(frozen_program("heads")) == pytest.approx(1 / 3)


def test_constants_are_everything_but_weights_and_maps():
    program = frozen_program("scattered")
    (op,) = attentions(program)
    assert op.frozen is not None
    unfrozen = replace(op, frozen=None)
    without = replace(program, operations=tuple(unfrozen if other is op else other for other in program.operations))
    assert constant_bytes(program) - constant_bytes(without) == op.frozen.row_log2.nbytes
    linear = next(op for op in program.operations if isinstance(op, Linear) and isinstance(op.epilogue, Residual))
    assert isinstance(linear.epilogue, Residual)
    expected = linear.bias.nbytes + linear.weight_zero.nbytes + linear.epilogue.multiplier.nbytes + linear.epilogue.shift.nbytes
    alone = unproved(program, operations=(linear,))
    assert constant_bytes(alone) == expected  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("elements", "bits", "expected"), [(0, 4, 0), (1, 1, 1), (8, 1, 1), (9, 1, 2), (3, 4, 2), (5, 16, 10)])
def test_packed_bytes_round_up(elements, bits, expected):
    assert packed_bytes(elements, bits) == expected


@pytest.mark.parametrize("detour", ["qkv.norm", "qkv.gather", "twice"])
def test_heads_whose_q_and_k_no_linear_of_their_own_makes_keep_them_by_name(detour):
    program = random_program(Shape(seed=2, detour=detour))
    kept = r"^block0\..*: its heads lose or regain q and k only where a Linear makes them for it alone, got block0\..*; count the program"
    with pytest.raises(UserError, match=kept):
        refrozen(program, whole_heads(program, 1), "renormalised")
    assert count(refrozen(program, scattered(0.5), "renormalised")).dense == count(thawed(program)).macs
