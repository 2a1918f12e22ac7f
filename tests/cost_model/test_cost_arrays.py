"""Closed forms against SCALE-Sim's own results, and skipping against loops over masks."""

from itertools import product

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from cost_model.chip.arrays import ACROSS, DOWN, TIME, Run, blocks, ceil_div, dense_run, row_balance, run
from cost_model.chip.simd import simd_run
from cost_model.work.gemms import Gemm

FLOWS = ("os", "ws", "is")
# M, N, K, array rows and columns: cycles, left and right reads for os, ws, is, as scalesim 3.0.0 reports them
# (tests/cross_runtime/scalesim_cycles.py)
SCALESIM = {
    (197, 576, 192, 32, 16): ((59975, 1361664, 774144), (59399, 1361664, 110592), (51011, 37824, 1437696)),
    (197, 197, 64, 16, 16): ((15885, 163904, 163904), (12635, 163904, 12608), (12635, 12608, 163904)),
    (197, 64, 197, 16, 16): ((11803, 155236, 163904), (12635, 155236, 12608), (18589, 38809, 163904)),
    (65, 768, 192, 8, 24): ((63935, 399360, 1327104), (79103, 399360, 147456), (58031, 12480, 442368)),
    (5, 7, 3, 4, 4): ((35, 30, 42), (29, 30, 21), (33, 15, 42)),
    (1, 1000, 192, 16, 16): ((13985, 12096, 192000), (35531, 12096, 192000), (12551, 192, 192000)),
}


