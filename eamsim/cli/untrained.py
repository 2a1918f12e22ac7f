"""Results of untrained weights say so: of such a model masks, accuracy, energy and map bytes mean nothing, however exact they are."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from eamsim.cli.output import emit

WARNING = (
    "UNTRAINED weights (--random-init): accuracy, masks, what freezing saves, energy and map bytes below say nothing of a trained model; "
    "shapes and speed do."
)


def emit_measured(untrained: bool, result: dict[str, Any], as_json: bool, *lines: str | Table) -> None:
    """As `emit`, of what was measured on a model's weights: says in its first line, and as `untrained`, if they are random."""
    emit({**result, "untrained": untrained}, as_json, *((WARNING,) if untrained else ()), *lines)
