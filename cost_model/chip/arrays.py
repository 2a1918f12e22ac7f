"""Cycles and operand accesses of a PE array: SCALE-Sim's closed forms, and exact counts where a mask lets it skip.

A *fold* is one filling of the array: R x C of two axes of a product, while the third axis streams through in time.
SCALE-Sim (Samajdar et al., ISPASS 2020), for M = rows, N = columns, K = depth on R x C PEs:

    os  ceil(M/R) ceil(N/C) (R + C + K - 2) - 1     a PE keeps one result; K streams
    ws  ceil(K/R) ceil(N/C) (2R + C + M - 2) - 1    a PE keeps one weight; rows stream
    is  ceil(K/R) ceil(M/C) (2R + C + N - 2) - 1    a PE keeps one input; columns stream

A pipelined array pays the skew (R + C - 2, and R for the load) once a product, and a fold takes max(stream, R): loading the next fold's
stationary operand, or draining the last one's results, takes R steps behind it.

An operand without the streamed axis is touched once per fold, any other in every step. Sides are integers, or integer arrays of as
many designs: then so are the counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import add
from typing import Any, Literal

import numpy as np

from cost_model.work.gemms import Gemm

Dataflow = Literal["os", "ws", "is"]
Skip = Literal["none", "gate", "pair", "tile"]

DOWN = {"os": "rows", "ws": "depth", "is": "depth"}
ACROSS = {"os": "columns", "ws": "columns", "is": "rows"}
TIME = {"os": "depth", "ws": "rows", "is": "columns"}


@dataclass(frozen=True)
class Run:
    """What an array does for a Gemm; reads and writes in elements, before operand widths.

    macs: multiply-accumulates that toggle; result_writes: partial sums too; results: finished ones alone.
    """

    cycles: int = 0
    macs: int = 0
    left_reads: int = 0
    right_reads: int = 0
    result_writes: int = 0
    results: int = 0

    def __add__(self, other: Run) -> Run:
        return Run(*map(add, vars(self).values(), vars(other).values()))

    def __mul__(self, times: int) -> Run:
        return Run(*(times * count for count in vars(self).values()))


def fill(dataflow: Dataflow, array_rows, array_columns):
    """Cycles of a fold beside its stream: the skew in and out, and the load of what stays in the PEs."""
    return array_rows + array_columns - 2 + (0 if dataflow == "os" else array_rows)


def ceil_div(dividend, divisor):
    return -(-dividend // divisor)


def larger(left, right):
    """The maximum, of integers an integer."""
    return left + (right - left) * (right > left)


def smaller(left, right):
    """The minimum, of integers an integer."""
    return left + right - larger(left, right)


def dense_run(rows, columns, depth, dataflow: Dataflow, array_rows, array_columns, pipelined: bool = False) -> Run:
    """One product with nothing skipped, by the closed forms."""
    extent = {"rows": rows, "columns": columns, "depth": depth}
    down, across = ceil_div(extent[DOWN[dataflow]], array_rows), ceil_div(extent[ACROSS[dataflow]], array_columns)
    stream, skew = extent[TIME[dataflow]], fill(dataflow, array_rows, array_columns)
    cycles = down * across * larger(stream, array_rows) + skew if pipelined else down * across * (skew + stream)
    folds = {DOWN[dataflow]: down, ACROSS[dataflow]: across, TIME[dataflow]: 1}
    return Run(
        cycles - 1,
        rows * columns * depth,
        left_reads=rows * depth * folds["columns"],
        right_reads=depth * columns * folds["rows"],
        result_writes=rows * columns * folds["depth"],
        results=rows * columns,
    )


def run(gemm: Gemm, dataflow: Dataflow, array_rows: Any, array_columns: Any, skip: Skip, pipelined: bool = False) -> Run:
    """All products of a Gemm on an R x C array.

    none: everything is computed. gate: what is not needed does not toggle, and takes its time all the same. tile: as gate, and
    folds or steps of them that need nothing at all are left out. pair: each row of an os array goes on to its own next needed pair,
    unless it is slower than taking all.
    """
    if isinstance(array_rows, np.ndarray) and gemm.needed is not None and skip in ("tile", "pair"):
        sides = zip(map(int, array_rows), map(int, array_columns), strict=True)
        designs = [vars(run(gemm, dataflow, *side, skip, pipelined)).values() for side in sides]
        counts: list[Any] = [np.array(count) for count in zip(*designs, strict=True)]
        return Run(*counts)
    times = gemm.products * gemm.repeats
    dense = dense_run(gemm.rows, gemm.columns, gemm.depth, dataflow, array_rows, array_columns, pipelined) * times
    if gemm.needed is None or skip == "none":
        return dense
    gated = Run(dense.cycles, gemm.needed_macs, dense.left_reads, dense.right_reads, dense.result_writes, dense.results)
    if skip == "gate":
        return gated
    if skip == "tile":
        return tiled_run(gemm, gemm.needed, dataflow, array_rows, array_columns, pipelined) * gemm.repeats
    paired = paired_run(gemm, gemm.needed, array_rows, array_columns, pipelined) * gemm.repeats
    return min(paired, gated, key=lambda choice: choice.cycles)


def tiled_run(gemm: Gemm, needed: np.ndarray, dataflow: Dataflow, array_rows: Any, array_columns: Any, pipelined: bool) -> Run:
    """Every distinct product once, without the steps in which no PE has anything to do.

    The mask lies over rows and one more axis; the third axis is dense. `kept` are the blocks of the mask (R or C wide along an
    axis of the array, 1 along the streamed one) in which something is needed.
    """
    size = {DOWN[dataflow]: array_rows, ACROSS[dataflow]: array_columns, TIME[dataflow]: 1}
    time, masked = TIME[dataflow], gemm.over
    dense = "depth" if masked == "columns" else "columns"
    extent = getattr(gemm, dense)
    folds = ceil_div(extent, size[dense]) if time != dense else 1
    kept, heights, widths = blocks(needed, size["rows"], size[masked])

    streams = np.where(kept, extent, 0) if time == dense else kept.sum(axis=1 if time == "rows" else 2)
    busy = streams.reshape(len(kept), -1)
    cycles = _folded(busy, folds, fill(dataflow, array_rows, array_columns), array_rows, pipelined)

    tall, wide = heights[None, :, None], widths[None, None, :]
    both = folds * int((kept * tall * wide).sum())
    by_row = extent * int((kept.any(axis=2) * heights).sum() if time == masked else (kept * tall).sum())
    by_masked = extent * int((kept.any(axis=1) * widths).sum() if time == "rows" else (kept * wide).sum())
    once = {"left_reads": both, "right_reads": by_masked, "result_writes": by_row}
    if masked == "columns":
        once = {"left_reads": by_row, "right_reads": by_masked, "result_writes": both}
    results = both // folds if masked == "columns" else extent * int((kept.any(axis=2) * heights).sum())
    needed_cells = int(np.count_nonzero(needed))
    return Run(int((cycles - (cycles > 0)).sum()), needed_cells * extent, **once, results=results)


def paired_run(gemm: Gemm, needed: np.ndarray, array_rows: Any, array_columns: Any, pipelined: bool) -> Run:
    """Every distinct product once on an os array whose rows each go on to their own next needed pair.

    R rows of a block work in step, so that the longest decides. A key or value is read once for a block and handed to
    whichever of its rows needs it: the crossbar that does so is not charged.
    """
    per_row = needed.sum(axis=2)
    starts = np.arange(0, gemm.rows, array_rows)
    fetched = int(blocks(needed, array_rows, 1)[0].sum())
    pairs, skew = int(per_row.sum()), fill("os", array_rows, array_columns)
    if gemm.over == "columns":
        passes = ceil_div(per_row, array_columns)
        steps = np.maximum.reduceat(passes, starts, axis=1).sum(axis=1)
        cycles = steps * larger(gemm.depth, array_rows) + skew * (steps > 0) if pipelined else steps * (skew + gemm.depth)
        left, right, results = int(passes.sum()) * gemm.depth, fetched * gemm.depth, pairs
        macs = pairs * gemm.depth
    else:
        longest = np.maximum.reduceat(per_row, starts, axis=1)
        folds = ceil_div(gemm.columns, array_columns)
        cycles = _folded(longest, folds, skew, array_rows, pipelined)
        left, right, results = pairs * folds, fetched * gemm.columns, int(np.count_nonzero(per_row)) * gemm.columns
        macs = pairs * gemm.columns
    return Run(int((cycles - (cycles > 0)).sum()), macs, left, right, results, results)


def _folded(streams: np.ndarray, folds: int, skew: int, array_rows: int, pipelined: bool) -> np.ndarray:
    """Cycles of each product, of its blocks' streams [products, blocks], each `folds` times; a block without a stream is left out."""
    busy = streams > 0
    if pipelined:
        return folds * (np.maximum(streams, array_rows) * busy).sum(axis=1) + skew * busy.any(axis=1)
    return folds * (streams + skew * busy).sum(axis=1)


def blocks(needed: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which blocks of bool [products, rows, columns] need anything: bool [products, down, across], with their heights and widths."""
    down, across = np.arange(0, needed.shape[1], height), np.arange(0, needed.shape[2], width)
    kept = np.logical_or.reduceat(np.logical_or.reduceat(needed, down, axis=1), across, axis=2)
    return kept, np.diff([*down, needed.shape[1]]), np.diff([*across, needed.shape[2]])


def row_balance(needed: np.ndarray, array_rows: int) -> float:
    """Mean over longest: needed pairs / (rows of a block x those of its longest row), over bool [products, rows, columns]; 1 if none is."""
    per_row = needed.sum(axis=2)
    starts = np.arange(0, needed.shape[1], array_rows)
    heights = np.diff([*starts, needed.shape[1]])
    slots = int((np.maximum.reduceat(per_row, starts, axis=1) * heights).sum())
    return int(per_row.sum()) / slots if slots else 1.0
