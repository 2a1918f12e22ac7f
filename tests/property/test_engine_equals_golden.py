"""The engine equals the golden interpreter at every tap of random programs (docs/spec/datapath.md section 5).

EAMSIM_EXAMPLES sets the number of programs. Golden runs each once, and every instruction set must equal it. Each rounding is compiled
apart (20 s), so only the fastest instruction set is tried with all four, and that among the slow tests.
"""

import os

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from programs import FREEZES, Shape, random_images, random_program

from eamsim import engine, golden, tensors
from eamsim.constraints import Verified
from eamsim.engine import isa
from eamsim.files.packing import pack
from eamsim.program import Datapath
from eamsim.traces.difference import first_difference
from eamsim.traces.file import lanes_of

EXAMPLES = int(os.environ.get("EAMSIM_EXAMPLES", "150"))
ROUNDINGS = ("half_up", "half_even", "half_away", "floor")


@st.composite
def shapes(draw, roundings: tuple[str, ...]) -> Shape:
    windows = draw(st.sampled_from([1, 1, 2, 4]))
    frozen_bits = draw(st.integers(1, 4))
    return Shape(
        seed=draw(st.integers(0, 2**32 - 1)),
        side=draw(st.sampled_from([4, 8, 12])),
        heads=draw(st.integers(1, 3)),
        head_dim=draw(st.sampled_from([1, 4, 5, 16, 32])),
        hidden=draw(st.sampled_from([1, 16, 33, 70])),
        depth=draw(st.integers(1, 2)),
        prefix=draw(st.integers(0, 2)) if windows == 1 else 0,
        windows=windows,
        queries=draw(st.sampled_from([0, 0, 1, 7])),
        input_bits=draw(st.integers(1, 8)),
        weight_bits=draw(st.integers(2, 7)),
        activation_bits=draw(st.integers(2, 7)),
        attention_bits=draw(st.integers(frozen_bits if frozen_bits > 2 else 2, 4)),
        residual_bits=draw(st.sampled_from([8, 10, 16, 20])),
        exponent_bits=draw(st.integers(1, 12)),
        gelu_index_bits=draw(st.integers(2, 12)),
        freeze=draw(st.sampled_from(FREEZES)),
        frozen_bits=frozen_bits,
        softmax=draw(st.sampled_from(["paper", "renormalised"])),
        last_code_is_zero=draw(st.booleans()),
        biased=draw(st.booleans()),
        pooled=draw(st.booleans()),
        fitted=draw(st.booleans()),
        extreme=draw(st.booleans()),
        datapath=Datapath(
            rounding=draw(st.sampled_from(roundings)),
            multiplier_bits=draw(st.sampled_from([6, 12, 16, 30])),
        ),
    )


def assert_digests(program: Verified, loaded: engine.Engine, images: np.ndarray, integers: dict[str, np.ndarray]) -> None:
    """What the engine hashes in the pass is what it shows."""
    packings = {name: tap.packing for name, tap in tensors.taps(program).items()}
    lanes, extremes = loaded.digests(images, list(integers))
    for spot, (name, array) in enumerate(integers.items()):
        shown = array[: len(images)]
        assert extremes[spot].tolist() == [shown.min(), shown.max()], name
        for number, part in enumerate(shown):
            assert lanes[number, spot].tobytes() == lanes_of(pack(part, packings[name])), (name, number)


def assert_equal(data: st.DataObject, program: Verified, images: np.ndarray, expected: list[dict[str, np.ndarray]], name: str) -> None:
    """Logits, every tap, taps in part, and digests, by one instruction set."""
    loaded = engine.Engine(program, threads=data.draw(st.integers(1, min(2, os.cpu_count() or 1))), isa=name)
    logits, taps = loaded.run(images, taps=True)
    some = data.draw(st.sets(st.sampled_from(sorted(taps))))
    for wanted in ({op.out.name for op in program.operations}, some):  # what lies between is not asked for: other kernels
        for tap, array in loaded.run(images, taps=wanted.__contains__)[1].items():
            np.testing.assert_array_equal(array, taps[tap], tap)
    assert_digests(program, loaded, images[: engine.MAX_BATCH], taps)
    for number, each in enumerate(expected):
        np.testing.assert_array_equal(logits[number], each[program.output.name].reshape(-1))
        assert first_difference(each, {tap: array[number] for tap, array in taps.items()}) is None, name


@pytest.mark.parametrize(
    ("names", "roundings"),
    [
        pytest.param(isa.detect(), ROUNDINGS[:1], id="every instruction set"),
        pytest.param(isa.detect()[:1], ROUNDINGS, id="every rounding", marks=pytest.mark.slow),
    ],
)
@examples(EXAMPLES, print_blob=True)
@given(data=st.data())
def test_engine_equals_golden_at_every_tap(data: st.DataObject, names: tuple[str, ...], roundings: tuple[str, ...]):
    shape = data.draw(shapes(roundings))
    program = random_program(shape)
    images = random_images(program, data.draw(st.sampled_from([1, 2, 3, engine.MAX_BATCH + 1])), shape.seed)
    expected: list[dict[str, np.ndarray]] = [{} for _ in images]
    for image, taps in zip(images, expected, strict=True):
        golden.run(program, image, taps)
    for name in names:
        assert_equal(data, program, images, expected, name)
