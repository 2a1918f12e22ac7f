"""What public functions check of their arguments, at the door: one function for each kind of argument, one line for each fault."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Collection, Sequence, Sized
from dataclasses import is_dataclass
from functools import cache
from numbers import Real
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np

from eamsim.errors import UserError

FAMILIES = {"float": "f", "integer": "iu"}
"""Dtypes of any width, by the kinds that NumPy knows them under."""
PIXELS = "give pixels as they are decoded, 0..255, of the model's size"


def expect_type(name: str, value: object, *types: Any) -> None:
    """UserError unless the value is of one of these types; True and False are no integers."""
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise UserError(f"{name}: expected {' or '.join(each.__name__ for each in types)}, got {described(value)}")


def expect_path(name: str, value: object) -> None:
    """UserError unless the value is a path, as text or as an object."""
    expect_type(name, value, str, os.PathLike)


def expect_choice(name: str, value: object, choices: Collection[str]) -> None:
    """UserError unless the value is one of these texts."""
    if not isinstance(value, str) or value not in choices:
        raise UserError(f"{name}: expected one of {', '.join(choices)}, got {described(value)}")


def expect_names(name: str, names: Sequence[str], known: Collection[str]) -> None:
    """UserError unless each of these names is known, and none of them comes twice."""
    expect_type(name, names, Sequence)
    for number, each in enumerate(names):
        if each not in known:
            close = difflib.get_close_matches(str(each), known, 1)
            raise UserError(f"{name}: {each!r:.80} is none of the {len(known)} known{f'; did you mean {close[0]!r}?' if close else ''}")
        if each in names[:number]:
            raise UserError(f"{name}: expected each once, got {each!r} twice")


def expect_integer(name: str, value: object, low: int, high: float = math.inf) -> None:
    """UserError unless the value is an integer in low..high."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or not low <= value <= high:
        raise UserError(
            f"{name}: expected an integer {f'of at least {low}' if math.isinf(high) else f'in {low}..{high}'}, got {described(value)}"
        )


def is_number(value: object) -> bool:
    """Whether the value is an integer or a float; True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def expect_length(name: str, value: Sized, length: int) -> None:
    """UserError unless there are so many."""
    expect_type(name, value, Sized)
    if len(value) != length:
        raise UserError(f"{name}: expected {length}, one for each block, got {len(value)}")


def expect_array(
    name: str, array: Any, dtype: str, shape: Sequence[int | str], low: float = -math.inf, high: float = math.inf, advice: str = ""
) -> None:
    """UserError for an array of another dtype or shape, or with an element outside low..high, as NaN is.

    dtype: NumPy's name, or `float` or `integer` of any width; shape: extents, or names of extents of any size, equal where the name is.
    """
    advice = advice and f"; {advice}"
    if not isinstance(array, np.ndarray) or not _is(array.dtype, dtype) or not _fits(array.shape, shape):
        raise UserError(f"{name}: expected {dtype} [{', '.join(map(str, shape))}], got {described(array)}{advice}")
    bounded = not (math.isinf(low) and math.isinf(high))
    if bounded and array.size and not low <= array.min() <= array.max() <= high:
        raise UserError(f"{name}: expected {low}..{high}, got {array.min()}..{array.max()}{advice}")


def expect_images(images: Any, shape: Sequence[int | str], least: int = 0) -> None:
    """UserError unless these are at least so many images uint8 [batch, *shape], where shape is (height, width, 3)."""
    expect_array("images", images, "uint8", ("batch", *shape), advice=PIXELS)
    if len(images) < least:
        raise UserError(f"images: expected at least {least}, got {len(images)}; give some")


def described(value: object) -> str:
    """An array by its dtype and shape, a number or a text as it is, anything else by its type."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    return f"{value!r:.80}" if isinstance(value, int | float | str | np.number | None) else type(value).__name__


def _is(dtype: np.dtype, name: str) -> bool:
    return dtype.kind in FAMILIES[name] if name in FAMILIES else dtype == name


def _fits(found: Sequence[int], expected: Sequence[int | str]) -> bool:
    extents: dict[str, int] = {}
    if len(found) != len(expected):
        return False
    return all(
        have == (want if isinstance(want, int) else extents.setdefault(want, have)) for have, want in zip(found, expected, strict=True)
    )


def mistyped(item: object, hint: Any, where: str) -> str | None:
    """The first part of `item` whose class is not one that its annotation names: where, what is expected, what came; None if there is none.

    Exactly these classes: NumPy's integers wrap, True is no number, and a subclass of an array or of an operation may mean something else.
    """
    origin, options = get_origin(hint), get_args(hint)
    kinds = {tuple: (tuple,), Literal: (str,)}.get(origin, options or (hint,))
    if type(item) not in kinds:
        return f"{where} must be {' or '.join(kind.__name__ for kind in kinds)}, got {type(item).__name__}"
    if isinstance(item, tuple):
        parts = [(each, options[0], f"{where}[{index}]") for index, each in enumerate(item)]
    elif is_dataclass(item):
        parts = [(getattr(item, name), each, f"{where}.{name}") for name, each in field_hints(type(item)).items()]
    else:
        parts = []
    return next(filter(None, (mistyped(*part) for part in parts)), None)


@cache
def field_hints(kind: type) -> dict[str, Any]:
    """The annotations of a dataclass, by field."""
    return get_type_hints(kind)
