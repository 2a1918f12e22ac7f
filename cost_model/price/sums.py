"""What waits between the array and the vector unit: partial sums of a stationary dataflow, and scores until their row is whole.

Both wait in the accumulators beside the array, as far as these suffice, otherwise in the SRAM. A stream too long for them is cut into
tiles, whose stationary operand is read again for each, if that moves fewer bits through the SRAM than spilling would.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cost_model.chip.arrays import ACROSS, TIME, Run, ceil_div, dense_run, larger, smaller
from cost_model.chip.hardware import Array, Hardware, Simd
from cost_model.price.traffic import Traffic
from cost_model.work.gemms import Gemm
from eamsim.program import Attention


def room_bits(hardware: Hardware) -> int:
    """Of the accumulators; 0 if there are none."""
    accumulators = hardware.memories.accumulators
    return 8 * accumulators.bytes if accumulators else 0


def tiles(gemm: Gemm, array: Array, room: int) -> list[Gemm]:
    """The product of everything, cut along the stream into pieces whose partial sums fit; [gemm] where that does not pay."""
    axis = TIME[array.dataflow]
    stream, fits = getattr(gemm, axis), _fitting(gemm, array, room)
    whole = dense_run(gemm.rows, gemm.columns, gemm.depth, array.dataflow, array.rows, array.columns)
    again = whole.right_reads * gemm.right_bits if array.dataflow == "ws" else whole.left_reads * gemm.left_bits
    spilled = _share(_partial_bits(gemm, whole, array), stream - fits, stream)
    pays = (fits > 0) & (fits < stream) & (2 * spilled > (ceil_div(stream, larger(fits, 1)) - 1) * again)
    tile = stream + (fits - stream) * pays
    times, rest = stream // tile, stream % tile
    pieces = [replace(gemm, **{axis: tile}, repeats=gemm.repeats * times)]
    return pieces if isinstance(rest, int) and not rest else [*pieces, replace(gemm, **{axis: rest}, repeats=gemm.repeats * (rest > 0))]


def partial_sums(gemm: Gemm, run: Run, compute: Array | Simd, room: int) -> Traffic:
    """Written and read between the folds of a depth that is taller than the array."""
    if isinstance(compute, Simd) or compute.dataflow == "os":
        return Traffic()
    bits, stream = _partial_bits(gemm, run, compute), getattr(gemm, TIME[compute.dataflow])
    return _shared(bits, bits, _fitting(gemm, compute, room), larger(stream, 1))


def scores(op: Attention, compute: Array | Simd, written: int, read: int, room: int) -> Traffic:
    """Of so many scores, at the width of an accumulator, each read for its exponential and again for its code.

    The row's maximum is taken as they are written. An array completes as many rows at a time as its dataflow has it.
    """
    if isinstance(compute, Simd):
        bits, rows = 32, 1
    else:
        bits, rows = compute.accumulator_bits, {"os": compute.rows, "ws": op.rows, "is": compute.columns}[compute.dataflow]
    rows = smaller(rows, op.rows)
    return _shared(written * bits, read * bits, smaller(rows, room // (op.tokens * bits)), rows)


def _partial_bits(gemm: Gemm, run: Run, array: Array) -> Any:
    return (run.result_writes - run.results) * gemm.sums * array.accumulator_bits


def _fitting(gemm: Gemm, array: Array, room: int) -> Any:
    """Steps of the stream whose partial sums fit the accumulators."""
    across = smaller(array.columns, getattr(gemm, ACROSS[array.dataflow]))
    return smaller(getattr(gemm, TIME[array.dataflow]), room // (across * gemm.sums * array.accumulator_bits))


def _shared(written: Any, read: Any, kept: Any, of: Any) -> Traffic:
    """The share kept / of in the accumulators, the rest in the SRAM."""
    kept_written, kept_read = _share(written, kept, of), _share(read, kept, of)
    return Traffic(
        sram_read_bits=read - kept_read,
        sram_write_bits=written - kept_written,
        accumulator_read_bits=kept_read,
        accumulator_write_bits=kept_written,
    )


def _share(total: Any, part: Any, of: Any) -> Any:
    """floor(total * part / of), of which no product leaves 64 bits."""
    return total // of * part + total % of * part // of
