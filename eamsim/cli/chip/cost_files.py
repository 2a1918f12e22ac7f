"""Files that `eamsim cost` writes for other cost models."""

from __future__ import annotations

import sys
from pathlib import Path

from cost_model.exports import scalesim_csv, zigzag_yaml
from eamsim import __version__
from eamsim.cli.manifest import check_out, described, manifest_path, write_manifest
from eamsim.constraints import Verified
from eamsim.files.container import written
from eamsim.files.origin import public_command


def write_products(program: Verified, scalesim: Path | None, zigzag: Path | None) -> list[dict[str, str | int]]:
    """The files that are asked for, each in one step and with a manifest beside it; what they are, or UserError, BadFile."""
    wanted = (("--scalesim", ".csv", scalesim, scalesim_csv), ("--zigzag", ".yaml", zigzag, zigzag_yaml))
    chosen = [(check_out(path, suffix, option), write) for option, suffix, path, write in wanted if path is not None]
    files = []
    for path, write in chosen:
        with written(path) as temporary:
            temporary.write_text(write(program), encoding="utf-8")
        files.append(described(path))
        versions = {"eamsim": __version__, "python": sys.version.split()[0]}
        manifest = {"command": public_command(), "versions": versions, "output": files[-1:]}
        write_manifest(manifest_path(path), manifest)
    return files
