"""SCALE-Sim and ZigZag, live, where their environments are named: they want a NumPy and packages of their own.

EAMSIM_SCALESIM=SCALESIM/bin/python EAMSIM_ZIGZAG=ZIGZAG/bin/python pytest -m slow tests/cross_runtime/test_other_cost_models.py
"""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variable", "script", "said"),
    [
        ("EAMSIM_SCALESIM", "scalesim_cycles.py", "0 of 54 differ"),
        ("EAMSIM_ZIGZAG", "zigzag_costs.py", "0 of 21 differ by more than 2%"),
    ],
)
def test_every_layer_of_a_deit_tiny_costs_there_what_it_costs_here(variable, script, said):
    if variable not in os.environ:
        pytest.skip(f"needs {variable}, a Python that has the package (tests/cross_runtime/{script})")
    command = [os.environ[variable], str(ROOT / "tests/cross_runtime" / script)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == said
