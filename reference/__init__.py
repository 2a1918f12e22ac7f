"""The torch side: float models, calibration, entropy, freezing, fake quantisation, and lowering to the integer program.

q = reference.quantise("deit_tiny_patch16_224", images)          # or a timm module; images in memory, in folders, in a DataLoader
maps = reference.freeze(q, images, reference.Freezing(0.2))      # 20 % of the attention weights, by their entropy
eamsim.save("x.eam", reference.lower(q, maps), reference.provenance(q))
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reference.attention.freeze import Freezing, FrozenMap
    from reference.chain import freeze, quantise, with_quantisers
    from reference.lowering.program import lower, provenance
    from reference.quantisation.precision import Precision

__all__ = ["Freezing", "FrozenMap", "Precision", "freeze", "lower", "provenance", "quantise", "with_quantisers"]

_PLACES = {  # imported when asked for: what freezing and precision are needs no torch
    **dict.fromkeys(("Freezing", "FrozenMap"), "reference.attention.freeze"),
    "Precision": "reference.quantisation.precision",
    **dict.fromkeys(("freeze", "quantise", "with_quantisers"), "reference.chain"),
    **dict.fromkeys(("lower", "provenance"), "reference.lowering.program"),
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'reference' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
