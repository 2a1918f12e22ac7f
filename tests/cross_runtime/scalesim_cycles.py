"""The closed forms of `cost_model.chip.arrays` against the scalesim package, run live; exit code 1 if one cycle or access differs.

scalesim needs NumPy below 2.4, so it gets an environment of its own:

    python -m venv SCALESIM && SCALESIM/bin/pip install scalesim 'numpy<2.4'
    PYTHONPATH=. SCALESIM/bin/python tests/cross_runtime/scalesim_cycles.py
"""

import contextlib
import io
import sys
import tempfile
from pathlib import Path
from typing import get_args

from scalesim.scale_sim import scalesim  # pyright: ignore[reportMissingImports]

from cost_model.chip.arrays import Dataflow, Run, dense_run

PRODUCTS = (
    (197, 576, 192, 32, 16),
    (197, 197, 64, 16, 16),
    (197, 64, 197, 16, 16),
    (65, 768, 192, 8, 24),
    (5, 7, 3, 4, 4),
    (1, 1000, 192, 16, 16),
)
CONFIG = """
[general]
run_name = run
[run_presets]
InterfaceBandwidth = CALC
UseRamulatorTrace = False
[architecture_presets]
ArrayHeight = {rows}
ArrayWidth = {columns}
IfmapSramSzkB = 4096
FilterSramSzkB = 4096
OfmapSramSzkB = 4096
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


def simulated(rows: int, columns: int, depth: int, dataflow: str, array_rows: int, array_columns: int) -> tuple[int, int, int]:
    """Cycles, left reads and right reads that scalesim reports for one product. Its writes of an os array count R + C too many a fold."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        files = {
            "config": CONFIG.format(rows=array_rows, columns=array_columns, dataflow=dataflow),
            "topology": f"Layer,M,N,K,\nproduct,{rows},{columns},{depth},\n",
            "layout": "unused\n" + ",".join(["product", *["1"] * 20]) + ",\n",
        }
        paths = {name: str(Path(folder) / f"{name}.csv") for name in files}
        for name, text in files.items():
            Path(paths[name]).write_text(text)
        simulation = scalesim(save_disk_space=True, verbose=False, input_type_gemm=True, **paths)
        simulation.run_scale(top_path=folder)
        (layer,) = simulation.runner.single_layer_sim_object_list
        return layer.total_cycles, layer.ifmap_sram_reads, layer.filter_sram_reads


def main() -> int:
    """Compare every product on every dataflow."""
    differing = 0
    for rows, columns, depth, array_rows, array_columns in PRODUCTS:
        for dataflow in get_args(Dataflow):
            ours: Run = dense_run(rows, columns, depth, dataflow, array_rows, array_columns)
            expected = ours.cycles, ours.left_reads, ours.right_reads
            got = simulated(rows, columns, depth, dataflow, array_rows, array_columns)
            differing += expected != tuple(map(int, got))
            print(f"M {rows} N {columns} K {depth} on {array_rows} x {array_columns} {dataflow}: scalesim {got}, closed form {expected}")
    print(f"{differing} of {3 * len(PRODUCTS)} differ")
    return int(differing > 0)


if __name__ == "__main__":
    sys.exit(main())
