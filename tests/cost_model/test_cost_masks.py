"""Every encoding's bits against a naive writer of the same bits, and the crossings that follow from the formulas."""

from dataclasses import replace

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from programs import Shape, operation, random_program

from cost_model.work.encodings import PLAIN, TAG_BITS, Stored, bits, check_encoding, row_mass_bits, store, store_head
from eamsim.errors import UserError
from eamsim.program import Attention, Frozen


def csr(entries: np.ndarray) -> str:
    """Where each row ends, then the columns of its entries."""
    tokens = len(entries)
    index_bits, pointer_bits = (tokens - 1).bit_length(), (tokens**2).bit_length()
    pointers = np.concatenate([[0], np.cumsum(entries.sum(axis=1))])
    columns = np.nonzero(entries)[1] if index_bits else []
    return "".join(f"{pointer:0{pointer_bits}b}" for pointer in pointers) + "".join(f"{column:0{index_bits}b}" for column in columns)


def written(mask: np.ndarray, codes: np.ndarray, code_bits: int, encoding: str) -> str | None:
    """The encoding written out as a string of 0 and 1."""
    tokens = len(mask)
    stored = "".join(f"{code:0{code_bits}b}" for code in codes[mask])

    def units(height: int, width: int) -> str | None:
        flags = ""
        for top in range(0, tokens, height):
            for left in range(0, tokens, width):
                unit = mask[top : top + height, left : left + width]
                if unit.any() and not unit.all():
                    return None
                flags += str(int(unit.any()))
        return flags

    match encoding:
        case "bitmap":
            return "".join(str(int(bit)) for bit in mask.flat) + stored
        case "reserved":
            free = sorted(set(range(1 << code_bits)) - set(codes[mask].tolist()))
            width, absent = (code_bits, free[0]) if free else (code_bits + 1, 1 << code_bits)
            return "".join(f"{code if frozen else absent:0{width}b}" for code, frozen in zip(codes.flat, mask.flat, strict=True))
        case "csr-frozen":
            return csr(mask) + stored
        case "csr-computed":
            return csr(~mask) + stored
        case "run-length":
            text = ""
            for row in mask:
                starts = [0, *np.flatnonzero(row[1:] != row[:-1]) + 1, tokens]
                text += str(int(row[0])) + "".join(f"{length:0{tokens.bit_length()}b}" for length in np.diff(starts))
            return text + stored
        case "head":
            return stored if mask.all() else None
        case "row" | "column":
            flags = units(1, tokens) if encoding == "row" else units(tokens, 1)
        case _:
            flags = units(*map(int, encoding.removeprefix("tile:").split("x")))
    return None if flags is None else flags + stored


@st.composite
def maps(draw) -> tuple[np.ndarray, np.ndarray]:
    tokens = draw(st.integers(1, 12))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    height, width = (draw(st.sampled_from([1, 2, 3, tokens])) for _ in range(2))
    units = generator.random((tokens, tokens)) < draw(st.sampled_from([0.1, 0.5, 0.95]))
    mask = units[np.arange(tokens) // height][:, np.arange(tokens) // width]
    return mask, np.where(mask, generator.integers(0, 16, mask.shape), 0).astype(np.uint8)


@examples(200)
@given(maps(), st.sampled_from([*PLAIN, "tile:2x2", "tile:2x3", "tile:16x16"]))
def test_bits_equal_what_is_written(frozen, encoding):
    mask, codes = frozen
    expected = written(mask, codes, 4, encoding)
    assert bits(mask, codes, 4, encoding) == (None if expected is None else len(expected))


@examples(100)
@given(maps())
def test_auto_is_the_smallest(frozen):
    mask, codes = frozen
    names = [*PLAIN, *(f"tile:{side}x{side}" for side in (2, 4, 8, 16, 32))]
    sizes = [size for name in names if (size := bits(mask, codes, 4, name)) is not None]
    expected = min(sizes) + TAG_BITS if mask.any() else TAG_BITS
    assert store_head(mask, codes, 4, "auto", "x").bits == expected


def scattered(tau: float, tokens: int = 197) -> tuple[np.ndarray, np.ndarray]:
    order = np.random.default_rng(0).random(tokens**2).argsort().argsort().reshape(tokens, tokens)
    mask = order < round(tau * tokens**2)
    return mask, np.where(mask, order % 16, 0).astype(np.uint8)


@pytest.mark.parametrize(("encoding", "tau"), [("csr-frozen", 0.115), ("run-length", 0.064)])
def test_scattered_maps_leave_the_bitmap_below(encoding, tau):
    for share, is_smaller in ((tau - 0.01, True), (tau + 0.01, False)):
        assert (bits(*scattered(share), 4, encoding) < bits(*scattered(share), 4, "bitmap")) is is_smaller  # pyright: ignore


def test_a_bitmap_takes_one_bit_and_four_per_frozen_weight():
    mask, codes = scattered(0.9)
    assert bits(mask, codes, 4, "bitmap") == 197**2 + 4 * round(0.9 * 197**2)


def attention(freeze: str, **changes: object) -> Attention:
    op = operation(random_program(Shape(seed=1, freeze=freeze, softmax="renormalised")), "block0.attn", Attention)
    return replace(op, **changes)  # pyright: ignore[reportArgumentType]


def test_heads_are_stored_one_by_one():
    stored = store(attention("heads"))
    assert sorted(head.encoding for head in stored) == ["head", "none"]
    assert sorted(head.bits for head in stored) == [TAG_BITS, TAG_BITS + 4 * 5 * 5]
    assert store(attention("none")) == store(attention("empty")) == []
    assert store(attention("all"), "bitmap") == 2 * [Stored("bitmap", TAG_BITS + 25 + 100)]


def test_an_encoding_that_cannot_hold_a_map_is_refused_by_name():
    with pytest.raises(UserError, match=r"block0\.attn: --encoding row expects maps frozen in such units, got others; use bitmap or auto"):
        store(attention("columns"), "row")


@pytest.mark.parametrize("encoding", ["zip", "tile:0x4", "tile:4", ""])
def test_unknown_encodings(encoding):
    with pytest.raises(UserError, match=r"--encoding: expected auto, .*csr-frozen.* or tile:RxC such as tile:16x16, got"):
        check_encoding(encoding)


def test_a_renormalised_map_has_the_mass_of_its_rows():
    mask = np.ones((1, 2, 5, 5), bool)
    frozen = Frozen(mask, mask.astype(np.uint8), 4, np.full((1, 2, 5), 300, np.int32))
    assert row_mass_bits(attention("none", frozen=frozen)) == 2 * 5 * 9
    assert row_mass_bits(attention("none", frozen=frozen, softmax="paper")) == 0
