"""How a frozen map can be stored, and what each way takes: exact bits, counted from the map.

A map is one head of one block: which of rows x tokens weights are frozen, and a code of `code_bits` for each of them.

| encoding | bits beside the codes |
|---|---|
| bitmap | 1 per weight |
| reserved | none, but a code for *every* weight: one that no frozen weight has means "computed"; one bit more if none is free |
| csr-frozen, csr-computed | the column of each frozen (computed) weight, and rows + 1 row pointers |
| run-length | the lengths of the alternating runs of each row, and how it begins |
| row, column, tile:RxC | 1 per row, column or tile; only where the map is made of such units |
| head | none; only where all of it is frozen |

A tag of 4 bits says which it is; a head with nothing frozen is its tag alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from eamsim.errors import UserError
from eamsim.program import Attention

TAG_BITS = 4
TILE_SIDES = (2, 4, 8, 16, 32)
PLAIN = ("head", "row", "column", "bitmap", "reserved", "csr-frozen", "csr-computed", "run-length")
TILE = re.compile(r"tile:([1-9][0-9]{0,8})x([1-9][0-9]{0,8})")


@dataclass(frozen=True)
class Stored:
    """One head's map: the encoding chosen, its bits with codes and tag, and the entries that a decoder takes one after another."""

    encoding: str
    bits: int
    entries: int = 0


def check_encoding(encoding: str) -> None:
    """UserError unless it is `auto` or one of the table's."""
    if encoding not in ("auto", *PLAIN) and not TILE.fullmatch(encoding):
        raise UserError(f"--encoding: expected auto, {', '.join(PLAIN)} or tile:RxC such as tile:16x16, got {encoding!r}")


def store(op: Attention, encoding: str = "auto") -> list[Stored]:
    """The maps of one operation, head by head (maps x heads): `auto` takes the smallest of each; [] where nothing is frozen.

    UserError where a forced encoding cannot hold a map.
    """
    if op.frozen is None or not op.frozen.mask.any():
        return []
    shape = (-1, op.rows, op.tokens)
    known: dict[tuple[bytes, bytes], Stored] = {}
    heads = []
    for mask, codes in zip(op.frozen.mask.reshape(shape), op.frozen.codes.reshape(shape), strict=True):
        key = (mask.tobytes(), codes.tobytes())
        if key not in known:
            known[key] = store_head(mask, codes, op.frozen.bits, encoding, op.out.name)
        heads.append(known[key])
    return heads


def store_head(mask: np.ndarray, codes: np.ndarray, code_bits: int, encoding: str, where: str) -> Stored:
    """One head: mask bool, codes uint8, both [rows, tokens]."""
    if not mask.any():
        return Stored("none", TAG_BITS)
    if encoding == "auto" and mask.all():
        encoding = "head"  # the codes alone: nothing is smaller
    if encoding == "auto":
        coarse = _units(mask, 2, 2, 0) is not None  # or no multiple of 2 x 2 fits either
        names = [*PLAIN, *(f"tile:{side}x{side}" for side in TILE_SIDES if coarse)]
        sizes = {name: size for name in names if (size := bits(mask, codes, code_bits, name)) is not None}
        encoding = min(sizes, key=lambda name: sizes[name])
        return Stored(encoding, TAG_BITS + sizes[encoding], entries(mask, encoding))
    size = bits(mask, codes, code_bits, encoding)
    if size is None:
        raise UserError(f"{where}: --encoding {encoding} expects maps frozen in such units, got others; use bitmap or auto")
    return Stored(encoding, TAG_BITS + size, entries(mask, encoding))


def bits(mask: np.ndarray, codes: np.ndarray, code_bits: int, encoding: str) -> int | None:
    """Bits of one head's map with its codes; None where the map is not made of the encoding's units."""
    (rows, tokens), frozen = mask.shape, int(np.count_nonzero(mask))
    stored_codes = frozen * code_bits
    pointers = (rows + 1) * mask.size.bit_length()
    column_bits = (tokens - 1).bit_length()
    match encoding:
        case "bitmap":
            return mask.size + stored_codes
        case "reserved":
            is_free = np.count_nonzero(np.bincount(codes[mask])) < 1 << code_bits
            return mask.size * (code_bits if is_free else code_bits + 1)
        case "csr-frozen":
            return pointers + frozen * column_bits + stored_codes
        case "csr-computed":
            return pointers + (mask.size - frozen) * column_bits + stored_codes
        case "run-length":
            return rows + entries(mask, encoding) * tokens.bit_length() + stored_codes
        case "row":
            return _units(mask, 1, tokens, stored_codes)
        case "column":
            return _units(mask, rows, 1, stored_codes)
        case "head":
            return stored_codes if mask.all() else None
        case _:
            tile = TILE.fullmatch(encoding)
            return _units(mask, int(tile[1]), int(tile[2]), stored_codes) if tile else None


def entries(mask: np.ndarray, encoding: str) -> int:
    """Runs, or columns and row pointers; none where every pair has a bit, a code or a unit of its own place."""
    match encoding:
        case "run-length":
            return len(mask) + int(np.count_nonzero(mask[:, 1:] != mask[:, :-1]))
        case "csr-frozen":
            return len(mask) + 1 + int(np.count_nonzero(mask))
        case "csr-computed":
            return len(mask) + 1 + mask.size - int(np.count_nonzero(mask))
        case _:
            return 0


def _units(mask: np.ndarray, height: int, width: int, stored_codes: int) -> int | None:
    """One bit a unit, if every unit is frozen whole or not at all."""
    top, left = (np.arange(extent) // side * side for extent, side in zip(mask.shape, (height, width), strict=True))
    if not np.array_equal(mask[0], mask[0, left]) or not np.array_equal(mask[:, 0], mask[top, 0]):
        return None  # one line of each tells most maps, twenty times faster
    units = -(-mask.shape[0] // height) * -(-mask.shape[1] // width)
    return units + stored_codes if np.array_equal(mask, mask[np.ix_(top, left)]) else None


def row_mass_bits(op: Attention) -> int:
    """Bits of the rows' frozen mass, which a renormalised softmax reads: each as wide as the largest needs."""
    if op.frozen is None or op.softmax == "paper":
        return 0
    return op.frozen.row_log2.size * int(op.frozen.row_log2.max()).bit_length()
