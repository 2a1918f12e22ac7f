"""What a proved program may hold and the engine does not run."""

from __future__ import annotations

from enum import StrEnum
from typing import NoReturn

from eamsim.errors import UserError


class Refusal(StrEnum):
    """By the words of README's Limits."""

    CODES = "codes wider than 8 bits"
    SUMS = "sums that may leave the accumulator or 32 bits, whether it wraps or saturates"
    WEIGHTS = "weights that leave int8 once their zero point is subtracted"
    KEYS_AND_VALUES = "codes of k or v that leave int8 once their zero point is subtracted"
    ATTENTION_CODES = "attention codes wider than 4 bits"
    NORMS = "layer norms whose reciprocals leave 32 bits"


def refuse(where: str, what: Refusal, found: str) -> NoReturn:
    """UserError that names the operation or value, what the engine does not run, and what was found."""
    raise UserError(f"engine: {where} is not supported: {what}, got {found}; the golden interpreter runs it")
