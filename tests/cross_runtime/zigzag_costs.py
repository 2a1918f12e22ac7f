"""The products of a DeiT-T on the cost model's array against zigzag-dse, run live: cycles, operand reads and energy at the same picojoules.

Exit code 1 if one is further off than 2 %. What is not compared as it is has a name: the skew (`cost_model.chip.arrays.fill`), which
ZigZag has not, is taken off; ZigZag writes finished sums into the accumulators too, the cost model hands them to the vector unit; and
where the axis of time is no prime number, ZigZag cuts it by its factors and loads what stays in a PE again for each part, so that the
reads of that operand are shown and not judged.

zigzag-dse gets an environment of its own:

    python -m venv ZIGZAG && ZIGZAG/bin/pip install zigzag-dse six
    PYTHONPATH=. ZIGZAG/bin/python tests/cross_runtime/zigzag_costs.py
"""

import contextlib
import io
import logging
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml
from zigzag.api import get_hardware_performance_zigzag  # pyright: ignore[reportMissingImports]
from zigzag.hardware.architecture.memory_port import DataDirection  # pyright: ignore[reportMissingImports]

from cost_model.chip.arrays import ACROSS, DOWN, TIME, Dataflow, dense_run, fill
from cost_model.exports import layers
from cost_model.models.architectures import architecture
from cost_model.models.skeleton import skeleton
from cost_model.work.gemms import Gemm

ROWS, COLUMNS = 16, 16
MAC_PJ, SRAM_PJ, ACCUMULATOR_PJ = 0.15, 0.51, 0.22
"""Those of small-npu, of a multiply-accumulate and of a bit."""
WORD, SUM = 64, 32
AXES = {"rows": "B", "columns": "K", "depth": "C"}
STATIONARY = {"os": "O", "ws": "I2", "is": "I1"}
UNJUDGED: dict[str, set[str]] = {"os": set(), "ws": {"right_bits", "operand_pj"}, "is": {"left_bits", "operand_pj"}}
"""Of an axis of time that ZigZag cuts."""
WITHIN = 0.02


@dataclass(frozen=True)
class Costs:
    """Cycles without skew, bits of the left and the right operand read from the SRAM, sums written beside the array, picojoules."""

    cycles: float
    left_bits: float
    right_bits: float
    sums: float
    mac_pj: float
    operand_pj: float


def memory(bits: int, operand_bits: int, word_bits: int, pj: float, operands: list[str], served: list[str]) -> dict[str, Any]:
    """A memory of one read and one write port; pj: of a word."""
    inputs = [each for each in operands if each != "O"]
    outward = ["O, tl", "O, th"] if "O" in operands else []
    inward = ["O, fh", "O, fl"] if "O" in operands else []
    bandwidth = {"bandwidth_min": operand_bits, "bandwidth_max": word_bits}
    ports = [
        {"name": "r_port_1", "type": "read", **bandwidth, "allocation": [*(f"{each}, tl" for each in inputs), *outward]},
        {"name": "w_port_1", "type": "write", **bandwidth, "allocation": [*(f"{each}, fh" for each in inputs), *inward]},
    ]
    costs = {"r_cost": pj, "w_cost": pj, "area": 0, "latency": 1, "auto_cost_extraction": False}
    return {"size": bits, **costs, "operands": operands, "served_dimensions": served, "ports": ports}


def accelerator(dataflow: Dataflow, gemm: Gemm) -> dict[str, Any]:
    """The array, a register for what stays in a PE, accumulators where sums do not, and an SRAM that holds everything."""
    everywhere, stays = ["D1", "D2"], STATIONARY[dataflow]
    width, operand_bits = {"O": SUM, "I1": gemm.left_bits, "I2": gemm.right_bits}[stays], min(gemm.left_bits, gemm.right_bits)
    memories = {"register": memory(width, width, width, 0, [stays], [])}
    if stays != "O":
        memories["accumulators"] = memory(1 << 26, SUM, SUM * COLUMNS, ACCUMULATOR_PJ * SUM * COLUMNS, ["O"], everywhere)
    memories["sram"] = memory(1 << 33, operand_bits, WORD, SRAM_PJ * WORD, ["I1", "I2", "O"], everywhere)
    array = {
        "input_precision": [gemm.left_bits, gemm.right_bits],
        "unit_energy": MAC_PJ,
        "unit_area": 1,
        "dimensions": everywhere,
        "sizes": [COLUMNS, ROWS],
    }
    return {"name": "array", "memories": memories, "operational_array": array}


def mapping(dataflow: Dataflow, gemm: Gemm) -> list[dict[str, Any]]:
    """The axis of time innermost, then the folds down, then across, then the products."""
    down, across, time = (AXES[axis[dataflow]] for axis in (DOWN, ACROSS, TIME))
    order = [
        [time, "*"],
        [down, "*"],
        [across, "*"],
        *([["H", "*"]] if gemm.repeats > 1 else []),
    ]
    spatial = {"D1": [f"{across}, {COLUMNS}"], "D2": [f"{down}, {ROWS}"]}
    links = {"O": "O", "W": "I2", "I": "I1"}
    return [{"name": "default", "spatial_mapping": spatial, "temporal_ordering": order, "memory_operand_links": links}]


