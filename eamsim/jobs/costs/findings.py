"""What a program costs on a chip, from every side: the figures of the report."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cost_model.chip.arrays import blocks
from cost_model.chip.hardware import Array, Hardware, Simd
from cost_model.models.variants import refrozen, scattered, thawed, whole_heads, whole_units
from cost_model.price.energy import Estimate, break_even_batch, evaluate, priced, workload
from cost_model.price.traffic import DoesNotFit
from cost_model.work.counts import count, share
from cost_model.work.encodings import PLAIN, store
from cost_model.work.gemms import needed_scores
from eamsim.constraints import Verified
from eamsim.errors import UserError
from eamsim.jobs.costs.answer import SUPPOSED_TAU, answer
from eamsim.jobs.costs.chip import figures, summary, verdict
from eamsim.jobs.costs.operations import operation_rows
from eamsim.jobs.costs.rows import own_row
from eamsim.program import Attention

TAUS = tuple(tenth / 10 for tenth in range(10))
BATCHES = tuple(1 << power for power in range(11))


def findings(program: Verified, hardware: Hardware, batch: int, accuracy: Sequence[dict] = ()) -> dict[str, Any]:
    """Every number of the page, ready for JSON: bytes, MACs, cycles, milliseconds and microjoules for one image.

    accuracy: rows of a sweep (`accuracies`), if there is one.
    """
    bare = thawed(program)
    dense = evaluate(bare, hardware, batch)
    own = dense if bare is program else evaluate(program, hardware, batch)
    row = own_row(program)
    curves = [point(bare, dense, hardware, batch, tau) for tau in TAUS]
    largest = curves[-1]["scattered"]
    verdicts = [f"Scattered weights at tau 0.9, renormalised (estimated with random masks): {verdict(largest, batch)}."]
    if row["tau"]:
        verdicts.insert(0, f"This program's own masks ({row['softmax']}, tau {row['tau']:.3f}): {verdict(figures(own, dense), batch)}.")
    return {
        "name": program.name,
        "answer": _answer(bare, dense, own, row, accuracy),
        "accuracy": list(accuracy),
        "timeline": timeline(own),
        "chip": summary(hardware, batch).removesuffix(" All figures for one image:"),
        "description": hardware.description,
        "batch": batch,
        "row": row,
        "own": figures(own, dense),
        "dense": figures(dense, dense),
        "ceiling": ceiling(bare, dense),
        "curves": curves,
        "verdicts": verdicts,
        "layers": layers(program, own, batch),
        "operations": operation_rows(program, own),
        "roofline": roofline(own, hardware),
        "batches": batch_curve(program, bare, hardware),
        "encodings": encodings(program),
        "heads": head_rows(program, hardware),
        "skipped_block": skipped_block(hardware.compute),
        "datapath": vars(program.datapath),
        "bounds": [
            {"name": name, "low": low, "high": high, "bits": max((~low).bit_length() if low < 0 else 0, high.bit_length()) + 1}
            for name, (low, high) in program.bounds.items()
        ],
    }


def _answer(bare: Verified, dense: Estimate, own: Estimate, row: dict[str, Any], accuracy: Sequence[dict]) -> dict[str, Any]:
    if not row["tau"]:
        return answer(bare, dense, None, SUPPOSED_TAU, accuracy=accuracy)
    return answer(bare, dense, own, row["tau"], row["softmax"], accuracy)


def timeline(own: Estimate) -> list[dict[str, Any]]:
    """When each operation runs and how long each resource works for it, in milliseconds from the first weights, for the whole batch."""
    per_ms = 1e3 * own.hardware.frequency_mhz
    now, rows = own.first_load_cycles, []
    for cost in own.operations:
        busy = {name: cycles / per_ms for name, cycles in cost.cycles.items() if cycles}
        rows.append(
            {"name": cost.name, "start": now / per_ms, "lasts": cost.total_cycles / per_ms, "bound_by": cost.bound_by, "busy": busy}
        )
        now += cost.total_cycles
    return rows


def point(bare: Verified, dense: Estimate, hardware: Hardware, batch: int, tau: float) -> dict[str, Any]:
    """Freezing a share tau, renormalised: scattered weights with random masks, and as much as whole heads, the most it can save."""
    kinds = {"scattered": scattered(tau), "heads": whole_heads(bare, tau)}
    programs = {kind: refrozen(bare, freezer, "renormalised") for kind, freezer in kinds.items()}
    full = count(bare).macs.full
    return {"tau": tau} | {
        kind: figures(evaluate(each, hardware, batch), dense) | {"macs_saved": share(full - count(each).macs.full, full)}
        for kind, each in programs.items()
    }


def ceiling(bare: Verified, dense: Estimate) -> dict[str, float]:
    """What no scattered mask saves more of: all scores but one of a head frozen, and the maps for nothing. Fractions, and milliseconds."""
    macs, hardware = count(bare).macs, dense.hardware
    masked = refrozen(bare, lambda op: whole_units(1 - 1 / (op.rows * op.tokens), 1, 1)(op), "renormalised")
    work = workload(masked, hardware.compute)
    least = priced(replace(work, map_bits=dict.fromkeys(work.map_bits, 0)), hardware, dense.batch)
    change = least.energy.nominal_pj / dense.energy.nominal_pj - 1
    return {"macs_saved": share(macs.scores, macs.full), "energy_change": change, "milliseconds": least.milliseconds_per_image}


def layers(program: Verified, own: Estimate, batch: int) -> list[dict[str, Any]]:
    """MACs, microjoules and cycles by block and part of it: what precedes the first point of a name, and its second part."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for row, cost in zip(operation_rows(program, None), own.operations, strict=True):
        block, _, rest = row["name"].rpartition(".")[0].partition(".") if "." in row["name"] else ("other", "", "")
        part = rest or row["name"].rpartition(".")[2]
        part = {"attn": "attention", "mlp": "MLP"}.get(part, "norms" if part.startswith("norm") else part)
        if block == "other":
            part = "other"
        cell = found.setdefault((block, part), {"macs": 0, "energy_uj": 0.0, "cycles": 0.0})
        cell["macs"] += row["macs"]
        cell["energy_uj"] += (cost.energy + cost.fetch_energy).nominal_pj / 1e6 / batch
        cell["cycles"] += cost.total_cycles / batch
    return [{"block": block, "part": part, **cell} for (block, part), cell in found.items()]


