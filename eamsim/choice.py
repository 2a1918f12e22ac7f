"""Choosing by an error that a computation may have spoiled: NaN is neither less nor more, so `min` takes or leaves it by its place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite
from typing import TypeVar

from eamsim.errors import UserError

Candidate = TypeVar("Candidate")


def least(candidates: Sequence[Candidate], error: Callable[[Candidate], float], what: str) -> Candidate:
    """The first candidate of least error among those whose error is finite; UserError, which begins with `what`, if none is."""
    errors = [error(candidate) for candidate in candidates]
    usable = [number for number, each in enumerate(errors) if isfinite(each)]
    if not usable:
        raise UserError(f"{what}: expected a candidate of finite error, got errors {errors}; the model or the images give no usable range")
    return candidates[min(usable, key=errors.__getitem__)]


def finite(error: float, what: str) -> float:
    """The error itself; UserError, which begins with `what`, unless it is finite."""
    if not isfinite(error):
        raise UserError(f"{what}: expected a finite error, got {error}; what was measured is not fit to choose by")
    return error
