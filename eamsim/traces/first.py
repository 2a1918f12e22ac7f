"""The first difference in program order, with all that is known of it: what made it, what explains it, and what could not be tried."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from eamsim import golden
from eamsim.constraints import Verified
from eamsim.program import Operation
from eamsim.traces.compare import Report, Shape, Sides, TapDifference, other_order, sha256, shift_of
from eamsim.traces.diagnosis import Diagnosis, diagnose, in_register, operands, operation_of, published_with, swapped_axes
from eamsim.traces.difference import Taps
from eamsim.traces.sources import Digest, TapSource


@dataclass(frozen=True)
class First:
    """Of the first tap that differs, its first image.

    index: of the first element, or None where no integers can be compared: then `expected` and `found` are digests or shapes. operands:
    what made the integer. tried: how many known mistakes were executed; not_tried: why none was, or empty. inputs_not_compared: what the
    operation reads and the report says nothing of, so that the fault may lie before it.
    """

    tap: str
    image: int
    operation: str | None
    kind: str | None
    index: tuple[int, ...] | None
    expected: int | str
    found: int | str
    expected_hex: str | None
    found_hex: str | None
    operands: dict[str, int]
    likely_cause: str | None
    tried: int
    not_tried: str
    inputs_not_compared: list[str]


def first_of(sides: Sides, report: Report) -> First | None:
    """None where nothing differs."""
    if not report.differing:
        return None
    each = report.differing[0]
    tap, image = each.tap, each.images[0]
    program = sides.program
    op = None if program is None else operation_of(program, tap)
    needed = [tap] if program is None or op is None else [*op.inputs, *published_with(program, tap, sides.known)]
    right, why = expected_taps(sides, tap, image, op, needed)
    wrong = integers_of(sides.found, needed, image)
    unread = [] if op is None else [name for name in op.inputs if name not in report.names]
    inputs = [] if op is None else [name for name in op.inputs if name not in right]
    why = why or (f"{' and '.join(inputs)}, which it reads, is not on the expected side" if inputs else "")
    first = First(tap, image, op and op.out.name, op and type(op).__name__, None, "", "", None, None, {}, None, 0, why, unread)
    if each.shapes is not None:
        cause = cause_of_shapes(*each.shapes, right.get(tap), wrong.get(tap))
        return replace(first, expected=str(list(each.shapes[0])), found=str(list(each.shapes[1])), likely_cause=cause)
    first = replace(first, likely_cause=cause_of_order(report))
    if tap not in right or tap not in wrong:
        texts = [
            str(side) if isinstance(side, Digest) else "integers" for side in (sides.expected.tap(tap, image), sides.found.tap(tap, image))
        ]
        reason = first.not_tried or "only its digest is known"
        return replace(first, expected=texts[0], found=texts[1], not_tried="" if first.likely_cause else reason)
    return explained(first, each, sides, right, {name: wrong[name].reshape(right[name].shape) for name in wrong if name in right})


def explained(first: First, each: TapDifference, sides: Sides, right: Taps, wrong: Taps) -> First:
    """With integers on both sides."""
    tap, program, bits = first.tap, sides.program, sides.known[first.tap].bits
    index = tuple(int(i) for i in np.argwhere(right[tap] != wrong[tap])[0])
    expected, found = int(right[tap][index]), int(wrong[tap][index])
    made_of = {} if program is None else operands(program, tap, index, right)
    diagnosis = Diagnosis(first.likely_cause, 0, "")
    if first.likely_cause is None:
        diagnosis = diagnose(None if first.not_tried else program, tap, right, wrong, bits)
    return replace(
        first,
        index=index,
        expected=expected,
        found=found,
        expected_hex=in_hex(expected, bits),
        found_hex=in_hex(found, bits),
        operands=made_of,
        likely_cause=diagnosis.cause,
        tried=diagnosis.tried,
        not_tried="" if first.likely_cause else first.not_tried or diagnosis.not_tried,
    )


def expected_taps(sides: Sides, tap: str, image: int, op: Operation | None, needed: Iterable[str]) -> tuple[Taps, str]:
    """Integers of the expected side, and why no mistake can be tried on them, or an empty text.

    What it has not, the golden interpreter adds, if it gives what is expected of the tap itself.
    """
    right = integers_of(sides.expected, needed, image)
    if sides.program is None or op is None:
        return right, sides.no_program or "no operation makes it"
    if tap in right and all(name in right for name in op.inputs):
        return right, ""
    pixels = next(
        (integers for side in (sides.expected, sides.found) for integers in integers_of(side, [sides.image], image).values()), None
    )
    if pixels is None:
        return right, ""
    run = golden_taps(sides.program, pixels.reshape(sides.program.image.shape).astype(np.uint8))
    side = sides.expected.tap(tap, image)
    same = sha256(run[tap], side) == side.sha256 if isinstance(side, Digest) else np.array_equal(run[tap].ravel(), side.ravel())
    if not same:
        return right, "what is expected of it is not what the golden interpreter gives"
    return {name: run[name] for name in needed} | right, ""


def integers_of(source: TapSource, names: Iterable[str], image: int) -> Taps:
    """The taps of one image of which the source has integers."""
    found = {name: source.tap(name, image) for name in names if name in source.names}
    return {name: integers for name, integers in found.items() if isinstance(integers, np.ndarray)}


def golden_taps(program: Verified, image: np.ndarray) -> Taps:
    """All taps of one uint8 image by the golden interpreter, the image among them."""
    found: Taps = {}
    golden.run(program, image, found)
    return {program.image.name: image.astype(np.int64)} | found


def cause_of_order(report: Report) -> str | None:
    """Where other images' integers explain every tap that differs."""
    moved = other_order(report)
    if not moved:
        return None
    shift, differing = shift_of(moved, report.images), f"at all {len(report.differing)} taps that differ"
    if shift:
        return f"order of the images off by {shift:+}: found image n holds the integers of expected image n{shift:+}, {differing}"
    pairs = ", ".join(f"{image} those of {source}" for image, source in sorted(moved.items())[:4])
    return f"other order of the images: found image {pairs}{', ...' if len(moved) > 4 else ''}, {differing}"


def cause_of_shapes(expected: Shape, found: Shape, right: np.ndarray | None, wrong: np.ndarray | None) -> str:
    """What a shape that is not the expected one says, and whether the integers say so too."""
    if np.prod(expected) != np.prod(found):
        return f"another shape: expected {list(expected)}, found {list(found)} for each image; not of one program, or cut off"
    if right is None or wrong is None:
        return f"another shape: expected {list(expected)}, found {list(found)} for each image"
    right = right.reshape(expected)
    if axes := swapped_axes(right, wrong):
        return f"axes swapped: found holds the expected integers with the axes in the order {list(axes)}"
    if np.array_equal(right.ravel(), wrong.ravel()):
        return "another shape alone: in C order every integer is as expected"
    permuted = sorted(expected) == sorted(found)
    return f"another shape{', that of swapped axes' if permuted else ''}, and other integers in it"


def in_hex(number: int, bits: int) -> str:
    """Two's complement of the declared width; of more where it does not fit."""
    bits = bits if in_register(number, bits) else 64
    return f"0x{number & ((1 << bits) - 1):0{-(-bits // 4)}x}"
