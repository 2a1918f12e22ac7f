"""`eamsim doctor`: what this machine and this installation have."""

import os
import platform
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from eamsim import __version__
from eamsim.cli.output import Json, emit

BASE = ("numpy", "numba", "llvmlite", "h5py", "pillow")
EXTRAS = {
    "reference": ("torch", "torchvision", "timm", "safetensors", "sklearn"),
    "onnx": ("onnx", "onnxruntime"),
    "cluster": ("distributed",),
    "bench": ("onnxruntime", "openvino"),
    "rtl": ("cocotb",),
    "test": ("pytest", "hypothesis"),
}


def doctor(as_json: Json = False) -> None:
    """What this machine has. Versions, processor, instruction sets, cache folder, extras and how to get them."""
    from eamsim import kernel_cache
    from eamsim.engine import isa

    cache = kernel_cache.folder()
    missing = {extra: [name for name in modules if find_spec(name) is None] for extra, modules in EXTRAS.items()}
    result = {
        "eamsim": __version__,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in BASE},
        "machine": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "instruction_sets": list(isa.detect()),
        "instruction_set": isa.select(),
        "threads": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cache": str(cache.path),
        "cache_is_temporary": cache.is_temporary,
        "extras": {extra: not modules for extra, modules in missing.items()},
    }
    rows = [
        *((key, result[key]) for key in ("eamsim", "python", "machine", "cpu", "threads")),
        ("cache", f"{cache.path}{' (temporary: see the warning)' if cache.is_temporary else ''}"),
        ("packages", ", ".join(f"{name} {number}" for name, number in result["packages"].items())),
        ("instruction sets", ", ".join(result["instruction_sets"])),
        ("chosen", result["instruction_set"]),
        *(
            (f"extra {extra}", f"pip install '.[{extra}]' in the checkout" if modules else "installed")
            for extra, modules in missing.items()
        ),
    ]
    emit(result, as_json, *(f"{name:<18}{value}" for name, value in rows))


def cpu_name() -> str:
    """The processor's name as Linux tells it on x86, else as LLVM knows it."""
    from llvmlite.binding import get_host_cpu_name

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), get_host_cpu_name())
