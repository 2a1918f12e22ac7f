"""Where independent units of work run: here, in processes of this machine, or on a Dask cluster.

A process must have imported this module before it takes what it is sent, and processes start one after the other: hence no import
of anything heavy up here.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import islice
from typing import Any, TypeVar

from eamsim.errors import MissingExtra, UserError

Unit = TypeVar("Unit")
Submit = Callable[[Any], Future[Any]]
Workers = Callable[..., AbstractContextManager[tuple[Submit, int]]]
"""`workers(run, *common)`: a context that yields `submit`, whose future is run(unit, *common), and how many units to submit at once.
`run` is a function of a module; what it is given and returns is pickled.
"""

CONNECT_SECONDS = 20
RESUME = "continue with --resume"


@contextmanager
def here(run: Callable[..., Any], *common: Any) -> Iterator[tuple[Submit, int]]:
    """This process: a unit has run when it is submitted."""

    def submit(unit: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(run(unit, *common))
        return future

    yield submit, 1


def processes(count: int, advice: str = RESUME) -> Workers:
    """So many processes of this machine; they end with this one, however it ends. advice: what to do when one of them dies."""

    @contextmanager
    def workers(run: Callable[..., Any], *common: Any) -> Iterator[tuple[Submit, int]]:
        # pickled here: the pool itself would pass tensors through shared memory, of which containers have little
        job = pickle.dumps((run, common))
        with ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _start, (job,)) as pool:

            def submit(unit: Any) -> Future[Any]:
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # a process that starts here keeps it: Ctrl-C is for this one
                try:
                    return pool.submit(_run, unit)
                finally:
                    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

            try:
                yield submit, count
            except BrokenProcessPool as error:
                raise UserError(f"a worker process died, perhaps out of memory; {advice}, with fewer --workers") from error
            except BaseException:
                for process in multiprocessing.active_children():
                    process.terminate()  # or leaving the pool would wait for the units that run
                raise

    return workers


def cluster(address: str, command: str, advice: str = RESUME) -> Workers:
    """The workers of the Dask scheduler at `address`; each needs the same packages, and the paths of images that are files.

    command: as the user types it. Raises MissingExtra without dask, and UserError if no worker answers.
    """
    try:
        from distributed import Client, KilledWorker
    except ModuleNotFoundError as error:
        raise MissingExtra("cluster", f"{command} --scheduler") from error

    @contextmanager
    def workers(run: Callable[..., Any], *common: Any) -> Iterator[tuple[Submit, int]]:
        with ExitStack() as stack:
            try:
                client = stack.enter_context(Client(address, timeout=CONNECT_SECONDS, set_as_default=False))
                client.wait_for_workers(1, timeout=CONNECT_SECONDS)
            except (OSError, ValueError) as error:
                message = f"--scheduler: expected a Dask scheduler with workers at {address} ({error}); see `dask scheduler --help`"
                raise UserError(message) from error
            there = [client.scatter(part, broadcast=True) for part in common]
            executor = client.get_executor(pure=False)
            try:  # all units at once: the scheduler knows who is free, and who joins later
                yield lambda unit: executor.submit(run, unit, *there), sys.maxsize
            except (KilledWorker, CancelledError) as error:
                raise UserError(f"--scheduler: {address} lost its workers ({error}); {advice}") from error

    return workers


def results(submit: Submit, units: Iterable[Unit], at_once: int) -> Iterator[tuple[Unit, Any]]:
    """Every unit with its result as they come. Never more than `at_once` are unsaved: the next starts when the caller is back."""
    waiting, running = iter(units), {}
    while True:
        running |= {submit(unit): unit for unit in islice(waiting, at_once - len(running))}
        if not running:
            return
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            yield running.pop(future), future.result()


_job: tuple[Callable[..., Any], tuple[Any, ...]]
"""What a worker process holds for all its units: the function, and what it is given beside the unit."""


def _start(job: bytes) -> None:
    global _job
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _job = pickle.loads(job)


def _end_with_parent() -> None:
    """A pool's processes would wait for work for ever after a kill -9 of the process they work for."""
    parent = multiprocessing.parent_process()
    assert parent
    parent.join()
    os._exit(1)


def _run(unit: Any) -> Any:
    run, common = _job
    return run(unit, *common)
