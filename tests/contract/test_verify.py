"""Each numbered constraint is violated once; the error names the operation, the constraint and what came."""

import re
from dataclasses import replace

import numpy as np
import pytest
from programs import Shape, operation, random_program, unproved

from eamsim.check import ProgramError
from eamsim.constraints import verify
from eamsim.program import Attention, Datapath, Linear, Program, Queries, Value

PLAIN = random_program(Shape(seed=3, freeze="scattered", softmax="renormalised"))
WINDOWED = random_program(Shape(seed=4, windows=2, prefix=0, biased=True, pooled=True))
OWN = random_program(Shape(seed=1, queries=2))


def changed(program: Program, name: str, epilogue: dict | None = None, frozen: dict | None = None, **fields) -> Program:
    """The program with fields of one operation (or of its epilogue or frozen maps) replaced."""
    operations = []
    for op in program.operations:
        if op.out.name == name:
            if epilogue is not None:
                fields["epilogue"] = replace(op.epilogue, **epilogue)  # pyright: ignore
            if frozen is not None:
                fields["frozen"] = replace(op.frozen, **frozen)  # pyright: ignore
            op = replace(op, **fields)  # pyright: ignore
        operations.append(op)
    return unproved(program, operations=tuple(operations))


def value(program: Program, of: str, **fields) -> Value:
    return replace(program.values[of], **fields)


QKV, PROJ, FC1, HEAD = "block0.attn.qkv", "block0.attn.proj", "block0.mlp.fc1", "head"
ATTN, NORM, OWN_Q = "block0.attn", "block0.norm1", "block0.attn.q"
TOKENS, CHANNELS = PLAIN.values[NORM].shape
LEVELS = np.arange(-8, 8, dtype=np.int32)
FROZEN = operation(PLAIN, ATTN, Attention).frozen
assert FROZEN is not None

