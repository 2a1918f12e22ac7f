"""Partial sums and scores between the array and the vector unit, against loops over folds; folds one behind another; ports; sizes."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cost_model.chip.arrays import ACROSS, DOWN, TIME, dense_run, fill, run
from cost_model.chip.hardware import Array, Hardware, load, parse, preset_text
from cost_model.models.architectures import architecture
from cost_model.models.skeleton import skeleton
from cost_model.models.variants import refrozen, scattered
from cost_model.price.energy import compute_run, evaluate, latched_bits
from cost_model.price.sums import partial_sums, tiles
from cost_model.price.traffic import Traffic, code_bits
from cost_model.work.gemms import Gemm
from cost_model.work.memory import live_bytes
from eamsim.errors import UserError
from eamsim.program import Attention

TINY = skeleton(architecture("deit_tiny_patch16_224"))
LARGE = load("large-npu")


def array(dataflow: str, rows: int, columns: int) -> Array:
    assert isinstance(LARGE.compute, Array)
    return LARGE.compute.model_copy(update={"dataflow": dataflow, "rows": rows, "columns": columns, "left_bits": 8, "right_bits": 8})


def with_accumulators(chip: Hardware, size: int | None) -> Hardware:
    accumulators = chip.memories.accumulators
    assert accumulators is not None
    changed = None if size is None else accumulators.model_copy(update={"bytes": size})
    return chip.model_copy(update={"memories": chip.memories.model_copy(update={"accumulators": changed})})


def looped_sums(gemm: Gemm, chip: Array, room: int) -> tuple[int, int]:
    """Bits of partial sums in the accumulators and in the SRAM: fold after fold, each sum that an earlier fold left is read again."""
    extent = {"rows": gemm.rows, "columns": gemm.columns, "depth": gemm.depth}
    width = min(chip.columns, extent[ACROSS[chip.dataflow]]) * gemm.sums * 32
    kept = spilled = 0
    for across in range(0, extent[ACROSS[chip.dataflow]], chip.columns):
        held = min(chip.columns, extent[ACROSS[chip.dataflow]] - across)
        for _ in range(chip.rows, extent[DOWN[chip.dataflow]], chip.rows):
            for step in range(extent[TIME[chip.dataflow]]):
                if (step + 1) * width <= room:
                    kept += held * gemm.sums * 32
                else:
                    spilled += held * gemm.sums * 32
    return kept, spilled


products = st.builds(Gemm, *[st.integers(1, 40)] * 3, st.just(4), st.just(4), repeats=st.integers(1, 2), sums=st.integers(1, 2))


@settings(max_examples=150)
@given(products, st.sampled_from(["ws", "is"]), st.integers(1, 9), st.integers(1, 9), st.integers(0, 20_000))
def test_partial_sums_are_those_of_a_loop_over_folds(gemm, dataflow, height, width, room):
    chip = array(dataflow, height, width)
    moved = partial_sums(gemm, compute_run(gemm, chip), chip, room)
    kept, spilled = (gemm.repeats * bits for bits in looped_sums(gemm, chip, room))
    assert (moved.accumulator_write_bits, moved.sram_write_bits) == (kept, spilled)
    assert (moved.accumulator_read_bits, moved.sram_read_bits) == (kept, spilled)


def test_an_output_stationary_array_has_no_partial_sums():
    gemm, chip = Gemm(40, 40, 40, 4, 4), array("os", 4, 4)
    assert partial_sums(gemm, compute_run(gemm, chip), chip, 0) == Traffic()


@settings(max_examples=150)
@given(products, st.sampled_from(["os", "ws", "is"]), st.integers(1, 9), st.integers(1, 9), st.integers(0, 20_000))
def test_tiles_are_the_whole_and_move_no_more_through_the_sram(gemm, dataflow, height, width, room):
    chip = array(dataflow, height, width)

    def moved(pieces: list[Gemm]) -> int:
        runs = [(piece, compute_run(piece, chip)) for piece in pieces]
        sums = [partial_sums(piece, done, chip, room) for piece, done in runs]
        read = sum(done.left_reads * piece.left_bits + done.right_reads * piece.right_bits for piece, done in runs)
        return read + sum(each.sram_read_bits + each.sram_write_bits for each in sums)

    pieces = tiles(gemm, chip, room)
    assert sum(piece.dense_macs for piece in pieces) == gemm.dense_macs
    assert moved(pieces) <= moved([gemm])


def test_designs_priced_together_are_cut_as_one_by_one():
    gemm, sides = Gemm(300, 70, 90, 4, 4), [(4, 8), (16, 16), (64, 64)]
    rows, columns = np.array(sides).T
    together = array("ws", 1, 1).model_copy(update={"rows": rows, "columns": columns})
    runs = [compute_run(piece, together) for piece in tiles(gemm, together, 40_000)]
    for index, side in enumerate(sides):
        alone = [compute_run(piece, array("ws", *side)) for piece in tiles(gemm, array("ws", *side), 40_000)]
        for name in ("cycles", "macs", "right_reads", "results"):
            assert sum(np.broadcast_to(getattr(done, name), 3)[index] for done in runs) == sum(getattr(done, name) for done in alone)


def test_designs_priced_together_stay_within_64_bits():
    """Of a batch of 65,536 images, whose partial sums times the steps that fit are above 2^63."""
    gemm, room = Gemm(65_536 * 197, 1536, 384, 4, 4), 8 << 32
    together = array("ws", 1, 1).model_copy(update={"rows": np.array([16, 64]), "columns": np.array([16, 64])})
    moved = partial_sums(gemm, compute_run(gemm, together), together, room)
    for index, side in enumerate((16, 64)):
        alone = partial_sums(gemm, compute_run(gemm, array("ws", side, side)), array("ws", side, side), room)
        assert moved.accumulator_write_bits[index] == alone.accumulator_write_bits  # type: ignore[index]
        assert moved.sram_write_bits[index] == alone.sram_write_bits  # type: ignore[index]


def test_what_does_not_fit_the_accumulators_goes_to_the_sram():
    fits, half, none = (evaluate(TINY, with_accumulators(LARGE, size)) for size in (1 << 20, 20_000, None))
    sums = 2 * 36 * 197**2 * 32 + 36 * 197**2 * 32  # scores: written once, read twice
    assert none.traffic.accumulator_read_bits == 0
    spilled = none.traffic.sram_read_bits + none.traffic.sram_write_bits - fits.traffic.sram_read_bits - fits.traffic.sram_write_bits
    assert spilled == fits.traffic.accumulator_read_bits + fits.traffic.accumulator_write_bits > sums
    assert fits.energy.nominal_pj < half.energy.nominal_pj < none.energy.nominal_pj


@pytest.mark.parametrize("softmax", ["paper", "renormalised"])
def test_scores_wait_for_their_row(softmax):
    """Small array: a block of 16 rows of 197 scores is 12.6 KB, within its 16 KiB."""
    small, frozen = load("small-npu"), 36 * round(0.3 * 197**2)
    traffic = evaluate(refrozen(TINY, scattered(0.3), softmax), small).traffic
    computed = 36 * 197**2 - (frozen if softmax == "renormalised" else 0)
    coded = 36 * 197**2 - frozen
    assert traffic.accumulator_write_bits == 32 * computed
    assert traffic.accumulator_read_bits == 32 * (computed + coded)
    halved = evaluate(refrozen(TINY, scattered(0.3), softmax), with_accumulators(small, 8 * 197 * 4)).traffic
    assert halved.accumulator_write_bits == 12 * (32 * computed // 12 // 2)


@settings(max_examples=100)
@given(products, st.sampled_from(["os", "ws", "is"]), st.integers(1, 9), st.integers(1, 9))
def test_pipelined_folds_pay_the_skew_once(gemm, dataflow, height, width):
    extent = {"rows": gemm.rows, "columns": gemm.columns, "depth": gemm.depth}
    stream, cycles = extent[TIME[dataflow]], fill(dataflow, height, width) - 1
    for _ in range(0, extent[DOWN[dataflow]], height):
        for _ in range(0, extent[ACROSS[dataflow]], width):
            cycles += max(stream, height)
    done = dense_run(gemm.rows, gemm.columns, gemm.depth, dataflow, height, width, pipelined=True)
    assert done.cycles == cycles
    apart = dense_run(gemm.rows, gemm.columns, gemm.depth, dataflow, height, width)
    assert replace(done, cycles=0) == replace(apart, cycles=0)
    if stream >= height:
        assert done.cycles <= apart.cycles


@settings(max_examples=60)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(["columns", "depth"]),
    st.sampled_from(["tile", "pair"]),
    st.integers(1, 6),
    st.integers(1, 6),
)
def test_a_pipelined_array_skips_as_much_as_another(seed, over, skip, height, width):
    generator = np.random.default_rng(seed)
    rows, other, depth = generator.integers(1, 12, 3)
    needed = generator.random((2, rows, other)) < 0.5
    shape = (int(rows), int(other), int(depth)) if over == "columns" else (int(rows), int(depth), int(other))
    gemm = Gemm(*shape, 4, 4, needed=needed, over=over)
    done, apart = (run(gemm, "os", height, width, skip, pipelined) for pipelined in (True, False))
    assert done.macs == apart.macs
    everything = run(replace(gemm, needed=np.ones_like(needed)), "os", height, width, skip, True)
    assert done.cycles <= everything.cycles
    assert everything.cycles == run(replace(gemm, needed=None, repeats=2), "os", height, width, skip, True).cycles


def test_registers_by_dataflow():
    """2 x 2 array, 3 x 2 x 4 product at 8 x 8 bits: 24 multiplies; os drains 6 sums over one hop, ws loads 8 weights, is 12 inputs."""
    gemm, bits = Gemm(3, 2, 4, 8, 8), {}
    for dataflow in ("os", "ws", "is"):
        chip = array(dataflow, 2, 2)
        bits[dataflow] = latched_bits(chip, gemm, compute_run(gemm, chip))
    assert bits == {"os": 24 * (16 + 32) + 6 * 32, "ws": 24 * (8 + 32) + 8 * 8, "is": 24 * (8 + 32) + 12 * 8}


def test_a_second_port_serves_reads_and_writes_at_once():
    memory = LARGE.memories.sram.model_copy(update={"bits_per_cycle": 10, "ports": 1})
    assert memory.cycles(45, 31) == 8
    assert memory.model_copy(update={"ports": 2}).cycles(45, 31) == 5


def test_a_bit_of_a_memory_four_times_as_large_costs_twice_as_much():
    sram = LARGE.memories.sram
    grown = sram.of_size(4 * sram.bytes)
    assert grown.read_pj_per_bit.nominal == pytest.approx(2 * sram.read_pj_per_bit.nominal)
    assert (grown.leakage_mw, grown.bits_per_cycle) == (4 * sram.leakage_mw, sram.bits_per_cycle)
    assert sram.of_size(sram.bytes) == sram


def test_accumulators_hold_nothing_for_good():
    text = preset_text("small-npu").replace("    ports: 2\n", "    ports: 2\n    holds: [maps]\n")
    with pytest.raises(UserError, match="accumulators hold partial sums and scores, and nothing for good"):
        parse(text, "hw.yaml")
    with pytest.raises(UserError, match="--maps: small-npu has sram, dram, got 'accumulators'"):
        load("small-npu").with_maps_in("accumulators")  # type: ignore[arg-type]


def test_an_image_that_streams_is_read_from_the_dram_and_takes_no_room():
    small = load("small-npu")
    streaming = small.model_copy(update={"memories": small.memories.model_copy(update={"streams_image": True})})
    before, after = evaluate(TINY, small, 2), evaluate(TINY, streaming, 2)
    pixels = 2 * 224 * 224 * 3 * 8
    assert after.traffic.dram_read_bits - before.traffic.dram_read_bits == pixels
    assert before.traffic.sram_read_bits - after.traffic.sram_read_bits == pixels
    first = TINY.operations[0].out.name
    assert live_bytes(TINY)[first] - live_bytes(TINY, streams_image=True)[first] == 224 * 224 * 3


def test_a_residual_in_place_takes_no_room_of_its_own():
    live, packed = live_bytes(TINY), live_bytes(TINY, residual_in_place=True)
    saved = {name: live[name] - packed[name] for name in live if live[name] != packed[name]}
    assert saved == dict.fromkeys([f"block{block}.{name}" for block in range(12) for name in ("attn.proj", "mlp.fc2")], 197 * 192 * 2)


def test_without_double_buffers_fetches_are_waited_for():
    small = load("small-npu")
    single = small.model_copy(update={"memories": small.memories.model_copy(update={"double_buffered": False})})
    before, after = evaluate(TINY, small), evaluate(TINY, single)
    dram = small.memories.dram
    assert dram is not None
    for double, alone in zip(before.operations, after.operations, strict=True):
        assert alone.cycles["fetch"] == -(-alone.fetches.dram_read_bits // dram.bits_per_cycle)
        assert alone.total_cycles >= double.total_cycles
        assert alone.total_cycles == alone.cycles["fetch"] + max(count for name, count in alone.cycles.items() if name != "fetch")


def test_the_weight_buffer_and_the_codes_of_a_head_need_room():
    small, most = load("small-npu"), max(live_bytes(TINY, residual_in_place=True).values())
    attention = next(op for op in TINY.operations if isinstance(op, Attention))
    assert code_bits(attention) == 197**2 * 4
    for spare, fits in ((0, True), (-1, False)):
        sram = small.memories.sram.model_copy(update={"bytes": most + small.memories.weight_buffer_bytes + spare})
        chip = small.model_copy(update={"memories": small.memories.model_copy(update={"sram": sram})})
        assert (not evaluate(TINY, chip).placement.spilled) is fits
