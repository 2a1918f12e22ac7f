"""How many bits values and weights have, and what their codes stand for: the choices before calibration."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

from eamsim.arguments import expect_choice, expect_integer, expect_type
from eamsim.datapath import CODE_BITS, PIXEL_BITS, WEIGHT_BITS
from eamsim.errors import UserError

Codes = Literal["uniform", "fitted"]
"""What the codes after GELU stand for: an even grid, or the 8-bit levels that fit them best."""
WEIGHT = "weight:"
EIGHT_BITS = ("input", "mean")
"""Values that have eight bits unless something else is said: pixels, and a mean that is normalised afterwards."""
LEAST_BITS, MOST_BITS, MOST_SIGNED_BITS = 2, 8, 7
"""Of values; of weights, q, k and v, whose codes less their zero point are signed bytes in every engine."""


@dataclass(frozen=True)
class Precision:
    """W4A4 but for the values and layers that are named.

    bits: pattern -> 2..8, or 2..7 of weights, q, k and v; `block0.mlp.fc1` is a value, `weight:block0.mlp.fc1` the weights of a layer; `*`
    stands for any part of a name of the same kind, and where several patterns match, the last decides. Raises UserError.
    """

    codes: Codes = "uniform"
    bits: Mapping[str, int] = field(default_factory=dict)
    weight_bits: int = WEIGHT_BITS
    activation_bits: int = CODE_BITS

    def __post_init__(self) -> None:
        expect_choice("codes", self.codes, get_args(Codes))
        expect_type("bits", self.bits, Mapping)
        for name, bits in self.bits.items():
            expect_integer(f"bits, {name}", bits, LEAST_BITS, MOST_SIGNED_BITS if name.startswith(WEIGHT) else MOST_BITS)
        for name, bits in (("weight_bits", self.weight_bits), ("activation_bits", self.activation_bits)):
            expect_integer(name, bits, 2, 16)

    def of_value(self, name: str) -> int:
        """Bits of a value's codes."""
        return self._of(name, PIXEL_BITS if name in EIGHT_BITS else self.activation_bits)

    def of_weights(self, name: str) -> int:
        """Bits of a layer's weights."""
        return self._of(f"{WEIGHT}{name}", self.weight_bits)

    def check(self, values: Collection[str], layers: Collection[str]) -> None:
        """UserError for a pattern that names nothing, and for q, k and v that differ, as one linear layer writes them, or are too wide."""
        names = [*values, *(f"{WEIGHT}{name}" for name in layers)]
        for pattern in self.bits:
            if not any(_matches(pattern, name) for name in names):
                raise UserError(
                    f"bits, {pattern}: expected a name or a pattern such as {names[0]} or {names[-1]}, got one that matches none"
                )
        for name in values:
            block, _, part = name.rpartition(".")
            found = {each: self.of_value(f"{block}.{each}") for each in "qkv"} if part == "q" else {}
            said = ", ".join(f"{each} {bits}" for each, bits in found.items())
            if len(set(found.values())) > 1:
                raise UserError(f"bits, {block}: expected equal ones of q, k and v, which one layer writes, got {said}; give {block}.[qkv]")
            if any(_matches(pattern, name) for pattern in self.bits) and found and found["q"] > MOST_SIGNED_BITS:
                raise UserError(f"bits, {block}: expected at most {MOST_SIGNED_BITS} of q, k and v, which are signed, got {said}")

    def _of(self, name: str, default: int) -> int:
        return [default, *(bits for pattern, bits in self.bits.items() if _matches(pattern, name))][-1]

    def json(self) -> dict[str, Any]:
        """What provenance says of it."""
        return {"codes": self.codes, "bits": dict(self.bits)}


W4A4 = Precision()


def _matches(pattern: str, name: str) -> bool:
    return pattern.startswith(WEIGHT) == name.startswith(WEIGHT) and fnmatchcase(name, pattern)
