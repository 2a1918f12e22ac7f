"""Cycles, energy and traffic of those rows on a chip, and whether freezing pays on it."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict

from cost_model.chip.hardware import LEVELS, Array, Hardware
from cost_model.chip.technology import Energy
from cost_model.models.variants import refrozen, scattered, thawed, whole_heads
from cost_model.price.energy import Estimate, break_even_batch, evaluate
from cost_model.work.counts import count
from cost_model.work.ledger import Work, ledger, structured_macs, zero_code_macs
from eamsim.constraints import Verified


def add_hardware(rows: list[dict], program: Verified, own: Estimate, encoding: str) -> dict:
    """Extend every row in place by its figures on the chip of `own`, the program's price; returns those with nothing frozen.

    A row of real masks is the program's; an estimated one has random masks, and as many whole heads as a bound.
    """
    hardware, batch, unfrozen = own.hardware, own.batch, thawed(program)
    dense = own if unfrozen is program else evaluate(unfrozen, hardware, batch, encoding)
    for row in rows:
        tau, softmax = row["tau"], row["softmax"]
        masked = refrozen(unfrozen, scattered(tau), softmax) if row["estimated"] else program
        row["hardware"] = figures(own if masked is program else evaluate(masked, hardware, batch, encoding), dense)
        row["work"] = asdict(sum(ledger(masked).values(), Work()))
        row["zero_code_macs"] = sum(zero_code_macs(op) for op in masked.attentions)
        row["structured_macs"] = sum(structured_macs(masked, op) for op in masked.attentions)
        if row["estimated"] and softmax == "renormalised":
            best = refrozen(unfrozen, whole_heads(unfrozen, tau), softmax)
            bound = figures(evaluate(best, hardware, batch, encoding), dense)
            row["upper_bound"] = {"granularity": "head", "macs_full": count(best).macs.full, "hardware": bound}
    return figures(dense, dense)


def figures(estimate: Estimate, dense: Estimate) -> dict:
    """Numbers of one row, per image: cycles, milliseconds, microjoules, bytes; change is against nothing frozen, at the same batch."""
    energy, traffic = estimate.energy, estimate.traffic
    fetched = estimate.fetch_energy - dense.fetch_energy
    is_frozen = estimate.map_bits > 0
    return {
        "cycles": estimate.cycles_per_image,
        "milliseconds": estimate.milliseconds_per_image,
        "energy_uj": microjoules(energy),
        "energy_change": energy.nominal_pj / dense.energy.nominal_pj - 1,
        "fetched_extra_uj": microjoules(fetched),
        "otherwise_saved_uj": microjoules(dense.energy - energy + fetched),
        "break_even_batch": break_even_batch(estimate, dense) if is_frozen else 1,
        "utilisation": estimate.utilisation,
        "bound_by": estimate.bound_shares,
        "score_cycles_saved": estimate.score_cycles_saved,
        "row_balance": estimate.row_balance,
        **{f"{level}_bytes": sum(traffic.of(level)) / 8 / estimate.batch for level in LEVELS},
        "stored_map_bytes": -(-estimate.map_bits // 8),
        "encodings": dict(Counter(head.encoding for head in estimate.maps)),
        "maps_in": estimate.placement.maps,
        "spilled_values": sorted(estimate.placement.spilled),
    }


def microjoules(energy: Energy) -> dict[str, float]:
    """Low, nominal and high, from picojoules."""
    return {"low": energy.low_pj / 1e6, "nominal": energy.nominal_pj / 1e6, "high": energy.high_pj / 1e6}


def summary(hardware: Hardware, batch: int) -> str:
    """The chip in one line."""
    compute, levels = hardware.compute, hardware.memories.levels
    if isinstance(compute, Array):
        core = f"{compute.rows} x {compute.columns} PEs, {compute.dataflow}, skip {compute.skip}"
    else:
        core = f"SIMD, {compute.lanes} lanes, skip {compute.skip}"
    memories = ", ".join(f"{name} {memory.bytes:,} bytes" for name, memory in levels.items())
    return f"{hardware.name}, batch {batch}: {core}, {hardware.frequency_mhz:g} MHz; {memories}. All figures for one image:"


def verdicts(rows: list[dict], batch: int) -> list[str]:
    """In words: real masks, and the largest tau of each meaning."""
    largest = max((row["tau"] for row in rows if row["estimated"]), default=0)
    sentences = []
    for row in rows:
        if row["hardware"]["encodings"] and (not row["estimated"] or row["tau"] == largest):
            masks = f"{row['softmax']}, tau {row['tau']:.4g}, {'scattered' if row['estimated'] else 'its own masks'}"
            sentences.append(f"{masks}: {verdict(row['hardware'], batch)}")
            if "upper_bound" in row:
                sentences.append(f"  as whole heads, the most it can save: {verdict(row['upper_bound']['hardware'], batch)}")
    return sentences


def verdict(on_chip: dict, batch: int) -> str:
    """Whether energy goes up or down, why, and from which batch on it goes down."""
    change, pays = on_chip["energy_change"], on_chip["break_even_batch"]
    saved, fetched = on_chip["otherwise_saved_uj"]["nominal"], on_chip["fetched_extra_uj"]["nominal"]
    direction = f"energy goes {'up' if change > 0 else 'down'} by {abs(change):.2%} at batch {batch}"
    reason = f"{fetched:+.1f} uJ to fetch maps and weights, {-saved:+.1f} uJ for the rest"
    when = "it never pays" if pays is None else f"it pays from batch {pays}"
    return f"{direction} ({reason}); {when}"
