"""A loaded engine in another process: everything but the addresses of compiled code travels."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
from programs import Shape, random_images, random_program

from eamsim import engine
from eamsim.errors import UserError

CHILD = """
import pickle, sys
with open(sys.argv[1], "rb") as file:
    loaded, images, names = pickle.load(file)
with open(sys.argv[1], "wb") as file:
    pickle.dump((loaded.run(images, taps=True), loaded.digests(images, names)), file)
"""


def test_digests_are_taken_by_the_code_of_their_own_process(tmp_path):
    program = random_program(Shape(seed=5, side=8, depth=1, freeze="scattered"))
    images, loaded = random_images(program, 2, 1), engine.Engine(program)
    logits, taps = loaded.run(images, taps=True)
    names = list(taps)
    digests, extremes = loaded.digests(images, names)
    path = tmp_path / "engine.pickle"
    path.write_bytes(pickle.dumps((loaded, images, names)))
    subprocess.run([sys.executable, "-c", CHILD, str(path)], check=True, timeout=300)
    (found_logits, found_taps), (found_digests, found_extremes) = pickle.loads(path.read_bytes())
    np.testing.assert_array_equal(found_logits, logits)
    np.testing.assert_array_equal(found_digests, digests)
    np.testing.assert_array_equal(found_extremes, extremes)
    for name, integers in taps.items():
        np.testing.assert_array_equal(found_taps[name], integers, name)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [("sources", "0", "another's"), ("isa", "mmx", "instruction set .* got 'mmx'"), ("threads", 4096, "engine threads: .* got 4096")],
)
def test_what_this_process_cannot_run_is_refused(field: str, value: object, reason: str):
    loaded = engine.Engine(random_program(Shape(seed=5, side=8, depth=1)))
    with pytest.raises(UserError, match=reason):
        type(loaded).__new__(type(loaded)).__setstate__(loaded.__getstate__() | {field: value})
