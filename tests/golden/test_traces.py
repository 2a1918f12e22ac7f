"""The committed golden traces, replayed (traces/README.md)."""

import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from eamsim import artifact, engine, golden
from eamsim.trace import digests

DIGITS = Path(str(files("eamsim"))) / "data" / "digits"
TRACE = json.loads((Path(__file__).parents[2] / "traces" / "digits.json").read_text())


@pytest.fixture(scope="module")
def program():
    assert artifact.sha256(DIGITS / "digits.eam") == TRACE["program_sha256"], "the trace is of another program"
    return artifact.read(DIGITS / "digits.eam")[0]


@pytest.fixture(scope="module")
def images():
    return np.load(DIGITS / "digits_test.npz")["images"][TRACE["images"]]


def test_the_golden_interpreter_means_what_it_meant(program, images):
    for number, image in enumerate(images):
        taps: dict[str, np.ndarray] = {}
        golden.run(program, image, taps)
        assert digests(taps) == {name: recorded[number] for name, recorded in TRACE["taps"].items()}


def test_the_engine_replays_the_trace(program, images):
    _, taps = engine.load(program).run(images, taps=True)
    for number in range(len(images)):
        found = digests({name: integers[number] for name, integers in taps.items()})
        assert found == {name: recorded[number] for name, recorded in TRACE["taps"].items()}