VIOLATIONS = [
    (unproved(PLAIN, datapath=Datapath(rounding="nearest")), "random [D1]: unknown rounding 'nearest'"),  # pyright: ignore
    (unproved(PLAIN, datapath=Datapath(overflow="ignore")), "random [D2]: unknown overflow 'ignore'"),  # pyright: ignore
    (unproved(PLAIN, datapath=Datapath(multiplier_bits=31)), "[D3]: multiplier_bits must be an integer in [2, 30], got 31"),
    (unproved(PLAIN, datapath=Datapath(accumulator_bits=64)), "[D4]: accumulator_bits must be an integer in [8, 48], got 64"),
    (unproved(PLAIN, operations=()), "[P1]: a program needs at least one operation"),
    (unproved(PLAIN, image=Value("image", (4, 4, 1), 8)), "[P2]: the image must be u8 [height, width, 3]"),
    (changed(PLAIN, NORM, out=value(PLAIN, NORM, bits=17)), "[P3]: bits of block0.norm1 must be an integer in [1, 16], got 17"),
    (changed(PLAIN, NORM, out=value(PLAIN, NORM, shape=(0, 8))), "[P3]: block0.norm1 must have positive extents"),
    (
        unproved(PLAIN, image=Value("image", (1 << 32, 1 << 32, 3), 8)),
        "[P3]: image must have positive extents and fewer than 2^31 elements, got (4294967296, 4294967296, 3)",
    ),
    (changed(PLAIN, NORM, out=value(PLAIN, NORM, name="embed")), "embed LayerNorm [P4]: the name is taken"),
    (changed(PLAIN, NORM, out=value(PLAIN, NORM, name="embed.acc")), "embed.acc LayerNorm [P4]: the name of a value is neither empty nor"),
    (changed(PLAIN, NORM, out=value(PLAIN, NORM, name="")), " LayerNorm [P4]: the name of a value is neither empty nor"),
    (changed(PLAIN, NORM, x="block7"), "block0.norm1 LayerNorm [P5]: input 'block7' is not an earlier value"),
    (
        changed(PLAIN, "input", x="image", out=value(PLAIN, "input", shape=(4, 3, 3))),
        "input InputQuant [C2]: input must have shape (4, 4, 3)",
    ),
    (
        changed(PLAIN, "input", table=np.zeros((3, 255), np.uint8)),
        "input InputQuant [C3]: table must be uint8 (3, 256), got uint8 (3, 255)",
    ),
    (changed(PLAIN, "patches", granule=5), "patches Gather [C1]: granule 5 must divide 48 and 48 elements"),
    (changed(PLAIN, "patches", indices=np.full(8, 8, np.int32)), "patches Gather [C2]: indices must lie in [0, 7], got [8, 8]"),
    (changed(PLAIN, "patches", indices=np.full(8, -1, np.int32)), "patches Gather [C2]: indices must lie in [0, 7], got [-1, -1]"),
    (changed(PLAIN, "patches", out=value(PLAIN, "patches", bits=9)), "patches Gather [C3]: out must be as wide as x"),
    (changed(PLAIN, "embed", x="patches"), "embed Embed [C1]: patches must be signed"),
    (changed(PLAIN, "embed", prefix=np.zeros((2, CHANNELS), np.int32)), "embed Embed [C2]: embed must have shape (6, 8), got (5, 8)"),
    (changed(PLAIN, "embed", prefix=np.full((1, CHANNELS), 1 << 15, np.int32)), "embed Embed [C3]: prefix must lie in"),
    (changed(PLAIN, "embed", position=np.zeros((4, CHANNELS), np.int64)), "embed Embed [C4]: position must be int32 (4, 8), got int64"),
    (changed(PLAIN, NORM, x="patches", out=value(PLAIN, "patches", name=NORM)), "block0.norm1 LayerNorm [C1]: patches must be signed"),
    (changed(PLAIN, NORM, out=value(PLAIN, NORM, shape=(3, 8))), "block0.norm1 LayerNorm [C2]"),
    (changed(PLAIN, NORM, gain=np.zeros(3, np.int32)), "block0.norm1 LayerNorm [C3]: gain must be int32 (8,), got int32 (3,)"),
    (changed(PLAIN, NORM, shift=63), "block0.norm1 LayerNorm [C4]: shift must be an integer in [0, 62], got 63"),
    (changed(PLAIN, NORM, fraction_bits=17), "block0.norm1 LayerNorm [C5]: fraction_bits must be an integer in [0, 16], got 17"),
    (changed(PLAIN, NORM, variance_offset=0), "block0.norm1 LayerNorm [C6]: variance_offset must be an integer in [1,"),
    (changed(PLAIN, NORM, offset=np.full(8, 3 << 61)), "block0.norm1 LayerNorm [C7]: normalised x times gain plus offset may reach"),
    (changed(PLAIN, QKV, x="embed"), "block0.attn.qkv Linear [C1]: embed must be unsigned codes"),
    (changed(PLAIN, QKV, out=value(PLAIN, QKV, shape=(4, 24))), "block0.attn.qkv Linear [C2]: out must have 5 tokens, got 4"),
    (changed(PLAIN, QKV, weight_bits=9), "block0.attn.qkv Linear [C3]: weight_bits must be an integer in [2, 8], got 9"),
    (
        changed(PLAIN, QKV, weight=np.zeros((24, 8), np.uint8)),
        "block0.attn.qkv Linear [C4]: weight (u4) must be uint8 (8, 24), got uint8 (24, 8)",
    ),
    (
        changed(PLAIN, QKV, weight=np.full((8, 24), 16, np.uint8)),
        "block0.attn.qkv Linear [C4]: weight (u4) must lie in [0, 15], got [16, 16]",
    ),
    (changed(PLAIN, QKV, weight_zero=np.full(24, 16, np.uint8)), "block0.attn.qkv Linear [C5]: weight_zero must lie in"),
    (changed(PLAIN, QKV, x_zero=16), "block0.attn.qkv Linear [C6]: x_zero must be an integer in [0, 15], got 16"),
    (changed(PLAIN, QKV, x_zero=True), "random [P6]: operations[5].x_zero must be int, got bool"),
    (changed(PLAIN, QKV, x_zero=np.int64(1)), "random [P6]: operations[5].x_zero must be int, got int64"),
    (changed(PLAIN, QKV, bias=None), "random [P6]: operations[5].bias must be ndarray, got NoneType"),
    (changed(PLAIN, QKV, bias=np.ma.zeros(24, np.int32)), "random [P6]: operations[5].bias must be ndarray, got MaskedArray"),
    (
        unproved(PLAIN, operations=(replace(operation(PLAIN, QKV, Linear), epilogue=None),)),  # pyright: ignore[reportArgumentType]
        "random [P6]: operations[0].epilogue must be Requant or Gelu or Residual or Raw, got NoneType",
    ),
    (changed(PLAIN, ATTN, score_heads=[0, 1]), "random [P6]: operations[6].score_heads must be tuple, got list"),
    (changed(PLAIN, ATTN, excluded=0), "random [P6]: operations[6].excluded must be ndarray or NoneType, got int"),
    (changed(PLAIN, ATTN, softmax=None), "random [P6]: operations[6].softmax must be str, got NoneType"),
    (unproved(PLAIN, operations=(None,)), "random [P6]: operations[0] must be InputQuant or Gather or Embed or"),
    (unproved(PLAIN, operations=None), "random [P6]: operations must be tuple, got NoneType"),
    (unproved(PLAIN, image=Value("image", (4, 4.0, 3), 8)), "random [P6]: image.shape[1] must be int, got float"),  # pyright: ignore
    (unproved(PLAIN, datapath=None), "random [P6]: datapath must be Datapath, got NoneType"),
    (changed(PLAIN, QKV, bias=np.zeros(24, np.int64)), "block0.attn.qkv Linear [C7]: bias must be int32 (24,), got int64 (24,)"),
    (changed(PLAIN, QKV, bias=np.zeros(24, ">i4")), "block0.attn.qkv Linear [C7]: bias must be int32 (24,), got >i4 (24,)"),
    (changed(PLAIN, QKV, bias=np.full(24, 2**31 - 1, np.int32)), "block0.attn.qkv Linear [C8]: acc may reach"),
    (
        changed(PLAIN, QKV, epilogue={"multiplier": np.full(24, 1 << 16, np.int32)}),
        "block0.attn.qkv Linear [C9]: multiplier must lie in [0, 65535]",
    ),
    (changed(PLAIN, QKV, epilogue={"shift": np.full(24, 63, np.int32)}), "block0.attn.qkv Linear [C9]: shift must lie in [0, 62]"),
    (changed(PLAIN, QKV, epilogue={"zero": np.full(24, 16, np.int32)}), "block0.attn.qkv Linear [C11]: zero must lie in [0, 15]"),
    (changed(PLAIN, FC1, epilogue={"table": np.full(256, 16, np.uint8)}), "block0.mlp.fc1 Linear [C12]: table must lie in [0, 15]"),
    (changed(PLAIN, PROJ, epilogue={"exponent_change": 41}), "block0.attn.proj Linear [C13]: exponent_change must be an integer in [0,"),
    (changed(PLAIN, PROJ, epilogue={"operand": "patches"}), "block0.attn.proj Linear [C13]: patches must be signed"),
    (changed(PLAIN, PROJ, epilogue={"shift": np.full(8, 60, np.int32)}), "block0.attn.proj Linear [C14]: aligned sum may reach"),
    (changed(PLAIN, HEAD, out=Value("head", (1, 5), 16)), "head Linear [C15]: head must be signed"),
    (changed(PLAIN, QKV, levels=LEVELS), "block0.attn.qkv Linear [C16]: x_zero beside levels must be an integer in [0, 0], got"),
    (
        changed(PLAIN, QKV, levels=LEVELS[:15], x_zero=0),
        "block0.attn.qkv Linear [C16]: levels (i8) must be int32 (16,), got int32 (15,)",
    ),
    (
        changed(PLAIN, QKV, levels=LEVELS.astype(np.int64), x_zero=0),
        "block0.attn.qkv Linear [C16]: levels (i8) must be int32 (16,), got int64 (16,)",
    ),
    (
        changed(PLAIN, QKV, levels=LEVELS * 17, x_zero=0),
        "block0.attn.qkv Linear [C16]: levels (i8) must lie in [-128, 127], got [-136, 119]",
    ),
    (changed(PLAIN, QKV, levels=LEVELS * 16 - 1, x_zero=0), "[C16]: levels (i8) must lie in [-128, 127], got [-129, 111]"),
    (
        changed(changed(PLAIN, NORM, out=value(PLAIN, NORM, bits=9)), QKV, levels=np.zeros(512, np.int32), x_zero=0),
        "block0.attn.qkv Linear [C16]: levels need codes of at most 8 bits, got block0.norm1: u9[5, 8]",
    ),
    (changed(PLAIN, ATTN, x=NORM), "block0.attn Attention [C1]: block0.norm1 must have shape (5, 24), got (5, 8)"),
    (changed(PLAIN, ATTN, out=value(PLAIN, ATTN, signed=True)), "block0.attn Attention [C2]: block0.attn must be unsigned codes"),
    (changed(PLAIN, ATTN, windows=2), "block0.attn Attention [C3]: windows 2 and heads 2 must divide out (5, 8)"),
    (
        changed(PLAIN, ATTN, score_heads=(1, 0)),
        "block0.attn Attention [C4]: score_heads must be ascending head numbers below 2, got (1, 0)",
    ),
    (changed(PLAIN, ATTN, softmax="exact"), "block0.attn Attention [C5]: unknown softmax 'exact'"),
    (changed(PLAIN, ATTN, k_zero=-1), "block0.attn Attention [C6]: k_zero must be an integer in [0, 15], got -1"),
    (changed(PLAIN, ATTN, exp2=np.zeros(256, np.int32)), "block0.attn Attention [C7]: exp2[0] must be 32768, got 0"),
    (
        changed(PLAIN, ATTN, exp2=np.zeros(0, np.int32)),
        "block0.attn Attention [C7]: exp2 must be a row of 2^n entries",
    ),
    (
        changed(PLAIN, ATTN, exp2=np.zeros((), np.int32)),
        "block0.attn Attention [C7]: exp2 must be a row of 2^n entries",
    ),
    (
        changed(PLAIN, ATTN, log2=np.zeros(3, np.int32)),
        "block0.attn Attention [C7]: log2 must be a row of 2^n entries",
    ),
    (changed(PLAIN, ATTN, log2_scale=1 << 25), "block0.attn Attention [C8]: log2_scale must be an integer in"),
    (changed(PLAIN, ATTN, attention_bits=7), "block0.attn Attention [C9]: attention_bits must be an integer in [2, 6], got 7"),
    (
        changed(PLAIN, ATTN, frozen={"codes": ~FROZEN.mask * np.uint8(1)}),
        "block0.attn Attention [C10]: frozen.codes must be 0 where the mask is not set",
    ),
    (
        changed(PLAIN, ATTN, frozen={"mask": np.zeros((3, 2, 5, 5), bool)}),
        "block0.attn Attention [C10]: frozen.mask must have 1 or 1 maps, got 3",
    ),
    (
        changed(WINDOWED, ATTN, logit_bias=np.zeros((1, 2, 2, 2), np.int64)),
        "block0.attn Attention [C12]: logit_bias must be int32 (1, 2, 2, 2), got int64",
    ),
    (
        changed(WINDOWED, ATTN, excluded=np.zeros((1, 2, 2), bool)),
        "block0.attn Attention [C13]: excluded must be bool (2, 2, 2), got bool (1, 2, 2)",
    ),
    (changed(WINDOWED, ATTN, logit_bias=np.full((1, 2, 2, 2), 2**31 - 1, np.int32)), "block0.attn Attention [C14]: scores may reach"),
    (
        changed(PLAIN, ATTN, score_shift=0, score_multiplier=1 << 16),
        "block0.attn Attention [C15]: multiplier must be an integer in [0, 65535]",
    ),
    (
        unproved(changed(PLAIN, ATTN, attention_bits=6), datapath=Datapath(accumulator_bits=30)),
        "block0.attn Attention [C16]: even and odd sums may reach",
    ),
    (changed(PLAIN, ATTN, out_shift=-1), "block0.attn Attention [C17]: out_shift must be an integer in [0, 62], got -1"),
    (changed(PLAIN, ATTN, out_zero=16), "block0.attn Attention [C18]: out_zero must be an integer in [0, 15], got 16"),
    (changed(WINDOWED, "pool", out=value(WINDOWED, "pool", signed=True)), "pool Pool [C2]: pool must be unsigned codes"),
    (changed(OWN, ATTN, queries=Queries("block9", 5)), "block0.attn Attention [P5]: input 'block9' is not an earlier value"),
    (changed(OWN, ATTN, queries=Queries(OWN_Q, 0)), "block0.attn Attention [C19]: queries.tokens must be an integer in [1, 5], got 0"),
    (changed(OWN, ATTN, queries=Queries(OWN_Q, 4)), "block0.attn Attention [C1]: block0.attn.kv must have shape (4, 16), got (5, 16)"),
    (changed(OWN, ATTN, queries=Queries("embed", 5)), "block0.attn Attention [C19]: embed must be unsigned codes"),
    (changed(OWN, ATTN, queries=Queries(NORM, 5)), "block0.attn Attention [C19]: block0.norm1 must have shape (2, 8), got (5, 8)"),
    (
        changed(OWN, OWN_Q, out=value(OWN, OWN_Q, bits=5)),
        "block0.attn Attention [C19]: queries.operand must be as wide as x: block0.attn.kv: u4[5, 16], got block0.attn.q: u5[2, 8]",
    ),
    (changed(OWN, ATTN, queries=None), "block0.attn Attention [C1]: block0.attn.kv must have shape (2, 24), got (5, 16)"),
    (
        changed(OWN, ATTN, logit_bias=np.zeros((1, 2, 5, 5), np.int32)),
        "block0.attn Attention [C12]: logit_bias must be int32 (1, 2, 2, 5), got int32 (1, 2, 5, 5)",
    ),
    (changed(WINDOWED, "pool", multiplier=-1), "pool Pool [C3]: multiplier must be an integer in [0, 65535], got -1"),
    (changed(WINDOWED, "pool", zero=16), "pool Pool [C4]: zero must be an integer in [0, 15], got 16"),
]


