"""Two sources of taps, compared: every integer of every tap that both have, and what could not be compared, by name."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from eamsim.constraints import Verified
from eamsim.errors import UserError
from eamsim.program import Value
from eamsim.tensors import matching
from eamsim.traces.difference import Difference, first_difference
from eamsim.traces.file import digest
from eamsim.traces.sources import Digest, TapSource

ALL = "all"
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Sides:
    """Two sources and what is known of both.

    known: every tap of the program, or else of the sources, in the order of execution; image: which of them is the image; program: what
    the expected side ran, or None, and then `no_program` says why.
    """

    expected: TapSource
    found: TapSource
    known: Mapping[str, Value]
    image: str
    program: Verified | None
    no_program: str = ""


@dataclass
class TapDifference:
    """How one tap differs over all images.

    images: those that differ, in `signatures` with digests of what was expected and found. errors: found - expected -> elements. first:
    None of a digest. shapes: expected and found for one image, where they are not the same and no integers were compared.
    """

    tap: str
    images: list[int] = field(default_factory=list)
    elements: int = 0
    of: int = 0
    errors: dict[int, int] = field(default_factory=dict)
    first: Difference | None = None
    signatures: dict[int, tuple[object, object]] = field(default_factory=dict)
    shapes: tuple[Shape, Shape] | None = None

    def add(self, image: int, expected: np.ndarray, found: np.ndarray, difference: Difference) -> None:
        self.first = self.first or difference
        self.add_signatures(image, *(hashlib.sha256(side.tobytes()).digest() for side in (expected, found)))
        self.elements += difference.elements
        self.of += expected.size
        error, counts = np.unique((found - expected)[found != expected], return_counts=True)
        for value, count in zip(error.tolist(), counts.tolist(), strict=True):
            self.errors[value] = self.errors.get(value, 0) + count

    def add_signatures(self, image: int, expected: object, found: object) -> None:
        self.images.append(image)
        self.signatures[image] = expected, found


@dataclass(frozen=True)
class Report:
    """names: the taps that were compared; only_expected, only_found: what one side alone has; differing: those of `names` that differ.

    required_missing: required, and not compared. All are in the order of execution.
    """

    names: list[str]
    images: int
    only_expected: list[str]
    only_found: list[str]
    required_missing: list[str]
    differing: list[TapDifference]

    @property
    def equal(self) -> bool:
        """Whether every integer that was compared is equal, and all that is required was compared."""
        return not self.differing and not self.required_missing

    @property
    def taps(self) -> int:
        """Those compared and those not."""
        return len({*self.names, *self.only_expected, *self.only_found, *self.required_missing})


def compare(sides: Sides, required: Iterable[str] = (), advance: Callable[[int], None] = lambda steps: None) -> Report:
    """Every integer of every tap that both sides have, the shape first; required: patterns of taps, or `all`.

    UserError where they have no tap but the image in common, no image or not as many images, digests that cannot be compared, or where a
    pattern fits no known tap.
    """
    expected, found = sides.expected, sides.found
    here, there = {*expected.names}, {*found.names}
    names, only_expected, only_found = in_order(sides, here & there), in_order(sides, here - there), in_order(sides, there - here)
    wanted = [name for pattern in required for name in required_by(pattern, sides)]
    if not {*names} - {sides.image}:
        what = f"nothing to compare{' but the image' if names else ''}"
        raise UserError(f"{what}: one has {some(expected)}, the other {some(found)}; give two of the same taps")
    if expected.images != found.images or not expected.images:
        raise UserError(f"expected equal numbers of images, got {expected.images} and {found.images}; see --images")
    shapes = {name: (expected.value(name).shape, found.value(name).shape) for name in names}
    all_images = list(range(expected.images))
    differing = {name: TapDifference(name, all_images, shapes=pair) for name, pair in shapes.items() if not same_memory(*pair)}
    alike = [name for name in names if name not in differing]
    for image in all_images:
        for name in alike:
            compare_tap(name, image, expected.tap(name, image), found.tap(name, image), differing)
        advance(1)
    missing = in_order(sides, {*wanted} - {*names})
    return Report(names, expected.images, only_expected, only_found, missing, [differing[name] for name in names if name in differing])


def in_order(sides: Sides, names: set[str]) -> list[str]:
    return [name for name in sides.known if name in names]


def required_by(pattern: str, sides: Sides) -> Sequence[str]:
    """The taps that have to be compared: what the pattern fits, or all that an operation publishes."""
    return [name for name in sides.known if name != sides.image] if pattern == ALL else matching(sides.known, pattern, "--require")


def some(source: TapSource) -> str:
    return f"{', '.join(source.names[:3])}, ... ({len(source.names)} taps)"


def same_memory(expected: Shape, found: Shape) -> bool:
    """Whether one is the other but for axes of one element, or has no shape, as a memory has none: equal orders of equal integers."""
    flat = min(len(expected), len(found)) <= 1 and np.prod(expected) == np.prod(found)
    return flat or [extent for extent in expected if extent != 1] == [extent for extent in found if extent != 1]


def compare_tap(
    name: str, image: int, expected: np.ndarray | Digest, found: np.ndarray | Digest, differing: dict[str, TapDifference]
) -> None:
    if isinstance(expected, np.ndarray) and isinstance(found, np.ndarray):
        found = found.reshape(expected.shape)
        difference = first_difference({name: expected}, {name: found})
        if difference is not None:
            differing.setdefault(name, TapDifference(name)).add(image, expected, found, difference)
        return
    if isinstance(expected, Digest) and isinstance(found, Digest):
        for what, one, two in (("versions", expected.version, found.version), ("packings", expected.packing, found.packing)):
            if one != two:
                raise UserError(f"{name}: digests of {what} {one} and {two} cannot be compared; record one of them again")
    known = next(side for side in (expected, found) if isinstance(side, Digest))
    digests = sha256(expected, known), sha256(found, known)
    if digests[0] != digests[1]:
        differing.setdefault(name, TapDifference(name)).add_signatures(image, *digests)


def sha256(side: np.ndarray | Digest, known: Digest) -> str | None:
    """As `known` was made; None, which equals no digest, for integers that its packing cannot hold."""
    if isinstance(side, Digest):
        return side.sha256
    try:
        return digest(side, known.packing, known.version).hex()
    except ValueError:
        return None


def other_order(report: Report) -> dict[int, int]:
    """Found image -> the expected image whose integers it has, where that explains every tap that differs; empty otherwise.

    Images may be left over where all others are moved by the same number: those beyond the end.
    """
    if not report.differing:
        return {}
    first = report.differing[0].signatures
    place = {expected: image for image, (expected, _) in first.items() if expected is not None}
    moved = {image: place[found] for image, (_, found) in first.items() if found in place}
    left = len(first) - len(moved)
    if left > (min(abs(shift_of(moved, report.images)), len(moved)) if moved else 0):
        return {}
    nothing = (None, None)
    explained = all(
        each.signatures.get(image, nothing)[1] == each.signatures.get(source, nothing)[0] is not None
        for each in report.differing
        for image, source in moved.items()
    )
    return moved if explained else {}


def shift_of(moved: Mapping[int, int], images: int) -> int:
    """By how many images all are moved, counted around and the shorter way; 0 where not all by the same."""
    shifts = {(source - image) % images for image, source in moved.items()}
    shift = shifts.pop()
    return 0 if shifts else shift if shift <= images // 2 else shift - images
