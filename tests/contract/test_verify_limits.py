"""The verifier at the limits of docs/spec/datapath.md: what a formula of the page just allows passes, one more is refused by its number."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from programs import Shape, operation, random_program, unproved

from eamsim import golden, tensors
from eamsim.check import Check, ProgramError
from eamsim.constraints import verify, verify_operation
from eamsim.program import Attention, Datapath, LayerNorm, Linear, Operation, Pool, Raw, Requant, Residual, Value

PAGE = (Path(__file__).parents[2] / "docs/spec/datapath.md").read_text()
SUM, SCALED = 1 << 62, 3 << 61
WIDE = Datapath(multiplier_bits=30, accumulator_bits=48)
WRAP = Datapath(multiplier_bits=30, accumulator_bits=48, overflow="wrap")


def column(number: int, dtype: type = np.int32) -> np.ndarray:
    return np.array([number], dtype)


def layer_norm(gain: int = 0, offset: int = 0, variance_offset: int = 1) -> LayerNorm:
    """Of 3 channels; F = 12."""
    wide = np.full(3, gain, np.int32), np.full(3, offset, np.int64)
    return LayerNorm("x", Value("out", (1, 3), 4), *wide, shift=0, variance_offset=variance_offset)


def linear(epilogue: Any, signed: bool, x_channels: int = 400) -> Linear:
    """|acc| = 65535 * 255 * 400, of one channel; x u16."""
    weight = np.full((x_channels, 1), 255, np.uint8)
    out = Value("out", (1, 1), 4 + 12 * signed, signed)
    return Linear("x", out, weight, 8, column(0, np.uint8), 0, column(0), epilogue)


def attention(**changes: Any) -> Attention:
    """One head of 256 x 4 codes, u8 wide, all zero points 0: |s| <= 4 * 255^2."""
    tables = {"exp2": np.array([2, 1], np.int32), "exp2_bits": 1, "log2": np.array([0, 1], np.int32), "log2_scale": 0}
    plain: dict[str, Any] = {
        "heads": 1,
        "windows": 1,
        "score_heads": (0,),
        "q_zero": 0,
        "k_zero": 0,
        "v_zero": 0,
        "score_multiplier": 1,
        "score_shift": 30,
        **tables,
        "attention_bits": 6,
        "last_code_is_zero": False,
        "softmax": "paper",
        "multiplier_even": 1,
        "multiplier_odd": 1,
        "out_shift": 0,
        "out_zero": 0,
    }
    return Attention("x", Value("out", (256, 4), 4), **plain | changes)


ACC = 65535 * 255 * 400
SCORE = 4 * 255**2
EVEN = 256 * (1 << 31) * 255
T = 2**13 * (1 + 2)  # |t| of 3 channels with F = 12
X = {
    "LayerNorm": Value("x", (1, 3), 16, True),
    "Linear": Value("x", (1, 400), 16),
    "Attention": Value("x", (256, 12), 8),
    "Pool": Value("x", (1 << 26, 1), 32, True),
}


def aligned(operand_bits: int, shift: int) -> int:
    return 1 << (operand_bits - 1 + shift)


LIMITS: dict[str, tuple[Callable[[int], Operation], int, Datapath]] = {
    # what a number makes, the last that the page allows, the datapath
    "LayerNorm C6": (lambda n: layer_norm(variance_offset=n), SUM - 1 - 9 * 4**15, WIDE),
    "LayerNorm C7 offset": (lambda n: layer_norm(gain=7, offset=n), SCALED - 1 - 7 * T, WIDE),
    "LayerNorm C7 negative": (lambda n: layer_norm(gain=-7, offset=-n), SCALED - 1 - 7 * T, WIDE),
    "Linear C10": (lambda n: linear(Requant(column(n), column(62), column(0)), signed=False), (SCALED - 1) // ACC, WIDE),
    "Linear C14": (
        lambda n: linear(Residual("r", column(n), column(45), 0), signed=True),
        (SCALED - 1 - aligned(16, 45)) // ACC,
        WIDE,
    ),
    "Linear C14 shift": (lambda n: linear(Residual("r", column(0), column(n), 0), signed=True), 47, WIDE),
    "Attention C15 exponents": (lambda n: attention(score_multiplier=n, score_shift=12), ((1 << 42) - 1 - (1 << 12)) // (2 * SCORE), WIDE),
    "Attention C17": (lambda n: attention(multiplier_even=n, multiplier_odd=0), (SCALED - 1) // EVEN, WIDE),
    "Attention C17 wrap": (
        lambda n: attention(multiplier_even=n, multiplier_odd=n),
        (SCALED - 1) // (2 << 32),
        replace(WRAP, accumulator_bits=33),
    ),
    "Attention C7 tokens": (lambda n: attention(exp2=np.array([1 << n, 0], np.int32), exp2_bits=n), 22, WIDE),
    "Pool C3": (lambda n: Pool("x", Value("out", (1, 1), 4), n, 0, 0), (SCALED - 1) >> 57, WIDE),
}


@pytest.mark.parametrize("limit", LIMITS)
def test_the_last_that_the_page_allows(limit: str):
    make, last, datapath = LIMITS[limit]
    kind, label, *_ = limit.split()
    values = {"x": X[kind], "r": Value("r", (1, 1), 16, True)}
    check = Check("it", datapath)

    verify_operation(check, make(last), values)
    with pytest.raises(ProgramError, match=rf"\[{label}\]"):
        verify_operation(check, make(last + 1), values)


@pytest.mark.parametrize(("entries", "legal"), [(1, False), (2, True), (3, False), (1 << 16, True), (1 << 17, False)])
@pytest.mark.parametrize("table", ["exp2", "log2"])
def test_tables_have_1_to_16_index_bits(table: str, entries: int, legal: bool):
    content = np.zeros(entries, np.int32)
    content[0] = 2 if table == "exp2" else 0
    program = attention(**{table: content})
    if legal:
        verify_operation(Check("it", WIDE), program, {"x": X["Attention"]})
        return
    with pytest.raises(ProgramError, match=rf"\[C7\]: {table} must be a row of 2\^n entries, n in 1\.\.16, got shape \({entries},\)$"):
        verify_operation(Check("it", WIDE), program, {"x": X["Attention"]})


@pytest.mark.parametrize("overflow", ["wrap", "saturate"])
def test_sums_that_leave_the_accumulator_are_legal_where_they_are_narrowed(overflow: Any):
    """C8, C14 and C16 are about overflow `error` alone; what follows is judged by the accumulator's range."""
    datapath = Datapath(multiplier_bits=30, accumulator_bits=16, overflow=overflow)
    for kind, op in {
        "Linear": linear(Raw(column((1 << 30) - 1), column(0)), signed=True),
        "Attention": attention(multiplier_even=(1 << 30) - 1, multiplier_odd=(1 << 30) - 1),
    }.items():
        verify_operation(Check("it", datapath), op, {"x": X[kind]})
        with pytest.raises(ProgramError, match=r"\[C8\]|\[C14\]"):
            verify_operation(Check("it", replace(datapath, overflow="error")), op, {"x": X[kind]})


