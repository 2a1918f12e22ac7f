"""What the engine refuses of the programs that verify accepts: by name, each in the README's Limits, and golden runs it."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from programs import Shape, operation, random_images, random_program

from eamsim import engine, golden
from eamsim.constraints import verify
from eamsim.engine.refusals import Refusal
from eamsim.errors import UserError
from eamsim.program import Attention, Datapath, LayerNorm, Linear, Operation, Program

README = Path(__file__).parents[2] / "README.md"


def changed(program: Program, op: Operation, **fields) -> Program:
    return replace(program, operations=tuple(replace(op, **fields) if each is op else each for each in program.operations))


def wide_codes(program: Program) -> Program:
    op = operation(program, "block0.mlp.fc1", Linear)
    return changed(program, op, out=replace(op.out, bits=9))


def wide_weights(program: Program) -> Program:
    op = operation(program, "block0.mlp.fc1", Linear)
    return changed(program, op, weight_bits=8, weight=np.full_like(op.weight, 200), weight_zero=np.zeros_like(op.weight_zero))


def wide_attention(program: Program) -> Program:
    return changed(program, operation(program, "block0.attn", Attention), attention_bits=5)


def wide_norm(program: Program) -> Program:
    return changed(program, operation(program, "block0.norm1", LayerNorm), reciprocal_bits=24)


def zero_of(name: str) -> Callable[[Program], Program]:
    return lambda program: changed(program, operation(program, "block0.attn", Attention), **{name: 100})


def narrow(overflow) -> Callable[[Program], Program]:
    return lambda program: replace(program, datapath=Datapath(accumulator_bits=9, overflow=overflow))


NARROW, EIGHT = Shape(seed=5, heads=2, head_dim=5), Shape(seed=5, heads=2, head_dim=5, activation_bits=8)
CASES: dict[str, tuple[Refusal, Shape, Callable[[Program], Program], str]] = {
    "codes of 9 bits": (Refusal.CODES, NARROW, wide_codes, "block0.mlp.fc1 is not supported: {}, got 9 bits"),
    "attention codes of 5 bits": (
        Refusal.ATTENTION_CODES,
        NARROW,
        wide_attention,
        "block0.attn Attention is not supported: {}, got 5 bits",
    ),
    "asymmetric weights of 8 bits": (Refusal.WEIGHTS, NARROW, wide_weights, "block0.mlp.fc1 Linear is not supported: {}, got [200, 200]"),
    "k of 8 bits": (
        Refusal.KEYS_AND_VALUES,
        EIGHT,
        zero_of("k_zero"),
        "block0.attn Attention is not supported: {}, got 8 bits and k_zero 100",
    ),
    "v of 8 bits": (Refusal.KEYS_AND_VALUES, EIGHT, zero_of("v_zero"), "block0.attn Attention is not supported: {}, got 8 bits and "),
    "sums that wrap": (Refusal.SUMS, NARROW, narrow("wrap"), "is not supported: {}, got ["),
    "sums that saturate": (Refusal.SUMS, NARROW, narrow("saturate"), "is not supported: {}, got ["),
    "fine reciprocals": (Refusal.NORMS, Shape(seed=5, head_dim=40), wide_norm, "block0.norm1 LayerNorm is not supported: {}, got "),
}


@pytest.mark.parametrize("case", CASES)
def test_the_engine_names_what_it_does_not_run_and_golden_runs_it(case):
    refusal, shape, change, text = CASES[case]
    program = verify(change(random_program(shape)))
    assert golden.run(program, random_images(program, 1, 0)[0]).size == program.output.size
    with pytest.raises(UserError, match=f"engine: .*{re.escape(text.format(refusal))}.*; the golden interpreter runs it"):
        engine.Engine(program)


def test_every_refusal_has_a_case_and_a_line_of_the_readme():
    assert {refusal for refusal, *_ in CASES.values()} == set(Refusal)
    listed = README.read_text().partition("- The engine refuses, by name")[2].partition("\n- ")[0]
    said = {item for line in re.findall(r"^  - (.*)$", listed, re.MULTILINE) for item in line.split("; ")}
    assert said == set(Refusal)
