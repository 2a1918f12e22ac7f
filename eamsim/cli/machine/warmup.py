"""`eamsim warmup`: compile the kernels ahead of the first image."""

from time import perf_counter
from typing import Annotated, cast, get_args

import numpy as np
import typer

from eamsim.cli.inputs import load_engine
from eamsim.cli.output import Json, emit, note
from eamsim.constraints import Verified
from eamsim.errors import UserError
from eamsim.program import Datapath, Gather, Rounding, Value


def warmup(
    isa: Annotated[str, typer.Option(help="Instruction sets, with commas between; the best unless given.")] = "",
    rounding: Annotated[str, typer.Option(help="Roundings, with commas between.")] = Datapath().rounding,
    as_json: Json = False,
) -> None:
    """Compile the integer kernels now. Kept in the cache folder (see `eamsim doctor`) for all models; nothing is done twice."""
    from eamsim.engine.isa import select

    known = get_args(Rounding)
    roundings = rounding.split(",")
    for name in roundings:
        if name not in known:
            raise UserError(f"--rounding: expected some of {', '.join(known)} with commas between, got {name!r}")
    rows = []
    for chosen in [select(name) for name in isa.split(",")]:
        for name in roundings:
            start = perf_counter()
            run_smallest(chosen, name)
            rows.append({"instruction_set": chosen, "rounding": name, "seconds": perf_counter() - start})
            note(f"{chosen}, {name}: {rows[-1]['seconds']:.1f} s")
    emit({"compiled": rows}, as_json, f"{len(rows)} variants of the kernels are ready")


def run_smallest(isa: str, rounding: str) -> None:
    """Any program makes Numba compile, or load from its cache, the whole forward pass."""
    pixel, copy = Value("image", (1, 1, 3), 8), Value("copy", (1, 3), 8)
    gather = Gather("image", copy, np.zeros(1, np.int32), granule=3)
    program = Verified("warmup", pixel, (gather,), Datapath(rounding=cast(Rounding, rounding)))
    load_engine(program, 1, isa).run(np.zeros((1, 1, 1, 3), np.uint8))
