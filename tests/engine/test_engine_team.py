"""The engine's threads: waits, failures, interrupts, forks, the end of the interpreter."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time

import llvmlite.binding as llvm
import numpy as np
import pytest
from numba import njit, types
from programs import Shape, random_images, random_program

from eamsim import engine
from eamsim.engine import team

COUNT, SHARE, ROUNDS = 3, 30, 2000


@njit(nogil=True)
def add_in_turns(shared, total):
    """Each round claims COUNT shares of 30 tasks, which add to what the round before left."""
    for number in range(len(total) - 1):
        for owner in range(COUNT):
            task = team.claim(shared, COUNT, number, owner)
            while task < SHARE:
                place = owner * SHARE + task
                total[number + 1, place] = total[number, COUNT * SHARE - 1 - place] + 1
                team.finish(shared, COUNT, number, COUNT * SHARE)
                task = team.claim(shared, COUNT, number, owner)
        team.wait_for(shared, COUNT, number, COUNT * SHARE)


def rounds() -> np.ndarray:
    return np.zeros((ROUNDS + 1, COUNT * SHARE), np.int64)


def assert_all_added(total: np.ndarray) -> None:
    np.testing.assert_array_equal(total, np.broadcast_to(np.arange(ROUNDS + 1)[:, None], total.shape))


def test_a_round_sees_all_that_the_round_before_wrote():
    """More threads than processors, so that some sleep."""
    total = rounds()
    team.together(COUNT, ROUNDS, lambda shared, thread: add_in_turns(shared, total))
    assert_all_added(total)


@pytest.mark.parametrize("failing", range(COUNT))
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_the_others_do_what_a_failing_thread_leaves(failing, error):
    total, met = rounds(), threading.Barrier(COUNT, timeout=60)

    def work(shared: np.ndarray, thread: int) -> None:
        met.wait()
        if thread == failing:
            raise error("as planned")
        add_in_turns(shared, total)

    with pytest.raises(error, match="as planned"):
        team.together(COUNT, ROUNDS, work)
    assert_all_added(total)


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="this system has no signals to threads")
def test_interrupts_while_the_last_thread_runs_are_raised_after_it():
    started, ended = threading.Event(), []

    def work(shared: np.ndarray, thread: int) -> None:
        if thread == 0:
            started.wait(timeout=60)
            return
        started.set()
        for _ in range(3):
            time.sleep(0.05)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        time.sleep(0.05)
        ended.append(thread)

    with pytest.raises(KeyboardInterrupt):
        team.together(2, 1, work)
    assert ended == [1]


def test_nobody_is_waited_for_who_does_not_come():
    total, met = rounds(), threading.Event()

    def work(shared: np.ndarray, thread: int) -> None:
        if thread > 0:
            met.wait(timeout=60)
        add_in_turns(shared, total)
        assert_all_added(total)
        met.set()

    team.together(COUNT, ROUNDS, work)
    assert met.is_set()


def test_aarch64_keeps_the_order_of_additions_and_looks():
    """Read from machine code, as it reorders what x86 would not, and no test here meets that.

    Who finds a task finished must find what it wrote, and of a waker and a sleeper one must see the other.
    """
    finish = njit(types.void(types.int64[::1], *[types.int64] * 3))(team.finish.py_func)
    function = re.search(r"^define .*?^}", next(iter(finish.inspect_llvm().values())), re.DOTALL | re.MULTILINE)
    assert function
    module = "declare i64 @syscall(i64, ...)\n" + re.sub(r" #\d+", "", function[0])
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    found = []
    for cpu in ("neoverse-n1", "cortex-a53"):  # one with atomic additions, one without
        machine = llvm.Target.from_triple("aarch64-unknown-linux-gnu").create_target_machine(cpu=cpu)
        found.append(re.findall(r"(?m)^\t((?:ld|st|cas|swp)(?:add|a|l|x)\w*)", machine.emit_assembly(llvm.parse_assembly(module))))
    assert found == [["ldaddal", "ldaddal", "ldar"], ["ldaxr", "stlxr", "ldaxr", "stlxr", "ldar"]]


def logits_of_child(seed: int) -> np.ndarray:
    program = random_program(Shape(seed=seed))
    return engine.Engine(program, threads=min(2, team.most_threads())).run(random_images(program, 2, seed))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_a_forked_child_has_threads_of_its_own():
    expected = logits_of_child(3)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        np.testing.assert_array_equal(pool.apply_async(logits_of_child, (3,)).get(timeout=60), expected)


CHILD = """
from eamsim.engine import team
team.together(3, 1, lambda shared, thread: None)
print("end")
"""


def test_idle_threads_do_not_keep_the_interpreter_alive():
    child = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True, timeout=60)
    assert child.stdout == "end\n"
