"""What needs an extra, imported late."""

from __future__ import annotations

from typing import Any

from eamsim.errors import MissingExtra


def import_reference(feature: str) -> Any:
    """`eamsim.jobs.build.build_program`; MissingExtra where torch and timm are not installed."""
    try:
        from eamsim.jobs.build import build_program
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in {"eamsim", "reference"}:
            raise
        raise MissingExtra("reference", feature) from error
    return build_program
