"""The first difference of two runs, in program order."""

import numpy as np
import pytest

from eamsim.traces.difference import first_difference


def taps(**arrays: list) -> dict[str, np.ndarray]:
    return {name: np.array(array, np.int64) for name, array in arrays.items()}


def test_equal_runs_have_none():
    assert first_difference(taps(a=[1, 2]), taps(a=[1, 2])) is None


def test_the_first_tap_in_program_order_and_its_first_element():
    found = first_difference(taps(b=[[0, 1], [2, 3]], a=[9]), taps(a=[8], b=[[0, 1], [-2, 4]]))
    assert found is not None
    assert (found.tap, found.index, found.expected, found.found, found.elements) == ("b", (1, 0), 2, -2, 2)
    assert str(found) == "b[1, 0]: expected 2 (0x2), found -2 (-0x2); 2 elements of this tap differ"


def test_runs_of_different_programs_are_refused():
    with pytest.raises(ValueError, match=r"different taps: \['b'\]"):
        first_difference(taps(a=[1]), taps(a=[1], b=[1]))
    with pytest.raises(ValueError, match=r"a: expected shape \(1,\), found \(2,\)"):
        first_difference(taps(a=[1]), taps(a=[1, 2]))
