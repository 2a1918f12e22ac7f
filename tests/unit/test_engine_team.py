"""The engine's threads: barriers, failures, interrupts, forks, the end of the interpreter."""

import multiprocessing
import os
import subprocess
import sys

import numpy as np
import pytest
from numba import njit
from programs import Shape, random_images, random_program

from eamsim import engine
from eamsim.engine import team

COUNT = 3


@njit(nogil=True)
def add_in_turns(shared, threads, rounds, total):
    """Each round claims 100 tasks, which add what the round before left."""
    for number in range(rounds):
        task = team.claim(shared)
        while task < 100:
            total[number + 1, task] = total[number, 99 - task] + 1
            task = team.claim(shared)
        if not team.barrier(shared, threads):
            return


def test_a_round_sees_all_that_the_round_before_wrote():
    """More threads than processors, so that some sleep at the barrier."""
    total = np.zeros((2001, 100), np.int64)
    team.together(COUNT, lambda shared, thread: add_in_turns(shared, COUNT, 2000, total))
    np.testing.assert_array_equal(total, np.broadcast_to(np.arange(2001)[:, None], total.shape))


@pytest.mark.parametrize("failing", range(COUNT))
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failing_thread_ends_the_wait_of_the_others(failing, error):
    total = np.zeros((3, 100), np.int64)

    def work(shared: np.ndarray, thread: int) -> None:
        if thread == failing:
            raise error("as planned")
        add_in_turns(shared, COUNT, 2, total)

    with pytest.raises(error, match="as planned"):
        team.together(COUNT, work)


def logits_of_child(seed: int) -> np.ndarray:
    program = random_program(Shape(seed=seed))
    return engine.load(program, threads=min(2, team.most_threads())).run(random_images(program, 2, seed))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_a_forked_child_has_threads_of_its_own():
    expected = logits_of_child(3)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        np.testing.assert_array_equal(pool.apply_async(logits_of_child, (3,)).get(timeout=60), expected)


CHILD = """
from eamsim.engine import team
team.together(3, lambda shared, thread: None)
print("end")
"""


def test_idle_threads_do_not_keep_the_interpreter_alive():
    child = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True, timeout=60)
    assert child.stdout == "end\n"
