"""What the manifests of traces and vectors say."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from eamsim import __version__, artifact
from eamsim.constraints import Verified
from eamsim.files.origin import public_command
from eamsim.inputs.images import ImageSet
from eamsim.program import Operation
from eamsim.tensors import parameters


def form(entry: dict[str, Any]) -> str:
    return f"{'i' if entry['signed'] else 'u'}{entry['bits']} {'x'.join(map(str, entry['shape']))}"


def about(model: Path, program: Verified, images: ImageSet, names: tuple[str, ...], selected: list[Operation]) -> dict[str, Any]:
    """The keys of the manifest that say where the integers come from and what the operations' numbers are; names: of the images."""
    return {
        "command": public_command(),
        "versions": {"eamsim": __version__, "numpy": np.__version__},
        "input": {"file": model.name, "sha256": artifact.sha256(model)},
        "program": program.name,
        "datapath": asdict(program.datapath),
        "images": names,
        "data": images.summary.json(),
        "operations": [{"name": op.out.name, "kind": type(op).__name__, "inputs": op.inputs, **parameters(op)} for op in selected],
    }
