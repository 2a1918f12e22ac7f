"""What a program costs: exact operation counts and bytes, never a measurement; on a described chip cycles, traffic and energy.

cost_model.count(program).macs.full                      # multiply-accumulates of one image, from its real masks
chip = cost_model.load("small-npu")                      # a preset, or your own YAML (`eamsim hardware show small-npu`)
cost_model.evaluate(program, chip).energy.nominal_pj     # per image; low_pj and high_pj beside it
"""

from typing import TYPE_CHECKING

from eamsim import face

if TYPE_CHECKING:
    from cost_model.chip.hardware import load
    from cost_model.price.energy import break_even_batch, evaluate
    from cost_model.work.counts import count

__all__ = ["break_even_batch", "count", "evaluate", "load"]

__getattr__, __dir__ = face(
    __name__,
    {
        "break_even_batch": "cost_model.price.energy.break_even_batch",
        "count": "cost_model.work.counts.count",
        "evaluate": "cost_model.price.energy.evaluate",
        "load": "cost_model.chip.hardware.load",
    },
)
