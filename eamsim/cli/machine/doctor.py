"""`eamsim doctor`: what this machine and this installation have."""

import os
import platform
import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path

from eamsim import __version__
from eamsim.cli.output import Json, emit
from eamsim.errors import install

REQUIREMENT = re.compile(r"([\w.-]+)\s*(?:\[([^]]*)])?")
OF_EXTRA = re.compile(r"""extra\s*==\s*['"]([\w.-]+)""")


def doctor(as_json: Json = False) -> None:
    """What this machine has. Versions, processor, instruction sets, cache folder, extras and how to get them."""
    from eamsim.compiled import kernel_cache
    from eamsim.engine import isa

    cache = kernel_cache.folder()
    base, missing = needs_of_eamsim()
    result = {
        "eamsim": __version__,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in (*base, "llvmlite")},
        "machine": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "instruction_sets": list(isa.detect()),
        "instruction_set": isa.select(),
        "threads": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cache": str(cache.path),
        "cache_is_temporary": cache.is_temporary,
        "extras": {extra: not names for extra, names in missing.items()},
        "missing": missing,
    }
    rows = [
        *((key, result[key]) for key in ("eamsim", "python", "machine", "cpu", "threads")),
        ("cache", f"{cache.path}{' (temporary: see the warning)' if cache.is_temporary else ''}"),
        ("packages", ", ".join(f"{name} {number}" for name, number in result["packages"].items())),
        ("instruction sets", ", ".join(result["instruction_sets"])),
        ("chosen", result["instruction_set"]),
        *((f"extra {extra}", advice(extra, names)) for extra, names in missing.items()),
    ]
    emit(result, as_json, *(f"{name:<18}{value}" for name, value in rows))


def needs_of_eamsim() -> tuple[list[str], dict[str, list[str]]]:
    """The packages it always needs, and by extra those that are missing; both empty where it runs without being installed."""
    try:
        extras = metadata("eamsim").get_all("Provides-Extra", [])
    except PackageNotFoundError:
        return [], {}
    return sorted(name for name, _ in required("eamsim", None)), {extra: sorted(missing_for("eamsim", extra)) for extra in extras}


def required(name: str, extra: str | None) -> Iterator[tuple[str, list[str]]]:
    """What an installed distribution needs, for one of its extras or without any: names, and the extras of those."""
    for text in requires(name) or ():
        condition, requirement = OF_EXTRA.search(text), REQUIREMENT.match(text)
        if requirement and (condition and condition[1]) == extra:
            yield requirement[1], [each.strip() for each in (requirement[2] or "").split(",") if each]


def missing_for(name: str, extra: str) -> set[str]:
    """Distributions that the extra needs, and the extras that it asks of those, and that are not installed."""
    missing = set()
    for needed, extras in required(name, extra):
        try:
            version(needed)
        except PackageNotFoundError:
            missing.add(needed)
        else:
            missing = missing.union(*(missing_for(needed, each) for each in extras))
    return missing


def advice(extra: str, missing: list[str]) -> str:
    return f"missing {', '.join(missing)}: {install(extra)}" if missing else "installed"


def cpu_name() -> str:
    """The processor's name as Linux tells it on x86, else as LLVM knows it."""
    from llvmlite.binding import get_host_cpu_name

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), get_host_cpu_name())
