"""The answer of the report: what freezing changes at the program's own tau, beside as many whole heads, and as many removed.

With a sweep that has both granularities, beside whole heads at the same accuracy too.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import Any

import numpy as np

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
    "heads_alike": "whole heads at the same accuracy",
    "removed": "as many heads removed",
}


def answer(
    bare: Verified, dense: Estimate, own: Estimate | None, tau: float, softmax: str = "renormalised", accuracy: Sequence[dict] = ()
) -> dict[str, Any]:
    """Choices at one tau, renormalised but for the program's own, each with energy, time and bytes of an image; own: if it has masks.

    accuracy: rows of a sweep. Where they have the tau, top-1 (a fraction) is interpolated between them.
    """
    weights, heads = (measured(accuracy, granularity, softmax) for granularity in ("weight", "head"))
    top1 = interpolated(weights, tau)
    kinds = {"heads": (bare, tau)} | ({} if top1 is None or not heads else {"heads_alike": (bare, alike(bare, heads, top1))})
    programs = {kind: refrozen(bare, whole_heads(*choice), "renormalised") for kind, choice in kinds.items()}
    if own is None:
        programs = {"scattered": refrozen(bare, scattered(tau), "renormalised")} | programs
    if (thinner := without_heads(bare, tau)) is not None:
        programs["removed"] = thinner
    choices = {"dense": figures(dense, dense)} | ({} if own is None else {"own": figures(own, dense)})
    choices |= {kind: figures(evaluate(program, dense.hardware, dense.batch), dense) for kind, program in programs.items()}
    known = {"dense": interpolated(weights, 0.0), "own": top1, "scattered": top1, "heads": interpolated(heads, tau)}
    known |= {"heads_alike": interpolated(heads, kinds["heads_alike"][1])} if "heads_alike" in kinds else {}
    rows = [row(kind, found, choices["dense"]) | {"top1": known.get(kind)} for kind, found in choices.items()]
    return {"tau": tau, "estimated": own is None, "choices": rows, "sentence": sentence(rows, tau, dense.batch)}


def measured(accuracy: Sequence[dict], granularity: str, softmax: str) -> dict[float, float]:
    """Top-1 of the integers by tau, ascending, nothing frozen at 0; {} where a sweep has no such rows."""
    found: dict[float, list[float]] = {}
    for each in accuracy:
        if (each["variant"], each["runner"], each["granularity"], each["softmax"]) == ("eam-4bits", "engine", granularity, softmax):
            found.setdefault(each["tau"], []).append(each["top1"])
    base = [each["top1"] for each in accuracy if (each["variant"], each["runner"]) == ("baseline", "engine")]
    if base and found:
        found[0.0] = base
    return {tau: mean(found[tau]) for tau in sorted(found)}


def interpolated(points: dict[float, float], tau: float) -> float | None:
    """Top-1 at a tau between measured ones."""
    if not points or not min(points) <= tau <= max(points):
        return None
    return float(np.interp(tau, list(points), list(points.values())))


def alike(bare: Verified, heads: dict[float, float], top1: float) -> float:
    """The largest share of whole heads whose accuracy, interpolated, is no less: that of a whole number of them."""
    total = sum(op.heads for op in bare.attentions)
    fits = [n / total for n in range(total + 1) if (found := interpolated(heads, n / total)) is not None and found >= top1]
    return max(fits, default=0.0)


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
    return (
        f"{what} {verdict} here: energy {found['energy_change']:+.2%}, latency {found['milliseconds_change']:+.2%}, "
        f"bytes fetched {found['moved_change']:+.2%} at batch {batch}; {when}. {heads_sentence({each['kind']: each for each in rows})}"
    )


def heads_sentence(rows: dict[str, dict[str, Any]]) -> str:
    """Of whole heads at the same accuracy, where it is known, otherwise of as many."""
    heads, when = (
        (rows["heads_alike"], "At the same accuracy whole heads") if "heads_alike" in rows else (rows["heads"], "As many whole heads")
    )
    if heads["stored_map_bytes"] == 0:
        return "No whole head can be frozen at the same accuracy." if "heads_alike" in rows else "No whole head is as little."
    changes = f"energy {heads['energy_change']:+.2%}, latency {heads['milliseconds_change']:+.2%}, bytes {heads['moved_change']:+.2%}"
    return f"{when}: {changes}{'' if 'heads_alike' in rows else ', at another accuracy'}."
