"""A kind of operation or of epilogue that a consumer does not handle is refused by name everywhere, not passed over."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from programs import Shape, operation, random_program, unproved

from cost_model.chip.hardware import load
from cost_model.exports import layers
from cost_model.price.energy import evaluate
from cost_model.price.traffic import constant_bits, operation_moves
from cost_model.price.widths import price, steps
from cost_model.work.counts import count, linear_layers
from cost_model.work.gemms import gemms
from cost_model.work.ledger import ledger
from cost_model.work.unread import unread_macs
from eamsim import golden, tensors
from eamsim.check import ProgramError
from eamsim.constraints import Verified, verify
from eamsim.engine import Engine
from eamsim.engine.plan import KINDS, make_plan
from eamsim.exports import c99, onnx_integer, onnx_qdq
from eamsim.narrow import narrowed, value_drops, widths_of
from eamsim.program import LayerNorm, Linear, Value, describe
from eamsim.traces.diagnosis import diagnose, operands, orders, shifts, zero_points

PLAIN = random_program(Shape(seed=3))
IMAGE = np.zeros(PLAIN.image.shape, np.uint8)
CHIP = load("small-npu")
HEAD, NORM = operation(PLAIN, "head", Linear), operation(PLAIN, "norm", LayerNorm)
TAPS: dict[str, np.ndarray] = {}
golden.run(PLAIN, IMAGE, TAPS)


@dataclass(frozen=True, eq=False)
class Sigmoid:
    """An operation that nobody knows, with all that operations have in common."""

    x: str
    out: Value

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.x,)


@dataclass(frozen=True, eq=False)
class Silu:
    """An epilogue that nobody knows."""

    multiplier: np.ndarray
    shift: np.ndarray


SIGMOID: Any = Sigmoid("norm", replace(NORM.out, name="sigmoid"))
SILU: Any = replace(HEAD, epilogue=Silu(HEAD.epilogue.multiplier, HEAD.epilogue.shift))  # pyright: ignore[reportArgumentType]


def forged(*last: Any) -> Any:
    """A program that ends in these operations, with a proof that nobody made: as if the verifier knew them."""
    program = object.__new__(Verified)
    operations = tuple(op for op in PLAIN.operations if op is not HEAD) + last
    for name, item in {
        "name": "p",
        "image": PLAIN.image,
        "operations": operations,
        "datapath": PLAIN.datapath,
        "bounds": PLAIN.bounds,
    }.items():
        object.__setattr__(program, name, item)
    return program


UNKNOWN = {"Sigmoid": forged(SIGMOID, replace(HEAD, x="sigmoid")), "Silu": forged(SILU)}
CONSUMERS: dict[str, Callable[[Any, Any], object]] = {
    "verify": lambda program, op: verify(unproved(program)),
    "golden": lambda program, op: golden.run(program, IMAGE),
    "engine": lambda program, op: make_plan(program),
    "constants": lambda program, op: tensors.constants(op, program),
    "onnx": lambda program, op: onnx_integer.export(program),
    "qdq": lambda program, op: onnx_qdq.export(program),
    "c": lambda program, op: c99.runtime(program, Path("never")),
    "narrow": lambda program, op: narrowed(program, widths_of(PLAIN)),
    "ledger": lambda program, op: ledger(program),
    "energy": lambda program, op: evaluate(program, CHIP),
    "unread": lambda program, op: unread_macs(program),
    "constant_bits": lambda program, op: constant_bits(program, op),
    "width_steps": lambda program, op: steps(program, op),
    "width_price": lambda program, op: price(program, CHIP),
    "zero_points": lambda program, op: list(zero_points(op)),
    "diagnose": lambda program, op: diagnose(program, op.out.name, TAPS | {"sigmoid": TAPS["norm"]}, TAPS | {"sigmoid": TAPS["norm"]}, 8),
    "operands": lambda program, op: operands(program, op.out.name, (0, 0), TAPS),
}
OF_OPERATIONS: dict[str, Callable[[Any, Any], object]] = {  # what does not depend on the epilogue
    "taps": lambda program, op: tensors.taps(program),
    "counts": lambda program, op: count(program),
    "linear_layers": lambda program, op: linear_layers(program),
    "gemms": lambda program, op: gemms(program, op),
    "layers": lambda program, op: list(layers(program)),
    "describe": lambda program, op: describe(op),
    "text": lambda program, op: str(program),
    "value_drops": lambda program, op: value_drops(program, widths_of(PLAIN)),
    "shifts": lambda program, op: list(shifts(op)),
    "orders": lambda program, op: list(orders(op)),
    "moves": lambda program, op: operation_moves(program, op, (), PLACEMENT, 1, 0),
}
PLACEMENT = evaluate(PLAIN, CHIP).placement


@pytest.mark.parametrize("consumer", CONSUMERS | OF_OPERATIONS)
def test_an_operation_that_nobody_knows_is_refused_by_name(consumer: str):
    with pytest.raises((AssertionError, ProgramError), match=r"got:? Sigmoid\b"):
        (CONSUMERS | OF_OPERATIONS)[consumer](UNKNOWN["Sigmoid"], SIGMOID)


@pytest.mark.parametrize("consumer", CONSUMERS)
def test_an_epilogue_that_nobody_knows_is_refused_by_name(consumer: str):
    with pytest.raises((AssertionError, ProgramError), match=r"got:? Silu\b"):
        CONSUMERS[consumer](UNKNOWN["Silu"], SILU)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_record_that_no_kernel_runs_is_an_error_of_the_engine(threads: int):
    """In every thread: a kernel that raises would leave the others waiting for what it has not done."""
    engine = Engine(PLAIN, threads)
    engine._plan.records["kind"][2] = len(KINDS)
    engine._prepare(lambda *_: pytest.fail("nothing is compiled"))
    with pytest.raises(AssertionError, match=f"engine: no kernel runs operations of kind {len(KINDS)}$"):
        engine.run(IMAGE[None])
