"""The multiply-accumulate peak of this machine: what the inner loop of the matrix product would do if it loaded nothing."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from time import perf_counter

from numba import njit, types
from numba.extending import intrinsic

from eamsim.engine.ir.tile import emit_peak
from eamsim.engine.isa import ISAS, VECTORS

STEPS = 5_000_000


@intrinsic
def run_steps(typingctx, isa, steps):
    """Multiply-accumulates done in `steps` steps, int64."""

    def codegen(context, builder, signature, args):
        each = emit_peak(builder, VECTORS[isa.instance_class], args[1])
        return builder.mul(args[1], args[1].type(each))

    return types.int64(isa, types.int64), codegen


@njit(nogil=True)
def multiply_accumulate(isa, steps):
    return run_steps(isa, steps)  # pyright: ignore[reportCallIssue] (Numba passes the typing context)


def peak_macs_per_second(isa: str, threads: int, rounds: int = 5) -> float | None:
    """The best of `rounds` rounds, all threads together; None for `portable`, whose instructions are the compiler's choice."""
    tag = ISAS[isa]
    if type(tag) not in VECTORS:
        return None
    multiply_accumulate(tag, 1)
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(rounds):
            start = perf_counter()
            done = sum(pool.map(lambda _: multiply_accumulate(tag, STEPS), range(threads)))
            best = max(best, done / (perf_counter() - start))
    return best
