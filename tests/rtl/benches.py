"""The testbench and its parameters for every operation in a folder of `eamsim trace export`, read from the manifest alone.

As a program it prints the commands that compile and run them: `python benches.py VECTORS | sh -e`.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SOURCES = Path(__file__).parent
ROUNDINGS = ("half_up", "half_even", "half_away", "floor")
OVERFLOWS = ("error", "wrap", "saturate")
Parameters = dict[str, int | str]


@dataclass(frozen=True)
class Testbench:
    """A unit, and the parameters of its testbench `tb_UNIT` for one operation."""

    unit: str
    parameters: Parameters


def benches(folder: Path, lanes: int = 16) -> list[Testbench]:
    manifest = json.loads((folder / "manifest.json").read_text())
    tensors = {entry["name"]: entry for entry in manifest["tensors"]}
    path = manifest["datapath"]
    ratio: Parameters = {"MULTIPLIER_BITS": path["multiplier_bits"]}
    acc: Parameters = {"ACC_BITS": path["accumulator_bits"]}
    sums = acc | {"OVERFLOW": OVERFLOWS.index(path["overflow"])}
    found = []
    for op in manifest["operations"]:
        common: Parameters = {"NAME": op["name"], "ROUNDING": ROUNDINGS.index(path["rounding"])}
        match op["kind"], op.get("epilogue"):
            case "LayerNorm", _:
                found.append(Testbench("layer_norm_row", common | layer_norm(op, tensors)))
            case "Linear", "Requant":
                found.append(Testbench("dot_requant", common | dot(op, tensors) | sums | ratio | {"LANES": lanes}))
            case "Linear", "Gelu":
                found.append(Testbench("gelu_table", common | gelu(op, tensors) | acc | ratio))
            case "Attention", _:
                found += [
                    Testbench("softmax_row", common | softmax(op, tensors)),
                    Testbench("av_row", common | context(op, tensors) | sums),
                ]
    return found


def rows(entry: dict[str, Any]) -> int:
    return entry["images"] * entry["shape"][0]


def dot(op: dict[str, Any], tensors: dict[str, Any]) -> Parameters:
    x, out = tensors[op["x"]], tensors[op["name"]]
    sizes = {"X": op["x"], "ROWS": rows(out), "IN": x["shape"][1], "CHANNELS": out["shape"][1]}
    numbers = {"X_ZERO": op["x_zero"], "FITTED": int(f"{op['name']}.levels" in tensors)}
    return sizes | numbers | {"X_BITS": x["bits"], "W_BITS": op["weight_bits"], "OUT_BITS": out["bits"]}


def gelu(op: dict[str, Any], tensors: dict[str, Any]) -> Parameters:
    out = tensors[op["name"]]
    sizes = {"ROWS": rows(out), "CHANNELS": out["shape"][1], "OUT_BITS": out["bits"]}
    return sizes | {"INDEX_BITS": op["index_bits"], "INDEX_ZERO": op["index_zero"]}


def layer_norm(op: dict[str, Any], tensors: dict[str, Any]) -> Parameters:
    out, name = tensors[op["name"]], op["name"]
    sizes = {"X": op["x"], "ROWS": rows(out), "CHANNELS": out["shape"][1], "X_BITS": tensors[op["x"]]["bits"]}
    widths = {"VARIANCE_BITS": "variance", "RECIPROCAL_WIDTH": "reciprocal", "NORMALISED_BITS": "normalised"}
    numbers = {"RECIPROCAL_BITS": op["reciprocal_bits"], "FRACTION_BITS": op["fraction_bits"], "SHIFT": op["shift"]}
    large = {"VARIANCE_OFFSET": str(op["variance_offset"])}  # a parameter of Icarus is 32 bits wide, or a text
    sizes |= {"OUT_BITS": out["bits"], "OUT_SIGNED": int(out["signed"])}
    return sizes | numbers | large | {key: tensors[f"{name}.{tap}"]["bits"] for key, tap in widths.items()}


def maps(op: dict[str, Any], tensors: dict[str, Any]) -> Parameters:
    name = op["name"]
    images, (windows, heads, tokens, _) = tensors[f"{name}.codes"]["images"], tensors[f"{name}.codes"]["shape"]
    sizes = {"IMAGES": images, "WINDOWS": windows, "HEADS": heads, "TOKENS": tokens, "ATTENTION_BITS": op["attention_bits"]}
    return sizes | {"HAS_EXCLUDED": int(f"{name}.excluded" in tensors)}


def softmax(op: dict[str, Any], tensors: dict[str, Any]) -> Parameters:
    name = op["name"]
    fraction, log2 = (tensors[f"{name}.{table}"]["shape"][0].bit_length() - 1 for table in ("exp2", "log2"))
    numbers: Parameters = {
        "SCORE_MULTIPLIER": op["score_multiplier"],
        "SCORE_SHIFT": op["score_shift"],
        "LOG2_SCALE": str(op["log2_scale"]),
    }
    numbers |= {"FRACTION_BITS": fraction, "EXP2_BITS": op["exp2_bits"], "LOG2_BITS": log2}
    numbers |= {"SCORE_BITS": tensors[f"{name}.scores"]["bits"]}
    numbers |= {"EXPONENT_BITS": tensors[f"{name}.exponents"]["bits"], "LOG_SUM_BITS": tensors[f"{name}.log_sum"]["bits"]}
    numbers |= {"RENORMALISED": int(op["softmax"] == "renormalised")}
    if f"{name}.frozen.mask" in tensors:
        numbers |= {"FROZEN_MAPS": tensors[f"{name}.frozen.mask"]["shape"][0], "FROZEN_BITS": op["frozen.bits"]}
    return maps(op, tensors) | numbers


def context(op: dict[str, Any], tensors: dict[str, Any]) -> Parameters:
    out, x = tensors[op["name"]], tensors[op["x"]]
    numbers = {key: op[key.lower()] for key in ("V_ZERO", "MULTIPLIER_EVEN", "MULTIPLIER_ODD", "OUT_SHIFT", "OUT_ZERO")}
    numbers |= {"LAST_CODE_IS_ZERO": int(op["last_code_is_zero"]), "SCORED": len(op["score_heads"])}
    return (
        maps(op, tensors)
        | numbers
        | {"X": op["x"], "V_BITS": x["bits"], "OUT_BITS": out["bits"], "HEAD_DIM": out["shape"][1] // op["heads"]}
    )


ROMS = {"LEVELS": "levels", "TABLE": "table", "GAIN": "gain", "OFFSET": "offset", "EXP2": "exp2", "LOG2": "log2"}


def unit_parameters(bench: Testbench, folder: Path) -> Parameters:
    """The parameters of the unit alone, texts in quotation marks: those of its testbench, and where its tables lie."""
    names = re.findall(r"parameter (?:int )?(\w+)", (SOURCES / f"{bench.unit}.sv").read_text())
    roms = {key: f'"{folder}/constants/{bench.parameters["NAME"]}.{field}.hex"' for key, field in ROMS.items()}
    return {name: value for name, value in (roms | bench.parameters).items() if name in names}


def flags(top: str, parameters: Parameters) -> list[str]:
    """iverilog's options for parameters of the top module."""
    return [f"-P{top}.{key}={value if isinstance(value, int) else chr(34) + value + chr(34)}" for key, value in parameters.items()]


