"""Energies per operation as published: low, nominal and high, for they spread fourfold, each with its source."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from operator import add

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

MULTIPLY_PJ, ADD_PJ = 3.1 / 32**2, 0.1 / 32
"""Per bit x bit and per bit: Horowitz, ISSCC 2014, 45 nm. They split the figure of a multiply-accumulate into its two parts."""
MOST_PJ = 1e6
"""More is no operation's or bit's energy, but a figure in another unit."""


def memory_growth(size: float, described: float) -> float:
    """How much more a bit costs in a memory of another size: the root of the ratio (Horowitz: 10 pJ at 8 KB, 20 at 32 KB, 100 at 1 MB)."""
    return sqrt(size / described)


@dataclass(frozen=True)
class Energy:
    """Picojoules by three readings of the literature, kept apart: all low figures together, all nominal, all high."""

    low_pj: float = 0.0
    nominal_pj: float = 0.0
    high_pj: float = 0.0

    def __add__(self, other: Energy) -> Energy:
        return Energy(*map(add, vars(self).values(), vars(other).values()))

    def __mul__(self, times: float) -> Energy:
        return Energy(*(times * energy for energy in vars(self).values()))

    def __sub__(self, other: Energy) -> Energy:
        return self + other * -1


class Figure(BaseModel):
    """Picojoules per operation or bit at `node_nm`; estimated: scaled or chosen by us rather than printed in the source."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    low: float = Field(ge=0, le=MOST_PJ)
    nominal: float = Field(ge=0, le=MOST_PJ)
    high: float = Field(ge=0, le=MOST_PJ)
    source: str = Field(min_length=1)
    node_nm: float = Field(ge=1, le=10_000)
    estimated: bool

    @field_validator("nominal", "high")
    @classmethod
    def _ascending(cls, figure: float, info: ValidationInfo) -> float:
        below = "low" if info.field_name == "nominal" else "nominal"
        if not info.data.get(below, 0) <= figure:
            raise ValueError(f"expected low <= nominal <= high, got {info.data[below]} as {below} and {figure}")
        return figure

    def __mul__(self, times: float) -> Figure:
        """The same reading of the literature, so many times as large."""
        return self.model_copy(update={"low": self.low * times, "nominal": self.nominal * times, "high": self.high * times})

    @property
    def energy(self) -> Energy:
        """Of one operation or one bit."""
        return Energy(self.low, self.nominal, self.high)
