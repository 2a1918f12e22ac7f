"""The committed golden traces, replayed (traces/README.md)."""

import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from command_line import eamsim

from eamsim import artifact, engine, golden
from eamsim.constraints import Verified
from eamsim.traces.difference import Taps, digests
from eamsim.traces.file import Trace, digest, reading

DIGITS = Path(str(files("eamsim"))) / "data" / "digits"
TRACES = Path(__file__).parents[2] / "traces"
PLAIN = json.loads((TRACES / "digits.json").read_text())
PROGRAMS = {"digits": DIGITS / "digits.eam", "cifar10-deit": TRACES / "cifar10-deit.eam", "deit-tiny": TRACES / "deit-tiny.eam"}


@pytest.fixture(scope="module", params=PROGRAMS)
def trace(request: pytest.FixtureRequest):
    with reading(TRACES / f"{request.param}.h5") as trace:
        yield trace


@pytest.fixture(scope="module")
def program(trace: Trace) -> Verified:
    program, _ = artifact.read(PROGRAMS[trace.path.stem])
    assert artifact.program_sha256(program) == trace.header.program_sha256, "the trace is of another program"
    return program


@pytest.fixture(scope="module")
def images(trace: Trace) -> np.ndarray:
    return np.stack([trace.image(number) for number in range(len(trace.header.images))])


def assert_replayed(trace: Trace, image: int, found: Taps) -> None:
    assert found.keys() == trace.entries.keys()
    for name, integers in found.items():
        recorded = trace.integers(name, image)
        if recorded is not None:
            np.testing.assert_array_equal(integers, recorded, err_msg=name)
        assert digest(integers, trace.entries[name][1].packing, trace.header.version).hex() == trace.digest(name, image), name


def test_the_golden_interpreter_means_what_it_meant(trace: Trace, program: Verified, images: np.ndarray):
    for number, image in enumerate(images):
        taps: Taps = {}
        golden.run(program, image, taps)
        assert_replayed(trace, number, taps)


def test_the_engine_replays_the_trace(trace: Trace, program: Verified, images: np.ndarray):
    _, taps = engine.Engine(program).run(images, taps=True)
    for number in range(len(images)):
        assert_replayed(trace, number, {name: integers[number] for name, integers in taps.items()})


def test_the_stream_of_the_engine_replays_the_trace(trace: Trace, program: Verified, images: np.ndarray):
    for step in engine.Engine(program).stream(images):
        for name, integers in step.items():
            for number, part in enumerate(integers):
                assert digest(part, trace.entries[name][1].packing, trace.header.version).hex() == trace.digest(name, number), name


def test_plain_digests():
    assert artifact.sha256(TRACES / "digits.eam") == PLAIN["program_sha256"], "the trace is of another program"
    program, _ = artifact.read(TRACES / "digits.eam")
    for number, image in enumerate(np.load(DIGITS / "digits_test.npz")["images"][PLAIN["images"]]):
        taps: Taps = {}
        golden.run(program, image, taps)
        assert digests(taps) == {name: recorded[number] for name, recorded in PLAIN["taps"].items()}


def test_the_programs_of_version_1_convert_to_version_2_and_stay_what_they_are(tmp_path):
    assert eamsim("convert", TRACES / "digits.eam", "-o", tmp_path / "digits.eam").code == 0
    assert (tmp_path / "digits.eam").read_bytes() == (DIGITS / "digits.eam").read_bytes()
    old, new = (artifact.read(folder / "digits.eam") for folder in (TRACES, DIGITS))
    assert artifact.program_sha256(old[0]) == artifact.program_sha256(new[0])
    assert old[1] == new[1]
