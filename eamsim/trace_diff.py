"""Two sources of taps, compared: the first difference in program order, and how every tap differs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from eamsim.errors import UserError
from eamsim.trace import Difference, first_difference
from eamsim.trace_file import digest
from eamsim.trace_sources import Digest, Source


@dataclass
class TapDifference:
    """How one tap differs over all images.

    first: image and difference, or None of a digest. errors: found - expected -> elements. images: those that differ.
    """

    tap: str
    images: list[int] = field(default_factory=list)
    elements: int = 0
    of: int = 0
    errors: dict[int, int] = field(default_factory=dict)
    first: Difference | None = None

    def add(self, image: int, expected: np.ndarray, found: np.ndarray, difference: Difference) -> None:
        self.first = self.first or difference
        self.images.append(image)
        self.elements += difference.elements
        self.of += expected.size
        error, counts = np.unique((found - expected)[found != expected], return_counts=True)
        for value, count in zip(error.tolist(), counts.tolist(), strict=True):
            self.errors[value] = self.errors.get(value, 0) + count


@dataclass(frozen=True)
class Report:
    """names: the taps both have, in the order of execution; differing: those that differ, in that order; missing: in one source alone."""

    names: list[str]
    images: int
    missing: list[str]
    differing: list[TapDifference]


def compare(expected: Source, found: Source, advance: Callable[[int], None] = lambda steps: None) -> Report:
    """Every integer of every tap that both sources have. UserError where they have none in common, or not as many images or elements."""
    names = [name for name in expected.names if name in set(found.names)]
    if not names:
        raise UserError(f"nothing to compare: one has {some(expected)}, the other {some(found)}")
    if expected.images != found.images:
        raise UserError(f"expected equal numbers of images, got {expected.images} and {found.images}; see --images")
    missing = sorted({*expected.names} ^ {*found.names})
    differing: dict[str, TapDifference] = {}
    for image in range(expected.images):
        for name in names:
            compare_tap(name, image, expected.tap(name, image), found.tap(name, image), differing)
        advance(1)
    return Report(names, expected.images, missing, [differing[name] for name in names if name in differing])


def some(source: Source) -> str:
    return f"{', '.join(source.names[:3])}, ... ({len(source.names)} taps)"


def compare_tap(
    name: str, image: int, expected: np.ndarray | Digest, found: np.ndarray | Digest, differing: dict[str, TapDifference]
) -> None:
    if isinstance(expected, np.ndarray) and isinstance(found, np.ndarray):
        if expected.shape != found.shape and expected.size == found.size:
            found = found.reshape(expected.shape)  # a memory has no shape
        try:
            difference = first_difference({name: expected}, {name: found})
        except ValueError as error:
            raise UserError(f"{error}; the two are not of one program") from None
        if difference is not None:
            differing.setdefault(name, TapDifference(name)).add(image, expected, found, difference)
        return
    if isinstance(expected, Digest) and isinstance(found, Digest) and expected.version != found.version:
        raise UserError(f"{name}: digests of versions {expected.version} and {found.version} cannot be compared; record one of them again")
    known = next(side for side in (expected, found) if isinstance(side, Digest))
    if sha256(expected, known) != sha256(found, known):
        differing.setdefault(name, TapDifference(name)).images.append(image)


def sha256(side: np.ndarray | Digest, known: Digest) -> str | None:
    """As `known` was made; None, which equals no digest, for integers that its packing cannot hold."""
    if isinstance(side, Digest):
        return side.sha256 if side.packing == known.packing else None
    try:
        return digest(side, known.packing, known.version).hex()
    except ValueError:
        return None
