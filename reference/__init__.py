"""The torch side: float models, calibration, entropy, freezing, fake quantisation, and lowering to the integer program.

q = reference.quantise("deit_tiny_patch16_224", images)          # or a timm module; images in memory, in folders, in a DataLoader
maps = reference.freeze(q, images, reference.Freezing(0.2))      # 20 % of the attention weights, by their entropy
eamsim.save("x.eam", reference.lower(q, maps), reference.provenance(q))
"""

from typing import TYPE_CHECKING

from eamsim import face

if TYPE_CHECKING:
    from reference.attention.freeze import Freezing, FrozenMap
    from reference.chain import freeze, quantise, with_quantisers
    from reference.lowering.program import lower, provenance
    from reference.quantisation.precision import Precision

__all__ = ["Freezing", "FrozenMap", "Precision", "freeze", "lower", "provenance", "quantise", "with_quantisers"]

__getattr__, __dir__ = face(  # what freezing and precision are needs no torch
    __name__,
    {
        "Freezing": "reference.attention.freeze.Freezing",
        "FrozenMap": "reference.attention.freeze.FrozenMap",
        "Precision": "reference.quantisation.precision.Precision",
        "freeze": "reference.chain.freeze",
        "lower": "reference.lowering.program.lower",
        "provenance": "reference.lowering.program.provenance",
        "quantise": "reference.chain.quantise",
        "with_quantisers": "reference.chain.with_quantisers",
    },
)
