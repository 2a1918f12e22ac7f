"""The part of `eamsim cost` that knows a chip: cycles, energy and traffic per row, and whether freezing pays on it."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict

from rich.table import Table

from cost_model.counts import count
from cost_model.energy import Estimate, break_even_batch, evaluate
from cost_model.hardware import Array, Hardware
from cost_model.ledger import Work, ledger, structured_macs, zero_code_macs
from cost_model.technology import Energy
from cost_model.variants import refrozen, scattered, thawed, whole_heads
from eamsim.cli.output import table
from eamsim.program import Attention
from eamsim.verify import Verified

NOTE = (
    "heads: as much frozen as whole heads, the most it can save. B*: the smallest batch with which freezing costs no more energy.",
    "use: multiplies that toggle, of those the time allows. Energies: all low, all nominal, all high figures of the description.",
    "QK^T saved: of its cycles, by skipping. balance: mean over longest row of needed scores in a block of the array's rows.",
    "stored bytes: of the maps as they are stored, with tags and row masses; map bytes: with one bit a weight instead.",
)


def add_hardware(rows: list[dict], program: Verified, hardware: Hardware, batch: int, encoding: str) -> dict:
    """Extend every row in place by its figures on the chip; returns those of the network with nothing frozen.

    A row of real masks is evaluated as the program is; an estimated one with random masks, and with as many whole heads as a bound.
    """
    unfrozen = thawed(program)
    dense = evaluate(unfrozen, hardware, batch, encoding)
    for row in rows:
        tau, softmax = row["tau"], row["softmax"]
        masked = refrozen(unfrozen, scattered(tau), softmax) if row["estimated"] else program
        row["hardware"] = figures(evaluate(masked, hardware, batch, encoding), dense)
        row["work"] = asdict(sum(ledger(masked).values(), Work()))
        attentions = [op for op in masked.operations if isinstance(op, Attention)]
        row["zero_code_macs"] = sum(zero_code_macs(op) for op in attentions)
        row["structured_macs"] = sum(structured_macs(masked, op) for op in attentions)
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
        "dram_bytes": (traffic.dram_read_bits + traffic.dram_write_bits) / 8 / estimate.batch,
        "rom_bytes": traffic.rom_read_bits / 8 / estimate.batch,
        "sram_bytes": (traffic.sram_read_bits + traffic.sram_write_bits) / 8 / estimate.batch,
        "stored_map_bytes": -(-estimate.map_bits // 8),
        "encodings": dict(Counter(head.encoding for head in estimate.maps)),
        "maps_in": estimate.placement.maps,
        "spilled_values": sorted(estimate.placement.spilled),
    }


def microjoules(energy: Energy) -> dict[str, float]:
    """Low, nominal and high, from picojoules."""
    return {"low": energy.low_pj / 1e6, "nominal": energy.nominal_pj / 1e6, "high": energy.high_pj / 1e6}


def hardware_report(rows: list[dict], dense: dict, hardware: Hardware, batch: int) -> tuple[str | Table, ...]:
    """The chip, a line per row with its bound, and what the figures come to."""
    lines = [("-", "-", "none", dense)]
    for row in rows:
        lines.append((row["softmax"], f"{row['tau']:.4g}", "scattered" if row["estimated"] else "its own", row["hardware"]))
        if "upper_bound" in row and row["tau"]:
            lines.append(("", "", "heads", row["upper_bound"]["hardware"]))
    names = ("softmax", "tau", "frozen")
    costs = table(
        (*names, "kcycles", "ms", "use %", "uJ low", "nominal", "high", "change %", "B*"),
        [cost_line(*row) for row in lines],
        keys=len(names),
    )
    levels = tuple(hardware.memories.levels)
    columns = (*names, "QK^T saved %", "balance %", *(f"{level.upper()} kB" for level in levels), "stored bytes", "stored as", "in")
    memory = table(columns, [memory_line(*row, levels) for row in lines], keys=len(names))
    return ("", summary(hardware, batch), "", costs, "", memory, "", *verdicts(rows, batch), "", *NOTE)


def summary(hardware: Hardware, batch: int) -> str:
    """The chip in one line."""
    compute, levels = hardware.compute, hardware.memories.levels
    if isinstance(compute, Array):
        core = f"{compute.rows} x {compute.columns} PEs, {compute.dataflow}, skip {compute.skip}"
    else:
        core = f"SIMD, {compute.lanes} lanes, skip {compute.skip}"
    memories = ", ".join(f"{name} {memory.bytes:,} bytes" for name, memory in levels.items())
    return f"{hardware.name}, batch {batch}: {core}, {hardware.frequency_mhz:g} MHz; {memories}. All figures for one image:"


def cost_line(softmax: str, tau: str, frozen: str, on_chip: dict) -> tuple[str, ...]:
    """Time and energy of one row."""
    energies = (f"{on_chip['energy_uj'][level]:,.1f}" for level in ("low", "nominal", "high"))
    time = (f"{on_chip['cycles'] / 1e3:,.0f}", f"{on_chip['milliseconds']:,.3f}", f"{100 * on_chip['utilisation']:.1f}")
    pays = "never" if on_chip["break_even_batch"] is None else str(on_chip["break_even_batch"])
    return (softmax, tau, frozen, *time, *energies, f"{100 * on_chip['energy_change']:+.2f}", pays if on_chip["encodings"] else "-")


def memory_line(softmax: str, tau: str, frozen: str, on_chip: dict, levels: tuple[str, ...]) -> tuple[str, ...]:
    """Traffic and storage of one row."""
    moved = (f"{on_chip[f'{level}_bytes'] / 1e3:,.0f}" for level in levels)
    kinds = [name for name, _ in Counter(on_chip["encodings"]).most_common()]
    more = f" +{len(kinds) - 1}" if kinds[1:] else ""
    stored = (f"{on_chip['stored_map_bytes']:,}", f"{kinds[0]}{more}", on_chip["maps_in"]) if kinds else ("-", "-", "-")
    shares = (f"{100 * on_chip[name]:.1f}" for name in ("score_cycles_saved", "row_balance"))
    return (softmax, tau, frozen, *shares, *moved, *stored)


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
