"""The answer of the report: what freezing changes at the program's own tau, beside as many whole heads, and as many removed."""

from __future__ import annotations

from typing import Any

from cost_model.models.variants import refrozen, scattered, whole_heads, without_heads
from cost_model.price.energy import Estimate, evaluate
from cost_model.work.counts import share
from eamsim.constraints import Verified
from eamsim.jobs.costs.chip import figures

SUPPOSED_TAU = 0.2
"""Where a program has nothing frozen: as much as freezes at no cost in accuracy on most networks."""
LABELS = {
    "dense": "nothing frozen",
    "own": "this program's masks",
    "scattered": "scattered weights, estimate",
    "heads": "as many whole heads",
    "removed": "as many heads removed",
}


def answer(bare: Verified, dense: Estimate, own: Estimate | None, tau: float) -> dict[str, Any]:
    """Choices at one tau, renormalised but for the program's own, each with energy, time and bytes of an image; own: if it has masks."""
    choices = {"dense": figures(dense, dense)} | ({} if own is None else {"own": figures(own, dense)})
    kinds = {"heads": refrozen(bare, whole_heads(bare, tau), "renormalised"), "removed": without_heads(bare, tau)}
    if own is None:
        kinds = {"scattered": refrozen(bare, scattered(tau), "renormalised")} | kinds
    for kind, program in kinds.items():
        if program is not None:
            choices[kind] = figures(evaluate(program, dense.hardware, dense.batch), dense)
    rows = [row(kind, found, choices["dense"]) for kind, found in choices.items()]
    return {"tau": tau, "estimated": own is None, "choices": rows, "sentence": sentence(rows, tau, dense.batch)}


def row(kind: str, found: dict[str, Any], dense: dict[str, Any]) -> dict[str, Any]:
    """What the page shows of a choice: changes are fractions of the dense program's; bytes from behind the SRAM for an image."""
    moved, before = (each["dram_bytes"] + each["rom_bytes"] for each in (found, dense))
    return {
        "kind": kind,
        "label": LABELS[kind],
        "energy_uj": found["energy_uj"]["nominal"],
        "energy_change": found["energy_change"],
        "milliseconds": found["milliseconds"],
        "milliseconds_change": found["milliseconds"] / dense["milliseconds"] - 1,
        "moved_bytes": moved,
        "moved_change": share(moved - before, before),
        "stored_map_bytes": found["stored_map_bytes"],
        "pays_from_batch": found["break_even_batch"],
    }


def sentence(rows: list[dict[str, Any]], tau: float, batch: int) -> str:
    """Energy, latency and bytes in one line, and whether it pays."""
    found = next(each for each in rows if each["kind"] in ("own", "scattered"))
    what = f"Freezing {tau:.1%} of the attention weights" + ("" if found["kind"] == "own" else " at random (estimate)")
    pays = found["pays_from_batch"]
    verdict = "saves energy" if found["energy_change"] < 0 else "costs energy"
    when = "at no batch does it save energy" if pays is None else f"it saves energy from batch {pays} on"
    heads = next(each for each in rows if each["kind"] == "heads")
    return (
        f"{what} {verdict} here: energy {found['energy_change']:+.2%}, latency {found['milliseconds_change']:+.2%}, "
        f"bytes fetched {found['moved_change']:+.2%} at batch {batch}; {when}. "
        f"As many whole heads: energy {heads['energy_change']:+.2%}, latency {heads['milliseconds_change']:+.2%}, "
        f"bytes {heads['moved_change']:+.2%}, at another accuracy."
    )
