"""What a command says about the files it writes: where, from what, with which versions."""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from eamsim import __version__, artifact
from eamsim.errors import BadFile, UserError
from eamsim.files.container import written
from eamsim.files.origin import public_command, without_folders

VERSIONED = ("numpy", "torch", "timm", "safetensors", "h5py")


def front_path(out: Path) -> Path:
    """X.eam.front.csv beside X.eam."""
    return out.with_name(out.name + ".front.csv")


def check_output(out: Path) -> None:
    """UserError unless `out` can be an .eam file in an existing, writable folder: said before hours of work, not after."""
    check_out(out, ".eam")
    check_writable("--out", front_path(out))


def check_writable(option: str, *paths: Path) -> None:
    """UserError unless each path, or what it links to, is a file or can be one in an existing, writable folder."""
    for path in paths:
        target = Path(os.path.realpath(path))
        if (target.exists() and not target.is_file()) or not target.parent.is_dir() or not os.access(target.parent, os.W_OK):
            raise UserError(f"{option}: {path} cannot be written; choose a file in an existing, writable folder")


def manifest_path(out: Path) -> Path:
    """X.eam.json beside X.eam."""
    return out.with_name(out.name + ".json")


def write_manifest(path: Path, manifest: dict) -> None:
    """Replace the JSON file at `path` in one step; files are in it by their names, not by their folders."""
    with written(path) as unfinished:
        unfinished.write_text(json.dumps(without_folders(manifest), indent=2) + "\n")


def made_by(*packages: str) -> dict[str, Any]:
    """The command that runs, and the versions of eamsim, Python and these packages."""
    versions = {"eamsim": __version__, "python": sys.version.split()[0], **{name: version(name) for name in packages}}
    return {"command": public_command(), "versions": versions}


def described(path: Path) -> dict[str, str | int]:
    """The file's path, length and SHA-256."""
    return {"file": str(path), "bytes": path.stat().st_size, "sha256": artifact.sha256(path)}


def file_line(file: dict[str, Any]) -> str:
    """What a command says of a file that it has written, `described`."""
    return f"{file['file']}: {file['bytes']:,} bytes, sha256 {file['sha256']}"


def check_out(out: Path, suffix: str, option: str = "--out") -> Path:
    """The path; UserError unless it can be a file with this suffix in an existing, writable folder."""
    if out.suffix != suffix:
        raise UserError(f"{option}: expected a name that ends in {suffix}, got {out}")
    check_writable(option, out, manifest_path(out))
    return out


def make_folder(folder: Path) -> None:
    """BadFile where it cannot be made or written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadFile(f"{folder}: cannot be made ({error.strerror}); choose another --out") from error
