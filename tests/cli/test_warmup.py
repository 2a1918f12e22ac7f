"""`eamsim warmup`."""

import json
import subprocess
import sys

from command_line import eamsim

from eamsim.engine.isa import select

CHILD = """
from eamsim import engine
from eamsim.cli.machine.warmup import run_smallest
run_smallest(engine.select(), "half_up")
print(sum(engine.forward.stats.cache_hits.values()), sum(engine.forward.stats.cache_misses.values()))
"""


def test_warmup_leaves_compiled_kernels_for_other_processes(request):
    done = eamsim("warmup", "--json")
    assert done.code == 0
    assert [(row["instruction_set"], row["rounding"]) for row in json.loads(done.out)["compiled"]] == [(select(), "half_up")]
    child = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True, cwd=request.config.rootpath)
    assert child.stdout.split() == ["1", "0"]


def test_an_unknown_rounding_or_instruction_set_is_refused():
    assert "--rounding: expected some of half_up, half_even, half_away, floor" in eamsim("warmup", "--rounding", "up").err
    refused = eamsim("warmup", "--isa", "mmx")
    assert refused.code == 2
    assert "got 'mmx'" in refused.err
