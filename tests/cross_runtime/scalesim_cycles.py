"""The closed forms of `cost_model.chip.arrays` against the scalesim package, run live; exit code 1 if one cycle or access differs.

Odd shapes on odd arrays, every shape of a DeiT-T's layers in buffers that hold them, and four in buffers of 64 KiB, SCALE-Sim's own.
There it fetches an operand again in every sweep that its active half does not hold (`refetched`); the cost model takes the better of two
orders instead (`cost_model.price.traffic.refetches`). How far its prefetcher runs ahead of the strips of an os array's right operand,
up to 28 % of it, is not judged, and neither are its writes of an os array, R + C too many a fold.

scalesim needs NumPy below 2.4, so it gets an environment of its own:

    python -m venv SCALESIM && SCALESIM/bin/pip install scalesim 'numpy<2.4'
    PYTHONPATH=. SCALESIM/bin/python tests/cross_runtime/scalesim_cycles.py
"""

import contextlib
import io
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from scalesim.scale_sim import scalesim  # pyright: ignore[reportMissingImports]

from cost_model.chip.arrays import Dataflow, Run, dense_run
from cost_model.exports import layers
from cost_model.models.architectures import architecture
from cost_model.models.skeleton import skeleton

ODD = (
    (197, 576, 192, 32, 16),
    (197, 197, 64, 16, 16),
    (197, 64, 197, 16, 16),
    (65, 768, 192, 8, 24),
    (5, 7, 3, 4, 4),
    (1, 1000, 192, 16, 16),
)
LARGE_KIB, OWN_KIB = 4096, 64
SIDE = 32
AHEAD = 0.3
"""Of the right operand of an os array that its buffer does not hold, at most."""
CONFIG = """
[general]
run_name = run
[run_presets]
InterfaceBandwidth = CALC
UseRamulatorTrace = False
[architecture_presets]
ArrayHeight = {rows}
ArrayWidth = {columns}
IfmapSramSzkB = {kib}
FilterSramSzkB = {kib}
OfmapSramSzkB = {kib}
IfmapOffset = 0
FilterOffset = 10000000
OfmapOffset = 20000000
Dataflow = {dataflow}
ReadRequestBuffer = 64
WriteRequestBuffer = 64
[layout]
IfmapCustomLayout = False
IfmapSRAMBankBandwidth = 10
IfmapSRAMBankNum = 10
IfmapSRAMBankPort = 2
FilterCustomLayout = False
FilterSRAMBankBandwidth = 10
FilterSRAMBankNum = 10
FilterSRAMBankPort = 2
[sparsity]
SparsitySupport = false
"""


def simulated(rows: int, columns: int, depth: int, dataflow: str, array: tuple[int, int], kib: int) -> tuple[int, ...]:
    """Cycles, left and right reads from the buffers, left and right reads from behind them, that scalesim reports for one product."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        files = {
            "config": CONFIG.format(rows=array[0], columns=array[1], dataflow=dataflow, kib=kib),
            "topology": f"Layer,M,N,K,\nproduct,{rows},{columns},{depth},\n",
            "layout": "unused\n" + ",".join(["product", *["1"] * 20]) + ",\n",
        }
        paths = {name: str(Path(folder) / f"{name}.csv") for name in files}
        for name, text in files.items():
            Path(paths[name]).write_text(text)
        simulation = scalesim(save_disk_space=True, verbose=False, input_type_gemm=True, **paths)
        simulation.run_scale(top_path=folder)
        (layer,) = simulation.runner.single_layer_sim_object_list
        reads = layer.ifmap_sram_reads, layer.filter_sram_reads, layer.ifmap_dram_reads, layer.filter_dram_reads
        return tuple(map(int, (layer.total_cycles, *reads)))


def refetched(run: Run, rows: int, columns: int, depth: int, dataflow: str, kib: int) -> tuple[int, int]:
    """Elements that SCALE-Sim fetches of either operand: one that stays in the array's columns once, any other for each sweep or once."""
    fits = 1024 * kib // 2
    left = rows * depth if rows * depth <= fits else run.left_reads
    right = depth * columns if depth * columns <= fits or dataflow == "os" else run.right_reads
    return left, right


def cases() -> Iterator[tuple[tuple[int, int, int], tuple[int, int], int]]:
    """Products, arrays and KiB of the buffers."""
    for *shape, array_rows, array_columns in ODD:
        yield (shape[0], shape[1], shape[2]), (array_rows, array_columns), LARGE_KIB
    gemms = [layer.gemm for layer in layers(skeleton(architecture("deit_tiny_patch16_224")))]
    for shape in dict.fromkeys((gemm.rows, gemm.columns, gemm.depth) for gemm in gemms):
        yield shape, (SIDE, SIDE), LARGE_KIB
    for shape in ((197, 576, 192), (197, 197, 64), (197, 64, 197), (197, 192, 768)):
        yield shape, (SIDE, SIDE), OWN_KIB


def main() -> int:
    """Compare every product on every dataflow."""
    differing = compared = 0
    for shape, array, kib in cases():
        for dataflow in get_args(Dataflow):
            ours = dense_run(*shape, dataflow, *array)
            fetches = refetched(ours, *shape, dataflow, kib)
            ahead = AHEAD if dataflow == "os" and shape[1] * shape[2] > 1024 * kib // 2 else 0
            cycles, left, right, *behind = simulated(*shape, dataflow, array, kib)
            equal = (cycles, left, right) == (ours.cycles, ours.left_reads, ours.right_reads)
            equal = equal and behind[0] == fetches[0] and fetches[1] <= behind[1] <= fetches[1] * (1 + ahead)
            differing, compared = differing + (not equal), compared + 1
            got = f"scalesim {cycles, left, right, *behind}, closed form {ours.cycles, ours.left_reads, ours.right_reads, *fetches}"
            print(f"{shape} on {array} {dataflow}, {kib} KiB: {got}", flush=True)
    print(f"{differing} of {compared} differ")
    return int(differing > 0)


if __name__ == "__main__":
    sys.exit(main())
