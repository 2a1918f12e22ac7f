"""The parts of .eam files of both versions, to be changed and put together again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from safetensors.numpy import load

from eamsim import artifact
from eamsim.files import tensor_file
from eamsim.files.container import canonical
from eamsim.program import Program


def parts(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The JSON of the metadata, and the tensors."""
    content = path.read_bytes()
    return json.loads(tensor_file._metadata(content)), load(content)


def put_together(path: Path, head: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    """With the SHA-256 of what the JSON is now: what a forger would make."""
    head = {name: item for name, item in head.items() if name != "sha256"}
    text = canonical(head | {"sha256": tensor_file.head_sha256(head)})
    path.write_bytes(tensor_file.save(tensors, {"eam": text.decode()}))


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the JSON."""
    head, tensors = parts(path)
    change(head)
    put_together(path, head, tensors)


def write_version_1(path: Path, program: Program, origin: dict[str, Any], **streams: bytes) -> None:
    """An HDF5 file with three streams, as version 1 was; streams: to have instead."""
    encoder = artifact._Encoder(program)
    whole = {"manifest": encoder.manifest_stream, "data": bytes(encoder.data), "provenance": canonical(origin)} | streams
    with h5py.File(path, "w", libver=("v110", "v110")) as file:
        for name, stream in whole.items():
            content = np.frombuffer(stream, np.uint8)
            file.create_dataset(name, data=content, chunks=content.shape, fletcher32=True, track_times=False)
