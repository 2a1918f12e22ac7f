"""Which attention weights are frozen (paper, section 4.4), one by one or in units that hardware can skip."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from eamsim.arguments import expect_array, expect_integer, expect_length, expect_type, is_number
from eamsim.errors import UserError

Scope = Literal["head", "layer", "model"]
Order = Literal["entropy", "variance", "output", "kl", "random"]


@dataclass(frozen=True, eq=False)
class FrozenMap:
    """Frozen attention weights of one block: where `mask` is set, `mean` replaces the computed weight (Eq. 15).

    mask: bool [maps, tokens, tokens], a map for each head (of each window, unless windows share one); mean: float64, same shape, in
    [0, 1], the mean map A^mu of all weights. Raises UserError for anything else.
    """

    mask: np.ndarray
    mean: np.ndarray

    def __post_init__(self) -> None:
        expect_array("frozen mask", self.mask, "bool", ("maps", "tokens", "tokens"))
        expect_array("frozen mean", self.mean, "float64", self.mask.shape, 0, 1)


@dataclass(frozen=True)
class Freezing:
    """The choice of what is frozen (docs/guide/freezing.md).

    tau: the share of frozen attention weights, in [0, 1]; granularity: the unit that is frozen whole, `weight`, `row`, `column`,
    `head` or `tile:RxC`; scope: within what the lowest scores are looked for; order: what the score is; seed: of the order
    `random`. Raises UserError for anything else, for heads chosen within one head, and for other units in the order `kl`.
    """

    tau: float
    granularity: str = "weight"
    scope: Scope = "head"
    order: Order = "entropy"
    seed: int = 0

    def __post_init__(self):
        if not is_number(self.tau) or not 0 <= self.tau <= 1:
            raise UserError(f"tau: must be a fraction in [0, 1], got {self.tau!r}; write 0.2 to freeze 20 % of the attention weights")
        self.unit_shape(1)
        for name, value, known in (("scope", self.scope, get_args(Scope)), ("order", self.order, get_args(Order))):
            if value not in known:
                raise UserError(f"{name}: must be one of {', '.join(known)}, got {value!r}")
        expect_integer("seed", self.seed, 0)
        if (self.granularity, self.scope) == ("head", "head"):
            raise UserError("scope: a head holds no other head to choose from, got head for both; choose heads within a layer or the model")
        if self.order == "kl" and self.granularity != "head":
            raise UserError(f"order: kl is measured for whole heads, got the granularity {self.granularity}; freeze heads, or take output")

    def unit_shape(self, tokens: int) -> tuple[int, int]:
        """(rows, columns) of a unit: every granularity is a tile; UserError for a granularity that does not exist."""
        match self.granularity:
            case "weight":
                return 1, 1
            case "row":
                return 1, tokens
            case "column":
                return tokens, 1
            case "head":
                return tokens, tokens
        tile = re.fullmatch(r"tile:([1-9][0-9]{0,8})x([1-9][0-9]{0,8})", str(self.granularity))
        if not tile:
            raise UserError(f"granularity: must be weight, row, column, head or tile:RxC such as tile:16x16, got {self.granularity!r}")
        return int(tile[1]), int(tile[2])


def freeze(scores: Sequence[np.ndarray], mean: Sequence[np.ndarray], freezing: Freezing) -> list[FrozenMap]:
    """Freeze the units of least score: Eq. 15, whose epsilon_tau is the threshold of each head, layer or of the model.

    scores, mean: one float [maps, tokens, tokens] per layer, the means in [0, 1]. Which units: `chosen_masks`. Raises UserError.
    """
    expect_length("mean", mean, len(scores))
    for number, (layer, each) in enumerate(zip(scores, mean, strict=True)):
        expect_array(f"block{number} mean", each, "float", np.shape(layer), 0, 1)
    return [FrozenMap(mask, np.asarray(layer, np.float64)) for mask, layer in zip(chosen_masks(scores, freezing), mean, strict=True)]


def chosen_masks(scores: Sequence[np.ndarray], freezing: Freezing) -> list[np.ndarray]:
    """The units of least score: one bool [maps, tokens, tokens] per layer, as `scores`, which are floats.

    A weight of infinite score is never frozen and counts for nothing. A unit's score is the mean of its weights' scores, except that the
    order `random` draws it. The count of frozen units is `lowest`'s. Raises UserError, for a score that is NaN too, which no order holds.
    """
    expect_type("freezing", freezing, Freezing)
    if not len(scores):
        raise UserError("scores: expected those of at least one block, got none; measure the maps first")
    for number, layer in enumerate(scores):
        expect_array(f"block{number} scores", layer, "float", ("maps", "tokens", "tokens"))
        if np.isnan(layer).any():
            raise UserError(f"block{number}: expected a number as the score of every attention weight, got NaN; measure the maps again")
    live = [np.isfinite(layer) for layer in scores]
    shapes = [freezing.unit_shape(layer.shape[-1]) for layer in scores]
    sizes = [_pool(layer.astype(np.int64), shape) for layer, shape in zip(live, shapes, strict=True)]
    if freezing.order == "random":
        generator = np.random.default_rng(freezing.seed)
        units = [generator.random(layer.shape) for layer in sizes]
    else:
        finite = [np.where(each, layer, 0).astype(np.float64) for each, layer in zip(live, scores, strict=True)]
        units = [_pool(layer, shape) / np.maximum(size, 1) for layer, shape, size in zip(finite, shapes, sizes, strict=True)]
    chosen = _choose(units, sizes, freezing)
    return [each & _spread(layer, shape, each.shape[-1]) for each, layer, shape in zip(live, chosen, shapes, strict=True)]


def expect_frozen(block: int, layer: FrozenMap, shape: tuple[int, int, int], heads: int) -> None:
    """UserError unless it is of this shape (maps, tokens, tokens) or, where windows share maps, of a map for each head."""
    expect_type(f"block{block} frozen map", layer, FrozenMap)
    found, shared = layer.mask.shape, (heads, *shape[1:])
    if found not in (shape, shared):
        expected = " or ".join(str(list(each)) for each in dict.fromkeys((shape, shared)))
        raise UserError(f"block{block} frozen map: expected {expected}, got {list(found)}; measure the maps of this model")


def lowest(scores: np.ndarray, sizes: np.ndarray, tau: float) -> np.ndarray:
    """Mask bool [units] of the lowest scores [units], equal ones in the order of their index; sizes: int [units], weights per unit.

    Units are frozen from the lowest score on; their number is the one that brings the frozen weights nearest to tau of all
    weights, of two equally near numbers the even one. Units of one size: exactly `round(tau * units)`.
    """
    order = np.argsort(scores, kind="stable")
    filled = np.concatenate([[0], np.cumsum(sizes[order])]) * len(sizes) / sizes.sum()  # in units of mean size: exact if all are equal
    distance = np.abs(filled - tau * len(sizes))
    nearest = np.flatnonzero(distance == distance.min())
    mask = np.zeros(len(sizes), np.bool_)
    mask[order[: min(nearest, key=lambda count: count % 2)]] = True
    return mask


def _choose(units: Sequence[np.ndarray], sizes: Sequence[np.ndarray], freezing: Freezing) -> list[np.ndarray]:
    """The lowest units [heads, down, across] of every layer, looked for within each head, each layer or all."""
    layers = [layer.size for layer in units]
    match freezing.scope:
        case "head":
            groups = [head.size for layer in units for head in layer]
        case "layer":
            groups = layers
        case "model":
            groups = [sum(layers)]
    within = zip(_parts(units, groups), _parts(sizes, groups), strict=True)
    chosen = [_lowest_live(scores, weights, freezing.tau) for scores, weights in within]
    return [mask.reshape(layer.shape) for mask, layer in zip(_parts(chosen, layers), units, strict=True)]


def _lowest_live(scores: np.ndarray, sizes: np.ndarray, tau: float) -> np.ndarray:
    """`lowest` of the units that have weights at all; no other is chosen."""
    mask = sizes > 0
    mask[mask] = lowest(scores[mask], sizes[mask], tau)
    return mask


def _parts(arrays: Sequence[np.ndarray], lengths: Sequence[int]) -> list[np.ndarray]:
    """All elements in a row, cut into parts of these lengths."""
    return np.split(np.concatenate([array.ravel() for array in arrays]), np.cumsum(lengths)[:-1])


def _pool(layer: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Sums over the tiles of [heads, tokens, tokens]: [heads, down, across]; the last tiles of a row or column may be smaller."""
    tokens = layer.shape[-1]
    down, across = (np.arange(0, tokens, step) for step in shape)
    return np.add.reduceat(np.add.reduceat(layer, down, axis=1), across, axis=2)


def _spread(units: np.ndarray, shape: tuple[int, int], tokens: int) -> np.ndarray:
    """Every unit [heads, down, across] over its tile: [heads, tokens, tokens]."""
    down, across = (np.arange(tokens) // step for step in shape)
    return units[:, down][:, :, across]
