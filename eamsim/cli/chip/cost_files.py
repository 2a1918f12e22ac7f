"""Files that `eamsim cost` writes for other cost models, and for viewers of timelines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cost_model.exports import scalesim_csv, zigzag_yaml
from cost_model.price.energy import Estimate
from cost_model.price.timeline import chrome_trace
from eamsim.cli.manifest import check_out, described, made_by, manifest_path, write_manifest
from eamsim.constraints import Verified
from eamsim.errors import UserError
from eamsim.files.container import written


def write_files(
    program: Verified, estimate: Estimate | None, scalesim: Path | None, zigzag: Path | None, timeline: Path | None
) -> list[dict[str, str | int]]:
    """The files that are asked for, each in one step and with a manifest beside it; what they are, or UserError, BadFile."""
    if timeline is not None and estimate is None:
        raise UserError("--timeline: expected a chip to run on; name it with --hw")
    wanted: list[tuple[str, str, Path | None, Callable[[], str]]] = [
        ("--scalesim", ".csv", scalesim, lambda: scalesim_csv(program)),
        ("--zigzag", ".yaml", zigzag, lambda: zigzag_yaml(program)),
    ]
    if estimate is not None:
        wanted.append(("--timeline", ".json", timeline, lambda: chrome_trace(estimate)))
    chosen = [(check_out(path, suffix, option), write) for option, suffix, path, write in wanted if path is not None]
    files = []
    for path, write in chosen:
        with written(path) as temporary:
            temporary.write_text(write(), encoding="utf-8")
        files.append(described(path))
        write_manifest(manifest_path(path), made_by() | {"output": files[-1:]})
    return files
