"""Records of a plan that write taps, or take the digests of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from eamsim.engine.kernels.digest import CODES, FOUND_BYTES, TAPS, VALUES
from eamsim.engine.plan import DIGEST, PUBLISH, RECORD, Plan, PlannedTap
from eamsim.files.packing import BITS


def tap_records(records: np.ndarray, wanted: list[PlannedTap], first_byte: int = 0) -> tuple[np.ndarray, list[int], int]:
    """The records with offsets for the wanted taps, without publications nobody wants; the offsets from `first_byte` on; their end."""
    table, offsets, end = records.copy(), [], first_byte
    for tap in wanted:
        table[f"tap_{tap.field}"][tap.record] = end
        offsets.append(end)
        end += tap.room
    return table[(table["kind"] != PUBLISH) | (table["tap_out"] >= 0)], offsets, end


def operation_steps(plan: Plan, wanted: Callable[[str], bool]) -> Iterator[tuple[np.ndarray, list[PlannedTap], PlannedTap]]:
    """For each operation its records without the publication, its wanted inner taps as if those were the only records, its output."""
    first = 0
    for output in (tap for tap in plan.taps if plan.records["kind"][tap.record] == PUBLISH):
        inner = [replace(tap, record=tap.record - first) for tap in plan.taps if first <= tap.record < output.record and wanted(tap.name)]
        yield plan.records[first : output.record], inner, output
        first = output.record + 1


def digest_records(plan: Plan, names: Sequence[str], function: int) -> tuple[np.ndarray, int]:
    """Records that take the digests of these taps, operation by operation, by the function at an address.

    Then the bytes of one image before the digests: an operation writes its taps at one end of them while those of the operation before,
    at the other, are hashed, and waits for those before that.
    """
    spots = {name: spot for spot, name in enumerate(names)}
    steps = list(operation_steps(plan, spots.__contains__))
    sizes = [sum(tap.room for tap in inner) for _, inner, _ in steps]
    room = max(map(sum, zip(sizes, [*sizes[1:], 0], strict=True)))
    parts, total, taken = [], 0, [(0, 0), (0, 0)]
    for turn, (records, inner, output) in enumerate(steps):
        table, offsets, _ = tap_records(records, inner, (room - sizes[turn]) * (turn % 2))
        table["awaited"][0], table["awaited_end"][0] = taken[-2]
        place, signed = (int(plan.records[field][output.record]) for field in ("x", "x_signed"))
        sources = [(tap, TAPS, offset, tap.dtype.itemsize) for tap, offset in zip(inner, offsets, strict=True)]
        if output.name in spots:
            sources.append((output, VALUES, 4 * place, 4) if signed else (output, CODES, place, 1))
        parts += [table, *(digest_record(*source, room + FOUND_BYTES * spots[source[0].name], function) for source in sources)]
        total += len(table) + len(sources)
        taken.append((total - len(sources), total))
    return np.concatenate(parts), room


def digest_record(tap: PlannedTap, source: int, first_byte: int, item: int, found: int, function: int) -> np.ndarray:
    """One record; the integers lie in `source`, `item` bytes each, those of one image from `first_byte` on."""
    record = np.zeros(1, RECORD)
    bits = BITS[tap.declared.packing]
    work = {"kind": DIGEST, "units": 1, "block": 1, "grain": 1, "source": source, "first_byte": first_byte, "item": item}
    for field, number in (work | {"elements": tap.declared.value.size, "bits": bits, "hash": function, "found": found}).items():
        record[field] = number
    return record