def workload(gemm: Gemm) -> list[dict[str, Any]]:
    many = gemm.repeats > 1
    sizes = ({"H": gemm.repeats} if many else {}) | {"B": gemm.rows, "K": gemm.columns, "C": gemm.depth}
    equation = "O[h][b][k]+=I[h][b][c]*W[h][c][k]" if many else "O[b][k]+=I[b][c]*W[c][k]"
    precision = {"I": gemm.left_bits, "W": gemm.right_bits, "O": SUM, "O_final": SUM}
    layer = {"id": 0, "name": "product", "operator_type": "Gemm", "equation": equation, "dimension_relations": []}
    loops = {"loop_dims": list(sizes), "loop_sizes": list(sizes.values())}
    return [layer | loops | {"operand_precision": precision, "operand_source": {"I": 0, "W": 0}}]


def leaves(found: Any) -> Iterator[Any]:
    """The evaluations in what the API returns."""
    if isinstance(found, list | tuple):
        for each in found:
            yield from leaves(each)
    elif hasattr(found, "mapping"):
        yield found


def simulated(gemm: Gemm, dataflow: Dataflow) -> Costs:
    """What ZigZag reports of one product."""
    files = {"accelerator": accelerator(dataflow, gemm), "mapping": mapping(dataflow, gemm), "workload": workload(gemm)}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        paths = {name: str(Path(folder) / f"{name}.yaml") for name in files}
        for name, content in files.items():
            Path(paths[name]).write_text(yaml.safe_dump(content))
        *_, found = get_hardware_performance_zigzag(**paths, opt="energy", dump_folder=folder, loma_show_progress_bar=False)
    costs = next(leaves(found))
    moved = {str(operand): levels for operand, levels in costs.memory_word_access.items()}
    out, back = DataDirection.RD_OUT_TO_LOW, DataDirection.WR_IN_BY_LOW
    left, right = (moved[name][-1].get(out) * WORD for name in ("I", "W"))
    sums = 0 if dataflow == "os" else moved["O"][0].get(back) * COLUMNS
    energy = sum(costs.mem_energy_breakdown_further[operand][-1].get(out) for operand in costs.memory_word_access if str(operand) in "IW")
    return Costs(costs.ideal_temporal_cycle, left, right, sums, costs.mac_energy, energy)


def modelled(gemm: Gemm, dataflow: Dataflow) -> Costs:
    """The same by the closed forms, folds pipelined; the skew and SCALE-Sim's -1 taken off."""
    skew = fill(dataflow, ROWS, COLUMNS) - 1
    done = dense_run(gemm.rows, gemm.columns, gemm.depth, dataflow, ROWS, COLUMNS, pipelined=True)
    cycles = (done.cycles - skew) * gemm.repeats
    done = done * gemm.repeats
    left, right = done.left_reads * gemm.left_bits, done.right_reads * gemm.right_bits
    sums = 0 if dataflow == "os" else done.result_writes
    return Costs(cycles, left, right, sums, MAC_PJ * done.macs, SRAM_PJ * (left + right))


def products() -> dict[str, Gemm]:
    """One of each shape in a DeiT-T, by name; not the head, whose one row is no loop to ZigZag."""
    found: dict[tuple[int, ...], tuple[str, Gemm]] = {}
    for layer in layers(skeleton(architecture("deit_tiny_patch16_224"))):
        gemm = layer.gemm
        if gemm.rows == 1:
            continue
        found.setdefault((gemm.rows, gemm.columns, gemm.depth, gemm.repeats), (layer.name, gemm))
    return dict(found.values())


def is_prime(number: int) -> bool:
    return all(number % factor for factor in range(2, number))


def main() -> int:
    """Compare every product on every dataflow."""
    logging.disable(logging.CRITICAL)
    differing = 0
    for name, gemm in products().items():
        for dataflow in get_args(Dataflow):
            ours, theirs = vars(modelled(gemm, dataflow)), vars(simulated(gemm, dataflow))
            off = {key: ours[key] / theirs[key] - 1 for key in ours if theirs[key] != ours[key]}
            judged = off.keys() - (set() if is_prime(getattr(gemm, TIME[dataflow])) else UNJUDGED[dataflow])
            differing += any(abs(off[key]) > WITHIN for key in judged)
            shown = ", ".join(f"{key} {ours[key]:,.0f} for {theirs[key]:,.0f}" for key in off) or "all equal"
            print(f"{name} M {gemm.rows} N {gemm.columns} K {gemm.depth} x {gemm.repeats} {dataflow}: {shown}")
    print(f"{differing} of {3 * len(products())} differ by more than {WITHIN:.0%}")
    return int(differing > 0)


if __name__ == "__main__":
    sys.exit(main())
