"""What all tests share."""

import os
import signal

import pytest
from examples import LONG
from hypothesis import settings
from trace_bench import Bench

MOST_WORKERS = 4
"""Each takes about a gigabyte: torch, compiled kernels, programs."""

# A shell's background jobs ignore it, and so would the commands that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says more of the machine than of the program.
settings.register_profile("untimed", deadline=None)
settings.register_profile("long", deadline=None, max_examples=LONG)
settings.load_profile("untimed")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """The whole suite takes a process a core; files that are named run in this one, where a debugger works too."""
    if config.args_source is not pytest.Config.ArgsSource.TESTPATHS:
        return 0
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the workers, whose threads would only wait for one another
    return min(os.cpu_count() or 1, MOST_WORKERS)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """What the tests of differences compare."""
    return Bench(tmp_path_factory.mktemp("bench"))
