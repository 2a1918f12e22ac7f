"""Where the units of a sweep run: processes of this machine, or a Dask cluster.

A process must have imported this module before it takes what it is sent, and processes start one after the other: hence no import
of torch up here.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from eamsim.errors import MissingExtra, UserError

if TYPE_CHECKING:
    from eamsim.images import ImageSet
    from reference.evaluate import Accuracy
    from reference.sweep import Prepared, Submit, Workers
    from reference.sweep_table import Unit

CONNECT_SECONDS = 20


def processes(count: int) -> Workers:
    """So many processes of this machine; they end with this one, however it ends."""

    @contextmanager
    def workers(prepared: Prepared, data: ImageSet) -> Iterator[tuple[Submit, int]]:
        # pickled here: the pool itself would pass tensors through shared memory, of which containers have little
        common = pickle.dumps((prepared, data))
        with ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _start, (common,)) as pool:

            def submit(unit: Unit) -> Future[Accuracy]:
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # a process that starts here keeps it: Ctrl-C is for this one
                try:
                    return pool.submit(_run, unit)
                finally:
                    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

            try:
                yield submit, count
            except BrokenProcessPool as error:
                raise UserError("a worker process died, perhaps out of memory; continue with --resume and fewer --workers") from error
            except BaseException:
                for process in multiprocessing.active_children():
                    process.terminate()  # or leaving the pool would wait for the units that run
                raise

    return workers


def cluster(address: str) -> Workers:
    """The workers of the Dask scheduler at `address`; each needs the same packages, and the paths of images that are files.

    Raises MissingExtra without dask, and UserError if no worker answers.
    """
    from reference.sweep import run_unit

    try:
        from distributed import Client, KilledWorker
    except ModuleNotFoundError as error:
        raise MissingExtra("cluster", "eamsim sweep --scheduler") from error

    @contextmanager
    def workers(prepared: Prepared, data: ImageSet) -> Iterator[tuple[Submit, int]]:
        with ExitStack() as stack:
            try:
                client = stack.enter_context(Client(address, timeout=CONNECT_SECONDS, set_as_default=False))
                client.wait_for_workers(1, timeout=CONNECT_SECONDS)
            except (OSError, ValueError) as error:
                message = f"--scheduler: expected a Dask scheduler with workers at {address} ({error}); see `dask scheduler --help`"
                raise UserError(message) from error
            prepared_there = client.scatter(prepared, broadcast=True)
            data_there = client.scatter(data, broadcast=True)
            executor = client.get_executor(pure=False)
            try:  # all units at once: the scheduler knows who is free, and who joins later
                yield lambda unit: executor.submit(run_unit, prepared_there, unit, data_there), sys.maxsize
            except (KilledWorker, CancelledError) as error:
                raise UserError(f"--scheduler: {address} lost its workers ({error}); continue with --resume") from error

    return workers


_common: tuple[Prepared, ImageSet]
"""What a worker process holds for all its units."""


def _start(common: bytes) -> None:
    global _common
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _common = pickle.loads(common)


def _end_with_parent() -> None:
    """A pool's processes would wait for work for ever after a kill -9 of the process they work for."""
    parent = multiprocessing.parent_process()
    assert parent
    parent.join()
    os._exit(1)


def _run(unit: Unit) -> Accuracy:
    from reference.sweep import run_unit

    prepared, data = _common
    return run_unit(prepared, unit, data)
