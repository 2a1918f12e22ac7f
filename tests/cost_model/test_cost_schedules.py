"""Choices of a schedule and of a DRAM: pairs of operations as one, bursts and rows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import FREEZES, Shape, random_program

from cost_model.chip.hardware import Hardware, load, parse, preset_text
from cost_model.models.architectures import ARCHITECTURES
from cost_model.models.skeleton import skeleton
from cost_model.models.variants import refrozen, scattered
from cost_model.price.energy import evaluate
from cost_model.work.encodings import entries
from cost_model.work.fusion import fused_pairs
from cost_model.work.memory import live_bytes
from eamsim.errors import UserError

TINY = skeleton(ARCHITECTURES["deit_tiny_patch16_224"])
SMALL = load("small-npu")


def scheduled(chip: Hardware, **choices) -> Hardware:
    return chip.model_copy(update={"memories": chip.memories.model_copy(update=choices)})


def with_sram(chip: Hardware, size: int) -> Hardware:
    return scheduled(chip, sram=chip.memories.sram.model_copy(update={"bytes": size}))


def with_dram(chip: Hardware, **fields) -> Hardware:
    assert chip.memories.dram is not None
    return scheduled(chip, dram=chip.memories.dram.model_copy(update=fields))


def test_the_pairs_of_a_deit_tiny():
    pairs = fused_pairs(TINY, by_head=True, mlp_rows=32, batch=1)
    assert [(pair.first, pair.second, pair.part, pair.whole) for pair in pairs[:2]] == [
        ("block0.attn.qkv", "block0.attn", 1, 3),
        ("block0.mlp.fc1", "block0.mlp.fc2", 32, 197),
    ]
    assert len(pairs) == 24


def test_of_a_fused_value_a_part_is_alive_and_what_is_read_and_made_beside_it():
    """fc1 and fc2, 197 x 192 wide 4 times that, codes of 4 bits: 32 rows of the hidden layer, norm2, the stream and its sum."""
    live = live_bytes(TINY, fused=fused_pairs(TINY, False, 32, 1))
    alone = live_bytes(TINY)
    codes, stream, hidden = 197 * 192 // 2, 197 * 192 * 2, 197 * 768 // 2
    assert alone["block0.mlp.fc1"] == codes + stream + hidden
    assert live["block0.mlp.fc1"] == live["block0.mlp.fc2"] == codes + 2 * stream + 32 * 768 // 2
    packed = live_bytes(TINY, residual_in_place=True, fused=fused_pairs(TINY, False, 32, 1))
    assert packed["block0.mlp.fc1"] == packed["block0.mlp.fc2"] == codes + stream + 32 * 768 // 2
    assert {name for name in live if live[name] != alone[name]} <= {f"block{n}.mlp.{part}" for n in range(12) for part in ("fc1", "fc2")}


def test_by_rows_less_spills_and_weights_that_do_not_fit_come_for_each_block():
    tight = with_sram(SMALL, 230_000)
    apart, fused = evaluate(TINY, tight), evaluate(TINY, scheduled(tight, mlp_rows=32))
    assert "block0.mlp.fc1" in apart.placement.spilled
    assert fused.placement.spilled < apart.placement.spilled
    weights = 2 * 192 * 768 * 4
    assert 8 * tight.memories.weight_buffer_bytes < weights
    fc1 = {op.name: op for op in fused.operations}["block0.mlp.fc1"]
    assert fc1.fetches.dram_read_bits >= 7 * 192 * 768 * 4
    roomy = scheduled(SMALL, mlp_rows=32, weight_buffer_bytes=weights // 8)
    once = {op.name: op for op in evaluate(TINY, roomy).operations}["block0.mlp.fc1"]
    assert once.fetches == {op.name: op for op in evaluate(TINY, SMALL).operations}["block0.mlp.fc1"].fetches


def test_by_head_only_the_room_changes():
    apart, fused = evaluate(TINY, SMALL), evaluate(TINY, scheduled(SMALL, attention_by_head=True))
    assert fused.energy == apart.energy
    peak = max(live_bytes(TINY).values())
    assert max(live_bytes(TINY, fused=fused_pairs(TINY, True, None, 1)).values()) <= peak


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 999), st.sampled_from(FREEZES), st.integers(1, 40))
def test_fusing_changes_no_multiply_and_takes_no_more_room_than_its_ends(seed, freeze, rows):
    program = random_program(Shape(seed=seed, side=8, patch=2, heads=2, head_dim=4, hidden=32, depth=2, freeze=freeze))
    chip = scheduled(SMALL, attention_by_head=True, mlp_rows=rows)
    apart, fused = evaluate(program, SMALL), evaluate(program, chip)
    assert [op.macs for op in fused.operations] == [op.macs for op in apart.operations]
    assert fused.traffic.dram_read_bits >= apart.traffic.dram_read_bits  # all fits: weights again, at most
    assert fused.cycles_per_image >= apart.cycles_per_image


def test_bursts_round_up_and_rows_are_opened():
    dram = SMALL.memories.dram
    assert dram is not None
    burst = dram.model_copy(update={"burst_bits": 256})
    assert (burst.in_bursts(0), burst.in_bursts(1), burst.in_bursts(256), burst.in_bursts(257)) == (0, 256, 256, 512)
    assert burst.cycles(1, 0) == -(-256 // dram.bits_per_cycle)
    opened = burst.model_copy(update={"row_bits": 8192, "row_cycles": 20, "row_pj": dram.read_pj_per_bit * 100})
    assert opened.rows(8192, 1) == 2
    assert opened.cycles(8192, 256) == -(-8448 // dram.bits_per_cycle) + 40
    assert opened.energy(8192, 256).nominal_pj == pytest.approx(8 * 8448 + 2 * 800)


@settings(max_examples=100)
@given(st.integers(0, 1 << 20), st.integers(0, 1 << 20), st.integers(1, 4096), st.integers(1, 1 << 16))
def test_more_bits_never_cost_less(bits, more, burst, row):
    dram = SMALL.memories.dram
    assert dram is not None
    memory = dram.model_copy(update={"burst_bits": burst, "row_bits": row, "row_cycles": 3, "row_pj": dram.read_pj_per_bit})
    for few, many in ((memory.cycles(bits, 0), memory.cycles(bits + more, 0)), (memory.cycles(0, bits), memory.cycles(0, bits + more))):
        assert few <= many
    assert memory.energy(bits, 0).nominal_pj <= memory.energy(bits + more, 0).nominal_pj


def test_a_larger_burst_or_a_costlier_row_never_saves():
    figures = [evaluate(TINY, with_dram(SMALL, burst_bits=burst)) for burst in (1, 64, 512, 4096)]
    rows = with_dram(SMALL, row_bits=16384, row_pj=SMALL.memories.sram.read_pj_per_bit * 1000, row_cycles=10)
    figures.append(evaluate(TINY, rows))
    assert [each.energy.nominal_pj for each in figures[:4]] == sorted(each.energy.nominal_pj for each in figures[:4])
    assert figures[-1].energy.nominal_pj > figures[0].energy.nominal_pj
    assert figures[-1].cycles_per_image >= figures[0].cycles_per_image


def test_row_costs_want_a_row():
    text = preset_text("small-npu").replace("    bits_per_cycle: 102\n", "    bits_per_cycle: 102\n    row_cycles: 10\n")
    with pytest.raises(UserError, match="give row_bits too"):
        parse(text, "x.yaml")


def test_entries_of_a_map_are_decoded_one_after_another():
    """tau 0.9: computed columns and row pointers of 36 heads; a bitmap is looked up pair by pair, whatever an entry takes."""
    slow = SMALL.model_copy(update={"vector": SMALL.vector.model_copy(update={"map_entry_steps": 3})})
    frozen = refrozen(TINY, scattered(0.9), "renormalised")
    entries = 36 * (197 + 1 + 197**2 - round(0.9 * 197**2))
    more = evaluate(frozen, slow).energy.nominal_pj - evaluate(frozen, SMALL).energy.nominal_pj
    assert more >= 3 * entries * SMALL.vector.simple_pj.nominal * (1 - 1e-9)
    bitmap = [evaluate(frozen, chip, encoding="bitmap").energy for chip in (slow, SMALL)]
    assert bitmap[0] == bitmap[1]


@pytest.mark.parametrize(("encoding", "count"), [("run-length", 3 + 4), ("csr-frozen", 4 + 5), ("csr-computed", 4 + 7), ("bitmap", 0)])
def test_entries_by_encoding(encoding, count):
    mask = np.array([[1, 1, 0, 0], [0, 1, 1, 0], [1, 0, 0, 0]], np.bool_)
    assert entries(mask, encoding) == count