def roofline(own: Estimate, hardware: Hardware) -> dict[str, Any]:
    """Of every memory, its roof and the operations below it: multiplies (of the core's width) per byte moved, and per second."""
    per_second = hardware.frequency_mhz * 1e6
    levels = {}
    for level, memory in hardware.memories.levels.items():
        points = []
        for cost in own.operations:
            moved = sum((cost.fetches + cost.moves).of(level)) / 8
            if cost.macs and moved:
                speed = cost.macs / cost.total_cycles * per_second
                points.append({"name": cost.name, "macs_per_byte": cost.macs / moved, "macs_per_second": speed})
        levels[level] = {"bytes_per_second": memory.bits_per_cycle / 8 * per_second, "points": points}
    return {"peak": hardware.compute.macs_per_cycle * per_second, "levels": levels}


def batch_curve(program: Verified, bare: Verified, hardware: Hardware) -> dict[str, Any]:
    """Energy against nothing frozen at the same batch, of the program's masks and of scattered ones at tau 0.9, renormalised.

    Up to the largest batch whose values fit the chip.
    """
    curves = {}
    masked = {"scattered, tau 0.9": refrozen(bare, scattered(0.9), "renormalised")}
    if any(op.frozen is not None for op in program.attentions):
        masked = {"this program": program} | masked
    works = {name: workload(each, hardware.compute) for name, each in (masked | {"": bare}).items()}
    estimates: dict[str, list[Estimate]] = {name: [] for name in works}
    with suppress(DoesNotFit):
        for batch in BATCHES:
            fitting = {name: priced(work, hardware, batch) for name, work in works.items()}
            for name, estimate in fitting.items():
                estimates[name].append(estimate)
    dense = estimates[""]
    for name in masked:
        changes = [f.energy.nominal_pj / d.energy.nominal_pj - 1 for f, d in zip(estimates[name], dense, strict=True)]
        pays = break_even_batch(estimates[name][0], dense[0])
        curves[name] = {"batches": BATCHES[: len(changes)], "energy_change": changes, "break_even_batch": pays}
    return curves


def encodings(program: Verified) -> dict[str, int | None]:
    """Bytes of all frozen maps under each encoding; None where it cannot hold one of them. `auto`: the smallest of each head."""
    sizes: dict[str, int | None] = {}
    for encoding in ("auto", *PLAIN):
        try:
            sizes[encoding] = -(-sum(head.bits for op in program.attentions for head in store(op, encoding)) // 8)
        except UserError:
            sizes[encoding] = None
    return sizes


def head_rows(program: Verified, hardware: Hardware) -> list[dict[str, Any]]:
    """Of every head, over all windows: the share of its weights that is frozen, and of its scores that the core leaves out."""
    rows = []
    for op in program.attentions:
        frozen, skipped = frozen_share(op), left_out(op, hardware.compute).mean(axis=0)
        for head in range(op.heads):
            shares = {"frozen": float(frozen[head].mean()), "left_out": float(skipped[head].mean())}
            rows.append({"name": op.out.name, "head": head} | shares)
    return rows


def frozen_share(op: Attention) -> np.ndarray:
    """float [heads, rows, tokens]: of the windows, those that have a weight frozen."""
    return np.zeros((op.heads, op.rows, op.tokens)) if op.frozen is None else np.asarray(op.frozen.mask).mean(axis=0)


def skipped_block(compute: Array | Simd) -> tuple[int, int] | None:
    """Queries by keys of the smallest block of scores that the core can leave out; None where it computes all of a head."""
    match compute:
        case Array(skip="tile", dataflow=dataflow, rows=rows, columns=columns):
            return {"os": (rows, columns), "ws": (1, columns), "is": (columns, 1)}[dataflow]
        case Array(skip="pair") | Simd(skip="pair"):
            return 1, 1
        case _:
            return None


def left_out(op: Attention, compute: Array | Simd) -> np.ndarray:
    """bool [maps, heads, rows, tokens]: scores that the core does not compute, in wholly unneeded heads or blocks."""
    block, needed = skipped_block(compute), needed_scores(op)
    skipped = np.ones((1 if needed is None else len(needed), op.heads, op.rows, op.tokens), np.bool_)
    skipped[:, list(op.score_heads)] = False
    if block is not None and needed is not None:
        kept, heights, widths = blocks(needed.reshape(-1, op.rows, op.tokens), *block)
        skipped |= ~kept.repeat(heights, axis=1).repeat(widths, axis=2).reshape(skipped.shape)
    return skipped


def accuracies(sweep: Path) -> list[dict[str, Any]]:
    """Top-1 of every row of a sweep."""
    from eamsim.jobs.sweep_table import read_sweep

    names = ("variant", "runner", "softmax", "granularity", "seed", "tau", "top1")
    return [{name: getattr(row, name) for name in names} for row in read_sweep(sweep)]
