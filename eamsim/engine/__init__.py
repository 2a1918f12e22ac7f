"""The fast engine: a program compiled to one call of machine code, equal to the golden interpreter to the last bit."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from time import perf_counter
from typing import Literal, overload

import numba
import numpy as np
from numba.core import config

from eamsim.engine.fixedpoint import ROUNDINGS
from eamsim.engine.forward import forward
from eamsim.engine.isa import ISAS, select
from eamsim.engine.memory import Memory
from eamsim.engine.plan import ATTEND, KINDS, PUBLISH, Plan, Tap, make_plan
from eamsim.errors import UserError
from eamsim.program import Program

MAX_BATCH = 16
# OpenMP's barriers spin: with one other busy process on two cores a DeiT-T took 820 ms for an image, with workqueue 27 ms. Workqueue is
# also the only layer that is always there. It aborts the process when entered twice: hence the lock. NUMBA_THREADING_LAYER overrides.
if config.THREADING_LAYER == "default":  # pyright: ignore[reportAttributeAccessIssue]
    config.THREADING_LAYER = "workqueue"  # pyright: ignore[reportAttributeAccessIssue]
_one_at_a_time = threading.Lock()


class Engine:
    """A loaded program; `run` may be called from any thread, one call at a time."""

    def __init__(self, program: Program, threads: int, isa: str):
        self.program = program
        self.threads = threads
        self.isa = isa
        self._plan = make_plan(program)
        self._memory: Memory | None = None
        self._batch = 0

    @overload
    def run(self, images: np.ndarray, taps: Literal[False] = False) -> np.ndarray: ...

    @overload
    def run(self, images: np.ndarray, taps: Literal[True] | Callable[[str], bool]) -> tuple[np.ndarray, dict[str, np.ndarray]]: ...

    def run(self, images: np.ndarray, taps: bool | Callable[[str], bool] = False):
        """Logits int32 [batch, classes] of images uint8 [batch, height, width, 3].

        With taps (True, or a test of a tap's name): (logits, int64 [batch, ...] by tap name). Images are taken MAX_BATCH at a time.
        """
        shape = self.program.image.shape
        if images.dtype != np.uint8 or images.shape[1:] != shape:
            raise UserError(f"images: expected uint8 [batch, {', '.join(map(str, shape))}], got {images.dtype} {list(images.shape)}")
        wanted = [tap for tap in self._plan.taps if taps is True or (callable(taps) and taps(tap.name))]
        parts = [self._run(images[start : start + MAX_BATCH], wanted) for start in range(0, len(images), MAX_BATCH)]
        logits = np.concatenate([np.empty((0, self.program.output.size), np.int32), *(part[0] for part in parts)])
        if taps is False:
            return logits
        empty = {tap.name: np.empty((0, *tap.shape), np.int64) for tap in wanted}
        return logits, {name: np.concatenate([none, *(part[1][name] for part in parts)]) for name, none in empty.items()}

    def stream(self, images: np.ndarray, wanted: Callable[[str], bool] = lambda name: True) -> Iterator[dict[str, np.ndarray]]:
        """The wanted taps of one batch as `run` takes it, operation by operation: integers [batch, ...] by name.

        The next step overwrites them: memory holds the inner taps of one operation, and its output is shown where the next ones read it.
        """
        plan, batch = self._plan, len(images)
        steps = [(*tap_records(records, inner)[:2], inner, output) for records, inner, output in operation_steps(plan, wanted)]
        sizes = (sum(int(np.prod(tap.shape)) for tap in inner) for _, _, inner, _ in steps)
        memory = plan.memory(batch, self.threads)._replace(taps=np.zeros(max(sizes) * batch + 1, np.int64))
        memory.codes[plan.image * batch :][: images.size] = images.ravel()
        for records, offsets, inner, output in steps:
            if ATTEND in records["kind"]:
                memory.taps[:] = 0  # of heads without scores the kernels publish none
            with _one_at_a_time:
                self._call(records, batch, memory)
            found = {tap.name: part(memory.taps, offset, tap, batch) for tap, offset in zip(inner, offsets, strict=True)}
            if wanted(output.name):
                source = memory.values if plan.records["x_signed"][output.record] else memory.codes
                found[output.name] = part(source, int(plan.records["x"][output.record]), output, batch)
            yield found

    def profile(self, images: np.ndarray, rounds: int = 5) -> dict[str, float]:
        """Seconds by kind of operation for one batch, at most MAX_BATCH images as `run` takes them: the least of so many rounds.

        Every operation is a call of its own here, so that the sum is a little more than the time of `run`.
        """
        self.run(images)
        records, batch = tap_records(self._plan.records, [])[0], len(images)
        seconds = dict.fromkeys((KINDS[kind] for kind in records["kind"]), 0.0)
        with _one_at_a_time:
            memory = self._memory_of(batch)
            for index, kind in enumerate(records["kind"]):
                times = []
                for _ in range(rounds):
                    start = perf_counter()
                    self._call(records[index : index + 1], batch, memory)
                    times.append(perf_counter() - start)
                seconds[KINDS[kind]] += min(times)
        return seconds

    def _run(self, images: np.ndarray, wanted: list[Tap]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        plan, batch, output = self._plan, len(images), self.program.output
        records, offsets, tap_size = tap_records(plan.records, wanted)
        with _one_at_a_time:
            memory = self._memory_of(batch)._replace(taps=np.zeros(max(tap_size * batch, 1), np.int64))
            memory.codes[plan.image * batch :][: images.size] = images.ravel()
            self._call(records, batch, memory)
            source = memory.values if output.signed else memory.codes
            logits = source[plan.output * batch :][: output.size * batch].reshape(batch, -1).astype(np.int32)
        pieces = (memory.taps[offset * batch :][: int(np.prod(tap.shape)) * batch] for tap, offset in zip(wanted, offsets, strict=True))
        return logits, {tap.name: piece.reshape(batch, *tap.shape) for tap, piece in zip(wanted, pieces, strict=True)}

    def _memory_of(self, batch: int) -> Memory:
        """Kept for the last batch size."""
        if self._memory is None or self._batch != batch:
            self._memory, self._batch = self._plan.memory(batch, self.threads), batch
        return self._memory

    def _call(self, records: np.ndarray, batch: int, memory: Memory) -> None:
        before = numba.get_num_threads()
        numba.set_num_threads(self.threads)
        try:
            forward(ISAS[self.isa], ROUNDINGS[self.program.datapath.rounding], records, batch, self.threads, memory)
        finally:
            numba.set_num_threads(before)


def tap_records(records: np.ndarray, wanted: list[Tap]) -> tuple[np.ndarray, list[int], int]:
    """The records with offsets for the wanted taps, without publications nobody wants; the offsets; elements of one image."""
    table, offsets, size = records.copy(), [], 0
    for tap in wanted:
        table[tap.field][tap.record] = size
        offsets.append(size)
        size += int(np.prod(tap.shape))
    return table[(table["kind"] != PUBLISH) | (table["tap_out"] >= 0)], offsets, size


def operation_steps(plan: Plan, wanted: Callable[[str], bool]) -> Iterator[tuple[np.ndarray, list[Tap], Tap]]:
    """For each operation its records without the publication, its wanted inner taps as if those were the only records, its output."""
    first = 0
    for output in (tap for tap in plan.taps if plan.records["kind"][tap.record] == PUBLISH):
        inner = [replace(tap, record=tap.record - first) for tap in plan.taps if first <= tap.record < output.record and wanted(tap.name)]
        yield plan.records[first : output.record], inner, output
        first = output.record + 1


def part(source: np.ndarray, offset: int, tap: Tap, batch: int) -> np.ndarray:
    """[batch, ...]: the tap or value that lies at the offset of one image's."""
    return source[offset * batch :][: int(np.prod(tap.shape)) * batch].reshape(batch, *tap.shape)


def load(program: Program, threads: int | None = None, isa: str | None = None) -> Engine:
    """Verify, pack and place a program; threads: all of Numba's by default; isa: see `eamsim.engine.isa.select`.

    Raises UserError for a program that breaks a constraint, for what the engine does not support, for a thread count or an
    instruction set that is not available.
    """
    most = config.NUMBA_NUM_THREADS  # pyright: ignore[reportAttributeAccessIssue]
    threads = numba.get_num_threads() if threads is None else threads
    if not 1 <= threads <= most:
        raise UserError(f"engine threads: expected 1 to {most} (NUMBA_NUM_THREADS), got {threads}; choose a number in that range")
    return Engine(program, threads, select(isa))
