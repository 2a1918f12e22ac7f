"""Narrower datapaths of random programs: verified, as narrow as asked, run alike by both interpreters, and the same where nothing is asked.

EAMSIM_EXAMPLES sets the number of programs.
"""

import os
import re
from dataclasses import astuple, replace

import numpy as np
import pytest
from examples import examples
from hypothesis import assume, given
from hypothesis import strategies as st
from programs import FREEZES, Shape, random_images, random_program

from eamsim import artifact, engine, golden
from eamsim.check import ProgramError
from eamsim.datapath import FLOORS, KNOBS, Widths
from eamsim.narrow import narrowed, proven_sums, widths_of
from eamsim.program import Datapath
from eamsim.traces.difference import first_difference

EXAMPLES = int(os.environ.get("EAMSIM_EXAMPLES", "40"))
TOO_LARGE = r"shift must (lie|be an integer) in \[0, |exponent_change must be"
"""A ratio that so few multiplier bits cannot hold: the only reason to refuse."""
SHAPES = st.builds(
    Shape,
    seed=st.integers(0, 2**32 - 1),
    heads=st.integers(1, 3),
    windows=st.just(1),
    queries=st.sampled_from([0, 0, 2]),
    residual_bits=st.sampled_from([10, 16, 20]),
    exponent_bits=st.integers(1, 10),
    gelu_index_bits=st.integers(2, 12),
    freeze=st.sampled_from(FREEZES),
    softmax=st.sampled_from(["paper", "renormalised"]),
    biased=st.booleans(),
    pooled=st.booleans(),
    fitted=st.booleans(),
    extreme=st.booleans(),
    datapath=st.builds(Datapath, multiplier_bits=st.sampled_from([12, 16, 30])),
)


def asked(data: st.DataObject, now: Widths) -> Widths:
    """Any widths from the floors to what the program has."""
    proven = now.accumulator_bits  # what the sums need is another test
    ranges = {name: (min(getattr(FLOORS, name), getattr(now, name)), getattr(now, name)) for name in KNOBS}
    drawn = {name: data.draw(st.integers(*ends), name) for name, ends in ranges.items()} | {"accumulator_bits": proven}
    return Widths(**drawn | {"norm_fraction_bits": min(drawn["norm_fraction_bits"], drawn["reciprocal_bits"] + 1)})


@pytest.mark.slow
@examples(EXAMPLES)
@given(SHAPES)
def test_equal_widths_give_an_equal_program(tmp_path_factory, shape):
    program = random_program(shape)
    folder = tmp_path_factory.mktemp("narrow")

    artifact.write(folder / "before.eam", program, {})
    artifact.write(folder / "after.eam", narrowed(program, widths_of(program)), {})

    assert (folder / "before.eam").read_bytes() == (folder / "after.eam").read_bytes()


@pytest.mark.slow
@examples(EXAMPLES)
@given(SHAPES, st.data())
def test_a_narrower_program_is_verified_and_runs_alike(shape, data):
    program = random_program(shape)
    widths = asked(data, widths_of(program))
    try:
        result = narrowed(program, widths)  # which verifies it
    except ProgramError as error:
        assume(not re.search(TOO_LARGE, str(error)))
        raise

    assert all(got <= most for got, most in zip(astuple(widths_of(result)), astuple(widths), strict=True))
    images = random_images(result, 2, shape.seed)
    logits, taps = engine.Engine(result, threads=1).run(images, taps=True)
    for number, image in enumerate(images):
        expected: dict[str, np.ndarray] = {}
        np.testing.assert_array_equal(logits[number], golden.run(result, image, expected))
        assert first_difference(expected, {tap: array[number] for tap, array in taps.items()}) is None


@examples(EXAMPLES)
@given(SHAPES)
def test_the_proven_accumulator_changes_nothing_and_one_bit_less_is_refused(shape):
    program = random_program(shape)
    proven = max(proven_sums(program).values())
    image = random_images(program, 1, shape.seed)[0]

    enough = narrowed(program, replace(widths_of(program), accumulator_bits=max(proven, FLOORS.accumulator_bits)))

    np.testing.assert_array_equal(golden.run(enough, image), golden.run(program, image))
    if proven > FLOORS.accumulator_bits:
        with pytest.raises(ProgramError, match=f"beyond the {proven - 1}-bit accumulator"):
            narrowed(program, replace(widths_of(program), accumulator_bits=proven - 1))
