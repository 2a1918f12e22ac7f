"""Threads that run one compiled function together: claims of tasks, a barrier, and the pool they live in.

Numba's own layers were measured and left. Workqueue sleeps at both ends of each of a forward pass's 85 parallel regions. OpenMP's barriers
spin for ever: with one other busy process on two cores a DeiT-T took 820 ms for an image instead of 27.
"""

# pyright: reportCallIssue=false, reportArgumentType=false
# Numba passes the typing context of an intrinsic.
from __future__ import annotations

import os
import platform
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from eamsim.engine.memory import aligned
from eamsim.engine.tile import I32, I64, declare

# What the threads of one call share, each on a cache line of its own: int64 [STATE]. PATIENCE: seconds and nanoseconds.
LINE = 8
CLAIMED, ARRIVED, PASSED, ASLEEP, STOPPED, PATIENCE = (LINE * n for n in range(6))
STATE = 6 * LINE
LONGEST_SLEEP_NS = 1_000_000
SPINS = 4096
"""Looks at the barrier before the processor is left to others: about 0.1 ms."""

IS_X86 = platform.machine().lower() in ("x86_64", "amd64")
FUTEX = {"x86_64": 202, "aarch64": 98}.get(platform.machine()) if platform.system() == "Linux" and sys.byteorder == "little" else None
WAIT_PRIVATE, WAKE_PRIVATE = 128, 129
YIELD = "SwitchToThread" if os.name == "nt" else "sched_yield"


@intrinsic
def fetch_add(typingctx, state, at, amount):
    """state[at] += amount as one step; returns what was there."""

    def codegen(context, builder, signature, args):
        return builder.atomic_rmw("add", element(context, builder, signature, args), args[2], "seq_cst")

    return types.int64(state, types.int64, types.int64), codegen


@intrinsic
def fetch(typingctx, state, at):
    """state[at] as other threads left it."""

    def codegen(context, builder, signature, args):
        return builder.load_atomic(element(context, builder, signature, args), "acquire", 8)

    return types.int64(state, types.int64), codegen


@intrinsic
def put(typingctx, state, at, value):
    """state[at] = value, after all that this thread wrote before."""

    def codegen(context, builder, signature, args):
        builder.store_atomic(args[2], element(context, builder, signature, args), "release", 8)
        return context.get_dummy_value()

    return types.void(state, types.int64, types.int64), codegen


def element(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
    return builder.gep(context.make_array(signature.args[0])(context, builder, args[0]).data, [args[1]])


@intrinsic
def pause(typingctx):
    """Tell the processor that this is a waiting loop; nothing where it cannot be told."""

    def codegen(context, builder, signature, args):
        if IS_X86:
            builder.call(declare(builder, "llvm.x86.sse2.pause", ir.VoidType(), []), [])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def sleep(typingctx, state, passed):
    """Sleep until woken or out of patience, unless the barrier is passed already; where there is no futex, yield."""

    def codegen(context, builder, signature, args):
        if FUTEX is None:
            builder.call(declare(builder, YIELD, I32, []), [])
        else:
            patience = builder.ptrtoint(element(context, builder, signature, [args[0], I64(PATIENCE)]), I64)
            futex(context, builder, signature, args, WAIT_PRIVATE, args[1], patience)
        return context.get_dummy_value()

    return types.void(state, types.int64), codegen


@intrinsic
def wake(typingctx, state):
    """Wake all that sleep."""

    def codegen(context, builder, signature, args):
        if FUTEX is not None:
            futex(context, builder, signature, args, WAKE_PRIVATE, I64(2**31 - 1), I64(0))
        return context.get_dummy_value()

    return types.void(state), codegen


def futex(context: Any, builder: ir.IRBuilder, signature: Any, args: Any, operation: int, number: Any, patience: Any) -> None:
    """futex(2) on the low half of state[PASSED]."""
    name = "syscall"
    call = builder.module.globals.get(name) or ir.Function(builder.module, ir.FunctionType(I64, [I64], var_arg=True), name)
    word = builder.ptrtoint(element(context, builder, signature, [args[0], I64(PASSED)]), I64)
    builder.call(call, [I64(FUTEX), word, I64(operation), number, patience])


@njit
def claim(team):
    """The number of the next task of this operation."""
    return fetch_add(team, CLAIMED, 1)


@njit
def barrier(team, threads):
    """Wait for all threads and start the claims anew; False if one of them failed."""
    passed = fetch(team, PASSED)
    if fetch_add(team, ARRIVED, 1) == threads - 1:
        put(team, ARRIVED, 0)
        put(team, CLAIMED, 0)
        fetch_add(team, PASSED, 1)  # not put: what follows must not be read before
        if fetch(team, ASLEEP) > 0:
            wake(team)
        return True
    looks = 0
    while fetch(team, PASSED) == passed:
        if fetch(team, STOPPED) != 0:
            return False
        looks += 1
        if looks < SPINS:
            pause()
        else:
            fetch_add(team, ASLEEP, 1)
            sleep(team, passed)
            fetch_add(team, ASLEEP, -1)
    return True


# One call at a time: calls side by side would wait for each other's threads, and want the same cores anyway.
_pool: ThreadPoolExecutor
_lock: threading.Lock


def _start() -> None:
    """At import, and in a forked child, which has neither the threads of its parent nor whoever holds the lock."""
    global _pool, _lock
    _pool, _lock = ThreadPoolExecutor(most_threads(), "eamsim"), threading.Lock()


def most_threads() -> int:
    """Processors of this machine."""
    return os.cpu_count() or 1


def usable_threads() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else most_threads()


def alone() -> threading.Lock:
    """The lock under which `together` is called."""
    return _lock


def together(threads: int, work: Callable[[np.ndarray, int], None]) -> None:
    """Call work(team, thread) for thread 0 to threads - 1, thread 0 here, and return when all have returned.

    An exception of one of them, or an interrupt, stops the others at their next barrier and is raised here.
    """
    team = aligned(STATE, np.int64)
    team[PATIENCE + 1] = LONGEST_SLEEP_NS

    def run(thread: int) -> None:
        try:
            if not team[STOPPED]:
                work(team, thread)
        except BaseException:
            team[STOPPED] = 1
            raise

    others: list[Future[None]] = []
    try:
        for thread in range(1, threads):
            others.append(_pool.submit(run, thread))
        run(0)
    except BaseException:
        team[STOPPED] = 1
        raise
    finally:
        wait(others)
    for other in others:
        other.result()


_start()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start)
