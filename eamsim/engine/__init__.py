"""The fast engine: a program compiled to one call of machine code, equal to the golden interpreter to the last bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from time import perf_counter
from typing import Any, Literal, overload

import numpy as np

from eamsim.arguments import expect_images, expect_integer, expect_names, expect_type
from eamsim.compiled.compiler import compile_kernel, logged, require_compiler, sources_digest, typeof
from eamsim.constraints import Verified, expect_verified
from eamsim.engine.forward import NONE, SOURCES, forward
from eamsim.engine.isa import ISAS, select
from eamsim.engine.kernels.digest import FOUND_BYTES, LANES_BYTES, hash_address
from eamsim.engine.kernels.fixedpoint import ROUNDINGS
from eamsim.engine.memory import Arena, aligned
from eamsim.engine.plan import KINDS, PlannedTap, make_plan
from eamsim.engine.taps import digest_records, operation_steps, tap_records
from eamsim.engine.team import alone, most_threads, together, usable_threads
from eamsim.errors import UserError
from eamsim.progress import Progress

MAX_BATCH = 16
REPEATS = 16


class Engine:
    """A loaded program, of which it holds its packed weights and nothing else; `run` may be called from any thread, one call at a time."""

    def __init__(self, program: Verified, threads: int | None = None, isa: str | None = None, progress: Progress = logged):
        """Pack and place a program, and compile what runs it: a minute or so, once for a machine, a version and a rounding.

        threads: all processors that this process may use by default; isa: see `eamsim.engine.isa.select`; progress: shown where
        functions are compiled, as lines of the logger `eamsim.engine` by default. Raises UserError for a program without its proof, for
        what the engine does not support, for a thread count or an instruction set that is not available, and where Numba must not compile.
        """
        threads, isa = usable_threads() if threads is None else threads, select(isa)
        check_threads(threads)
        expect_verified(program)
        self._image, self._output, self._rounding = program.image, program.output, program.datapath.rounding
        self.threads = threads
        self.isa = isa
        self._plan = make_plan(program)
        self._prepare(progress)

    def _prepare(self, progress: Progress) -> None:
        """What no other process can use: compiled code, its addresses, and the room that it works in."""
        require_compiler()
        team, memory = aligned(0, np.int64), self._plan.memory(1, 1)[0]
        arguments = (ISAS[self.isa], ROUNDINGS[self._rounding], self._plan.records, 0, 0, 0, team, memory)
        compile_kernel(forward, tuple(map(typeof, arguments)), f"{self.isa}, {self._rounding}", progress)
        self._untapped = tap_records(self._plan.records, [])
        self._memory: list[Arena] = []
        self._batch = 0
        self._taps = aligned(0, np.uint8)
        self._digested: tuple[tuple[str, ...], np.ndarray, int] = (), self._plan.records[:0], 0

    def __getstate__(self) -> dict[str, Any]:
        plan = {name: vars(self)[name] for name in ("_image", "_output", "_rounding", "threads", "isa", "_plan")}
        return plan | {"sources": sources_digest(SOURCES)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if state.pop("sources") != sources_digest(SOURCES):
            raise UserError("engine: expected one pickled by this version of eamsim, got another's; load its program instead")
        vars(self).update(state)
        check_threads(self.threads)
        select(self.isa)
        self._prepare(logged)

    @overload
    def run(self, images: np.ndarray, taps: Literal[False] = False) -> np.ndarray: ...

    @overload
    def run(self, images: np.ndarray, taps: Literal[True] | Callable[[str], bool]) -> tuple[np.ndarray, dict[str, np.ndarray]]: ...

    def run(self, images: np.ndarray, taps: bool | Callable[[str], bool] = False):
        """Logits int32 [batch, classes] of images uint8 [batch, height, width, 3].

        With taps (True, or a test of a tap's name): (logits, int64 [batch, ...] by tap name). Images are taken MAX_BATCH at a time.
        """
        expect_images(images, self._image.shape)
        expect_type("taps", taps, bool, Callable)
        wanted = [tap for tap in self._plan.taps if taps is True or (callable(taps) and taps(tap.name))]
        parts = [self._run(images[start : start + MAX_BATCH], wanted) for start in range(0, len(images), MAX_BATCH)]
        logits = np.concatenate([np.empty((0, self._output.size), np.int32), *(part[0] for part in parts)])
        if taps is False:
            return logits
        empty = {tap.name: np.empty((0, *tap.shape), np.int64) for tap in wanted}
        return logits, {name: np.concatenate([none, *(part[1][name] for part in parts)]) for name, none in empty.items()}

    def stream(self, images: np.ndarray, wanted: Callable[[str], bool] = lambda name: True) -> Iterator[dict[str, np.ndarray]]:
        """The wanted taps of one batch as `run` takes it, operation by operation: integers [batch, ...] by name, no wider than proven.

        The next step overwrites them: memory holds the inner taps of one operation, and its output is shown where the next ones read it.
        """
        expect_images(images, self._image.shape, 1)
        expect_type("wanted", wanted, Callable)
        plan, batch = self._plan, len(images)
        steps = [(*tap_records(records, inner)[:2], inner, output) for records, inner, output in operation_steps(plan, wanted)]
        storage = aligned(max(sum(tap.room for tap in inner) for _, _, inner, _ in steps) * batch, np.uint8)
        memory = [own._replace(taps=storage) for own in plan.memory(batch, self.threads)]
        memory[0].codes[plan.image * batch :][: images.size] = images.ravel()
        for records, offsets, inner, output in steps:
            with alone():
                self._call(records, batch, memory)
            found = {tap.name: tap_of(storage, offset, tap, batch) for tap, offset in zip(inner, offsets, strict=True)}
            if wanted(output.name):
                source = memory[0].values if plan.records["x_signed"][output.record] else memory[0].codes
                start, size = int(plan.records["x"][output.record]) * batch, output.declared.value.size * batch
                found[output.name] = source[start : start + size].reshape(batch, *output.shape)
            yield found

    def digests(self, images: np.ndarray, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Of one batch as `run` takes it, uint8 [batch, names, lanes * 32]: the digests of a tap's lanes (docs/spec/traces.md).

        Then int64 [names, 2]: the least and the greatest integer of each tap.
        """
        expect_images(images, self._image.shape, 1)
        plan, batch = self._plan, len(images)
        expect_names("names", names, [tap.name for tap in plan.taps])
        if self._digested[0] != tuple(names):
            self._digested = tuple(names), *digest_records(plan, names, hash_address())
        _, records, room = self._digested
        size = len(names) * FOUND_BYTES
        with alone():
            if self._taps.size < (room + size) * batch:
                self._taps = aligned((room + size) * batch, np.uint8)
            memory, taps = self._memory_of(batch), self._taps
            memory[0].codes[plan.image * batch :][: images.size] = images.ravel()
            self._call(records, batch, [own._replace(taps=taps) for own in memory])
            found = taps[room * batch :][: size * batch].reshape(len(names), batch, FOUND_BYTES).copy()
        extremes = found[:, :, LANES_BYTES:].view(np.int64)
        return found[:, :, :LANES_BYTES].swapaxes(0, 1), np.stack([extremes[:, :, 0].min(axis=1), extremes[:, :, 1].max(axis=1)], axis=1)

    def profile(self, images: np.ndarray, rounds: int = 5) -> dict[str, float]:
        """Seconds by kind of operation for one batch, at most MAX_BATCH images as `run` takes them: the least of so many rounds.

        Every operation is a call of its own here, in which it is done REPEATS times.
        """
        expect_images(images, self._image.shape, 1)
        expect_integer("rounds", rounds, 1)
        self.run(images)
        records, batch = self._untapped[0], len(images)
        seconds = dict.fromkeys((KINDS[kind] for kind in records["kind"]), 0.0)
        with alone():
            memory = self._memory_of(batch)
            for index, kind in enumerate(records["kind"]):
                times = []
                for _ in range(rounds):
                    start = perf_counter()
                    self._call(np.repeat(records[index : index + 1], REPEATS), batch, memory)
                    times.append((perf_counter() - start) / REPEATS)
                seconds[KINDS[kind]] += min(times)
        return seconds

    def _run(self, images: np.ndarray, wanted: list[PlannedTap]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        plan, batch, output = self._plan, len(images), self._output
        records, offsets, tap_size = tap_records(plan.records, wanted) if wanted else self._untapped
        with alone():
            memory, space = self._memory_of(batch), aligned(tap_size * batch, np.uint8)
            memory[0].codes[plan.image * batch :][: images.size] = images.ravel()
            self._call(records, batch, [own._replace(taps=space) for own in memory])
            source = memory[0].values if output.signed else memory[0].codes
            logits = source[plan.output * batch :][: output.size * batch].reshape(batch, -1).astype(np.int32)
        return logits, {tap.name: tap_of(space, offset, tap, batch) for tap, offset in zip(wanted, offsets, strict=True)}

    def _memory_of(self, batch: int) -> list[Arena]:
        """By thread; kept for the last batch size."""
        if self._batch != batch:
            self._memory, self._batch = self._plan.memory(batch, self.threads), batch
        return self._memory

    def _call(self, records: np.ndarray, batch: int, memory: list[Arena]) -> None:
        def part(team: np.ndarray, thread: int) -> None:
            unknown = forward(ISAS[self.isa], ROUNDINGS[self._rounding], records, batch, thread, self.threads, team, memory[thread])
            if unknown != NONE:
                raise AssertionError(f"engine: no kernel runs operations of kind {records['kind'][unknown]}")

        together(self.threads, len(records), part)


def tap_of(space: np.ndarray, offset: int, tap: PlannedTap, batch: int) -> np.ndarray:
    """[batch, ...]: the tap that lies at the offset of one image's bytes."""
    size = tap.declared.value.size * tap.dtype.itemsize
    return space[offset * batch :][: size * batch].view(tap.dtype).reshape(batch, *tap.shape)


def check_threads(threads: int) -> None:
    most = most_threads()
    expect_type("engine threads", threads, int)
    if not 1 <= threads <= most:
        raise UserError(f"engine threads: expected 1 to {most} (this machine's processors), got {threads}; choose a number in that range")
