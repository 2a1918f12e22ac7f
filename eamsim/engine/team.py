"""Threads that run one compiled function together: claims of tasks, waits for the last of them, and the pool they live in.

A wait is for tasks, not for threads: whoever comes late, because the processor was busy with something else, finds them done and nobody
waiting. With a barrier of all threads a DeiT-T image took 20 ms beside other runtimes' spinning threads; one thread alone needs 8.

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

from eamsim.engine.ir.tile import I32, I64, declare
from eamsim.engine.memory import aligned

# What the threads of one call share: int64 [STATE + operations * (threads + 1)], the first on cache lines of their own, then for each
# operation the tasks finished and, of each thread's share of them, the tasks claimed. PATIENCE: seconds and nanoseconds.
LINE = 8
PASSED, ASLEEP, PATIENCE = (LINE * n for n in range(3))
STATE = 3 * LINE
LONGEST_SLEEP_NS = 1_000_000
SPINS = 4096
"""Looks at what is finished before the processor is left to others: about 0.1 ms."""

MACHINE = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())
FUTEX = {"x86_64": 202, "aarch64": 98}.get(MACHINE) if platform.system() == "Linux" and sys.byteorder == "little" else None
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
    """state[at] as other threads left it; not before what this thread added, so that of a sleeper and a waker one sees the other."""

    def codegen(context, builder, signature, args):
        return builder.load_atomic(element(context, builder, signature, args), "seq_cst", 8)

    return types.int64(state, types.int64), codegen


def element(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
    return builder.gep(context.make_array(signature.args[0])(context, builder, args[0]).data, [args[1]])


@intrinsic
def pause(typingctx):
    """Tell the processor that this is a waiting loop, or hold it up for a moment; nothing where neither is known."""

    def codegen(context, builder, signature, args):
        if MACHINE == "x86_64":
            builder.call(declare(builder, "llvm.x86.sse2.pause", ir.VoidType(), []), [])
        elif MACHINE == "aarch64":  # isb empties the pipeline; `yield` most cores skip
            builder.call(declare(builder, "llvm.aarch64.isb", ir.VoidType(), [I32]), [I32(15)])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def sleep(typingctx, state, passed):
    """Sleep until woken or out of patience, unless an operation has ended since; where there is no futex, yield."""

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
def claim(team, threads, index, owner):
    """The number of the next task in the owner's share of operation `index`; beyond the share's last there is none."""
    return fetch_add(team, STATE + index * (threads + 1) + 1 + owner, 1)


@njit
def finish(team, threads, index, tasks):
    """A task of operation `index` is finished; who finishes the last of its `tasks` wakes all that sleep."""
    if fetch_add(team, STATE + index * (threads + 1), 1) == tasks - 1:
        fetch_add(team, PASSED, 1)
        if fetch(team, ASLEEP) > 0:
            wake(team)


@njit
def wait_for(team, threads, index, tasks):
    """Return once all tasks of operation `index` are finished."""
    looks = 0
    while True:
        passed = fetch(team, PASSED)  # before the look: if the last task ends between them, nobody falls asleep
        if fetch(team, STATE + index * (threads + 1)) >= tasks:
            return
        looks += 1
        if looks < SPINS:
            pause()
        else:
            fetch_add(team, ASLEEP, 1)
            sleep(team, passed)
            fetch_add(team, ASLEEP, -1)


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


def together(threads: int, operations: int, work: Callable[[np.ndarray, int], None]) -> None:
    """Call work(team, thread) for thread 0 here and for threads 1 to threads - 1 elsewhere, if they come in time; return when none runs.

    An exception of one of them, or an interrupt, is raised here when the others have done all that is left.
    """
    team = aligned(STATE + operations * (threads + 1), np.int64)
    team[PATIENCE + 1] = LONGEST_SLEEP_NS
    others: list[Future[None]] = []
    try:
        for thread in range(1, threads):
            others.append(_pool.submit(work, team, thread))
        work(team, 0)
    finally:
        settle(others)
    for other in others:
        if not other.cancelled():
            other.result()


def settle(others: list[Future[None]]) -> None:
    """Return when none of them runs or will, even if interrupted meanwhile: what they write is not to be read or used again before."""
    try:
        wait([other for other in others if not other.cancel()])
    except BaseException:
        settle(others)
        raise


_start()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start)
