"""Mutants of random programs: one field anywhere in the tree, one constant, or the order of the operations changed, as a seed says."""

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
from programs import DETOURS, FREEZES, Shape, random_program, unproved

from eamsim.program import Datapath, Operation, Program, Raw, Requant, Value

EDGES = (0, 1, 2, 7, 8, 15, 16, 24, 31, 32, 62, 63, 64, 255, 256, 1 << 16, 1 << 24, (1 << 31) - 1, 1 << 31, 1 << 62, 1 << 63, 1 << 70)
DTYPES = (np.bool_, np.uint8, np.int8, np.int16, np.int32, np.int64, np.uint64, np.float64, object)
TEXTS = ("", "unknown", "renormalised", "paper", "wrap", "saturate", "half_even", "acc", "a.acc", "image", "a b", "\0")
Mutant = tuple[str, Program]


def mutant(seed: int) -> Mutant:
    """What was changed, and the program: legal or not."""
    rng = np.random.default_rng(seed)
    program = unproved(random_program(shape(rng)))
    names = [value.name for value in program.values.values()]
    if rng.random() < 0.1:
        where, operations = reordered(list(program.operations), rng)
        return where, replace(program, operations=tuple(operations))
    root = ("operations",) * 8 + ("name", "image", "datapath")
    field = root[rng.integers(len(root))]
    where, part = changed(getattr(program, field), Garbler(rng, names))
    return f"{field}{where}", replace(program, **{field: part})


def shape(rng: np.random.Generator) -> Shape:
    """Small: most of the time is that of the readers."""

    def pick(*choices: Any) -> Any:
        return choices[rng.integers(len(choices))]

    windows = pick(1, 1, 2)
    return Shape(
        seed=int(rng.integers(1 << 32)),
        heads=pick(1, 2),
        head_dim=pick(1, 4),
        prefix=pick(0, 1) if windows == 1 else 0,
        windows=windows,
        weight_bits=pick(2, 4, 8),
        activation_bits=pick(2, 4),
        exponent_bits=pick(1, 4, 8),
        gelu_index_bits=pick(2, 8),
        freeze=pick(*FREEZES),
        softmax=pick("paper", "renormalised"),
        last_code_is_zero=pick(False, True),
        biased=pick(False, True),
        pooled=pick(False, True),
        detour=pick(*DETOURS),
        fitted=pick(False, True),
        datapath=Datapath(accumulator_bits=pick(32, 32, 24, 48), overflow=pick("error", "wrap", "saturate")),
    )


def reordered(operations: list[Operation], rng: np.random.Generator) -> tuple[str, list[Operation]]:
    """Swapped with the next, dropped, or twice."""
    at = int(rng.integers(len(operations)))
    kind = ("swapped", "dropped", "twice")[rng.integers(3)]
    if kind == "swapped":
        operations[at : at + 2] = operations[at : at + 2][::-1]
    else:
        operations[at : at + 1] = [operations[at]] * (2 if kind == "twice" else 0)
    return f"operation {at} {kind}", operations


def changed(item: Any, garbler: "Garbler") -> tuple[str, Any]:
    """Descends to a leaf, now and then no further than to a part."""
    parts = {each.name: getattr(item, each.name) for each in fields(item)} if is_dataclass(item) else {}
    if isinstance(item, tuple):
        parts = dict(enumerate(item))
    if not parts or garbler.rng.random() < 0.05:
        return garbler.garbled(item)
    key = garbler.pick(list(parts))
    where, part = changed(parts[key], garbler)
    if isinstance(item, tuple):
        return f"[{key}]{where}", (*item[:key], part, *item[key + 1 :])
    return f".{key}{where}", replace(item, **{key: part})  # pyright: ignore[reportArgumentType]


class Garbler:
    """Something else in place of a leaf: near to it, at an edge, of another kind, or nothing."""

    def __init__(self, rng: np.random.Generator, names: list[str]):
        self.rng, self.names = rng, names

    def pick(self, choices: Any) -> Any:
        return choices[self.rng.integers(len(choices))]

    def garbled(self, item: Any) -> tuple[str, Any]:
        kinds: dict[type, Callable[[Any], Any]] = {
            bool: lambda flag: self.pick((not flag, not flag, None, int(flag), 2)),
            int: self.integer,
            str: lambda text: self.pick((*self.names, *TEXTS, None, 3)),
            tuple: lambda items: self.pick((items[1:], items + items[:1], items[::-1], list(items), None, 5)),
            np.ndarray: self.array,
            type(None): lambda _: self.pick((0, "", np.zeros((1, 1, 1, 1), np.int32), np.zeros((1, 1, 1), np.bool_))),
            Raw: lambda part: Requant(part.multiplier, part.shift, np.zeros_like(part.shift)),
            Requant: lambda part: Raw(part.multiplier, part.shift),
            Value: lambda value: self.pick((replace(value, bits=value.bits + 1), replace(value, signed=not value.signed), value.name)),
        }
        found = kinds.get(type(item), lambda _: None)(item)
        return f": {item!r:.60} -> {found!r:.60}", found

    def integer(self, number: int) -> Any:
        near = (number - 1, number + 1, 2 * number, number // 2, -number)
        return self.pick((*near, *near, *near, *EDGES, -self.pick(EDGES), float(number), np.int64(number), bool(number), str(number), None))

    def array(self, array: np.ndarray) -> Any:
        change = self.pick((self.element, self.element, self.element, self.whole, self.form))
        return change(array.copy())

    def element(self, array: np.ndarray) -> np.ndarray:
        """One element near or at an edge of its type."""
        if array.size:
            at = self.rng.integers(array.size)
            info = np.iinfo(np.uint8 if array.dtype == np.bool_ else array.dtype)
            old = int(array.flat[at])
            edges = [edge for edge in EDGES if edge <= info.max]
            array.flat[at] = min(max(self.pick((old + 1, old - 1, info.min, info.max, -1, *edges)), info.min), info.max)
        return array

    def whole(self, array: np.ndarray) -> np.ndarray:
        """All elements alike, or in another order."""
        info = np.iinfo(np.uint8 if array.dtype == np.bool_ else array.dtype)
        ways = (np.full_like(array, self.pick((info.min, info.max, 0, 1))), self.rng.permutation(array), array[::-1])
        return self.pick(ways)

    def form(self, array: np.ndarray) -> Any:
        """Of another type or shape, with a hole, laid out otherwise, or no array."""
        ways = (
            array.astype(self.pick(DTYPES)),
            np.asfortranarray(array),
            array.T,
            array.ravel(),
            array[None],
            array[:-1],
            np.concatenate([array, array]),
            np.broadcast_to(array.ravel()[:1].reshape((1,) * array.ndim), array.shape) if array.size else array,
            array[..., :0],
            array.tolist(),
            np.array(1),
            None,
        )
        return ways[self.rng.integers(len(ways))]