@pytest.mark.parametrize("name", ["", "acc", "fc1.acc", "a.b.scores"])
def test_no_value_is_called_like_a_tap_not_even_the_image(name: str):
    """Its pixels and a tap would be one entry of a trace."""
    plain = random_program(Shape(seed=0))
    first = replace(plain.operations[0], x=name)
    renamed = unproved(plain, image=replace(plain.image, name=name), operations=(first, *plain.operations[1:]))
    with pytest.raises(ProgramError, match=rf"random \[P4\]: the name of a value .* got '{name}'$"):
        verify(renamed)


def test_row_log2_means_nothing_under_paper():
    program = random_program(Shape(seed=5, freeze="rows"))
    op = operation(program, "block0.attn", Attention)
    assert op.frozen is not None
    other = replace(op, frozen=replace(op.frozen, row_log2=np.full_like(op.frozen.row_log2, 1 << 24)))
    image = np.full(program.image.shape, 9, np.uint8)
    changed = replace(program, operations=tuple(other if each is op else each for each in program.operations))
    np.testing.assert_array_equal(golden.run(changed, image), golden.run(program, image))


def test_the_page_has_the_axes_of_every_tap():
    program = random_program(Shape(seed=7, windows=2, queries=3, heads=3, pooled=True, prefix=0))
    declared = {name: tap.value.shape for name, tap in tensors.taps(program).items()}
    rows = re.findall(r"^\| (`\..*?`) \| (\w+) \| (.*?) \|", PAGE, re.M)
    axes = {tap: (kind, names.split(", ")) for taps, kind, names in rows for tap in re.findall(r"`\.(\w+)`", taps)}
    found = set()
    for op in program.operations:
        sizes = {"tokens": op.out.shape[0], "channels": op.out.shape[-1]}
        if isinstance(op, Attention):
            sizes |= {"windows": op.windows, "heads": op.heads, "window_rows": op.rows, "window_tokens": op.tokens, "head_dim": op.head_dim}
        for tap, (kind, names) in axes.items():
            shape = declared.pop(f"{op.out.name}.{tap}", None)
            if shape is not None:
                assert (type(op).__name__, tuple(sizes[name] for name in names)) == (kind, shape)
                found.add(tap)
    assert found == set(axes)
    assert set(declared) == set(program.values)
