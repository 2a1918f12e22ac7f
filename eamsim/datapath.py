"""The default datapath: its widths, once, for whoever makes programs and whoever counts those that nobody made."""

from __future__ import annotations

from dataclasses import dataclass, fields

PIXEL_BITS, CODE_BITS, WEIGHT_BITS, LOGIT_BITS = 8, 4, 4, 32
"""Of the image's codes, of activations and attention weights, of weights, of the output."""


@dataclass(frozen=True)
class Widths:
    """Widths of a datapath in bits; 0 where a program has no such part.

    residual_bits: of the signed values but the output; multiplier_bits: of every M, and of the gains of LayerNorm, signed;
    exponent_bits: f, the fraction of the softmax's base-2 exponents; exp2_bits: of its powers; log2_index_bits: of the index of its
    logarithm table; norm_fraction_bits, reciprocal_bits: of LayerNorm; gelu_index_bits: of GELU's index; accumulator_bits: of all sums.
    """

    residual_bits: int = 16
    multiplier_bits: int = 16
    exponent_bits: int = 8
    exp2_bits: int = 15
    log2_index_bits: int = 8
    norm_fraction_bits: int = 12
    reciprocal_bits: int = 15
    gelu_index_bits: int = 8
    accumulator_bits: int = 32


DEFAULT = Widths()
FLOORS = Widths(2, 2, 1, 1, 1, 0, 1, 2, 8)
CEILINGS = Widths(32, 30, 16, 24, 16, 25, 24, 12, 48)
"""The least and the most that the constraints of operations allow of each."""
KNOBS = tuple(field.name for field in fields(Widths))