@pytest.mark.parametrize("shape", SCALESIM)
@pytest.mark.parametrize("dataflow", FLOWS)
def test_scalesim(shape, dataflow):
    rows, columns, depth, array_rows, array_columns = shape
    done = dense_run(rows, columns, depth, dataflow, array_rows, array_columns)
    assert (done.cycles, done.left_reads, done.right_reads) == SCALESIM[shape][FLOWS.index(dataflow)]
    assert done.macs == rows * columns * depth
    assert done.result_writes == rows * columns * (1 if dataflow == "os" else -(-depth // array_rows))


def test_closed_forms_take_arrays_of_design_points():
    sides = np.array([8, 16, 32])
    done = dense_run(197, 576, 192, "os", sides, sides)
    assert [dense_run(197, 576, 192, "os", side, side).cycles for side in (8, 16, 32)] == list(done.cycles)  # pyright: ignore[reportArgumentType]


@st.composite
def masked_gemms(draw) -> Gemm:
    rows, columns, depth = (draw(st.integers(1, 9)) for _ in range(3))
    over = draw(st.sampled_from(["columns", "depth"]))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (draw(st.integers(1, 3)), rows, columns if over == "columns" else depth)
    needed = generator.random(shape) < draw(st.sampled_from([0, 0.1, 0.5, 0.9, 1]))
    if draw(st.booleans()):
        needed[:, generator.random(rows) < 0.5] = False
    return Gemm(rows, columns, depth, 4, 4, repeats=draw(st.integers(1, 2)), needed=needed, over=over)


def looped_tiles(gemm: Gemm, dataflow: str, height: int, width: int) -> Run:
    """Fold after fold, step after step: a step happens if any of its multiplies is needed."""
    extent = {"rows": gemm.rows, "columns": gemm.columns, "depth": gemm.depth}
    operands = {"left_reads": ("rows", "depth"), "right_reads": ("depth", "columns"), "result_writes": ("rows", "columns")}
    total = Run()
    for mask in gemm.needed if gemm.needed is not None else ():
        counts = dict.fromkeys(operands, 0)
        cycles, results = 0, set()
        for top, left in product(range(0, extent[DOWN[dataflow]], height), range(0, extent[ACROSS[dataflow]], width)):
            block = {
                DOWN[dataflow]: range(top, min(top + height, extent[DOWN[dataflow]])),
                ACROSS[dataflow]: range(left, min(left + width, extent[ACROSS[dataflow]])),
            }
            touched = {name: [] for name in operands}
            steps = 0
            for now in range(extent[TIME[dataflow]]):
                step = block | {TIME[dataflow]: (now,)}
                if not any(mask[row, other] for row in step["rows"] for other in step[gemm.over]):
                    continue
                steps += 1
                results |= set(product(step["rows"], step["columns"]))
                for name, axes in operands.items():
                    touched[name] += product(*(step[axis] for axis in axes))
            if steps:
                cycles += height + width - 2 + (0 if dataflow == "os" else height) + steps
                for name, axes in operands.items():
                    counts[name] += len(touched[name]) if TIME[dataflow] in axes else len(set(touched[name]))
        macs = int(mask.sum()) * (gemm.depth if gemm.over == "columns" else gemm.columns)
        total += Run(max(cycles - 1, 0), macs, **counts, results=len(results))
    return total * gemm.repeats


@examples(80)
@given(masked_gemms(), st.sampled_from(FLOWS), st.integers(1, 5), st.integers(1, 5))
def test_tile_skipping_equals_loops(gemm, dataflow, height, width):
    assert run(gemm, dataflow, height, width, "tile") == looped_tiles(gemm, dataflow, height, width)


@examples(80)
@given(masked_gemms(), st.sampled_from(FLOWS), st.integers(1, 5), st.integers(1, 5))
def test_what_skipping_may_change(gemm, dataflow, height, width):
    none, gate, tile = (run(gemm, dataflow, height, width, skip) for skip in ("none", "gate", "tile"))
    assert none == dense_run(gemm.rows, gemm.columns, gemm.depth, dataflow, height, width) * (gemm.products * gemm.repeats)
    assert (none.macs, gate.macs, tile.macs) == (gemm.dense_macs, gemm.needed_macs, gemm.needed_macs)
    assert gate.cycles == none.cycles >= tile.cycles
    assert gate.left_reads == none.left_reads >= tile.left_reads
    if gemm.needed is not None and gemm.needed.all():
        assert tile == none


@examples(80)
@given(masked_gemms(), st.integers(1, 5), st.integers(1, 5))
def test_pair_skipping_equals_loops(gemm, height, width):
    cycles = 0
    assert gemm.needed is not None
    for mask in gemm.needed:
        folds = 0
        for top in range(0, gemm.rows, height):
            longest = max(int(row.sum()) for row in mask[top : top + height])
            if gemm.over == "columns":
                folds += -(-longest // width) * (height + width - 2 + gemm.depth)
            elif longest:
                folds += -(-gemm.columns // width) * (height + width - 2 + longest)
        cycles += max(folds - 1, 0)
    dense = run(gemm, "os", height, width, "gate")
    done = run(gemm, "os", height, width, "pair")
    assert done.cycles == min(dense.cycles, cycles * gemm.repeats)
    assert done.macs == gemm.needed_macs


@examples(80)
@given(masked_gemms(), st.integers(1, 4), st.sampled_from([1.0, 1.5]), st.integers(1, 3))
def test_a_simd_core_skips_single_pairs(gemm, lanes, cycles_per_step, register_tile):
    assert gemm.needed is not None
    dense = steps = 0
    for mask in gemm.needed:
        dense += gemm.rows * gemm.columns * -(-gemm.depth // lanes)
        for row in mask:
            needed = int(row.sum())
            steps += needed * -(-gemm.depth // lanes) if gemm.over == "columns" else gemm.columns * -(-needed // lanes)
    assert simd_run(gemm, lanes, cycles_per_step, register_tile, False).macs == gemm.repeats * dense * lanes
    skipping = simd_run(gemm, lanes, cycles_per_step, register_tile, True)
    assert skipping.cycles == gemm.repeats * min(int(np.ceil(dense * cycles_per_step)), int(np.ceil(steps * cycles_per_step)))


def test_a_fold_is_skipped_only_where_all_of_it_is_frozen():
    needed = np.ones((1, 32, 32), bool)
    needed[0, :16, :16] = False
    gemm = Gemm(32, 32, 64, 4, 4, needed=needed)
    assert run(gemm, "os", 16, 16, "tile").cycles == 3 * (16 + 16 + 64 - 2) - 1
    needed[0, 3, 5] = True
    assert run(gemm, "os", 16, 16, "tile").cycles == 4 * (16 + 16 + 64 - 2) - 1


def test_scattered_weights_hardly_skip_tiles_while_the_same_share_in_rows_does():
    generator = np.random.default_rng(0)
    scattered = generator.random((3, 197, 197)) >= 0.947
    rows = np.broadcast_to(generator.random((3, 197, 1)) >= 0.947, scattered.shape)
    skipped = [1 - blocks(needed, 16, 16)[0].mean() for needed in (scattered, rows)]
    assert skipped[0] < 0.01 < 0.3 < skipped[1]


def test_row_balance_is_mean_over_longest():
    needed = np.zeros((1, 4, 6), bool)
    needed[0, 0, :4] = needed[0, 1, :2] = needed[0, 2, :1] = True
    assert row_balance(needed, 2) == (4 + 2 + 1) / (2 * 4 + 2 * 1)
    assert row_balance(np.zeros((1, 4, 6), bool), 2) == 1


def test_ceil_div():
    assert [ceil_div(n, 4) for n in (0, 1, 4, 5)] == [0, 1, 1, 2]
