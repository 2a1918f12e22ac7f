"""The rows of `eamsim cost`: a program's own masks, and estimates for published models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from cost_model.models.architectures import Architecture, SwinArchitecture, architecture
from cost_model.models.paper import estimate
from cost_model.models.skeleton import skeleton
from cost_model.models.variants import refrozen, scattered, thawed
from cost_model.work.counts import Cost, constant_share, count, frozen_share, granularity
from cost_model.work.ledger import structured_macs, zero_code_macs
from cost_model.work.unread import unread_macs
from eamsim import artifact
from eamsim.constraints import Verified
from eamsim.program import Softmax

MEANINGS: tuple[Softmax, ...] = ("paper", "renormalised")


def opened(model: str) -> tuple[Verified, Architecture | SwinArchitecture | None, dict[str, Any]]:
    """The program of an .eam file with its provenance; or the shapes of a published model, with its architecture."""
    if Path(model).suffix == ".eam" or Path(model).is_file():
        program, provenance = artifact.read(model)
        return program, None, provenance
    published = architecture(model)
    return skeleton(published), published, {}


def estimated_rows(subject: Verified | Architecture | SwinArchitecture, taus: Sequence[float], meanings: tuple[Softmax, ...]) -> list[dict]:
    """One row per tau and meaning, for scattered weights; of a program on its own shapes, whatever it has frozen."""
    if isinstance(subject, Verified):
        bare = thawed(subject)
        excluded, cost_of = constant_share(bare), lambda tau, meaning: count(refrozen(bare, scattered(tau), meaning))
    else:
        excluded, cost_of = subject.excluded_share if isinstance(subject, SwinArchitecture) else 0.0, partial(estimate, subject)
    return [
        {
            "tau": tau,
            "tau_with_excluded": tau + (1 - tau) * excluded,
            "softmax": meaning,
            "granularity": "weight",
            "estimated": True,
            **figures(cost_of(tau, meaning)),
        }
        for tau in taus
        for meaning in meanings
    ]


def own_row(program: Verified) -> dict:
    """The row of the program's own masks."""
    return {
        "tau": frozen_share(program),
        "tau_with_excluded": constant_share(program),
        "softmax": "+".join(sorted({op.softmax for op in program.attentions})),
        "granularity": granularity(program),
        "estimated": False,
        **figures(count(program)),
        **unneeded(program),
    }


def unneeded(program: Verified) -> dict[str, int]:
    """MACs that the program has and a cleverer chip would leave out (docs/spec/cost.md, Meanings)."""
    return {
        "zero_code_macs": sum(zero_code_macs(op) for op in program.attentions),
        "structured_macs": sum(structured_macs(program, op) for op in program.attentions),
        "unread_macs": sum(unread_macs(program).values()),
    }


def figures(total: Cost) -> dict:
    """The numbers of one row: exact integers, in MACs, operations (2 per MAC) and bytes."""
    macs = total.macs
    return {
        "macs_paper": macs.paper,
        "macs_full": macs.full,
        "flops_2x_paper": 2 * macs.paper,
        "flops_2x_full": 2 * macs.full,
        "qk_macs": macs.scores,
        "av_macs": macs.attention_value,
        "macs_saved_full": total.dense.full - macs.full,
        "macs_by_layer": asdict(macs),
        "dense_macs_by_layer": asdict(total.dense),
        "weight_bytes": total.weight_bytes,
        "activation_bytes": total.activation_bytes,
        "map_bytes": total.map_bytes,
        "mask_bytes": total.mask_bytes,
        "code_bytes": total.code_bytes,
    }
