"""The file in which tuning is kept between two steps: a SHA-256, then what torch saves of plain values, read without pickled code.

With it: what the tuning started from, so that to resume takes neither calibration nor compensation again.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from eamsim.errors import BadFile, UserError
from eamsim.files.container import written
from eamsim.files.limits import DUMP_BYTES
from eamsim.files.reading import read_bytes
from reference.attention.freeze import FrozenMap
from reference.models.load import Model
from reference.quantisation.levels import Levels
from reference.quantisation.quantisers import Affine, LogSqrt2
from reference.quantisation.repq import Calibrated

FORMAT = 1
"""Raised when the file, or what a step does, changes."""
DIGEST_BYTES = 32


@dataclass(frozen=True, eq=False)
class Start:
    """What tuning starts from, and ends in."""

    calibrated: Calibrated
    frozen: list[FrozenMap] | None


class TuningFile:
    """At `path`; identity: all that determines the tuning's result, JSON values."""

    def __init__(self, path: Path, identity: dict[str, Any]):
        self.path, self.identity = path, {"format": FORMAT} | identity

    def write(self, start: Start, state: dict[str, Any]) -> None:
        """Replace the file in one step; BadFile where that fails."""
        stream = io.BytesIO()
        torch.save({"identity": self.identity, "start": _plain(start), "state": state}, stream)
        content = stream.getbuffer()
        with written(self.path, "free some space, then continue with --resume") as unfinished, unfinished.open("wb") as file:
            file.write(hashlib.sha256(content).digest())
            file.write(content)

    def read(self, model: Model) -> tuple[Start, dict[str, Any]]:
        """What was written; BadFile where it is damaged, UserError where it is of a tuning of other identity."""
        try:
            content = read_bytes(self.path, DUMP_BYTES)
        except OSError as error:
            raise BadFile(f"{self.path}: cannot be read ({error.strerror}); leave --resume out to start at the beginning") from error
        digest, saved = content[:DIGEST_BYTES], memoryview(content)[DIGEST_BYTES:]
        if hashlib.sha256(saved).digest() != digest:
            raise BadFile(f"{self.path}: damaged (its digest is of other contents); remove it and start at the beginning")
        with torch.serialization.safe_globals([Affine, Levels, LogSqrt2]):
            found = torch.load(io.BytesIO(saved), weights_only=True)
        for name, wanted in self.identity.items():
            kept = found["identity"].get(name)
            if wanted != kept:
                raise UserError(
                    f"{self.path}: its {name} is {kept}, this command's {wanted}; give the options it was made with, or remove it"
                )
        return _start(model, found["start"]), found["state"]


def _plain(start: Start) -> dict[str, Any]:
    """Without layers, which the state holds."""
    names = ("activations", "weights", "attention", "stream_max", "stream_least", "images", "compensation")
    frozen = start.frozen and [(torch.tensor(each.mask), torch.tensor(each.mean)) for each in start.frozen]
    return {name: getattr(start.calibrated, name) for name in names} | {"frozen": frozen}


def _start(model: Model, plain: dict[str, Any]) -> Start:
    frozen = plain.pop("frozen")
    maps = frozen and [FrozenMap(*(each.numpy() for each in layer)) for layer in frozen]
    return Start(Calibrated(model, "hardware", model.network, **plain), maps)
