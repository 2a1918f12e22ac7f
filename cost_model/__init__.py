"""What a program costs: exact operation counts and bytes, never a measurement; on a described chip cycles, traffic and energy.

cost_model.count(program).macs.full                      # multiply-accumulates of one image, from its real masks
chip = cost_model.load("small-npu")                      # a preset, or your own YAML (`eamsim hardware show small-npu`)
cost_model.evaluate(program, chip).energy.nominal_pj     # per image; low_pj and high_pj beside it
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cost_model.chip.hardware import load
    from cost_model.price.energy import break_even_batch, evaluate
    from cost_model.work.counts import count

__all__ = ["break_even_batch", "count", "evaluate", "load"]

_PLACES = {
    "break_even_batch": "cost_model.price.energy",
    "count": "cost_model.work.counts",
    "evaluate": "cost_model.price.energy",
    "load": "cost_model.chip.hardware",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'cost_model' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
