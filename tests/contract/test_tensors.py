"""Declared taps and constants hold what interpreters publish and programs contain."""

from dataclasses import replace

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from programs import FREEZES, Shape, random_images, random_program

from eamsim import golden
from eamsim.errors import UserError
from eamsim.files.packing import limits
from eamsim.program import Datapath
from eamsim.tensors import constants, matching, parameters, taps

SHAPES = st.builds(
    Shape,
    seed=st.integers(0, 1 << 32),
    windows=st.sampled_from([1, 2]),
    prefix=st.just(0),
    attention_bits=st.integers(2, 6),
    exponent_bits=st.integers(1, 12),
    frozen_bits=st.just(2),
    freeze=st.sampled_from(FREEZES),
    softmax=st.sampled_from(["paper", "renormalised"]),
    biased=st.booleans(),
    pooled=st.booleans(),
    extreme=st.booleans(),
    datapath=st.builds(Datapath, rounding=st.sampled_from(["half_up", "half_even", "half_away", "floor"]), accumulator_bits=st.just(48)),
)


@examples(40)
@given(SHAPES, st.sampled_from(["error", "wrap", "saturate"]))
def test_every_tap_has_the_declared_name_shape_and_bound_in_the_order_of_execution(shape: Shape, overflow):
    program = random_program(shape)
    if overflow != "error":
        program = replace(program, datapath=replace(program.datapath, overflow=overflow, accumulator_bits=10))
    declared = taps(program)
    for image in random_images(program, 2, shape.seed):
        found = {"image": image}
        golden.run(program, image, found)
        assert list(found) == list(declared)
        for name, integers in found.items():
            tap = declared[name]
            assert integers.shape == tap.value.shape
            assert tap.value.low <= tap.bound[0] <= integers.min()
            assert integers.max() <= tap.bound[1] <= tap.value.high
            assert limits(tap.packing)[0] <= tap.bound[0]
            assert tap.bound[1] <= limits(tap.packing)[1]


@examples(40)
@given(SHAPES)
def test_every_array_is_a_constant_of_its_declared_width(shape: Shape):
    program = random_program(shape)
    for op in program.operations:
        for name, (value, array) in constants(op, program).items():
            assert value.name == f"{op.out.name}.{name}"
            assert value.shape == array.shape
            assert value.low <= array.min()
            assert array.max() <= value.high


def test_parameters_are_the_numbers_beside_the_arrays():
    program = random_program(Shape(1, freeze="scattered"))
    by_name = {op.out.name: parameters(op) for op in program.operations}
    assert by_name["block0.mlp.fc1"].keys() == {"x", "weight_bits", "x_zero", "epilogue", "index_zero", "index_bits"}
    assert by_name["block0.mlp.fc1"]["epilogue"] == "Gelu"
    assert by_name["block0.attn"]["frozen.bits"] == 4


def test_patterns():
    names = ["input", "block0.attn", "block0.attn.acc", "head"]
    assert matching(names, "*.acc,h*", "--taps") == ["block0.attn.acc", "head"]
    with pytest.raises(UserError, match=r"--taps: 'x\*' fits none of input, block0.attn, .* \(4 names\)"):
        matching(names, "*,x*", "--taps")


def test_a_sum_that_the_accumulator_narrows_may_reach_its_whole_range():
    program = random_program(Shape(3))
    program = replace(program, datapath=replace(program.datapath, overflow="wrap", accumulator_bits=8))
    assert taps(program)["head.acc"].bound == (-128, 127)
    assert taps(program)["head.acc"].packing == "i8"
    assert np.prod(taps(program)["block0.attn.scores"].value.shape) == 50