@pytest.mark.parametrize(("program", "message"), VIOLATIONS, ids=[message[:60] for _, message in VIOLATIONS])
def test_violation_is_named(program: Program, message: str):
    with pytest.raises(ProgramError, match=re.escape(message)):
        verify(program)


def test_unscored_head_must_be_frozen():
    program = random_program(Shape(seed=0, freeze="heads", softmax="renormalised"))
    assert len(operation(program, ATTN, Attention).score_heads) == 1
    verify(program)
    with pytest.raises(ProgramError, match=r"block0.attn Attention \[C11\]: heads \[\d\] lack scores"):
        verify(changed(program, ATTN, frozen={"mask": np.zeros((1, 2, 5, 5), bool), "codes": np.zeros((1, 2, 5, 5), np.uint8)}))


def test_accumulator_too_narrow_is_refused_unless_it_wraps():
    narrow = Datapath(accumulator_bits=10)
    with pytest.raises(ProgramError, match=r"\[C8\]: acc may reach .* beyond the 10-bit accumulator \(overflow 'error'\)"):
        verify(unproved(PLAIN, datapath=narrow))
    assert verify(unproved(PLAIN, datapath=replace(narrow, overflow="wrap"))).bounds == PLAIN.bounds


@pytest.mark.parametrize("levels", [None, LEVELS, LEVELS + 100, LEVELS - 100, LEVELS * 0 - 128])
def test_linear_bound_is_attained(levels: np.ndarray | None):
    op = operation(PLAIN, QKV, Linear)
    operands = np.arange(16) - op.x_zero if levels is None else levels
    program = PLAIN if levels is None else changed(PLAIN, QKV, levels=levels, x_zero=0)
    products = operands[:, None, None].astype(np.int64) * (op.weight.astype(np.int64) - op.weight_zero)
    low, high = (limit(axis=0).sum(axis=0) + op.bias for limit in (products.min, products.max))
    assert verify(program).bounds[f"{QKV}.acc"] == (low.min(), high.max())
