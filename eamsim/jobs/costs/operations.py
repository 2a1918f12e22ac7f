"""The ledger of `eamsim cost --json`: every operation of the program by itself."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from cost_model.price.energy import Estimate
from cost_model.work.counts import count_operations
from cost_model.work.ledger import ledger
from eamsim.constraints import Verified


def operation_rows(program: Verified, estimate: Estimate | None) -> list[dict[str, Any]]:
    """MACs, other integer operations and bytes of each for one image; on a chip its cycles, bits and microjoules, for the whole batch.

    Energies are without leakage. They, cycles and bits add up to the totals but for the wait for the first weights.
    """
    costs, work = count_operations(program), ledger(program)
    rows = [
        {
            "name": op.out.name,
            "kind": type(op).__name__,
            "macs": costs[op.out.name].macs.full,
            "weight_bytes": costs[op.out.name].weight_bytes,
            "map_bytes": costs[op.out.name].map_bytes,
            "activation_bytes": costs[op.out.name].activation_bytes,
            "work": {kind: count for kind, count in asdict(work[op.out.name]).items() if count},
        }
        for op in program.operations
    ]
    if estimate is not None:
        for row, cost in zip(rows, estimate.operations, strict=True):
            energy = (cost.energy + cost.fetch_energy) * 1e-6
            row |= {
                "cycles": cost.total_cycles,
                "cycles_by_resource": cost.cycles,
                "bound_by": cost.bound_by,
                "bits": asdict(cost.fetches + cost.moves),
                "energy_uj": {"low": energy.low_pj, "nominal": energy.nominal_pj, "high": energy.high_pj},
            }
    return rows
