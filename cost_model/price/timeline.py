"""One batch on a chip as a timeline: which resource is busy with which operation, and when.

The format is Chrome's trace events ("Trace Event Format", Google), which Perfetto and chrome://tracing open.
"""

from __future__ import annotations

import json

from cost_model.price.energy import Estimate

PROCESS = 1


def chrome_trace(estimate: Estimate) -> str:
    """JSON: a track per resource and one of whole operations, in microseconds; operations follow one another, as the model has it."""
    per_us = estimate.hardware.frequency_mhz
    tracks = ("operation", "compute", "vector", *estimate.hardware.memories.levels, "fetch")
    events: list[dict] = [_named("process_name", f"{estimate.hardware.name}, batch {estimate.batch}")]
    events += [_named("thread_name", name, thread) for thread, name in enumerate(tracks)]
    now = estimate.first_load_cycles
    if now:
        events.append(_slice("first weights", tracks.index(estimate.placement.weights), 0, now / per_us))
    for op in estimate.operations:
        energy = (op.energy + op.fetch_energy).nominal_pj / 1e6
        facts = {"bound by": op.bound_by, "cycles": op.total_cycles, "MACs": op.macs, "uJ": energy}
        busy = {"operation": op.total_cycles} | op.cycles
        events += [
            _slice(op.name, thread, now / per_us, busy[name] / per_us, **(facts if name == "operation" else {}))
            for thread, name in enumerate(tracks)
            if busy.get(name)
        ]
        now += op.total_cycles
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ns"})


def _named(kind: str, name: str, thread: int = 0) -> dict:
    return {"ph": "M", "pid": PROCESS, "tid": thread, "name": kind, "args": {"name": name}}


def _slice(name: str, thread: int, start_us: float, lasts_us: float, **facts: object) -> dict:
    return {"ph": "X", "pid": PROCESS, "tid": thread, "name": name, "ts": start_us, "dur": lasts_us, "args": facts}
