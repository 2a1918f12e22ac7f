"""The .eam file as bytes: a safetensors file with every array of a program under its own name. docs/spec/format.md is the long form.

Its header has one metadata key, `eam` (several would come in another order at every run), whose text is canonical JSON:

    {"format": "eam", "version": 2, 3 or 4, "data_bytes", "data_sha256", "program", "provenance", "sha256"}

`sha256` is that of the same JSON without it, and `data_sha256` that of a zero byte and all tensors in the order of their names'
numbers, which were one stream in version 1: so a program keeps its SHA-256 (`eamsim.artifact.program_sha256`).
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from eamsim.files.container import Refused, canonical, parse_json
from eamsim.files.limits import EAM_HEADER_BYTES

FORMAT, VERSIONS = "eam", (2, 3, 4)
METADATA = "__metadata__"
LENGTH_BYTES = 8

Form = tuple[str, tuple[int, ...]]
"""dtype, as NumPy writes it, and shape of a tensor."""


def to_bytes(version: int, manifest: dict[str, Any], provenance: dict[str, Any], tensors: dict[str, np.ndarray]) -> bytes:
    """The file; manifest: `data_bytes`, `data_sha256` and `program`; tensors: little endian, names beginning with their numbers."""
    head = manifest | {"format": FORMAT, "version": version, "provenance": provenance}
    head["sha256"] = head_sha256(head)
    return save(tensors, {FORMAT: canonical(head).decode()})


def from_bytes(content: bytes) -> tuple[int, dict[str, Any], dict[str, Any], dict[str, Form], bytes]:
    """What `to_bytes` was given, but the tensors: their forms, in order, and the stream of their bytes. Refused otherwise."""
    head = parse_json(_metadata(content), "the metadata")
    found = head.get("format"), head.get("version")
    if found not in [(FORMAT, version) for version in VERSIONS]:
        expected = f"{FORMAT!r} and one of {list(VERSIONS)}"
        raise Refused("the metadata's format and version", expected, found, "use the eamsim that wrote it, or rebuild it with this one")
    sha256, provenance = head.pop("sha256", None), head.get("provenance")
    if sha256 != head_sha256(head):
        raise Refused("the metadata's sha256", head_sha256(head), sha256)
    if not isinstance(provenance, dict):
        raise Refused("the metadata's provenance", "an object", provenance)
    try:
        tensors = load(content)
    except Exception as error:  # the library has one class of its own and passes on built-in ones
        raise Refused("the tensors", "a whole safetensors file of integers", " ".join(str(error).split())) from None
    names = sorted(tensors, key=_number)
    manifest = {name: item for name, item in head.items() if name not in ("format", "version", "provenance")}
    forms = {name: (tensors[name].dtype.str, tensors[name].shape) for name in names}
    return head["version"], manifest, provenance, forms, b"\0" + b"".join(tensors[name].tobytes() for name in names)


def head_sha256(head: dict[str, Any]) -> str:
    """Of all fields but `sha256` itself."""
    return hashlib.sha256(canonical(head)).hexdigest()


def _metadata(content: bytes) -> bytes:
    length = int.from_bytes(content[:LENGTH_BYTES], "little")
    if not 2 <= length <= min(EAM_HEADER_BYTES, len(content) - LENGTH_BYTES):
        raise Refused("the header", f"a length of at most {EAM_HEADER_BYTES} bytes within the file", length)
    try:
        header = json.loads(content[LENGTH_BYTES : LENGTH_BYTES + length])
        metadata = header[METADATA]
        (text,) = [metadata[name] for name in metadata if name == FORMAT and len(metadata) == 1]
        return text.encode()
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        raise Refused("the header", f"JSON with one metadata key, {FORMAT}, and its text", content[LENGTH_BYTES:][:60]) from None


def _number(name: str) -> int:
    number = name.partition(".")[0]
    if not (number.isascii() and number.isdecimal() and len(number) < 10):
        raise Refused("the tensors", "names that begin with their numbers", name)
    return int(number)