def commands(bench: Testbench, scratch: Path, unit: Path | None = None) -> tuple[list[str], list[str]]:
    """Compile a testbench; run it, in the folder of vectors. `unit`: another source of the unit, such as one with a planted fault."""
    top, image = f"tb_{bench.unit}", str(scratch / f"{bench.unit}.vvp")
    sources = [SOURCES / "eam_pkg.sv", unit or SOURCES / f"{bench.unit}.sv", SOURCES / f"{top}.sv"]
    options = ["-g2012", f"-I{SOURCES}", "-s", top, "-o", image, *flags(top, bench.parameters)]
    return ["iverilog", *options, *map(str, sources)], ["vvp", "-n", image]


def simulate(bench: Testbench, folder: Path, scratch: Path, unit: Path | None = None) -> subprocess.CompletedProcess[str]:
    build, run = commands(bench, scratch, unit)
    compiled = subprocess.run(build, capture_output=True, text=True)
    if compiled.returncode != 0:
        return compiled
    return subprocess.run(run, cwd=folder, capture_output=True, text=True, timeout=600)


if __name__ == "__main__":
    for bench in benches(Path(sys.argv[1])):
        build, run = map(shlex.join, commands(bench, Path.cwd()))
        print(f"{build}\n(cd {shlex.quote(sys.argv[1])} && {run})")
