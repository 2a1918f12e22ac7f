"""Cycles and operand accesses of a SIMD core: dot products of `lanes` elements a step, results one after the other."""

from __future__ import annotations

from math import ceil

import numpy as np

from cost_model.chip.arrays import Run, ceil_div
from cost_model.work.gemms import Gemm


def simd_run(gemm: Gemm, lanes: int, cycles_per_step: float, register_tile: int, skips_pairs: bool) -> Run:
    """All products of a Gemm; `macs` are the lanes of all steps, those of a last, partly filled step included.

    A loop over the needed pairs alone loses the register tile, so the core does whichever takes fewer cycles. A repeat begins in a
    cycle of its own.
    """
    results = gemm.products * gemm.rows * gemm.columns
    dense = _run(results * ceil_div(gemm.depth, lanes), results, lanes, cycles_per_step, register_tile)
    if gemm.needed is None or not skips_pairs:
        return dense * gemm.repeats
    if gemm.over == "columns":
        results = int(np.count_nonzero(gemm.needed))
        steps = results * ceil_div(gemm.depth, lanes)
    else:
        results = gemm.columns * int(np.count_nonzero(gemm.needed.any(axis=2)))
        steps = gemm.columns * int(ceil_div(gemm.needed.sum(axis=2), lanes).sum())
    return min(dense, _run(steps, results, lanes, cycles_per_step, 1), key=lambda choice: choice.cycles) * gemm.repeats


def _run(steps: int, results: int, lanes: int, cycles_per_step: float, register_tile: int) -> Run:
    loads = ceil_div(steps * lanes, register_tile)
    return Run(ceil(steps * cycles_per_step), steps * lanes, loads, loads, results, results)
